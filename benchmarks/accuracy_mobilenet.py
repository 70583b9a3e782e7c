"""Accuracy and bytes of a real ImageNet network, split where calibration puts the cut, on real photographs.

    python -m benchmarks.accuracy_mobilenet [--data ../shared/data]

Runs what `split-inference calibrate` runs, with its defaults: chosen on 100 of the 200 photographs and scored on the
other 100, and the reverse, for three divisions into halves, pooled. A JPEG of the same picture that keeps the
accuracy needs 15,700 bytes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from benchmarks.accuracy_embedded import arrays
from split_inference.calibration_search import CalibrationSearch, SearchSettings
from split_inference.cli import progress_bar
from split_inference.figures import Bound, report
from split_inference.inputs import read_inputs
from split_inference.model_catalog import load_model
from split_inference.split_evaluation import SplitEvaluation

CARD = Path("tests/cards/mobilenet_v2_imagenet.card.json")
BOUNDS: dict[str, Bound] = {
    "top1_unsplit": ("==", 0.845),
    "bytes_per_image": ("<=", 2_100),
    "top1_loss_points": ("<=", 1.5),
    "agreement": (">=", 0.93),
    "search_s": ("<=", 600),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    args = parser.parse_args()
    uri = f"pt2:{args.data}/models/mobilenet_v2_imagenet.pt2?card={CARD}"
    loaded = load_model(uri)
    images, labels = arrays(loaded, read_inputs(args.data / "imagenet"))
    began = time.perf_counter()
    with progress_bar() as bar:
        task = bar.add_task("searching")

        def show(text: str, done: int, total: int) -> None:
            bar.update(task, description=text[:60], completed=done, total=total)

        result = CalibrationSearch(loaded.model, images, labels, SearchSettings(), show).run(
            model_uri=uri, made_by="accuracy_mobilenet"
        )
    took_s = time.perf_counter() - began
    for choice in result.choices:
        clip = choice.clips[0]
        print(f"{choice.split_point.name:16} {choice.profile.name:8} clip {clip.low[0]:6.2f} .. {clip.high[0]:5.2f}")
    figures = {
        "images": float(len(images)),
        "top1_unsplit": round(SplitEvaluation(loaded.model, images, labels).whole_accuracy() or 0.0, 6),
        "bytes_per_image": result.unseen.bytes_per_input,
        "top1_loss_points": result.unseen.loss_points if result.unseen.loss_points is not None else float("nan"),
        "agreement": result.unseen.agreement,
        "search_s": took_s,
        "head_macs_share": result.calibration.figures["head_macs_share"],
    }
    for i, score in enumerate(result.unseen_by_repeat, start=1):
        figures[f"division_{i}_top1_loss_points"] = np.nan if score.loss_points is None else score.loss_points
        figures[f"division_{i}_agreement"] = score.agreement
    return report("accuracy-mobilenet", figures, BOUNDS)


if __name__ == "__main__":
    raise SystemExit(main())
