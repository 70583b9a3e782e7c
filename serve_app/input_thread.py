"""One thread that reads images, sounds and large frames, and how long whoever comes now would wait for it.

Knows threads and seconds. Knows no image, no frame and no limit. Used from one event loop, which it never holds up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
# Of one reading: five are most of what is expected.
_LEARNING_RATE = 0.2


class Read(NamedTuple, Generic[T]):
    """What was read, and where the time went."""

    result: T
    waited_s: float
    took_s: float


class InputThread:
    """First in, first out."""

    def __init__(self, *, now_s: Callable[[], float], thread_start: Callable[[], None] = lambda: None) -> None:
        self._now_s = now_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="input", initializer=thread_start)
        self._inside = 0
        self._began_s: float | None = None
        self._each_s = 0.0

    def wait_s(self) -> float:
        """Seconds until something that came now would be begun; 0 as long as nothing is known."""
        return max(0.0, self._inside * self._each_s - self.running_s())

    def running_s(self) -> float:
        """For how long it has read one input; 0 where it reads none."""
        began_s = self._began_s
        return 0.0 if began_s is None else self._now_s() - began_s

    async def run(self, work: Callable[[], T]) -> Read[T]:
        """Do it in the thread. Cancelling whoever awaits also forgets the work, where it has not begun."""
        came_s = self._now_s()
        # Its place in the thread's queue stays when it is cancelled; what it holds, maybe megabytes, must not.
        waiting = [work]

        def timed() -> tuple[T, float, float]:
            began_s = self._began_s = self._now_s()
            try:
                return waiting.pop()(), began_s, self._now_s()
            finally:
                self._began_s = None

        self._inside += 1
        try:
            result, began_s, ended_s = await asyncio.get_running_loop().run_in_executor(self._thread, timed)
        finally:
            waiting.clear()
            self._inside -= 1
        took_s = ended_s - began_s
        self._each_s += (_LEARNING_RATE if self._each_s else 1.0) * (took_s - self._each_s)
        return Read(result, began_s - came_s, took_s)

    def close(self) -> None:
        """Let the thread end after what it does now."""
        self._thread.shutdown(wait=False, cancel_futures=True)
