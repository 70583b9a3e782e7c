"""The service without a protocol in front of it: what hangs, what would wait too long, what is too late to begin."""

from __future__ import annotations

import asyncio
import threading

import pytest

from serve_app.batching import CostModel
from serve_app.service import Call, InferenceService
from serve_app.tokens import ANONYMOUS
from split_inference.errors import DeadlineError, OverloadedError
from split_inference.wire import decode_frame
from tests.patience import PATIENCE_S
from tests.serve_app.helpers import TinyRunner, frame_of, one_hot_features, png

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

    asyncio.run(asyncio.wait_for(play(), PATIENCE_S))
    service.close()


def test_nobody_is_let_in_to_wait_until_the_replica_looks_sick():
    cost = CostModel()
    runner = TinyRunner()
    cost.learn(runner.key_of(decode_frame(GOOD_FRAME)), 1, 31.0)
    service = InferenceService(runner, cost=cost)

    async def one():
        await service.answer_frame(
            GOOD_FRAME, Call(protocol="http", started_s=service.now_s()), as_logits=True, top_k=1
        )

    with pytest.raises(OverloadedError, match="31 s; nobody waits for more than 30 s") as refused:
        asyncio.run(one())
    service.close()
    assert refused.value.retry_after_s == pytest.approx(1.0)


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
