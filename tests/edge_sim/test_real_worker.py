"""A device that is real: what its records say of requests that nobody answered."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from edge_sim.real_worker import RealWorker
from edge_sim.request_record import GAVE_UP
from edge_sim.transport import Response
from split_inference.errors import ServerError
from split_inference.inputs import EncodedInput
from tests.edge_sim.helpers import ManualClock, error, proxy_error
from tests.edge_sim.test_retry import deliver


class Records(list[Any]):
    def write(self, who, how, request):
        self.append(request)


def recorded(failure, *, deadline_s=60.0):
    """The records of a device whose every request ends with this error."""

    async def infer(data):
        raise failure

    client: Any = SimpleNamespace(
        model=SimpleNamespace(name="tiny"), split_point=SimpleNamespace(name="stem"), codec_name="u4", infer=infer
    )
    records = Records()
    inputs = [EncodedInput(name="photo.png", data=b"", media_type="image/png", label=None)]
    worker = RealWorker(client, inputs, records, name="pi")
    asyncio.run(worker.live(rate_per_s=200.0, seconds=0.05, deadline_s=deadline_s))
    return records


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (error(503, "OverloadedError"), "server_rejected"),
        (error(429, "TooManyRequestsError"), "server_rejected"),
        (proxy_error(502), "server_down"),
        (proxy_error(503), "server_down"),
        (ServerError("no connection", retriable=True), "server_down"),
        (error(500, "InternalError"), "server_error"),
    ],
)
def test_why_nobody_answered_is_said_in_the_words_of_a_fleet(answer: Response | Exception, reason):
    failure, transport, _ = deliver(answer)
    records = recorded(failure)
    assert {(each.outcome, each.reason, each.attempts) for each in records} == {
        (GAVE_UP, reason, len(transport.requests))
    }


def test_a_device_too_slow_to_send_in_time_does_not_blame_the_server():
    class Spent(ManualClock):
        def now_s(self):
            self.time_s += 20.0
            return self.time_s

    failure, transport, _ = deliver(proxy_error(502), clock=Spent())
    assert transport.requests == []
    assert {(each.reason, each.attempts) for each in recorded(failure)} == {("deadline", 0)}


def test_a_server_that_is_silent_until_the_deadline_is_a_deadline():
    failure = ServerError("no answer within 0 s", retriable=True)
    failure.attempts = 1
    assert {(each.reason, each.attempts) for each in recorded(failure, deadline_s=0.0)} == {("deadline", 1)}
