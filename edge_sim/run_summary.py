"""What a run's requests say together, by group and policy. Pure, but for the table at the end.

Latency is of the requests that were answered, by the server or on the device, in time or not. Goodput counts answers in
time that nobody knows to be wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from edge_sim.run_reader import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupSummary:
    """One group's requests under one policy. Seconds, bytes and joules are means of a request."""

    group: str
    policy: str
    requests: int
    answered: float
    """Share of all requests."""
    in_time: float
    locally: float
    """Share that the device answered by itself, by choice or by necessity."""
    correct: float | None
    """Share of the answers; None where any is unknown."""
    mean_s: float | None
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    up_bytes: float
    compute_j: float
    radio_j: float
    idle_j: float
    goodput_per_s: float
    not_answered: Mapping[str, int]
    """By reason: dropped or given up."""
    fallbacks: Mapping[str, int]
    """By reason: answered on the device, because the server was not to be had."""


def summarize(run: Run) -> list[GroupSummary]:
    """By group and policy, in the order of the groups."""
    groups, policies = run.texts["group"], run.texts["policy"]
    found = []
    for group in groups.names:
        for policy in policies.names:
            rows = groups.where(group) & policies.where(policy)
            if rows.any():
                found.append(_summary(run, rows, group, policy))
    return found


def _summary(run: Run, rows: NDArray[np.bool_], group: str, policy: str) -> GroupSummary:
    outcome, reason = run.texts["outcome"], run.texts["reason"]
    locally = rows & outcome.where("answered_locally")
    answered = rows & outcome.where("answered") | locally
    count = int(rows.sum())
    latency_s = run.numbers["total_s"][answered]
    correct = run.correct[answered]
    quantiles = np.quantile(latency_s, (0.5, 0.95, 0.99)) if len(latency_s) else None
    good = run.in_time & rows & (run.correct != 0)

    def mean(name: str) -> float:
        return float(run.numbers[name][rows].mean())

    return GroupSummary(
        group=group,
        policy=policy,
        requests=count,
        answered=float(answered.sum() / count),
        in_time=float((run.in_time & rows).sum() / count),
        locally=float(locally.sum() / count),
        correct=float(correct.mean()) if len(correct) and (correct >= 0).all() else None,
        mean_s=float(latency_s.mean()) if len(latency_s) else None,
        p50_s=None if quantiles is None else float(quantiles[0]),
        p95_s=None if quantiles is None else float(quantiles[1]),
        p99_s=None if quantiles is None else float(quantiles[2]),
        up_bytes=mean("up_bytes"),
        compute_j=mean("compute_j"),
        radio_j=mean("radio_j"),
        idle_j=mean("idle_j"),
        goodput_per_s=float(good.sum() / run.seconds),
        not_answered=_reasons(reason.codes[rows & ~answered], reason.names),
        fallbacks=_reasons(reason.codes[locally], reason.names),
    )


def _reasons(codes: NDArray[np.int32], names: Sequence[str]) -> dict[str, int]:
    counted = Counter(names[code] for code in codes.tolist() if names[code])
    return dict(counted.most_common())


def render_summary(console: Console, rows: Sequence[GroupSummary], *, assumed: Sequence[str] = ()) -> None:
    """Print the table; joules rest on assumed figures where there are any, and the line below says so."""
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    for heading in ("group", "policy"):
        table.add_column(heading, no_wrap=True, overflow="ellipsis", max_width=16)
    for heading in ("asked", "in time", "here", "right", "p50 ms", "p95 ms", "KB", "J"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.group,
            row.policy,
            str(row.requests),
            f"{100 * row.in_time:.0f}%",
            f"{100 * row.locally:.0f}%",
            "-" if row.correct is None else f"{100 * row.correct:.0f}%",
            _ms(row.p50_s),
            _ms(row.p95_s),
            f"{row.up_bytes / 1000:.1f}",
            f"{row.compute_j + row.radio_j + row.idle_j:.2f}",
        )
    console.print(table)
    for row in rows:
        for what, reasons in (("not answered", row.not_answered), ("answered here instead", row.fallbacks)):
            if reasons:
                shown = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
                console.print(f"{row.group}: {what}: {shown}", highlight=False)
    if assumed:
        console.print(
            f"{len(assumed)} figures behind this, of joules above all, were assumed; header.json names each",
            highlight=False,
        )


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.0f}"


def summary_facts(rows: Sequence[GroupSummary]) -> list[dict[str, Any]]:
    """As JSON has it."""
    return [{name: getattr(row, name) for name in GroupSummary.__dataclass_fields__} for row in rows]
