from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.autoscaling_policy import BUSY_SHARE, HEARD, QUEUE_DELAY, queue_delay_policy
from serve_app.replica_stats import ReplicaStats
from tests.serve_app.facts import batch, request
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
        {
            BUSY_SHARE: {"replica-0": math.nan, "replica-1": 0.9, "replica-2": -1},
            QUEUE_DELAY: {"replica-0": 0, "replica-1": 0, "replica-2": 0},
        },
        {BUSY_SHARE: {"replica-0": 0.9, "replica-1": 0.9, "replica-2": 0.9}},
        {
            BUSY_SHARE: {"replica-0": "x", "replica-1": None, "replica-2": 0.1},
            QUEUE_DELAY: {"replica-0": 0, "replica-1": 0, "replica-2": 0},
        },
    ],
)
def test_without_sane_figures_of_half_of_the_replicas_serves_own_rule_decides(figures):
    ctx = context([0.5, 0.5, 0.5], ongoing=100)
    ctx.aggregated_metrics = figures
    assert queue_delay_policy(ctx)[0] == math.ceil(100 / 24)
    assert wanted([], ongoing=30) == 2


def test_a_replica_that_has_not_reported_yet_is_taken_to_be_like_the_others():
    ctx = context([1.0] * 4)
    del ctx.aggregated_metrics[BUSY_SHARE]["replica-3"]
    assert queue_delay_policy(ctx)[0] == wanted([1.0] * 4) == 6


class Cluster:
    """Asks the policy every few seconds, as Serve does: figures of a silent replica stay as they were."""

    def __init__(self, replicas, *, clock_ahead_s=0.0):
        self.state, self.now_s, self.ahead_s = {}, 1000.0, clock_ahead_s
        self.reports = {f"replica-{index}": (0.0, 0.0) for index in range(replicas)}

    def after(self, seconds, *, busy):
        """Seconds later, when each replica in `busy` has reported its share."""
        self.now_s += seconds
        for replica, share in busy.items():
            self.reports[replica] = (self.now_s + self.ahead_s, share)
        ctx = SimpleNamespace(
            total_num_requests=5.0,
            running_replicas=list(self.reports),
            aggregated_metrics={
                BUSY_SHARE: {name: share for name, (_, share) in self.reports.items()},
                QUEUE_DELAY: dict.fromkeys(self.reports, 0.0),
            },
            raw_metrics={
                BUSY_SHARE: {
                    name: [SimpleNamespace(timestamp=at_s, value=share)] for name, (at_s, share) in self.reports.items()
                }
            },
            current_time=self.now_s,
            policy_state=self.state,
            config=SimpleNamespace(target_ongoing_requests=24, look_back_period_s=10, metrics_interval_s=2),
        )
        replicas, self.state = queue_delay_policy(ctx)
        return replicas


@pytest.mark.parametrize("clock_ahead_s", [0.0, -3600.0, 3600.0])
def test_what_a_silent_replica_said_last_does_not_count(clock_ahead_s):
    cluster = Cluster(3, clock_ahead_s=clock_ahead_s)
    assert cluster.after(0, busy=dict.fromkeys(cluster.reports, 0.7)) == 3
    # One says that it is idle, and then nothing more; the others carry its work.
    assert cluster.after(2, busy={"replica-0": 0.9, "replica-1": 0.9, "replica-2": 0.0}) == 3
    busy = {"replica-0": 1.0, "replica-1": 1.0}
    # Within the window its figure is one of three ...
    assert cluster.after(2, busy=busy) == 3
    for _ in range(4):
        cluster.after(2, busy=busy)
    # ... and beyond it none: three replicas at 1.0 need five.
    assert cluster.after(2, busy=busy) == 5
    # When it speaks again, it counts again.
    assert cluster.after(2, busy={**busy, "replica-2": 0.1}) == 3


def test_where_most_are_silent_serves_own_rule_decides():
    cluster = Cluster(3)
    cluster.after(0, busy=dict.fromkeys(cluster.reports, 0.9))
    found = [cluster.after(4, busy={"replica-0": 0.9}) for _ in range(4)]
    assert found[0] == 4
    assert found[-1] == math.ceil(5 / 24)


def test_only_running_replicas_are_remembered():
    cluster = Cluster(3)
    cluster.after(0, busy={})
    del cluster.reports["replica-1"]
    cluster.after(2, busy={})
    assert set(cluster.state[HEARD]) == {"replica-0", "replica-2"}


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


def test_where_images_are_decoded_the_busier_of_both_threads_counts():
    clock = Clock()
    stats = ReplicaStats(now_s=clock)
    clock.now_s += 10
    stats.batch_done(batch(samples=16, tail_s=0.04, queue_delays_s=(0.01,) * 16))
    for wait_s in (0.5, 1.5):
        stats.request_done(request(input_wait_s=wait_s, input_s=0.8))
    stats.request_done(request())
    assert stats.record() == {QUEUE_DELAY: 1.0, BUSY_SHARE: pytest.approx(0.8)}
    clock.now_s += 5
    assert stats.record() == {QUEUE_DELAY: 0.0, BUSY_SHARE: 0.0}


def test_a_replica_that_has_just_started_is_judged_by_the_time_it_has_lived():
    clock = Clock()
    stats = ReplicaStats(now_s=clock)
    clock.now_s += 0.5
    stats.batch_done(batch(samples=16, tail_s=0.4, queue_delays_s=(0.0,)))
    assert stats.record()[BUSY_SHARE] == pytest.approx(0.8)
