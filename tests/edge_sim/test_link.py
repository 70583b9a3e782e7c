"""Bottlenecks and links: hand-computed times, and what has to hold for any sequence of messages."""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sim.link import PACKET_HEADER_BYTES, PACKET_PAYLOAD_BYTES, Bottleneck, Link
from edge_sim.rates import MarkovRate, RateState
from edge_sim.traces import BYTES_PER_OPPORTUNITY, Trace

TIMES_MS = [0, 2, 2, 3, 10, 25, 25, 40]
STATES = [RateState(0.5, 0.02), RateState(8.0, 0.05), RateState(0.0, 0.01)]

gaps_s = st.one_of(st.just(0.0), st.floats(0, 0.05), st.integers(0, 40).map(lambda ms: ms / 1000))
messages = st.lists(st.tuples(gaps_s, st.integers(1, 20_000)), min_size=1, max_size=30)
outages = st.lists(st.tuples(st.floats(0, 0.5), st.floats(0.001, 0.2)), max_size=4)
rates = st.sampled_from(["constant", "trace", "markov"])


def bottleneck(kind: str) -> Bottleneck:
    rate: dict[str, float | Trace | MarkovRate] = {
        "constant": 2.5,
        "trace": Trace(TIMES_MS),
        "markov": MarkovRate(STATES, seed=5),
    }
    return Bottleneck(rate[kind])


def at_times(gaps_and_sizes):
    now_s = 0.0
    for gap_s, size_bytes in gaps_and_sizes:
        now_s += gap_s
        yield now_s, size_bytes


def mahimahi(times_ms, arrivals, down=()):
    """Departures by the loop in Mahimahi's link_queue.cc: each opportunity serves whoever waits, to its last byte."""
    waiting = [[now_s, size_bytes] for now_s, size_bytes in arrivals]
    departures: list[float] = []
    loop = 0
    while waiting:
        for ms in times_ms:
            moment_s = (loop * times_ms[-1] + ms) / 1000
            left = 0 if any(from_s <= moment_s < until_s for from_s, until_s in down) else BYTES_PER_OPPORTUNITY
            while left and waiting and waiting[0][0] <= moment_s:
                used = min(left, waiting[0][1])
                left -= used
                waiting[0][1] -= used
                if not waiting[0][1]:
                    departures.append(moment_s)
                    waiting.pop(0)
        loop += 1
    return departures


def test_two_messages_on_a_constant_link_take_the_times_computed_by_hand():
    # 1 MB/s and 20 ms: the second waits 0.4 s for the first.
    link = Link(Bottleneck(8.0), Bottleneck(8.0), propagation_s=0.02, overhead_bytes=0)
    assert link.deliver_up(0.0, 500_000) == (0.0, 0.5, 0.02, 0.0, 0.52)
    second = link.deliver_up(0.1, 500_000)
    assert second.queued_s == pytest.approx(0.4)
    assert second.arrives_at_s == pytest.approx(1.02)
    assert link.deliver_down(0.52, 1000).arrives_at_s == pytest.approx(0.541)


def test_headers_are_counted_for_each_message_and_each_packet():
    link = Link(Bottleneck(8.0), Bottleneck(8.0), overhead_bytes=300)
    on_the_wire = 1_448 - 300
    assert link.deliver_up(0.0, on_the_wire).transmission_s == (PACKET_PAYLOAD_BYTES + PACKET_HEADER_BYTES) * 8 / 8e6
    assert link.deliver_up(1.0, on_the_wire + 1).transmission_s == (1449 + 2 * PACKET_HEADER_BYTES) * 8 / 8e6


def test_devices_in_one_cell_wait_for_each_other():
    cell, down = Bottleneck(8.0), Bottleneck(8.0)
    near = Link(cell, down, propagation_s=0.01, overhead_bytes=0)
    far = Link(cell, down, propagation_s=0.05, overhead_bytes=0)
    assert near.deliver_up(0.0, 1_000_000).arrives_at_s == 1.01
    delivery = far.deliver_up(0.5, 1_000_000)
    assert (delivery.queued_s, delivery.arrives_at_s) == (0.5, 2.05)


