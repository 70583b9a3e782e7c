"""A run as one HTML file that needs nothing else: the verdict, the figures, and plots to look at.

Knows records, verdicts and plots. All text from outside is escaped; nothing is loaded from anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from loadtests.csv_export import write_seconds
from loadtests.gate import Verdict
from loadtests.histogram import CURVE_BITS, Histogram
from loadtests.run_result import RunResult, Second
from split_inference.errors import DataError
from split_inference.html_page import page_head
from split_inference.plots import layered_bars, line_plot

REPORT_FILE = "report.html"
# A point for each second is more than eyes use; slices of whole seconds, at most so many.
_SLICES = 120
_REASONS = 8
_SHARES = (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0))
_TAILS = ("p50", "p95", "p99", "max")
# A CDF of latencies ends in a long thin tail; the axis ends where 99.9 % are, which is said beside it.
_CDF_SHARE = 0.999

_OPEN = (
    "Open loop: requests left when the schedule said so, whatever the server did. Latency runs from the moment at "
    "which a request was meant to start, so that what waited while the server stood still is counted; service time "
    "runs from the moment at which it left."
)
_CLOSED = (
    "Closed loop: a caller asks again when it has its answer. While the server stands still nobody asks, so that a "
    "stall of a second is one slow request for each caller here, where an open loop shows every request that would "
    "have come meanwhile. Such percentiles leave out what was waiting (coordinated omission): use them for callers "
    "that do wait, such as a batch job."
)


def write_report(folder: Path, result: RunResult, verdict: Verdict | None = None) -> Path:
    """report.html and seconds.csv in the run's folder; DataError where they cannot be written."""
    write_seconds(folder, result)
    file = folder / REPORT_FILE
    partial = folder / f".{REPORT_FILE}.partial"
    try:
        partial.write_text(report_html(result, verdict), encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise DataError(f"cannot write {file}: {error.strerror}; choose another place") from None
    return file


def report_html(result: RunResult, verdict: Verdict | None = None) -> str:
    """The page."""
    title = f"{result.experiment} on {', '.join(each.name for each in result.models) or result.host}"
    parts = [
        page_head(title),
        *(f"<p class=invalid role=alert>INVALID: {escape(reason)}</p>" for reason in result.generator.invalid),
        f"<p class=dim>{escape(_facts(result))}<br><code>{escape(result.command)}</code></p>",
        "" if verdict is None else _verdict(verdict),
        *(f"<p>{escape(note)}</p>" for note in _notes(result)),
        f"<div class=scroll>{_counts(result)}</div>",
        f"<div class=scroll>{_times(result)}</div>",
        f"<p class=dim>{escape(_OPEN if result.open_loop else _CLOSED)}</p>",
        f"<div class=plots>{''.join(_plots(result))}</div>",
        f"<h2>By option</h2><div class=scroll>{_options(result)}</div>",
        f"<h2>The generator itself</h2><div class=scroll>{_generator(result)}</div>",
    ]
    return "".join(parts)


def _facts(result: RunResult) -> str:
    planned = result.planned
    rate = f"{planned.users} callers" if planned.rate_per_s is None else f"{planned.rate_per_s:,.6g} requests/s"
    deadline = "no deadline" if result.deadline_s is None else f"deadline {1000 * result.deadline_s:g} ms"
    return (
        f"{planned.arrivals}, {rate} for {planned.duration_s:g} s, the first {result.warmup_s:g} s not counted; "
        f"{deadline}; seed {result.seed}; {result.workers} process{'' if result.workers == 1 else 'es'}; "
        f"{result.host}; {result.started_at}"
    )


def _notes(result: RunResult) -> list[str]:
    untrained = [each.name for each in result.models if not each.trained]
    notes = list(result.generator.notes)
    if untrained:
        notes.append(f"{', '.join(untrained)}: random weights, so that times are real and answers mean nothing.")
    return notes


def _verdict(verdict: Verdict) -> str:
    rows = [
        (
            check.name,
            "not measured" if math.isnan(check.figure) else f"{check.figure:.4g}",
            f"{check.comparison} {check.bound:g}",
            "met" if check.is_met else "missed",
        )
        for check in verdict.checks
    ]
    notes = "".join(f"<p class=dim>{escape(note)}</p>" for note in verdict.notes)
    style = "met" if verdict.outcome == "met" else "missed"
    heading = f"<h2>{escape(verdict.slo)}: <span class={style}>{verdict.outcome}</span></h2>"
    table = _table(("", "found", "bound", ""), rows)
    for word in ("met", "missed"):
        table = table.replace(f"<td>{word}</td>", f"<td class={word}>{word}</td>")
    return f"{heading}<div class=scroll>{table}</div>{notes}"


def _counts(result: RunResult) -> str:
    counts = result.counts
    rows = [
        (name, f"{count:,}", f"{count / counts.intended:.2%}" if counts.intended else "", f"{_per_s(result, count)}")
        for name, count in (
            ("meant to start", counts.intended),
            ("sent", counts.sent),
            ("answered", counts.answered),
            ("good: in time and not wrong", counts.good),
            ("wrong", counts.wrong),
            ("refused", result.refused_count),
            ("failed", result.failed_count),
            ("dropped by the generator", counts.dropped),
        )
    ]
    return _table(("requests", "", "share", "a second"), rows)


def _per_s(result: RunResult, count: int) -> str:
    return f"{count / result.measured_s:,.1f}" if result.measured_s else ""


def _times(result: RunResult) -> str:
    server = result.server
    rows = [
        (name, *(_ms(each) for each in histogram.percentiles([share for _, share in _SHARES])), _ms(histogram.mean_s))
        for name, histogram in (
            ("latency, from the intended start", result.latency),
            ("service, from the actual start", result.service),
            ("schedule delay, the generator's own", result.schedule_delay),
            ("until a refusal", result.refused_latency),
            ("server: queue", server.queue),
            ("server: decode", server.decode),
            ("server: tail", server.tail),
            ("server: total", server.total),
        )
        if histogram.count
    ]
    return _table(("milliseconds", *(name for name, _ in _SHARES), "mean"), rows)


def _options(result: RunResult) -> str:
    rows = [
        (
            name,
            f"{each.intended:,}",
            f"{each.good / each.intended:.2%}" if each.intended else "",
            *(_ms(value) for value in each.latency.percentiles((0.5, 0.95, 0.99))),
        )
        for name, each in sorted(result.by_option.items(), key=lambda item: -item[1].intended)
    ]
    return _table(("option", "meant", "good", "p50 ms", "p95 ms", "p99 ms"), rows)


def _generator(result: RunResult) -> str:
    rows = [
        (
            each.name,
            f"{each.sent:,}",
            f"{each.cpu_share:.0%}",
            f"{each.rss_mb:.0f}",
            _ms(each.schedule_delay_p99_s),
        )
        for each in result.generator.processes
    ]
    rates = (
        f"<p class=dim>meant {result.generator.intended_rate_per_s:,.1f} a second, sent "
        f"{result.generator.achieved_rate_per_s:,.1f}</p>"
    )
    return _table(("process", "sent", "of a core", "MB", "late at p99, ms"), rows) + rates


def _plots(result: RunResult) -> list[str]:
    slices = _slices(result.seconds)
    latencies = {"latency": result.latency, "service": result.service}
    if not result.open_loop:
        latencies = {"service": result.service}
    if result.refused_latency.count:
        latencies["refusals"] = result.refused_latency
    plots: list[str | None] = [
        line_plot(
            {name: _cdf(each) for name, each in latencies.items() if each.count},
            title="Latency: share of requests within",
            x_label=f"milliseconds, up to {100 * _CDF_SHARE:g} %",
            y_label="share",
            y_most=1.0,
        ),
        line_plot(
            _percentiles(slices),
            title="Latency over time",
            x_label="seconds, by intended start",
            y_label="milliseconds",
        ),
        line_plot(
            {
                "meant": _curve(slices, lambda each: each.intended),
                "sent": _curve(slices, lambda each: each.sent),
                "answered": _curve(slices, lambda each: each.answered),
                "good": _curve(slices, lambda each: each.good),
            },
            title="Offered, sent and good",
            x_label="seconds",
            y_label="requests a second",
        ),
        None
        if not _reasons(result)
        else line_plot(
            {
                "refused": _curve(slices, lambda each: each.refused),
                "failed": _curve(slices, lambda each: each.failed),
                "dropped": _curve(slices, lambda each: each.dropped),
            },
            title="Not answered",
            x_label="seconds",
            y_label="requests a second",
        ),
        None
        if not _reasons(result)
        else layered_bars(
            _reasons(result), title="Why requests were not answered", y_label="requests", layers=("requests",)
        ),
        None
        if not result.batch_sizes
        else layered_bars(
            {str(size): {"requests": float(count)} for size, count in sorted(result.batch_sizes.items())},
            title="Samples in the server's batches",
            y_label="requests",
            layers=("requests",),
        ),
        None
        if not any(each.count for each in (result.server.queue, result.server.decode, result.server.tail))
        else line_plot(
            {
                name: _cdf(each)
                for name, each in (
                    ("queue", result.server.queue), ("decode", result.server.decode), ("tail", result.server.tail),
                )
                if each.count
            },
            title="Where the server's time went, as it says",
            x_label=f"milliseconds, up to {100 * _CDF_SHARE:g} %",
            y_label="share",
            y_most=1.0,
        ),
        None
        if not result.server.queue.count
        else line_plot(
            {
                f"queue {name}": [
                    (at_s, 1000 * each.queue.percentile(share)) for at_s, each in slices if each.queue.count
                ]
                for name, share in (("p50", 0.5), ("p99", 0.99))
            },
            title="The server's queue over time, as it says",
            x_label="seconds",
            y_label="milliseconds",
        ),
        line_plot(
            {"schedule delay": _cdf(result.schedule_delay)},
            title="How late the generator sent",
            x_label=f"milliseconds, up to {100 * _CDF_SHARE:g} %",
            y_label="share",
            y_most=1.0,
        ),
    ]  # fmt: skip
    return [each for each in plots if each is not None]


def _reasons(result: RunResult) -> Mapping[str, Mapping[str, float]]:
    every: dict[str, int] = {**result.refused, **result.failed}
    for why, count in result.dropped.items():
        every[f"dropped: {why}"] = count
    ranked = sorted(every.items(), key=lambda item: -item[1])
    shown = {reason: {"requests": float(count)} for reason, count in ranked[:_REASONS]}
    if rest := sum(count for _, count in ranked[_REASONS:]):
        shown["others"] = {"requests": float(rest)}
    return shown


class _Slice:
    """A few seconds together."""

    def __init__(self, width_s: int) -> None:
        self.width_s = width_s
        """Seconds that it spans; the last one may be shorter."""
        self.seconds: list[Second] = []
        self.latency = Histogram(bits=CURVE_BITS)
        self.queue = Histogram(bits=CURVE_BITS)

    def add(self, second: Second) -> None:
        """One more second."""
        self.seconds.append(second)
        self.latency.merge(second.latency)
        self.queue.merge(second.server_queue)


def _slices(seconds: Sequence[Second]) -> list[tuple[float, _Slice]]:
    """The run in at most _SLICES pieces of whole seconds, each with its middle."""
    if not seconds:
        return []
    first, last = seconds[0].second, seconds[-1].second
    width_s = math.ceil((last - first + 1) / _SLICES)
    found: dict[int, _Slice] = {}
    for each in seconds:
        place = (each.second - first) // width_s
        spans_s = min(width_s, last - (first + place * width_s) + 1)
        found.setdefault(place, _Slice(spans_s)).add(each)
    return [(first + (place + 0.5) * width_s, each) for place, each in sorted(found.items())]


def _curve(slices: Sequence[tuple[float, _Slice]], count: Callable[[Second], int]) -> list[tuple[float, float]]:
    return [(at_s, sum(count(second) for second in each.seconds) / each.width_s) for at_s, each in slices]


def _percentiles(slices: Sequence[tuple[float, _Slice]]) -> Mapping[str, list[tuple[float, float]]]:
    shares = dict(_SHARES)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in _TAILS}
    for at_s, each in slices:
        if each.latency.count:
            for name, value_s in zip(found, each.latency.percentiles([shares[name] for name in found]), strict=True):
                found[name].append((at_s, 1000 * value_s))
    return found


def _cdf(histogram: Histogram) -> list[tuple[float, float]]:
    """Share of values at most so many milliseconds, from nothing up to _CDF_SHARE."""
    points = [(0.0, 0.0)]
    below = 0
    for edge_s, count in histogram.buckets():
        if below == 0:
            points.append((1000 * histogram.min_s, 0.0))
        below += count
        points.append((1000 * edge_s, below / histogram.count))
        if below >= _CDF_SHARE * histogram.count:
            break
    return points


def _ms(value_s: float) -> str:
    return "" if math.isnan(value_s) else f"{1000 * value_s:,.4g}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heading = "".join(f"<th>{escape(each)}</th>" for each in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(each)}</td>' for each in row)}</tr>" for row in rows)
    return f"<table class=numbers><tr>{heading}</tr>{body}</table>"
