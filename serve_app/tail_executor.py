"""Runs tails of one model in one precision: compiled or as CUDA graphs where they were asked for, eagerly elsewhere.

Knows torch, buffers and modes. Knows no codec, no wire, no batching and no Ray: it is given rows of planes, codes and
scales, or of floats. `stage` may be called from any thread; `warm`, `run` and `discard` from one, where the device is
a GPU (cuda_device.py says why, and `OneThread` refuses another).

Shape legend: N rows, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from serve_app.batch_plan import BatchPlan, Chunk
from serve_app.compiled_tail import CompiledTail
from serve_app.cuda_device import CudaGraphs, GraphDevice, OneThread, use_whole_float32
from serve_app.feature_form import CODES, FeatureForm, form_of
from serve_app.machine import instruction_set, refuse_what_is_impossible
from serve_app.settings import ExecutionSettings
from serve_app.staging import Staged, Staging
from serve_app.tail_cache import TailCache, TailKey
from serve_app.tail_graphs import GraphKey, TailGraphs
from serve_app.tail_module import ServedTail, WeightCaster
from serve_app.tail_points import TailSource
from split_inference.errors import ConfigError

_WARM_RUNS = 3
# Of served tails, each for other forms of features. They are light, but forms come from outside: 17 for each tensor.
_KEPT_TAILS = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Warmth:
    """What getting one split point ready took."""

    split_point: str
    mode: str
    """compiled, graphs or eager."""
    reason: str
    """Why it runs eagerly where graphs were asked for; else empty."""
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
        unpacks: bool | None = None,
        graph_device: GraphDevice | None = None,
    ) -> None:
        """`compiled` names the split points to load from the cache. `unpacks` says whether tails take bit planes: by
        default on a GPU, because a processor unpacks them faster in NumPy (decision record 0011). What captures
        graphs may be given, to stand in for CUDA.

        Raises ConfigError for a mode that is impossible here, or a tail that the cache lacks."""
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
        self._served: dict[tuple[str, tuple[FeatureForm, ...]], ServedTail] = {}
        self._libraries: dict[str, dict[int, CompiledTail]] = {}
        self._plans: dict[str, BatchPlan] = {}
        on_gpu = self.device.type == "cuda"
        self._unpacks = on_gpu if unpacks is None else unpacks
        self._staging = Staging(pin=on_gpu)
        self._thread = OneThread() if on_gpu or graph_device is not None else None
        self._graph_mode = settings.cuda_graphs
        self._graphs: TailGraphs | None = None
        if on_gpu and graph_device is None:
            graph_device = CudaGraphs()
        if graph_device is not None and settings.cuda_graphs != "off":
            self._graphs = TailGraphs(graph_device, device=self.device)
        elif settings.cuda_graphs == "required":
            raise ConfigError("execution.cuda_graphs: there are none on the processor; write auto, or device: cuda")
        if on_gpu and self.precision == "float32":
            use_whole_float32()
        for name in self.compiled:
            self._require_compiled(name)

    @property
    def eager_reasons(self) -> Mapping[str, str]:
        """Split points that cannot be captured as graphs, and why."""
        return self._graphs.refused if self._graphs is not None else {}

    def graphed(self) -> tuple[str, ...]:
        """Warm split points that run as graphs."""
        if self._graphs is None:
            return ()
        return tuple(name for name in self._plans if name not in self._libraries)

    def forms(self, split_point: str, codec: str, *, from_codes: bool) -> tuple[FeatureForm, ...]:
        """In what form features arrive at this tail; `codec` has the quantizer of each tensor, between commas."""
        planes = self._unpacks and split_point not in self.compiled
        count = len(self._model.split_point(split_point).features)
        names = codec.split(",")
        names = names if len(names) == count else [codec] * count
        return tuple(form_of(name, from_codes=from_codes, planes=planes) for name in names)

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

    def warm(self, split_point: str, *, rows: Sequence[int], codec: str = "u4") -> Warmth:
        """Load and run the tail: compiled or as graphs with all of its buckets, or eagerly with these numbers of rows.

        Graphs are captured for features of this codec; others follow when they come. Raises ConfigError where graphs
        are required and the tail cannot be captured.
        """
        self._check_thread()
        before = resident_bytes()
        started_s = time.perf_counter()
        forms = self.forms(split_point, codec, from_codes=True)
        if split_point in self.compiled:
            self._load(split_point)
            mode = "compiled"
        else:
            self._served_tail(split_point, forms)
            mode = "eager" if self._graphs is None else "graphs"
        load_s = time.perf_counter() - started_s
        batch_s: dict[int, float] = {}
        if mode != "eager":
            batch_s = self._measured(split_point, forms, self._buckets)
        reason = self.eager_reasons.get(split_point, "")
        if reason:
            if self._graph_mode == "required":
                raise ConfigError(
                    f"execution.cuda_graphs: required, but the tail behind {split_point} cannot be captured: {reason}"
                )
            mode = "eager"
        if mode == "eager":
            batch_s = self._measured(split_point, forms, rows)
        else:
            self._plans[split_point] = BatchPlan(batch_s)
        return Warmth(
            split_point=split_point,
            mode=mode,
            reason=reason,
            load_s=load_s,
            warm_s=time.perf_counter() - started_s - load_s,
            megabytes=(resident_bytes() - before) / 1e6,
            batch_s=batch_s,
        )

    def expected_s(self, split_point: str, rows: int) -> float | None:
        """Seconds of a batch by the warm-up's times; None where the split point runs eagerly."""
        plan = self._plans.get(split_point)
        return plan.expected_s(rows) if plan else None

    def rows_run(self, split_point: str, forms: tuple[FeatureForm, ...], rows: int) -> int:
        """Rows that run for so many: whole buckets, where there are any."""
        plan = self._plan(split_point, forms)
        return sum(chunk.bucket for chunk in plan.chunks(rows)) if plan else rows

    def stage(self, split_point: str, rows: int, forms: Sequence[FeatureForm] | None = None) -> Staged:
        """Buffers for `rows` rows, of codes unless `forms` says otherwise; give them back with `discard`."""
        specs = self._model.split_point(split_point).features
        forms = (CODES,) * len(specs) if forms is None else tuple(forms)
        plan = self._plan(split_point, forms)
        # What is captured has its rows in buffers of its own.
        padded = plan is not None and split_point in self._libraries
        capacity = max(plan.capacity(rows), rows) if plan is not None and padded else rows
        return self._staging.take(split_point, specs, forms, rows=rows, capacity=capacity)

    def discard(self, staged: Staged) -> None:
        """The buffers may be used for another batch."""
        self._check_thread()
        self._staging.give_back(staged)

    def run(self, staged: Staged) -> NDArray[np.float32]:
        """Logits [N, K] of the staged rows."""
        self._check_thread()
        plan = self._plan(staged.split_point, staged.forms)
        with torch.inference_mode():
            logits_NK = self._run_chunks(staged, plan.chunks(staged.rows)) if plan else self._run_eager(staged)
        logits_NK = logits_NK.contiguous()
        if any(_share_memory(logits_NK, tensor) for tensor in staged.tensors):
            # A tail that computes nothing gives its input back, and the next batch will be written there.
            logits_NK = logits_NK.clone()
        return logits_NK.numpy()

    def _plan(self, split_point: str, forms: tuple[FeatureForm, ...]) -> BatchPlan | None:
        # Libraries take codes only; graphs are captured for any form.
        if split_point in self._libraries and any(form != CODES for form in forms):
            return None
        return self._plans.get(split_point)

    def _check_thread(self) -> None:
        if self._thread is not None:
            self._thread.check()

    def _run_eager(self, staged: Staged, start: int = 0, rows: int | None = None) -> Tensor:
        end = staged.rows if rows is None else start + rows
        tail = self._served_tail(staged.split_point, staged.forms)
        inputs = [tensor[start:end].to(self.device, non_blocking=True) for tensor in staged.tensors]
        logits_NK: Tensor = tail(*inputs)
        return logits_NK.cpu()

    def _run_chunks(self, staged: Staged, chunks: Sequence[Chunk]) -> Tensor:
        """As libraries, or as graphs; a chunk for which there is no graph runs eagerly."""
        libraries = self._libraries.get(staged.split_point)
        parts = []
        for chunk in chunks:
            inputs = [tensor[chunk.start : chunk.start + chunk.bucket] for tensor in staged.tensors]
            if libraries is not None:
                parts.append(libraries[chunk.bucket](*inputs)[: chunk.rows])
                continue
            assert self._graphs is not None
            key = GraphKey(split_point=staged.split_point, bucket=chunk.bucket, forms=staged.forms)
            tail = self._served_tail(staged.split_point, staged.forms)
            part = self._graphs.run(key, tail, inputs, rows=chunk.rows)
            parts.append(self._run_eager(staged, chunk.start, chunk.rows) if part is None else part)
        # One way back for all of them, and one wait.
        if len({part.device for part in parts}) > 1:
            parts = [part.cpu() for part in parts]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).cpu()

    def _measured(self, split_point: str, forms: tuple[FeatureForm, ...], rows: Sequence[int]) -> dict[int, float]:
        batch_s = {}
        for count in rows:
            staged = self.stage(split_point, count, forms)
            batch_s[count] = min(self._timed(staged) for _ in range(_WARM_RUNS))
            self.discard(staged)
        return batch_s

    def _timed(self, staged: Staged) -> float:
        started_s = time.perf_counter()
        with torch.inference_mode():
            if staged.split_point in self._libraries or self._graphs is not None:
                # Not by a plan: these times are what plans are made of.
                self._run_chunks(staged, [Chunk(start=0, rows=staged.rows, bucket=staged.rows)])
            else:
                self._run_eager(staged)
        return time.perf_counter() - started_s

    def _served_tail(self, split_point: str, forms: tuple[FeatureForm, ...]) -> ServedTail:
        tail = self._served.get((split_point, forms))
        if tail is None:
            cut = self._cut.get(split_point)
            if cut is None:
                cut = self._model.tail(split_point)
                # At float32, on the processor, the tail keeps the model's own weights, and so its very bits.
                if (self.precision, self.channels_last, self.device.type) != ("float32", False, "cpu"):
                    cut = self._caster.apply(cut)
                self._cut[split_point] = cut
            if len(self._served) >= _KEPT_TAILS:
                self._served.clear()
            tail = self._served[split_point, forms] = ServedTail(
                cut,
                self._model.split_point(split_point).features,
                precision=self.precision,
                channels_last=self.channels_last,
                forms=forms,
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


def _share_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def resident_bytes() -> int:
    """Memory of this process, or 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    except (OSError, ValueError, IndexError):
        return 0
