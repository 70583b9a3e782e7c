"""How large a fleet one machine simulates: 2,000 devices in real time, and a million requests in virtual time.

Real time: four groups of 500 devices, 500 requests a second together, prepared frames over HTTP to a stub server on the
same two cores; what counts is how late requests began. Virtual time: four groups, a recorded (or seeded) link, a shared
cell with jitter, loss, every record written; CPU seconds of one process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from edge_sim.server_process import HOST, free_port
from split_inference.figures import Bound, report
from split_inference.model_catalog import EMBEDDED_FOLDER, EMBEDDED_URI

DEVICES, RATE_PER_S, WALL_S = 2000, 500.0, 30.0
FIXED_REQUESTS, ADAPTIVE_REQUESTS = 1_000_000, 300_000
# Poisson arrivals miss what they are asked for by its root: five of those more, so that it is no fewer.
ROOTS_MORE = 5
VIRTUAL_S = 2000.0
BOUNDS: dict[str, Bound] = {
    "wall_lateness_p99_ms": ("<=", 20.0),
    "wall_invalid": ("==", 0),
    "virtual_fixed_requests": (">=", FIXED_REQUESTS),
    "virtual_fixed_cpu_s_per_million": ("<=", 60.0),
    "virtual_adaptive_requests": (">=", ADAPTIVE_REQUESTS),
    "virtual_adaptive_cpu_s_per_300k": ("<=", 60.0),
    "virtual_records_same_by_seed": ("==", 1),
}
ASSUMED_SERVER = {
    "source": "assumed",
    "replicas": 32,
    "overhead_s": [0.001, 0.002],
    "batch_s": {"*": {1: [0.004, 0.005], 16: [0.030, 0.045]}},
}


@contextlib.contextmanager
def stub_server() -> Iterator[str]:
    """Its URL."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.fleet_stub", str(port)])
    try:
        url = f"http://{HOST}:{port}"
        deadline_s = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(f"{url}/", timeout=1):
                    break
            except OSError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=10)


def simulate(scenario: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], float]:
    """Run it as a user would; what it said, and the processor's seconds."""
    file = folder / f"{scenario['name']}.yaml"
    file.write_text(yaml.safe_dump(dict(scenario)), encoding="utf-8")
    before = os.times()
    command = [sys.executable, "-m", "edge_sim", "run", str(file), "--runs", str(folder / "runs"), "--json"]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    after = os.times()
    if result.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(command)} ended with {result.returncode}")
    cpu_s = after.children_user - before.children_user + after.children_system - before.children_system
    return json.loads(result.stdout), cpu_s


def wall(url: str, payloads: Path) -> dict[str, Any]:
    """2,000 devices of four kinds over three kinds of links."""
    kinds = [
        ("pi", "pi-4b", {"profile": "wifi"}, {"kind": "fixed", "split_point": "stage2", "codec": "u4+lz4"}),
        ("old-phone", "snapdragon-835", {"profile": "lte"}, {"kind": "server_only"}),
        ("new-phone", "dimensity-9300", {"profile": "lte-fading"}, {"kind": "adaptive"}),
        ("board", "jetson-nano-cpu", {"profile": "3g"}, {"kind": "fixed", "split_point": "stage1", "codec": "u2+lz4"}),
    ]
    return {
        "version": 1,
        "name": "wall",
        "seed": 1,
        "clock": "wall",
        "duration_s": WALL_S,
        "models": {"resnet20-cifar10": {"payloads": str(payloads)}},
        "server": {"url": url},
        "groups": [
            {
                "name": name,
                "count": DEVICES // len(kinds),
                "device": device,
                "link": link,
                "model": "resnet20-cifar10",
                "policy": policy,
                "arrivals": {"kind": "poisson", "rate_per_s": RATE_PER_S / DEVICES},
            }
            for name, device, link, policy in kinds
        ],
    }