@given(rates, messages, outages)
def test_messages_leave_one_after_the_other(kind, sent, down):
    line = bottleneck(kind)
    for from_s, length_s in down:
        line.add_outage(from_s, from_s + length_s)
    end_s = 0.0
    for now_s, size_bytes in at_times(sent):
        start_s, next_end_s, transmission_s = line.send(now_s, size_bytes)
        assert start_s >= max(now_s, end_s)
        assert start_s == max(now_s, end_s) or line.is_down(max(now_s, end_s))
        assert next_end_s >= start_s
        assert transmission_s == pytest.approx(next_end_s - start_s, abs=1e-12)
        end_s = next_end_s
        assert line.busy_until_s == end_s


@given(messages)
def test_a_trace_serves_messages_as_mahimahi_does(sent):
    arrivals = list(at_times(sent))
    line = Bottleneck(Trace(TIMES_MS))
    assert [line.send(*arrival).end_s for arrival in arrivals] == mahimahi(TIMES_MS, arrivals)


@given(messages, outages)
def test_opportunities_in_an_outage_are_lost(sent, down):
    arrivals = list(at_times(sent))
    windows = [(from_s, from_s + length_s) for from_s, length_s in down]
    line = Bottleneck(Trace(TIMES_MS))
    for window in windows:
        line.add_outage(*window)
    assert [line.send(*arrival).end_s for arrival in arrivals] == mahimahi(TIMES_MS, arrivals, windows)


@given(messages, st.floats(0, 0.5), st.floats(0, 0.5))
def test_no_more_leaves_than_the_opportunities_between_two_times(sent, one_s, other_s):
    from_s, until_s = sorted((one_s, other_s))
    trace = Trace(TIMES_MS)
    line = Bottleneck(trace)
    inside = 0
    for now_s, size_bytes in at_times(sent):
        start_s, end_s, _ = line.send(now_s, size_bytes)
        inside += size_bytes if from_s <= start_s and end_s <= until_s else 0
    after = trace.first_opportunity(math.nextafter(until_s, math.inf))
    assert inside <= (after - trace.first_opportunity(from_s)) * BYTES_PER_OPPORTUNITY


@given(messages, outages)
def test_a_constant_link_carries_its_rate_outside_outages(sent, down):
    line = Bottleneck(2.5)
    for from_s, length_s in down:
        line.add_outage(from_s, from_s + length_s)
    edges = sorted({edge for from_s, length_s in down for edge in (from_s, from_s + length_s)})
    for now_s, size_bytes in at_times(sent):
        start_s, end_s, _ = line.send(now_s, size_bytes)
        cuts = [start_s, *(edge for edge in edges if start_s < edge < end_s), end_s]
        pieces = pairwise(cuts)
        up_s = sum(until_s - from_s for from_s, until_s in pieces if not line.is_down((from_s + until_s) / 2))
        assert up_s * 2.5e6 / 8 == pytest.approx(size_bytes, rel=1e-6)


@given(messages, st.sampled_from([1.1, 5.85, 18.88, 3.0]))
def test_half_the_rate_doubles_each_transmission_exactly(sent, rate):
    full, half = (Link(Bottleneck(each), Bottleneck(each)) for each in (rate, rate / 2))
    for now_s, size_bytes in at_times(sent):
        assert (
            half.deliver_up(now_s, size_bytes).transmission_s == 2 * full.deliver_up(now_s, size_bytes).transmission_s
        )


@given(messages)
def test_a_trace_at_half_speed_doubles_each_time_exactly(sent):
    full, half = Bottleneck(Trace(TIMES_MS)), Bottleneck(Trace(TIMES_MS).scaled(2))
    for now_s, size_bytes in at_times(sent):
        assert half.send(2 * now_s, size_bytes) == tuple(2 * part for part in full.send(now_s, size_bytes))


