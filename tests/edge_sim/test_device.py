"""A processor does one job at a time, conserves work, slows down when hot and not before, and cools."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sim.device import Device

JOBS = st.lists(st.tuples(st.floats(0, 5), st.floats(0.001, 3)), min_size=1, max_size=40)


def run(device, jobs):
    now_s, spans = 0.0, []
    for pause_s, seconds in jobs:
        now_s += pause_s
        expected_s = device.would_end_s(now_s, seconds)
        span = device.compute(now_s, seconds)
        assert span[1] == expected_s
        spans.append((now_s, seconds, *span))
    return spans


@given(JOBS, st.floats(0.5, 20), st.floats(0.1, 1))
def test_jobs_are_one_after_the_other_and_none_is_faster_than_full_or_slower_than_sustained_speed(jobs, after_s, speed):
    free_s = 0.0
    for now_s, seconds, start_s, end_s in run(Device(sustained_after_s=after_s, sustained_speed=speed), jobs):
        assert start_s == max(now_s, free_s)
        assert seconds - 1e-9 <= end_s - start_s <= seconds / speed + 1e-9
        free_s = end_s


@given(JOBS)
def test_a_device_that_never_slows_down_takes_what_was_asked(jobs):
    for _, seconds, start_s, end_s in run(Device(), jobs):
        assert end_s - start_s == pytest.approx(seconds)


def test_it_slows_down_after_the_stated_load_and_not_before():
    device = Device(sustained_after_s=10, sustained_speed=0.5)
    assert device.compute(0, 10) == (0, 10)
    assert device.speed(10) == 0.5
    assert device.compute(10, 1) == (10, 12)


def test_a_job_that_crosses_the_limit_is_fast_before_and_slow_behind_it():
    assert Device(sustained_after_s=10, sustained_speed=0.5).compute(0, 12) == (0, 14)


def test_it_cools_while_it_rests():
    device = Device(sustained_after_s=10, sustained_speed=0.5)
    device.compute(0, 10)
    assert device.speed(14.9) == 0.5
    assert device.speed(15.1) == 1.0


def test_load_with_rests_never_gets_hot():
    device = Device(sustained_after_s=10, sustained_speed=0.5)
    for number in range(1000):
        assert device.compute(2.0 * number, 1.0) == (2.0 * number, 2.0 * number + 1.0)


@pytest.mark.parametrize("wrong", [{"sustained_speed": 0}, {"sustained_speed": 1.1}, {"sustained_after_s": 0}])
def test_impossible_devices_are_refused(wrong):
    with pytest.raises(ValueError, match="sustained_speed"):
        Device(**wrong)
