"""How much longer asking the server takes than was expected: what a device learns from the answers that it waited for.

A bandwidth estimate is the mean of what got through, and says nothing of the request that stalls and is finished on the
device at the last moment. Devices whose processor is fast enough pay for believing it: the mean of what came of asking
is what they have to compare with their own time. Knows seconds; no link, no policy and no clock.
"""

from __future__ import annotations

from edge_sim.fading_mean import FadingMean

# Of one answer. Four answers are most of what is believed, as in BandwidthEstimate over its half-life.
_LEARNING_RATE = 0.25


class SendBias:
    """Mean of how much longer answers took than expected, half of it forgotten after each `half_life_s`.

    Forgotten, so that a device which has computed everything itself since a bad minute tries again.
    """

    __slots__ = ("_mean",)

    def __init__(self, *, half_life_s: float = 10.0) -> None:
        """The default is BandwidthEstimate's. Raises ValueError unless it is positive."""
        self._mean = FadingMean(share=_LEARNING_RATE, half_life_s=half_life_s)

    def learn(self, *, now_s: float, expected_s: float, took_s: float) -> None:
        """A request that was meant for the server ended at `now_s`, wherever; `expected_s` is without this bias."""
        self._mean.learn(now_s, took_s - expected_s)

    def seconds(self, now_s: float) -> float:
        """To be added to what is expected now; never negative: good luck is no reason to ask."""
        return max(0.0, self._mean.value(now_s))
