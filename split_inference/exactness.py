"""Proof that a split model is the unsplit one: bit for bit, through the bytes of a float32 frame.

Knows the split, the codec and the wire; knows no server. What is proved here holds on the machine that ran it:
two processors may still round differently from one another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from split_inference.codec_profile import CodecProfile
from split_inference.feature_codec import FeatureCodec, decode_tensor
from split_inference.model_split import SplitPoint, SplittableModel
from split_inference.wire import DIGEST_BYTES, MAX_FRAME_BYTES, FeatureFrame, decode_frame, encode_frame

PASS_THROUGH = CodecProfile(quantizer="float32", compressor="none")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExactnessResult:
    """What one split point gave for one number of samples."""

    split_point: SplitPoint
    samples: int
    exact: bool
    largest_difference: float
    frame_bytes: int


def tensor_from(features: NDArray[np.float32]) -> Tensor:
    """A tensor in torch's own, aligned memory; kernels may add up in another order at another alignment."""
    result = torch.empty(features.shape, dtype=torch.float32)
    result.numpy()[...] = features
    return result


def through_frame(features: Sequence[Tensor], *, split_point: str, digest: str) -> tuple[list[Tensor], int]:
    """The tensors after a trip through a float32 frame, and its bytes; where one frame cannot hold all samples, each in
    one of its own."""
    if len(features[0]) > 1 and sum(tensor.numel() for tensor in features) * 4 > MAX_FRAME_BYTES // 2:
        trips = [
            through_frame([tensor[at : at + 1] for tensor in features], split_point=split_point, digest=digest)
            for at in range(len(features[0]))
        ]
        parts = zip(*(tensors for tensors, _ in trips), strict=True)
        return [torch.cat(part) for part in parts], sum(size for _, size in trips)
    codec = FeatureCodec(PASS_THROUGH)
    frame = encode_frame(
        FeatureFrame(
            model_digest=bytes.fromhex(digest)[:DIGEST_BYTES],
            split_point=split_point,
            sample_count=len(features[0]),
            deadline_budget_ms=None,
            tensors=tuple(codec.encode(tensor.to(torch.float32).contiguous().numpy()) for tensor in features),
        )
    )
    arrived = [tensor_from(decode_tensor(encoded)) for encoded in decode_frame(frame).tensors]
    return [tensor.to(sent.dtype) for tensor, sent in zip(arrived, features, strict=True)], len(frame)


@torch.inference_mode()
def verify(
    model: SplittableModel,
    *,
    samples: Sequence[int] = (1, 3),
    seed: int = 0,
    on_result: Callable[[ExactnessResult], None] | None = None,
) -> list[ExactnessResult]:
    """Run every split point on seeded noise and compare all bits of the output; one result per point and count."""
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, model.input.dtype)
    inputs = {count: torch.randn((count, *model.input.shape), generator=generator).to(dtype) for count in samples}
    answers = {count: model.whole(x) for count, x in inputs.items()}
    results = []
    for point in model.split_points:
        head, tail = model.head(point.name), model.tail(point.name)
        for count, x in inputs.items():
            sent = head(x)
            arrived, frame_bytes = through_frame(sent, split_point=point.name, digest=model.digest)
            answer, expected = tail(*arrived), answers[count]
            # Compared as integers: equal bits, so that NaN equals NaN and -0.0 differs from 0.0.
            exact = answer.shape == expected.shape and torch.equal(_bits(answer), _bits(expected))
            result = ExactnessResult(
                split_point=point,
                samples=count,
                exact=exact,
                largest_difference=float((answer - expected).abs().max()),
                frame_bytes=frame_bytes,
            )
            results.append(result)
            if on_result is not None:
                on_result(result)
    return results


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().view({2: torch.int16, 4: torch.int32}[values.element_size()])
