"""What one device's battery gives for its requests: the processor at work, the radio with its tail, and waiting.

Knows watts and seconds. Knows no profile and no clock. The radio's model is Huang et al. (MobiSys 2012): while it sends
it takes alpha * Mbit/s + beta, and afterwards it stays awake for a while, the tail. A request pays for the tail that it
causes: one that begins inside the tail of another one pays only for what it adds.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_sim.policy import View


@dataclass(frozen=True, kw_only=True, slots=True)
class Power:
    """Watts of one device."""

    compute_w: float
    """Of all of it while it computes."""
    idle_w: float
    """Of all of it while it waits, and neither computes nor sends."""
    radio_base_w: float
    """Of all of it while it sends, beside what the rate costs."""
    radio_w_per_mbit_s: float
    tail_s: float = 0.0
    """For which the radio stays awake after a transfer."""
    tail_w: float = 0.0


class PowerMeter:
    """Counts one device's joules. Times handed over never go back."""

    __slots__ = ("_left_j", "_power", "_tail_until_s", "spent_j")

    def __init__(self, power: Power, *, battery_j: float | None = None) -> None:
        self._power = power
        self._left_j = battery_j
        self._tail_until_s = 0.0
        self.spent_j = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether the battery has given all it had; never, from the mains."""
        return self._left_j is not None and self.spent_j >= self._left_j

    @property
    def battery_share(self) -> float:
        """What is left of the battery, 0..1; 1 from the mains."""
        return 1.0 if self._left_j is None else max(0.0, 1.0 - self.spent_j / self._left_j)

    def compute(self, seconds: float) -> float:
        """Joules of so many seconds of the processor."""
        return self._spend(self._power.compute_w * seconds)

    def send(self, start_s: float, seconds: float, size_bytes: int) -> float:
        """Joules of a transfer from `start_s` on, and of the tail that it adds."""
        if seconds <= 0:
            return 0.0
        power = self._power
        end_s = start_s + seconds
        joules = power.radio_base_w * seconds + power.radio_w_per_mbit_s * size_bytes * 8e-6
        if power.tail_s:
            # Of the tail before, what is paid for already: less where this transfer lies in it.
            covered_s = max(0.0, min(self._tail_until_s, end_s) - start_s)
            added_s = end_s + power.tail_s - max(self._tail_until_s, end_s)
            joules += power.tail_w * (added_s - covered_s)
            self._tail_until_s = max(self._tail_until_s, end_s + power.tail_s)
        return self._spend(joules)

    def idle(self, seconds: float) -> float:
        """Joules of waiting."""
        return self._spend(self._power.idle_w * seconds)

    def fill(self, view: View, *, now_s: float) -> None:
        """Tell a policy."""
        power = self._power
        view.compute_w = power.compute_w
        view.idle_w = power.idle_w
        view.radio_w = power.radio_base_w + power.radio_w_per_mbit_s * view.up_bytes_per_s * 8e-6
        # What is left of the tail before is paid for already.
        left_s = min(power.tail_s, max(0.0, self._tail_until_s - now_s))
        view.tail_j = power.tail_w * (power.tail_s - left_s)
        view.battery_share = self.battery_share

    def _spend(self, joules: float) -> float:
        self.spent_j += joules
        return joules
