"""How much longer asking the server takes than was expected: what a device learns from the answers that it waited for.

A bandwidth estimate is the mean of what got through, and says nothing of the request that stalls and is finished on the
device at the last moment. Devices whose processor is fast enough pay for believing it: the mean of what came of asking
is what they have to compare with their own time. Knows seconds; no link, no policy and no clock.
"""

from __future__ import annotations

# Of one answer. Four answers are most of what is believed, as in BandwidthEstimate over its half-life.
_LEARNING_RATE = 0.25


class SendBias:
    """Mean of how much longer answers took than expected, half of it forgotten after each `half_life_s`.

    Forgotten, so that a device which has computed everything itself since a bad minute tries again.
    """

    __slots__ = ("_half_life_s", "_last_s", "_seconds")

    def __init__(self, *, half_life_s: float = 10.0) -> None:
        """The default is BandwidthEstimate's. Raises ValueError unless it is positive."""
        if not half_life_s > 0:
            raise ValueError(f"half_life_s must be positive, got {half_life_s}")
        self._half_life_s = half_life_s
        self._last_s = 0.0
        self._seconds = 0.0

    def learn(self, *, now_s: float, expected_s: float, took_s: float) -> None:
        """A request that was meant for the server ended at `now_s`, wherever; `expected_s` is without this bias."""
        kept = self._kept(now_s)
        self._seconds = kept + _LEARNING_RATE * (took_s - expected_s - kept)
        self._last_s = now_s

    def seconds(self, now_s: float) -> float:
        """To be added to what is expected now; never negative: good luck is no reason to ask."""
        return max(0.0, self._kept(now_s))

    def _kept(self, now_s: float) -> float:
        return self._seconds * float(0.5 ** ((now_s - self._last_s) / self._half_life_s))
