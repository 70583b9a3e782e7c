"""The real service, batcher and queue under more requests than they can answer, in virtual time and by seed.

Only the model is not there: a batch takes as long as a formula says, and now and then a stall longer, as on a machine
where something else takes the core. An event loop whose clock jumps to the next moment runs everything in one thread.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.batching import BatchKey, CostModel
from serve_app.micro_batcher import Prepared
from serve_app.service import Call, InferenceService
from serve_app.settings import Limits
from split_inference.errors import OverloadedError
from split_inference.wire import FeatureFrame
from tests.serve_app.helpers import TinyRunner, frame_of, one_hot_features

FIXED_S, PER_SAMPLE_S = 0.004, 0.0026
DECODE_S = 0.0001
MAX_SAMPLES = 16
CAPACITY_PER_S = MAX_SAMPLES / (FIXED_S + PER_SAMPLE_S * MAX_SAMPLES)


class _JumpingSelector(selectors.SelectSelector):
    """Where others wait, the clock is put forward."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everybody waits, and nothing is going to happen"
        self.now_s += timeout
        # There are no sockets but the loop's own, which wakes it from other threads: there are none either.
        return []


class _JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


class _Clock:
    """The loop's time; work that runs now puts it forward for itself alone."""

    def __init__(self, loop: _JumpingLoop) -> None:
        self._loop = loop
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return self._loop.time() + self.ahead_s


class _Thread(Executor):
    """One thread: what is submitted begins when it is free, and takes as long as it puts the clock forward."""

    def __init__(self, loop: _JumpingLoop, clock: _Clock) -> None:
        self._loop, self._clock = loop, clock
        self._free_s = 0.0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        waiting = self._waiting = getattr(self, "_waiting", [])
        waiting.append((future, fn, args, kwargs))
        if len(waiting) == 1:
            self._begin()
        return future

    def _begin(self) -> None:
        future, fn, args, kwargs = self._waiting[0]
        self._clock.ahead_s = 0.0
        result = fn(*args, **kwargs)
        took_s, self._clock.ahead_s = self._clock.ahead_s, 0.0
        self._loop.call_later(took_s, self._end, future, result)

    def _end(self, future: Future[Any], result: Any) -> None:
        self._waiting.pop(0)
        future.set_result(result)
        if self._waiting:
            self._begin()


class _Model(TinyRunner):
    """Takes its time; `slowness` says by how much longer a batch takes that begins at a moment, and what is added."""

    def __init__(self, clock: _Clock, slowness: Callable[[float, float], float]) -> None:
        super().__init__()
        self._clock, self._slowness = clock, slowness

    def prepare(self, key: BatchKey, payloads: Sequence[Any]) -> Prepared[list[NDArray[np.float32]]]:
        self._clock.ahead_s += DECODE_S * len(payloads)
        return Prepared(staged=[np.zeros((1, 8), np.float32)] * len(payloads), bad={})

    def run(self, key: BatchKey, staged: list[NDArray[np.float32]]) -> Any:
        self._clock.ahead_s += self._slowness(self._clock(), FIXED_S + PER_SAMPLE_S * len(staged))
        return [np.zeros((1, 3), np.float32)] * len(staged)

    def discard(self, staged: list[NDArray[np.float32]]) -> None:
        pass


@dataclass(slots=True)
class Outcome:
    """Latencies from the moment at which requests were sent."""

    seconds: float
    deadline_s: float
    answered_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)

    @property
    def goodput(self) -> float:
        """Answers in time a second, over the capacity of a machine that nothing stalls."""
        return sum(took_s <= self.deadline_s for took_s in self.answered_s) / self.seconds / CAPACITY_PER_S

    @property
    def late_share(self) -> float:
        """Of the answers."""
        return sum(took_s > self.deadline_s for took_s in self.answered_s) / max(1, len(self.answered_s))

    def answered_p99_ms(self) -> float:
        """99th percentile."""
        return 1000 * float(np.quantile(self.answered_s, 0.99))

    def refused_p99_ms(self) -> float:
        """99th percentile; 0 where nothing was refused."""
        return 1000 * float(np.quantile(self.refused_s, 0.99)) if self.refused_s else 0.0


def stalls(
    rng: np.random.Generator, *, every_s: float, of_s: float, noise: float = 0.06
) -> Callable[[float, float], float]:
    """Batches with noise; the one that runs at each multiple of `every_s` takes `of_s` longer."""

    def took_s(begins_s: float, usual_s: float) -> float:
        usual_s *= float(np.exp(noise * rng.standard_normal()))
        hit = int((begins_s + usual_s) / every_s) - int(begins_s / every_s)
        return usual_s + of_s * hit

    return took_s


def overload(
    *,
    seed: int,
    slowness: Callable[[np.random.Generator], Callable[[float, float], float]],
    load: float = 2.0,
    seconds: float = 40.0,
    settle_s: float = 10.0,
    deadline_s: float = 0.25,
) -> Outcome:
    """Poisson arrivals at `load` times the capacity; what came in the first `settle_s` does not count."""
    loop = _JumpingLoop()
    clock = _Clock(loop)
    rng = np.random.default_rng(seed)
    cost = CostModel()
    model = _Model(clock, slowness(np.random.default_rng([seed, 1])))
    frame = frame_of(one_hot_features(0))
    service = InferenceService(
        model,
        limits=Limits(max_pending_requests=192),
        cost=cost,
        now_s=clock,
        model_thread=_Thread(loop, clock),
        prepare_thread=_Thread(loop, clock),
    )
    from split_inference.wire import decode_frame

    decoded: FeatureFrame = decode_frame(frame)
    for rows in (1, 2, 4, 8, 16):
        cost.learn(model.key_of(decoded), rows, FIXED_S + PER_SAMPLE_S * rows)
    outcome = Outcome(seconds=seconds - settle_s, deadline_s=deadline_s)

    async def ask(meant_s: float, there_s: float, back_s: float) -> None:
        await asyncio.sleep(there_s)
        call = Call(protocol="http", started_s=clock(), budget_ms=round(1000 * deadline_s))
        try:
            await service.answer_frame(frame, call, as_logits=True, top_k=1)
        except OverloadedError:
            latencies_s = outcome.refused_s
        else:
            latencies_s = outcome.answered_s
        if meant_s >= settle_s:
            latencies_s.append(clock() + back_s - meant_s)

    async def run() -> None:
        meant_s = 0.0
        tasks = set()
        while (meant_s := meant_s + rng.exponential(1 / (load * CAPACITY_PER_S))) < seconds:
            await asyncio.sleep(meant_s - clock())
            task = asyncio.ensure_future(ask(meant_s, rng.uniform(0.001, 0.005), rng.uniform(0.001, 0.003)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    try:
        loop.run_until_complete(run())
    finally:
        service.close()
        loop.close()
    return outcome
