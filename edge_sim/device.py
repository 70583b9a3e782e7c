"""A simulated device's processor: one job at a time, slower when it gets hot.

Knows seconds. Knows no model, no profile and no clock. Heat is counted in seconds of load: it grows by one for each
second at work and falls by one for each second of rest; at `sustained_after_s` the processor slows down to
`sustained_speed`, and is itself again when half of that heat is gone. Coarser than any real governor, and the same for
everybody: what matters is that a device at full load for minutes is not as fast as in its first second.
"""

from __future__ import annotations

import math


class Device:
    """One processor. Times handed over never go back. Raises ValueError for a speed outside (0, 1]."""

    __slots__ = ("_after_s", "_heat_s", "_hot", "_sustained", "free_at_s")

    def __init__(self, *, sustained_after_s: float = math.inf, sustained_speed: float = 1.0) -> None:
        if not 0 < sustained_speed <= 1 or not sustained_after_s > 0:
            raise ValueError(f"sustained_speed is in (0, 1] after some seconds, got {sustained_speed}")
        self._after_s = sustained_after_s
        self._sustained = sustained_speed
        self._heat_s = 0.0
        self._hot = False
        self.free_at_s = 0.0
        """When the last job ends."""

    def speed(self, now_s: float) -> float:
        """Share of full speed at which a job would begin now: 1, or the sustained speed."""
        return self._sustained if self._is_hot(self._heat_at(now_s)) else 1.0

    def would_end_s(self, now_s: float, seconds: float) -> float:
        """When a job that needs `seconds` at full speed would end."""
        start_s = now_s if now_s > self.free_at_s else self.free_at_s
        return start_s + self._lasts_s(self._heat_at(start_s), seconds)

    def compute(self, now_s: float, seconds: float) -> tuple[float, float]:
        """Do the job: when it starts, which is when those before it have ended, and when it ends."""
        start_s = now_s if now_s > self.free_at_s else self.free_at_s
        heat_s = self._heat_at(start_s)
        hot = self._is_hot(heat_s)
        lasts_s = self._lasts_s(heat_s, seconds)
        self._heat_s = min(self._after_s, heat_s + lasts_s)
        self._hot = hot or self._heat_s >= self._after_s
        self.free_at_s = start_s + lasts_s
        return start_s, self.free_at_s

    def _heat_at(self, start_s: float) -> float:
        rested_s = start_s - self.free_at_s
        return self._heat_s - rested_s if 0 < rested_s < self._heat_s else self._heat_s if rested_s <= 0 else 0.0

    def _is_hot(self, heat_s: float) -> bool:
        return self._hot and heat_s > self._after_s / 2

    def _lasts_s(self, heat_s: float, seconds: float) -> float:
        if self._is_hot(heat_s):
            return seconds / self._sustained
        # At full speed until it is hot, and slower from then on.
        fast_s = self._after_s - heat_s
        return seconds if seconds <= fast_s else fast_s + (seconds - fast_s) / self._sustained
