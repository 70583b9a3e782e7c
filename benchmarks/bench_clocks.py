"""Virtual time beside the wall clock: the same scenario, once against a real server and once against a model of it.

The server (ResNet-34 behind its third stage, bfloat16, compiled, one replica) is measured by calibrate-server in a run
of its own, stopped, and started again. Then fleets at 0.3 and 0.8 of its capacity ask it, and the same scenario runs in
virtual time. Compared are p50 and p95 of queue, service and transmission, without propagation, and the bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.systems import ray_serve
from benchmarks.serving.tail import SPLIT_POINT, URI, loaded_model, serve_config
from edge_sim.calibrate_server import capacity_per_s, measure, profile_of
from edge_sim.fleet_run import run_scenario
from edge_sim.hardware import ProfileHardware
from edge_sim.model_profile import ModelProfile
from edge_sim.payloads import make_payloads
from edge_sim.run_reader import Run, read_run
from edge_sim.scenario import Scenario
from edge_sim.server_process import ServerProcess
from edge_sim.server_profile import ServerProfile
from edge_sim.transport import HttpTransport
from split_inference.figures import Bound, report
from split_inference.inputs import read_inputs
from split_inference.model_catalog import EMBEDDED_FOLDER
from split_inference.payload_file import PayloadFile

APP, ROUTE = "tail", "/v1/models/tail"
CODEC = "u4+lz4"
LOADS = (0.3, 0.8)
DEVICES = 100
BOUNDS: dict[str, Bound] = {
    f"{name}_at_{round(100 * load)}_percent": ("<=", 0.15) for load in LOADS for name in ("p50_error", "p95_error")
} | {"bytes_differ": ("==", 0)}


@contextlib.contextmanager
def server(log: Path) -> Iterator[ServerProcess]:
    """One replica."""
    with ray_serve("clocks", serve_config({APP: 1}, replica_cpus=0.2), log=log) as started:
        started.wait_until_ready(ROUTE, timeout_s=300)
        yield started


def scenario(clock: str, *, rate_per_s: float, seconds: float, seed: int, at: dict[str, Any]) -> Scenario:
    """A hundred new phones on fast links of their own, without propagation."""
    return Scenario.model_validate(
        {
            "version": 1,
            "name": f"{clock}-{rate_per_s:.0f}",
            "seed": seed,
            "clock": clock,
            "duration_s": seconds,
            "deadline_s": 2.0,
            "models": {"model": {"payloads": "tail.payloads", "route": ROUTE}},
            "server": at,
            "groups": [
                {
                    "name": "phones",
                    "count": DEVICES,
                    "device": "dimensity-9300",
                    "link": {"up": {"mbit_s": 50.0}, "down": {"mbit_s": 100.0}},
                    "model": "model",
                    "policy": {"kind": "fixed", "split_point": SPLIT_POINT, "codec": CODEC},
                    "arrivals": {"kind": "poisson", "rate_per_s": rate_per_s / DEVICES},
                    "max_in_flight": 1000,
                }
            ],
        }
    )


def times_s(run: Run) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Queue, service and transmission of every answer of the server, less the first two seconds."""
    stages = ("up_queue_s", "up_s", "server_queue_s", "server_s", "down_s")
    rows = run.texts["outcome"].where("answered") & (run.numbers["intended_s"] >= 2.0)
    total: np.ndarray[Any, np.dtype[np.float64]] = np.sum([run.numbers[stage][rows] for stage in stages], axis=0)
    return total


def _medians(run: Run) -> str:
    rows = run.texts["outcome"].where("answered")
    stages = ("up_queue_s", "up_s", "server_queue_s", "server_s", "down_s")
    return ", ".join(f"{stage[:-2]} {1000 * float(np.median(run.numbers[stage][rows])):.1f} ms" for stage in stages)


def main() -> int:
    """Calibrate, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each run on the wall clock")
    parser.add_argument(
        "--calibrate",
        type=float,
        default=3.0,
        help="seconds of each closed loop in calibrating",
    )
    parser.add_argument("--rounds", type=int, default=2, help="runs of each load, with seeds of their own")
    options = parser.parse_args()
    logs = Path("runs/bench-clocks")
    logs.mkdir(parents=True, exist_ok=True)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="bench-clocks-") as scratch:
        folder = Path(scratch)
        payloads = folder / "tail.payloads"
        inputs = read_inputs(EMBEDDED_FOLDER / "samples", limit=20)
        make_payloads(loaded_model(), inputs, payloads, options=[(SPLIT_POINT, CODEC)])
        with server(logs / "calibrated.log") as first:
            profile, capacity = calibrate(first.url, payloads, seconds=options.calibrate)
        figures["capacity_per_s"] = capacity
        errors: dict[str, list[float]] = {}
        differ = 0
        with server(logs / "asked.log") as second:
            for round_number in range(options.rounds):
                for load in LOADS:
                    runs = {}
                    for clock, at in (
                        ("wall", {"url": second.url}),
                        ("virtual", {"profiles": {"model": profile.model_dump(mode="json")}}),
                    ):
                        made = scenario(
                            clock, rate_per_s=load * capacity, seconds=options.seconds, seed=round_number + 1, at=at
                        )
                        runs[clock] = one(made, folder / f"{made.name}-{round_number}", payloads)
                    for clock, run in runs.items():
                        print(f"{100 * load:.0f} %, {clock}: {_medians(run)}")
                    wall, virtual = times_s(runs["wall"]), times_s(runs["virtual"])
                    for name, share in (("p50", 0.5), ("p95", 0.95)):
                        real, modelled = float(np.quantile(wall, share)), float(np.quantile(virtual, share))
                        print(
                            f"{100 * load:.0f} % of capacity, {name}: wall {1000 * real:.1f} ms, "
                            f"virtual {1000 * modelled:.1f} ms ({100 * (modelled / real - 1):+.0f} %)"
                        )
                        key = f"{name}_error_at_{round(100 * load)}_percent"
                        errors.setdefault(key, []).append(abs(modelled / real - 1))
                    sums = [runs[clock].numbers["up_bytes"].sum() for clock in ("wall", "virtual")]
                    differ += sums[0] != sums[1]
        figures |= {name: statistics.median(values) for name, values in errors.items()}
        figures["bytes_differ"] = float(differ)
    return report("bench-clocks", figures, BOUNDS)


def calibrate(url: str, payloads: Path, *, seconds: float) -> tuple[ServerProfile, float]:
    """What calibrate-server does."""

    async def ask() -> Any:
        transport = HttpTransport(url, connections=64)
        try:
            with PayloadFile.open(payloads) as file:
                return await measure(transport, file, option=0, seconds=seconds, route=ROUTE)
        finally:
            await transport.close()

    samples = asyncio.run(ask())
    return profile_of(samples, split_point="*", source="bench-clocks"), capacity_per_s(samples, seconds=seconds)


def one(made: Scenario, folder: Path, payloads: Path) -> Run:
    """Run it, and read it back."""
    folder.mkdir()
    result = run_scenario(
        made,
        folder,
        hardware=ProfileHardware(folder=payloads.parent),
        models={"model": ModelProfile.from_payloads(payloads)},
        command=f"bench-clocks of {URI}",
        facts={},
        base=payloads.parent,
    )
    if result.invalid:
        print(f"{made.name}: {result.invalid}", file=sys.stderr)
    return read_run(folder)


if __name__ == "__main__":
    sys.exit(main())
