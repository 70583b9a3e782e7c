"""Starts each request at its own time, whatever the server does: absolute deadlines, a bounded pool, no bursts.

An arrival that this process is too late for, or has no room for, is dropped and counted; it is never sent later
together with others, because a burst that nobody asked for would be measured as the server's fault. Clock, sleep and
starting are arguments: knows no gevent, no HTTP and no Locust. Times in seconds since the run began.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Drop = Literal["late", "full"]
"""Late: this process was busy or stopped when the time came. Full: as many requests as allowed were under way."""

# At 1,000/s a pause of this length leaves a backlog of 100 requests, which go out at once and are all late.
DROP_AFTER_S = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Dispatcher:
    """Walks through a schedule in real time."""

    now_s: Callable[[], float]
    """Monotonic."""
    sleep_s: Callable[[float], None]
    """Lets others run for so long; 0: once."""
    start: Callable[[int, float], None]
    """Begins a request (its number, its intended start) and returns at once."""
    drop: Callable[[int, float, Drop], None]
    """Counts an arrival that is not sent."""
    in_flight: Callable[[], int]
    max_in_flight: int
    drop_after_s: float = DROP_AFTER_S

    def __post_init__(self) -> None:
        if self.max_in_flight < 1 or not self.drop_after_s > 0:
            raise ValueError("room for one request at least, and a moment to send it in")

    def run(self, arrivals: Iterable[tuple[int, float]]) -> None:
        """Start every arrival at its time; returns when the last one was started, not when it was answered."""
        for number, intended_s in arrivals:
            # Each deadline is absolute: one that was missed moves no other.
            while (wait_s := intended_s - self.now_s()) > 0:
                self.sleep_s(wait_s)
            if -wait_s > self.drop_after_s:
                self.drop(number, intended_s, "late")
            elif self.in_flight() >= self.max_in_flight:
                self.drop(number, intended_s, "full")
            else:
                self.start(number, intended_s)
                # What was started has to get its turn even when the next one is due already.
                self.sleep_s(0)
