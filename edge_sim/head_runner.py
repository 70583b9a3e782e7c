"""[torch] The device's share of a request, stage by stage: encoded input -> array -> head -> encoded features.

Knows the model, its preprocessing and the codec. Knows no server, no frame and no network.

Shape legend: N samples, K classes; features are NumPy arrays with the sample axis first.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from split_inference.errors import FeatureMismatchError, UsageError
from split_inference.feature_codec import EncodedTensor, FeatureCodec
from split_inference.model_catalog import LoadedModel
from split_inference.model_split import SplitPoint

Input = bytes | NDArray[np.float32]
"""An encoded image or sound, or an array [1, ...] that is preprocessed already."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceWork:
    """What the device made of the inputs, and how long each stage took."""

    tensors: tuple[EncodedTensor, ...]
    sample_count: int
    stages_s: dict[str, float]
    """preprocess, head, encode."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalAnswer:
    """The whole model's answer, computed here."""

    logits_NK: NDArray[np.float32]
    stages_s: dict[str, float]
    """preprocess, head: without a network the whole model is the head."""


class HeadRunner:
    """Runs one model's head, or the whole model, on one torch thread.

    One thread, because an edge device's other cores have other work, and because a thread pool per worker makes many
    simulated workers on one machine slower than none. Raises UsageError where the number of codecs is not that of the
    split point's tensors.
    """

    def __init__(self, loaded: LoadedModel, *, at: SplitPoint, codecs: Sequence[FeatureCodec]) -> None:
        if len(codecs) != len(at.features):
            raise UsageError(f"split point {at.name} sends {len(at.features)} tensors; got {len(codecs)} codecs")
        self._loaded = loaded
        self._codecs = tuple(codecs)
        self._head = loaded.model.head(at.name)
        self._at = at.name

    def run(self, inputs: Sequence[Input]) -> DeviceWork:
        """Encoded features of all inputs, as the tensors of one frame; FeatureMismatchError where the codec refuses."""
        torch.set_num_threads(1)
        started_s = time.perf_counter()
        batch = self._preprocess(inputs)
        preprocessed_s = time.perf_counter()
        with torch.inference_mode():
            features = [feature.float().numpy() for feature in self._head(self._tensor(batch))]
        computed_s = time.perf_counter()
        try:
            tensors = tuple(codec.encode(feature) for codec, feature in zip(self._codecs, features, strict=True))
        except ValueError as error:
            raise FeatureMismatchError(f"the features at {self._at} cannot be encoded: {error}") from error
        encoded_s = time.perf_counter()
        return DeviceWork(
            tensors=tensors,
            sample_count=len(batch),
            stages_s={
                "preprocess": preprocessed_s - started_s,
                "head": computed_s - preprocessed_s,
                "encode": encoded_s - computed_s,
            },
        )

    def run_whole(self, inputs: Sequence[Input]) -> LocalAnswer:
        """The unsplit model's logits: what the device answers when there is no server."""
        torch.set_num_threads(1)
        started_s = time.perf_counter()
        batch = self._preprocess(inputs)
        preprocessed_s = time.perf_counter()
        with torch.inference_mode():
            logits_NK = self._loaded.model.whole(self._tensor(batch)).float().numpy()
        computed_s = time.perf_counter()
        return LocalAnswer(
            logits_NK=logits_NK,
            stages_s={"preprocess": preprocessed_s - started_s, "head": computed_s - preprocessed_s},
        )

    def _preprocess(self, inputs: Sequence[Input]) -> NDArray[np.float32]:
        if not inputs:
            raise UsageError("there is no input to run the model on")
        arrays = [given if isinstance(given, np.ndarray) else self._read(given) for given in inputs]
        return np.ascontiguousarray(arrays[0] if len(arrays) == 1 else np.concatenate(arrays), dtype=np.float32)

    def _tensor(self, batch: NDArray[np.float32]) -> torch.Tensor:
        return torch.from_numpy(batch).to(getattr(torch, self._loaded.model.input.dtype))

    def _read(self, data: bytes) -> NDArray[np.float32]:
        preprocessing = self._loaded.card.preprocessing
        if preprocessing is None:
            raise UsageError(
                f"{self._loaded.name} does not say how its inputs are preprocessed: give it arrays of shape "
                f"{['N', *self._loaded.model.input.shape]}, or a card with `preprocessing`"
            )
        array: NDArray[np.float32] = preprocessing.apply(data)
        return array
