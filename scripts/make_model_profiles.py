"""Makes the model profiles that ship with edge_sim, from real inputs through real heads (a few minutes on one core).

    python -m scripts.make_model_profiles [--data ../shared/data] [--only mobilenet_v2]

The embedded network runs on the package's own samples. MobileNetV2 needs models/mobilenet_v2_imagenet.pt2 in the data
folder, and it and ResNet-34 the photographs in imagenet/ there. No trained ResNet-34 is at hand: its profile is of
random weights, and says so.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_sim.model_profile import PROFILES_FOLDER, ModelProfile
from edge_sim.payloads import SERVER_ONLY, Choice, make_payloads
from split_inference.cli import progress_bar
from split_inference.inputs import EncodedInput, read_inputs
from split_inference.model_catalog import EMBEDDED_FOLDER, EMBEDDED_URI, parse_uri

PHOTOGRAPHS = 60
MOBILENET = "mobilenet_v2_imagenet.pt2"
MOBILENET_CARD = Path(__file__).resolve().parents[1] / "tests" / "cards" / "mobilenet_v2_imagenet.card.json"
# Where its features have just become smaller; of each resolution the last.
MOBILENET_SPLIT_POINTS = ("ops.op02_conv", "add", "add:3", "add:6", "add:10")
MOBILENET_CODECS = ("u8+lz4", "u4+lz4")
PHOTOGRAPHS_ARE = f"{PHOTOGRAPHS} photographs of 299x299 pixels (NIPS 2017 development set, CC BY 2.0), JPEG quality 95"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What one profile is made from."""

    uri: str
    inputs: tuple[EncodedInput, ...]
    options: Sequence[Choice] | None
    """None: the defaults of make_payloads."""
    note: str

    def make(self, *, first: int | None = None) -> ModelProfile:
        """The profile, or that of the first few inputs."""
        with tempfile.TemporaryDirectory() as folder, progress_bar() as bar:
            task = bar.add_task(self.uri, total=None)
            path = Path(folder) / "payloads"
            header = make_payloads(
                self.uri,
                self.inputs[:first],
                path,
                options=self.options,
                on_progress=lambda text, done, total: bar.update(task, completed=done, total=total or None),
            )
        # Where somebody keeps the file says nothing to others.
        uri = f"pt2:{Path(parse_uri(self.uri).path).name}" if self.uri.startswith("pt2:") else self.uri
        return ModelProfile.from_header(header, note=self.note).model_copy(update={"uri": uri})


def recipes(data: Path | None) -> dict[str, Recipe]:
    """By the profile's file name; only the embedded model's where there is no data."""
    samples = read_inputs(EMBEDDED_FOLDER / "samples")
    made = {
        "resnet20-cifar10": Recipe(
            uri=EMBEDDED_URI,
            inputs=tuple(samples),
            options=None,
            note=f"the package's {len(samples)} CIFAR-10 test images of 32x32 pixels, JPEG quality 75",
        )
    }
    if data is not None:
        photographs = tuple(read_inputs(data / "imagenet", limit=PHOTOGRAPHS))
        made["mobilenet_v2"] = Recipe(
            uri=f"pt2:{data / 'models' / MOBILENET}?card={MOBILENET_CARD}",
            inputs=photographs,
            options=[SERVER_ONLY, *((at, codec) for at in MOBILENET_SPLIT_POINTS for codec in MOBILENET_CODECS)],
            note=PHOTOGRAPHS_ARE,
        )
        made["resnet34"] = Recipe(
            uri="resnet34?weights=random&seed=0",
            inputs=photographs,
            options=None,
            note=f"UNTRAINED: random weights; {PHOTOGRAPHS_ARE}",
        )
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", help="make this profile alone")
    args = parser.parse_args()
    for name, recipe in recipes(args.data if args.data.is_dir() else None).items():
        if args.only in (None, name):
            profile = recipe.make()
            profile.save(PROFILES_FOLDER / f"{name}.json")
            for option in profile.options:
                right = "" if option.correct is None else f"{sum(option.correct):4} of {profile.inputs} right"
                what = option.mode if option.split_point is None else f"{option.split_point}, {option.codec}"
                print(f"{name:18} {what:40} {sum(option.sizes) / profile.inputs:10,.0f} bytes {right}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
