"""Two runs beside each other: what changed, and how sure one can be of it.

Requests of one moment share the server's queue, so that they are no independent draws. Whole blocks of consecutive
seconds are: the moving-block bootstrap (Kuensch, 1989) draws blocks with replacement, counts their figures, and does so
many times; how far the middle 95 % of these lie from the runs' own figures is the interval around the change. Seconds
hold latencies in coarse buckets: half a bucket of either run widens the interval. Pure, seeded, NumPy only.

Shape legend: S seconds, V buckets of latency, R repetitions, C columns: V and the counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from loadtests.histogram import CURVE_BITS
from loadtests.run_result import RunResult, Second
from split_inference.errors import UsageError

REPETITIONS: Final = 1000
# Long beside a busy period of a server that keeps up, short enough for a minute's run to have a dozen.
BLOCK_S: Final = 5
CONFIDENCE: Final = 0.95
LATENCIES: Final = (("p50_ms", 0.50), ("p95_ms", 0.95), ("p99_ms", 0.99))
# Weights of resamples held at a time: 32 MB, where all those of a week's soak would be 5 GB.
_WEIGHTS_AT_ONCE: Final = 4_000_000
_COUNTS: Final = ("intended", "good", "refused", "failed", "answered")
_HALF_BUCKET: Final = 2.0 ** -(CURVE_BITS + 1)
HIGHER_IS_BETTER: Final = frozenset({"goodput", "good_per_s"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One figure of both runs."""

    name: str
    before: float
    after: float
    low: float
    """Of the change after - before, with `high` the middle CONFIDENCE of what chance alone leaves open."""
    high: float

    @property
    def change(self) -> float:
        """After less before."""
        return self.after - self.before

    @property
    def verdict(self) -> str:
        """ "better", "worse", or "no difference seen" where the interval holds 0 or says nothing."""
        if not (self.low > 0 or self.high < 0):
            return "no difference seen"
        return "better" if (self.low > 0) == (self.name in HIGHER_IS_BETTER) else "worse"


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """All figures, and what speaks against comparing the runs at all."""

    changes: tuple[Change, ...]
    warnings: tuple[str, ...]


def compare(before: RunResult, after: RunResult, *, seed: int = 0, repetitions: int = REPETITIONS) -> Comparison:
    """What changed from one run to the other. Raises UsageError where one has too few seconds for an interval."""
    rng = np.random.default_rng(seed)
    samples = []
    for name, run in (("first", before), ("second", after)):
        seconds = len(_every_second(run))
        if seconds < 2 * BLOCK_S:
            raise UsageError(f"the {name} run has {seconds} seconds; an interval needs {2 * BLOCK_S}: run for longer")
        samples.append(_figures_of_resamples(run, rng, repetitions))
    found = (_figures(before), _figures(after))
    changes = []
    for name in found[0]:
        # The last resample is the run itself, seen as the others are.
        differences = samples[1][name] - samples[0][name]
        scatter = (differences[:-1] - differences[-1])[np.isfinite(differences[:-1])]
        edge = (1 - CONFIDENCE) / 2
        low, high = np.quantile(scatter, (edge, 1 - edge)) if len(scatter) else (math.nan, math.nan)
        of_before, of_after = found[0][name], found[1][name]
        coarse = _HALF_BUCKET * (of_before + of_after) if name in dict(LATENCIES) else 0.0
        changes.append(
            Change(
                name=name,
                before=of_before,
                after=of_after,
                low=of_after - of_before + float(low) - coarse,
                high=of_after - of_before + float(high) + coarse,
            )
        )
    return Comparison(changes=tuple(changes), warnings=tuple(_warnings(before, after)))


def _figures(run: RunResult) -> dict[str, float]:
    counts = run.counts
    intended = max(1, counts.intended)
    percentiles_s = run.latency.percentiles([share for _, share in LATENCIES])
    return {
        **{name: 1000 * value_s for (name, _), value_s in zip(LATENCIES, percentiles_s, strict=True)},
        "goodput": counts.good / intended,
        "good_per_s": run.goodput_per_s,
        "errors": (run.failed_count + counts.wrong) / intended,
        "rejects": run.refused_count / intended,
    }


