"""Time as an argument: the one place that reads a clock or sleeps.

Knows no requests and no links. Tests pass a clock that jumps, so nothing that uses one ever waits for real.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds from an arbitrary start, and waiting on the same scale."""

    def now_s(self) -> float:
        """Seconds since this clock's start; never goes back."""

    async def sleep(self, duration_s: float) -> None:
        """Return when at least `duration_s` seconds have passed on this clock."""


class SystemClock:
    """The machine's monotonic clock."""

    def now_s(self) -> float:
        return time.perf_counter()

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)
