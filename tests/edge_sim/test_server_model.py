"""A simulated server batches, refuses, fails and grows as serve_app does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from edge_sim.fleet_server import Ask, Refused, Served
from edge_sim.server_model import ServerModel
from edge_sim.server_profile import Autoscaling, BatchTimes, ServerProfile
from edge_sim.virtual_clock import VirtualClock


def profile(**changes):
    facts = {"source": "assumed", "overhead_s": [0.0], "batch_s": {"*": {1: [0.01], 16: [0.04]}}, "max_batch": 16}
    return ServerProfile.model_validate(facts | changes)


def ask(split_point="a", *, bad=False):
    return Ask(0, split_point, 0, 1000, 0, bad)


class World:
    """A clock, a server, and what came back: (asked at, ended at, outcome)."""

    def __init__(self, made=None):
        self.clock = VirtualClock()
        self.server = ServerModel(made or profile(), self.clock, seed="s", reply_bytes=200)
        self.seen = []

    def send(self, at_s, *, until_s=10.0, what=None):
        async def one():
            await self.clock.sleep_until(at_s)
            outcome = await self.server.infer(what or ask(), until_s=until_s)
            self.seen.append((at_s, self.clock.now_s(), outcome))

        self.clock.start(one())

    def run(self, until_s=60.0):
        self.clock.run(until_s=until_s)
        return self.seen


def test_an_idle_server_begins_at_once_and_a_busy_one_collects():
    world = World()
    for at_s in (0.0, 0.001, 0.002, 0.003):
        world.send(at_s)
    seen = world.run()
    assert [outcome.batch_samples for _, _, outcome in seen] == [1, 3, 3, 3]
    assert seen[0][1] == pytest.approx(0.01)
    assert seen[1][2].queue_s == pytest.approx(0.009)


def test_the_answers_of_a_batch_take_as_long_as_those_of_its_size():
    world = World(profile(overhead_s={1: [0.002], 3: [0.006]}))
    for at_s in (0.0, 0.0, 0.0, 0.0):
        world.send(at_s)
    seen = world.run()
    assert [outcome.batch_samples for _, _, outcome in seen] == [1, 3, 3, 3]
    # Half of the shortest overhead lies before a batch, whose size nobody knows yet.
    assert seen[0][1] == pytest.approx(0.002 + 0.01)
    assert seen[1][1] == pytest.approx(0.001 + 0.01 + 0.014 + 0.005)


def test_who_would_be_answered_too_late_among_many_answers_is_refused_and_not_computed():
    world = World(profile(overhead_s={1: [0.002], 2: [0.002], 3: [0.05]}))
    for until_s in (10.0, 10.0, 10.0, 0.06):
        world.send(0.0, until_s=until_s)
    seen = world.run()
    assert [type(outcome) for _, _, outcome in seen] == [Refused, Served, Served, Served]
    assert [outcome.batch_samples for _, _, outcome in seen if isinstance(outcome, Served)] == [1, 2, 2]


def test_who_cannot_be_answered_in_time_does_not_take_the_others_with_it():
    world = World(profile(overhead_s={1: [0.001], 16: [0.2]}, batch_s={"*": {1: [0.01], 16: [0.01]}}))
    world.send(0.0)
    for _ in range(16):
        world.send(0.002, until_s=0.152)
    outcomes = [outcome for _, _, outcome in world.run()]
    served = [outcome for outcome in outcomes if isinstance(outcome, Served)]
    assert 8 < len(served) < 17
    assert all(outcome is not None for outcome in outcomes)


def test_a_size_that_was_not_measured_lies_between_two_or_is_as_the_largest():
    times = profile(overhead_s={2: [0.002], 4: [0.006]}).overhead()
    assert [times.seconds(rows, 0.5) for rows in (1, 2, 3, 4, 16)] == pytest.approx([0.002, 0.002, 0.004, 0.006, 0.006])
    assert profile(overhead_s=[0.003]).overhead().seconds(16, 0.5) == 0.003


@pytest.mark.parametrize("wrong", [{}, {0: [0.001]}, {1: []}, {1: [-0.001]}, "soon"])
def test_an_overhead_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValidationError, match="overhead_s"):
        profile(overhead_s=wrong)


def test_overheads_survive_their_file():
    made = profile(overhead_s={1: [0.002], 3: [0.006]})
    assert ServerProfile.model_validate(made.model_dump(mode="json")) == made
    assert ServerProfile.model_validate_json(made.model_dump_json()) == made


def test_a_turnaround_lies_between_two_batches_and_only_there():
    # 5 ms after one row, 10 after two.
    world = World(profile(turnaround_s=0.08))
    for at_s in (0.0, 0.001, 0.002, 0.1):
        world.send(at_s)
    seen = world.run()
    # The second batch waits for it and collects what comes meanwhile; an idle server has none.
    assert [outcome.batch_samples for _, _, outcome in seen] == [1, 2, 2, 1]
    assert seen[1][2].queue_s == pytest.approx(0.009 + 0.005)
    assert seen[3][1] == pytest.approx(0.11)


def test_a_turnaround_is_as_long_as_the_batch_before_it_was_large():
    world = World(profile(turnaround_s=0.08, batch_s={"*": {1: [0.01], 16: [0.01]}}))
    for at_s in (0.0, 0.001, 0.002, 0.018, 0.019):
        world.send(at_s)
    seen = world.run()
    assert [outcome.batch_samples for _, _, outcome in seen] == [1, 2, 2, 2, 2]
    assert [ended_s for _, ended_s, _ in seen] == pytest.approx([0.01, 0.025, 0.025, 0.045, 0.045])


def test_what_comes_during_a_turnaround_joins_the_next_batch():
    world = World(profile(turnaround_s=0.08))
    for at_s in (0.0, 0.001, 0.012):
        world.send(at_s)
    assert [outcome.batch_samples for _, _, outcome in world.run()] == [1, 2, 2]


def test_a_busy_server_decodes_the_next_batch_in_time_and_what_comes_after_that_has_missed_it():
    world = World(profile(decode_s=0.001, lead_s=0.002))
    for at_s in (0.0, 0.001, 0.002, 0.0095, 0.1):
        world.send(at_s)
    seen = world.run()
    # Idle, it decodes first: 1 + 10 ms. What waits then is closed at 8 ms and runs at 11.
    assert [outcome.batch_samples for _, _, outcome in seen] == [1, 2, 2, 1, 1]
    assert [ended_s for _, ended_s, _ in seen] == pytest.approx([0.011, 0.023, 0.023, 0.033, 0.111])


def test_what_comes_to_an_empty_queue_shortly_before_the_model_is_free_is_closed_alone():
    world = World(profile(decode_s=0.001, lead_s=0.002))
    for at_s in (0.0, 0.0095, 0.0099):
        world.send(at_s)
    assert [ended_s for _, ended_s, _ in world.run()] == pytest.approx([0.011, 0.021, 0.031])


def test_a_batch_that_is_closed_is_lost_with_its_replica():
    world = World(profile(lead_s=0.002))
    for at_s in (0.0, 0.001, 0.0085):
        world.send(at_s)
    world.clock.at(0.009, lambda _: world.server.go_down(for_s=0.001))
    world.send(0.02)
    seen = world.run()
    assert [type(outcome) for _, _, outcome in seen] == [Refused, Refused, Refused, Served]


def test_a_replica_that_is_lost_between_two_batches_leaves_nothing_behind():
    world = World(profile(turnaround_s=0.08))
    world.send(0.0)
    world.send(0.001)
    world.clock.at(0.012, lambda _: world.server.go_down(for_s=0.001))
    world.send(0.02)
    seen = world.run()
    assert [type(outcome) for _, _, outcome in seen] == [Served, Refused, Served]


def test_a_batch_has_one_split_point_and_the_earliest_deadline_goes_first():
    world = World()
    world.send(0.0)
    world.send(0.001, what=ask("a"), until_s=9.0)
    world.send(0.002, what=ask("b"), until_s=5.0)
    world.send(0.003, what=ask("a"), until_s=9.0)
    seen = world.run()
    assert [(at_s, outcome.batch_samples) for at_s, _, outcome in seen] == [
        (0.0, 1),
        (0.002, 1),
        (0.001, 2),
        (0.003, 2),
    ]


@settings(max_examples=30)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=60),
    st.floats(0.02, 0.3),
    st.lists(st.floats(0, 0.4), min_size=1, max_size=3).map(sorted),
    st.sampled_from([0.0, 0.004]),
)
def test_everyone_hears_something_by_the_deadline(moments, patience_s, overhead_s, turnaround_s):
    world = World(profile(overhead_s=overhead_s, turnaround_s=turnaround_s, batch_s={"*": {1: [0.01, 0.2], 16: [0.3]}}))
    for at_s in moments:
        world.send(at_s, until_s=at_s + patience_s)
    seen = world.run()
    assert len(seen) == len(moments)
    for at_s, ended_s, outcome in seen:
        assert ended_s <= at_s + patience_s + 1e-9
        assert outcome is None or isinstance(outcome, Served | Refused)


def test_what_would_be_too_late_is_refused_with_the_wait():
    world = World()
    for _ in range(60):
        world.send(0.0, until_s=0.06)
    refused = [outcome for _, ended_s, outcome in world.run() if isinstance(outcome, Refused)]
    assert refused
    assert all(each.reason == "server_rejected" and (each.retry_after_s or 0) >= 0.05 for each in refused)


def test_more_than_the_pending_limit_are_refused():
    world = World(profile(max_pending=4))
    for _ in range(10):
        world.send(0.0)
    outcomes = [outcome for *_, outcome in world.run()]
    assert sum(isinstance(each, Refused) for each in outcomes) == 6


def test_a_server_that_is_down_refuses_and_loses_what_it_had():
    world = World()
    world.send(0.0)
    world.clock.at(0.005, lambda _: world.server.go_down(for_s=1.0))
    world.send(0.5)
    world.send(1.5)
    outcomes = {at_s: outcome for at_s, _, outcome in world.run()}
    assert outcomes[0.0].reason == outcomes[0.5].reason == "server_down"
    assert isinstance(outcomes[1.5], Served)


def test_what_is_being_read_is_lost_with_a_server_that_goes_down():
    world = World(profile(overhead_s=[0.02], max_pending=1))
    world.clock.at(0.005, lambda _: world.server.go_down(for_s=0.1))
    for at_s in (0.0, 0.2, 0.2):
        world.send(at_s)
    seen = world.run()
    assert [each if each is None else getattr(each, "reason", "served") for _, _, each in seen] == [
        "server_down",
        "server_rejected",
        "served",
    ]
    assert seen[0][1] == pytest.approx(0.01)


def test_a_killed_replica_is_replaced():
    world = World(profile(replicas=2))
    world.clock.at(1.0, lambda _: world.server.kill_replica(back_after_s=2.0))
    counts = []
    for at_s in (0.5, 1.5, 3.5):
        world.clock.at(at_s, lambda _: counts.append(world.server.replicas))
    world.run()
    assert counts == [2, 1, 2]


def test_an_answer_that_would_be_back_too_late_is_none_at_the_deadline():
    world = World(profile(overhead_s=[0.4], batch_s={"*": {1: [0.1, 0.1, 0.3]}}))
    for at_s in range(20):
        world.send(at_s, until_s=at_s + 0.55)
    seen = world.run()
    late = [ended_s - at_s for at_s, ended_s, outcome in seen if outcome is None]
    assert late
    assert late == pytest.approx([0.55] * len(late))
    assert any(isinstance(outcome, Served) for *_, outcome in seen)


@pytest.mark.parametrize("turnaround", [0.0, 0.003, 0.006])
def test_twice_the_capacity_is_answered_at_the_capacity(turnaround):
    world = World(profile(turnaround_s=turnaround, batch_s={"*": {1: [0.0066], 16: [0.0456]}}, max_pending=192))
    capacity = 16 / (0.0456 + turnaround)
    for number in range(round(2 * capacity * 10)):
        world.send(number / (2 * capacity), until_s=number / (2 * capacity) + 0.25)
    served = sum(isinstance(outcome, Served) for *_, outcome in world.run())
    assert served / 10 > 0.95 * capacity


def test_a_replica_that_comes_back_is_none_too_many_for_the_autoscaler():
    scaling = Autoscaling(min_replicas=1, max_replicas=1, upscale_delay_s=2, start_s=3)
    world = World(profile(autoscaling=scaling.model_dump()))
    world.clock.at(1.0, lambda _: world.server.kill_replica(back_after_s=20.0))
    world.run(until_s=60)
    assert world.server.most_replicas == world.server.replicas == 1


def test_a_damaged_frame_is_refused_for_good():
    world = World()
    world.send(0.0, what=ask(bad=True))
    assert world.run()[0][2] == Refused("bad_frame", None)


def test_replicas_grow_under_load_after_their_delays_and_shrink_after_it():
    scaling = Autoscaling(min_replicas=1, max_replicas=4, upscale_delay_s=4, downscale_delay_s=10, start_s=3)
    world = World(profile(autoscaling=scaling.model_dump(), batch_s={"*": {1: [0.04], 16: [0.05]}}))
    for number in range(60 * 200):
        world.send(number / 200, until_s=number / 200 + 10)
    counts: dict[float, int] = {}
    for at_s in (5.0, 30.0, 90.0, 130.0):
        world.clock.at(at_s, lambda at_s: counts.__setitem__(at_s, world.server.replicas), at_s)
    world.run(until_s=131)
    assert counts[5.0] == 1
    assert counts[30.0] > 1
    assert counts[130.0] == 1


def test_one_seed_one_history():
    def history():
        world = World(profile(batch_s={"*": {1: [0.001, 0.02], 16: [0.01, 0.08]}}, overhead_s=[0.0, 0.004]))
        for number in range(500):
            world.send(number / 300, until_s=number / 300 + 0.2)
        return world.run()

    assert history() == history()


@given(st.integers(1, 64), st.floats(0, 1))
def test_times_lie_between_what_was_measured(rows, u):
    times = BatchTimes({1: (0.01, 0.02), 4: (0.02, 0.03), 16: (0.05, 0.09)})
    seconds = times.seconds(rows, u)
    assert times.seconds(rows, 0) <= seconds <= times.seconds(rows, 1) + 1e-12
    assert seconds <= times.seconds(rows + 1, u) + 1e-12
