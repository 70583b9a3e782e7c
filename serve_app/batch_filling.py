"""Decodes payloads into the rows of a batch's buffers, in the form in which the tail wants them.

Knows the codec and buffers. Knows no model, no device and no batching.

Shape legend: N samples, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from serve_app.model_runner import Payload
from serve_app.staging import Staged, TensorBuffers
from split_inference import packing
from split_inference.feature_codec import (
    EncodedTensor,
    decode_codes,
    decode_planes,
    decode_tensor,
    holds_codes,
    quantizer_name,
)
from split_inference.model_split import FeatureSpec
from split_inference.wire import FeatureFrame


def stays_coded(tensor: EncodedTensor, spec: FeatureSpec) -> bool:
    """Whether the tail dequantises the tensor; else it is decoded to floats here.

    A range per channel is given to the tail by the model's own channel axis; along another one it is decoded.
    """
    per_channel = quantizer_name(tensor).endswith("c")
    return holds_codes(tensor) and (not per_channel or tensor.channel_axis == spec.channel_axis)


def fill(buffers: Staged, rows: slice, payload: Payload) -> None:
    """Decode a payload into these rows, in the form that the buffers have. Raises WireError."""
    if not isinstance(payload, FeatureFrame):
        buffers.parts[0].values[rows] = payload
        return
    for part, tensor in zip(buffers.parts, payload.tensors, strict=True):
        values = part.values[rows]
        if part.steps_NC is None or part.lows_NC is None:
            # Refuses NaN and infinity itself.
            decode_tensor(tensor, out=cast("NDArray[np.float32]", values))
            continue
        decode = decode_planes if part.form.kind == "planes" else decode_codes
        scale = decode(tensor, out=cast("NDArray[np.uint8]", values))
        # [1 or N, 1, 1 or C, 1] to [N, C]: a range of the whole tensor is every channel's.
        part.steps_NC[rows] = scale.step[:, 0, :, 0]
        part.lows_NC[rows] = scale.low[:, 0, :, 0]


def first_features(part: TensorBuffers, shape: Sequence[int]) -> NDArray[Any]:
    """Codes or floats of the first row."""
    if part.form.kind != "planes":
        first: NDArray[Any] = part.values[0]
        return first
    codes = np.empty(math.prod(shape), np.uint8)
    packing.unpack_planes(cast("NDArray[np.uint8]", part.values[0]), out=codes)
    return codes.reshape(shape)
