"""The stub's queue is the arithmetic that it claims to be: first come first served, c servers, a stall."""

from __future__ import annotations

import random

import pytest

from loadtests.stub_server import StubAnswers, StubBehaviour, StubQueue
from split_inference.errors import UsageError
from split_inference.wire import decode_reply
from tests.loadtests.helpers import payload_file


def simulate(arrivals, *, servers, service_s):
    """Waiting times by stepping through a queue of c servers, written another way than the stub's."""
    busy_until = [0.0] * servers
    for at in arrivals:
        server = min(range(servers), key=lambda index: busy_until[index])
        begin = max(at, busy_until[server])
        busy_until[server] = begin + service_s
        yield begin - at


def served(queue, at):
    times = queue.arrive(at)
    assert times is not None
    return times


@pytest.mark.parametrize("servers", [1, 2, 4])
def test_waiting_times_are_those_of_c_servers_and_one_queue(servers):
    rng = random.Random(3)
    queue = StubQueue(StubBehaviour(service_s=0.01, servers=servers))
    arrivals, at = [], 0.0
    for _ in range(2000):
        at += rng.expovariate(90 * servers)
        arrivals.append(at)
    times = [served(queue, at) for at in arrivals]
    waits = [begin - at for (begin, _), at in zip(times, arrivals, strict=True)]
    assert waits == pytest.approx(list(simulate(arrivals, servers=servers, service_s=0.01)))
    assert all(end - begin == pytest.approx(0.01) for begin, end in times)


def test_the_mean_wait_of_one_server_is_that_of_the_pollaczek_khinchine_formula():
    """M/D/1: rho * service / (2 * (1 - rho))."""
    rng = random.Random(5)
    queue = StubQueue(StubBehaviour(service_s=0.01))
    at, total, count = 0.0, 0.0, 200_000
    for _ in range(count):
        at += rng.expovariate(70)
        begin, _ = served(queue, at)
        total += begin - at
    assert total / count == pytest.approx(0.7 * 0.01 / (2 * 0.3), rel=0.05)


def test_nothing_goes_on_during_a_stall():
    queue = StubQueue(StubBehaviour(service_s=0.01, stall_at_s=1.0, stall_s=1.0))
    assert served(queue, 0.5) == pytest.approx((0.5, 0.51))
    assert served(queue, 0.995)[1] == pytest.approx(2.005)
    assert served(queue, 1.5)[0] == pytest.approx(2.005)
    assert served(queue, 3.0) == pytest.approx((3.0, 3.01))
    fresh = StubQueue(StubBehaviour(service_s=0.01, stall_at_s=1.0, stall_s=1.0))
    assert served(fresh, 1.2) == pytest.approx((2.0, 2.01))


def test_a_full_queue_refuses():
    queue = StubQueue(StubBehaviour(service_s=1.0, queue_limit=2))
    assert [queue.arrive(0.1 * number) is None for number in range(4)] == [False, False, False, True]
    assert queue.arrive(1.1) is not None


def test_replies_hold_the_right_class_and_the_times(tmp_path):
    with payload_file(tmp_path, inputs=3) as file:
        answers = StubAnswers([file])
        for index, right in enumerate(file.header.options[0].answer):
            answer = answers.answer("stub", file.body(0, index))
            assert answer is not None
            assert answer == right
            reply = decode_reply(answers.reply("stub", answer, queue_s=0.25, service_s=0.5))
            assert reply.predictions is not None
            assert reply.predictions[0][0].index == right
            assert reply.timings_s["queue"] == 0.25
            assert reply.timings_s["total"] == 0.75
        assert answers.answer("other", file.body(0, 0)) is None
        assert answers.answer("stub", b"unknown") is None


def test_impossible_behaviour_is_refused():
    for wrong in ({"service_s": -1.0}, {"servers": 0}):
        with pytest.raises(UsageError):
            StubBehaviour(**wrong)
