"""What one probe saw, request by request, what an objective calls bad of it, and how large that share is. Pure.

A probe's own uncertainty comes from its blocks of consecutive requests, since late answers come in clusters, after the
luck of its arrivals was taken out (reference_queue.py).

Shape legend: N requests, B blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from loadtests.reference_queue import late_share, sojourns_s
from loadtests.slo import PERCENTILES, Slo
from split_inference.errors import UsageError

# Of a probe; a busy period should be short beside one, and twenty are enough for a variance.
BLOCKS: Final = 20
# Medians of the last and the first fifth: beyond this the queue grows, and a longer run would find worse.
_GROWTH: Final = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """What one probe saw, request by request, in order of the intended starts."""

    rate_per_s: float
    """That was asked for."""
    arrivals_s: NDArray[np.float64]
    """Intended starts, seconds."""
    latencies_s: NDArray[np.float64]
    """From the intended start; infinite where there was no answer."""
    delays_s: NDArray[np.float64]
    """From the intended to the actual start, the generator's own; 0 where nothing was sent."""
    wrong: NDArray[np.bool_]
    refused: NDArray[np.bool_]
    failed: NDArray[np.bool_]
    """Dropped by the generator because too many were under way, too: the server held them all."""
    deadline_s: float | None = None
    invalid: tuple[str, ...] = ()
    """Why the generator's own figures make this probe worthless."""

    @property
    def is_growing(self) -> bool:
        """Whether the queue grew all the time: the server is over-saturated, whatever the objective says.

        Judged from the actual starts, so that a generator that falls behind is not taken for a server that does.
        """
        fifth = len(self.latencies_s) // 5
        if fifth < 10:
            return False
        service_s = self.latencies_s - self.delays_s
        first, last = np.median(service_s[:fifth]), np.median(service_s[-fifth:])
        middle = np.median(service_s[2 * fifth : 3 * fifth])
        # Equal where both stand for what was never answered.
        grows_on = last > middle or middle == last == np.inf
        if not (last > _GROWTH * first and grows_on and middle > first):
            return False
        # Whoever sends late also reads answers late, by about as much.
        return bool(last - first > _GROWTH * np.median(self.delays_s[-fifth:]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Criterion:
    """One thing that the objective says: at most `limit` of the requests may be bad."""

    name: str
    limit: float
    bound_s: float | None = None
    """Of latency criteria: above it an answer is bad."""

    def bad(self, seen: Observation) -> NDArray[np.bool_]:
        """Which requests are bad [N]; one that was not answered is later than any bound."""
        if self.bound_s is not None:
            return seen.latencies_s > self.bound_s
        if self.name == "max_rejects":
            return seen.refused
        if self.name == "max_errors":
            return seen.failed | seen.wrong
        late = seen.latencies_s > (math.inf if seen.deadline_s is None else seen.deadline_s)
        return late | ~np.isfinite(seen.latencies_s) | seen.wrong


def criteria_of(slo: Slo) -> list[Criterion]:
    """What can be searched for. Raises UsageError where the objective says nothing that depends on the rate."""
    found = []
    for name, bound_ms in slo.latency.said().items():
        if name == "max_ms":
            raise UsageError("latency.max_ms grows with the length of a run, and has no rate: say p999_ms instead")
        found.append(Criterion(name=f"latency.{name}", limit=1 - PERCENTILES[name], bound_s=bound_ms / 1000))
    for name, limit in (
        ("min_goodput", None if slo.min_goodput is None else 1 - slo.min_goodput),
        ("max_errors", slo.max_errors),
        ("max_rejects", slo.max_rejects),
    ):
        if limit is not None:
            found.append(Criterion(name=name, limit=limit))
    if not found:
        raise UsageError("the objective has nothing that a rate can miss: say a latency, min_goodput or max_rejects")
    return found


def share_of(
    criterion: Criterion, seen: Observation, reference: tuple[float, int] | None = None
) -> tuple[float, float]:
    """Share of bad requests in the long run at this rate, and its variance from blocks of consecutive requests.

    With a reference queue, less what the luck of these arrivals made of it. The share may come out negative, where
    few were bad and the arrivals were kind.
    """
    bad_N = criterion.bad(seen).astype(np.float64)
    if reference is not None and criterion.bound_s is not None:
        service_s, servers = reference
        late_N = sojourns_s(seen.arrivals_s, service_s=service_s, servers=servers) > criterion.bound_s
        expected = late_share(
            rate_per_s=seen.rate_per_s, service_s=service_s, servers=servers, bound_s=criterion.bound_s
        )
        luck_N = late_N.astype(np.float64) - expected
        bad_B, luck_B = _block_means(bad_N), _block_means(luck_N)
        variance = float(np.var(luck_B))
        if variance > 0:
            weight = float(np.cov(bad_B, luck_B, bias=True)[0, 1]) / variance
            bad_N = bad_N - weight * luck_N
    means_B = _block_means(bad_N)
    return float(np.mean(bad_N)), float(np.var(means_B, ddof=1)) / len(means_B)


def _block_means(values_N: NDArray[Any]) -> NDArray[np.float64]:
    return np.array([block.mean() for block in np.array_split(values_N, BLOCKS)])
