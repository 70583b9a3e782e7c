"""What a model says of itself: task, labels, preprocessing, digest. Served by GET, kept beside weights as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from split_inference.audio_preprocessing import AudioPreprocessing
from split_inference.json_files import read_json_file
from split_inference.preprocessing import ImagePreprocessing

Preprocessing = Annotated[ImagePreprocessing | AudioPreprocessing, Field(discriminator="kind")]
Task = Literal["image-classification", "audio-classification", "other"]
UNTRAINED = "UNTRAINED: random weights, for load tests only; its answers mean nothing"


class CardFile(BaseModel):
    """What somebody can say of a model in a card file; all of it optional but true."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Task = "image-classification"
    labels: tuple[str, ...] = ()
    """Label of output 0, 1, ...; empty: outputs are numbered."""
    preprocessing: Preprocessing | None = None
    input_shape: tuple[int, ...] | None = None
    """Of one sample, without the sample axis; follows from the preprocessing where there is one."""
    licence: str = ""
    notes: str = ""
    measured: dict[str, float] = {}
    """Figures with what they were measured on in the name, as in {"top1_on_10000_cifar10_jpeg_test_images": 0.88}."""


class ModelCard(CardFile):
    """A card file's content with what only the loaded model tells."""

    name: str
    uri: str
    digest: str
    """See SplittableModel.digest."""
    trained: bool = True

    def label(self, index: int) -> str:
        """The label of an output, or its number where the card has none."""
        return self.labels[index] if index < len(self.labels) else str(index)


def read_card(path: Path) -> CardFile:
    """A card file; ConfigError names the file and the first field that is wrong."""
    return read_json_file(path, CardFile, what="card")
