"""What a network asks of a processor, in the families of operations that processors differ in.

One number of GFLOPS per device is wrong by three times between depthwise and dense networks, so that work is counted by
family. Plain numbers; layer_work.py counts them in a graph, device_fit.py turns them into seconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple, Self

from split_inference.errors import UsageError

REFERENCE_FILE = Path(__file__).resolve().parent / "reference_work.json"


class Work(NamedTuple):
    """Of one sample; adds up over layers."""

    depthwise_macs: int = 0
    """Convolutions with one filter per channel."""
    pointwise_macs: int = 0
    """1x1 convolutions."""
    conv3x3_macs: int = 0
    """3x3 at stride 1, for which processors have the fastest ways (Winograd)."""
    other_conv_macs: int = 0
    linear_macs: int = 0
    """Fully connected and attention: weights are read for every sample."""
    elements: int = 0
    """Values read and written by layers, additions and pools. Activations and normalisations are fused into what
    comes before them, as every runtime for devices does."""
    layers: int = 0
    """Convolutions, linear layers, additions and pools: each is begun and ended."""

    def plus(self, other: Work) -> Self:
        """The sum, family by family."""
        return type(self)(*(one + two for one, two in zip(self, other, strict=True)))


class ModelWork(NamedTuple):
    """Of a model, and of the head before each of its split points."""

    whole: Work
    heads: Mapping[str, Work]

    def head(self, split_point: str) -> Work:
        """UsageError for a split point that was not counted."""
        try:
            return self.heads[split_point]
        except KeyError:
            raise UsageError(f"no work is known for split point {split_point!r}") from None


@cache
def reference_work() -> Mapping[str, ModelWork]:
    """What ships with the package, by model name; made by scripts/make_reference_work.py."""
    content = json.loads(REFERENCE_FILE.read_text(encoding="utf-8"))
    return {
        name: ModelWork(Work(*facts["whole"]), {at: Work(*work) for at, work in facts["heads"].items()})
        for name, facts in content.items()
    }
