"""What a device believes about its bandwidth."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sim.bandwidth import BandwidthEstimate
from edge_sim.link import Bottleneck


def test_nothing_is_known_before_the_first_transfer():
    estimate = BandwidthEstimate()
    assert estimate.megabits_per_s is None
    assert estimate.transfer_s(1000) is None
    estimate.observe(now_s=1.0, size_bytes=1000, duration_s=0.0)
    assert estimate.megabits_per_s is None


@given(st.lists(st.tuples(st.floats(0, 1000), st.integers(1, 100_000)), min_size=1, max_size=20))
def test_on_a_constant_link_the_estimate_is_its_rate_however_long_it_idles(sent):
    line, estimate = Bottleneck(5.85), BandwidthEstimate()
    now_s = 0.0
    for idle_s, size_bytes in sent:
        now_s += idle_s
        done = line.send(now_s, size_bytes)
        estimate.observe(now_s=done.end_s, size_bytes=size_bytes, duration_s=done.transmission_s)
        now_s = done.end_s
        assert estimate.megabits_per_s == pytest.approx(5.85)
    assert estimate.transfer_s(5_850_000 // 8) == pytest.approx(1.0)


def test_an_old_transfer_counts_half_after_each_half_life():
    estimate = BandwidthEstimate(half_life_s=10.0)
    estimate.observe(now_s=0.0, size_bytes=1_000_000, duration_s=1.0)
    estimate.observe(now_s=10.0, size_bytes=250_000, duration_s=1.0)
    assert estimate.megabits_per_s == pytest.approx((0.5 * 8 + 2) / 1.5)
    assert BandwidthEstimate().megabits_per_s is None


def test_idle_time_keeps_the_estimate_and_the_next_transfer_replaces_it():
    estimate = BandwidthEstimate()
    estimate.observe(now_s=0.0, size_bytes=1_000_000, duration_s=1.0)
    estimate.observe(now_s=1e6, size_bytes=125_000, duration_s=1.0)
    assert estimate.megabits_per_s == pytest.approx(1.0)


def test_a_transfer_given_up_in_a_hole_counts_against_the_rate():
    estimate = BandwidthEstimate()
    estimate.observe(now_s=0.0, size_bytes=0, duration_s=2.0)
    assert estimate.megabits_per_s == 0.0
    assert estimate.transfer_s(1) == float("inf")


@pytest.mark.parametrize("wrong", [{"now_s": 0.5}, {"size_bytes": -1}, {"duration_s": -1.0}, {"now_s": float("nan")}])
def test_what_cannot_have_happened_is_refused(wrong):
    estimate = BandwidthEstimate()
    estimate.observe(now_s=1.0, size_bytes=1, duration_s=1.0)
    with pytest.raises(ValueError, match="expected 0 bytes or more"):
        estimate.observe(**{"now_s": 2.0, "size_bytes": 1, "duration_s": 1.0} | wrong)
    with pytest.raises(ValueError, match="half_life_s"):
        BandwidthEstimate(half_life_s=0.0)
