"""What a model answered, and what asking it takes: the seam between the ingress and whatever runs the model.

Knows NumPy and the wire's values. Knows no torch, no Ray and no HTTP.

Shape legend: N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from split_inference.wire import FeatureFrame


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Logits of one request's samples, and how long each stage took."""

    logits_NK: NDArray[np.float32]
    timings_s: Mapping[str, float]
    """Stage name -> seconds: "decode" and "tail"."""


class ModelRunner(Protocol):
    """What the ingress needs from a served model."""

    @property
    def name(self) -> str:
        """Served name."""
        ...

    @property
    def digest(self) -> str:
        """Of the weights and the table of split points; 64 hex digits."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """By class index; empty where the model has none."""
        ...

    @property
    def card(self) -> Mapping[str, Any]:
        """What GET answers: a JSON object."""
        ...

    def check(self, frame: FeatureFrame) -> None:
        """Refuse a frame by its header alone; cheap. Raises WireError."""
        ...

    def check_input(self, media_type: str) -> None:
        """Refuse a kind of encoded input; cheap. Raises UnsupportedMediaError or UnknownSplitPointError."""
        ...

    def run_frame(self, frame: FeatureFrame) -> Answer:
        """Decode and run the tail. Raises WireError."""
        ...

    def preprocess(self, data: bytes) -> NDArray[np.float32]:
        """An encoded image or sound as the model's input [1, ...]. Raises MalformedInputError or TooLargeError."""
        ...

    def run_input(self, inputs: NDArray[np.float32]) -> Answer:
        """Run the whole model on what `preprocess` gave."""
        ...
