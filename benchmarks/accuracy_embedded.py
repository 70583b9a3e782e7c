"""Accuracy and bytes of the embedded model, split, on the 10,000 CIFAR-10 test images.

    python -m benchmarks.accuracy_embedded [--data ../shared/data/cifar10] [--limit 2000]

Codecs are calibrated on training images only. Bounds are those of the issue that asked for the model: at the last
stage and with 2 or 3 bits, at most 1.2 bit per element on the wire with all headers, at most half a point of
accuracy lost, and fewer bytes than the JPEG that a device would otherwise send.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from split_inference.calibration import EMBEDDED_CALIBRATION, Calibration, load_calibration
from split_inference.calibration_search import CalibrationSearch, SearchSettings
from split_inference.figures import Bound, report
from split_inference.inputs import EncodedInput, read_inputs
from split_inference.model_catalog import EMBEDDED_URI, LoadedModel, load_model
from split_inference.split_evaluation import Floats, Score, SplitEvaluation

CALIBRATED_ON = 1_000


def arrays(
    loaded: LoadedModel, inputs: list[EncodedInput]
) -> tuple[Floats, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    assert loaded.card.preprocessing is not None
    images = np.concatenate([loaded.card.preprocessing.apply(item.data) for item in inputs])
    return images, np.array([item.label for item in inputs], dtype=np.int64)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--limit", type=int, default=None, help="use so many test images instead of all")
    args = parser.parse_args()
    loaded = load_model(EMBEDDED_URI)
    train = arrays(loaded, read_inputs(args.data / "train.npz", limit=CALIBRATED_ON))
    test_inputs = read_inputs(args.data / "test.npz", limit=args.limit)
    evaluation = SplitEvaluation(loaded.model, *arrays(loaded, test_inputs))
    jpeg = float(np.mean([len(item.data) for item in test_inputs]))
    header = test_inputs[0].header_bytes
    figures = {
        "test_images": float(len(test_inputs)),
        "top1_unsplit": evaluation.whole_accuracy() or 0.0,
        "jpeg_bytes": jpeg,
        "jpeg_bytes_without_common_header": jpeg - header,
    }
    bounds: dict[str, Bound] = {"top1_unsplit": (">=", 0.88)}

    def scored(name: str, calibration: Calibration) -> Score:
        point = loaded.model.split_point(calibration.split_point)
        score = evaluation.score(evaluation.outcomes(point, calibration.codecs(), np.arange(len(test_inputs))))
        figures[f"{name}_bytes"] = score.bytes_per_input
        figures[f"{name}_bits_per_element"] = 8 * score.bytes_per_input / point.elements
        figures[f"{name}_loss_points"] = score.loss_points if score.loss_points is not None else float("nan")
        figures[f"{name}_agreement"] = score.agreement
        return score

    for bits in (2, 3):
        for compressor in ("lz4", "zstd"):
            settings = SearchSettings(
                at="stage3", bits=(bits,), compressor="zstd" if compressor == "zstd" else "lz4", min_agreement=0.9
            )
            search = CalibrationSearch(loaded.model, *train, settings, lambda text, done, total: None)
            found = search.run(model_uri=EMBEDDED_URI, made_by="accuracy_embedded").calibration
            scored(f"stage3_u{bits}_{compressor}", found)
    scored("shipped", load_calibration(EMBEDDED_CALIBRATION))
    bounds |= {
        "stage3_u2_lz4_bits_per_element": ("<=", 1.2),
        "stage3_u2_lz4_loss_points": ("<=", 0.5),
        "stage3_u2_lz4_bytes": ("<", jpeg),
        "shipped_loss_points": ("<=", 0.5),
        "shipped_bytes": ("<", jpeg),
    }
    return report("accuracy-embedded", figures, bounds)


if __name__ == "__main__":
    raise SystemExit(main())
