"""The dispatcher with a clock that is a number: deadlines are absolute, nothing bursts, everything is counted."""

from __future__ import annotations

import pytest

from loadtests.open_loop import Dispatcher


class World:
    """A clock that moves when somebody sleeps, and a record of what happened."""

    def __init__(self, *, oversleep_s=0.0, room=10**9):
        self.now = 0.0
        self.oversleep_s = oversleep_s
        self.pauses = {}
        self.started = []
        self.dropped = []
        self.under_way = 0
        self.room = room

    def sleep(self, seconds):
        self.now += seconds + (self.oversleep_s if seconds > 0 else 0.0)

    def start(self, number, intended_s):
        self.started.append((number, intended_s, self.now))
        self.now += self.pauses.get(number, 0.0)
        self.under_way += 1

    def run(self, intended, **more):
        Dispatcher(
            now_s=lambda: self.now,
            sleep_s=self.sleep,
            start=self.start,
            drop=lambda number, intended_s, why: self.dropped.append((number, intended_s, why)),
            in_flight=lambda: self.under_way,
            max_in_flight=self.room,
            **more,
        ).run(enumerate(intended))


def test_each_request_starts_at_its_own_time():
    world = World()
    world.run([0.5, 0.7, 2.0])
    assert [(number, at) for number, _, at in world.started] == [(0, 0.5), (1, 0.7), (2, 2.0)]


def test_lateness_does_not_add_up():
    world = World(oversleep_s=0.001)
    world.run([number / 100 for number in range(1, 1001)])
    assert max(at - intended for _, intended, at in world.started) == pytest.approx(0.001)


def test_a_slow_server_changes_no_start():
    """Nothing in the dispatcher waits for an answer."""
    world = World()
    world.run([number / 10 for number in range(100)])
    assert world.under_way == 100
    assert [at for _, _, at in world.started] == pytest.approx([number / 10 for number in range(100)])


def test_after_a_pause_what_is_too_late_is_dropped_and_not_sent_in_a_burst():
    world = World()
    world.pauses[10] = 1.0
    intended = [number / 100 for number in range(300)]
    world.run(intended, drop_after_s=0.105)
    # The pause lasts from 0.1 to 1.1 s; what was meant for before 0.995 s is dropped.
    assert {why for _, _, why in world.dropped} == {"late"}
    assert [round(at, 6) for _, at, _ in world.dropped] == [round(each, 6) for each in intended[11:100]]
    assert max(at - intended_s for _, intended_s, at in world.started) <= 0.105
    assert len(world.started) + len(world.dropped) == len(intended)


def test_no_more_than_allowed_are_under_way():
    world = World(room=5)
    world.run([number / 10 for number in range(8)])
    assert len(world.started) == 5
    assert [(number, why) for number, _, why in world.dropped] == [(5, "full"), (6, "full"), (7, "full")]


def test_whoever_was_started_gets_a_turn_before_the_next_start():
    turns = []

    class Watched(World):
        def sleep(self, seconds):
            turns.append((seconds, len(self.started)))
            super().sleep(seconds)

    Watched().run([0.0, 0.0, 0.0])
    assert [started for seconds, started in turns if seconds == 0] == [1, 2, 3]


def test_a_dispatcher_without_room_or_patience_is_refused():
    with pytest.raises(ValueError, match="room"):
        World(room=0).run([1.0])
    with pytest.raises(ValueError, match="moment"):
        World().run([1.0], drop_after_s=0.0)