def virtual(name: str, *, requests: int, adaptive: bool, trace: Path | None) -> dict[str, Any]:
    """Four groups of 500 that make at least so many requests together."""
    rate_per_s = (requests + ROOTS_MORE * requests**0.5) / VIRTUAL_S
    recorded: dict[str, Any] = (
        {"trace": str(trace)} if trace else {"markov": [{"mbit_s": 1, "mean_s": 2}, {"mbit_s": 12, "mean_s": 5}]}
    )
    kinds: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
        ("pi", "pi-4b", {"link": {"profile": "wifi"}}, {"kind": "server_only"}),
        (
            "phone",
            "snapdragon-835",
            {"link": {"up": recorded, "down": {"mbit_s": 13}, "delay_ms": 27}},
            {"kind": "fixed", "split_point": "add:6", "codec": "u4+lz4"},
        ),
        (
            "in-a-cell",
            "snapdragon-410",
            {"cell": "street"},
            {"kind": "fixed", "split_point": "add:10", "codec": "u4+lz4"},
        ),
        (
            "lossy",
            "dimensity-9300",
            {"link": {"profile": "lte", "loss": 0.01}},
            {"kind": "fixed", "split_point": "add:3", "codec": "u8+lz4"},
        ),
    ]
    return {
        "version": 1,
        "name": name,
        "seed": 1,
        "clock": "virtual",
        "duration_s": VIRTUAL_S,
        "models": {"mobilenet": {"profile": "mobilenet_v2"}},
        "server": {"profiles": {"mobilenet": ASSUMED_SERVER}},
        "cells": {"street": {"up": {"mbit_s": 400}, "down": {"mbit_s": 800}, "delay_ms": 20, "jitter_ms": 3}},
        "groups": [
            {
                "name": group,
                "count": DEVICES // len(kinds),
                "device": device,
                **link,
                "model": "mobilenet",
                "policy": {"kind": "adaptive"} if adaptive else policy,
                "arrivals": {"kind": "poisson", "rate_per_s": rate_per_s / DEVICES},
            }
            for group, device, link, policy in kinds
        ],
    }


def main() -> int:
    """Both, and the bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SPLIT_INFERENCE_DATA", "../shared/data")))
    options = parser.parse_args()
    trace = options.data.resolve() / "traces" / "Verizon-LTE-short.up"
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="bench-fleet-") as scratch:
        folder = Path(scratch)
        payloads = folder / "embedded.payloads"
        make = [
            sys.executable,
            "-m",
            "edge_sim",
            "payloads",
            EMBEDDED_URI,
            "--inputs",
            str(EMBEDDED_FOLDER / "samples"),
        ]
        subprocess.run([*make, "--out", str(payloads)], check=True, stdout=subprocess.DEVNULL)
        with stub_server() as url:
            found, cpu_s = simulate(wall(url, payloads), folder)
        figures |= {
            "wall_devices": DEVICES,
            "wall_requests_per_s": found["requests"] / WALL_S,
            "wall_cpu_ms_per_request": 1000 * cpu_s / found["requests"],
            "wall_lateness_p99_ms": 1000 * found["lateness_p99_s"],
            "wall_invalid": float(found["invalid"] is not None),
        }
        given = trace if trace.is_file() else None
        fixed, cpu_s = simulate(virtual("fixed", requests=FIXED_REQUESTS, adaptive=False, trace=given), folder)
        figures["virtual_fixed_requests"] = fixed["requests"]
        figures["virtual_fixed_cpu_s_per_million"] = 1e6 * cpu_s / fixed["requests"]
        asked = virtual("adaptive", requests=ADAPTIVE_REQUESTS, adaptive=True, trace=given)
        adaptive, cpu_s = simulate(asked, folder)
        figures["virtual_adaptive_requests"] = adaptive["requests"]
        figures["virtual_adaptive_cpu_s_per_300k"] = 3e5 * cpu_s / adaptive["requests"]
        again, _ = simulate(asked, folder)
        records = [(Path(each["folder"]) / "requests.jsonl").read_bytes() for each in (adaptive, again)]
        figures["virtual_records_same_by_seed"] = float(records[0] == records[1])
    return report("bench-fleet", figures, BOUNDS)


if __name__ == "__main__":
    sys.exit(main())
