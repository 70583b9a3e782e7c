"""Time as an argument: the one place that reads a clock or sleeps.

Knows no requests and no links. Tests pass a clock that jumps, so nothing that uses one ever waits for real.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Coroutine
from typing import Any, Protocol


class Clock(Protocol):
    """Monotonic seconds from an arbitrary start, and waiting on the same scale."""

    def now_s(self) -> float:
        """Seconds since this clock's start; never goes back."""

    def sleep(self, duration_s: float) -> Awaitable[None]:
        """Return when at least `duration_s` seconds have passed on this clock."""


class FleetClock(Clock, Protocol):
    """What a fleet needs of time: moments, and work that goes on beside other work."""

    late_s: float
    """How late whoever waits may be woken: what has to be begun by then is to be waited for so much less."""

    def sleep_until(self, at_s: float) -> Awaitable[None]:
        """Return at that moment or soon after; a moment that is over means now."""

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Let it run beside all others, from now on; it may have run until its first wait when this returns."""


class SystemClock:
    """The machine's monotonic clock."""

    def now_s(self) -> float:
        return time.perf_counter()

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)


class WallClock:
    """Seconds since it was made, by the machine's clock, and tasks of the running event loop."""

    late_s = 0.02
    """As much as a run may be and still be valid (fleet_run.MAX_LATENESS_P99_S)."""

    def __init__(self) -> None:
        self._began_s = time.perf_counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._quiet = asyncio.Event()

    def now_s(self) -> float:
        return time.perf_counter() - self._began_s

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)

    async def sleep_until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, at_s - self.now_s()))

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        self._quiet.clear()
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def restart(self) -> None:
        """Let it be 0 again, before anything is started: getting ready has taken time."""
        self._began_s = time.perf_counter()

    async def finish(self) -> None:
        """Return when all that was started has ended; raises what one of it raised."""
        if self._tasks and self._failure is None:
            await self._quiet.wait()
        if self._failure is not None:
            raise self._failure

    async def cancel(self) -> None:
        """End all that was started; returns when it has ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = self._failure or task.exception()
        if not self._tasks or self._failure is not None:
            self._quiet.set()
