from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.autoscaling_policy import BUSY_SHARE, QUEUE_DELAY, queue_delay_policy
from serve_app.replica_stats import ReplicaStats
from tests.serve_app.facts import batch
from tests.serve_app.helpers import python_without


def context(busy=(), delays_s=None, *, ongoing=1.0, target=24, figures=None):
    """What Serve tells a policy, of as many replicas as there are busy shares."""
    names = [f"replica-{index}" for index in range(len(busy))]
    if figures is None:
        delays_s = [0.0] * len(busy) if delays_s is None else delays_s
        figures = {
            BUSY_SHARE: dict(zip(names, busy, strict=True)),
            QUEUE_DELAY: dict(zip(names, delays_s, strict=True)),
        }
    return SimpleNamespace(
        total_num_requests=ongoing,
        running_replicas=names,
        aggregated_metrics=figures,
        config=SimpleNamespace(target_ongoing_requests=target),
    )


def wanted(*arguments, **options):
    return queue_delay_policy(context(*arguments, **options))[0]


def test_the_module_needs_the_standard_library_only():
    python_without("import serve_app.autoscaling_policy", "ray", "torch", "numpy", "pydantic", "starlette")


@pytest.mark.parametrize(
    ("busy", "delays_s", "replicas"),
    [
        ([0.7] * 4, None, 4),
        ([0.6] * 4, None, 4),
        ([1.0] * 4, None, 6),
        ([0.2] * 4, None, 2),
        ([0.05] * 4, None, 1),
        ([1.0], [0.2], 2),
        ([0.5] * 2, [0.075] * 2, 3),
        ([1.0] * 3, [9.0] * 3, 6),
        ([0.05] * 3, [0.06] * 3, 3),
    ],
)
def test_busy_share_and_queue_delay_decide(busy, delays_s, replicas):
    assert wanted(busy, delays_s) == replicas


shares = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@given(shares, st.floats(0, 5), st.floats(0, 5))
def test_more_waiting_never_means_fewer_replicas_and_no_step_more_than_doubles(busy, delay_s, more_s):
    few = wanted(busy, [delay_s] * len(busy))
    many = wanted(busy, [delay_s + more_s] * len(busy))
    assert few <= many <= 2 * len(busy)
    assert few >= 1


@given(shares, st.floats(0, 1))
def test_more_load_never_means_fewer_replicas(busy, more):
    assert wanted(busy) <= wanted([min(1.0, share + more) for share in busy])


def test_nothing_to_do_is_zero_and_anything_is_at_least_one():
    assert wanted([0.0, 0.0], ongoing=0) == 0
    assert wanted([0.0, 0.0], ongoing=1) == 1
    assert wanted([0.001, 0.0], ongoing=0) == 1


@pytest.mark.parametrize(
    "figures",
    [
        None,
        {},
        {BUSY_SHARE: {"replica-0": 0.9}, QUEUE_DELAY: {"replica-0": 0.1}},
        {BUSY_SHARE: {"replica-0": math.nan, "replica-1": 0.9}, QUEUE_DELAY: {"replica-0": 0, "replica-1": 0}},
        {BUSY_SHARE: {"replica-0": 0.9, "replica-1": 0.9}},
        {BUSY_SHARE: {"replica-0": "x", "replica-1": 0.9}, QUEUE_DELAY: {"replica-0": 0, "replica-1": 0}},
    ],
)
def test_without_sane_figures_of_every_replica_serves_own_rule_decides(figures):
    ctx = context([0.5, 0.5], ongoing=100)
    ctx.aggregated_metrics = figures
    assert queue_delay_policy(ctx)[0] == math.ceil(100 / 24)
    assert wanted([], ongoing=30) == 2


def simulated(load_at, seconds=240, replicas=1, most=16):
    """Replicas second by second; `load_at` gives the work of one second in replica-seconds."""
    history = []
    for second in range(seconds):
        load = load_at(second)
        busy = min(1.0, load / replicas)
        delay_s = 0.0 if load < replicas else 0.02 + (load / replicas - 1) * 0.3
        if second % 10 == 9:
            replicas = min(most, max(1, wanted([busy] * replicas, [delay_s] * replicas, ongoing=load * 10)))
        history.append(replicas)
    return history


def test_it_settles_within_a_few_decisions_after_a_step_and_comes_down_again():
    history = simulated(lambda second: 0.4 if second < 60 else 6.0 if second < 150 else 0.4)
    assert history[50] == 1
    assert 8 <= history[110] <= 10
    assert len(set(history[110:150])) == 1
    assert history[-1] == 1


def test_noise_around_a_constant_load_is_not_followed():
    noise = [0.93, 1.08, 1.0, 0.97, 1.05, 0.95, 1.02]
    history = simulated(lambda second: 3.5 * noise[second // 10 % len(noise)], seconds=400, replicas=5)
    assert len(set(history)) <= 2


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


def test_stats_are_of_the_last_two_seconds_and_count_samples_as_if_batches_were_full():
    clock = Clock()
    stats = ReplicaStats(now_s=clock)
    assert stats.record() == {QUEUE_DELAY: 0.0, BUSY_SHARE: 0.0}
    clock.now_s += 10
    # A full batch shows how fast a sample can be: 2.5 ms.
    stats.batch_done(batch(samples=16, tail_s=0.04, queue_delays_s=(0.01,) * 16))
    clock.now_s += 3
    for _ in range(100):
        clock.now_s += 0.01
        stats.batch_done(batch(samples=1, tail_s=0.01, queue_delays_s=(0.004,)))
    found = stats.record()
    assert found[QUEUE_DELAY] == pytest.approx(0.004)
    # Busy all the time, and still an eighth of what full batches would carry in two seconds.
    assert found[BUSY_SHARE] == pytest.approx(100 * 0.0025 / 2, rel=0.15)
    clock.now_s += 5
    assert stats.record() == {QUEUE_DELAY: 0.0, BUSY_SHARE: 0.0}


def test_a_replica_that_has_just_started_is_judged_by_the_time_it_has_lived():
    clock = Clock()
    stats = ReplicaStats(now_s=clock)
    clock.now_s += 0.5
    stats.batch_done(batch(samples=16, tail_s=0.4, queue_delays_s=(0.0,)))
    assert stats.record()[BUSY_SHARE] == pytest.approx(0.8)
