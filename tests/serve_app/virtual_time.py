"""Real asyncio code in virtual time: an event loop whose clock jumps to the next moment, and threads on it."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any


class _JumpingSelector(selectors.SelectSelector):
    """Where others wait, the clock is put forward."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everybody waits, and nothing is going to happen"
        self.now_s += timeout
        # There are no sockets but the loop's own, which wakes it from other threads: there are none either.
        return []


class JumpingLoop(asyncio.SelectorEventLoop):
    """Begins at 0 s; sleeping takes no time."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


class LoopClock:
    """The loop's time; work that runs now puts it forward for itself alone."""

    def __init__(self, loop: JumpingLoop) -> None:
        self._loop = loop
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return self._loop.time() + self.ahead_s


class VirtualThread(Executor):
    """One thread: what is submitted begins when it is free, and takes as long as it puts the clock forward."""

    def __init__(self, loop: JumpingLoop, clock: LoopClock) -> None:
        self._loop, self._clock = loop, clock
        self._waiting: list[tuple[Future[Any], Callable[..., Any], Any, Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._waiting.append((future, fn, args, kwargs))
        if len(self._waiting) == 1:
            self._begin()
        return future

    def _begin(self) -> None:
        future, fn, args, kwargs = self._waiting[0]
        self._clock.ahead_s = 0.0
        result = fn(*args, **kwargs)
        took_s, self._clock.ahead_s = self._clock.ahead_s, 0.0
        self._loop.call_later(took_s, self._end, future, result)

    def _end(self, future: Future[Any], result: Any) -> None:
        self._waiting.pop(0)
        future.set_result(result)
        if self._waiting:
            self._begin()
