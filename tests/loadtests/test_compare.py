"""Intervals hold the truth as often as they promise, see what is there, and see nothing where nothing is."""

from __future__ import annotations

import numpy as np
import pytest

from loadtests.compare import _latency_table, compare
from loadtests.histogram import CURVE_BITS
from loadtests.run_result import Generator
from split_inference.errors import UsageError
from tests.loadtests.results import run_of


def seconds_of(seed, *, mean_s=0.02, seconds=60, rate=50):
    """Latencies second by second; seconds have good and bad times, as servers do."""
    rng = np.random.default_rng(seed)
    mood = np.exp(0.2 * rng.standard_normal(seconds))
    return [list(mean_s * each * rng.lognormal(0, 0.4, rate)) for each in mood]


def changes(before, after, **options):
    return {each.name: each for each in compare(before, after, **options).changes}


def test_a_run_beside_itself_shows_no_change():
    run = run_of([], seconds=seconds_of(1))
    for each in changes(run, run).values():
        assert each.change == 0
        assert each.low <= 0 <= each.high
        assert each.verdict == "no difference seen"


def test_half_of_the_latency_is_better_and_twice_of_it_worse():
    before, after = run_of([], seconds=seconds_of(1)), run_of([], seconds=seconds_of(2, mean_s=0.04))
    for name in ("p50_ms", "p95_ms", "p99_ms"):
        assert changes(before, after)[name].verdict == "worse"
        assert changes(after, before)[name].verdict == "better"


def test_more_answers_in_time_are_better():
    before = run_of([], seconds=seconds_of(1, mean_s=0.05), deadline_s=0.05)
    after = run_of([], seconds=seconds_of(2, mean_s=0.02), deadline_s=0.05)
    found = changes(before, after)
    assert found["goodput"].verdict == "better"
    assert found["good_per_s"].verdict == "better"
    assert changes(after, before)["goodput"].verdict == "worse"


def test_equal_servers_are_told_apart_about_as_seldom_as_promised():
    false_alarms = sum(
        changes(
            run_of([], seconds=seconds_of(2 * seed)), run_of([], seconds=seconds_of(2 * seed + 1)), repetitions=200
        )["p50_ms"].verdict != "no difference seen"
        for seed in range(60)
    )  # fmt: skip
    # 3 of 60 on average; blocks of a short run say a little less than they should.
    assert false_alarms <= 9


def test_every_change_lies_within_its_own_interval():
    for seed in range(6):
        before = run_of([], seconds=seconds_of(seed, mean_s=0.005), deadline_s=0.006)
        after = run_of([], seconds=seconds_of(seed + 50, mean_s=0.005), deadline_s=0.006)
        for each in changes(before, after, repetitions=200).values():
            assert each.low <= each.change <= each.high


def test_a_change_that_is_smaller_than_a_bucket_is_not_seen():
    before = run_of([], seconds=[[0.005004] * 30 for _ in range(30)])
    after = run_of([], seconds=[[0.005005] * 30 for _ in range(30)])
    assert changes(before, after)["p50_ms"].verdict == "no difference seen"


def test_a_long_run_takes_no_more_columns_than_there_are_buckets():
    for seconds in (60, 1200):
        run = run_of([], seconds=seconds_of(3, seconds=seconds, rate=10))
        table_SV, edges_s_V = _latency_table(run.seconds)
        assert table_SV.shape == (seconds, len(edges_s_V))
        assert table_SV.sum() == run.latency.count
        assert len(edges_s_V) == len(run.latency.coarser(CURVE_BITS).buckets())


def test_resamples_are_the_same_however_many_are_made_at_a_time(monkeypatch):
    before, after = (run_of([], seconds=seconds_of(seed)) for seed in (1, 2))
    whole = compare(before, after)
    monkeypatch.setattr("loadtests.compare._WEIGHTS_AT_ONCE", 1000)
    assert compare(before, after) == whole


def test_seconds_in_which_nothing_was_meant_to_start_count():
    steady = run_of([], seconds=[[0.01] * 10 for _ in range(30)])
    every = seconds_of(1, seconds=30, rate=20)
    run = run_of([], seconds=every)
    # As a burst leaves it: half of the seconds are missing, and the others have twice as much.
    burst = run.model_copy(update={"seconds": run.seconds[::2], "counts": run.counts.model_copy(update={"good": 300})})
    assert changes(steady, burst)["good_per_s"].verdict == "no difference seen"


def test_one_seed_one_interval():
    before, after = (run_of([], seconds=seconds_of(seed)) for seed in (1, 2))
    assert compare(before, after, seed=3) == compare(before, after, seed=3)
    assert compare(before, after, seed=3) != compare(before, after, seed=4)


def test_what_speaks_against_a_comparison_is_said():
    before = run_of([], seconds=seconds_of(1), deadline_s=0.1)
    after = run_of([], seconds=seconds_of(2), experiment="steady", generator=Generator(invalid=("it was late",)))
    said = " ".join(compare(before, after).warnings)
    for word in ("INVALID: it was late", "experiment", "deadline"):
        assert word in said
    assert not compare(before, before).warnings


def test_a_run_that_is_too_short_for_an_interval_is_refused():
    long, short = run_of([], seconds=seconds_of(1)), run_of([], seconds=seconds_of(1, seconds=5))
    with pytest.raises(UsageError, match="second run has 5 seconds"):
        compare(long, short)


def test_runs_without_answers_are_compared_by_their_failures():
    dead = run_of([], seconds=[[] for _ in range(20)], failed=100)
    alive = run_of([], seconds=seconds_of(1, seconds=20))
    found = changes(alive, dead)
    assert found["errors"].after == 1.0
    assert found["p99_ms"].verdict == "no difference seen"
