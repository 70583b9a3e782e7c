from __future__ import annotations

import asyncio
import threading

import pytest

from serve_app.batching import CostModel
from serve_app.micro_batcher import BatchReport, MicroBatcher, Prepared, StickyDeviceError
from serve_app.settings import BatchingSettings
from split_inference.errors import DeadlineError, FeatureMismatchError, MalformedFrameError
from tests.patience import PATIENCE_S
from tests.serve_app.virtual_time import JumpingLoop, LoopClock, VirtualThread


class Doubles:
    """Doubles numbers; "bad" cannot be prepared, "nan" has a bad answer, "boom" breaks the whole batch."""

    def __init__(self):
        self.prepared, self.ran, self.staged = [], [], 0
        self.gate = threading.Event()
        self.gate.set()
        self.running = threading.Semaphore(0)

    def prepare(self, key, payloads):
        self.staged += 1
        self.prepared.append(list(payloads))
        bad = {i: MalformedFrameError("bad") for i, payload in enumerate(payloads) if payload == "bad"}
        return Prepared(staged=[p for i, p in enumerate(payloads) if i not in bad], bad=bad)

    def run(self, key, staged):
        self.running.release()
        assert self.gate.wait(PATIENCE_S)
        self.ran.append((key, list(staged)))
        if "lost" in staged:
            raise StickyDeviceError("the device is gone")
        if "boom" in staged:
            raise RuntimeError("boom")
        return [FeatureMismatchError("nan") if each == "nan" else 2 * each for each in staged]

    def discard(self, staged):
        self.staged -= 1


def scene(work=None, **settings):
    """Run a coroutine function with a batcher, and check that nothing is left behind."""

    def decorate(play):
        options = {name: settings.pop(name) for name in ("cost", "on_sticky_error", "on_batch") if name in settings}
        doubles = work or Doubles()

        async def run():
            batcher = MicroBatcher(doubles, settings=BatchingSettings(**settings), **options)
            try:
                await play(batcher, doubles)
                await batcher.drain()
                assert (batcher.waiting, batcher.in_flight, doubles.staged) == (0, 0, 0)
            finally:
                doubles.gate.set()
                batcher.close()

        asyncio.run(asyncio.wait_for(run(), PATIENCE_S))

    return decorate


async def started(doubles):
    """Wait until the model runs something."""
    await asyncio.get_running_loop().run_in_executor(None, doubles.running.acquire)


def submit(batcher, payload, key="k", **options):
    return asyncio.ensure_future(batcher.submit(key, payload, **options))


def test_it_fills_while_the_model_is_busy():
    @scene(max_batch_samples=8)
    async def play(batcher, doubles):
        doubles.gate.clear()
        first = submit(batcher, 1)
        await started(doubles)
        rest = [submit(batcher, n) for n in range(2, 7)]
        await asyncio.sleep(0)
        # Not full: it waits for the model, and for company.
        assert (batcher.waiting, batcher.in_flight) == (5, 1)
        doubles.gate.set()
        assert [(await each).result for each in [first, *rest]] == [2, 4, 6, 8, 10, 12]
        assert [staged for _, staged in doubles.ran] == [[1], [2, 3, 4, 5, 6]]
        assert (await rest[0]).batch_samples == 5


def test_a_full_batch_is_prepared_while_another_one_runs_and_a_third_waits():
    @scene(max_batch_samples=2)
    async def play(batcher, doubles):
        doubles.gate.clear()
        waiting = [submit(batcher, 0)]
        await started(doubles)
        waiting += [submit(batcher, n) for n in range(1, 5)]
        while len(doubles.prepared) < 2:
            await asyncio.sleep(0.001)
        assert (batcher.waiting, batcher.in_flight) == (2, 2)
        doubles.gate.set()
        await asyncio.gather(*waiting)
        assert [staged for _, staged in doubles.ran] == [[0], [1, 2], [3, 4]]


def test_one_bad_item_fails_alone_and_the_others_run_together():
    @scene(max_batch_samples=8)
    async def play(batcher, doubles):
        doubles.gate.clear()
        submit(batcher, 0)
        await started(doubles)
        waiting = [submit(batcher, payload) for payload in (1, "bad", 2, "nan", 3)]
        await asyncio.sleep(0)
        doubles.gate.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [getattr(each, "result", type(each)) for each in results] == [
            2,
            MalformedFrameError,
            4,
            FeatureMismatchError,
            6,
        ]
        assert doubles.ran[1][1] == [1, 2, "nan", 3]


