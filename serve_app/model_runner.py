"""What the service needs from a served model: the seam between whoever takes requests and whatever runs tails.

Knows NumPy and the wire's values. Knows no torch, no Ray and no HTTP.

Shape legend: N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from serve_app.batching import BatchKey
from serve_app.micro_batcher import Prepared
from split_inference.errors import WireError
from split_inference.wire import FeatureFrame

# A frame as it came, or what `preprocess` made of an encoded input.
Payload: TypeAlias = "FeatureFrame | NDArray[np.float32]"


class ModelRunner(Protocol):
    """A model that answers batches; also the micro-batcher's `BatchWork`."""

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

    def preprocess(self, data: bytes) -> NDArray[np.float32]:
        """An encoded image or sound as the model's input [1, ...]. Raises MalformedInputError or TooLargeError."""
        ...

    def key_of(self, payload: Payload) -> BatchKey:
        """What a checked payload has in common with those that may run beside it."""
        ...

    def prepare(self, key: Any, payloads: Sequence[Payload]) -> Prepared[Any]:
        """Decode and stack; called from one thread."""
        ...

    def run(self, key: Any, staged: Any) -> Sequence[NDArray[np.float32] | WireError]:
        """Logits [N, K] of each payload; called from one thread, another one than `prepare`."""
        ...

    def rows_run(self, key: Any, samples: int) -> int:
        """Rows that run for a batch of so many samples: these, and empty ones where only larger sizes are warm."""
        ...

    def discard(self, staged: Any) -> None:
        """The batch's buffers may be used again."""
        ...
