from __future__ import annotations

import math
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.batch_plan import BatchPlan
from serve_app.batching import BatchQueue, CostModel, Item


def item(key="a", *, samples=1, entered_s=0.0, deadline_s=math.inf):
    return Item(key=key, samples=samples, entered_s=entered_s, deadline_s=deadline_s)


def queue_of(*items, cost=None):
    queue = BatchQueue(cost or CostModel())
    for each in items:
        queue.put(each)
    return queue


def test_the_most_urgent_key_leaves_first_and_keys_are_never_mixed():
    late, urgent, same_key = item("a", deadline_s=9), item("b", deadline_s=0.2), item("b", deadline_s=0.5)
    queue = queue_of(late, urgent, same_key)
    assert queue.take(starts_s=0, max_samples=8).batch == [urgent, same_key]
    assert queue.take(starts_s=0, max_samples=8).batch == [late]
    assert len(queue) == 0


def test_equal_urgency_leaves_in_the_order_of_arrival():
    items = [item() for _ in range(5)]
    assert queue_of(*items).take(starts_s=0, max_samples=3).batch == items[:3]


def test_an_item_without_a_deadline_is_not_kept_waiting_for_ever():
    patient = item("a", entered_s=0.0)
    queue = queue_of(patient, *[item("b", entered_s=t, deadline_s=t + 0.3) for t in (0.5, 1.0, 1.5)])
    taken = [queue.take(starts_s=0, max_samples=1).batch[0] for _ in range(4)]
    assert taken.index(patient) == 1


def test_what_would_end_after_its_deadline_is_not_run():
    cost = CostModel()
    for size in (1, 2, 4):
        cost.learn("a", size, 0.1)
    hopeless, possible = item(deadline_s=1.05), item(deadline_s=1.2)
    taken = queue_of(hopeless, possible, cost=cost).take(starts_s=1.0, max_samples=8)
    assert (taken.expired, taken.batch) == ([hopeless], [possible])


def test_a_deadline_is_held_against_the_end_of_the_whole_batch():
    cost = CostModel()
    cost.learn("a", 1, 0.01)
    cost.learn("a", 8, 0.08)
    items = [item(deadline_s=1.05)] + [item(deadline_s=1.2) for _ in range(7)]
    taken = queue_of(*items, cost=cost).take(starts_s=1.0, max_samples=8)
    assert (taken.expired, taken.batch) == (items[:1], items[1:])


def test_when_a_whole_key_has_expired_another_one_runs():
    cost = CostModel()
    cost.learn("a", 1, 1.0)
    dead, alive = item("a", deadline_s=0.5), item("b")
    taken = queue_of(dead, alive, cost=cost).take(starts_s=0, max_samples=8)
    assert (taken.expired, taken.batch) == ([dead], [alive])


def test_cancelled_items_are_forgotten():
    gone, stays = item(), item()
    queue = queue_of(gone, stays)
    queue.cancel(gone)
    queue.cancel(gone)
    assert queue.samples(stays.key) == 1
    assert queue.most_urgent() is stays
    assert queue.take(starts_s=0, max_samples=8).batch == [stays]


def test_cancelled_items_make_no_batch_longer():
    cost = CostModel()
    alive = item(deadline_s=0.05)
    for rows, seconds in ((1, 0.01), (16, 0.1)):
        cost.learn(alive.key, rows, seconds)
    others = [item(deadline_s=0.06) for _ in range(15)]
    queue = queue_of(alive, *others, cost=cost)
    for each in others:
        queue.cancel(each)
    assert queue.work_before_s(item(deadline_s=1.0), max_samples=16) == pytest.approx(cost.batch_s(alive.key, 2))
    assert queue.take(starts_s=0, max_samples=16).batch == [alive]


