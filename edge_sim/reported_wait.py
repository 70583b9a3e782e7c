"""How long requests wait at a server before their batch begins, by what its answers said lately.

Knows seconds; no server and no clock.
"""

from __future__ import annotations

# Of one answer. Five answers are most of what is believed.
_SMOOTHING = 0.2
# As BandwidthEstimate and SendBias forget: devices that heard of a long wait stop asking, and so hear of no shorter
# one; they have to try again by themselves.
HALF_LIFE_S = 10.0


class ReportedWait:
    """Mean of the waits that were reported, half of it forgotten after each HALF_LIFE_S."""

    __slots__ = ("_last_s", "_seconds")

    def __init__(self) -> None:
        self._last_s = 0.0
        self._seconds = 0.0

    def learn(self, now_s: float, wait_s: float) -> None:
        """A request waited so long, or would have."""
        kept = self.seconds(now_s)
        self._seconds = kept + _SMOOTHING * (wait_s - kept)
        self._last_s = now_s

    def seconds(self, now_s: float) -> float:
        """What a request is expected to wait now."""
        return self._seconds * float(0.5 ** ((now_s - self._last_s) / HALF_LIFE_S))
