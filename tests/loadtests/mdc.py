"""The exact waiting times of M/D/c: Poisson arrivals, constant service, c servers, first come first served.

The number in the system one service time later is that now, less those in service, plus a Poisson number of arrivals
(Crommelin, 1932); the waiting time follows from its distribution (Franx, Operations Research Letters 29, 2001), by sums
of positive terms, so that float64 is enough.
"""

from __future__ import annotations

import heapq
import math

import numpy as np
from numpy.typing import NDArray


def number_in_system(*, rate_per_s: float, service_s: float, servers: int, most: int = 600) -> NDArray[np.float64]:
    """P(so many in the system) for 0..most-1, at an arbitrary moment."""
    mean = rate_per_s * service_s
    assert mean < servers
    arrived = np.exp([n * math.log(mean) - mean - math.lgamma(n + 1) for n in range(most)])
    p = arrived.copy()
    for _ in range(100_000):
        left = np.concatenate([[p[: servers + 1].sum()], p[servers + 1 :]])
        after: NDArray[np.float64] = np.convolve(left, arrived)[:most]
        after /= after.sum()
        if np.abs(after - p).max() < 1e-14:
            return after
        p = after
    raise AssertionError("no equilibrium")


def waits_at_most(x_s: float, *, rate_per_s: float, service_s: float, servers: int) -> float:
    """P(wait <= x)."""
    below = np.cumsum(number_in_system(rate_per_s=rate_per_s, service_s=service_s, servers=servers))
    k = math.floor(x_s / service_s) + 1
    mean = rate_per_s * (k * service_s - x_s)
    terms = [
        below[servers + k * servers - 1 - j] * math.exp(j * math.log(mean) - mean - math.lgamma(j + 1))
        for j in range(k * servers)
    ]
    return float(sum(terms))


def largest_rate(*, bound_s: float, share: float, service_s: float, servers: int) -> float:
    """The rate at which exactly `share` of all requests take at most `bound_s`, waiting and service together."""
    low, high = 1e-3 * servers / service_s, 0.999 * servers / service_s
    for _ in range(60):
        middle = (low + high) / 2
        kept = waits_at_most(bound_s - service_s, rate_per_s=middle, service_s=service_s, servers=servers)
        low, high = (middle, high) if kept > share else (low, middle)
    return low


def simulate(rng, *, rate_per_s, seconds, service_s, servers):
    """Arrivals and sojourn times of one run that begins empty, request by request."""
    count = rng.poisson(rate_per_s * seconds)
    arrivals_s = np.sort(rng.uniform(0, seconds, count))
    free_s = [0.0] * servers
    sojourns_s = []
    for arrival_s in arrivals_s:
        end_s = max(arrival_s, free_s[0]) + service_s
        heapq.heapreplace(free_s, end_s)
        sojourns_s.append(end_s - arrival_s)
    return arrivals_s, np.array(sojourns_s)
