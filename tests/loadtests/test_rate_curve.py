"""Rates over a run, their integral and its inverse."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests.rate_curve import Piece, RateCurve, bursts, constant, diurnal, ramp, steps
from split_inference.errors import UsageError

pieces = st.lists(st.builds(Piece, st.floats(0.1, 100), st.floats(0, 1000), st.floats(0, 1000)), min_size=1, max_size=8)


@settings(max_examples=200)
@given(pieces)
def test_when_is_the_inverse_of_expected(parts):
    if sum(part.from_per_s + part.to_per_s for part in parts) == 0:
        return
    curve = RateCurve(parts)
    expected = np.linspace(0, curve.total, 101)
    when = curve.when(expected)
    assert (np.diff(when) >= -1e-9).all()
    assert when.min() >= 0
    assert when.max() <= curve.duration_s + 1e-9
    np.testing.assert_allclose(curve.expected(when), expected, atol=1e-6 * max(1, curve.total))


@settings(max_examples=50)
@given(pieces, st.floats(0.01, 0.99))
def test_expected_grows_at_the_rate(parts, share):
    if sum(part.from_per_s + part.to_per_s for part in parts) == 0:
        return
    curve = RateCurve(parts)
    begin_s = 0.0
    for part in parts:
        at_s, width_s = begin_s + share * part.duration_s, part.duration_s * 1e-3
        before, after = curve.expected(np.array([at_s - width_s, at_s + width_s]))
        assert (after - before) / (2 * width_s) == pytest.approx(curve.rate_per_s(at_s), abs=1e-3)
        begin_s += part.duration_s


def test_named_curves_have_the_rates_that_their_names_say():
    assert constant(5, 10).total == 50
    assert ramp(0, 100, 10).rate_per_s(5) == 50
    up = steps(10, 40, count=4, step_s=2)
    assert [up.rate_per_s(at) for at in (0, 2, 4, 6)] == [10, 20, 30, 40]
    onoff = bursts(5, 50, on_s=2, off_s=3, duration_s=11)
    assert [onoff.rate_per_s(at) for at in (1, 4, 6, 9, 10.5)] == [5, 50, 5, 50, 5]
    assert onoff.duration_s == pytest.approx(11)


def test_a_day_has_its_mean_its_low_at_its_start_and_its_high_at_its_middle():
    day = diurnal(100, swing=0.8, day_s=240, duration_s=240)
    assert day.mean_per_s == pytest.approx(100, rel=1e-3)
    assert day.rate_per_s(0) == pytest.approx(20)
    assert day.rate_per_s(120) == pytest.approx(180)
    worst = max(abs(day.rate_per_s(t) - 100 * (1 - 0.8 * math.cos(2 * math.pi * t / 240))) for t in range(240))
    assert worst < 0.003 * 100


def test_a_run_may_end_within_a_day():
    assert diurnal(100, swing=0.5, day_s=240, duration_s=95).duration_s == pytest.approx(95)


@pytest.mark.parametrize(
    "make",
    [
        lambda: constant(-1, 10),
        lambda: constant(math.nan, 10),
        lambda: constant(0, 10),
        lambda: constant(5, 0),
        lambda: constant(5, math.inf),
        lambda: constant(1e9, 10),
        lambda: steps(1, 2, count=0, step_s=1),
        lambda: bursts(1, 2, on_s=0, off_s=1, duration_s=10),
        lambda: bursts(1, 2, on_s=1e-9, off_s=1e-9, duration_s=1000),
        lambda: diurnal(1, swing=1.5, day_s=10, duration_s=10),
        lambda: diurnal(1, swing=0.5, day_s=1e-6, duration_s=1000),
        lambda: diurnal(1, swing=0.5, day_s=math.nan, duration_s=1000),
    ],
)
def test_impossible_rates_and_durations_are_one_line(make):
    with pytest.raises(UsageError) as caught:
        make()
    assert "\n" not in str(caught.value)
