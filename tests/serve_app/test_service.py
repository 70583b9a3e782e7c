"""The service without a protocol in front of it: what hangs, what would wait too long, what is too late to begin."""

from __future__ import annotations

import asyncio
import threading

import pytest

from serve_app.batching import CostModel
from serve_app.observer import BatchFacts, Observers
from serve_app.service import INLINE_SAMPLES, Call, InferenceService
from serve_app.tokens import ANONYMOUS
from split_inference.errors import DeadlineError, OverloadedError
from split_inference.wire import decode_frame, decode_reply, encode_reply
from tests.patience import PATIENCE_S
from tests.serve_app.helpers import LABELS, TinyRunner, frame_of, one_hot_features, png

GOOD_FRAME = frame_of(one_hot_features(1))


@pytest.mark.parametrize("kind", ["frame", "image"])
def test_a_replica_that_hangs_is_unhealthy_also_when_whoever_asked_has_left(kind):
    now_s = [0.0]
    begun, go_on = threading.Event(), threading.Event()

    class Hanging(TinyRunner):
        def hang(self):
            begun.set()
            assert go_on.wait(PATIENCE_S)

        def preprocess(self, data):
            self.hang()
            return super().preprocess(data)

    runner = Hanging()
    runner.on_run = runner.hang
    service = InferenceService(runner, now_s=lambda: now_s[0])

    async def one():
        call = Call(protocol="http", started_s=service.now_s())
        with service.enter(ANONYMOUS, body_bytes=1):
            if kind == "frame":
                await service.answer_frame(GOOD_FRAME, call, as_logits=False, top_k=1)
            else:
                await service.answer_input(png(4, 4), call, as_logits=False, top_k=1)

    async def play():
        task = asyncio.create_task(one())
        await asyncio.to_thread(begun.wait, PATIENCE_S)
        task.cancel()
        await asyncio.wait({task})
        assert service.pending == 0
        now_s[0] = 59.0
        service.check_health()
        now_s[0] = 61.0
        with pytest.raises(RuntimeError, match="61 s"):
            service.check_health()
        go_on.set()
        await service.drain()
        while service._batcher.in_flight or service._input_thread.running_s():
            await asyncio.sleep(0.01)
        service.check_health()

    asyncio.run(asyncio.wait_for(play(), PATIENCE_S))
    service.close()


def requests_of_one_size(*, expected_s, takes_s, seconds, budget_ms=250, every_s=0.1):
    """Whether each of the requests that come one after the other was answered, where a batch is expected to take
    `expected_s` and takes `takes_s`; on a clock that only batches and pauses put forward."""
    now_s = [0.0]

    def run():
        now_s[0] += takes_s

    runner, cost = TinyRunner(on_run=run), CostModel()
    for _ in range(2):
        cost.learn(runner.key_of(decode_frame(GOOD_FRAME)), 1, expected_s)
    service = InferenceService(runner, cost=cost, now_s=lambda: now_s[0])

    async def play():
        answered = []
        while now_s[0] < seconds:
            call = Call(protocol="http", started_s=now_s[0], budget_ms=budget_ms)
            try:
                await service.answer_frame(GOOD_FRAME, call, as_logits=True, top_k=1)
                answered.append((call.started_s, True))
            except DeadlineError:
                answered.append((call.started_s, False))
            now_s[0] += every_s
        return answered

    try:
        return asyncio.run(asyncio.wait_for(play(), PATIENCE_S))
    finally:
        service.close()


def test_an_estimate_that_a_bad_moment_made_too_long_does_not_keep_everybody_out_for_ever():
    answered = requests_of_one_size(expected_s=0.4, takes_s=0.005, seconds=30.0)
    assert not any(was for at_s, was in answered if at_s < 0.9)
    assert all(was for at_s, was in answered if at_s > 15.0)


def test_where_a_model_really_is_too_slow_trying_costs_it_a_tenth_of_its_time():
    answered = requests_of_one_size(expected_s=0.4, takes_s=0.4, seconds=100.0)
    let_in = sum(was for _, was in answered)
    assert 0 < let_in * 0.4 <= 0.11 * 100.0


def test_a_request_that_waits_for_an_input_is_refused_at_once_where_too_many_are_before_it():
    begun, go_on = threading.Event(), threading.Event()
    now_s = [0.0]

    class Slow(TinyRunner):
        def preprocess(self, data):
            begun.set()
            assert go_on.wait(PATIENCE_S)
            now_s[0] += 20.0
            return super().preprocess(data)

    service = InferenceService(Slow(), now_s=lambda: now_s[0])

    async def one(budget_ms=None):
        call = Call(protocol="http", started_s=service.now_s(), budget_ms=budget_ms)
        await service.answer_input(png(4, 4), call, as_logits=True, top_k=1)
        return call

    async def play():
        go_on.set()
        call = await one()
        assert (call.input_wait_s, call.input_s) == (0.0, 20.0)
        go_on.clear()
        begun.clear()
        waiting = [asyncio.create_task(one())]
        await asyncio.to_thread(begun.wait, PATIENCE_S)
        with pytest.raises(DeadlineError, match="could be read in 20000 ms, and the request's budget is 15000 ms"):
            await one(budget_ms=15_000)
        waiting.append(asyncio.create_task(one()))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="decoded for 40 s before this one; nobody waits for more than 30 s"):
            await one()
        go_on.set()
        await asyncio.gather(*waiting)

    asyncio.run(asyncio.wait_for(play(), PATIENCE_S))
    service.close()


