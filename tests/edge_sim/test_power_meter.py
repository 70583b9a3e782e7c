"""Joules of requests: linear in time, and a tail is paid for once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sim.policy import View
from edge_sim.power_meter import Power, PowerMeter

POWER = Power(compute_w=5, idle_w=1, radio_base_w=2, radio_w_per_mbit_s=0.5, tail_s=10, tail_w=0.7)


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0.01, 5)), min_size=1, max_size=30))
def test_tails_are_the_time_that_the_radio_is_awake_and_does_not_send(transfers):
    meter, start_s, sending_s, awake_s, end_s = PowerMeter(POWER), 0.0, 0.0, 0.0, None
    spans = []
    for pause_s, seconds in transfers:
        start_s = (end_s or 0.0) + pause_s
        end_s = start_s + seconds
        spans.append((start_s, end_s))
        meter.send(start_s, seconds, 0)
        sending_s += seconds
    for (_, ended_s), following in zip(spans, [*spans[1:], None], strict=True):
        awake_s += min(POWER.tail_s, following[0] - ended_s if following else POWER.tail_s)
    assert meter.spent_j == pytest.approx(POWER.radio_base_w * sending_s + POWER.tail_w * awake_s)


def test_sends_that_overlap_pay_for_one_radio():
    meter = PowerMeter(POWER)
    meter.send(0, 4, 0)
    assert meter.send(1, 2, 125_000) == pytest.approx(POWER.radio_w_per_mbit_s)
    meter.send(3, 3, 0)
    assert meter.spent_j == pytest.approx(POWER.radio_base_w * 6 + POWER.radio_w_per_mbit_s + POWER.tail_w * 10)


def test_what_a_policy_hears_of_the_tail_is_what_a_transfer_then_adds():
    meter, view = PowerMeter(POWER), View()
    meter.send(0, 1, 0)
    meter.fill(view, now_s=5.0)
    joules = meter.send(5.0, 0.001, 0)
    assert view.tail_j == pytest.approx(joules - POWER.radio_base_w * 0.001, abs=1e-2)


def test_a_battery_is_empty_when_it_has_given_all():
    meter = PowerMeter(POWER, battery_j=10)
    meter.compute(0, 1)
    assert (meter.battery_share(1), meter.is_empty(1)) == (0.5, False)
    meter.idle(1, 6)
    assert (meter.battery_share(6), meter.is_empty(6)) == (0.0, True)
    assert not PowerMeter(POWER).is_empty(1e9)


def test_a_battery_gives_for_waiting_between_requests_too():
    meter = PowerMeter(POWER, battery_j=10)
    assert (meter.is_empty(9.9), meter.is_empty(10.0)) == (False, True)
    meter.compute(0, 1)
    assert meter.battery_share(3.5) == pytest.approx(0.25)
    assert (meter.is_empty(5.9), meter.is_empty(6.0)) == (False, True)
    meter.idle(0, 6)
    assert meter.spent_j == pytest.approx(10)
    assert (meter.is_empty(6.0), meter.battery_share(6.0)) == (True, 0.0)


@pytest.mark.parametrize("first", ["compute", "send"])
def test_what_a_device_takes_for_idling_is_paid_once_while_it_computes_and_sends(first):
    meter = PowerMeter(POWER)
    parts = {"compute": lambda: meter.compute(1, 2), "send": lambda: meter.send(2, 4, 0)}
    parts.pop(first)()
    parts.popitem()[1]()
    once = POWER.compute_w * 2 + POWER.radio_base_w * 4 + POWER.tail_w * POWER.tail_s - POWER.idle_w * 1
    assert meter.spent_j == pytest.approx(once)


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 60), st.integers(0, 20)),
        min_size=1,
        max_size=30,
    )
)
def test_waiting_is_paid_once_and_only_where_the_device_does_nothing_else(spans):
    """In whole seconds, so that a set of them is the other way to count."""
    meter = PowerMeter(POWER)
    paid: set[int] = set()
    for is_idle, start, length in spans:
        seconds = set(range(start, start + length))
        if is_idle:
            assert meter.idle(start, start + length) == pytest.approx(POWER.idle_w * len(seconds - paid))
        else:
            meter.compute(start, length)
        paid |= seconds


def test_a_device_that_is_never_idle_pays_for_no_waiting():
    meter = PowerMeter(POWER)
    for number in range(2000):
        meter.compute(number, 1)
        assert meter.idle(max(0, number - 3), number + 1) == 0.0
