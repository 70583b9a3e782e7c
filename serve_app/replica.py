"""All that one replica is made of, put together: a served model, its fronts, watchers. No Ray.

Knows how to start (and says what each phase took), to change its knobs and its weights while it runs, and to end.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from serve_app.grpc_front import GrpcFront
from serve_app.ingress import Ingress
from serve_app.metrics import Instrument, Metric, MetricsObserver, ModelInfo, card_names, codec_family
from serve_app.model_loading import load_runner, loads_undisturbing, prepare_in_child
from serve_app.monitor import Monitor
from serve_app.observer import BatchFacts, Observer, Observers, RequestFacts
from serve_app.replica_stats import ReplicaStats
from serve_app.request_log import RequestLog
from serve_app.served_model import ServedModel, thread_for_models
from serve_app.service import Call
from serve_app.settings import AppSettings, LiveSettings
from serve_app.tail_runner import TailRunner
from serve_app.tokens import TokenBook
from split_inference.settings import read_settings
from split_inference.wire import Prediction

LOG = logging.getLogger(__name__)
# Seconds that a thread may keep Python's lock while another one wants it. With the default of 5 ms the model waits that
# long for the busy event loop, each time that a batch needs Python.
SWITCH_INTERVAL_S = 5e-4
# How long a change of weights waits for the last answers of the old ones; they are given also after it.
RETIRING_S = 5.0
VERSION = metadata.version("split-inference")


class Replica:
    """One process that serves one model: its weights once, and every split point."""

    def __init__(
        self,
        settings: AppSettings,
        *,
        live: Mapping[str, Any] | LiveSettings | None = None,
        make_instrument: Callable[[Metric], Instrument] | None = None,
        on_sticky_error: Callable[[BaseException], None] = lambda error: None,
        say: Callable[[str], None] = LOG.info,
        log: logging.Logger = LOG,
    ) -> None:
        """Load, warm up and be ready; `live` is `user_config`, and `say` is told in one line what each phase took.

        Raises UsageError in one line for what cannot work here.
        """
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._settings = settings
        self._live = read_settings(LiveSettings, live or {}, root="user_config")
        self._on_sticky_error, self._say, self._log = on_sticky_error, say, log
        self._tokens = TokenBook.load(settings.auth, environ=os.environ)
        # A GPU is called from one thread, from the first call on (cuda_device.py), whatever weights it has.
        self._gpu_thread = thread_for_models(settings) if settings.device == "cuda" else None
        self.stats = ReplicaStats()
        self._monitor = _MonitorSwitch()
        watchers: list[Observer] = [self.stats, RequestLog(log), self._monitor]
        self._metrics = MetricsObserver(make_instrument, pending=self._pending) if make_instrument else None
        if self._metrics is not None:
            watchers.append(self._metrics)
        self._observers = Observers(watchers, log=log)
        # One change at a time, and old weights that still answer.
        self._changing = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        settings = settings.with_live(self._live)
        self._served = self._serve(load_runner(settings, say=say), settings, self._live)
        self.grpc = GrpcFront(self._served.service, tokens=self._tokens, log=log)
        self._show()
        self._forget_garbage()
        say(f"{self._served.runner.name}: ready {seconds_since_process_start():.1f} s after the process began")

    @property
    def ingress(self) -> Ingress:
        """What answers HTTP now; a request stays with the one that it began with."""
        return self._served.ingress

    @property
    def digest(self) -> str:
        """Of the weights that answer now."""
        return self._served.runner.digest

    async def reconfigure(self, live: Mapping[str, Any] | LiveSettings | None) -> None:
        """Obey `user_config` from now on. Raises UsageError, and then nothing has changed.

        Other weights are loaded and warmed up beside those that answer; requests that began with the old ones are
        answered by them, and later ones with their digest get 409.
        """
        wanted = read_settings(LiveSettings, live or {}, root="user_config")
        async with self._changing:
            settings = self._settings.with_live(wanted)
            if settings == self._served.settings:
                self._live = wanted
                self._served.service.set_batching(wanted.batching)
                self._show()
                return
            runner = await self._load(settings)
            new = await asyncio.to_thread(self._serve, runner, settings, wanted)
            self._say(f"{runner.name}: weights {runner.digest[:12]} answer, {self.digest[:12]} retire")
            retiring = asyncio.get_running_loop().create_task(self._retire(self._served))
            self._served, self._live = new, wanted
            self.grpc.serve(new.service)
            self._show()
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)
            await asyncio.wait({retiring}, timeout=RETIRING_S)

    def check_health(self) -> None:
        """Raise RuntimeError where the model hangs; also the time to refresh gauges."""
        if self._metrics is not None:
            self._metrics.sample()
        self._served.service.check_health()

    async def close(self) -> None:
        """Answer what is queued, then end."""
        if self._retiring:
            await asyncio.wait(set(self._retiring))
        await self._served.close()

    async def _load(self, settings: AppSettings) -> TailRunner:
        """Other weights, while the model serves."""
        await asyncio.to_thread(prepare_in_child, settings)
        beside = await asyncio.to_thread(loads_undisturbing, settings)
        # What may disturb the model waits for its turn, and holds the batches up for as long as it takes.
        thread = None if beside else self._served.model_thread
        return await asyncio.get_running_loop().run_in_executor(
            thread, functools.partial(load_runner, settings, say=self._say)
        )

    async def _retire(self, old: ServedModel) -> None:
        await old.retire()
        del old
        # On a GPU, where everything else calls it: what the old weights held is given back there.
        await asyncio.get_running_loop().run_in_executor(self._gpu_thread, self._forget_garbage)

    def _serve(self, runner: TailRunner, settings: AppSettings, live: LiveSettings) -> ServedModel:
        return ServedModel(
            runner,
            settings,
            batching=live.batching,
            tokens=self._tokens,
            observers=self._observers,
            model_thread=self._gpu_thread,
            on_sticky_error=self._on_sticky_error,
            on_predictions=self._monitor.saw_predictions,
            say=self._say,
            log=self._log,
        )

    def _show(self) -> None:
        """Tell metrics and monitor what is served."""
        runner = self._served.runner
        if self._metrics is not None:
            split_points, codecs = card_names(runner.card)
            self._metrics.serve(
                split_points=split_points,
                # Batches, and so these series, are told apart by quantizer.
                codecs={quantizer_of(name) for name in codecs} | {"input"},
                info=ModelInfo(model=runner.name, digest=runner.digest, version=VERSION),
            )
        monitor = self._monitor.monitor
        if not self._live.monitor:
            monitor = None
        elif monitor is None or monitor.digest != runner.digest:
            monitor = Monitor(
                model=runner.name,
                digest=runner.digest,
                versions={"split-inference": VERSION, "torch": torch.__version__},
                replica=str(os.getpid()),
            )
        self._monitor.monitor = self.ingress.monitor = monitor
        runner.watch = monitor.saw_features if monitor else None

    def _pending(self) -> int:
        return self._served.service.pending

    def _forget_garbage(self) -> None:
        # The modules and graphs that live for ever are a million objects: looking through them for garbage held
        # everything up for 0.3 s (measured). Frozen, they are never looked at again, until other weights come.
        gc.unfreeze()
        gc.collect()
        gc.freeze()


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
