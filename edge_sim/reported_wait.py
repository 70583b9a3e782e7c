"""How long requests wait at a server before their batch begins, by what its answers said lately.

Knows seconds; no server and no clock.
"""

from __future__ import annotations

from edge_sim.fading_mean import FadingMean

# Of one answer. Five answers are most of what is believed.
_SMOOTHING = 0.2
# As BandwidthEstimate and SendBias forget: devices that heard of a long wait stop asking, and so hear of no shorter
# one; they have to try again by themselves.
HALF_LIFE_S = 10.0


class ReportedWait:
    """Mean of the waits that were reported, half of it forgotten after each HALF_LIFE_S."""

    __slots__ = ("learn", "seconds")

    def __init__(self) -> None:
        mean = FadingMean(share=_SMOOTHING, half_life_s=HALF_LIFE_S)
        self.learn = mean.learn
        """A request waited so long, or would have."""
        self.seconds = mean.value
        """What a request is expected to wait now."""
