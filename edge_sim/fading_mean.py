"""A mean of what was seen lately, which fades to nothing where nothing more is seen.

Knows numbers and seconds.
"""

from __future__ import annotations


class FadingMean:
    """Each value counts a `share`, and half of the mean is forgotten after each `half_life_s`.

    Raises ValueError unless `half_life_s` is positive.
    """

    __slots__ = ("_half_life_s", "_last_s", "_mean", "_share")

    def __init__(self, *, share: float, half_life_s: float) -> None:
        if not half_life_s > 0:
            raise ValueError(f"half_life_s must be positive, got {half_life_s}")
        self._share = share
        self._half_life_s = half_life_s
        self._last_s = 0.0
        self._mean = 0.0

    def learn(self, now_s: float, value: float) -> None:
        """Something was seen at `now_s`."""
        kept = self.value(now_s)
        self._mean = kept + self._share * (value - kept)
        self._last_s = now_s

    def value(self, now_s: float) -> float:
        """What is left of the mean now."""
        return self._mean * float(0.5 ** ((now_s - self._last_s) / self._half_life_s))
