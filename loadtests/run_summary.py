"""What a run is going to do and what it did, in a few lines for a terminal. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from loadtests.arrivals import COUNTED_EXACTLY
from loadtests.gate import Verdict
from loadtests.run_result import Planned, RunResult


def announcement(
    experiment: str, planned: Planned, *, host: str, shares: Mapping[str, float], workers: int, max_in_flight: int
) -> str:
    """What is going to be sent, before anything is."""
    if planned.rate_per_s is None:
        how = f"closed loop, {planned.users} users that each wait for their answer; the server sets the rate"
        much = f"for {planned.duration_s:g} s"
    else:
        how = f"open loop, at most {max_in_flight} requests under way for each of {_many(workers, 'worker')}"
        much = (
            f"{planned.rate_per_s:,.6g} requests/s on average ({planned.arrivals}) for {planned.duration_s:g} s: "
            f"{_expected(planned.requests or 0)} requests, {_bytes(planned.bytes_per_s or 0)}/s of bodies"
        )
    lines = [f"{experiment}: {much}, to {host}", f"  {how}"]
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    lines += [f"  {share:6.1%}  {label}" for label, share in ranked[:12]]
    if len(ranked) > 12:
        lines.append(f"  and {len(ranked) - 12} options more")
    return "\n".join(lines)


def summary(result: RunResult) -> str:
    """What came out, once it is over."""
    counts, latency = result.counts, result.latency
    lines = [
        f"{result.experiment}: {counts.intended:,} requests meant to start within {result.measured_s:.1f} s, "
        f"{counts.sent:,} sent, {counts.answered:,} answered",
        f"  good (in time and not wrong) {counts.good:,}, {result.goodput_share:.2%}, {result.goodput_per_s:,.1f}/s; "
        f"wrong {counts.wrong:,}, refused {result.refused_count:,}, failed {result.failed_count:,}, "
        f"dropped {counts.dropped:,}",
    ]
    if latency.count:
        start = (
            "from the intended start" if result.open_loop else "closed loop: what would have come meanwhile is left out"
        )
        lines.append(f"  latency        {_percentiles(latency.percentiles(_SHARES))}  ({start})")
        lines.append(f"  service        {_percentiles(result.service.percentiles(_SHARES))}  (from the actual start)")
    if result.open_loop and result.schedule_delay.count:
        lines.append(
            f"  schedule delay {_percentiles(result.schedule_delay.percentiles(_SHARES))}  (the generator's own)"
        )
    for title, reasons in (("refused", result.refused), ("failed", result.failed)):
        ranked = sorted(reasons.items(), key=lambda item: -item[1])
        lines += [f"  {title}: {count:,} x {reason}" for reason, count in ranked[:5]]
    lines += [f"  note: {note}" for note in result.generator.notes]
    lines += [f"  INVALID: {reason}" for reason in result.generator.invalid]
    return "\n".join(lines)


def verdict_lines(verdict: Verdict) -> list[str]:
    """The verdict of an SLO file: the outcome, and each bound beside what was measured."""
    return [f"{verdict.slo}: {verdict.outcome}", *(f"  {check}" for check in verdict.checks)]


_SHARES = (0.5, 0.9, 0.99, 0.999, 1.0)


def _percentiles(values_s: list[float]) -> str:
    names = ("p50", "p90", "p99", "p99.9", "max")
    return ", ".join(f"{name} {_ms(value)}" for name, value in zip(names, values_s, strict=True))


def _ms(value_s: float) -> str:
    if math.isnan(value_s):
        return "-"
    return f"{1000 * value_s:.3g} ms" if value_s < 1 else f"{value_s:.3g} s"


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def _expected(requests: int) -> str:
    return f"about {requests:,}" if requests > COUNTED_EXACTLY else f"{requests:,}"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
