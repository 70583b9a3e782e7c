"""Unpacking bit planes to codes: in NumPy beside torch operations, on one thread of this processor.

    python -m benchmarks.bench_unpacking

Whoever asks whether a processor should unpack as a GPU does: the two are interleaved, and every round is a ratio. No
bound: `TailExecutor` lets the faster one run on each device (decision record 0011).
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from serve_app.tail_module import unpack_planes
from split_inference import packing

SHAPE = (256, 14, 14)
ROUNDS = 41


def main() -> int:
    """Print a table."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    print("| rows | bits | NumPy ms | torch ms | torch over NumPy (quartiles) |")
    print("|---|---|---|---|---|")
    for rows in (1, 4, 16):
        for bits in (1, 2, 4, 8):
            codes = rng.integers(0, 2**bits, (rows, int(np.prod(SHAPE)))).astype(np.uint8)
            planes = np.stack([packing.pack_planes(row, bits=bits) for row in codes])
            numpy_s, torch_s, ratios = _compared(planes, np.empty_like(codes))
            low, middle, high = statistics.quantiles(ratios, n=4)
            times = f"{1000 * numpy_s:.3f} | {1000 * torch_s:.3f}"
            print(f"| {rows} | {bits} | {times} | {middle:.1f} ({low:.1f}-{high:.1f}) |")
    return 0


def _compared(planes: NDArray[np.uint8], out: NDArray[np.uint8]) -> tuple[float, float, list[float]]:
    tensor = torch.from_numpy(planes)

    def in_numpy() -> None:
        for row, target in zip(planes, out, strict=True):
            packing.unpack_planes(row, out=target)

    def in_torch() -> None:
        with torch.inference_mode():
            unpack_planes(tensor, shape=SHAPE)

    pairs = [(_seconds(in_numpy), _seconds(in_torch)) for _ in range(ROUNDS)]
    return (
        statistics.median(one for one, _ in pairs),
        statistics.median(other for _, other in pairs),
        [other / one for one, other in pairs],
    )


def _seconds(work: Callable[[], None]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


if __name__ == "__main__":
    sys.exit(main())
