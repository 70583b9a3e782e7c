"""Durations counted in buckets of equal relative width: percentiles to three digits, and merging that loses nothing.

The layout of HdrHistogram (Gil Tene) in floating point: every power of two is cut into 2**bits equal buckets. With
10 bits a bucket is at most 1/1024 wider than its lower edge, so that its middle is within 2**-11 = 0.049 % of every
value in it: less than half a unit of the third digit. Unlike HdrHistogram there is no smallest unit: 40 us of
schedule delay have the same three digits as 40 s of latency. Buckets that hold nothing take no memory.

Ours and not PyPI's `hdrhistogram`: that one counts in integer units of one resolution, needs a range in
advance and ships a C extension; this is a dictionary. Knows no files and no pydantic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

# 1 ns to 11.6 days: outside it no duration of a load test is meant.
SMALLEST_S: Final = 1e-9
LARGEST_S: Final = 1e6
THREE_DIGITS_BITS: Final = 10
# For curves over time: within 0.8 %, a sixteenth of the buckets.
CURVE_BITS: Final = 6
_MAX_BITS: Final = 16


class Histogram:
    """Counts of durations in seconds.

    >>> delays = Histogram.of([0.001, 0.002, 0.004])
    >>> delays.count, f"{delays.percentile(0.5):.3g}", delays.max_s
    (3, '0.002', 0.004)
    """

    __slots__ = ("_counts", "_span", "bits", "count", "max_s", "min_s", "sum_s")

    def __init__(self, *, bits: int = THREE_DIGITS_BITS) -> None:
        if not 1 <= bits <= _MAX_BITS:
            raise ValueError(f"bits must be 1..{_MAX_BITS}, got {bits}")
        self.bits = bits
        """Each power of two is cut into 2**bits buckets; a percentile is within 2**-(bits + 1) of its value."""
        self.count = 0
        self.sum_s = 0.0
        self.min_s = math.inf
        """Exact; infinite where nothing was counted."""
        self.max_s = 0.0
        """Exact; 0 where nothing was counted."""
        self._span = 2 << bits
        self._counts: dict[int, int] = {}

    @classmethod
    def of(cls, values_s: Iterable[float], *, bits: int = THREE_DIGITS_BITS) -> Histogram:
        """A histogram of these values."""
        histogram = cls(bits=bits)
        for value_s in values_s:
            histogram.record(value_s)
        return histogram

    def record(self, value_s: float) -> None:
        """Count one duration; what is below 1 ns counts as 1 ns, what is above 1e6 s as that. ValueError for NaN."""
        if not SMALLEST_S <= value_s <= LARGEST_S:
            if math.isnan(value_s):
                raise ValueError("NaN is no duration")
            value_s = min(max(value_s, SMALLEST_S), LARGEST_S)
        # mantissa in [0.5, 1): int(mantissa * 2 * 2**bits) is 2**bits .. 2 * 2**bits - 1.
        mantissa, exponent = math.frexp(value_s)
        index = (exponent << self.bits) + int(mantissa * self._span)
        counts = self._counts
        counts[index] = counts.get(index, 0) + 1
        self.count += 1
        self.sum_s += value_s
        if value_s > self.max_s:
            self.max_s = value_s
        if value_s < self.min_s:
            self.min_s = value_s

    def merge(self, other: Histogram) -> None:
        """Add what another one counted. The order of merging changes no percentile. ValueError for other `bits`."""
        if other.bits != self.bits:
            raise ValueError(f"histograms of {self.bits} and {other.bits} bits; `coarser` makes them alike")
        for index, count in other._counts.items():
            self._counts[index] = self._counts.get(index, 0) + count
        self.count += other.count
        self.sum_s += other.sum_s
        self.min_s = min(self.min_s, other.min_s)
        self.max_s = max(self.max_s, other.max_s)

    def coarser(self, bits: int) -> Histogram:
        """The same counts in wider buckets, exactly as if they had been recorded so."""
        if bits > self.bits:
            raise ValueError(f"{bits} bits are finer than {self.bits}")
        result = Histogram(bits=bits)
        for index, count in self._counts.items():
            shifted = index >> (self.bits - bits)
            result._counts[shifted] = result._counts.get(shifted, 0) + count
        result.count, result.sum_s, result.min_s, result.max_s = self.count, self.sum_s, self.min_s, self.max_s
        return result

    def percentile(self, share: float) -> float:
        """Smallest value that at least `share` (0..1) of all are not above; NaN of none.

        The middle of its bucket, and never outside of the exact minimum and maximum; `percentile(1)` is the maximum.
        """
        return self.percentiles((share,))[0]

    def percentiles(self, shares: Iterable[float]) -> list[float]:
        """`percentile` of each of `shares`, at the cost of about one."""
        wanted = list(shares)
        if any(not 0 <= share <= 1 for share in wanted):
            raise ValueError(f"a share is 0..1, got {wanted}")
        if not self.count:
            return [math.nan] * len(wanted)
        found = dict.fromkeys(wanted, self.max_s)
        # 1e-9: 0.999 * 1000 must not become rank 1000 by rounding.
        ranks = sorted((max(1, math.ceil(share * self.count - 1e-9)), share) for share in found)
        below = at = 0
        for index, count in sorted(self._counts.items()):
            below += count
            while at < len(ranks) and ranks[at][0] <= below:
                rank, share = ranks[at]
                if rank < self.count:
                    found[share] = min(max(self._middle_s(index), self.min_s), self.max_s)
                at += 1
            if at == len(ranks):
                break
        return [found[share] for share in wanted]

    def share_at_most(self, value_s: float) -> float:
        """Share of the values that are at most `value_s`, to within the bucket that it falls into; NaN of none."""
        if not self.count:
            return math.nan
        if value_s >= self.max_s:
            return 1.0
        if value_s < self.min_s:
            return 0.0
        mantissa, exponent = math.frexp(value_s)
        last = (exponent << self.bits) + int(mantissa * self._span)
        return sum(count for index, count in self._counts.items() if index <= last) / self.count

    def buckets(self) -> list[tuple[float, int]]:
        """(Upper edge in seconds, count) of each bucket that holds something, in order: what a CDF is drawn from."""
        return [(min(edge_s, self.max_s), count) for edge_s, count in self.shared_buckets()]

    def shared_buckets(self) -> list[tuple[float, int]]:
        """As `buckets`, but the last one too ends at an edge that all histograms of these `bits` have: what is counted
        side by side falls into the same columns."""
        return [(self._edge_s(index + 1), count) for index, count in sorted(self._counts.items())]

    @property
    def mean_s(self) -> float:
        """Exact; NaN of none."""
        return self.sum_s / self.count if self.count else math.nan

    def to_json(self) -> dict[str, Any]:
        """A JSON object; buckets as index, count, index, count, ..."""
        flat: list[int] = []
        for item in sorted(self._counts.items()):
            flat += item
        content: dict[str, Any] = {"bits": self.bits, "sum_s": self.sum_s, "buckets": flat}
        return content | ({"min_s": self.min_s, "max_s": self.max_s} if self.count else {})

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Histogram:
        """What `to_json` made; ValueError for anything else."""
        try:
            histogram = cls(bits=int(content["bits"]))
            flat = [int(each) for each in content["buckets"]]
            if len(flat) % 2:
                raise ValueError("an index without a count")
            lowest, highest = histogram._index(SMALLEST_S), histogram._index(LARGEST_S)
            for index, count in zip(flat[::2], flat[1::2], strict=True):
                if not lowest <= index <= highest or count < 1 or index in histogram._counts:
                    raise ValueError(f"bucket {index} with {count}")
                histogram._counts[index] = count
            histogram.count = sum(flat[1::2])
            if histogram.count:
                histogram.sum_s = float(content["sum_s"])
                histogram.min_s, histogram.max_s = float(content["min_s"]), float(content["max_s"])
                if not SMALLEST_S <= histogram.min_s <= histogram.max_s <= LARGEST_S or not histogram.sum_s > 0:
                    raise ValueError("minimum, maximum and sum disagree")
        except (KeyError, TypeError, OverflowError, ValueError) as error:
            raise ValueError(f"not a histogram: {error}") from None
        return histogram

    def __eq__(self, other: object) -> bool:
        """Equal counts, minimum and maximum; sums differ by rounding with the order of merging."""
        if not isinstance(other, Histogram):
            return NotImplemented
        mine = (self.bits, self.min_s, self.max_s, self._counts)
        return mine == (other.bits, other.min_s, other.max_s, other._counts)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        if not self.count:
            return "Histogram(empty)"
        p50, p99 = self.percentiles((0.5, 0.99))
        return f"Histogram({self.count} values, p50 {p50:.3g} s, p99 {p99:.3g} s, max {self.max_s:.3g} s)"

    def _index(self, value_s: float) -> int:
        mantissa, exponent = math.frexp(value_s)
        return (exponent << self.bits) + int(mantissa * self._span)

    def _edge_s(self, index: int) -> float:
        # index = (exponent << bits) + 2**bits + sub, sub < 2**bits.
        exponent, sub = divmod(index - (1 << self.bits), 1 << self.bits)
        return math.ldexp((1 << self.bits) + sub, exponent - self.bits - 1)

    def _middle_s(self, index: int) -> float:
        return (self._edge_s(index) + self._edge_s(index + 1)) / 2
