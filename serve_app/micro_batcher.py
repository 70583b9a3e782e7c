"""Runs waiting requests in batches: fills while the model is busy, and holds two batches in flight at most.

The asyncio shell around batching.py: one thread prepares a batch (decodes, stacks), another one runs it, so that the
next batch is ready when the model is. Knows no Ray, no torch and no HTTP; what a payload is, only the work knows.

Why not `@serve.batch`: docs/decisions/0006-a-batcher-of-our-own.md.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

from serve_app.batching import BatchQueue, CostModel, Item, Taken
from serve_app.settings import BatchingSettings
from split_inference.errors import DeadlineError, WireError

LOG = logging.getLogger(__name__)

# What is nearer than this is now: a timer for less would ring before a clock has moved.
_NO_TIME_S: Final = 1e-4

PayloadT = TypeVar("PayloadT", contravariant=True)
StagedT = TypeVar("StagedT")
ResultT = TypeVar("ResultT")
MadeT = TypeVar("MadeT", covariant=True)


class StickyDeviceError(Exception):
    """The device will fail from now on, whatever it is asked: the process has to end (work raises this)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared(Generic[StagedT]):
    """A batch that is ready to run, without the payloads that turned out to be bad."""

    staged: StagedT
    bad: Mapping[int, WireError]
    """Index of the payload -> what is wrong with it."""


class BatchWork(Protocol[PayloadT, StagedT, MadeT]):
    """What is done with a batch.

    `run` is called from one thread only; `prepare` from that one, and at the same time from another one for the next.
    """

    def prepare(self, key: Any, payloads: Sequence[PayloadT]) -> Prepared[StagedT]:
        """Decode and stack the good ones."""
        ...

    def run(self, key: Any, staged: StagedT) -> Sequence[MadeT | WireError]:
        """Run the model: for each good payload, in order, its result or what is wrong with it."""
        ...

    def discard(self, staged: StagedT) -> None:
        """The batch is not run, or was: its buffers may be used again. Called once for each prepared batch."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchReport:
    """What one batch took: for metrics."""

    key: Hashable
    items: int
    samples: int
    queue_delays_s: tuple[float, ...]
    prepare_s: float
    run_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Served(Generic[ResultT]):
    """One item's result, and where its time went."""

    result: ResultT
    queue_s: float
    prepare_s: float
    run_s: float
    batch_samples: int


@dataclass(kw_only=True, slots=True, eq=False)
class _Flight:
    taken: Taken
    expected_s: float
    launched_s: float
    run_began_s: float | None = None


