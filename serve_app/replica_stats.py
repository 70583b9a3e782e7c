"""How busy a replica is, for the autoscaler: queue delay and busy share of the last seconds.

Knows facts of batches and a clock. Knows no Ray.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

WINDOW_S = 2.0
"""Short enough to follow a burst, long enough to hold many batches."""


class _Batch(Protocol):
    @property
    def queue_delays_s(self) -> tuple[float, ...]: ...
    @property
    def tail_s(self) -> float: ...


class ReplicaStats:
    """An observer that keeps two seconds of batches."""

    def __init__(self, *, window_s: float = WINDOW_S, now_s: Callable[[], float] = time.monotonic) -> None:
        self._window_s = window_s
        self._now_s = now_s
        self._started_s = now_s()
        self._lock = threading.Lock()
        self._batches: deque[tuple[float, float, float, int]] = deque()

    def batch_done(self, facts: _Batch) -> None:
        """A batch ran until now."""
        with self._lock:
            now_s = self._now_s()
            delays = facts.queue_delays_s
            self._batches.append((now_s, facts.tail_s, sum(delays), len(delays)))
            self._forget(now_s)

    def request_done(self, facts: object) -> None:
        """Nothing: refusals are no work."""

    def record(self) -> dict[str, float]:
        """`queue_delay_s`: mean of the requests that ran; `busy_share`: of the window, 0..1; `window_s`: how long
        both were looked at, 0 at the start."""
        with self._lock:
            now_s = self._now_s()
            self._forget(now_s)
            window_s = min(self._window_s, now_s - self._started_s)
            requests = sum(count for *_, count in self._batches)
            delay_s = sum(delays_s for _, _, delays_s, _ in self._batches) / requests if requests else 0.0
            since_s = now_s - window_s
            # Of a batch that began before the window only the part inside it.
            busy_s = sum(min(tail_s, ended_s - since_s) for ended_s, tail_s, _, _ in self._batches)
        share = min(1.0, busy_s / window_s) if window_s > 0 else 0.0
        return {"queue_delay_s": delay_s, "busy_share": share, "window_s": window_s}

    def _forget(self, now_s: float) -> None:
        while self._batches and self._batches[0][0] < now_s - self._window_s:
            self._batches.popleft()
