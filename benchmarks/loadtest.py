"""The whole of a load test: a server, prepared requests, a minute of Poisson arrivals, a gate, a report, cleaned up.

Two models, one after the other, on one Ray Serve with an application for each: the embedded ResNet-20 behind its
calibrated stage, and a ResNet-34 of random weights behind its third stage. One caller that waits for each answer says
first what this machine can do; the load is 40 % of that, or the rate named below where that is less. The gate is the
objective "interactive" of loadtests/slo_files; what a user does with three commands (docs/how-to/load-test.md), in one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.serving.systems import ray_serve
from edge_sim.payloads import make_payloads
from loadtests.gate import judge
from loadtests.locust_process import EXPERIMENTS, LocustTarget, run_locust
from loadtests.run_folder import new_run_folder
from loadtests.run_summary import summary
from loadtests.slo import read_slo
from split_inference.figures import Bound, report
from split_inference.model_catalog import EMBEDDED_FOLDER

SLO = EXPERIMENTS / "slo_files" / "interactive.yaml"
DEADLINE_MS = 250
# Of the rate that one waiting caller gets: far enough below the capacity that queueing does not decide the median.
SHARE = 0.4
ALONE_S = 8.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A model, where it is cut, and how much is asked of it."""

    name: str
    uri: str
    option: tuple[str, str]
    rate_per_s: float
    """At most: a faster machine is not asked for more."""


SUBJECTS = (
    Subject(name="resnet20-cifar10", uri="embedded:resnet20-cifar10", option=("stage3", "u2+lz4"), rate_per_s=60.0),
    Subject(
        name="resnet34",
        uri="resnet34?weights=random&seed=0",
        option=("resnet.encoder.stages.2", "u4+lz4"),
        rate_per_s=20.0,
    ),
)


def serve_config() -> dict[str, Any]:
    """Both models, one replica each."""
    return {
        "http_options": {"host": "127.0.0.1", "port": 8000},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": [
            {
                "name": each.name,
                "route_prefix": f"/v1/models/{each.name}",
                "import_path": "serve_app.app:build_app",
                "args": {"model": each.uri, "name": each.name},
                "deployments": [
                    {
                        "name": "TailDeployment",
                        "num_replicas": 1,
                        "max_ongoing_requests": 256,
                        "max_queued_requests": 256,
                        "ray_actor_options": {"num_cpus": 0.2},
                    }
                ],
            }
            for each in SUBJECTS
        ],
    }


def main() -> int:
    """Serve, prepare, test, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of load on each model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    bounds: dict[str, Bound] = {}
    slo = read_slo(SLO)
    base = new_run_folder("loadtest")
    with tempfile.TemporaryDirectory(prefix="loadtest-") as scratch:
        files = {}
        for each in SUBJECTS:
            files[each.name] = Path(scratch) / f"{each.name}.payloads"
            make_payloads(each.uri, EMBEDDED_FOLDER / "samples", files[each.name], options=[each.option], limit=50)
        with ray_serve("loadtest", serve_config(), log=base / "server.log") as server:
            for each in SUBJECTS:
                server.wait_until_ready(f"/v1/models/{each.name}", timeout_s=300)
            for each in SUBJECTS:
                target = LocustTarget(
                    host=server.url,
                    payloads=(files[each.name],),
                    options={"deadline-ms": str(DEADLINE_MS), "models": each.name},
                )
                alone = run_locust(target, "closed_loop", base / f"{each.name}-alone", duration_s=ALONE_S, callers=1)
                rate_per_s = min(each.rate_per_s, SHARE / alone.latency.percentile(0.5))
                figures[f"{each.name} alone p50 ms"] = 1000 * alone.latency.percentile(0.5)
                figures[f"{each.name} asked per second"] = rate_per_s
                folder = base / each.name
                result = run_locust(target, "poisson", folder, duration_s=options.seconds, rate=rate_per_s, slo=SLO)
                print(summary(result))
                for check in judge(result, slo).checks:
                    print(f"  {check}")
                    figures[f"{each.name} {check.name}"] = check.figure
                    bounds[f"{each.name} {check.name}"] = (check.comparison, check.bound)
                figures[f"{each.name} wrong answers"] = float(result.counts.wrong)
                figures[f"{each.name} reasons to call it INVALID"] = float(len(result.generator.invalid))
                bounds[f"{each.name} wrong answers"] = ("==", 0)
                bounds[f"{each.name} reasons to call it INVALID"] = ("==", 0)
                print(f"  look at {folder / 'report.html'}")
        figures["leftover_processes"] = float(len(server.leftover()))
        bounds["leftover_processes"] = ("==", 0)
    return report("loadtest", figures, bounds)


if __name__ == "__main__":
    sys.exit(main())
