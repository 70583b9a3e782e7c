"""Links as a table: rates, delays, and which of them anybody measured.

Knows profiles, traces and the terminal. Computes no arrival times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from edge_sim.link_profiles import LinkProfile, RateProfile, build_bottleneck
from edge_sim.profile_files import Figure
from edge_sim.traces import Trace


def link_rows(profiles: Mapping[str, LinkProfile], traces: Mapping[str, Trace] | None = None) -> list[dict[str, Any]]:
    """One JSON-able row for each link. A trace that is not given has None for what only the file says."""
    return [
        {
            "name": name,
            "up": _rate_row(profile.up, traces or {}),
            "down": _rate_row(profile.down, traces or {}),
            "propagation_ms": _figure_row(profile.propagation_ms),
            "jitter_ms": _figure_row(profile.jitter_ms),
            "loss": _figure_row(profile.loss),
            "radio": profile.radio,
            "assumed": any(
                (
                    profile.up.is_assumed,
                    profile.down.is_assumed,
                    profile.propagation_ms.assumed,
                    profile.jitter_ms.assumed,
                    profile.loss.assumed,
                )
            ),
            "note": profile.note,
        }
        for name, profile in profiles.items()
    ]


def trace_row(trace: Trace) -> dict[str, Any]:
    """What a trace's file says, JSON-able."""
    return {
        "trace": trace.name,
        "opportunities": trace.opportunities,
        "duration_s": trace.duration_s,
        "mean_megabits_per_s": trace.mean_megabits_per_s,
        "longest_hole_s": trace.longest_hole_s,
    }


def render_links(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows of `link_rows`: an assumed figure has its bounds, and the legend below says so."""
    table = Table(title="Links", title_justify="left")
    table.add_column("link")
    for heading in ("up Mbit/s", "down Mbit/s", "one way ms", "jitter ms", "loss %"):
        table.add_column(heading, justify="right")
    table.add_column("radio")
    for row in rows:
        table.add_row(
            row["name"],
            _rate_text(row["up"]),
            _rate_text(row["down"]),
            _figure_text(row["propagation_ms"]),
            _figure_text(row["jitter_ms"]),
            _figure_text(row["loss"], scale=100),
            row["radio"] or "-",
        )
    console.print(table)
    files = {way["trace"]: way for row in rows for way in (row["up"], row["down"]) if way.get("duration_s") is not None}
    if files:
        found = Table(title="Traces", title_justify="left")
        found.add_column("file")
        for heading in ("mean Mbit/s", "longest hole s", "length s"):
            found.add_column(heading, justify="right")
        for name, way in files.items():
            found.add_row(
                name, f"{way['mean_megabits_per_s']:.2f}", f"{way['longest_hole_s']:.3f}", f"{way['duration_s']:.0f}"
            )
        console.print(found)
    if any(row["assumed"] for row in rows):
        console.print("~ assumed, not measured; with low..high where it is one figure", style="dim")
    if any(way.get("trace") and way["mean_megabits_per_s"] is None for row in rows for way in (row["up"], row["down"])):
        console.print("? a trace that is not at hand: traces do not come with this package", style="dim")


def _rate_row(rate: RateProfile, traces: Mapping[str, Trace]) -> dict[str, Any]:
    if rate.megabits_per_s is not None:
        return {"kind": "constant", "mean_megabits_per_s": rate.megabits_per_s.value} | _figure_row(rate.megabits_per_s)
    about = {"source": rate.source, "assumed": rate.is_assumed}
    if rate.states is not None:
        mean = build_bottleneck(rate, traces={}, seed=0).mean_megabits_per_s
        states = [state.model_dump() for state in rate.states]
        return {"kind": "states", "mean_megabits_per_s": mean, "states": states} | about
    trace = traces.get(rate.trace or "")
    unknown = {"opportunities": None, "duration_s": None, "mean_megabits_per_s": None, "longest_hole_s": None}
    return {"kind": "trace"} | (unknown if trace is None else trace_row(trace)) | {"trace": rate.trace} | about


def _figure_row(figure: Figure) -> dict[str, Any]:
    return figure.model_dump()


def _rate_text(way: Mapping[str, Any]) -> str:
    if way["kind"] == "constant":
        return _figure_text(way)
    mean = way["mean_megabits_per_s"]
    text = "?" if mean is None else f"{mean:.2f}"
    return f"{'~' if way['assumed'] else ''}{text} ({way['kind']})"


def _figure_text(row: Mapping[str, Any], *, scale: float = 1) -> str:
    value = f"{row['value'] * scale:g}"
    if not row["assumed"]:
        return value
    return f"~{value} ({row['low'] * scale:g}..{row['high'] * scale:g})"