def _figures_of_resamples(run: RunResult, rng: np.random.Generator, repetitions: int) -> dict[str, NDArray[np.float64]]:
    """Each figure of `repetitions` runs made of this one's blocks, and last of the run itself, [R + 1]."""
    seconds = _every_second(run)
    latency_SV, values_s_V = _latency_table(seconds)
    counts_S = [np.array([getattr(each, name) for each in seconds], np.float64) for name in _COUNTS]
    sums_RC = _resampled(np.column_stack([latency_SV, *counts_S]), rng, repetitions)
    below_RV = np.cumsum(sums_RC[:, : len(values_s_V)], axis=1)
    sums_R = dict(zip(_COUNTS, sums_RC[:, len(values_s_V) :].T, strict=True))
    answered_R = below_RV[:, -1] if len(values_s_V) else np.zeros(len(below_RV))
    found: dict[str, NDArray[np.float64]] = {}
    for name, share in LATENCIES:
        if not len(values_s_V):
            found[name] = np.full(len(below_RV), np.nan)
            continue
        ranks_R = np.maximum(1, np.ceil(share * answered_R - 1e-9))
        place_R = np.minimum((below_RV < ranks_R[:, None]).sum(axis=1), len(values_s_V) - 1)
        found[name] = np.where(answered_R > 0, 1000 * values_s_V[place_R], np.nan)
    intended_R = np.maximum(1, sums_R["intended"])
    # Seconds do not say which answers were wrong; over the whole run their share of the answers is known.
    wrong_share = run.counts.wrong / max(1, run.counts.answered)
    found["goodput"] = sums_R["good"] / intended_R
    found["good_per_s"] = sums_R["good"] / max(run.measured_s, 1e-9)
    found["errors"] = (sums_R["failed"] + wrong_share * sums_R["answered"]) / intended_R
    found["rejects"] = sums_R["refused"] / intended_R
    return found


def _every_second(run: RunResult) -> list[Second]:
    """The measured seconds in order, those in which nothing was meant to start too."""
    known = {each.second: each for each in run.seconds}
    first = math.floor(run.warmup_s)
    last = max([math.ceil(run.warmup_s + run.measured_s) - 1, *known])
    return [known.get(number) or Second(second=number) for number in range(min([first, *known]), last + 1)]


def _resampled(table_SC: NDArray[np.float64], rng: np.random.Generator, repetitions: int) -> NDArray[np.float64]:
    """Sums over the seconds of each resample, and last of the run itself, [R + 1, C]."""
    seconds = len(table_SC)
    at_once = max(1, _WEIGHTS_AT_ONCE // seconds)
    sums = [
        _block_weights(seconds, rng, min(at_once, repetitions - begin)) @ table_SC
        for begin in range(0, repetitions, at_once)
    ]
    return np.vstack([*sums, table_SC.sum(axis=0)])


def _block_weights(seconds: int, rng: np.random.Generator, repetitions: int) -> NDArray[np.float64]:
    """How often each second is in each resample [R, S]: moving blocks, in a circle so that all seconds count alike."""
    blocks = math.ceil(seconds / BLOCK_S)
    starts = rng.integers(0, seconds, (repetitions, blocks, 1))
    places = (starts + np.arange(BLOCK_S)).reshape(repetitions, -1)[:, :seconds] % seconds
    weights = np.zeros((repetitions, seconds))
    np.add.at(weights, (np.arange(repetitions)[:, None], places), 1.0)
    return weights


def _latency_table(seconds: Sequence[Second]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Counts by second and bucket [S, V], and the upper edges [V] in order."""
    rows = [each.latency.shared_buckets() for each in seconds]
    edges = sorted({edge_s for row in rows for edge_s, _ in row})
    place = {edge_s: index for index, edge_s in enumerate(edges)}
    table = np.zeros((len(rows), len(edges)))
    for index, row in enumerate(rows):
        for edge_s, count in row:
            table[index, place[edge_s]] = count
    return table, np.array(edges)


def _warnings(before: RunResult, after: RunResult) -> list[str]:
    found = []
    for name, run in (("first", before), ("second", after)):
        found += [f"the {name} run is INVALID: {reason}" for reason in run.generator.invalid]

    def differ(what: str, of_before: Any, of_after: Any) -> None:
        if of_before != of_after:
            found.append(f"the runs differ in {what}: {of_before} and {of_after}")

    differ("experiment", before.experiment, after.experiment)
    differ("rate", before.planned.rate_per_s, after.planned.rate_per_s)
    differ("deadline in seconds", before.deadline_s, after.deadline_s)
    differ("kind of loop", *("open" if each.open_loop else "closed" for each in (before, after)))
    differ("models", *([model.name for model in each.models] for each in (before, after)))
    differ("digests", *([model.digest[:12] for model in each.models] for each in (before, after)))
    differ("options sent", sorted(before.by_option), sorted(after.by_option))
    return found
