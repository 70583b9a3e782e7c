"""All that one replica is made of, put together: runner, batcher, service, ingress, watchers. No Ray.

Knows how to start (and says what each phase took), to change its knobs while it runs, and to end.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from serve_app.batching import CostModel
from serve_app.compile_command import compile_for
from serve_app.grpc_front import GrpcFront
from serve_app.ingress import Ingress
from serve_app.metrics import Instrument, Metric, MetricsObserver, ModelInfo, card_names, codec_family
from serve_app.monitor import Monitor
from serve_app.observer import BatchFacts, Observer, Observers, RequestFacts
from serve_app.replica_stats import ReplicaStats
from serve_app.request_log import RequestLog
from serve_app.service import Call, InferenceService
from serve_app.settings import AppSettings, LiveSettings
from serve_app.tail_runner import TailRunner
from serve_app.tokens import TokenBook
from split_inference.settings import read_settings
from split_inference.wire import Prediction

LOG = logging.getLogger(__name__)
# Seconds that a thread may keep Python's lock while another one wants it. With the default of 5 ms the model waits that
# long for the busy event loop, each time that a batch needs Python.
SWITCH_INTERVAL_S = 5e-4
VERSION = metadata.version("split-inference")


class Replica:
    """One process that serves one model: its weights once, and every split point."""

    def __init__(
        self,
        settings: AppSettings,
        *,
        make_instrument: Callable[[Metric], Instrument] | None = None,
        on_sticky_error: Callable[[BaseException], None] = lambda error: None,
        say: Callable[[str], None] = LOG.info,
        log: logging.Logger = LOG,
    ) -> None:
        """Load, warm up and be ready; `say` is told in one line what each phase took.

        Raises UsageError in one line for what cannot work here.
        """
        self._live = LiveSettings()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        tokens = TokenBook.load(settings.auth, environ=os.environ)
        runner = TailRunner.load(
            settings,
            # Does nothing where everything is compiled, as it is after `python -m serve_app.serve` or in an image.
            on_loaded=lambda loaded: compile_for(settings, loaded=loaded, say=say),
            on_phase=say,
        )
        cost = CostModel()

        def one_thread() -> None:
            # OpenMP counts threads for each thread apart: without this a tail would run on every core.
            torch.set_num_threads(settings.threads)

        # A GPU is called from one thread, from the first call on (cuda_device.py).
        model_thread = ThreadPoolExecutor(1, thread_name_prefix="model", initializer=one_thread)
        most = self._live.batching.max_batch_samples
        model_thread.submit(lambda: runner.warm(max_samples=most, cost=cost, on_phase=say)).result()
        self.stats = ReplicaStats()
        self._runner = runner
        self._monitor = _MonitorSwitch()
        self._metrics: MetricsObserver | None = None
        watchers: list[Observer] = [self.stats, RequestLog(log), self._monitor]
        if make_instrument is not None:
            split_points, codecs = card_names(runner.card)
            self._metrics = MetricsObserver(
                make_instrument,
                split_points=split_points,
                # Batches, and so these series, are told apart by quantizer.
                codecs={quantizer_of(name) for name in codecs} | {"input"},
                info=ModelInfo(model=runner.name, digest=runner.digest, version=VERSION),
                pending=lambda: self.service.pending,
            )
            watchers.append(self._metrics)
        self.service = InferenceService(
            runner,
            limits=settings.limits,
            batching=self._live.batching,
            cost=cost,
            observers=Observers(watchers, log=log),
            thread_start=one_thread,
            model_thread=model_thread,
            on_sticky_error=on_sticky_error,
            on_predictions=self._monitor.saw_predictions,
            log=log,
        )
        self.ingress = Ingress(self.service, tokens=tokens, log=log)
        self.grpc = GrpcFront(self.service, tokens=tokens, log=log)
        # The modules and graphs that live for ever are a million objects: looking through them for garbage held
        # everything up for 0.3 s (measured). Frozen, they are never looked at again.
        gc.collect()
        gc.freeze()
        say(f"{runner.name}: ready {seconds_since_process_start():.1f} s after the process began")

    def reconfigure(self, live: Mapping[str, Any] | LiveSettings | None) -> None:
        """Obey `user_config` from now on. Raises ConfigError, and then nothing has changed."""
        self._live = read_settings(LiveSettings, live or {}, root="user_config")
        self.service.set_batching(self._live.batching)
        if not self._live.monitor:
            self._monitor.monitor = None
        elif self._monitor.monitor is None:
            self._monitor.monitor = Monitor(
                model=self._runner.name,
                digest=self._runner.digest,
                versions={"split-inference": VERSION, "torch": torch.__version__},
                replica=str(os.getpid()),
            )
        self.ingress.monitor = self._monitor.monitor
        self._runner.watch = self._monitor.monitor.saw_features if self._monitor.monitor else None

    def check_health(self) -> None:
        """Raise RuntimeError where the model hangs; also the time to refresh gauges."""
        if self._metrics is not None:
            self._metrics.sample()
        self.service.check_health()

    async def close(self) -> None:
        """Answer what is queued, then end."""
        await self.service.drain()
        self.service.close()


class _MonitorSwitch:
    """An observer that is there all the time, and passes facts on while somebody may look."""

    def __init__(self) -> None:
        self.monitor: Monitor | None = None

    def batch_done(self, facts: BatchFacts) -> None:
        if self.monitor is not None:
            self.monitor.batch_done(facts)

    def request_done(self, facts: RequestFacts) -> None:
        if self.monitor is not None:
            self.monitor.request_done(facts)

    def saw_predictions(self, call: Call, best: Sequence[Prediction]) -> None:
        if self.monitor is not None:
            self.monitor.saw_predictions(call.split_point or "", best, client=call.client)


def quantizer_of(codec: str) -> str:
    """A codec's name without its compressor, and JPEG without its quality."""
    return codec_family(codec.partition("+")[0])


def seconds_since_process_start() -> float:
    """How long this process exists; 0 where the system does not say."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
