"""Runs tails of one model in one precision, compiled where they were asked for and eagerly elsewhere.

Knows torch, buffers and modes. Knows no codec, no wire, no batching and no Ray: it is given rows of codes and scales,
or of floats. `stage` may be called from one thread while `run` runs in another one.

Shape legend: N rows, C channels, K classes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from serve_app.batch_plan import BatchPlan, Chunk
from serve_app.compiled_tail import CompiledTail
from serve_app.machine import instruction_set, refuse_what_is_impossible
from serve_app.settings import ExecutionSettings
from serve_app.tail_cache import TailCache, TailKey
from serve_app.tail_module import ServedTail, WeightCaster
from split_inference.errors import ConfigError
from split_inference.model_split import FeatureSpec, SplitPoint

# Buffers of this many batches are kept between batches; the others are given back to the system.
_KEPT_BUFFERS = 6
_WARM_RUNS = 3
MAX_COMPILED = 4


class TailSource(Protocol):
    """What is needed of a model: `split_inference.model_split.SplittableModel` is one."""

    @property
    def digest(self) -> str: ...

    @property
    def input(self) -> FeatureSpec: ...

    @property
    def split_points(self) -> tuple[SplitPoint, ...]: ...

    def split_point(self, name: str) -> SplitPoint: ...

    def tail(self, at: str) -> torch.nn.Module: ...


@dataclass(kw_only=True, slots=True, eq=False)
class Staged:
    """One batch's buffers: fill `codes`, `steps` and `lows`, or `floats`, one array per tensor of the split point."""

    split_point: str
    from_codes: bool
    rows: int
    tensors: tuple[Tensor, ...]
    codes: list[NDArray[np.uint8]] = field(default_factory=list)
    steps_NC: list[NDArray[np.float32]] = field(default_factory=list)
    lows_NC: list[NDArray[np.float32]] = field(default_factory=list)
    floats: list[NDArray[np.float32]] = field(default_factory=list)

    @property
    def capacity(self) -> int:
        """Rows that the buffers have."""
        return len(self.tensors[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class Warmth:
    """What getting one split point ready took."""

    split_point: str
    mode: str
    load_s: float
    warm_s: float
    megabytes: float
    """By which the process grew."""
    batch_s: Mapping[int, float]
    """Seconds of a batch, by rows: the fastest of a few."""


class TailExecutor:
    """All tails of one model, cut, cast or loaded when first needed or warmed."""

    def __init__(
        self,
        model: TailSource,
        *,
        settings: ExecutionSettings,
        device: str = "cpu",
        threads: int = 1,
        compiled: Sequence[str] = (),
        cache: TailCache | None = None,
    ) -> None:
        """`compiled` names the split points to load from the cache. Raises ConfigError for a mode that is impossible
        here, or a tail that the cache lacks."""
        refuse_what_is_impossible(device=device, precision=settings.precision)
        self.precision = settings.precision
        self.device = torch.device(device)
        self.threads = threads
        layout = settings.channels_last
        self.channels_last = self.precision != "float32" if layout is None else layout
        self.compiled = tuple(compiled)
        self._buckets = settings.buckets
        self._model = model
        self._cache = cache or TailCache(settings.cache)
        self._caster = WeightCaster(precision=self.precision, channels_last=self.channels_last, device=self.device)
        self._cut: dict[str, torch.nn.Module] = {}
        self._eager: dict[tuple[str, bool], ServedTail] = {}
        self._libraries: dict[str, dict[int, CompiledTail]] = {}
        self._plans: dict[str, BatchPlan] = {}
        self._free: list[Staged] = []
        self._lock = threading.Lock()
        for name in self.compiled:
            self._require_compiled(name)

    def key(self, split_point: str, bucket: int) -> TailKey:
        """Under which the cache holds the compiled tail."""
        return tail_key(
            self._model.digest,
            split_point,
            bucket,
            precision=self.precision,
            channels_last=self.channels_last,
            threads=self.threads,
        )

    def warm(self, split_point: str, *, rows: Sequence[int]) -> Warmth:
        """Load and run the tail, compiled with all of its buckets, or eagerly with these numbers of rows."""
        before = resident_bytes()
        started_s = time.perf_counter()
        compiled = split_point in self.compiled
        if compiled:
            self._load(split_point)
            rows = self._buckets
        else:
            self._eager_tail(split_point, from_codes=True)
        load_s = time.perf_counter() - started_s
        batch_s = {}
        for count in rows:
            staged = self.stage(split_point, count, from_codes=True)
            batch_s[count] = min(self._timed(staged, compiled=compiled) for _ in range(_WARM_RUNS))
            self.discard(staged)
        if compiled:
            self._plans[split_point] = BatchPlan(batch_s)
        return Warmth(
            split_point=split_point,
            mode="compiled" if compiled else "eager",
            load_s=load_s,
            warm_s=time.perf_counter() - started_s - load_s,
            megabytes=(resident_bytes() - before) / 1e6,
            batch_s=batch_s,
        )

    def expected_s(self, split_point: str, rows: int) -> float | None:
        """Seconds of a batch by the warm-up's times; None where the split point runs eagerly."""
        plan = self._plans.get(split_point)
        return plan.expected_s(rows) if plan else None

    def stage(self, split_point: str, rows: int, *, from_codes: bool) -> Staged:
        """Buffers for `rows` rows; give them back with `discard`."""
        plan = self._plans.get(split_point) if from_codes else None
        capacity = max(plan.capacity(rows), rows) if plan else rows
        with self._lock:
            for index, staged in enumerate(self._free):
                fits = capacity <= staged.capacity <= 4 * capacity
                if fits and (staged.split_point, staged.from_codes) == (split_point, from_codes):
                    staged = self._free.pop(index)
                    staged.rows = rows
                    return staged
        return self._new_buffers(split_point, rows, capacity, from_codes=from_codes)

    def discard(self, staged: Staged) -> None:
        """The buffers may be used for another batch."""
        with self._lock:
            self._free.append(staged)
            del self._free[:-_KEPT_BUFFERS]

    def run(self, staged: Staged) -> NDArray[np.float32]:
        """Logits [N, K] of the staged rows."""
        plan = self._plans.get(staged.split_point) if staged.from_codes else None
        with torch.inference_mode():
            if plan is None:
                logits_NK = self._run_eager(staged)
            else:
                logits_NK = self._run_compiled(staged, plan.chunks(staged.rows))
        return logits_NK.contiguous().numpy()

    def _run_eager(self, staged: Staged) -> Tensor:
        tail = self._eager_tail(staged.split_point, from_codes=staged.from_codes)
        inputs = [tensor[: staged.rows].to(self.device, non_blocking=True) for tensor in staged.tensors]
        logits_NK: Tensor = tail(*inputs).cpu()
        return logits_NK

    def _run_compiled(self, staged: Staged, chunks: Sequence[Chunk]) -> Tensor:
        libraries = self._libraries[staged.split_point]
        parts = []
        for chunk in chunks:
            inputs = [tensor[chunk.start : chunk.start + chunk.bucket] for tensor in staged.tensors]
            parts.append(libraries[chunk.bucket](*inputs)[: chunk.rows])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _timed(self, staged: Staged, *, compiled: bool) -> float:
        started_s = time.perf_counter()
        with torch.inference_mode():
            if compiled:
                # Not by a plan: these times are what plans are made of.
                self._run_compiled(staged, [Chunk(start=0, rows=staged.rows, bucket=staged.rows)])
            else:
                self._run_eager(staged)
        return time.perf_counter() - started_s

    def _eager_tail(self, split_point: str, *, from_codes: bool) -> ServedTail:
        tail = self._eager.get((split_point, from_codes))
        if tail is None:
            cut = self._cut.get(split_point)
            if cut is None:
                cut = self._model.tail(split_point)
                # At float32, on the processor, the tail keeps the model's own weights, and so its very bits.
                if (self.precision, self.channels_last, self.device.type) != ("float32", False, "cpu"):
                    cut = self._caster.apply(cut)
                self._cut[split_point] = cut
            tail = self._eager[split_point, from_codes] = ServedTail(
                cut,
                self._model.split_point(split_point).features,
                precision=self.precision,
                channels_last=self.channels_last,
                from_codes=from_codes,
            )
        return tail

    def _require_compiled(self, split_point: str) -> None:
        if self.device.type != "cpu":
            raise ConfigError("execution.compile: compiled tails run on the processor; write compile: none for cuda")
        for bucket in self._buckets:
            if self._cache.library(self.key(split_point, bucket)) is None:
                raise ConfigError(
                    f"execution.compile: the tail behind {split_point} is not compiled for {bucket} rows on this "
                    f"machine ({instruction_set()}); run `split-inference compile config.yaml`, or write compile: none"
                )

    def _load(self, split_point: str) -> None:
        if split_point in self._libraries:
            return
        libraries = {}
        for bucket in self._buckets:
            file = self._cache.library(self.key(split_point, bucket))
            assert file is not None
            libraries[bucket] = CompiledTail(file)
        self._libraries[split_point] = libraries

    def _new_buffers(self, split_point: str, rows: int, capacity: int, *, from_codes: bool) -> Staged:
        pinned = self.device.type == "cuda"
        tensors: list[Tensor] = []
        staged = Staged(split_point=split_point, from_codes=from_codes, rows=rows, tensors=())
        for spec in self._model.split_point(split_point).features:
            if not from_codes:
                floats = torch.zeros((capacity, *spec.shape), pin_memory=pinned)
                tensors.append(floats)
                staged.floats.append(floats.numpy())
                continue
            channels = channels_of(spec)
            # Zeros, because empty rows run too, and must be numbers.
            codes = torch.zeros((capacity, *spec.shape), dtype=torch.uint8, pin_memory=pinned)
            steps_NC = torch.zeros((capacity, channels), pin_memory=pinned)
            lows_NC = torch.zeros((capacity, channels), pin_memory=pinned)
            tensors += [codes, steps_NC, lows_NC]
            staged.codes.append(codes.numpy())
            staged.steps_NC.append(steps_NC.numpy())
            staged.lows_NC.append(lows_NC.numpy())
        staged.tensors = tuple(tensors)
        return staged


def tail_key(
    digest: str, split_point: str, bucket: int, *, precision: str, channels_last: bool, threads: int
) -> TailKey:
    """The key of a tail compiled on this machine."""
    return TailKey(
        digest=digest,
        split_point=split_point,
        precision=precision,
        channels_last=channels_last,
        bucket=bucket,
        threads=threads,
        torch=torch.__version__,
        instruction_set=instruction_set(),
    )


def channels_of(spec: FeatureSpec) -> int:
    """Length of the channel axis; 1 where a sample is one number."""
    return spec.shape[spec.channel_axis - 1] if spec.shape else 1


def points_to_compile(
    model: TailSource, settings: ExecutionSettings, *, served: Sequence[SplitPoint], calibrated: str | None
) -> tuple[str, ...]:
    """The names that `execution.compile` stands for; "auto" is documented there. Raises UnknownSplitPointError."""
    if settings.compile == "none":
        return ()
    if settings.compile != "auto":
        return tuple(dict.fromkeys(model.split_point(name).name for name in settings.compile))
    if settings.precision == "float32":
        return ()
    chosen = stage_ends(served)
    names = {point.name for point in served}
    if calibrated is not None and model.split_point(calibrated).name in names:
        chosen = [model.split_point(calibrated).name, *chosen]
    return tuple(dict.fromkeys(chosen))[:MAX_COMPILED]


def stage_ends(points: Sequence[SplitPoint]) -> list[str]:
    """The last split point of each feature shape, those with most of the work on the device first.

    Only where at least a hundredth of the work is left for the tail: there is nothing to win by compiling less.
    """
    last: dict[Any, SplitPoint] = {}
    for point in points:
        last[tuple(spec.shape for spec in point.features)] = point
    ends = [point for point in last.values() if point.head_macs > 0 and point.head_macs_share <= 0.99]
    return [point.name for point in reversed(ends)]


def resident_bytes() -> int:
    """Memory of this process, or 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    except (OSError, ValueError, IndexError):
        return 0
