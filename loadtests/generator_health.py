"""Whether the generator kept its schedule: a run whose generator was late or out of processor time is no result.

Pure: from what was counted to reasons, each one line that says the figure, the bound and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.run_recorder import Tally
from loadtests.run_result import Generator, GeneratorProcess


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthBounds:
    """Beyond these a run is INVALID."""

    schedule_delay_p99_s: float = 0.005
    """Half of what a small model's service takes; ten times what an idle machine shows."""
    rate_share: float = 0.01
    """Of the intended rate, that the achieved one may differ."""
    cpu_share: float = 0.9
    """Of a core: what sends is one thread."""
    late_share: float = 0.001
    """Of the intended arrivals, that may be dropped because the generator was late."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sighting:
    """What is known of the processes that should have sent."""

    processes: tuple[GeneratorProcess, ...]
    expected: int
    """Processes that the run began with."""
    lost: Sequence[str] = ()
    """Names of those that went away in mid-run."""
    left: Sequence[tuple[str, float]] = ()
    """(Name, seconds from the start) of those that were ended in mid-run by themselves, and said so."""
    without_callers: int = 0
    """Processes at the end that have nothing to send: a closed loop of fewer callers than processes."""
    stopped_at_s: float | None = None
    """When somebody ended the run before its time; None where nobody did."""


def generator_of(
    tally: Tally,
    sighting: Sighting,
    *,
    measured_s: float,
    open_loop: bool,
    scheduled: tuple[int, int] | None = None,
    bounds: HealthBounds | None = None,
) -> Generator:
    """The generator's part of a run's record, with every reason why the run is none.

    `scheduled`: at least and at most so many arrivals were to be counted; None where nobody knows, as in a closed loop
    or in a run that was stopped.
    """
    bounds = bounds or HealthBounds()
    intended, within = tally.counts["intended"], tally.counts["sent_within"]
    invalid = [f"{name} was lost in mid-run: what it would have sent was not sent" for name in sighting.lost]
    invalid += [
        f"{name} was ended after {after_s:.1f} s, and the run was not: what it would have sent then was not sent"
        for name, after_s in sighting.left
    ]
    silent = sighting.expected - len(sighting.processes) - len(sighting.lost)
    if silent > 0:
        invalid.append(f"{silent} of {sighting.expected} workers never reported what they did")
    if not invalid and scheduled is not None and not scheduled[0] <= intended <= scheduled[1]:
        # Where a process is missing, so is its share, and the reason is there already.
        invalid.append(
            f"{intended} arrivals were counted where the schedule has {_between(*scheduled)} after the warm-up: "
            "counts were lost on their way, or a part was not sent; run it again"
        )
    if not intended:
        invalid.append("nothing was to be sent after the warm-up; run for longer")
    if open_loop and intended:
        invalid += _schedule_reasons(tally, intended=intended, within=within, bounds=bounds)
    for process in sighting.processes:
        if process.cpu_share > bounds.cpu_share:
            invalid.append(
                f"{process.name} used {process.cpu_share:.0%} of a core, above {bounds.cpu_share:.0%}: "
                "use more workers (--processes) or a lower rate"
            )
    if len(sighting.processes) > 1 and intended > 100 * len(sighting.processes):
        senders = sighting.processes[: max(0, sighting.expected - sighting.without_callers)]
        invalid += [f"{process.name} sent nothing" for process in senders if not process.sent]
    notes = [] if sighting.stopped_at_s is None else [f"stopped after {sighting.stopped_at_s:.1f} s, before its end"]
    if again := tally.counts["sent_again"]:
        notes.append(f"{again} times a request was sent again, because the server had closed an idle connection")
    return Generator(
        processes=sighting.processes,
        achieved_rate_per_s=within / measured_s if measured_s else 0.0,
        intended_rate_per_s=intended / measured_s if measured_s else 0.0,
        invalid=tuple(invalid),
        notes=tuple(notes),
    )


def _schedule_reasons(tally: Tally, *, intended: int, within: int, bounds: HealthBounds) -> list[str]:
    reasons = []
    delay = tally.histograms["schedule_delay"]
    p99_s = delay.percentile(0.99) if delay.count else 0.0
    if p99_s > bounds.schedule_delay_p99_s:
        reasons.append(
            f"the generator was late: schedule delay p99 {1000 * p99_s:.1f} ms, above "
            f"{1000 * bounds.schedule_delay_p99_s:g} ms; use more workers, a lower rate or an idle machine"
        )
    late, full = tally.dropped["late"], tally.dropped["full"]
    if full:
        reasons.append(
            f"{full} of {intended} arrivals were dropped because as many requests as allowed were under way: "
            "the server answers too slowly for this rate, or raise --max-in-flight"
        )
    if late > bounds.late_share * intended:
        reasons.append(f"{late} of {intended} arrivals were dropped because the generator was late for them")
    # Two requests across the end of a short run are no deviation.
    if abs(within - intended) > max(bounds.rate_share * intended, 2) and not full:
        reasons.append(
            f"{within} of {intended} requests left on time: the achieved rate is "
            f"{within / intended - 1:+.1%} off the intended one, beyond {bounds.rate_share:.0%}"
        )
    return reasons


def _between(least: int, most: int) -> str:
    return f"{least}" if least == most else f"{least} to {most}"


class StopRequest:
    """The moment at which somebody first asked a run to end; what is waited for after it is no part of the run."""

    def __init__(self) -> None:
        self._at_unix_s: float | None = None

    def ask(self, now_unix_s: float) -> None:
        """End; asked again it changes nothing."""
        if self._at_unix_s is None:
            self._at_unix_s = now_unix_s

    def __bool__(self) -> bool:
        return self._at_unix_s is not None

    def after_s(self, start_unix_s: float) -> float | None:
        """Seconds from the start of the run, at least 0; None where nobody asked."""
        return None if self._at_unix_s is None else max(0.0, self._at_unix_s - start_unix_s)
