"""How well a split model answers with a codec at its cut, against the unsplit model on the same inputs.

Knows torch, the split, the codec and the wire; knows no search and no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from split_inference.exactness import tensor_from
from split_inference.feature_codec import FeatureCodec, decode_tensor
from split_inference.model_split import SplitPoint, SplittableModel
from split_inference.wire import DIGEST_BYTES, FeatureFrame, encode_frame

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

# Samples per run of a head or tail: as many as fit in so many bytes of its input, within these limits. Small features
# gain from larger batches; large ones lose threefold, since buffers above 32 MB are fetched from the kernel anew, page
# by page, for every operation (measured on MobileNetV2: batch 25 spends 2.5 of 4 s in the kernel, batch 4 nothing).
BATCH_BYTES = 2_500_000
BATCH_LIMITS = (1, 25)
KEPT_FEATURES = 8  # split points whose features are kept: neighbours in a search come soon after one another


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcomes:
    """What the split model gave for some inputs."""

    indices: Indices
    """Which inputs, as positions in the evaluation's set."""
    frame_bytes: NDArray[np.int64]
    """[n] Of a whole frame with one input each."""
    logits: Floats
    """[n, K]"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Outcomes in numbers."""

    inputs: int
    bytes_per_input: float
    """Whole frames: header, ranges, payload and checksum."""
    agreement: float
    """Share of inputs with the unsplit model's top-1 answer, 0..1."""
    loss_points: float | None
    """Top-1 accuracy lost, in percentage points; None without labels."""
    damage: float
    """In nats: mean Kullback-Leibler divergence of the answers' softmax from the unsplit model's, and with labels,
    added to it, how much less likely the right label became. Finer than agreement: it sees near misses too."""


class SplitEvaluation:
    """`inputs` float32 [N, ...] as the model takes them; `labels` int64 [N], or None where nobody knows."""

    def __init__(self, model: SplittableModel, inputs: Floats, labels: Indices | None) -> None:
        self.model = model
        self.inputs = inputs
        self.labels = labels
        self.whole_logits = _batched(model.whole, (inputs,))
        self._features: dict[str, tuple[Floats, ...]] = {}
        self._tails: dict[str, torch.nn.Module] = {}

    def whole_accuracy(self) -> float | None:
        """Top-1 accuracy of the unsplit model, 0..1; None without labels."""
        return None if self.labels is None else float(np.mean(self.whole_logits.argmax(1) == self.labels))

    def features_at(self, point: SplitPoint, indices: Indices) -> tuple[Floats, ...]:
        """The head's output for some inputs, one array [n, ...] per tensor."""
        if point.name not in self._features:
            while len(self._features) >= KEPT_FEATURES:
                self._features.pop(next(iter(self._features)))
            head = self.model.head(point.name)
            with torch.inference_mode():
                parts = [
                    [value.float().numpy().copy() for value in head(torch.from_numpy(self.inputs[part]))]
                    for part in _parts((self.inputs,))
                ]
            self._features[point.name] = tuple(np.concatenate(part) for part in zip(*parts, strict=True))
        return tuple(values[indices] for values in self._features[point.name])

    def frame(self, point: SplitPoint, codecs: Sequence[FeatureCodec], tensors: Sequence[Floats]) -> FeatureFrame:
        """The frame that carries these tensors, one codec each."""
        return FeatureFrame(
            model_digest=bytes.fromhex(self.model.digest)[:DIGEST_BYTES],
            split_point=point.name,
            sample_count=len(tensors[0]),
            deadline_budget_ms=None,
            tensors=tuple(codec.encode(values) for codec, values in zip(codecs, tensors, strict=True)),
        )

    def outcomes(self, point: SplitPoint, codecs: Sequence[FeatureCodec], indices: Indices) -> Outcomes:
        """Send each input in a frame of its own, and run the tail on what arrives."""
        tensors = self.features_at(point, indices)
        sizes, decoded = [], []
        for i in range(len(indices)):
            frame = self.frame(point, codecs, [values[i : i + 1] for values in tensors])
            sizes.append(len(encode_frame(frame)))
            decoded.append([decode_tensor(tensor) for tensor in frame.tensors])
        if point.name not in self._tails:
            self._tails[point.name] = self.model.tail(point.name)
        arrived = tuple(np.concatenate(parts) for parts in zip(*decoded, strict=True))
        logits = _batched(self._tails[point.name], arrived)
        return Outcomes(indices=indices, frame_bytes=np.array(sizes, dtype=np.int64), logits=logits)

    def score(self, *outcomes: Outcomes) -> Score:
        """One score over all inputs of all outcomes given."""
        indices = np.concatenate([part.indices for part in outcomes])
        logits = np.concatenate([part.logits for part in outcomes])
        expected = self.whole_logits[indices]
        answers, right = logits.argmax(1), expected.argmax(1)
        log_p, log_q = _log_softmax(expected), _log_softmax(logits)
        damage = float(np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=1)))
        loss = None
        if self.labels is not None:
            labels = self.labels[indices]
            loss = 100 * float(np.mean(right == labels) - np.mean(answers == labels))
            of_label = np.arange(len(labels)), labels
            damage += max(0.0, float(np.mean(log_p[of_label] - log_q[of_label])))
        return Score(
            inputs=len(indices),
            bytes_per_input=float(np.concatenate([part.frame_bytes for part in outcomes]).mean()),
            agreement=float(np.mean(answers == right)),
            loss_points=loss,
            damage=damage,
        )


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _batched(module: torch.nn.Module, arrays: Sequence[Floats]) -> Floats:
    with torch.inference_mode():
        return np.concatenate(
            [module(*(tensor_from(array[part]) for array in arrays)).float().numpy().copy() for part in _parts(arrays)]
        )


def _parts(arrays: Sequence[Floats]) -> list[slice]:
    """Slices of the sample axis, see BATCH_BYTES."""
    samples = len(arrays[0])
    per_sample = sum(array.nbytes for array in arrays) // samples
    low, high = BATCH_LIMITS
    batch = min(high, max(low, BATCH_BYTES // max(1, per_sample)))
    return [slice(i, i + batch) for i in range(0, samples, batch)]
