"""Whether a run met an objective: each figure beside its bound, and what that means for whoever started the run.

Pure. A figure that was not measured, as a percentile of no answers, misses its bound. A run whose generator was late,
or that somebody stopped, is neither met nor missed: it is INVALID, whatever its figures say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from loadtests.run_result import RunResult
from loadtests.slo import PERCENTILES, Slo

Outcome = Literal["met", "missed", "invalid"]

# As k6 ends where a threshold is missed; 0 and 3 as everywhere in this project.
EXIT_CODES: Final[dict[Outcome, int]] = {"met": 0, "missed": 99, "invalid": 3}


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing that the objective says, and what the run reached."""

    name: str
    """As in the SLO file: "latency.p99_ms", "min_goodput", ..."""
    figure: float
    """NaN where the run says nothing of it."""
    comparison: Literal["<=", ">="]
    bound: float

    @property
    def is_met(self) -> bool:
        """Whether the figure is on the right side of the bound, which itself is right."""
        return self.figure <= self.bound if self.comparison == "<=" else self.figure >= self.bound

    def __str__(self) -> str:
        shown = "not measured" if math.isnan(self.figure) else f"{self.figure:.4g}"
        return f"{self.name} {shown} {self.comparison} {self.bound:g}: {'met' if self.is_met else 'MISSED'}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What became of the objective."""

    slo: str
    run: str
    """What was judged: experiment and start."""
    checks: tuple[Check, ...]
    invalid: tuple[str, ...] = ()
    """Why the run is no result."""
    notes: tuple[str, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """INVALID before anything else: such figures are the generator's, not the server's."""
        if self.invalid:
            return "invalid"
        return "met" if all(check.is_met for check in self.checks) else "missed"

    @property
    def exit_code(self) -> int:
        """0 met, 99 missed, 3 invalid."""
        return EXIT_CODES[self.outcome]


def judge(result: RunResult, slo: Slo) -> Verdict:
    """Hold the run against the objective."""
    said = slo.latency.said()
    figures_s = result.latency.percentiles([PERCENTILES[name] for name in said])
    checks = [
        Check(name=f"latency.{name}", figure=1000 * figure_s, comparison="<=", bound=bound_ms)
        for (name, bound_ms), figure_s in zip(said.items(), figures_s, strict=True)
    ]
    counts = result.counts

    def share(count: int) -> float:
        return count / counts.intended if counts.intended else math.nan

    if slo.min_goodput is not None:
        checks.append(Check(name="min_goodput", figure=share(counts.good), comparison=">=", bound=slo.min_goodput))
    for name, count, bound in (
        ("max_errors", result.failed_count + counts.wrong, slo.max_errors),
        ("max_rejects", result.refused_count, slo.max_rejects),
    ):
        if bound is not None:
            checks.append(Check(name=name, figure=share(count), comparison="<=", bound=bound))
    if slo.min_goodput_per_s is not None:
        per_s = result.goodput_per_s if counts.intended else math.nan
        checks.append(Check(name="min_goodput_per_s", figure=per_s, comparison=">=", bound=slo.min_goodput_per_s))
    return Verdict(
        slo=slo.name,
        run=f"{result.experiment} of {result.started_at}",
        checks=tuple(checks),
        invalid=(*result.generator.invalid, *_stopped(result)),
        notes=_notes(result, slo),
    )


def _stopped(result: RunResult) -> tuple[str, ...]:
    """Why a run that ended early is no verdict: what was to come later in it, a peak or a leak, nobody has seen."""
    planned_s = result.planned.duration_s
    # Rounding is no stop.
    if result.measured_s > planned_s - result.warmup_s - 1e-6:
        return ()
    if not result.measured_s:
        return (f"it was stopped before its warm-up of {result.warmup_s:g} s was over",)
    return (f"it was stopped after {result.warmup_s + result.measured_s:.1f} of {planned_s:g} s: let it end",)


def _notes(result: RunResult, slo: Slo) -> tuple[str, ...]:
    notes = []
    if not result.open_loop and slo.latency.said():
        notes.append("a closed loop leaves out what waited while the server was slow: its percentiles flatter")
    if (slo.min_goodput is not None or slo.min_goodput_per_s is not None) and result.deadline_s is None:
        notes.append("the run had no deadline (--deadline-ms): every answer counted as in time")
    left_out = result.refused_count + result.failed_count + result.counts.dropped
    if slo.latency.said() and slo.max_rejects is None and slo.max_errors is None and left_out:
        notes.append(
            f"latency is of what was answered; {left_out} of {result.counts.intended} requests were not, and nothing "
            "in the objective bounds that"
        )
    return tuple(notes)
