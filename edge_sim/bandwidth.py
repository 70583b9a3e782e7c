"""What a device believes about its bandwidth, from nothing but its own transfers.

Knows no link: a device does not see one. Idle time says nothing, and is not counted.
"""

from __future__ import annotations


class BandwidthEstimate:
    """Bytes over seconds of the transfers seen, older ones counting less: half after each `half_life_s`.

    Sums are averaged, not rates, so that a small message whose time is mostly waiting weighs as little as it took, and
    one that took no time at all divides by nothing. After a long idle time the next transfer says almost everything;
    until it comes the old estimate stands. Time in the queue belongs to `duration_s`: a frame of ours will wait too.
    Raises ValueError for times or sizes that make no sense.
    """

    __slots__ = ("_half_life_s", "_last_s", "_megabits", "_seconds")

    def __init__(self, *, half_life_s: float = 10.0) -> None:
        if not half_life_s > 0:
            raise ValueError(f"half_life_s must be positive, got {half_life_s}")
        self._half_life_s = half_life_s
        self._last_s = 0.0
        self._megabits = 0.0
        self._seconds = 0.0

    def observe(self, *, now_s: float, size_bytes: int, duration_s: float) -> None:
        """A transfer ended at `now_s`; one that was given up counts with what had left by then, perhaps 0 bytes."""
        if not (size_bytes >= 0 and duration_s >= 0 and now_s >= self._last_s):
            raise ValueError(
                f"expected 0 bytes or more in 0 s or more, not before {self._last_s}: "
                f"got {size_bytes} bytes, {duration_s} s, at {now_s}"
            )
        kept = 0.5 ** ((now_s - self._last_s) / self._half_life_s)
        self._megabits = self._megabits * kept + size_bytes * 8 / 1e6
        self._seconds = self._seconds * kept + duration_s
        self._last_s = now_s

    @property
    def megabits_per_s(self) -> float | None:
        """None before the first transfer that took any time."""
        return self._megabits / self._seconds if self._seconds > 0 else None

    def transfer_s(self, size_bytes: int) -> float | None:
        """How long that many bytes would take now; None where nothing is known, infinite where nothing got through."""
        if not self._seconds > 0:
            return None
        return size_bytes * 8 / 1e6 / self._megabits * self._seconds if self._megabits > 0 else float("inf")
