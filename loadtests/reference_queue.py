"""A queue with constant service times on given arrivals: how much of what a run saw was the luck of its arrivals.

Poisson arrivals come in bursts, and a minute with more bursts has more late answers at the same rate. How many more, a
queue of known behaviour on the very same arrivals tells: its late answers in this run, beside what it has on average,
are a control variate (Lavenberg and Welch, Management Science 1981). The nearer the real server is to such a queue, the
more of the variance goes; where it is nothing like it, nothing is taken away. Pure; NumPy only.

Shape legend: N requests, in order of arrival.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

SERVERS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
# Below this correlation of the two latencies the queue explains a tenth of the variance, which is not worth its noise.
WORTH_IT: Final = 0.3
# For the long-run share of late answers: at 1 % to within about 3 % of it.
_LONG_RUN: Final = 400_000
_SEED: Final = 20


def sojourns_s(arrivals_s_N: NDArray[np.float64], *, service_s: float, servers: int) -> NDArray[np.float64]:
    """Seconds from each arrival (in order) to its end [N]: first come first served, `service_s` each.

    With constant service the n-th request is started when the one `servers` before it has ended, so that each residue
    class is a queue of one server: start_k - k * service = the running maximum of arrival_k - k * service.
    """
    starts_s_N = np.empty_like(arrivals_s_N)
    for first in range(servers):
        own_s = arrivals_s_N[first::servers]
        offset_s = service_s * np.arange(len(own_s))
        starts_s_N[first::servers] = np.maximum.accumulate(own_s - offset_s) + offset_s
    return starts_s_N + service_s - arrivals_s_N


@functools.lru_cache(maxsize=256)
def late_share(*, rate_per_s: float, service_s: float, servers: int, bound_s: float) -> float:
    """In the long run, of Poisson arrivals at this rate: the share whose sojourn is above `bound_s`."""
    rng = np.random.default_rng(_SEED)
    arrivals_s_N = np.cumsum(rng.exponential(1 / rate_per_s, _LONG_RUN))
    found = sojourns_s(arrivals_s_N, service_s=service_s, servers=servers)[_LONG_RUN // 100 :]
    return float(np.mean(found > bound_s))


def likeliest_servers(
    runs: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]], *, service_s: float
) -> int | None:
    """The number of servers whose queue is most like what the runs (arrivals, latencies) saw; None where none is."""
    best, most = None, WORTH_IT
    for servers in SERVERS:
        correlations = []
        for arrivals_s_N, latencies_s_N in runs:
            seen = np.isfinite(latencies_s_N)
            ours_s_N = sojourns_s(arrivals_s_N, service_s=service_s, servers=servers)
            if seen.sum() > 1 and np.ptp(ours_s_N[seen]) > 0 and np.ptp(latencies_s_N[seen]) > 0:
                correlations.append(float(np.corrcoef(ours_s_N[seen], latencies_s_N[seen])[0, 1]))
        if correlations and (mean := float(np.mean(correlations))) > most:
            best, most = servers, mean
    return best