@given(rates, messages, st.integers(0, 3))
def test_the_same_seed_gives_the_same_deliveries_and_the_parts_sum_up(kind, sent, seed):
    def link():
        return Link(
            bottleneck(kind),
            Bottleneck(10.0),
            propagation_s=0.02,
            jitter_s=0.03,
            loss=0.05,
            overhead_bytes=10,
            seed=seed,
        )

    one, other = link(), link()
    arrived_s = 0.0
    for now_s, size_bytes in at_times(sent):
        delivery = one.deliver_up(now_s, size_bytes)
        assert delivery == other.deliver_up(now_s, size_bytes)
        assert min(delivery) >= 0
        assert sum(delivery[:4]) == pytest.approx(delivery.arrives_at_s - now_s, abs=1e-9)
        assert delivery.propagation_s >= 0.02
        # Jitter and retransmissions never let one message overtake another.
        assert delivery.arrives_at_s >= arrived_s
        arrived_s = delivery.arrives_at_s


def test_another_seed_gives_other_jitter_and_the_two_ways_differ():
    def delays(seed, way):
        link = Link(Bottleneck(100.0), Bottleneck(100.0), jitter_s=0.01, seed=seed)
        return [getattr(link, way)(second, 100).propagation_s for second in range(200)]

    up = delays(1, "deliver_up")
    assert up != delays(2, "deliver_up")
    assert up != delays(1, "deliver_down")
    # Mean and standard deviation of an exponential are equal: four standard errors of 200 draws.
    assert sum(up) / 200 == pytest.approx(0.01, abs=4 * 0.01 / math.sqrt(200))


def test_losses_do_not_change_the_jitter():
    def delays(loss):
        link = Link(Bottleneck(100.0), Bottleneck(100.0), jitter_s=0.001, loss=loss, seed=1)
        return [link.deliver_up(second, 100).propagation_s for second in range(50)]

    assert delays(0.0) == delays(0.3)


def test_each_lost_packet_costs_one_retransmission():
    link = Link(Bottleneck(1000.0), Bottleneck(1000.0), propagation_s=0.025, loss=0.1, overhead_bytes=0, seed=3)
    waits = [link.deliver_up(100.0 * n, 10 * BYTES_PER_OPPORTUNITY).retransmission_s for n in range(4000)]
    losses = [round(wait / 0.05) for wait in waits]
    assert all(wait == pytest.approx(count * 0.05) for wait, count in zip(waits, losses, strict=True))
    # Negative binomial: 10 packets, each lost 0.1 / 0.9 times on average with variance 0.1 / 0.81.
    assert sum(losses) / 4000 == pytest.approx(10 / 9, abs=4 * math.sqrt(10 * 0.1 / 0.81 / 4000))
    stated = Link(Bottleneck(1000.0), Bottleneck(1000.0), loss=0.5, retransmission_s=0.2, seed=3)
    assert {round(stated.deliver_up(100.0 * n, 10).retransmission_s / 0.2, 6) % 1 for n in range(50)} == {0}


def test_an_outage_suspends_what_is_leaving():
    line = Bottleneck(8.0)
    line.add_outage(0.5, 2.5)
    assert line.send(0.0, 1_000_000) == (0.0, 3.0, 3.0)
    later = Bottleneck(8.0)
    later.add_outage(0.5, 2.5)
    assert later.send(1.0, 1_000_000) == (2.5, 3.5, 1.0)
    assert [later.is_down(moment) for moment in (0.4, 0.5, 2.4, 2.5)] == [False, True, True, False]


