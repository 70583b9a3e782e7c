"""The demo's second half: a mixed fleet of simulated devices asks the real server, on the wall clock.

Five kinds of devices, four links, all three modes and the adaptive policy. Knows scenarios and runs; the server runs
already.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_sim.fleet_run import MAX_LATENESS_P99_S, Progress, RunResult, run_scenario
from edge_sim.hardware import ProfileHardware
from edge_sim.model_profile import ModelProfile
from edge_sim.payloads import make_payloads
from edge_sim.report import write_report
from edge_sim.run_reader import read_run
from edge_sim.run_summary import GroupSummary, summarize
from edge_sim.scenario import Scenario
from split_inference.calibration import Calibration
from split_inference.figures import Bound
from split_inference.inputs import EncodedInput
from split_inference.model_catalog import LoadedModel

SECONDS = 12.0
DEADLINE_S = 1.0
# Devices of each group, and requests a second of each device.
COUNT, RATE_PER_S = 6, 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetResult:
    """What the fleet saw."""

    run: RunResult
    groups: list[GroupSummary]
    report: Path
    assumed: list[str]


def run_fleet(
    *,
    url: str,
    route: str,
    loaded: LoadedModel,
    calibration: Calibration,
    inputs: list[EncodedInput],
    folder: Path,
    command: str,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> FleetResult:
    """Prepare the frames, let the fleet live for SECONDS, write its records and its page into `folder`."""
    folder.mkdir()
    payloads = folder / "frames.payloads"
    make_payloads(loaded, inputs, payloads)
    scenario = Scenario.model_validate(_scenario(url=url, route=route, payloads=payloads.name, calibration=calibration))
    hardware = ProfileHardware(folder=folder)
    result = run_scenario(
        scenario,
        folder,
        hardware=hardware,
        models={"model": ModelProfile.from_payloads(payloads)},
        command=command,
        facts={"scenario_folder": str(folder.resolve())},
        base=folder,
        watch=on_progress,
    )
    recorded = read_run(folder)
    return FleetResult(run=result, groups=summarize(recorded), report=write_report(recorded), assumed=hardware.assumed)


def figures_of_fleet(fleet: FleetResult) -> tuple[dict[str, float], dict[str, Bound]]:
    """Its figures, and those that have to hold: honest arrivals, answers in time, and none that is not the model's."""
    asked = sum(group.requests for group in fleet.groups)
    in_time = sum(group.in_time * group.requests for group in fleet.groups)
    figures = {
        "fleet_requests": float(asked),
        "fleet_in_time": in_time / asked if asked else 0.0,
        "fleet_lateness_p99_ms": 1000 * fleet.run.lateness_p99_s,
        "fleet_wrong_answers": float(fleet.run.wrong_answers),
    }
    return figures, {
        "fleet_in_time": (">=", 0.95),
        "fleet_lateness_p99_ms": ("<=", 1000 * MAX_LATENESS_P99_S),
        "fleet_wrong_answers": ("==", 0),
    }


def _scenario(*, url: str, route: str, payloads: str, calibration: Calibration) -> dict[str, Any]:
    shared = {"kind": "fixed", "split_point": calibration.split_point, "codec": calibration.codec}
    kinds: list[tuple[str, str, str, dict[str, Any]]] = [
        ("pi-at-home", "pi-4b", "wifi", {"kind": "server_only"}),
        ("phones-of-2014", "snapdragon-410", "3g", shared),
        ("phones-of-2017", "snapdragon-835", "lte", shared),
        ("boards", "jetson-nano-cpu", "lte", {"kind": "device_only"}),
        ("tiny-boards", "pi-zero-2w", "lte-fading", {"kind": "adaptive"}),
    ]
    return {
        "version": 1,
        "name": "demo-fleet",
        "seed": 1,
        "clock": "wall",
        "duration_s": SECONDS,
        "deadline_s": DEADLINE_S,
        "models": {"model": {"payloads": payloads, "route": route}},
        "server": {"url": url},
        "groups": [
            {
                "name": name,
                "count": COUNT,
                "device": device,
                "link": {"profile": link},
                "model": "model",
                "policy": policy,
                "arrivals": {"kind": "poisson", "rate_per_s": RATE_PER_S},
            }
            for name, device, link, policy in kinds
        ],
    }
