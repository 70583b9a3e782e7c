"""A run as one HTML file that needs nothing else: what it was, its table, and plots to look at.

Knows runs, summaries and plots. All text from the run is escaped; nothing is loaded from anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from edge_sim.run_reader import Run
from edge_sim.run_summary import GroupSummary, summarize
from split_inference.errors import UsageError
from split_inference.html_page import page_head
from split_inference.plots import layered_bars, line_plot

STAGES = (
    "wait_s",
    "head_s",
    "up_queue_s",
    "up_s",
    "up_propagation_s",
    "up_loss_s",
    "server_queue_s",
    "server_s",
    "down_s",
    "local_s",
)
_SLICES = 60
# Reasons beyond these are rare, and a bar each would be a forest.
_REASONS = 8


def write_report(run: Run) -> Path:
    """report.html in the run's folder. UsageError where it cannot be written."""
    file = run.folder / "report.html"
    partial = file.with_suffix(".partial")
    try:
        partial.write_text(report_html(run), encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}") from error
    return file


def report_html(run: Run) -> str:
    """The page."""
    header = run.header
    rows = summarize(run)
    name = str(header.get("scenario_name") or run.folder.name)
    invalid = header.get("invalid")
    notes = []
    if run.cut_off:
        notes.append("The run was killed while it wrote: its last record is missing.")
    if header.get("ended_at_s") is not None:
        notes.append(f"The run was ended after {float(header['ended_at_s']):g} s; goodput is of these.")
    made = header.get("command", "")
    versions = ", ".join(f"{key} {value}" for key, value in dict(header.get("versions") or {}).items())
    facts = (
        f"{header.get('clock', '?')} clock, seed {header.get('seed')}, {header.get('duration_s')} s, "
        f"{len(run)} requests; "
        f"{header.get('started_at', '')} on {header.get('host', '')}; commit {header.get('commit')}; {versions}"
    )
    assumed = list(header.get("assumed") or [])
    return "".join(
        [
            page_head(name),
            f"<p class=invalid role=alert>INVALID: {escape(str(invalid))}</p>" if invalid else "",
            f"<p class=dim>{escape(facts)}<br><code>{escape(str(made))}</code></p>",
            "".join(f"<p>{escape(note)}</p>" for note in notes),
            f"<div class=scroll>{_table(rows)}</div>",
            "<p class=dim>Latency is of requests that were answered, by the server or on the device; joules are of a "
            "request, and rest on the assumed figures below. Goodput counts answers in time that nobody knows to be "
            "wrong.</p>",
            f"<div class=plots>{''.join(_plots(run, rows))}</div>",
            _assumed(assumed),
        ]
    )


def _plots(run: Run, rows: Sequence[GroupSummary]) -> list[str]:
    groups = [row.group for row in rows]
    # A group that changed its policy stands twice.
    names = [row.group if groups.count(row.group) == 1 else f"{row.group} {row.policy}" for row in rows]
    return [
        line_plot(
            _latency_cdf(run), title="Latency by mode", x_label="milliseconds", y_label="share of answers", y_most=1.0
        ),
        line_plot(_percentiles(run), title="Latency over time", x_label="seconds", y_label="milliseconds"),
        layered_bars(
            {
                name: {"compute": row.compute_j, "radio": row.radio_j, "idle": row.idle_j}
                for name, row in zip(names, rows, strict=True)
            },
            title="Energy of a request",
            y_label="joules",
            layers=("compute", "radio", "idle"),
        ),
        layered_bars(
            {name: {"up": row.up_bytes / 1000} for name, row in zip(names, rows, strict=True)},
            title="Bytes sent for a request",
            y_label="kilobytes",
            layers=("up",),
        ),
        layered_bars(
            _stages(run, rows, names),
            title="Where the time of an answer goes",
            y_label="milliseconds",
            layers=[each.removesuffix("_s") for each in STAGES],
        ),
        line_plot(
            _choices(run), title="What devices chose", x_label="seconds", y_label="share of requests", y_most=1.0
        ),
        layered_bars(
            _reasons(rows, names),
            title="Not answered by the server, by reason",
            y_label="requests",
            layers=_reason_names(rows),
        ),
    ]


def _latency_cdf(run: Run) -> Mapping[str, list[tuple[float, float]]]:
    modes, outcome = run.texts["mode"], run.texts["outcome"]
    answered = outcome.where("answered") | outcome.where("answered_locally")
    found = {}
    for mode in modes.names:
        times_ms = np.sort(1000 * run.numbers["total_s"][answered & modes.where(mode)])
        if len(times_ms):
            shares = np.linspace(0, 1, 200)
            found[mode] = [(float(np.quantile(times_ms, share)), float(share)) for share in shares]
    return found