def test_outages_that_touch_are_one():
    line = Bottleneck(8.0)
    for window in ((4.0, 5.0), (1.0, 2.0), (2.0, 3.0), (1.5, 2.5)):
        line.add_outage(*window)
    assert line.send(1.5, 1000).start_s == 3.0
    assert line.send(3.5, 1_000_000).end_s == 5.5


def test_an_outage_of_a_link_is_one_of_both_ways():
    link = Link(Bottleneck(8.0), Bottleneck(8.0), overhead_bytes=0)
    link.add_outage(1.0, 2.0)
    assert (link.is_down(0.5), link.is_down(1.5)) == (False, True)
    assert link.deliver_up(1.0, 1000).queued_s == 1.0
    assert link.deliver_down(1.5, 1000).queued_s == 0.5


@pytest.mark.parametrize("wrong", [(2.0, 1.0), (1.0, 1.0), (-1.0, 1.0), (0.0, math.inf), (math.nan, 1.0)])
def test_an_outage_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match="an outage ends after it begins"):
        Bottleneck(1.0).add_outage(*wrong)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.inf, math.nan])
def test_a_rate_that_makes_no_sense_is_refused(rate):
    with pytest.raises(ValueError, match="positive and finite"):
        Bottleneck(rate)


@pytest.mark.parametrize(("now_s", "size_bytes"), [(0.9, 1), (math.nan, 1), (math.inf, 1), (2.0, 0), (2.0, -5)])
def test_going_back_in_time_or_sending_nothing_is_refused(now_s, size_bytes):
    line = Bottleneck(1.0)
    line.send(1.0, 1)
    with pytest.raises(ValueError, match="expected at least 1 byte, at 1"):
        line.send(now_s, size_bytes)


@pytest.mark.parametrize(
    "wrong",
    [{"loss": 1.0}, {"loss": -0.1}, {"jitter_s": -1.0}, {"propagation_s": math.inf}, {"overhead_bytes": -1}],
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Link(Bottleneck(1.0), Bottleneck(1.0), **wrong)


@given(messages, st.integers(0, 5))
def test_a_markov_rate_depends_on_its_seed_and_not_on_the_questions(sent, seed):
    asked, fresh = (MarkovRate(STATES, seed=seed) for _ in range(2))
    line = Bottleneck(asked)
    for now_s, size_bytes in at_times(sent):
        line.send(now_s, size_bytes)
    moments = [n * 0.0173 for n in range(60)]
    assert [asked.rate_at(moment) for moment in reversed(moments)][::-1] == [
        fresh.rate_at(moment) for moment in moments
    ]


@given(messages)
def test_a_markov_rate_carries_what_its_states_say(sent):
    line, path = Bottleneck(MarkovRate(STATES, seed=5)), MarkovRate(STATES, seed=5)
    path.rate_at(100.0)
    for now_s, size_bytes in at_times(sent):
        start_s, end_s, _ = line.send(now_s, size_bytes)
        first, last = (bisect_right(path._times_s, moment) for moment in (start_s, end_s))
        cuts = [start_s, *path._times_s[first:last], end_s]
        carried = sum((b - a) * path.rate_at((a + b) / 2) * 1e6 / 8 for a, b in pairwise(cuts))
        assert carried == pytest.approx(size_bytes, rel=1e-6)


def test_a_markov_rate_has_its_mean_in_the_long_run():
    rate = MarkovRate([RateState(2.0, 1.0), RateState(8.0, 3.0)], seed=1)
    assert rate.mean_megabits_per_s == 6.5
    assert Bottleneck(rate).send(0.0, 10**9).transmission_s == pytest.approx(8e9 / 6.5e6, rel=0.05)


@pytest.mark.parametrize(
    "states", [[], [RateState(0.0, 1.0)], [RateState(1.0, 0.0)], [RateState(-1.0, 1.0), RateState(1.0, 1.0)]]
)
def test_states_that_carry_nothing_are_refused(states):
    with pytest.raises(ValueError, match=r"states|megabits_per_s"):
        MarkovRate(states, seed=0)
