"""Virtual time beside the wall clock: the same scenario, once against a real server and once against a model of it.

Two servers. "paced" is our ingress and batcher in one process, with a tail that takes stated times (paced_server.py):
what differs there is the simulation. "real" is ResNet-34 behind its third stage, compiled, one replica on Ray Serve
behind HAProxy, bfloat16 where the processor has it: there the machine's own noise comes on top.

In each round the server is started and measured by calibrate-server, fleets at 0.3 and 0.8 of its capacity ask it, and
it is measured again: runs of their own before and after, so that a machine that becomes slower meanwhile is not taken
for a model that is wrong. From both comes the model that the same scenarios then ask in virtual time. Compared are p50
and p95 of queue, service and transmission, without propagation: medians over the rounds of either clock; and the bytes
of every round. A virtual machine loses time to its neighbours: what was measured while the host took more than 3 % of
it (/proc/stat) is measured again, whatever came out, and said so; where it never left the machine alone, a bound is
missed that says so.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.serving import paced_server
from benchmarks.serving.stolen_time import MOST_STOLEN, TRIES, Undisturbed
from benchmarks.serving.systems import plain, ray_serve
from benchmarks.serving.tail import PRECISION, SPLIT_POINT, URI, serve_config
from edge_sim.calibrate_server import Sample, capacity_per_s, measure, profile_of
from edge_sim.fleet_run import run_scenario
from edge_sim.hardware import ProfileHardware
from edge_sim.model_profile import ModelProfile
from edge_sim.payloads import make_payloads
from edge_sim.run_reader import Run, read_run
from edge_sim.scenario import Scenario
from edge_sim.server_profile import ServerProfile
from edge_sim.transport import HttpTransport
from split_inference.figures import Bound, report
from split_inference.inputs import read_inputs
from split_inference.model_catalog import EMBEDDED_FOLDER, load_model
from split_inference.payload_file import PayloadFile

CODEC = "u4+lz4"
LOADS = (0.3, 0.8)
DEVICES = 100
QUANTILES = (("p50", 0.5), ("p95", 0.95))


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """A server that can be started, and what is asked of it."""

    name: str
    uri: str
    route: str
    split_point: str
    start: Callable[[Path], contextlib.AbstractContextManager[str]]
    """Gives its URL; the path is for its log."""


@contextlib.contextmanager
def paced(log: Path) -> Iterator[str]:
    """Batches of 80 ms and 16 ms a row: long beside what this machine adds to them."""
    with plain("paced", "benchmarks.serving.paced_server", log=log) as started:
        yield f"http://{started.address[0]}:{started.address[1]}"


@contextlib.contextmanager
def real(log: Path) -> Iterator[str]:
    """One replica behind HAProxy."""
    with ray_serve("clocks", serve_config({"tail": 1}, replica_cpus=0.2), log=log) as started:
        started.wait_until_ready("/v1/models/tail", timeout_s=300)
        yield started.url


SERVERS = {
    "paced": Compared(name="paced", uri=paced_server.URI, route=paced_server.ROUTE, split_point="stage3", start=paced),
    "real": Compared(name="real", uri=URI, route="/v1/models/tail", split_point=SPLIT_POINT, start=real),
}


def bounds_of(names: Iterable[str]) -> dict[str, Bound]:
    """15 % for each quantile of each load."""
    errors = {
        error_name(name, quantile, load): ("<=", 0.15) for name in names for load in LOADS for quantile, _ in QUANTILES
    }
    return {**errors, "bytes_differ": ("==", 0), "stolen_by_the_host": ("<=", MOST_STOLEN)}


def error_name(server: str, quantile: str, load: float) -> str:
    """Of a figure."""
    return f"{server}_{quantile}_error_at_{round(100 * load)}_percent"


def scenario(
    clock: str, compared: Compared, *, rate_per_s: float, seconds: float, seed: int, at: dict[str, Any]
) -> Scenario:
    """A hundred new phones on fast links of their own, without propagation."""
    return Scenario.model_validate(
        {
            "version": 1,
            "name": f"{clock}-{rate_per_s:.0f}",
            "seed": seed,
            "clock": clock,
            "duration_s": seconds,
            "deadline_s": 4.0,
            "models": {"model": {"payloads": "tail.payloads", "route": compared.route}},
            "server": at,
            "groups": [
                {
                    "name": "phones",
                    "count": DEVICES,
                    "device": "dimensity-9300",
                    "link": {"up": {"mbit_s": 50.0}, "down": {"mbit_s": 100.0}},
                    "model": "model",
                    "policy": {"kind": "fixed", "split_point": compared.split_point, "codec": CODEC},
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
    parser.add_argument("--server", choices=list(SERVERS), action="append", help="one of them only")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run on the wall clock")
    parser.add_argument("--calibrate", type=float, default=3.0, help="seconds of each level in calibrating")
    parser.add_argument("--rounds", type=int, default=3, help="each with calibration, seeds and servers of its own")
    options = parser.parse_args()
    names = options.server or list(SERVERS)
    logs = Path("runs/bench-clocks")
    logs.mkdir(parents=True, exist_ok=True)
    figures: dict[str, float] = {"bytes_differ": 0.0}
    undisturbed = Undisturbed()
    for name in names:
        with tempfile.TemporaryDirectory(prefix="bench-clocks-") as scratch:
            folder = Path(scratch)
            inputs = read_inputs(EMBEDDED_FOLDER / "samples", limit=20)
            compared = SERVERS[name]
            torch.set_num_threads(1)
            payloads = folder / "tail.payloads"
            make_payloads(load_model(compared.uri), inputs, payloads, options=[(compared.split_point, CODEC)])
            rounds = [
                compare(
                    compared,
                    folder,
                    logs,
                    seed=seed,
                    seconds=options.seconds,
                    calibrate_s=options.calibrate,
                    undisturbed=undisturbed,
                )
                for seed in range(1, options.rounds + 1)
            ]
        if name == "real":
            print(f"real: {URI} behind {SPLIT_POINT}, {PRECISION}, compiled")
        figures[f"{name}_capacity_per_s"] = statistics.median(each.capacity_per_s for each in rounds)
        figures[f"{name}_turnaround_ms"] = statistics.median(1000 * each.profile.turnaround_s for each in rounds)
        figures["bytes_differ"] += sum(each.bytes_differ for each in rounds)
        for load in LOADS:
            for quantile, _ in QUANTILES:
                by_clock = {
                    clock: sorted(each.seconds[load, quantile, clock] for each in rounds)
                    for clock in ("wall", "virtual")
                }
                wall_s, virtual_s = (statistics.median(each) for each in by_clock.values())
                print(
                    f"{name}, {100 * load:.0f} % of the capacity, {quantile}: "
                    + ", ".join(
                        f"{clock} {1000 * statistics.median(each):.1f} ms ({1000 * each[0]:.1f} to "
                        f"{1000 * each[-1]:.1f})"
                        for clock, each in by_clock.items()
                    )
                    + f", {100 * (virtual_s / wall_s - 1):+.0f} %"
                )
                figures[error_name(name, quantile, load)] = abs(virtual_s / wall_s - 1)
    figures["stolen_by_the_host"] = undisturbed.most_stolen
    return report("bench-clocks", figures, bounds_of(names))


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """What a server's calibration, before and after, and the two fleets in between gave."""

    capacity_per_s: float
    profile: ServerProfile
    seconds: dict[tuple[float, str, str], float]
    """By load, name of the quantile and clock."""
    bytes_differ: int


