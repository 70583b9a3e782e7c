"""The simulator against the real server: payloads, calibration, a fleet on the wall clock, and one real device."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

from edge_sim.server_process import ServerProcess
from edge_sim.server_profile import ServerProfile
from split_inference.model_catalog import EMBEDDED_FOLDER
from tests.conftest import ROOT

ROUTE = "/v1/models/resnet20-cifar10"
SAMPLES = str(EMBEDDED_FOLDER / "samples")
pytestmark = pytest.mark.timeout(180)


def edge_sim(*arguments):
    result = subprocess.run(
        [sys.executable, "-m", "edge_sim", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


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
    found = edge_sim("run", file, "--runs", folder / "runs", "--json")
    assert found["invalid"] is None
    assert found["wrong_answers"] == 0
    by_group = {each["group"]: each for each in found["groups"]}
    assert by_group["server"]["in_time"] > 0.9
    assert by_group["split"]["fallbacks"].keys() == {"bad_frame"}
    assert by_group["adaptive"]["up_bytes"] == 0


@pytest.mark.parametrize(("device", "slow"), [("pi-zero-2w", False), ("dimensity-9300", True)])
def test_real_heads_are_padded_to_their_device_and_a_slow_host_is_counted(url, payloads, folder, device, slow):
    group = {
        "name": "real",
        "count": 1,
        "device": device,
        "link": {"profile": "wifi"},
        "model": "resnet20-cifar10",
        "policy": {"kind": "fixed", "split_point": "stage3", "codec": "u2+lz4"},
        "arrivals": {"kind": "poisson", "rate_per_s": 5.0},
    }
    model = {"payloads": str(payloads), "inputs": SAMPLES}
    scenario = {
        "version": 1,
        "clock": "wall",
        "compute": "real",
        "duration_s": 4,
        "models": {"resnet20-cifar10": model},
        "server": {"url": url},
        "groups": [group],
    }
    file = folder / f"real-{device}.yaml"
    file.write_text(yaml.safe_dump(scenario))
    found = edge_sim("run", file, "--runs", folder / "runs", "--json")
    assert found["wrong_answers"] == 0
    assert found["groups"][0]["in_time"] == 1.0
    # A head of 3 ms: a tenth of what the first device needs, ten times what the second one does.
    share = found["host_too_slow"] / found["requests"]
    assert share > 0.8 if slow else share < 0.5


def test_a_server_is_measured_for_virtual_time(url, payloads, folder):
    file = folder / "server.json"
    command = ("calibrate-server", "--url", url, "--payloads", payloads, "--out", file)
    found = edge_sim(*command, "--seconds", 0.5, "--option", 4, "--json")
    assert found["capacity_per_s"] > 20
    profile = ServerProfile.read(file)
    sizes = profile.batch_s["*"]
    assert min(sizes) == 1
    assert all(0 < quantiles[0] <= quantiles[-1] < 1 for quantiles in sizes.values())


def test_one_real_device_leaves_the_same_records(url, folder):
    command = ("worker", "--url", url, "--inputs", SAMPLES, "--rate", 20, "--seconds", 2)
    found = edge_sim(*command, "--runs", folder / "runs", "--json")
    assert found["outcomes"] == {"answered": found["requests"]}
    assert found["requests"] > 20
    summary = edge_sim("report", found["folder"], "--json")
    assert summary["groups"][0]["correct"] > 0.7
