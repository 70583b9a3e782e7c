"""Devices as a table, and how wrong the fit is where a network is left out of it. Knows profiles and the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from edge_sim.device_fit import DeviceFit, LeftOut, leave_one_model_out
from edge_sim.device_profiles import DeviceProfile
from edge_sim.work import ModelWork


def device_rows(
    devices: Mapping[str, DeviceProfile], works: Mapping[str, ModelWork], *, source: str
) -> list[dict[str, Any]]:
    """A JSON-able row for each device: milliseconds of every network, measured or by the fit."""
    fit = DeviceFit(devices, works)
    rows = []
    for name, device in devices.items():
        networks = {}
        for model, work in works.items():
            found = fit.whole(name, model, work.whole)
            networks[model] = {
                "ms": 1000 * found.seconds,
                "basis": found.basis,
                "expected_error": found.relative_error,
            }
        rows.append(
            {
                "name": name,
                "label": device.label,
                "kind": device.kind,
                "threads": device.threads,
                "source": source,
                "power": device.power,
                "sustained": {
                    "after_s": device.sustained_after_s.model_dump(exclude_none=True),
                    "speed": device.sustained_speed.model_dump(exclude_none=True),
                },
                "networks": networks,
            }
        )
    return rows


def check_rows(
    devices: Mapping[str, DeviceProfile], works: Mapping[str, ModelWork]
) -> tuple[list[LeftOut], dict[str, float]]:
    """Rows of CPUs, each predicted without its network; and the median error and shares within 15 and 30 %."""
    rows = leave_one_model_out(devices, works)
    errors = np.abs([row.relative_error for row in rows])
    return rows, {
        "rows": float(len(rows)),
        "median_error": float(np.median(errors)),
        "within_15_percent": float(np.mean(errors <= 0.15)),
        "within_30_percent": float(np.mean(errors <= 0.30)),
    }


def render_devices(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows of `device_rows`; what the fit says has a tilde."""
    networks = list(rows[0]["networks"]) if rows else []
    table = Table(title="Milliseconds of one sample at full speed", title_justify="left")
    table.add_column("device")
    for network in networks:
        table.add_column(network, justify="right")
    for row in rows:
        cells = []
        for network in networks:
            found = row["networks"][network]
            cells.append(f"{'' if found['basis'] == 'measured' else '~'}{found['ms']:.1f}")
        table.add_row(row["name"], *cells)
    console.print(table)
    if rows:
        errors = {
            row["kind"]: each["expected_error"]
            for row in rows
            for each in row["networks"].values()
            if each["basis"] == "fitted"
        }
        shown = " and ".join(f"{100 * error:.0f} % for a {kind}" for kind, error in sorted(errors.items()))
        console.print(
            f"Source of measured times: {rows[0]['source']}. ~ by the fit over them; where a network was left out, "
            f"the median error was {shown}. Slowing down under load is assumed everywhere (--json has the ranges)."
        )


def render_check(console: Console, rows: Sequence[LeftOut], figures: Mapping[str, float]) -> None:
    """Print rows of `check_rows`, largest error last."""
    table = Table(title="Each network left out of the fit on every device", title_justify="left")
    for heading in ("device", "network"):
        table.add_column(heading)
    for heading in ("measured ms", "predicted", "error"):
        table.add_column(heading, justify="right")
    for row in sorted(rows, key=lambda row: abs(row.relative_error)):
        table.add_row(
            row.device,
            row.model,
            f"{1000 * row.measured_s:.1f}",
            f"{1000 * row.predicted_s:.1f}",
            f"{100 * row.relative_error:+.0f} %",
        )
    console.print(table)
    console.print(
        f"median error {100 * figures['median_error']:.0f} %, within 15 %: {100 * figures['within_15_percent']:.0f} %, "
        f"within 30 %: {100 * figures['within_30_percent']:.0f} % of {figures['rows']:.0f} rows"
    )
