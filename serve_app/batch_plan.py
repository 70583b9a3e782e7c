"""Into which compiled batch sizes a number of rows is divided: the fastest way by the times measured when warming up.

Pure arithmetic; knows no torch.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """`rows` rows from `start` on, run at the size `bucket`; the rest of the bucket is empty."""

    start: int
    rows: int
    bucket: int


class BatchPlan:
    """The cheapest division of any number of rows.

    >>> [chunk.bucket for chunk in BatchPlan({1: 3.6, 4: 10.6, 16: 39.3}).chunks(5)]
    [4, 1]
    >>> [chunk.bucket for chunk in BatchPlan({1: 3.6, 4: 10.6, 16: 39.3}).chunks(15)]
    [16]
    """

    def __init__(self, seconds: Mapping[int, float]) -> None:
        """`seconds` that a batch of each bucket takes; one bucket at least."""
        if not seconds or min(seconds) < 1 or min(seconds.values()) < 0:
            raise ValueError(f"buckets are 1 or more, with seconds of 0 or more, got {dict(seconds)}")
        self._seconds = dict(sorted(seconds.items()))
        self._best_s: list[float] = [0.0]
        self._first: list[int] = [0]
        # Batches are staged in one thread, run in another one and counted in a third.
        self._extending = threading.Lock()

    def expected_s(self, rows: int) -> float:
        """Seconds of the cheapest division."""
        self._extend(rows)
        return self._best_s[rows]

    def chunks(self, rows: int) -> Sequence[Chunk]:
        """The cheapest division, larger buckets first."""
        self._extend(rows)
        buckets = []
        left = rows
        while left > 0:
            buckets.append(self._first[left])
            left -= buckets[-1]
        chunks = []
        start = 0
        for bucket in sorted(buckets, reverse=True):
            taken = min(bucket, rows - start)
            chunks.append(Chunk(start=start, rows=taken, bucket=bucket))
            start += taken
        return chunks

    def capacity(self, rows: int) -> int:
        """Rows that a buffer needs, so that every chunk of `rows` rows finds its whole bucket in it."""
        return max((chunk.start + chunk.bucket for chunk in self.chunks(rows)), default=0)

    def _extend(self, rows: int) -> None:
        with self._extending:
            for count in range(len(self._best_s), rows + 1):
                cost_s, bucket = min(
                    (seconds + self._best_s[max(0, count - bucket)], -bucket)
                    for bucket, seconds in self._seconds.items()
                )
                self._best_s.append(cost_s)
                self._first.append(-bucket)
