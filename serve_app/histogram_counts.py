"""A histogram that is counted here, bucket by bucket, and handed over as numbers.

Why not Ray's own: its agent on every node replays each single observation of each histogram in Python, 25 us of a core
each (measured, Ray 2.60), all at once every ten seconds. Four observations for each of 350 answers a second are a third
of a second in which one core answers nobody. Counted here, a bucket is one number, however many fell into it.

Pure. Knows names and labels as Prometheus has them: `_bucket` with `le`, cumulative, `_sum` and `_count`.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Mapping, Sequence


class HistogramCounts:
    """Counts of one histogram, by its labels.

    >>> counts = HistogramCounts([1.0, 2.0])
    >>> for value in (0.5, 2.0, 9.0):
    ...     counts.observe(value, {"split_point": "a"})
    >>> [(le, count) for _, le, count in counts.buckets()]
    [('1.0', 1), ('2.0', 2), ('+Inf', 3)]
    >>> [(total, count) for _, total, count in counts.totals()]
    [(11.5, 3)]
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds` are the buckets' upper ends, ascending; the last bucket has none."""
        self._bounds = tuple(bounds)
        self._ends = (*(str(float(bound)) for bound in self._bounds), "+Inf")
        self._series: dict[tuple[tuple[str, str], ...], tuple[list[int], list[float]]] = {}

    def observe(self, value: float, labels: Mapping[str, str]) -> None:
        """One value; a bound belongs to the bucket below it."""
        key = tuple(labels.items())
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = ([0] * len(self._ends), [0.0])
        series[0][bisect.bisect_left(self._bounds, value)] += 1
        series[1][0] += value

    def buckets(self) -> Iterator[tuple[dict[str, str], str, int]]:
        """Of each series and bucket: labels, upper end, and how many values were not above it."""
        for key, (counts, _) in self._series.items():
            for end, count in zip(self._ends, itertools.accumulate(counts), strict=True):
                yield dict(key), end, count

    def totals(self) -> Iterator[tuple[dict[str, str], float, int]]:
        """Of each series: labels, sum and number of its values."""
        for key, (counts, total) in self._series.items():
            yield dict(key), total[0], sum(counts)
