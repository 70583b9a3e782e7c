"""Answers of a known server give back what it is: batches, overhead, capacity, and what lies between two batches."""

from __future__ import annotations

import asyncio
import functools
import math
import random
from types import SimpleNamespace
from typing import Any

import pytest

from edge_sim.arrivals import poisson_s
from edge_sim.calibrate_server import CLOSED, LEAD_S, OPEN, Sample, capacity_per_s, measure, profile_of, turnaround_s
from edge_sim.fleet_server import Ask, Served
from edge_sim.server_model import ServerModel
from edge_sim.server_profile import ServerProfile
from edge_sim.transport import Response
from edge_sim.virtual_clock import VirtualClock
from split_inference.errors import ServerError
from split_inference.wire import FRAME_MEDIA_TYPE, Prediction, ReplyFrame, encode_reply

OVERHEAD_S = 0.002
DECODE_S = 0.0002
SECONDS = 20.0


def server(turnaround):
    return ServerProfile.model_validate(
        {
            "source": "assumed",
            "overhead_s": [OVERHEAD_S],
            "batch_s": {"*": {1: [0.024], 16: [0.084]}},
            "decode_s": DECODE_S,
            "lead_s": LEAD_S,
            "turnaround_s": turnaround,
        }
    )


def ask(profile, *, share, rate_per_s, seed):
    """What measuring this server at Poisson moments would see."""
    clock = VirtualClock()
    model = ServerModel(profile, clock, seed="real", reply_bytes=1)
    samples = []

    async def one(at_s):
        await clock.sleep_until(at_s)
        served = await model.infer(Ask(0, "*", 0, 1, 0, False), until_s=math.inf)
        assert isinstance(served, Served)
        total_s = clock.now_s() - at_s
        # The server says the queue without the way to it; half of the overhead lies before it, half behind. Decoding is
        # the end of the queue, or where an idle server decodes first, the beginning of the batch.
        rows = served.batch_samples
        decode_s = rows * DECODE_S
        tail_s = profile.batch_s["*"][1][0] + (rows - 1) * 0.004
        queue_s = total_s - OVERHEAD_S - tail_s - decode_s
        samples.append(Sample(share, rate_per_s, total_s, queue_s, decode_s, tail_s, rows))

    for at_s in poisson_s(random.Random(seed), rate_per_s=rate_per_s, until_s=SECONDS):
        clock.start(one(at_s))
    clock.run()
    return samples


@functools.cache
def measured(turnaround, *, seed=1):
    capacity = 16 / (0.084 + turnaround)
    return [
        sample
        for share in OPEN
        for sample in ask(server(turnaround), share=share, rate_per_s=share * capacity, seed=seed)
    ]


@pytest.mark.parametrize("turnaround", [0.004, 0.02, 0.15])
def test_a_turnaround_is_found_again(turnaround):
    found = profile_of(measured(turnaround), split_point="*", source="test")
    assert found.turnaround_s == pytest.approx(turnaround, rel=0.3, abs=0.001)
    for quantiles in found.overhead_s.values():
        assert quantiles == pytest.approx([OVERHEAD_S] * len(quantiles))
    assert found.batch_s["*"][1] == pytest.approx([0.024] * len(found.batch_s["*"][1]))
    assert found.decode_s == pytest.approx(DECODE_S)


def test_answers_of_larger_batches_that_take_longer_are_told_apart():
    samples = [each._replace(total_s=each.total_s + 0.001 * (each.samples - 1)) for each in measured(0.004)]
    found = profile_of(samples, split_point="*", source="test")
    assert len(found.overhead_s) > 2
    for rows, quantiles in found.overhead_s.items():
        assert quantiles == pytest.approx([OVERHEAD_S + 0.001 * (rows - 1)] * len(quantiles))


def test_a_server_without_a_turnaround_has_at_most_a_trace_of_one():
    assert profile_of(measured(0.0), split_point="*", source="test").turnaround_s < 0.0015