def test_nobody_is_let_in_to_wait_until_the_replica_looks_sick():
    cost = CostModel()
    runner = TinyRunner()
    cost.learn(runner.key_of(decode_frame(GOOD_FRAME)), 1, 31.0)
    running, go_on = threading.Event(), threading.Event()

    def hold():
        running.set()
        assert go_on.wait(PATIENCE_S)

    runner.on_run = hold
    now_s = [0.0]
    service = InferenceService(runner, cost=cost, now_s=lambda: now_s[0])

    async def one(budget_ms=None):
        call = Call(protocol="http", started_s=service.now_s(), budget_ms=budget_ms)
        return await service.answer_frame(GOOD_FRAME, call, as_logits=True, top_k=1)

    async def play():
        # However long it takes by itself, on an idle replica it is let in: how else would anybody learn better?
        first = asyncio.create_task(one())
        await asyncio.to_thread(running.wait, PATIENCE_S)
        for budget_ms in (None, 90_000):
            with pytest.raises(OverloadedError, match="ahead for 31 s; nobody waits for more than 30 s") as refused:
                await one(budget_ms)
            assert refused.value.retry_after_s == pytest.approx(1.0)
        go_on.set()
        assert (await first).sample_count == 1

    asyncio.run(asyncio.wait_for(play(), PATIENCE_S))
    service.close()


def test_an_image_whose_time_is_over_before_its_turn_is_not_decoded():
    now_s = [0.0]

    class Slow(TinyRunner):
        def preprocess(self, data):
            now_s[0] += 0.2
            return super().preprocess(data)

    runner = Slow()
    service = InferenceService(runner, now_s=lambda: now_s[0])

    async def one():
        call = Call(protocol="http", started_s=0.0, budget_ms=500)
        await service.answer_input(png(4, 4), call, as_logits=False, top_k=1)

    async def play():
        return await asyncio.gather(*[one() for _ in range(6)], return_exceptions=True)

    outcomes = asyncio.run(asyncio.wait_for(play(), PATIENCE_S))
    service.close()
    # The third one began in time, and was late when it was decoded.
    assert runner.preprocessed == 3
    assert all(isinstance(each, DeadlineError) for each in outcomes[2:])
    late = outcomes[5]
    assert isinstance(late, DeadlineError)
    assert 0 < late.retry_after_s < 1


def test_a_large_answer_is_put_together_beside_the_event_loop_and_is_the_same():
    where: set[str] = set()

    class Watched(tuple[str, ...]):
        def __getitem__(self, index):
            where.add(threading.current_thread().name.partition("_")[0])
            return super().__getitem__(index)

    runner = TinyRunner()
    runner.labels = Watched(LABELS)
    service = InferenceService(runner)

    async def one(samples):
        call = Call(protocol="http", started_s=service.now_s())
        body = frame_of(one_hot_features(*[1] * samples))
        return await service.answer_frame(body, call, as_logits=False, top_k=2)

    few = asyncio.run(one(INLINE_SAMPLES)).predictions
    assert where == {"MainThread"}
    where.clear()
    many = asyncio.run(one(INLINE_SAMPLES + 1)).predictions
    service.close()
    assert where == {"answer"}
    assert many == (*few, few[0])


def test_empty_rows_that_ran_are_told_to_observers():
    runner = TinyRunner()
    runner.buckets_of_four = True
    seen: list[BatchFacts] = []

    class Watching:
        def batch_done(self, facts):
            seen.append(facts)

        def request_done(self, facts):
            pass

    service = InferenceService(runner, observers=Observers([Watching()]))

    async def one():
        call = Call(protocol="http", started_s=service.now_s())
        await service.answer_frame(frame_of(one_hot_features(*[0] * 5)), call, as_logits=True, top_k=1)
        await service.drain()

    asyncio.run(one())
    service.close()
    assert [(facts.samples, facts.bucket) for facts in seen] == [(5, 8)]


def test_who_drains_a_service_waits_until_all_is_counted():
    """Else weights that retire are still held by it, and their memory is given back only with the next ones."""
    counted = []

    class Counts:
        def batch_done(self, facts):
            counted.append("batch")

        def request_done(self, facts):
            counted.append("request")

    service = InferenceService(TinyRunner(), observers=Observers([Counts()]))
    frame = frame_of(one_hot_features(1))

    async def play():
        call = Call(protocol="http", started_s=service.now_s())
        await service.answer_frame(frame, call, as_logits=False, top_k=1)
        for _ in range(3):
            await asyncio.sleep(0)
        assert counted == ["batch"]
        service.finish(call, status=200, error=None)
        await service.drain()
        assert counted == ["batch", "request"]

    asyncio.run(asyncio.wait_for(play(), PATIENCE_S))
    service.close()


def test_answers_that_are_being_put_together_when_the_service_closes_are_given():
    busy = threading.Event()
    service = InferenceService(TinyRunner())
    frame = frame_of(one_hot_features(*[1] * (INLINE_SAMPLES + 1)))

    async def one():
        with service.enter(ANONYMOUS, body_bytes=len(frame)):
            call = Call(protocol="http", started_s=service.now_s())
            reply = await service.answer_frame(frame, call, as_logits=False, top_k=1)
            return await service.put_together(lambda: encode_reply(reply), samples=call.samples)

    async def play():
        held = asyncio.create_task(service.put_together(lambda: busy.wait(PATIENCE_S), samples=100))
        tasks = [asyncio.create_task(one()) for _ in range(3)]
        await asyncio.sleep(0.05)
        await service.drain()
        assert service.unanswered == 3
        service.close()
        busy.set()
        assert await held
        return await asyncio.gather(*tasks)

    replies = asyncio.run(asyncio.wait_for(play(), PATIENCE_S))
    assert {decode_reply(each).sample_count for each in replies} == {INLINE_SAMPLES + 1}