@pytest.mark.parametrize(("base_s", "row_s"), [(0.08, 0.016), (0.005, 0.0001), (0.001, 0.0024)])
def test_batches_of_odd_sizes_teach_what_a_full_one_takes(base_s, row_s):
    cost, rng = CostModel(), random.Random(1)
    for rows in (1, 2, 4, 8, 16):
        cost.learn("key", rows, base_s + row_s * rows)
    for _ in range(500):
        rows = rng.randint(1, 16)
        cost.learn("key", rows, (base_s + row_s * rows) * 2)
    for rows in (6, 8, 12, 16):
        assert cost.batch_s("key", rows) == pytest.approx(2 * (base_s + row_s * rows), rel=0.1)


def test_one_batch_during_which_the_machine_stood_still_says_little_of_the_next_one():
    cost = CostModel()
    for _ in range(2):
        cost.learn("key", 1, 0.005)
    cost.learn("key", 1, 1.5)
    assert cost.batch_s("key", 1) < 0.01
    for _ in range(20):
        cost.learn("key", 1, 0.05)
    assert cost.batch_s("key", 1) == pytest.approx(0.05, rel=0.1)


def test_a_first_batch_that_was_cold_is_replaced_by_the_second_one():
    cost = CostModel()
    cost.learn("key", 3, 3.0)
    cost.learn("key", 3, 0.01)
    assert cost.batch_s("key", 3) == pytest.approx(0.01)
    cost.learn("key", 3, 0.005)
    assert cost.batch_s("key", 3) > 0.005


def test_what_a_cancelled_item_holds_is_let_go_while_its_place_stays():
    queue = queue_of(*(first := [item() for _ in range(3)]))
    for each in first:
        each.payload = bytearray(8)
    queue.cancel(first[1])
    assert first[1].payload is None
    assert [each.payload is None for each in queue.take(starts_s=0, max_samples=8).batch] == [False, False]


def test_several_threads_that_ask_at_once_get_the_plan_that_one_gets():
    seconds = {1: 3.6, 4: 10.6, 16: 39.3}
    expected = [BatchPlan(seconds).chunks(rows) for rows in range(300)]
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            plan = BatchPlan(seconds)
            with ThreadPoolExecutor(4) as threads:
                list(threads.map(plan.expected_s, [299, 298, 297, 299]))
            assert [plan.chunks(rows) for rows in range(300)] == expected
    finally:
        sys.setswitchinterval(interval_s)


items_strategy = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 20), st.floats(0, 5), st.floats(0, 3), st.booleans()), max_size=60
)


def millisecond_a_row():
    cost = CostModel()
    for size in (1, 16, 256):
        cost.learn("a", size, 0.001 * size)
    return cost


def test_a_large_item_that_comes_too_late_makes_nobody_else_late():
    large = item(samples=256, deadline_s=0.25)
    others = [item(deadline_s=0.251) for _ in range(16)]
    taken = queue_of(large, *others, cost=millisecond_a_row()).take(starts_s=0, max_samples=16)
    assert (taken.expired, taken.batch) == ([large], others)


def test_rows_that_do_not_fit_are_no_part_of_a_batchs_end():
    first, second = item(samples=10, deadline_s=0.013), item(samples=10, deadline_s=0.5)
    taken = queue_of(first, second, cost=millisecond_a_row()).take(starts_s=0, max_samples=16)
    assert (taken.expired, taken.batch) == ([], [first])


@given(items_strategy, st.integers(1, 24))
def test_what_runs_ends_in_time_and_what_expired_would_not_have_in_the_largest_batch(rows, max_samples):
    cost = CostModel()
    for key in "abc":
        for size in (1, 2, 4, 8, 16, 32):
            cost.learn(key, size, 0.02 * size)
    queue = queue_of(*[item(key, samples=n, entered_s=e, deadline_s=e + d) for key, n, e, d, _ in rows], cost=cost)
    while queue.most_urgent() is not None:
        taken = queue.take(starts_s=2.5, max_samples=max_samples)
        if taken.batch:
            ends_s = 2.5 + cost.batch_s(taken.batch[0].key, taken.samples)
            assert all(each.deadline_s >= ends_s for each in taken.batch)
        for each in taken.expired:
            assert each.deadline_s < 2.5 + cost.batch_s(each.key, max(max_samples, each.samples))