def _slices(run: Run) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], float]:
    width = run.seconds / _SLICES
    return np.minimum((run.numbers["intended_s"] / width).astype(np.int64), _SLICES - 1), width


def _percentiles(run: Run) -> Mapping[str, list[tuple[float, float]]]:
    outcome = run.texts["outcome"]
    answered = outcome.where("answered") | outcome.where("answered_locally")
    places, width = _slices(run)
    found: dict[str, list[tuple[float, float]]] = {"p50": [], "p95": [], "p99": []}
    for place in range(_SLICES):
        times = run.numbers["total_s"][answered & (places == place)]
        if len(times):
            for name, value in zip(found, np.quantile(times, (0.5, 0.95, 0.99)), strict=True):
                found[name].append(((place + 0.5) * width, 1000 * float(value)))
    return found


def _choices(run: Run) -> Mapping[str, list[tuple[float, float]]]:
    places, width = _slices(run)
    modes, points = run.texts["mode"], run.texts["split_point"]
    adaptive = run.texts["policy"].where("adaptive")
    # What was dropped at once was no choice.
    tried = ~run.texts["outcome"].where("dropped") | (run.numbers["attempts"] > 0)
    shown = tried & (adaptive if adaptive.any() else True)
    chosen: dict[str, np.ndarray[tuple[int], np.dtype[np.bool_]]] = {}
    for mode in modes.names:
        if mode != "split":
            chosen[mode] = modes.where(mode)
            continue
        for point in points.names:
            if point:
                chosen[f"split at {point}"] = modes.where(mode) & points.where(point)
    totals = np.bincount(places[shown], minlength=_SLICES)
    return {
        name: [
            ((place + 0.5) * width, float(count / totals[place]))
            for place, count in enumerate(np.bincount(places[shown & rows], minlength=_SLICES))
            if totals[place]
        ]
        for name, rows in chosen.items()
        if (shown & rows).any()
    }


def _stages(run: Run, rows: Sequence[GroupSummary], names: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
    outcome = run.texts["outcome"]
    answered = outcome.where("answered") | outcome.where("answered_locally")
    found = {}
    for name, row in zip(names, rows, strict=True):
        own = answered & run.texts["group"].where(row.group) & run.texts["policy"].where(row.policy)
        if own.any():
            found[name] = {stage.removesuffix("_s"): 1000 * float(run.numbers[stage][own].mean()) for stage in STAGES}
    return found


def _reason_names(rows: Sequence[GroupSummary]) -> list[str]:
    totals: dict[str, int] = {}
    for row in rows:
        for reasons in (row.not_answered, row.fallbacks):
            for reason, count in reasons.items():
                totals[reason] = totals.get(reason, 0) + count
    return sorted(totals, key=lambda reason: -totals[reason])[:_REASONS]


def _reasons(rows: Sequence[GroupSummary], names: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
    return {
        name: {
            reason: float(row.not_answered.get(reason, 0) + row.fallbacks.get(reason, 0))
            for reason in _reason_names(rows)
        }
        for name, row in zip(names, rows, strict=True)
    }


def _table(rows: Sequence[GroupSummary]) -> str:
    headings = (
        "group", "policy", "requests", "in time", "on the device", "right", "mean ms", "p50", "p95", "p99", "KB up",
        "compute J", "radio J", "idle J", "goodput/s", "not answered",
    )  # fmt: skip
    lines = ["<table><thead><tr>", *(f"<th scope=col>{heading}</th>" for heading in headings), "</tr></thead><tbody>"]
    for row in rows:
        reasons = ", ".join(f"{reason} {count}" for reason, count in row.not_answered.items()) or "-"
        cells = (
            row.group,
            row.policy,
            str(row.requests),
            f"{100 * row.in_time:.1f} %",
            f"{100 * row.locally:.1f} %",
            "-" if row.correct is None else f"{100 * row.correct:.1f} %",
            *(_ms(each) for each in (row.mean_s, row.p50_s, row.p95_s, row.p99_s)),
            f"{row.up_bytes / 1000:.1f}",
            f"{row.compute_j:.3f}",
            f"{row.radio_j:.3f}",
            f"{row.idle_j:.3f}",
            f"{row.goodput_per_s:.2f}",
            reasons,
        )
        lines += ["<tr>", *(f"<td>{escape(cell)}</td>" for cell in cells), "</tr>"]
    return "".join([*lines, "</tbody></table>"])


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f}"


def _assumed(assumed: Sequence[str]) -> str:
    if not assumed:
        return ""
    items = "".join(f"<li>{escape(str(each))}</li>" for each in assumed)
    summary = f"{len(assumed)} figures that nobody measured, with their ranges"
    return f"<details open><summary>{summary}</summary><ul>{items}</ul></details>"