def test_the_slower_the_server_the_longer_the_turnaround():
    base = server(0.0)
    samples = [each for each in measured(0.004) if each.share == 0.6]
    slower = [sample._replace(total_s=1.2 * sample.total_s) for sample in samples]
    assert turnaround_s(base, slower) > turnaround_s(base, samples) > 0


def test_levels_that_leave_the_server_idle_say_nothing_of_it():
    assert turnaround_s(server(0.0), [each for each in measured(0.01) if each.share < 0.5]) == 0.0


def test_the_capacity_is_the_best_closed_loop_and_what_was_under_way_at_its_end_does_not_count():
    samples = []
    for asking, batch_s in zip(CLOSED, (0.5, 0.4), strict=True):
        # Batches of 16, one after the other; those that end after two seconds were asked before.
        ends_s = [batch_s * (number + 1) for number in range(5)]
        samples += [Sample(0.0, asking, 0.1, 0.0, 0.0, 0.1, 16, ended_s) for ended_s in ends_s for _ in range(16)]
    assert capacity_per_s([*samples, *measured(0.0)], seconds=2.0) == pytest.approx(16 / 0.4)
    assert capacity_per_s(samples[:1], seconds=2.0) == 0.0


def test_a_capacity_of_few_batches_counts_none_that_lies_before_its_time():
    # Three batches of 16 in 0.3 s, whose answers come a millisecond apart: two of them fill the time that is counted.
    samples = [
        Sample(0.0, 32, 0.3, 0.0, 0.0, 0.3, 16, 0.3 * (batch + 1) + 0.001 * place)
        for batch in range(3)
        for place in range(16)
    ]
    assert capacity_per_s(samples, seconds=2.0) == pytest.approx(16 / 0.3)
    two_replicas = [each for sample in samples for each in (sample, sample._replace(ended_s=sample.ended_s + 0.0001))]
    assert capacity_per_s(two_replicas, seconds=2.0) == pytest.approx(32 / 0.3)


def test_too_few_answers_are_refused():
    with pytest.raises(ServerError, match="too few answers"):
        profile_of([], split_point="*", source="test")


class BreakingTransport:
    """Answers after 5 ms; of each `every` requests the last one finds its connection closed."""

    def __init__(self, *, every):
        self.every, self.asked, self.broke = every, 0, 0

    async def send(self, request, *, timeout_s):
        self.asked += 1
        if self.asked % self.every == 0:
            self.broke += 1
            raise ServerError("the connection broke off", retriable=True)
        await asyncio.sleep(0.005)
        timings_s = {"queue": 0.0, "decode": 0.0, "tail": 0.004}
        body = encode_reply(
            ReplyFrame(
                model_digest=bytes(16),
                sample_count=1,
                timings_s=timings_s,
                predictions=((Prediction(index=0, label="cat", score=1.0),),),
                logits=None,
            )
        )
        return Response(status=200, headers={"server-timing": "batch;desc=1"}, body=body)

    async def close(self):
        pass


PAYLOADS: Any = SimpleNamespace(
    header=SimpleNamespace(
        options=[SimpleNamespace(media_type=FRAME_MEDIA_TYPE, mode="split")],
        inputs=["one"],
        model=SimpleNamespace(digest="ab" * 32, name="toy"),
    ),
    body=lambda option, index: b"frame",
)


async def test_a_connection_that_was_closed_while_idle_is_no_reason_to_give_up():
    transport = BreakingTransport(every=7)
    samples = await measure(transport, PAYLOADS, option=0, seconds=0.02)
    assert transport.broke > 10
    assert {each.share for each in samples} == {0.0, *OPEN}
    assert max(each.batch_s for each in samples) == pytest.approx(0.004)


async def test_a_server_that_is_gone_is():
    with pytest.raises(ServerError, match="broke off"):
        await measure(BreakingTransport(every=1), PAYLOADS, option=0, seconds=0.02)