def test_a_large_item_runs_alone():
    large, small = item(samples=40, deadline_s=0.1), item(deadline_s=0.2)
    queue = queue_of(large, small)
    assert queue.take(starts_s=0, max_samples=16).batch == [large]
    assert queue.take(starts_s=0, max_samples=16).batch == [small]


@given(items_strategy, st.integers(1, 24))
def test_every_item_leaves_exactly_once_and_no_batch_is_too_large_or_mixed(rows, max_samples):
    items = [item(key, samples=n, entered_s=e, deadline_s=e + d) for key, n, e, d, _ in rows]
    queue = queue_of(*items)
    for each, row in zip(items, rows, strict=True):
        each.cancelled = row[4]
    left = []
    while queue.most_urgent() is not None:
        taken = queue.take(starts_s=2.5, max_samples=max_samples)
        assert len({each.key for each in taken.batch}) <= 1
        assert taken.samples <= max_samples or len(taken.batch) == 1
        assert all(each.deadline_s < 2.5 for each in taken.expired)
        urgencies = [each.urgency_s for each in taken.batch]
        assert urgencies == sorted(urgencies)
        left += taken.batch + taken.expired
    assert sorted(map(id, left)) == sorted(id(each) for each in items if not each.cancelled)
    assert len(queue) == 0


@given(items_strategy)
def test_the_wait_grows_with_what_is_more_urgent_and_not_with_what_is_less(rows):
    cost = CostModel()
    for key in "abc":
        for size in (1, 2, 4, 8, 16, 32):
            cost.learn(key, size, 0.01 * size)
    queue = queue_of(*[item(key, samples=n, entered_s=e, deadline_s=e + d) for key, n, e, d, _ in rows], cost=cost)
    new = item("a", entered_s=6, deadline_s=6.5)
    before_s = queue.work_before_s(new, max_samples=16)
    queue.put(item("a", entered_s=9, deadline_s=9))
    assert queue.work_before_s(new, max_samples=16) == pytest.approx(before_s)
    queue.put(item("a", samples=16, entered_s=0, deadline_s=0))
    assert queue.work_before_s(new, max_samples=16) >= before_s + 0.1599


def test_costs_follow_the_machine_and_are_read_between_and_beyond_what_was_measured():
    cost = CostModel()
    assert cost.batch_s("a", 7) == 0
    cost.learn("a", 4, 0.010)
    cost.learn("a", 16, 0.040)
    assert cost.batch_s("a", 10) == pytest.approx(0.025)
    assert cost.batch_s("a", 32) == pytest.approx(0.080)
    assert cost.batch_s("a", 1) == pytest.approx(0.010)
    for _ in range(40):
        cost.learn("a", 16, 0.080)
    assert cost.batch_s("a", 16) == pytest.approx(0.080, rel=0.01)


@given(st.dictionaries(st.integers(1, 40), st.floats(0.001, 1), min_size=1, max_size=5), st.integers(1, 70))
def test_a_plan_covers_every_row_once_and_nothing_cheaper_exists_by_one_bucket(seconds, rows):
    plan = BatchPlan(seconds)
    chunks = plan.chunks(rows)
    covered = [row for chunk in chunks for row in range(chunk.start, chunk.start + chunk.rows)]
    assert covered == list(range(rows))
    assert all(chunk.bucket in seconds and chunk.rows <= chunk.bucket for chunk in chunks)
    assert sum(seconds[chunk.bucket] for chunk in chunks) == pytest.approx(plan.expected_s(rows))
    assert all(plan.expected_s(rows) <= s * -(-rows // bucket) + 1e-9 for bucket, s in seconds.items())
    assert plan.capacity(rows) >= rows


def test_a_plan_needs_buckets():
    with pytest.raises(ValueError, match="buckets"):
        BatchPlan({})