def test_a_batch_that_fails_as_a_whole_is_tried_one_by_one():
    @scene(max_batch_samples=8)
    async def play(batcher, doubles):
        doubles.gate.clear()
        submit(batcher, 0)
        await started(doubles)
        waiting = [submit(batcher, payload) for payload in (1, "boom", 2)]
        await asyncio.sleep(0)
        doubles.gate.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [getattr(each, "result", type(each)) for each in results] == [2, RuntimeError, 4]


def test_cancelled_requests_are_not_run():
    @scene(max_batch_samples=8)
    async def play(batcher, doubles):
        doubles.gate.clear()
        submit(batcher, 0)
        await started(doubles)
        stays, goes = submit(batcher, 1), submit(batcher, 2)
        await asyncio.sleep(0)
        goes.cancel()
        await asyncio.sleep(0)
        doubles.gate.set()
        assert (await stays).result == 2
        assert doubles.ran[1][1] == [1]


def test_what_expires_while_it_waits_is_refused_and_not_run():
    now_s = [0.0]
    doubles = Doubles()

    async def run():
        batcher = MicroBatcher(doubles, now_s=lambda: now_s[0])
        doubles.gate.clear()
        first = submit(batcher, 0)
        await started(doubles)
        late, patient = submit(batcher, 1, deadline_s=0.5), submit(batcher, 2, deadline_s=9)
        await asyncio.sleep(0)
        now_s[0] = 1.0
        doubles.gate.set()
        await first
        with pytest.raises(DeadlineError, match="not computed"):
            await late
        assert (await patient).result == 4
        assert doubles.ran[1][1] == [2]
        batcher.close()

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


def test_an_idle_model_lingers_for_company_but_not_when_the_batch_is_full():
    @scene(max_batch_samples=3, linger_ms=100)
    async def play(batcher, doubles):
        waiting = [submit(batcher, n) for n in range(2)]
        for _ in range(10):
            await asyncio.sleep(0)
        assert (batcher.waiting, batcher.in_flight) == (2, 0)
        waiting.append(submit(batcher, 2))
        await asyncio.sleep(0)
        assert batcher.in_flight == 1
        await asyncio.gather(*waiting)
        assert (await submit(batcher, 5)).result == 10


def test_settings_change_while_it_runs():
    @scene(max_batch_samples=8)
    async def play(batcher, doubles):
        doubles.gate.clear()
        waiting = [submit(batcher, 0)]
        await started(doubles)
        waiting += [submit(batcher, n) for n in range(1, 5)]
        batcher.settings = BatchingSettings(max_batch_samples=2)
        await asyncio.sleep(0)
        doubles.gate.set()
        await asyncio.gather(*waiting)
        assert [len(staged) for _, staged in doubles.ran] == [1, 2, 2]


def test_a_device_that_is_lost_is_told_once_and_refuses_everything():
    told: list[BaseException] = []

    @scene(max_batch_samples=1, on_sticky_error=told.append)
    async def play(batcher, doubles):
        doubles.gate.clear()
        waiting = [submit(batcher, payload) for payload in ("lost", 1, 2)]
        await started(doubles)
        doubles.gate.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(results[0], StickyDeviceError)
        assert isinstance(results[2], StickyDeviceError)
        with pytest.raises(StickyDeviceError):
            await batcher.submit("k", 3)

    assert len(told) == 1


def test_the_expected_wait_is_the_rest_of_what_runs_and_all_that_is_more_urgent():
    now_s = [0.0]
    cost = CostModel()
    for size in (1, 2, 4):
        cost.learn("k", size, 0.1 * size)
    doubles = Doubles()

    async def run():
        batcher = MicroBatcher(
            doubles, cost=cost, settings=BatchingSettings(max_batch_samples=4), now_s=lambda: now_s[0]
        )
        assert batcher.expected_wait_s("k", samples=1) == pytest.approx(0.1)
        doubles.gate.clear()
        waiting = [submit(batcher, 0)]
        await started(doubles)
        now_s[0] = 0.03
        assert batcher.expected_wait_s("k", samples=1) == pytest.approx(0.17)
        waiting += [submit(batcher, n) for n in range(3)]
        await asyncio.sleep(0)
        assert batcher.expected_wait_s("k", samples=1) == pytest.approx(0.47)
        assert batcher.expected_wait_s("k", samples=1, deadline_s=0.04) == pytest.approx(0.17)
        assert batcher.oldest_age_s() == 0
        doubles.gate.set()
        await asyncio.gather(*waiting)
        batcher.close()

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


