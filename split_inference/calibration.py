"""What calibration found: split point, codec and clip ranges for one model, as a small JSON file.

Client, server and demo read it. Knows no torch; the search that makes it is calibration_search.py.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from split_inference.codec_profile import ClipRange, CodecProfile
from split_inference.errors import UnknownCodecError, UsageError
from split_inference.feature_codec import FeatureCodec
from split_inference.json_files import read_json_file

EMBEDDED_CALIBRATION = Path(__file__).resolve().parent / "embedded" / "resnet20_cifar10.calibration.json"


class Clip(BaseModel):
    """Ranges of one tensor: one value, or one per channel."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: tuple[float, ...]
    high: tuple[float, ...]


class Calibration(BaseModel):
    """A split point with the codec of each of its tensors, and the figures that speak for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    """URI of the model that was calibrated."""
    model_digest: str = Field(pattern="^[0-9a-f]{64}$")
    split_point: str
    codec: str
    """Name of a codec profile, as in "u2+lz4"."""
    clip: tuple[Clip, ...]
    """One per tensor; empty where ranges are measured in every request."""
    channel_axes: tuple[int, ...]
    """One per tensor."""
    trained: bool = True
    """False: the model's weights were random, and the figures say nothing."""
    figures: dict[str, float] = {}
    made_by: str = ""

    @model_validator(mode="after")
    def _refuse_nonsense(self) -> Calibration:
        if self.clip and len(self.clip) != len(self.channel_axes):
            raise ValueError(f"{len(self.clip)} clip ranges for {len(self.channel_axes)} tensors")
        try:
            self.codecs()
        except UnknownCodecError as error:
            raise ValueError(str(error)) from error
        return self

    def codecs(self) -> tuple[FeatureCodec, ...]:
        """One codec per tensor of the split point."""
        profile = CodecProfile.parse(self.codec)
        measured: list[ClipRange | None] = [None] * len(self.channel_axes)
        ranges = [ClipRange(low=clip.low, high=clip.high) for clip in self.clip] or measured
        return tuple(
            FeatureCodec(profile, clip=clip, channel_axis=axis)
            for clip, axis in zip(ranges, self.channel_axes, strict=True)
        )


def load_calibration(path: Path) -> Calibration:
    """Read a calibration file; ConfigError names the file and the first field that is wrong."""
    return read_json_file(path, Calibration, what="calibration")


def refuse_unwritable(path: Path) -> None:
    """Say before a long search that its result could not be written: UsageError with the path."""
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write {path}: {'it is a folder' if path.is_dir() else f'{folder} is not writable'}")


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write a calibration file whole or not at all; UsageError where it cannot be written."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(calibration.model_dump_json(indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
