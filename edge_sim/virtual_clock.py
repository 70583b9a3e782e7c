"""Time that jumps: coroutines that sleep until a moment, run in the order of those moments, as fast as they compute.

Knows an event heap and plain coroutines; asyncio is not involved, because an event here costs a microsecond and there
are millions of them. Events of one moment run in the order in which they were asked for, so that a simulation that uses
nothing but this clock and seeded generators gives the same results each time.
"""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from heapq import heappop, heappush
from typing import Any


class Promise:
    """Something that one coroutine waits for and another one brings."""

    __slots__ = ("kept", "value")

    def __init__(self) -> None:
        self.kept = False
        self.value: Any = None


class VirtualClock:
    """Seconds from 0. `start` coroutines, then `run`: it returns when nothing is left to wait for.

    A coroutine may await `sleep_until`, `sleep` and `wait` of this clock, and other coroutines that do. What it raises
    ends `run`.
    """

    late_s = 1e-6
    """Nobody is; sums of floats are a hair too large or too small."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._asked = 0
        self._waiting: dict[Promise, Coroutine[Any, Any, None]] = {}

    def now_s(self) -> float:
        """The moment of the event that runs."""
        return self._now_s

    def at(self, at_s: float, call: Callable[[Any], None], argument: Any = None) -> None:
        """Call it at that moment; a moment that is over means now, after what was asked for already."""
        self._asked += 1
        heappush(self._events, (at_s if at_s > self._now_s else self._now_s, self._asked, call, argument))

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Let it run beside all others: at once, until it waits for the first time."""
        self._resume(work)

    def sleep_until(self, at_s: float) -> Awaitable[None]:
        """Return at that moment; a moment that is over means now."""
        return _until(at_s)

    def sleep(self, duration_s: float) -> Awaitable[None]:
        """Return when so many seconds have passed."""
        return _until(self._now_s + duration_s)

    def wait(self, promise: Promise) -> Awaitable[bool]:
        """Whether the promise was kept; returns as soon as it is, or as `give_up` says."""
        return _held(promise)

    def is_waited_for(self, promise: Promise) -> bool:
        """Whether somebody still waits."""
        return promise in self._waiting

    def give_up(self, promise: Promise, *, at_s: float) -> None:
        """Whoever still waits then waits no more. For whoever knows that it may come to this: most promises are kept,
        and an event for each would be one of the eight that a simulated request costs."""
        self.at(at_s, self._give_up, promise)

    def keep(self, promise: Promise, value: Any, *, after_s: float = 0.0) -> None:
        """Bring what was promised; nobody need wait any more. Whoever does already goes on after `after_s` seconds."""
        promise.kept, promise.value = True, value
        waiter = self._waiting.pop(promise, None)
        if waiter is not None:
            self.at(self._now_s + after_s, self._resume, waiter)

    def run(self, *, until_s: float = float("inf")) -> None:
        """Run events up to and including that moment."""
        events = self._events
        while events and events[0][0] <= until_s:
            self._now_s, _, call, argument = heappop(events)
            call(argument)

    def close(self) -> None:
        """End what still waits, as if it had been cancelled."""
        events, self._events = self._events, []
        for _, _, call, argument in events:
            if call == self._resume:
                argument.close()
        while self._waiting:
            self._waiting.popitem()[1].close()

    def _resume(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            wish = work.send(None)
        except StopIteration:
            return
        if type(wish) is Promise:
            self._waiting[wish] = work
        else:
            self.at(wish, self._resume, work)

    def _give_up(self, promise: Promise) -> None:
        waiter = self._waiting.pop(promise, None)
        if waiter is not None:
            self._resume(waiter)


@types.coroutine
def _until(at_s: float) -> Generator[float, None, None]:
    yield at_s


@types.coroutine
def _held(promise: Promise) -> Generator[Promise, None, bool]:
    if not promise.kept:
        yield promise
    return promise.kept
