"""One model's weights, and every tail that can be cut from them: features in, logits out.

Knows torch, the codec and the split points. Knows no Ray and no HTTP: it runs in a REPL. Not thread-safe on
purpose: the ingress runs it in one thread.

Shape legend: N samples, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from serve_app.answer import Answer
from serve_app.card import card_of
from serve_app.settings import AppSettings, Limits
from split_inference.errors import (
    FeatureMismatchError,
    ModelLoadError,
    TooLargeError,
    UnknownSplitPointError,
    UnsupportedMediaError,
)
from split_inference.feature_codec import EncodedTensor, decode_tensor, raw_bytes
from split_inference.model_card import ModelCard
from split_inference.model_catalog import load_model
from split_inference.model_split import FeatureSpec, SplitPoint
from split_inference.wire import FeatureFrame

_TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class TailSource(Protocol):
    """What the runner needs from a model: `split_inference.model_split.SplittableModel` is one."""

    @property
    def digest(self) -> str: ...

    @property
    def input(self) -> FeatureSpec: ...

    @property
    def split_points(self) -> tuple[SplitPoint, ...]: ...

    def split_point(self, name: str) -> SplitPoint: ...

    def tail(self, at: str) -> torch.nn.Module: ...


class TailRunner:
    """Serves all split points of one set of weights; tails are cut when first asked for and share the weights."""

    def __init__(
        self,
        model: TailSource,
        *,
        name: str,
        card: ModelCard,
        split_points: Sequence[str] | None = None,
        limits: Limits | None = None,
        threads: int = 1,
    ) -> None:
        """`split_points` limits what is served; a name that the model lacks raises UnknownSplitPointError."""
        torch.set_num_threads(threads)
        self.name = name
        self.digest = model.digest
        self.labels = tuple(card.labels)
        self._model = model
        self._limits = limits or Limits()
        self._preprocessing = card.preprocessing
        served = [model.split_point(each) for each in split_points] if split_points else list(model.split_points)
        self._served = {point.name: point for point in served}
        self._tails: dict[str, torch.nn.Module] = {}
        self._check_that_it_answers()
        self.card: Mapping[str, Any] = card_of(
            card, name=name, digest=self.digest, split_points=tuple(self._served.values()), limits=self._limits
        )

    @classmethod
    def load(cls, settings: AppSettings) -> TailRunner:
        """Load the model that the settings name. Raises UsageError or UnknownSplitPointError."""
        # Before loading: exporting a model runs it.
        torch.set_num_threads(settings.threads)
        loaded = load_model(settings.model)
        return cls(
            loaded.model,
            name=settings.name or loaded.name,
            card=loaded.card,
            split_points=settings.split_points,
            limits=settings.limits,
            threads=settings.threads,
        )

    def check(self, frame: FeatureFrame) -> None:
        """Refuse a frame by its header: unknown split point, too many samples or bytes, wrong shapes or dtypes."""
        point = self._point(frame.split_point)
        limits = self._limits
        if frame.sample_count > limits.max_samples:
            raise TooLargeError(
                f"{frame.sample_count} samples in one frame; at most {limits.max_samples} are taken here"
            )
        total = sum(raw_bytes(tensor.shape) for tensor in frame.tensors)
        if total > limits.max_raw_bytes:
            raise TooLargeError(
                f"the frame holds {total} bytes of features; at most {limits.max_raw_bytes} are taken here"
            )
        if len(frame.tensors) != len(point.features):
            raise FeatureMismatchError(
                f"split point {point.name!r} takes {len(point.features)} tensors, the frame has {len(frame.tensors)}"
            )
        for index, (tensor, spec) in enumerate(zip(frame.tensors, point.features, strict=True)):
            expected = (frame.sample_count, *spec.shape)
            if tuple(tensor.shape) != expected:
                raise FeatureMismatchError(
                    f"tensor {index} has shape {list(tensor.shape)}; split point {point.name!r} takes {list(expected)}"
                )
            if tensor.dtype not in ("float32", spec.dtype):
                raise FeatureMismatchError(
                    f"tensor {index} is {tensor.dtype}; split point {point.name!r} takes {spec.dtype}"
                )

    def check_input(self, media_type: str) -> None:
        """Refuse a kind of encoded input that the model does not take."""
        preprocessing = self._preprocessing
        if preprocessing is None:
            raise UnsupportedMediaError(
                f"{self.name} takes frames only: its card says no preprocessing for {media_type}"
            )
        if media_type.partition("/")[0] != preprocessing.kind:
            raise UnsupportedMediaError(f"{self.name} takes {preprocessing.kind} inputs, not {media_type}")
        self._point("input")

    def run_frame(self, frame: FeatureFrame) -> Answer:
        """Decode the frame's tensors into torch's own memory and run the tail behind its split point."""
        self.check(frame)
        point = self._point(frame.split_point)
        started_s = time.perf_counter()
        features = [_decode(tensor, spec) for tensor, spec in zip(frame.tensors, point.features, strict=True)]
        decoded_s = time.perf_counter()
        return self._run(point.name, features, started_s=decoded_s, decode_s=decoded_s - started_s)

    def preprocess(self, data: bytes) -> NDArray[np.float32]:
        """An encoded image or sound as the model's input [1, ...]; safe to call from another thread."""
        preprocessing = self._preprocessing
        if preprocessing is None:
            raise UnsupportedMediaError(f"{self.name} takes frames only")
        if preprocessing.kind == "image":
            return preprocessing.apply(data, max_pixels=self._limits.max_pixels)
        return preprocessing.apply(data)

    def run_input(self, inputs: NDArray[np.float32]) -> Answer:
        """Run the whole model on what `preprocess` gave."""
        spec = self._point("input").features[0]
        if inputs.shape[1:] != spec.shape:
            raise FeatureMismatchError(
                f"the input has shape {list(inputs.shape[1:])}; the model takes {list(spec.shape)}"
            )
        started_s = time.perf_counter()
        features = torch.from_numpy(np.ascontiguousarray(inputs, dtype=np.float32)).to(_TORCH_DTYPES[spec.dtype])
        return self._run("input", [features], started_s=started_s, decode_s=0.0)

    def _run(self, at: str, features: list[torch.Tensor], *, started_s: float, decode_s: float) -> Answer:
        with torch.inference_mode():
            logits_NK = self._tail(at)(*features).float().contiguous().numpy()
        # Minimum and maximum pass NaN on and need no array of booleans beside the values.
        if not (np.isfinite(logits_NK.min()) and np.isfinite(logits_NK.max())):
            raise FeatureMismatchError(
                "NaN or infinity in the tail's answer: the features are out of the model's range"
            )
        tail_s = time.perf_counter() - started_s
        return Answer(logits_NK=logits_NK, timings_s={"decode": decode_s, "tail": tail_s})

    def _tail(self, at: str) -> torch.nn.Module:
        tail = self._tails.get(at)
        if tail is None:
            tail = self._tails[at] = self._model.tail(at)
        return tail

    def _point(self, name: str) -> SplitPoint:
        point = self._model.split_point(name)
        if point.name not in self._served:
            raise UnknownSplitPointError(f"split point {name!r} is not served here; served: {', '.join(self._served)}")
        return point

    def _check_that_it_answers(self) -> None:
        """One run before the first request: a replica that cannot answer has to fail at its start."""
        at = next(iter(self._served))
        features = [
            torch.zeros((1, *spec.shape), dtype=_TORCH_DTYPES[spec.dtype]) for spec in self._served[at].features
        ]
        with torch.inference_mode():
            shape = tuple(self._tail(at)(*features).shape)
        if len(shape) != 2:
            raise ModelLoadError(
                f"{self.name} gives an output of shape {list(shape)}; a classifier gives [samples, classes]"
            )


def _decode(tensor: EncodedTensor, spec: FeatureSpec) -> torch.Tensor:
    features = torch.empty(tensor.shape, dtype=torch.float32)
    values = features.numpy()
    # Refuses NaN and infinity itself.
    decode_tensor(tensor, out=values)
    return features.to(_TORCH_DTYPES[spec.dtype])
