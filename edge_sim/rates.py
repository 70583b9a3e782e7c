"""How fast a bottleneck is, and when: from a trace, or by chance between a few states.

Knows bytes and seconds. Knows no queue, no propagation and no clock. A constant rate needs no process; it is a division
in edge_sim.link. A process belongs to one bottleneck, and is asked with start times that never go back.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from edge_sim.traces import BYTES_PER_OPPORTUNITY, Trace

Windows = Sequence[tuple[float, float]]
"""Times from (inclusive) until (exclusive) in which nothing leaves: ascending, apart from each other."""


class RateProcess(Protocol):
    """Says when a message has left that begins to leave at a given time."""

    def leaves_at_s(self, start_s: float, size_bytes: int, outages: Windows) -> float:
        """When the last byte has left. `start_s` is not before the last answer, and in none of the outages, which
        are those that end after it."""

    @property
    def mean_megabits_per_s(self) -> float:
        """In the long run, without outages."""


class TraceRate:
    """A trace, and how much of it this bottleneck has used: one message may end with what another left over."""

    __slots__ = ("_end_s", "_left_bytes", "_next", "trace")

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._end_s = -math.inf
        self._next = 0
        self._left_bytes = 0

    @property
    def mean_megabits_per_s(self) -> float:
        return self.trace.mean_megabits_per_s

    def leaves_at_s(self, start_s: float, size_bytes: int, outages: Windows) -> float:
        trace = self.trace
        if start_s > self._end_s:
            following = trace.first_opportunity(start_s)
            left_bytes = 0
        else:
            following, left_bytes = self._next, self._left_bytes
        missing = size_bytes - left_bytes
        if missing <= 0:
            self._left_bytes = -missing
            return self._end_s
        packets = -(-missing // BYTES_PER_OPPORTUNITY)
        self._left_bytes = packets * BYTES_PER_OPPORTUNITY - missing
        for from_s, until_s in outages:
            # Opportunities inside an outage are lost: count on behind it.
            before = max(0, trace.first_opportunity(from_s) - following)
            if packets <= before:
                break
            packets -= before
            following = max(following + before, trace.first_opportunity(until_s))
        self._next = following + packets
        self._end_s = end_s = trace.time_s(following + packets - 1)
        return end_s


class RateState(NamedTuple):
    """One state of a MarkovRate."""

    megabits_per_s: float
    mean_dwell_s: float


class MarkovRate:
    """A few rates, each kept for an exponential time, then any of the others with equal chance.

    The path depends on the seed alone: it is drawn in order and kept (about 100 bytes for each stay), however it is
    asked for. Time 0 is in the middle of things: the first state is as probable as its share of time.
    Raises ValueError for states that cannot carry anything.
    """

    __slots__ = ("_bits", "_random", "_rates", "_state", "_states", "_times_s")

    def __init__(self, states: Sequence[RateState], *, seed: int | str) -> None:
        if not states or not any(state.megabits_per_s > 0 for state in states):
            raise ValueError("a MarkovRate needs states, and one whose megabits_per_s is above 0")
        for state in states:
            if not (0 <= state.megabits_per_s < math.inf and 0 < state.mean_dwell_s < math.inf):
                raise ValueError(f"megabits_per_s must be 0 or more, mean_dwell_s positive, both finite: got {state}")
        self._states = tuple(states)
        self._random = random.Random(seed)
        self._state = self._random.choices(range(len(states)), [state.mean_dwell_s for state in states])[0]
        # At times_s[i], bits[i] could have left since time 0; rates[i] holds from then until times_s[i + 1].
        self._times_s = [0.0]
        self._bits = [0.0]
        self._rates: list[float] = []
        self._grow()

    @property
    def mean_megabits_per_s(self) -> float:
        total_s = sum(state.mean_dwell_s for state in self._states)
        return sum(state.megabits_per_s * state.mean_dwell_s for state in self._states) / total_s

    def rate_at(self, now_s: float) -> float:
        """Megabits per second at one moment from 0 on."""
        while self._times_s[-1] <= now_s:
            self._grow()
        return self._rates[bisect_right(self._times_s, now_s) - 1] / 1e6

    def leaves_at_s(self, start_s: float, size_bytes: int, outages: Windows) -> float:
        bits = float(size_bytes * 8)
        for from_s, until_s in outages:
            before = self._bits_until(from_s) - self._bits_until(start_s)
            if bits <= before:
                break
            bits -= before
            start_s = until_s
        goal = self._bits_until(start_s) + bits
        while self._bits[-1] < goal:
            self._grow()
        at = bisect_left(self._bits, goal) - 1
        return max(start_s, self._times_s[at] + (goal - self._bits[at]) / self._rates[at])

    def _bits_until(self, now_s: float) -> float:
        while self._times_s[-1] <= now_s:
            self._grow()
        at = bisect_right(self._times_s, now_s) - 1
        return self._bits[at] + (now_s - self._times_s[at]) * self._rates[at]

    def _grow(self) -> None:
        rate, mean_dwell_s = self._states[self._state]
        stay_s = self._random.expovariate(1 / mean_dwell_s)
        self._rates.append(rate * 1e6)
        self._times_s.append(self._times_s[-1] + stay_s)
        self._bits.append(self._bits[-1] + stay_s * rate * 1e6)
        if len(self._states) > 1:
            step = self._random.randrange(1, len(self._states))
            self._state = (self._state + step) % len(self._states)
