"""The adaptive policy beside every fixed one, over real cellular traces and over the published networks.

Two devices, two models, four recorded uplinks, five seeds, a deadline of a second; in virtual time, each trace once
from its beginning to its end. Mean latency is over all requests; one that was given up counts as its deadline. A
policy's figure is the median over the seeds. "In hindsight" takes for each request the best of all fixed policies'
latencies: no policy that cannot see ahead reaches it. Where one fixed policy is the best for every request, that is the
bound too.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_sim.fleet_run import run_scenario
from edge_sim.hardware import ProfileHardware
from edge_sim.model_profile import ModelProfile
from edge_sim.scenario import Scenario
from split_inference.cli import progress_bar
from split_inference.figures import Bound, report

# Up, down where it was recorded, seconds.
TRACES = {
    "ATT-LTE-driving": ("ATT-LTE-driving.up", None, 1012.0),
    "ATT-LTE-driving-2016": ("ATT-LTE-driving-2016.up", "ATT-LTE-driving-2016.down", 120.0),
    "TMobile-LTE-short": ("TMobile-LTE-short.up", "TMobile-LTE-short.down", 140.0),
    "Verizon-LTE-short": ("Verizon-LTE-short.up", "Verizon-LTE-short.down", 140.0),
}
DEVICES = ("pi-4b", "snapdragon-835")
MODELS = ("resnet34", "mobilenet_v2")
NETWORKS = ("3g", "lte", "wifi")
SEEDS = (1, 2, 3, 4, 5)
DEADLINE_S = 1.0
NETWORK_S = 300.0
RATE_PER_S = 1.0
DELAY_MS = 27.5
# Stands in where a trace has no other direction.
DOWN_MBIT_S = 13.0
# A tail server of one replica: a batch of one and of sixteen as bench-serving measures them on two cores.
SERVER = {
    "source": "bench-serving",
    "overhead_s": [0.001, 0.002],
    "batch_s": {"*": {1: [0.004, 0.005], 16: [0.042, 0.05]}},
}
BOUNDS: dict[str, Bound] = {
    "worst_over_best_fixed": ("<=", 1.10),
    "all_over_best_fixed": ("<", 1.0),
    "hung_requests": ("==", 0),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one policy did in one run, request by request."""

    latency_s: np.ndarray[Any, np.dtype[np.float64]]
    joules: float
    up_bytes: float
    latest_s: float
    """The longest that any request took."""


def policies_of(model: ModelProfile) -> dict[str, dict[str, Any]]:
    """Every fixed policy that the profile allows, by a readable name."""
    found: dict[str, dict[str, Any]] = {"device only": {"kind": "device_only"}}
    for option in model.options:
        if option.mode == "server_only":
            found["server only"] = {"kind": "server_only"}
        else:
            fixed = {"kind": "fixed", "split_point": option.split_point, "codec": option.codec}
            found[f"{option.split_point} {option.codec}"] = fixed
    return found


def run(
    hardware: ProfileHardware,
    models: Mapping[str, ModelProfile],
    *,
    device: str,
    model: str,
    link: Mapping[str, Any],
    policy: Mapping[str, Any],
    seed: int,
    seconds: float,
    folder: Path,
) -> Outcome:
    """One device for a while."""
    scenario = Scenario.model_validate(
        {
            "version": 1,
            "seed": seed,
            "clock": "virtual",
            "duration_s": seconds,
            "deadline_s": DEADLINE_S,
            "models": {model: {"profile": model}},
            "server": {"profiles": {model: SERVER}},
            "groups": [
                {
                    "name": "device",
                    "count": 1,
                    "device": device,
                    "link": dict(link),
                    "model": model,
                    "policy": dict(policy),
                    "arrivals": {"kind": "poisson", "rate_per_s": RATE_PER_S},
                    # Every policy answers the same requests: none is dropped because the one before is under way.
                    "max_in_flight": 1000,
                }
            ],
        }
    )
    run_folder = Path(tempfile.mkdtemp(dir=folder))
    run_scenario(
        scenario, run_folder, hardware=hardware, models=models, command="bench-policies", facts={}, base=folder
    )
    rows = [json.loads(line) for line in (run_folder / "requests.jsonl").read_text().splitlines()]
    rows.sort(key=lambda row: row["n"])
    latency_s = [row["total_s"] if row["in_time"] else DEADLINE_S for row in rows]
    return Outcome(
        np.asarray(latency_s),
        statistics.fmean(row["compute_j"] + row["radio_j"] + row["idle_j"] for row in rows),
        statistics.fmean(row["up_bytes"] for row in rows),
        max(row["total_s"] for row in rows),
    )


