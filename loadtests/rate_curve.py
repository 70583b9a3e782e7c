"""How the rate of requests changes over a run: straight pieces, their integral, and the inverse of it.

A schedule with a changing rate is a schedule of rate one, seen through this inverse (time rescaling: Cinlar,
"Introduction to Stochastic Processes", 4.7). Exact, and no arrival is thrown away as thinning by rejection would.
Knows no clock and no randomness. Times in seconds from the start of the run, rates in requests a second.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from split_inference.errors import UsageError

# A day has 48 half hours; between them a sine of this amplitude is a straight line to within 0.3 %.
_DIURNAL_PIECES = 48
MAX_RATE_PER_S = 1e6
MAX_DURATION_S = 7 * 86_400.0
# A burst of a second every two, for a week.
_MAX_PIECES = 700_000


@dataclass(frozen=True, slots=True)
class Piece:
    """`duration_s` in which the rate goes in a straight line from one value to another."""

    duration_s: float
    from_per_s: float
    to_per_s: float


class RateCurve:
    """Rates over a run, in straight pieces; UsageError for one that cannot be.

    >>> curve = RateCurve([Piece(10.0, 0.0, 100.0)])
    >>> curve.total, curve.when(np.array([125.0])).tolist()
    (500.0, [5.0])
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            rates = (piece.from_per_s, piece.to_per_s)
            if not all(0 <= rate <= MAX_RATE_PER_S for rate in rates):
                raise UsageError(f"a rate is 0..{MAX_RATE_PER_S:.0f} requests a second, got {max(rates, key=abs):g}")
            if not 0 < piece.duration_s <= MAX_DURATION_S:
                raise UsageError(f"a duration is above 0 and at most {MAX_DURATION_S:.0f} s, got {piece.duration_s:g}")
        if not 1 <= len(pieces) <= _MAX_PIECES:
            raise UsageError(f"a run has 1..{_MAX_PIECES} pieces of its own rate, got {len(pieces)}")
        durations = np.array([piece.duration_s for piece in pieces])
        self._from = np.array([piece.from_per_s for piece in pieces])
        self._to = np.array([piece.to_per_s for piece in pieces])
        self._slopes = (self._to - self._from) / durations
        self._starts_s = np.concatenate([[0.0], np.cumsum(durations)])
        self._totals = np.concatenate([[0.0], np.cumsum(durations * (self._from + self._to) / 2)])
        self.duration_s = float(self._starts_s[-1])
        self.total = float(self._totals[-1])
        """Requests that are to be expected over the whole run."""
        if self.duration_s > MAX_DURATION_S:
            raise UsageError(f"a run lasts at most {MAX_DURATION_S:.0f} s, got {self.duration_s:g}")
        if not self.total > 0:
            raise UsageError("the rate is zero all the time; give a rate above zero")

    @property
    def mean_per_s(self) -> float:
        """Over the whole run."""
        return self.total / self.duration_s

    def rate_per_s(self, at_s: float) -> float:
        """At one moment; of a jump, the rate after it. 0 outside of the run."""
        if not 0 <= at_s < self.duration_s:
            return 0.0
        piece = int(np.searchsorted(self._starts_s, at_s, side="right")) - 1
        return float(self._from[piece] + self._slopes[piece] * (at_s - self._starts_s[piece]))

    def expected(self, until_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Requests that are to be expected from the start until each of these moments within the run."""
        piece = np.clip(np.searchsorted(self._starts_s, until_s, side="right") - 1, 0, len(self._from) - 1)
        within_s = until_s - self._starts_s[piece]
        expected: NDArray[np.float64] = (
            self._totals[piece] + within_s * self._from[piece] + within_s**2 * self._slopes[piece] / 2
        )
        return expected

    def when(self, expected: NDArray[np.float64]) -> NDArray[np.float64]:
        """The inverse of `expected`, for values from 0 to `total`."""
        piece = np.clip(np.searchsorted(self._totals, expected, side="right") - 1, 0, len(self._from) - 1)
        area = expected - self._totals[piece]
        start, slope = self._from[piece], self._slopes[piece]
        # area = start * t + slope * t**2 / 2, solved without the cancellation that the school formula has.
        root = np.sqrt(np.maximum(start**2 + 2 * slope * area, 0.0))
        with np.errstate(invalid="ignore", divide="ignore"):
            within_s = np.where(area > 0, 2 * area / (start + root), 0.0)
        # Rounding must not move an arrival out of its piece.
        when_s: NDArray[np.float64] = np.minimum(self._starts_s[piece] + within_s, self._starts_s[piece + 1])
        return when_s


def constant(rate_per_s: float, duration_s: float) -> RateCurve:
    """The same rate all the time."""
    return RateCurve([Piece(duration_s, rate_per_s, rate_per_s)])


def ramp(from_per_s: float, to_per_s: float, duration_s: float) -> RateCurve:
    """From one rate to another in a straight line."""
    return RateCurve([Piece(duration_s, from_per_s, to_per_s)])


def steps(from_per_s: float, to_per_s: float, *, count: int, step_s: float) -> RateCurve:
    """`count` rates, evenly spaced from the first to the last, each for `step_s`."""
    if not 1 <= count <= 10_000:
        raise UsageError(f"there are 1..10,000 steps, got {count}")
    width = (to_per_s - from_per_s) / max(1, count - 1)
    rates = [from_per_s + width * number for number in range(count)]
    return RateCurve([Piece(step_s, rate, rate) for rate in rates])


def bursts(base_per_s: float, peak_per_s: float, *, on_s: float, off_s: float, duration_s: float) -> RateCurve:
    """`off_s` at the base, then `on_s` at the peak, again and again until the end."""
    if not (on_s > 0 and off_s > 0):
        raise UsageError(f"a burst and the pause before it last more than 0 s, got {on_s:g} and {off_s:g}")
    if not 0 < duration_s <= MAX_DURATION_S or duration_s / (on_s + off_s) > _MAX_PIECES / 2:
        raise UsageError(f"bursts of {on_s + off_s:g} s for {duration_s:g} s: at most {_MAX_PIECES // 2} bursts")
    pieces = []
    at_s, peak = 0.0, False
    while at_s < duration_s - 1e-9:
        lasts_s = min(on_s if peak else off_s, duration_s - at_s)
        rate = peak_per_s if peak else base_per_s
        pieces.append(Piece(lasts_s, rate, rate))
        at_s += lasts_s
        peak = not peak
    return RateCurve(pieces)


def diurnal(mean_per_s: float, *, swing: float, day_s: float, duration_s: float) -> RateCurve:
    """A day's sine, from its lowest point on: mean * (1 - swing * cos(2 pi t / day)), in 48 straight pieces a day."""
    if not 0 <= swing <= 1:
        raise UsageError(f"the swing of a day is 0..1 of its mean, got {swing:g}")
    if not day_s > 0 or not 0 < duration_s <= MAX_DURATION_S:
        raise UsageError(f"a day and a run last more than 0 s, got {day_s:g} and {duration_s:g}")
    if duration_s / day_s * _DIURNAL_PIECES > _MAX_PIECES:
        raise UsageError(f"days of {day_s:g} s for {duration_s:g} s are too many")
    piece_s = day_s / _DIURNAL_PIECES

    def rate(at_s: float) -> float:
        return mean_per_s * max(0.0, 1 - swing * math.cos(2 * math.pi * at_s / day_s))

    edges = [piece_s * number for number in range(math.ceil(duration_s / piece_s - 1e-9))] + [duration_s]
    return RateCurve([Piece(end - begin, rate(begin), rate(end)) for begin, end in itertools.pairwise(edges)])
