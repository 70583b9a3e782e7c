"""What one device's battery gives: for its requests the processor at work, the radio with its tail, and waiting; and
between them, which is nobody's, idling.

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


# Spans of time that are paid for and not forgotten yet: more than lie within one request's time, which makes them one.
_MOST_SPANS = 32


class PowerMeter:
    """Counts one device's joules. Computing and sending are told in the order in which they happen.

    Powers are those of the whole device: where it computes or sends for one request, another one that waits meanwhile
    does not pay for waiting, and where it does both at once, what it takes for idling is paid once.
    """

    __slots__ = ("_full_j", "_paid", "_paid_s", "_power", "_sent_until_s", "_tail_until_s", "spent_j")

    def __init__(self, power: Power, *, battery_j: float | None = None) -> None:
        self._power = power
        self._full_j = battery_j
        self._sent_until_s = 0.0
        self._tail_until_s = 0.0
        self._paid: list[tuple[float, float]] = []
        """Spans, in order and apart from each other."""
        self._paid_s = 0.0
        self.spent_j = 0.0
        """For requests."""

    def is_empty(self, now_s: float) -> bool:
        """Whether the battery has given all it had; never, from the mains."""
        return self._full_j is not None and self._given_j(now_s) >= self._full_j

    def battery_share(self, now_s: float) -> float:
        """What is left of the battery, 0..1; 1 from the mains."""
        return 1.0 if self._full_j is None else max(0.0, 1.0 - self._given_j(now_s) / self._full_j)

    def _given_j(self, now_s: float) -> float:
        """By a battery that was full at 0 s. All time that no request paid for was spent idling."""
        return self.spent_j + self._power.idle_w * max(0.0, now_s - self._paid_s)

    def compute(self, start_s: float, seconds: float) -> float:
        """Joules of so many seconds of the processor, from `start_s` on."""
        # Where it sends meanwhile, that is paid for with all that the device takes, idling too.
        shared_s = seconds - self._pay(start_s, start_s + seconds)
        return self._spend(self._power.compute_w * seconds - self._power.idle_w * max(0.0, shared_s))

    def send(self, start_s: float, seconds: float, size_bytes: int) -> float:
        """Joules of a transfer from `start_s` on, and of the tail that it adds."""
        if seconds <= 0:
            return 0.0
        power = self._power
        end_s = start_s + seconds
        shared_s = seconds - self._pay(start_s, end_s)
        joules = power.radio_w_per_mbit_s * size_bytes * 8e-6
        # While it sends for one request, it is awake for another one too: only what comes behind is paid for.
        if start_s < self._sent_until_s:
            shared_s -= min(self._sent_until_s, end_s) - start_s
            start_s = self._sent_until_s
        # And where it computes meanwhile, idling is paid for already.
        joules -= power.idle_w * max(0.0, shared_s)
        if end_s > start_s:
            joules += power.radio_base_w * (end_s - start_s)
            self._sent_until_s = end_s
            if power.tail_s:
                # Of the tail before, what is paid for already: less where this transfer lies in it.
                tail_until_s = self._tail_until_s
                covered_s = min(tail_until_s, end_s) - start_s if tail_until_s > start_s else 0.0
                added_s = end_s + power.tail_s - (tail_until_s if tail_until_s > end_s else end_s)
                joules += power.tail_w * (added_s - covered_s)
                if tail_until_s < end_s + power.tail_s:
                    self._tail_until_s = end_s + power.tail_s
        return self._spend(joules)

    def idle(self, from_s: float, until_s: float) -> float:
        """Joules of waiting in this time, as far as it was not paid for yet, by whatever request."""
        return self._spend(self._power.idle_w * self._pay(from_s, until_s))

    def fill(self, view: View, *, now_s: float) -> None:
        """Tell a policy."""
        power = self._power
        view.compute_w = power.compute_w
        view.idle_w = power.idle_w
        view.radio_w = power.radio_base_w + power.radio_w_per_mbit_s * view.up_bytes_per_s * 8e-6
        # What is left of the tail before is paid for already.
        left_s = min(power.tail_s, max(0.0, self._tail_until_s - now_s))
        view.tail_j = power.tail_w * (power.tail_s - left_s)
        view.battery_share = self.battery_share(now_s)

    def _pay(self, from_s: float, until_s: float) -> float:
        """Seconds of this time that were not paid for; all of it is now."""
        paid = self._paid
        new_s = until_s - from_s
        if new_s <= 0:
            return 0.0
        at = len(paid)
        # Most of it lies behind all others, or overlaps the last ones.
        while at and paid[at - 1][1] >= from_s:
            at -= 1
        end = at
        first_s, last_s = from_s, until_s
        while end < len(paid) and paid[end][0] <= until_s:
            start_s, stop_s = paid[end]
            new_s -= (stop_s if stop_s < until_s else until_s) - (start_s if start_s > from_s else from_s)
            if start_s < first_s:
                first_s = start_s
            if stop_s > last_s:
                last_s = stop_s
            end += 1
        paid[at:end] = [(first_s, last_s)]
        if len(paid) > _MOST_SPANS:
            del paid[: _MOST_SPANS // 2]
        if new_s <= 0:
            return 0.0
        self._paid_s += new_s
        return new_s

    def _spend(self, joules: float) -> float:
        self.spent_j += joules
        return joules
