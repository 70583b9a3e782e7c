"""One model's weights, and every tail that can be cut from them: features in, logits out.

Knows the codec, the split points and the executor that runs tails. Knows no Ray and no HTTP: it runs in a REPL.
`prepare` may be called from one thread while `run` runs in another one.

Shape legend: N samples, C channels, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from serve_app.batch_filling import fill, first_features, stays_coded
from serve_app.batching import BatchKey, CostModel
from serve_app.calibrated import calibration_for
from serve_app.card import card_of
from serve_app.cuda_device import GraphDevice
from serve_app.micro_batcher import Prepared, StickyDeviceError
from serve_app.model_runner import Payload
from serve_app.settings import AppSettings, ExecutionSettings, Limits
from serve_app.staging import Staged
from serve_app.tail_cache import TailCache, TailKey
from serve_app.tail_executor import TailExecutor, Warmth
from serve_app.tail_points import TailSource, points_to_compile, points_to_warm
from split_inference.errors import (
    ConfigError,
    FeatureMismatchError,
    ModelLoadError,
    TooLargeError,
    UnknownSplitPointError,
    UnsupportedMediaError,
    WireError,
)
from split_inference.feature_codec import (
    quantizer_name,
    raw_bytes,
)
from split_inference.model_cache import load_cached_model
from split_inference.model_card import ModelCard
from split_inference.model_catalog import LoadedModel
from split_inference.model_split import SplitPoint
from split_inference.wire import FeatureFrame

# Name in batch keys of what comes from an encoded image or sound.
_INPUT_CODEC = "input"


@dataclass(kw_only=True, slots=True, eq=False)
class StagedItems:
    """A batch's buffers, and how many of their rows belong to each payload."""

    buffers: Staged
    rows: list[int]


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
        execution: ExecutionSettings | None = None,
        device: str = "cpu",
        calibrated: str | None = None,
        calibrated_codec: str = "u4",
        unpacks: bool | None = None,
        graph_device: GraphDevice | None = None,
    ) -> None:
        """`split_points` limits what is served; a name that the model lacks raises UnknownSplitPointError.

        `calibrated_codec` is the quantizer that most clients will use. `unpacks` and `graph_device` are TailExecutor's.

        Raises ConfigError for an execution that is impossible here, ModelLoadError for a model that is no classifier.
        """
        torch.set_num_threads(threads)
        self.name = name
        self.digest = model.digest
        self.labels = tuple(card.labels)
        self._model = model
        self._limits = limits or Limits()
        self._preprocessing = card.preprocessing
        served = [model.split_point(each) for each in split_points] if split_points else list(model.split_points)
        self._served = {point.name: point for point in served}
        execution = execution or ExecutionSettings()
        cache = TailCache(execution.cache)
        compiled = points_to_compile(model, execution, served=served, calibrated=calibrated, device=device)
        unserved = [each for each in compiled if each not in self._served]
        if unserved:
            raise ConfigError(f"execution.compile: {unserved[0]} is not among the served split points")
        self._executor = TailExecutor(
            model,
            settings=execution,
            device=device,
            threads=threads,
            compiled=compiled,
            cache=cache,
            unpacks=unpacks,
            graph_device=graph_device,
        )
        self.watch: Callable[[str, NDArray[Any]], None] | None = None
        """Told of a sample's features in every batch, as codes or floats, while somebody looks."""
        # Whatever captures graphs is a GPU here, or stands in for one.
        to_warm_for = "cuda" if graph_device is not None else device
        self._to_warm = points_to_warm(model, execution, served=served, calibrated=calibrated, device=to_warm_for)
        self._calibrated_codec = calibrated_codec
        self._execution, self._cache = execution, cache
        self._facts = card_of(
            card, name=name, digest=self.digest, split_points=tuple(self._served.values()), limits=self._limits
        )

    @property
    def card(self) -> Mapping[str, Any]:
        """What GET answers: what the model is, and how it runs since it was warmed up."""
        return {**self._facts, "execution": self._execution_card(self._execution, self._cache)}

    @classmethod
    def load(
        cls,
        settings: AppSettings,
        *,
        on_loaded: Callable[[LoadedModel], object] = lambda loaded: None,
        on_phase: Callable[[str], None] = lambda line: None,
    ) -> TailRunner:
        """Load the model that the settings name, and what was compiled of it.

        `on_loaded` is called between the two, and may compile. `on_phase` is told in one line what each phase of
        starting took. Raises UsageError or UnknownSplitPointError.
        """
        # Before loading: exporting a model runs it.
        torch.set_num_threads(settings.threads)
        started_s = time.perf_counter()
        loaded = load_cached_model(settings.model, TailCache(settings.execution.cache).models())
        on_phase(f"{loaded.name}: loaded and split in {time.perf_counter() - started_s:.1f} s")
        on_loaded(loaded)
        return cls.of(loaded, settings)

    @classmethod
    def of(cls, loaded: LoadedModel, settings: AppSettings) -> TailRunner:
        """For a model that is loaded, whatever URI the settings name. Raises UsageError or UnknownSplitPointError."""
        calibration = calibration_for(settings, digest=loaded.model.digest)
        return cls(
            loaded.model,
            name=settings.name or loaded.name,
            card=loaded.card,
            split_points=settings.split_points,
            limits=settings.limits,
            threads=settings.threads,
            execution=settings.execution,
            device=settings.device,
            calibrated=calibration.split_point if calibration else None,
            calibrated_codec=calibration.codec.partition("+")[0] if calibration else "u4",
        )

    def warm(self, *, max_samples: int, cost: CostModel, on_phase: Callable[[str], None] = lambda line: None) -> None:
        """Run what has to be fast with the first request, and tell `cost` what it takes.

        Raises ModelLoadError where the model is no classifier: a replica that cannot answer has to fail at its start.
        """
        for name in self._to_warm:
            sizes = sorted({1, max_samples})
            try:
                warmth = self._executor.warm(name, rows=sizes, codec=self._calibrated_codec)
            except torch.AcceleratorError as error:
                raise StickyDeviceError(str(error).splitlines()[0]) from error
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[0]
                raise ModelLoadError(
                    f"{self.name} cannot run behind {name} at {self._executor.precision}: {reason}"
                ) from error
            self._check_that_it_classifies(name)
            self._teach(cost, warmth, max_samples=max_samples)
            on_phase(
                f"tail behind {name}: {warmth.mode} {self._executor.precision}"
                f"{f' (no CUDA graph: {warmth.reason})' if warmth.reason else ''}, ready in {warmth.load_s:.2f} s, "
                f"warm in {warmth.warm_s:.2f} s, {warmth.megabytes:.0f} MB; "
                + ", ".join(f"{rows} rows {1000 * seconds:.1f} ms" for rows, seconds in warmth.batch_s.items())
            )

    @property
    def compiled(self) -> tuple[str, ...]:
        """Split points whose tails are compiled."""
        return self._executor.compiled

    def warm_up(self, split_point: str) -> Warmth:
        """Get one tail ready, without telling anybody."""
        return self._executor.warm(split_point, rows=(1,))

    def tail_key(self, split_point: str) -> TailKey:
        """Under which the cache holds what is known of this tail."""
        return self._executor.key(split_point, 1)

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

    def preprocess(self, data: bytes) -> NDArray[np.float32]:
        """An encoded image or sound as the model's input [1, ...]; safe to call from another thread."""
        preprocessing = self._preprocessing
        if preprocessing is None:
            raise UnsupportedMediaError(f"{self.name} takes frames only")
        if preprocessing.kind == "image":
            inputs = preprocessing.apply(data, max_pixels=self._limits.max_pixels)
        else:
            inputs = preprocessing.apply(data)
        spec = self._point("input").features[0]
        if inputs.shape[1:] != spec.shape:
            raise FeatureMismatchError(
                f"the input has shape {list(inputs.shape[1:])}; the model takes {list(spec.shape)}"
            )
        return inputs

    def key_of(self, payload: Payload) -> BatchKey:
        """Batches have one split point and one quantizer.

        Not the compressor: whether compressing helped differs from frame to frame, and stacking does not care.
        """
        if not isinstance(payload, FeatureFrame):
            point = self._point("input")
            return BatchKey(
                split_point=point.name, shapes=(point.features[0].shape,), codec=_INPUT_CODEC, from_codes=False
            )
        point = self._point(payload.split_point)
        pairs = zip(payload.tensors, point.features, strict=True)
        return BatchKey(
            split_point=point.name,
            shapes=tuple(spec.shape for spec in point.features),
            codec=",".join(quantizer_name(tensor) for tensor in payload.tensors),
            from_codes=all(stays_coded(tensor, spec) for tensor, spec in pairs),
        )

    def prepare(self, key: BatchKey, payloads: Sequence[Payload]) -> Prepared[StagedItems]:
        """Decode the payloads into one batch's buffers; those that cannot be decoded are left out."""
        counts = [payload.sample_count if isinstance(payload, FeatureFrame) else len(payload) for payload in payloads]
        forms = self._executor.forms(key.split_point, key.codec, from_codes=key.from_codes)
        buffers = self._executor.stage(key.split_point, sum(counts), forms)
        rows: list[int] = []
        bad: dict[int, WireError] = {}
        start = 0
        for index, (payload, count) in enumerate(zip(payloads, counts, strict=True)):
            try:
                fill(buffers, slice(start, start + count), payload)
            except WireError as error:
                bad[index] = error
                continue
            rows.append(count)
            start += count
        buffers.rows = start
        if self.watch is not None and start:
            self.watch(key.split_point, first_features(buffers.parts[0], key.shapes[0]))
        return Prepared(staged=StagedItems(buffers=buffers, rows=rows), bad=bad)

    def run(self, key: BatchKey, staged: StagedItems) -> list[NDArray[np.float32] | WireError]:
        """Logits of each payload; an answer with NaN or infinity is that payload's own fault."""
        try:
            logits_NK = self._executor.run(staged.buffers)
        except torch.AcceleratorError as error:
            # After an illegal access or a lost device every later call fails too.
            raise StickyDeviceError(str(error).splitlines()[0]) from error
        results: list[NDArray[np.float32] | WireError] = []
        start = 0
        for count in staged.rows:
            own_NK = logits_NK[start : start + count]
            start += count
            # Minimum and maximum pass NaN on and need no array of booleans beside the values.
            if np.isfinite(own_NK.min()) and np.isfinite(own_NK.max()):
                results.append(own_NK)
            else:
                results.append(
                    FeatureMismatchError(
                        "NaN or infinity in the tail's answer: the features are out of the model's range"
                    )
                )
        return results

    def rows_run(self, key: BatchKey, samples: int) -> int:
        """Rows that run for a batch of so many samples, which ran already."""
        forms = self._executor.forms(key.split_point, key.codec, from_codes=key.from_codes)
        return self._executor.rows_run(key.split_point, forms, samples)

    def discard(self, staged: StagedItems) -> None:
        """The batch's buffers may be used again."""
        self._executor.discard(staged.buffers)

    def answer(self, payload: Payload) -> NDArray[np.float32]:
        """Logits [N, K] of one payload, alone and now: what the service does without waiting. Raises WireError."""
        if isinstance(payload, FeatureFrame):
            self.check(payload)
        key = self.key_of(payload)
        prepared = self.prepare(key, [payload])
        try:
            if prepared.bad:
                raise prepared.bad[0]
            result = self.run(key, prepared.staged)[0]
        finally:
            self.discard(prepared.staged)
        if isinstance(result, WireError):
            raise result
        return result

    def _point(self, name: str) -> SplitPoint:
        point = self._model.split_point(name)
        if point.name not in self._served:
            raise UnknownSplitPointError(f"split point {name!r} is not served here; served: {', '.join(self._served)}")
        return point

    def _check_that_it_classifies(self, at: str) -> None:
        # In the form that is warm already.
        forms = self._executor.forms(at, self._calibrated_codec, from_codes=True)
        staged = self._executor.stage(at, 1, forms)
        shape = self._executor.run(staged).shape
        self._executor.discard(staged)
        if len(shape) != 2:
            raise ModelLoadError(
                f"{self.name} gives an output of shape {list(shape)}; a classifier gives [samples, classes]"
            )

    def _teach(self, cost: CostModel, warmth: Warmth, *, max_samples: int) -> None:
        # By quantizer, as batches are keyed: decoding differs, the tail's time does not.
        point = self._served[warmth.split_point]
        shapes = tuple(spec.shape for spec in point.features)
        for codec in _QUANTIZERS:
            key = BatchKey(
                split_point=point.name, shapes=shapes, codec=",".join([codec] * len(shapes)), from_codes=True
            )
            for rows in {1, 2, 4, 8, 16, 32, max_samples}:
                if rows <= max_samples:
                    seconds = self._executor.expected_s(point.name, rows)
                    if seconds is None:
                        seconds = _between(warmth.batch_s, rows)
                    cost.learn(key, rows, seconds)

    def _execution_card(self, execution: ExecutionSettings, cache: TailCache) -> dict[str, Any]:
        executor = self._executor
        agreement: dict[str, Any] = {}
        reference = (executor.precision, executor.channels_last, executor.compiled) == ("float32", False, ())
        if not reference:
            for name in self._served:
                found = cache.agreement(executor.key(name, 1))
                if found:
                    agreement[name] = found.model_dump()
        return {
            "device": executor.device.type,
            "precision": executor.precision,
            "channels_last": executor.channels_last,
            "threads": executor.threads,
            "compiled": list(executor.compiled),
            "cuda_graphs": list(executor.graphed()),
            "no_cuda_graphs": dict(executor.eager_reasons),
            "buckets": list(execution.buckets) if executor.compiled or executor.graphed() else [],
            "reference": reference,
            "top1_agreement": agreement,
        }


_QUANTIZERS = tuple(f"u{bits}{suffix}" for bits in range(1, 9) for suffix in ("", "c"))


def _between(batch_s: Mapping[int, float], rows: int) -> float:
    """Seconds for a number of rows between two that were measured."""
    sizes = sorted(batch_s)
    return float(np.interp(rows, sizes, [batch_s[size] for size in sizes]))
