"""Retries: which, how often, how long between, and never past the budget; on a clock that jumps."""

from __future__ import annotations

import asyncio
import random

import pytest

from edge_sim.exchange import Exchange
from edge_sim.retry import RetryPolicy
from edge_sim.transport import Request, Response
from split_inference import errors
from split_inference.errors import FeatureMismatchError, ServerError
from tests.edge_sim.helpers import URL, FunctionTransport, ManualClock, error, proxy_error

GOOD = Response(status=200, headers={}, body=b"fine")
POST = Request(method="POST", path="/v1/models/tiny", body=b"frame")


def deliver(*answers, timeout_s: float = 10.0, policy: RetryPolicy | None = None, seed: int = 7, clock=None):
    """Deliver against a script of answers; the last one repeats."""
    left = list(answers)
    transport = FunctionTransport(lambda request: left.pop(0) if len(left) > 1 else left[0])
    clock = clock or ManualClock()
    exchange = Exchange(
        transport, url=URL, timeout_s=timeout_s, retry=policy or RetryPolicy(), clock=clock, rng=random.Random(seed)
    )
    try:
        return asyncio.run(exchange.deliver(lambda _: POST)), transport, clock
    except errors.SplitInferenceError as raised:
        return raised, transport, clock


@pytest.mark.parametrize("status", [408, 429, 503])
def test_our_own_retriable_statuses_are_tried_again(status):
    delivered, transport, _ = deliver(error(status, "OverloadedError"), GOOD)
    assert delivered.response.body == b"fine"
    assert (delivered.attempts, len(transport.requests)) == (2, 2)


@pytest.mark.parametrize("status", [301, 400, 404, 500, 502, 503, 504])
def test_an_error_without_our_body_comes_from_a_proxy_and_is_tried_again(status):
    delivered, transport, _ = deliver(proxy_error(status), GOOD)
    assert delivered.attempts == len(transport.requests) == 2


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (400, "MalformedFrameError"),
        (404, "UnknownSplitPointError"),
        (409, "DigestMismatchError"),
        (413, "TooLargeError"),
        (415, "UnknownCodecError"),
        (422, "FeatureMismatchError"),
    ],
)
def test_our_own_refusals_are_raised_at_once_as_what_they_are(status, name):
    raised, transport, _ = deliver(error(status, name, "tensor 0 is odd"))
    assert type(raised) is getattr(errors, name)
    assert "tensor 0 is odd" in str(raised)
    assert len(transport.requests) == 1


def test_a_fault_of_the_server_in_its_own_words_is_not_tried_again():
    raised, transport, _ = deliver(error(500, "InternalError"))
    assert isinstance(raised, ServerError)
    assert (raised.status, raised.retriable, len(transport.requests)) == (500, False, 1)


def test_an_error_of_a_name_that_we_lack_is_a_server_error():
    raised, _, _ = deliver(error(418, "TeapotError", "short and stout"))
    assert isinstance(raised, ServerError)
    assert "TeapotError: short and stout" in str(raised)


def test_a_server_cannot_choose_any_class_of_ours():
    raised, _, _ = deliver(error(400, "annotations"))
    assert isinstance(raised, ServerError)


def test_a_reason_of_many_lines_becomes_one():
    raised, _, _ = deliver(error(422, "FeatureMismatchError", "one\ntwo\x1b[31m"))
    assert isinstance(raised, FeatureMismatchError)
    assert str(raised).isprintable()


def test_no_connection_is_tried_again():
    delivered, _, _ = deliver(ServerError("no connection", retriable=True), GOOD)
    assert delivered.attempts == 2


def test_attempts_are_bounded():
    raised, transport, clock = deliver(proxy_error(502), policy=RetryPolicy(attempts=3))
    assert isinstance(raised, ServerError)
    assert raised.status == 502
    assert (len(transport.requests), len(clock.slept_s)) == (3, 2)


def test_waits_are_jittered_below_a_doubling_bound():
    policy = RetryPolicy(attempts=6, base_s=0.1, cap_s=0.4)
    _, _, clock = deliver(proxy_error(502), policy=policy, timeout_s=100)
    for slept_s, bound_s in zip(clock.slept_s, [0.1, 0.2, 0.4, 0.4, 0.4], strict=True):
        assert 0 <= slept_s <= bound_s


def test_the_same_generator_gives_the_same_waits_and_another_gives_others():
    first, second, third = (deliver(proxy_error(502), seed=seed)[2].slept_s for seed in (1, 1, 2))
    assert first == second != third


def test_the_stated_wait_is_a_floor_with_jitter_on_top():
    _, _, clock = deliver(error(503, "OverloadedError", **{"retry-after": "1"}), GOOD)
    (slept_s,) = clock.slept_s
    assert 1.0 <= slept_s <= 1.1


def test_milliseconds_are_believed_before_whole_seconds():
    headers = {"retry-after": "1", "x-retry-after-ms": "40"}
    _, _, clock = deliver(error(503, "DeadlineError", **headers), GOOD)
    (slept_s,) = clock.slept_s
    assert 0.04 <= slept_s <= 0.14


@pytest.mark.parametrize("text", ["soon", "-1", "Fri, 20 Nov 2026 10:00:00 GMT", "9" * 400])
def test_a_stated_wait_that_is_no_number_counts_as_none(text):
    _, _, clock = deliver(error(503, "OverloadedError", **{"retry-after": text}), GOOD)
    assert clock.slept_s[0] <= 0.1


def test_a_wait_beyond_the_budget_is_not_begun():
    raised, transport, clock = deliver(error(503, "OverloadedError", **{"retry-after": "60"}), timeout_s=5)
    assert isinstance(raised, ServerError)
    assert (raised.status, len(transport.requests), clock.slept_s) == (503, 1, [])


def test_time_spent_on_attempts_is_taken_from_the_budget():
    clock = ManualClock()

    class Slow(FunctionTransport):
        async def send(self, request, *, timeout_s):
            self.timeouts_s.append(timeout_s)
            clock.time_s += min(timeout_s, 3.0)
            raise ServerError("too slow", retriable=True)

    transport = Slow(lambda request: GOOD)
    exchange = Exchange(transport, url=URL, timeout_s=5.0, retry=RetryPolicy(), clock=clock, rng=random.Random(0))
    with pytest.raises(ServerError):
        asyncio.run(exchange.deliver(lambda _: POST))
    assert transport.timeouts_s[0] == 5.0
    assert transport.timeouts_s[1] < 2.0
    assert clock.time_s <= 1000.0 + 5.0


def test_a_pause_that_overslept_the_budget_gives_the_failure_before_it():
    class LateClock(ManualClock):
        async def sleep(self, duration_s):
            await super().sleep(duration_s + 60.0)

    raised, transport, _ = deliver(proxy_error(502), clock=LateClock(), timeout_s=5.0)
    assert isinstance(raised, ServerError)
    assert (raised.status, len(transport.requests)) == (502, 1)


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"base_s": 0.0}, {"base_s": 3.0, "cap_s": 1.0}])
def test_a_policy_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=r"expected|at least"):
        RetryPolicy(**wrong)
