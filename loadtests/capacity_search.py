"""The largest rate of Poisson arrivals that a server carries under an objective, with an interval. Pure.

What an objective says of percentiles and shares is one thing: at most so many of the requests may be bad (slower than a
bound, failed, refused). That share grows with the rate. Short probes first find a rate where it is too large; then
longer ones around the root of share(rate) = limit are taken together: near the root the logarithm of the share is a
straight line in the logarithm of the rate, fitted by weighted least squares with each probe's own uncertainty
(observation.py). The interval of the root follows from the fit (delta method), at 95 %.

Where the share jumps from nothing to everything, as with a bound that only a server without rest misses, there is no
line to fit: the root is then halved in, and the interval is what is left between a rate that held and one that did not.

`measure` is whatever sends requests: real processes in capacity_command.py, a simulated queue in tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from loadtests.observation import BLOCKS, Criterion, Observation, share_of
from loadtests.reference_queue import likeliest_servers
from split_inference.errors import UsageError

_Z95: Final = 1.96
# Probes further from the root than this say little of its neighbourhood.
_NEAR: Final = 1.4
# So many requests show a share of 1 % that is 5 times too large with certainty enough for the next step.
_QUICK_REQUESTS: Final = 400
# The line is a piece of a curve: roots of M/D/c fitted over a step to both sides lie half a percent too high.
_CURVATURE: Final = 0.004
# Where a precise probe is placed around the root: a line needs two ends.
_SPREAD: Final = (1.0, 0.92, 1.06, 0.96)
_MOST_PROBES: Final = 60
# Between a rate that holds and one that does not, before long probes look closer.
_STEP: Final = 1.3
_GROWS: Final = "the server without rest"


class TooBusyError(Exception):
    """This machine could not send at the rate that was to be tried: neither the search is to blame, nor the server."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Where a criterion's share reaches its limit."""

    criterion: str
    rate_per_s: float
    low_per_s: float
    high_per_s: float

    @property
    def precision(self) -> float:
        """Half of the interval's width over the rate."""
        return (self.high_per_s - self.low_per_s) / (2 * self.rate_per_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """What the search found."""

    rate_per_s: float
    low_per_s: float
    high_per_s: float
    """Of rate_per_s, at 95 %."""
    criterion: str
    """That is reached first."""
    probes: tuple[Probe, ...]
    reference_servers: int | None
    """Of the queue that took out the luck of the arrivals; None: no queue was like this server."""
    is_precise: bool
    """Whether the interval is as narrow as asked; else the budget ended the search, or `invalid` says what did."""
    invalid: tuple[str, ...] = ()
    """Why the search ended early."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """One measurement and what the search made of it."""

    rate_per_s: float
    requests: int
    seconds: float
    shares: dict[str, float]
    """Bad shares by criterion, as seen."""
    is_over: bool
    is_growing: bool
    stage: Literal["bracket", "refine"]


Measure = Callable[[float, float, int], Observation]
"""(rate a second, seconds, seed) -> what was seen."""


@dataclass(kw_only=True)
class CapacitySearch:
    """One search. `run` measures until the interval is narrow enough or the budget of seconds is spent."""

    measure: Measure
    criteria: Sequence[Criterion]
    start_per_s: float = 10.0
    most_per_s: float = 5000.0
    precision: float = 0.03
    """Half the interval's width over the rate."""
    budget_s: float = 600.0
    """Of measuring."""
    probe_s: float = 20.0
    """Of a precise probe, at least; enough requests for ten bad ones at the limit, at most four times as long."""
    seed: int = 0
    on_probe: Callable[[Probe], None] = lambda probe: None
    _seen: list[Observation] = field(default_factory=list)
    _probes: list[Probe] = field(default_factory=list)
    _spent_s: float = 0.0
    _invalid: tuple[str, ...] = ()

    @property
    def probes(self) -> tuple[Probe, ...]:
        """Those that were valid so far."""
        return tuple(self._probes)

    def run(self) -> Capacity:
        """Search. Raises UsageError where even the first rate is too much, or the largest allowed one is not enough,
        TooBusyError where the generator could not keep its schedule and there is no estimate yet."""
        if self.start_per_s > self.most_per_s:
            raise UsageError(f"--start-rate of {self.start_per_s:g} is above --max-rate of {self.most_per_s:g}")
        good, bad = self._bracket()
        estimate = self._refine(good, bad)
        reference = self._reference()
        return Capacity(
            rate_per_s=estimate.rate_per_s,
            low_per_s=estimate.low_per_s,
            high_per_s=estimate.high_per_s,
            criterion=estimate.criterion,
            probes=tuple(self._probes),
            reference_servers=None if reference is None else reference[1],
            is_precise=estimate.precision <= self.precision and not self._invalid,
            invalid=self._invalid,
        )

    # ---------------------------------------------------------------- bracket

    def _bracket(self) -> tuple[float, float]:
        """A rate that holds and one that does not, at most _STEP apart."""
        rate = self.start_per_s
        good, bad = 0.0, math.inf
        while bad == math.inf:
            if self._probe(rate, self._quick_s(rate), "bracket").is_over:
                bad = rate
            elif rate >= self.most_per_s:
                raise self._carries(rate)
            else:
                good, rate = rate, min(self.most_per_s, 2 * rate)
        while good == 0.0:
            rate = bad / 4
            if rate < self.start_per_s / 64:
                raise UsageError(
                    f"even {bad:g} requests/s miss the objective: it asks for more than this server does for one "
                    "request"
                )
            if self._probe(rate, self._quick_s(rate), "bracket").is_over:
                bad = rate
            else:
                good = rate
        while bad / good > _STEP:
            rate = math.sqrt(good * bad)
            if self._probe(rate, self._quick_s(rate), "bracket").is_over:
                bad = rate
            else:
                good = rate
        return good, bad

    def _carries(self, rate_per_s: float) -> UsageError:
        return UsageError(
            f"{rate_per_s:g} requests/s are carried, and no more were allowed to be tried: raise --max-rate"
        )

    def _quick_s(self, rate_per_s: float) -> float:
        return min(self.probe_s, max(3.0, _QUICK_REQUESTS / rate_per_s))

    # ---------------------------------------------------------------- refine

    def _refine(self, good: float, bad: float) -> Estimate:
        halved = _between(good, bad)
        # Rates whose verdict is that of a long probe. A short one shows a handful of bad requests or none: what it says
        # of an end of the bracket is checked before anything is built on it.
        checked: set[float] = set()
        root = halved.rate_per_s
        best: Estimate | None = None
        turn = 0
        while self._spent_s < self.budget_s and len(self._probes) < _MOST_PROBES:
            ends = (each for each in (halved.low_per_s, halved.high_per_s) if each not in checked)
            # Without a line, at an end that is not sure, and then in the middle of what is left.
            rate = next(ends, halved.rate_per_s) if best is None else root * _SPREAD[turn % len(_SPREAD)]
            rate = min(self.most_per_s, rate)
            try:
                is_over = self._probe(rate, self._long_s(rate), "refine").is_over
            except TooBusyError as error:
                if best is None:
                    raise
                self._invalid = (str(error),)
                return best
            # So that a line is measured on both sides of its root, whatever it was found from.
            turn += best is not None
            checked.add(rate)
            halved = _halved(halved, rate, is_over)
            # A root far from where it was looked for is none (see _root), and may be what was to be found all the same.
            nears = (root, root / _STEP, root * _STEP)
            found = next((each for near in nears if (each := self.estimate(near_per_s=near)) is not None), None)
            if found is not None:
                # One probe's noise must not carry the search away from the bracket.
                root = min(max(found.rate_per_s, 0.7 * halved.low_per_s), 1.4 * halved.high_per_s, self.most_per_s)
                best = found
            elif best is None:
                if rate >= self.most_per_s and not is_over:
                    raise self._carries(rate)
                root = halved.rate_per_s
            if best is not None:
                if turn >= len(_SPREAD) - 1 and best.precision <= self.precision:
                    return best
            elif halved.precision <= self.precision and {halved.low_per_s, halved.high_per_s} <= checked:
                return halved
        return best or _doubted(halved, checked)

    def _long_s(self, rate_per_s: float) -> float:
        strictest = min((each.limit for each in self.criteria if each.limit > 0), default=0.01)
        return min(4 * self.probe_s, max(self.probe_s, 10 / strictest / rate_per_s))

    def _probe(self, rate_per_s: float, seconds: float, stage: Literal["bracket", "refine"]) -> Probe:
        seen = self.measure(rate_per_s, seconds, self.seed + len(self._probes))
        if seen.invalid and not seen.is_growing:
            raise TooBusyError(f"the generator could not send {rate_per_s:.4g} requests/s: {seen.invalid[0]}")
        self._spent_s += seconds
        shares = {each.name: float(np.mean(each.bad(seen))) if len(seen.arrivals_s) else 1.0 for each in self.criteria}
        limits = {each.name: each.limit for each in self.criteria}
        if stage == "bracket":
            limits = {name: _surely_over(limit, len(seen.arrivals_s)) for name, limit in limits.items()}
        probe = Probe(
            rate_per_s=rate_per_s,
            requests=len(seen.arrivals_s),
            seconds=seconds,
            shares=shares,
            is_over=seen.is_growing or any(shares[name] > limit for name, limit in limits.items()),
            is_growing=seen.is_growing,
            stage=stage,
        )
        self._probes.append(probe)
        self._seen.append(seen)
        self.on_probe(probe)
        return probe

    # ---------------------------------------------------------------- estimate

    def estimate(self, *, near_per_s: float) -> Estimate | None:
        """The smallest root of all criteria, from the probes near this rate; None where they give none."""
        reference = self._reference()
        found = [
            estimate
            for each in self.criteria
            if each.limit > 0 and (estimate := self._root(each, near_per_s, reference)) is not None
        ]
        return min(found, key=lambda each: each.rate_per_s, default=None)

    def _reference(self) -> tuple[float, int] | None:
        """Service time and servers of the queue that is most like the server; None where none is."""
        runs = [(each.arrivals_s, each.latencies_s) for each in self._seen if not each.is_growing]
        finite = [latencies[np.isfinite(latencies)] for _, latencies in runs]
        latencies_s = np.concatenate(finite) if finite else np.empty(0)
        if len(latencies_s) < _QUICK_REQUESTS:
            return None
        # What an idle server takes: the fastest answers, less the very luckiest.
        service_s = float(np.quantile(latencies_s, 0.05))
        servers = likeliest_servers(runs[-6:], service_s=service_s)
        return None if servers is None else (service_s, servers)

    def _root(self, criterion: Criterion, near_per_s: float, reference: tuple[float, int] | None) -> Estimate | None:
        near = [
            seen
            for seen in self._seen
            if 1 / _NEAR <= seen.rate_per_s / near_per_s <= _NEAR and len(seen.arrivals_s) >= 5 * BLOCKS
        ]
        if not any(criterion.bad(seen).any() for seen in near if not seen.is_growing):
            # Of a queue that grows the share is that of the run's length: alone with calm ones it shows no line.
            return None
        points = []
        for seen in near:
            share, variance = share_of(criterion, seen, reference)
            # Kind arrivals may leave none, or less: left out, those that had more would speak alone.
            least = 0.5 / len(seen.arrivals_s)
            share, variance = max(share, least), max(variance, least**2)
            points.append((math.log(seen.rate_per_s), math.log(share), variance / share**2))
        if len({point[0] for point in points}) < 2:
            return None
        x, y, variances = (np.array(each) for each in zip(*points, strict=True))
        # A probe whose blocks happened to agree must not outweigh all others.
        weights = 1 / np.maximum(variances, 0.1 * float(np.median(variances)) + 1e-12)
        design = np.stack([np.ones_like(x), x - math.log(near_per_s)], axis=1)
        covariance = np.linalg.inv(design.T @ (weights[:, None] * design))
        level, slope = covariance @ design.T @ (weights * y)
        if slope <= 0.5:
            return None
        # Where the points scatter by more than their own variances say, the interval grows with them.
        spare = len(x) - 2
        scatter = float(weights @ (y - design @ [level, slope]) ** 2) / spare if spare > 0 else 1.0
        covariance = covariance * max(1.0, scatter)
        at = (math.log(criterion.limit) - level) / slope
        gradient = np.array([-1 / slope, -at / slope])
        deviation = math.hypot(math.sqrt(float(gradient @ covariance @ gradient)), _CURVATURE)
        root = near_per_s * math.exp(at)
        if not 1 / _NEAR <= root / near_per_s <= _NEAR or _Z95 * deviation > math.log(2):
            # A line through probes that had no bad request leads anywhere: what is left of the bracket says more.
            return None
        return Estimate(
            criterion=criterion.name,
            rate_per_s=root,
            low_per_s=root * math.exp(-_Z95 * deviation),
            high_per_s=root * math.exp(_Z95 * deviation),
        )


def _surely_over(limit: float, requests: int) -> float:
    """Share that so few requests hardly show at the limit: one bad of sixty is no sign that 1 % is too much."""
    return limit + 2 * math.sqrt(limit * (1 - limit) / max(1, requests))


def _between(low_per_s: float, high_per_s: float) -> Estimate:
    middle = math.sqrt(low_per_s * high_per_s)
    return Estimate(criterion=_GROWS, rate_per_s=middle, low_per_s=low_per_s, high_per_s=high_per_s)


def _halved(between: Estimate, rate_per_s: float, is_over: bool) -> Estimate:
    """What is left; where an end turns out to be on the wrong side, a step beyond it, longer than the one before."""
    low, high = between.low_per_s, between.high_per_s
    step = min(2.0, _STEP * high / low)
    if is_over:
        return _between(low if rate_per_s > low else rate_per_s / step, min(high, rate_per_s))
    return _between(max(low, rate_per_s), high if rate_per_s < high else rate_per_s * step)


def _doubted(between: Estimate, checked: set[float]) -> Estimate:
    """A step wider at each end that only a short probe has seen."""
    low, high = between.low_per_s, between.high_per_s
    return _between(low if low in checked else low / _STEP, high if high in checked else high * _STEP)
