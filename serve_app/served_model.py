"""One set of weights in service: its runner, warmed up, its batcher and its ingress.

Knows the parts that serve. Knows no Ray.

A replica has one of them, and for a moment two: the next weights are loaded while the old ones answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

from serve_app.admission import Admission
from serve_app.batching import CostModel
from serve_app.ingress import Ingress
from serve_app.observer import Observers
from serve_app.service import Call, InferenceService
from serve_app.settings import AppSettings, BatchingSettings
from serve_app.tail_runner import TailRunner
from serve_app.tokens import TokenBook
from split_inference.wire import Prediction

LOG = logging.getLogger(__name__)
# How often it is looked whether the last request of retiring weights was answered.
_LOOK_S = 0.02


class ServedModel:
    """Warms up and answers; `retire` ends it when the last of its requests is answered."""

    def __init__(
        self,
        runner: TailRunner,
        settings: AppSettings,
        *,
        batching: BatchingSettings,
        admission: Admission,
        tokens: TokenBook,
        observers: Observers,
        model_thread: ThreadPoolExecutor | None = None,
        on_sticky_error: Callable[[BaseException], None] = lambda error: None,
        on_predictions: Callable[[Call, Sequence[Prediction]], None] = lambda call, best: None,
        say: Callable[[str], None] = LOG.info,
        log: logging.Logger = LOG,
    ) -> None:
        """Warm the runner up; in any thread, while the event loop serves others.

        `model_thread` is the one that calls the GPU, which outlives any weights; else they have one of their own.
        Raises UsageError in one line for what cannot work here.
        """
        self.runner, self.settings = runner, settings
        self._owns_thread = model_thread is None
        self.model_thread = model_thread or thread_for_models(settings)
        cost = CostModel()
        try:
            warm = self.model_thread.submit(
                runner.warm, max_samples=batching.max_batch_samples, cost=cost, on_phase=say
            )
            warm.result()
        except BaseException:
            self._end_thread()
            raise
        self.service = InferenceService(
            runner,
            limits=settings.limits,
            batching=batching,
            cost=cost,
            admission=admission,
            observers=observers,
            thread_start=_thread_start(settings),
            model_thread=self.model_thread,
            on_sticky_error=on_sticky_error,
            on_predictions=on_predictions,
            log=log,
        )
        self.ingress = Ingress(self.service, tokens=tokens, log=log)

    async def retire(self) -> None:
        """Return when every request that came in was answered, and let the threads end. No new ones may come."""
        # Also those whose body is still arriving: they have their place, and will want the batcher.
        while self.service.unanswered:
            await asyncio.sleep(_LOOK_S)
        await self.close()

    async def close(self) -> None:
        """Answer what is queued, then let the threads end."""
        await self.service.drain()
        self.service.close()
        self._end_thread()

    def _end_thread(self) -> None:
        if self._owns_thread:
            self.model_thread.shutdown(wait=False, cancel_futures=True)


def thread_for_models(settings: AppSettings) -> ThreadPoolExecutor:
    """The one thread in which batches run."""
    return ThreadPoolExecutor(1, thread_name_prefix="model", initializer=_thread_start(settings))


def _thread_start(settings: AppSettings) -> Callable[[], None]:
    # OpenMP counts threads for each thread apart: without this a tail would run on every core.
    return partial(torch.set_num_threads, settings.threads)
