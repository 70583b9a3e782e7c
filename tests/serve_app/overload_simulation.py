"""The real service, batcher and queue under more requests than they can answer, in virtual time and by seed.

Only the model is not there: a batch takes as long as a formula says, and now and then a stall longer, as on a machine
where something else takes the core. An event loop whose clock jumps to the next moment runs everything in one thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
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
from tests.serve_app.virtual_time import JumpingLoop, LoopClock, VirtualThread

FIXED_S, PER_SAMPLE_S = 0.004, 0.0026
DECODE_S = 0.0001
MAX_SAMPLES = 16
CAPACITY_PER_S = MAX_SAMPLES / (FIXED_S + PER_SAMPLE_S * MAX_SAMPLES)


class _Model(TinyRunner):
    """Takes its time; `slowness` says by how much longer a batch takes that begins at a moment, and what is added."""

    def __init__(self, clock: LoopClock, slowness: Callable[[float, float], float]) -> None:
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
    loop = JumpingLoop()
    clock = LoopClock(loop)
    rng = np.random.default_rng(seed)
    cost = CostModel()
    model = _Model(clock, slowness(np.random.default_rng([seed, 1])))
    frame = frame_of(one_hot_features(0))
    service = InferenceService(
        model,
        limits=Limits(max_pending_requests=192),
        cost=cost,
        now_s=clock,
        model_thread=VirtualThread(loop, clock),
        prepare_thread=VirtualThread(loop, clock),
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
