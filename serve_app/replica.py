"""All that one replica is made of, put together: a served model, its fronts, watchers. No Ray.

Knows how to start (and says what each phase took), to change its knobs and its weights while it runs, and to end.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from serve_app.admission import Admission
from serve_app.grpc_front import GrpcFront
from serve_app.ingress import Ingress
from serve_app.metrics import Instrument, Metric, MetricsObserver, ModelInfo, card_names, codec_family
from serve_app.micro_batcher import StickyDeviceError
from serve_app.model_loading import load_runner, load_runner_beside
from serve_app.monitor import Monitor
from serve_app.observer import BatchFacts, Observer, Observers, RequestFacts
from serve_app.replica_stats import ReplicaStats
from serve_app.request_log import RequestLog
from serve_app.served_model import ServedModel, thread_for_models
from serve_app.service import Call
from serve_app.settings import AppSettings, LiveSettings
from serve_app.tail_runner import TailRunner
from serve_app.tokens import TokenBook
from split_inference.errors import ConfigError, SplitInferenceError
from split_inference.settings import read_settings
from split_inference.wire import Prediction

LOG = logging.getLogger(__name__)
# Seconds that a thread may keep Python's lock while another one wants it. With the default of 5 ms the model waits that
# long for the busy event loop, each time that a batch needs Python.
SWITCH_INTERVAL_S = 5e-4
# Weights that could not be loaded are tried again after so long: a disk may come late, and memory be free again.
RETRY_S = 60.0
# How long an end waits for weights that are being loaded; with what is queued it has to fit into Serve's patience.
CLOSING_S = 20.0
VERSION = metadata.version("split-inference")


class Replica:
    """One process that serves one model: one set of weights, and every split point."""

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
        # Of all weights: who asks does not become two clients while they change.
        self._admission = Admission(settings.limits, now_s=time.perf_counter)
        self._metrics: MetricsObserver | None = None
        if make_instrument is not None:
            self._metrics = MetricsObserver(
                make_instrument,
                pending=lambda: self._admission.pending,
                config_pending=lambda: self._is_refused or self.is_changing,
            )
            watchers.append(self._metrics)
        self._observers = Observers(watchers, log=log)
        self._change: asyncio.Task[None] | None = None
        self._given_up = threading.Event()
        self._refused: AppSettings | None = None
        self._refused_s = 0.0
        self._is_refused = False
        self._retiring: ServedModel | None = None
        self._retiring_s = 0.0
        self._is_closing = False
        wanted = self._wanted
        self._served = self._serve(load_runner(wanted, say=say), wanted)
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

    @property
    def is_changing(self) -> bool:
        """Whether other weights are wanted than those that answer: they are being loaded, or could not be."""
        return self._wanted != self._served.settings

    def reconfigure(self, live: Mapping[str, Any] | LiveSettings | None) -> None:
        """Obey `user_config` from now on; in the event loop.

        Returns at once, and raises nothing: Serve takes a replica out of every list until it returns, and ends one
        that raises. What is refused is an error in the log and in the metrics, and nothing has changed. Other weights
        are loaded and warmed up beside those that answer; when they do instead, requests that began with the old ones
        are still answered by them, and later ones with their digest get 409.
        """
        before = self._wanted
        try:
            self._live = read_settings(LiveSettings, live or {}, root="user_config")
            self._is_refused = False
        except ConfigError as error:
            self._is_refused = True
            self._log.error("user_config is not obeyed, the one before is: %s", error)
        self._served.service.set_batching(self._live.batching)
        self._refused = None
        if before != self._wanted:
            # What is being prepared is wanted no longer.
            self._given_up.set()
            self._given_up = threading.Event()
        self._show()
        self._start_change()

    async def settled(self) -> None:
        """Return when no weights are being loaded or retired."""
        if self._change is not None:
            await asyncio.wait({self._change})

    def check_health(self) -> None:
        """Raise RuntimeError where the model hangs; also the time to refresh gauges, and to try refused weights again.

        In the event loop.
        """
        if self._metrics is not None:
            self._metrics.sample()
        now_s = time.perf_counter()
        if self._refused is not None and now_s - self._refused_s > RETRY_S:
            self._refused = None
            self._start_change()
        self._served.service.check_health()
        if self._retiring is not None and now_s - self._retiring_s > self._settings.limits.max_request_age_s:
            raise RuntimeError(f"replaced weights have not ended after {now_s - self._retiring_s:.0f} s")

    async def close(self) -> None:
        """Answer what is queued, then end."""
        self._is_closing = True
        self._given_up.set()
        if self._change is not None:
            # What is loaded in a thread cannot be stopped; it is ended when it is there.
            await asyncio.wait({self._change}, timeout=CLOSING_S)
            self._change.cancel()
            await asyncio.wait({self._change})
        if self._retiring is not None:
            await self._retiring.retire()
        await self._served.close()
        if self._gpu_thread is not None:
            self._gpu_thread.shutdown(wait=False)

    @property
    def _wanted(self) -> AppSettings:
        return self._settings.with_live(self._live)

    def _start_change(self) -> None:
        if self.is_changing and not self._is_closing and (self._change is None or self._change.done()):
            self._change = asyncio.get_running_loop().create_task(self._change_weights())

    async def _change_weights(self) -> None:
        """Until those answer that are wanted, or cannot be had."""
        try:
            while self.is_changing and self._wanted != self._refused and not self._is_closing:
                if new := await self._loaded(self._wanted):
                    await self._exchange(new)
                else:
                    await self._give_back()
        except Exception:
            self._log.exception("a change of weights ended early")

    async def _loaded(self, wanted: AppSettings) -> ServedModel | None:
        """What is wanted, ready to answer; None where it cannot be had, or is wanted no longer."""
        try:
            runner = await load_runner_beside(wanted, model_thread=self._served.model_thread, given_up=self._given_up)
            new = await asyncio.to_thread(self._serve, runner, wanted)
        except StickyDeviceError as error:
            self._on_sticky_error(error)
            raise
        except (Exception, SystemExit) as error:
            # Whatever it is, also of a factory's: the weights that answer go on doing so.
            if wanted == self._wanted and not self._is_closing:
                self._refused, self._refused_s = wanted, time.perf_counter()
                self._log.error(
                    "user_config.model: %s is not served, %s goes on: %s",
                    *(wanted.model, self._served.settings.model, " ".join(str(error).split())),
                    exc_info=None if isinstance(error, SplitInferenceError) else error,
                )
            return None
        if wanted != self._wanted or self._is_closing:
            await new.close()
            return None
        return new

    async def _exchange(self, new: ServedModel) -> None:
        self._retiring, self._served = self._served, new
        self._retiring_s = time.perf_counter()
        new.service.set_batching(self._live.batching)
        self.grpc.serve(new.service)
        self._show()
        self._say(f"{new.runner.name}: {self.digest[:12]} answers, {self._retiring.runner.digest[:12]} retires")
        await self._retiring.retire()
        self._retiring = None
        self.stats.other_weights()
        self._show()
        await self._give_back()

    async def _give_back(self) -> None:
        """The memory of weights that are gone; on a GPU in its thread, like all that calls it."""
        await asyncio.get_running_loop().run_in_executor(self._gpu_thread, self._forget_garbage)
        if self._gpu_thread is not None:
            await asyncio.get_running_loop().run_in_executor(self._gpu_thread, torch.cuda.empty_cache)

    def _serve(self, runner: TailRunner, settings: AppSettings) -> ServedModel:
        return ServedModel(
            runner,
            settings,
            batching=self._live.batching,
            admission=self._admission,
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
            # Those of the last answers of retiring weights, too.
            named = [card_names(each.runner.card) for each in (self._served, self._retiring) if each is not None]
            self._metrics.serve(
                split_points={name for split_points, _ in named for name in split_points},
                # Batches, and so these series, are told apart by quantizer.
                codecs={quantizer_of(name) for _, codecs in named for name in codecs} | {"input"},
                info=ModelInfo(model=runner.name, digest=runner.digest, version=VERSION),
            )
            self._metrics.sample()
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
