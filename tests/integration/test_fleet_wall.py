"""The simulator against the real server: payloads, calibration, a fleet on the wall clock, and one real device."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from edge_sim.server_process import ServerProcess
from edge_sim.server_profile import ServerProfile
from split_inference.model_catalog import EMBEDDED_FOLDER
from tests.conftest import ROOT
from tests.patience import RUN_PATIENCE_S

ROUTE = "/v1/models/resnet20-cifar10"
SAMPLES = str(EMBEDDED_FOLDER / "samples")


def started(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "edge_sim", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=RUN_PATIENCE_S,
        check=False,
    )


def edge_sim(*arguments):
    result = started(*arguments)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def wall_run(*arguments):
    """What a run on the wall clock found; a machine too busy to begin its requests in time is not a test's to judge."""
    result = started("run", *arguments)
    found = json.loads(result.stdout)
    assert result.returncode == (3 if found["invalid"] else 0), result.stderr
    assert found["invalid"] is None or found["invalid"].startswith("requests began "), found["invalid"]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fleet")


@pytest.fixture(scope="module")
def url(folder):
    server = ServerProcess(ROOT / "config.yaml")
    with server.started(log=folder / "log"):
        server.wait_until_ready(ROUTE)
        yield server.url


@pytest.fixture(scope="module")
def payloads(folder):
    file = folder / "r20.payloads"
    edge_sim("payloads", "embedded:resnet20-cifar10", "--inputs", SAMPLES, "--limit", 10, "--out", file, "--json")
    return file


def test_a_fleet_on_the_wall_clock_gets_the_answers_that_the_payloads_expect(url, payloads, folder):
    groups = [
        {
            "name": name,
            "count": 5,
            "device": device,
            "link": {"profile": link},
            "model": "resnet20-cifar10",
            "policy": policy,
            "arrivals": {"kind": "poisson", "rate_per_s": 2.0},
        }
        for name, device, link, policy in (
            ("server", "pi-4b", "wifi", {"kind": "server_only"}),
            ("split", "snapdragon-835", "lte", {"kind": "fixed", "split_point": "stage2", "codec": "u4+lz4"}),
            ("adaptive", "pi-zero-2w", "3g", {"kind": "adaptive"}),
        )
    ]
    scenario = {
        "version": 1,
        "seed": 3,
        "clock": "wall",
        "duration_s": 5,
        "models": {"resnet20-cifar10": {"payloads": str(payloads)}},
        "server": {"url": url},
        "groups": groups,
        "faults": [{"kind": "bad_frames", "at_s": 4, "for_s": 1, "group": "split", "share": 1.0}],
    }
    file = folder / "wall.yaml"
    file.write_text(yaml.safe_dump(scenario))
    found = wall_run(file, "--runs", folder / "runs", "--json")
    assert found["wrong_answers"] == 0
    by_group = {each["group"]: each for each in found["groups"]}
    assert by_group["server"]["in_time"] > 0.5
    assert by_group["split"]["fallbacks"].keys() == {"bad_frame"}
    assert by_group["adaptive"]["up_bytes"] == 0


def real_heads(url, payloads, *, device, count, rate_per_s, strict):
    """A scenario whose heads this machine computes."""
    group = {
        "name": "real",
        "count": count,
        "device": device,
        "link": {"profile": "wifi"},
        "model": "resnet20-cifar10",
        "policy": {"kind": "fixed", "split_point": "stage3", "codec": "u2+lz4"},
        "arrivals": {"kind": "poisson", "rate_per_s": rate_per_s},
    }
    model = {"payloads": str(payloads), "inputs": SAMPLES}
    return {
        "version": 1,
        "clock": "wall",
        "compute": "real",
        "strict": strict,
        "duration_s": 4,
        "models": {"resnet20-cifar10": model},
        "server": {"url": url},
        "groups": [group],
    }


def test_real_heads_are_padded_to_the_time_of_their_device(url, payloads, folder):
    file = folder / "real.yaml"
    made = real_heads(url, payloads, device="pi-zero-2w", count=1, rate_per_s=5.0, strict=False)
    file.write_text(yaml.safe_dump(made))
    found = wall_run(file, "--runs", folder / "runs", "--json")
    assert found["wrong_answers"] == 0
    rows = [json.loads(line) for line in (Path(found["folder"]) / "requests.jsonl").read_text().splitlines()]
    answered = [row for row in rows if row["outcome"] == "answered"]
    assert answered
    # What the profile says of this device, whatever this machine needs (tests/edge_sim/test_fleet.py counts that).
    assert len({row["head_s"] for row in answered}) == 1
    assert all(row["total_s"] > row["head_s"] > 0 for row in answered)


def test_a_strict_run_ends_where_this_machine_is_slower_than_its_devices(url, payloads, folder):
    # A thousand heads a second of 3 ms each, in the one thread that computes for all devices.
    file = folder / "strict.yaml"
    made = real_heads(url, payloads, device="dimensity-9300", count=40, rate_per_s=25.0, strict=True)
    file.write_text(yaml.safe_dump(made))
    result = started("run", file, "--runs", folder / "runs", "--json")
    assert result.returncode == 2
    assert "too slow for its devices" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_server_is_measured_for_virtual_time(url, payloads, folder):
    file = folder / "server.json"
    command = ("calibrate-server", "--url", url, "--payloads", payloads, "--out", file)
    found = edge_sim(*command, "--seconds", 0.5, "--option", 4, "--option", 0, "--json")
    profile = ServerProfile.read(file)
    assert "input" in profile.batch_s
    assert set(found["capacity_per_s"]) == set(found["batches"]) == set(profile.batch_s)
    assert len(profile.batch_s) == 2
    assert min(found["capacity_per_s"].values()) > 10
    for sizes in profile.batch_s.values():
        assert min(sizes) == 1
        assert all(0 < quantiles[0] <= quantiles[-1] < 1 for quantiles in sizes.values())


def test_one_real_device_leaves_the_same_records(url, folder):
    command = ("worker", "--url", url, "--inputs", SAMPLES, "--rate", 20, "--seconds", 2)
    found = edge_sim(*command, "--runs", folder / "runs", "--json")
    assert found["outcomes"] == {"answered": found["requests"]}
    assert found["requests"] > 20
    summary = edge_sim("report", found["folder"], "--json")
    assert summary["groups"][0]["correct"] > 0.7