def compare(
    compared: Compared,
    folder: Path,
    logs: Path,
    *,
    seed: int,
    seconds: float,
    calibrate_s: float,
    undisturbed: Undisturbed,
) -> Round:
    """One round."""
    payloads = folder / "tail.payloads"
    walls: dict[float, Run] = {}
    with compared.start(logs / f"{compared.name}.log") as url:

        def calibrated(when: str) -> list[Sample]:
            title = f"{compared.name}, round {seed}, calibrating {when}"
            return undisturbed.measure(
                title, lambda: calibrate(compared, url, payloads, seconds=calibrate_s, seed=seed)
            )

        before = calibrated("before")
        capacity = capacity_per_s(before, seconds=calibrate_s)
        for load in LOADS:
            at: dict[str, Any] = {"url": url}
            made = scenario("wall", compared, rate_per_s=load * capacity, seconds=seconds, seed=seed, at=at)
            title = f"{compared.name}, round {seed}, {100 * load:.0f} %, wall"
            walls[load] = undisturbed.measure(title, partial(one, compared, made, folder, payloads))
            print(f"{title}: {_medians(walls[load])}", flush=True)
        samples = [*before, *calibrated("after")]
    profile = profile_of(samples, split_point="*", source="bench-clocks")
    found: dict[tuple[float, str, str], float] = {}
    differ = 0
    for load, wall in walls.items():
        at = {"profiles": {"model": profile.model_dump(mode="json")}}
        made = scenario("virtual", compared, rate_per_s=load * capacity, seconds=seconds, seed=seed, at=at)
        virtual = one(compared, made, folder, payloads)
        print(f"{compared.name}, round {seed}, {100 * load:.0f} %, virtual: {_medians(virtual)}", flush=True)
        for clock, run in (("wall", wall), ("virtual", virtual)):
            for quantile, share in QUANTILES:
                found[load, quantile, clock] = float(np.quantile(times_s(run), share))
        differ += wall.numbers["up_bytes"].sum() != virtual.numbers["up_bytes"].sum()
    return Round(capacity_per_s=capacity, profile=profile, seconds=found, bytes_differ=differ)


def calibrate(compared: Compared, url: str, payloads: Path, *, seconds: float, seed: int) -> list[Sample]:
    """What calibrate-server asks."""

    async def ask() -> list[Sample]:
        transport = HttpTransport(url, connections=64)
        try:
            with PayloadFile.open(payloads) as file:
                return await measure(transport, file, option=0, seconds=seconds, route=compared.route, seed=seed)
        finally:
            await transport.close()

    return asyncio.run(ask())


def one(compared: Compared, made: Scenario, scratch: Path, payloads: Path) -> Run:
    """Run it, and read it back. Raises SystemExit where the simulator itself is late each time."""
    for _ in range(TRIES):
        folder = Path(tempfile.mkdtemp(prefix=f"{made.name}-", dir=scratch))
        result = run_scenario(
            made,
            folder,
            hardware=ProfileHardware(folder=payloads.parent),
            models={"model": ModelProfile.from_payloads(payloads)},
            command=f"bench-clocks of {compared.uri}",
            facts={},
            base=payloads.parent,
        )
        if not result.invalid:
            return read_run(folder)
        print(f"{made.name}: INVALID, {result.invalid}; again", flush=True)
    raise SystemExit(f"{made.name}: INVALID in {TRIES} tries; nothing was compared")


if __name__ == "__main__":
    sys.exit(main())
