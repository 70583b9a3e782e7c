"""What happens above the capacity, in virtual time: the real service and batcher, a model that stalls by seed."""

from __future__ import annotations

import numpy as np
import pytest

from serve_app.service import WaitMargin
from tests.serve_app.overload_simulation import overload, stalls


def stall_every_three_seconds(rng):
    return stalls(rng, every_s=3, of_s=0.1)


def test_stalls_cost_their_own_time_and_make_no_answers_late():
    found = overload(seed=1, slowness=stall_every_three_seconds, seconds=18, settle_s=6)
    # A stall of 100 ms every three seconds is 3.3 % of the machine, and answers in time need some of the rest.
    assert found.goodput >= 0.93
    assert found.late_share <= 0.01
    assert found.answered_p99_ms() <= 250
    assert found.refused_p99_ms() <= 50


def test_without_a_learnt_margin_stalls_make_answers_late(monkeypatch):
    """So the test above can fail."""
    monkeypatch.setattr(WaitMargin, "seconds", lambda self, now_s, budget_s: 0.005)
    found = overload(seed=1, slowness=stall_every_three_seconds, seconds=12, settle_s=6)
    assert found.late_share > 0.02
    assert found.answered_p99_ms() > 250


def test_a_simulation_is_its_seed():
    def found(seed):
        return overload(seed=seed, slowness=stall_every_three_seconds, seconds=1.5, settle_s=0)

    assert found(1) == found(1)
    assert found(1) != found(2)


def test_below_the_capacity_nothing_is_refused():
    found = overload(seed=1, slowness=lambda rng: stalls(rng, every_s=1e9, of_s=0), load=0.6, seconds=6, settle_s=0)
    assert found.refused_s == []
    assert found.late_share == 0


def test_the_margin_is_the_99th_percentile_of_what_answers_took_too_long():
    margin = WaitMargin()
    assert margin.seconds(0) == margin.PRIOR_S
    errors_s = np.random.default_rng(0).uniform(0, 0.2, 20_000)
    for error_s in errors_s:
        margin.learn(expected_s=0.1, took_s=0.1 + error_s)
    assert margin.seconds(1) == pytest.approx(np.quantile(errors_s, 0.99), abs=0.002)


def test_a_margin_fades_where_nothing_is_answered_and_holds_where_answers_are_late_now_and_then():
    margin = WaitMargin()
    for second in range(120):
        for index in range(350):
            # Seven of 350: two of a hundred.
            margin.learn(expected_s=0, took_s=0.08 if index < 7 else 0)
        assert second < 5 or margin.seconds(second) == pytest.approx(0.08)
    assert margin.seconds(120 + 10 * margin.HALF_LIFE_S) == margin.PRIOR_S


def test_a_margin_never_takes_more_than_half_of_a_budget():
    margin = WaitMargin()
    for _ in range(1000):
        margin.learn(expected_s=0, took_s=9.0)
    assert margin.seconds(1) == margin.MOST_S
    assert margin.seconds(1, budget_s=0.03) == 0.015