class MicroBatcher(Generic[PayloadT, StagedT, ResultT]):
    """Awaited by many requests at once on one event loop; the work runs in two threads.

    A batch leaves when the model is idle (after `linger_ms`), or, with room in flight, when it is full or the model is
    about to be free; otherwise it goes on filling. Settings may change at any time.
    """

    def __init__(
        self,
        work: BatchWork[PayloadT, StagedT, ResultT],
        *,
        settings: BatchingSettings | None = None,
        cost: CostModel | None = None,
        now_s: Callable[[], float] = time.perf_counter,
        on_batch: Callable[[BatchReport], None] = lambda report: None,
        on_sticky_error: Callable[[BaseException], None] = lambda error: None,
        thread_start: Callable[[], None] = lambda: None,
        model_thread: Executor | None = None,
        prepare_thread: Executor | None = None,
        log: logging.Logger = LOG,
    ) -> None:
        """`thread_start` runs first in both threads: OpenMP keeps its number of threads for each thread apart.

        `model_thread` is one thread in which the model was warmed up already, for a device that wants the same one
        ever after. It and `prepare_thread`, which a simulation replaces, are the caller's to end.
        """
        self._work = work
        self.settings = settings or BatchingSettings()
        self.cost = cost or CostModel()
        self._now_s = now_s
        self._on_batch = on_batch
        self._on_sticky_error = on_sticky_error
        self._log = log
        self._queue = BatchQueue(self.cost)
        self._prepare_cost = CostModel()
        self._flights: list[_Flight] = []
        self._ended_s = -math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._own_threads: list[Executor] = []

        def thread(name: str) -> Executor:
            made = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=thread_start)
            self._own_threads.append(made)
            return made

        self._prepare_thread = prepare_thread or thread("prepare")
        self._model_thread = model_thread or thread("model")
        self._broken: BaseException | None = None

    @property
    def waiting(self) -> int:
        """Items that wait for a batch."""
        return len(self._queue)

    @property
    def in_flight(self) -> int:
        """Batches that are prepared or run."""
        return len(self._flights)

    def oldest_age_s(self) -> float:
        """How long the oldest waiting item has waited; 0 where none does."""
        entered_s = self._queue.oldest_entered_s()
        return 0.0 if entered_s is None else self._now_s() - entered_s

    def running_s(self) -> float:
        """How long the batch whose turn it is has been prepared or run; 0 where there is none. Whoever asked may have
        left."""
        if not self._flights:
            return 0.0
        first = self._flights[0]
        # One that waited behind another began when that one ended.
        return self._now_s() - (first.run_began_s or max(first.launched_s, self._ended_s))

    def expected_wait_s(self, key: Hashable, *, samples: int, deadline_s: float = math.inf) -> float:
        """Seconds until an item that came now would be answered: what is in flight, what is more urgent, and itself."""
        now_s = self._now_s()
        item = Item(key=key, samples=samples, entered_s=now_s, deadline_s=deadline_s)
        return self._in_flight_s(now_s) + self._queue.work_before_s(item, max_samples=self.settings.max_batch_samples)

    def _in_flight_s(self, now_s: float) -> float:
        """Seconds until the model is free again."""
        left_s = 0.0
        for flight in self._flights:
            done_s = 0.0 if flight.run_began_s is None else now_s - flight.run_began_s
            left_s += max(0.0, flight.expected_s - done_s)
        return left_s

    async def submit(
        self, key: Hashable, payload: PayloadT, *, samples: int = 1, deadline_s: float = math.inf
    ) -> Served[ResultT]:
        """The result of one payload. Raises what the work says is wrong with it, or DeadlineError.

        Cancelling the awaiting task takes the item out where its batch has not begun.
        """
        if self._broken is not None:
            raise self._broken
        loop = asyncio.get_running_loop()
        item = Item(
            key=key,
            samples=samples,
            entered_s=self._now_s(),
            deadline_s=deadline_s,
            payload=payload,
            waiter=loop.create_future(),
        )
        self._queue.put(item)
        self._pump()
        try:
            served: Served[ResultT] = await item.waiter
            return served
        except asyncio.CancelledError:
            self._queue.cancel(item)
            raise

    async def drain(self) -> None:
        """Return when nothing waits and nothing runs."""
        while self._tasks or len(self._queue):
            self._pump()
            if self._tasks:
                await asyncio.wait(set(self._tasks))
            else:
                await asyncio.sleep(0)

    def close(self) -> None:
        """Let its own threads end after what they do now."""
        if self._timer is not None:
            self._timer.cancel()
        for each in self._own_threads:
            each.shutdown(wait=False, cancel_futures=True)

    def _pump(self) -> None:
        """Launch what may leave now; called whenever something came, ended or a timer rang."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while True:
            first = self._queue.most_urgent()
            if first is None or len(self._flights) >= self.settings.max_in_flight:
                return
            now_s = self._now_s()
            rows = self._queue.samples(first.key)
            if rows < self.settings.max_batch_samples:
                wait_s = self._ahead_s(first.key, rows, now_s) if self._flights else self._linger_s(now_s)
                if wait_s > _NO_TIME_S:
                    if wait_s < math.inf:
                        self._timer = asyncio.get_running_loop().call_later(wait_s, self._pump)
                    return
            taken = self._queue.take(
                starts_s=now_s + self._in_flight_s(now_s), max_samples=self.settings.max_batch_samples
            )
            for item in taken.expired:
                _fail(item, DeadlineError("the answer would come after the request's deadline; it was not computed"))
            if taken.batch:
                expected_s = self.cost.batch_s(taken.batch[0].key, taken.samples)
                flight = _Flight(taken=taken, expected_s=expected_s, launched_s=now_s)
                self._flights.append(flight)
                task = asyncio.get_running_loop().create_task(self._fly(flight))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _linger_s(self, now_s: float) -> float:
        """Seconds that an idle model still waits for company of the oldest item."""
        if self.settings.linger_ms == 0:
            return 0.0
        entered_s = self._queue.oldest_entered_s()
        return 0.0 if entered_s is None else entered_s + self.settings.linger_ms / 1000 - now_s

    def _ahead_s(self, key: Hashable, rows: int, now_s: float) -> float:
        """Seconds until a batch that is not full leaves, so that it is prepared when the model is free.

        Infinity where the end of what runs is not known, or should have come: then the batch fills until it does.
        """
        # Of a batch that is still being prepared, as if it began now: it is looked at again when it would end then.
        free_s = self._in_flight_s(now_s)
        if len(self._flights) > 1 or not free_s:
            return math.inf
        return free_s - self._prepare_cost.batch_s(key, rows) - self.settings.lead_ms / 1000

    async def _fly(self, flight: _Flight) -> None:
        batch = flight.taken.batch
        key = batch[0].key
        try:
            try:
                await self._run_together(key, batch, flight)
            except StickyDeviceError as error:
                self._break(error, batch)
            except Exception as error:
                if len(batch) == 1:
                    _fail(batch[0], error)
                else:
                    # One of them is bad: each alone, so that only that one fails.
                    if not isinstance(error, WireError):
                        self._log.warning("a batch of %d failed (%s); running each alone", len(batch), error)
                    for item in batch:
                        if not item.cancelled:
                            await self._run_alone(key, item, flight)
        finally:
            self._flights.remove(flight)
            self._ended_s = self._now_s()
            for item in batch:
                # Whatever happened, nobody waits for ever.
                _fail(item, RuntimeError("the batch ended without an answer"))
            self._pump()

    async def _run_alone(self, key: Hashable, item: Item, flight: _Flight) -> None:
        try:
            await self._run_together(key, [item], flight)
        except StickyDeviceError as error:
            self._break(error, [item])
        except Exception as error:
            _fail(item, error)

    async def _run_together(self, key: Hashable, batch: list[Item], flight: _Flight) -> None:
        loop = asyncio.get_running_loop()
        payloads = [item.payload for item in batch]

        def prepare() -> tuple[Prepared[StagedT], float]:
            began_s = self._now_s()
            return self._work.prepare(key, payloads), self._now_s() - began_s

        def run(prepared: Prepared[StagedT]) -> tuple[Sequence[ResultT | WireError], float]:
            began_s = flight.run_began_s = self._now_s()
            try:
                # Where all are bad there is nothing to run.
                return (self._work.run(key, prepared.staged) if len(prepared.bad) < len(batch) else []), (
                    self._now_s() - began_s
                )
            finally:
                self._work.discard(prepared.staged)

        def both() -> tuple[Prepared[StagedT], float, Sequence[ResultT | WireError], float]:
            prepared, prepare_s = prepare()
            return prepared, prepare_s, *run(prepared)

        if len(self._flights) == 1:
            # The model is idle: going through the event loop between the two would only cost time.
            prepared, prepare_s, results, run_s = await loop.run_in_executor(self._model_thread, both)
        else:
            prepared, prepare_s = await loop.run_in_executor(self._prepare_thread, prepare)
            results, run_s = await loop.run_in_executor(self._model_thread, run, prepared)
        for index, reason in prepared.bad.items():
            _fail(batch[index], reason)
        good = [item for index, item in enumerate(batch) if index not in prepared.bad]
        if not good:
            return
        samples = sum(item.samples for item in good)
        self.cost.learn(key, samples, run_s)
        self._prepare_cost.learn(key, samples, prepare_s)
        # Until it was decoded or run: the next batch is decoded early, and then waits for the model.
        waited_until_s = (flight.run_began_s or flight.launched_s) - prepare_s
        delays_s = tuple(max(0.0, waited_until_s - item.entered_s) for item in good)
        for item, result, queue_s in zip(good, results, delays_s, strict=True):
            if isinstance(result, WireError):
                _fail(item, result)
            elif not item.waiter.done():
                item.waiter.set_result(
                    Served(result=result, queue_s=queue_s, prepare_s=prepare_s, run_s=run_s, batch_samples=samples)
                )
        report = BatchReport(
            key=key, items=len(good), samples=samples, queue_delays_s=delays_s, prepare_s=prepare_s, run_s=run_s
        )
        # Behind those who wait for their answers.
        loop.call_soon(self._on_batch, report)

    def _break(self, error: BaseException, batch: list[Item]) -> None:
        """The device is lost: everybody gets the error, and whoever owns the process ends it."""
        self._broken = error
        self._log.error("the device fails for good: %s", error)
        for item in [*batch, *self._queue]:
            _fail(item, error)
            self._queue.cancel(item)
        self._on_sticky_error(error)


def _fail(item: Item, error: BaseException) -> None:
    if not item.waiter.done():
        item.waiter.set_exception(error)
