"""The commands `devices` and `links`: what profiles there are, and how far to trust them.

Knows the terminal. What is done is in other files, imported when a command runs.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from edge_sim.fleet_options import TracesOption
from split_inference.cli import JsonOption, out, print_json


def devices(
    check: Annotated[bool, typer.Option("--check", help="How wrong the fit is: each network left out of it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """The devices, and how long networks take on them: measured, or by a fit over what was measured.

    Examples:

    `python -m edge_sim devices`

    `python -m edge_sim devices --check --json`
    """
    from edge_sim.device_profiles import DEVICE_PROFILES, DeviceProfiles
    from edge_sim.device_table import check_rows, device_rows, render_check, render_devices
    from edge_sim.profile_files import read_profiles
    from edge_sim.work import reference_work

    table, works = read_profiles(DEVICE_PROFILES, DeviceProfiles), reference_work()
    if check:
        rows, figures = check_rows(table.profiles, works)
        if as_json:
            print_json(
                {"figures": figures, "rows": [{**asdict(row), "relative_error": row.relative_error} for row in rows]}
            )
        else:
            render_check(out, rows, figures)
        return
    found = device_rows(table.profiles, works, source=table.source)
    if as_json:
        print_json(found)
    else:
        render_devices(out, found)


def links(traces: TracesOption = None, as_json: JsonOption = False) -> None:
    """The links: rates, delays, and which of them anybody measured.

    Example:

    `python -m edge_sim links --traces ../traces`
    """
    from edge_sim.link_profiles import read_link_profiles, read_traces
    from edge_sim.link_table import link_rows, render_links

    profiles = read_link_profiles()
    rows = link_rows(profiles, read_traces(profiles.values(), traces) if traces is not None else {})
    if as_json:
        print_json(rows)
    else:
        render_links(out, rows)