def main() -> int:
    """Traces, then the published networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SPLIT_INFERENCE_DATA", "../shared/data")))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    options = parser.parse_args()
    traces = options.data.resolve() / "traces"
    if not traces.is_dir():
        print(f"no traces in {traces}: set SPLIT_INFERENCE_DATA", file=sys.stderr)
        return 2
    models = {name: ModelProfile.load(name) for name in (*MODELS, "resnet20-cifar10")}
    hardware = ProfileHardware(folder=traces)
    with tempfile.TemporaryDirectory() as scratch:
        figures = over_traces(hardware, models, options.seeds, Path(scratch))
        over_networks(hardware, models, options.seeds, Path(scratch))
    return report("bench-policies", figures, BOUNDS)


def over_traces(
    hardware: ProfileHardware, models: Mapping[str, ModelProfile], seeds: list[int], scratch: Path
) -> dict[str, float]:
    """The table, and how adaptive compares."""
    worst, hung = 0.0, 0
    sums: dict[tuple[str, str], dict[str, list[float]]] = {}
    print("| device | model | trace | adaptive ms | best fixed | its ms | ratio | in hindsight ms |")
    print("|---|---|---|---|---|---|---|---|")
    with progress_bar() as bar:
        task = bar.add_task("simulating", total=len(DEVICES) * len(MODELS) * len(TRACES))
        for device in DEVICES:
            for model in MODELS:
                policies = {**policies_of(models[model]), "adaptive": {"kind": "adaptive"}}
                for name, (up, down, seconds) in TRACES.items():
                    link = {
                        "up": {"trace": up},
                        "down": {"trace": down} if down else {"mbit_s": DOWN_MBIT_S},
                        "delay_ms": DELAY_MS,
                    }
                    means: dict[str, list[float]] = {policy: [] for policy in policies}
                    hindsight = []
                    for seed in seeds:
                        outcomes = {
                            policy: run(
                                hardware,
                                models,
                                device=device,
                                model=model,
                                link=link,
                                policy=what,
                                seed=seed,
                                seconds=seconds,
                                folder=scratch,
                            )
                            for policy, what in policies.items()
                        }
                        fixed = np.stack([each.latency_s for key, each in outcomes.items() if key != "adaptive"])
                        hindsight.append(float(fixed.min(axis=0).mean()))
                        for policy, outcome in outcomes.items():
                            means[policy].append(float(outcome.latency_s.mean()))
                            hung += outcome.latest_s > DEADLINE_S + 0.1
                    medians = {policy: statistics.median(each) for policy, each in means.items()}
                    best = min((each for each in medians if each != "adaptive"), key=medians.__getitem__)
                    ratio = medians["adaptive"] / medians[best]
                    worst = max(worst, ratio)
                    print(
                        f"| {device} | {model} | {name} | {1000 * medians['adaptive']:.1f} | {best} | "
                        f"{1000 * medians[best]:.1f} | {ratio:.3f} | {1000 * statistics.median(hindsight):.1f} |"
                    )
                    for policy, median in medians.items():
                        sums.setdefault((device, model), {}).setdefault(policy, []).append(median)
                    bar.advance(task)
    figures = {"worst_over_best_fixed": worst, "hung_requests": float(hung)}
    adaptive_s = best_s = 0.0
    for (device, model), by_policy in sums.items():
        total_s = {policy: sum(each) for policy, each in by_policy.items()}
        best_total_s = min(seconds for policy, seconds in total_s.items() if policy != "adaptive")
        figures[f"{device}_{model}_over_best_fixed"] = total_s["adaptive"] / best_total_s
        adaptive_s += total_s["adaptive"]
        best_s += best_total_s
    # Beside the policy that is the best fixed one for its device and model over all traces together.
    figures["all_over_best_fixed"] = adaptive_s / best_s
    return figures


def over_networks(
    hardware: ProfileHardware, models: Mapping[str, ModelProfile], seeds: list[int], scratch: Path
) -> None:
    """Latency, energy and bytes by mode over the networks of the literature, beside Neurosurgeon's headline."""
    print()
    print("| device | model | network | policy | mean ms | joules | bytes up |")
    print("|---|---|---|---|---|---|---|")
    speedups, savings = [], []
    for device in DEVICES:
        for model, profile in models.items():
            for network in NETWORKS:
                every = policies_of(profile)
                splits = {key: what for key, what in every.items() if what["kind"] == "fixed"}
                seed = seeds[0]

                one = functools.partial(
                    run,
                    hardware,
                    models,
                    device=device,
                    model=model,
                    link={"profile": network},
                    seed=seed,
                    seconds=NETWORK_S,
                    folder=scratch,
                )
                found = {name: one(policy=what) for name, what in every.items() if name not in splits}
                best = min(
                    ((name, one(policy=what)) for name, what in splits.items()),
                    key=lambda each: each[1].latency_s.mean(),
                )
                found[f"best split: {best[0]}"] = best[1]
                found["adaptive (latency)"] = one(policy={"kind": "adaptive"})
                found["adaptive (energy)"] = one(policy={"kind": "adaptive", "objective": "energy"})
                for name, outcome in found.items():
                    print(
                        f"| {device} | {model} | {network} | {name} | {1000 * outcome.latency_s.mean():.1f} | "
                        f"{outcome.joules:.3f} | {outcome.up_bytes:.0f} |"
                    )
                server = found["server only"]
                speedups.append(server.latency_s.mean() / found["adaptive (latency)"].latency_s.mean())
                savings.append(1 - found["adaptive (energy)"].joules / server.joules)
    print()
    print(
        f"adaptive beside server only, mean over the table: {statistics.fmean(speedups):.1f} times faster "
        f"(largest {max(speedups):.1f}), {100 * statistics.fmean(savings):.0f} % less energy. "
        "Neurosurgeon (ASPLOS 2017), on its own devices and networks: 3.1 times (largest 40.7), 59.5 %."
    )


if __name__ == "__main__":
    sys.exit(main())