def test_who_waits_goes_on_before_its_batch_is_counted():
    order = []

    @scene(on_batch=lambda report: order.append("counted"))
    async def play(batcher, doubles):
        await batcher.submit("k", 1)
        order.append("answered")
        await asyncio.sleep(0)

    assert order == ["answered", "counted"]


def test_batches_are_reported_with_every_delay():
    reports: list[BatchReport] = []

    @scene(max_batch_samples=4, on_batch=reports.append)
    async def play(batcher, doubles):
        await asyncio.gather(*[submit(batcher, n, samples=2) for n in range(2)])

    assert sum(report.samples for report in reports) == 4
    assert all(len(report.queue_delays_s) == report.items for report in reports)
    assert all(delay_s >= 0 for report in reports for delay_s in report.queue_delays_s)


class Timed:
    """In virtual time: 1 ms to prepare each payload, 50 ms for a batch, or what `took_s` says of them in order."""

    def __init__(self, clock, took_s=()):
        self.clock, self.took_s, self.ran = clock, list(took_s), []

    def prepare(self, key, payloads):
        self.clock.ahead_s += 0.001 * len(payloads)
        return Prepared(staged=list(payloads), bad={})

    def run(self, key, staged):
        began_s = self.clock()
        self.clock.ahead_s += self.took_s.pop(0) if self.took_s else 0.05
        self.ran.append((round(1000 * began_s, 3), round(1000 * self.clock(), 3), staged))
        return staged

    def discard(self, staged):
        pass


def ran(arrivals_ms, *, took_s=(), known=True, **settings):
    """When each batch began and ended, in ms, and what was in it; payloads are numbers in the order of arrival."""
    loop = JumpingLoop()
    clock = LoopClock(loop)
    work = Timed(clock, took_s)
    cost = CostModel()
    if known:
        for rows in (1, 2, 4, 8):
            cost.learn("k", rows, 0.05)
    batcher = MicroBatcher(
        work,
        settings=BatchingSettings(max_batch_samples=8, **settings),
        cost=cost,
        now_s=clock,
        model_thread=VirtualThread(loop, clock),
        prepare_thread=VirtualThread(loop, clock),
    )
    # As a batch before had it: 1 ms a row.
    for rows in (1, 2, 4, 8):
        batcher._prepare_cost.learn("k", rows, 0.001 * rows)

    async def ask(payload, at_ms):
        await asyncio.sleep(at_ms / 1000)
        assert (await batcher.submit("k", payload)).result == payload

    async def run():
        await asyncio.gather(*[ask(index, at_ms) for index, at_ms in enumerate(arrivals_ms)])

    try:
        loop.run_until_complete(run())
    finally:
        batcher.close()
        loop.close()
    return work.ran


def test_a_batch_that_is_not_full_is_prepared_by_the_time_the_model_is_free():
    found = ran([0, 10, 20, 30, 49], lead_ms=2)
    # Three rows take 3 ms to prepare: they leave at 46, and the one that comes at 49 has missed them.
    assert found == [(1, 51, [0]), (51, 101, [1, 2, 3]), (101, 151, [4])]
    # One batch at a time instead: the model waits while they are prepared, and the last one catches them.
    assert ran([0, 10, 20, 30, 49], max_in_flight=1) == [(1, 51, [0]), (55, 105, [1, 2, 3, 4])]


def test_what_comes_while_the_first_batch_is_prepared_is_ready_in_time_too():
    assert ran([0, 0.5], lead_ms=2) == [(1, 51, [0]), (51, 101, [1])]


def test_where_the_end_is_not_known_or_overdue_a_batch_fills_until_it_comes():
    assert ran([0, 10, 20], known=False) == [(1, 51, [0]), (53, 103, [1, 2])]
    # It should have ended at 51: nobody knows when the model will be free, and what comes meanwhile goes together.
    assert ran([0, 60, 70, 140], took_s=[0.15]) == [(1, 151, [0]), (154, 204, [1, 2, 3])]
