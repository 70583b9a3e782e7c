"""Order, waiting and determinism of time that jumps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_sim.virtual_clock import Promise, VirtualClock

MOMENTS = st.lists(st.floats(0, 1e6), min_size=1, max_size=50)


@given(MOMENTS)
def test_sleepers_wake_in_the_order_of_their_moments_and_of_their_asking(moments):
    clock, woken = VirtualClock(), []

    async def sleeper(number, at_s):
        await clock.sleep_until(at_s)
        woken.append((clock.now_s(), number))

    for number, at_s in enumerate(moments):
        clock.start(sleeper(number, at_s))
    clock.run()
    assert woken == sorted((at_s, number) for number, at_s in enumerate(moments))


def test_a_moment_that_is_over_is_now():
    clock, seen = VirtualClock(), []

    async def late():
        await clock.sleep_until(5.0)
        await clock.sleep_until(1.0)
        seen.append(clock.now_s())
        await clock.sleep(2.0)
        seen.append(clock.now_s())

    clock.start(late())
    clock.run()
    assert seen == [5.0, 7.0]


def test_a_promise_is_waited_for_until_it_is_kept_or_the_time_is_up():
    clock, seen = VirtualClock(), []
    kept, forgotten, early = Promise(), Promise(), Promise()

    async def waiter(name, promise, until_s):
        clock.give_up(promise, at_s=until_s)
        found = await clock.wait(promise)
        seen.append((name, clock.now_s(), found))

    async def keeper():
        clock.keep(early, "at once")
        await clock.sleep_until(3.0)
        clock.keep(kept, "here")
        await clock.sleep_until(9.0)
        clock.keep(forgotten, "too late")

    clock.start(keeper())
    clock.start(waiter("kept", kept, 5.0))
    clock.start(waiter("forgotten", forgotten, 5.0))
    clock.start(waiter("early", early, 5.0))
    clock.run()
    assert seen == [("early", 0.0, True), ("kept", 3.0, True), ("forgotten", 5.0, False)]


def test_what_fails_ends_the_run_and_close_ends_the_others():
    clock, ended = VirtualClock(), []

    async def fails():
        await clock.sleep_until(1.0)
        raise ValueError("no")

    async def stays():
        try:
            await clock.wait(Promise())
        finally:
            ended.append(clock.now_s())

    clock.start(stays())
    clock.start(fails())
    try:
        clock.run()
    except ValueError:
        clock.close()
    assert ended == [1.0]


def test_it_runs_up_to_a_moment_and_no_further():
    clock = VirtualClock()
    seen: list[float] = []
    for at_s in (1.0, 2.0, 3.0):
        clock.at(at_s, seen.append, at_s)
    clock.run(until_s=2.0)
    assert seen == [1.0, 2.0]
    clock.run()
    assert seen == [1.0, 2.0, 3.0]
