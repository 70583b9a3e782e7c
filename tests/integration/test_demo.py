"""The demo as a user runs it, with a real server: what it prints and writes, and that it leaves nothing running."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from split_inference.calibration import EMBEDDED_CALIBRATION, load_calibration
from split_inference.figures import missed
from split_inference.model_catalog import EMBEDDED_URI, load_model
from tests.conftest import ROOT
from tests.integration.processes import below, processes, wait_for
from tests.patience import PATIENCE_S, RUN_PATIENCE_S

IMAGES = 6
# Bounds of the demo that a busy machine misses: not for a test to judge.
TIMES = {"total_s", "fleet_lateness_p99_ms", "fleet_in_time"}


@contextlib.contextmanager
def demo(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`split-inference demo` in an empty folder, in a session of its own."""
    child = subprocess.Popen(
        [sys.executable, "-m", "split_inference.cli", "demo", "--config", str(ROOT / "config.yaml"), *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield child
    finally:
        # Only where a test failed: the demo gets its chance to clean up, whatever went wrong here.
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
            child.communicate(timeout=PATIENCE_S)


def recorded(folder: Path) -> list[dict[str, object]]:
    """Requests that the only run in the folder has recorded so far."""
    lines = [line for path in folder.glob("runs/*/requests.jsonl") for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def test_the_demo_compares_three_modes_and_leaves_only_its_records(tmp_path):
    with demo(tmp_path, "--images", str(IMAGES), "--json") as child:
        out, err = child.communicate(timeout=RUN_PATIENCE_S)
    # 1 may be a bound that a busy machine missed; without its figures it is a failure.
    assert child.returncode in (0, 1), err
    assert out, err
    result = json.loads(out)
    latest = json.loads((tmp_path / "runs/latest/demo.json").read_text())
    bounds = {name: tuple(bound) for name, bound in latest["bounds"].items()}
    assert set(missed(latest["figures"], bounds)) <= TIMES
    assert child.returncode == result["missed"] == bool(missed(latest["figures"], bounds))
    assert set(result["modes"]) == {"server-only", "shared", "device-only"}
    assert {mode["requests"] for mode in result["modes"].values()} == {IMAGES}
    assert result["figures"]["leftover_processes"] == 0
    assert result["modes"]["shared"]["bytes_per_request"] < result["modes"]["server-only"]["bytes_per_request"]

    run = tmp_path / result["run"]
    assert {path.name for path in run.iterdir()} == {"header.json", "requests.jsonl", "server.log", "fleet"}
    fleet = {path.name for path in (run / "fleet").iterdir()}
    assert fleet == {"header.json", "requests.jsonl", "report.html", "frames.payloads"}
    assert {group["policy"] for group in result["fleet"]["groups"]} == {
        "server_only",
        "fixed",
        "device_only",
        "adaptive",
    }
    assert json.loads((run / "header.json").read_text())["split_point"] == result["split_point"]
    requests = recorded(tmp_path)
    assert len(requests) == 3 * IMAGES
    assert {request["mode"] for request in requests[:3]} == set(result["modes"])
    for request in requests:
        stages_s = request["stages_s"]
        assert isinstance(stages_s, dict)
        assert sum(stages_s.values()) == pytest.approx(request["total_s"], abs=1e-5)
    assert {"figures", "bounds", "made_by"} <= latest.keys()
    # The folder was also the home of everything that ran: no token, no cache, nothing else was written.
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


@pytest.mark.parametrize(("number", "when"), [(signal.SIGINT, "requests"), (signal.SIGTERM, "start")])
def test_a_stopped_demo_leaves_no_process(tmp_path, number, when):
    with demo(tmp_path, "--images", "100") as child:
        if when == "requests":
            wait_for(lambda: recorded(tmp_path), why="the demo never asked anything")
        else:
            raylet = lambda: any("raylet" in each.command for each in below(child.pid).values())  # noqa: E731
            wait_for(raylet, why="Ray never started")
        started = below(child.pid)
        assert len(started) >= 3
        child.send_signal(number)
        out, err = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 130, err
    assert "Traceback" not in out + err
    living = processes()
    sessions = {each.session for each in started.values()}
    assert [each for each in living.values() if each.session in sessions] == []
    assert [pid for pid in started if pid in living and living[pid].command == started[pid].command] == []


def test_a_port_in_use_is_one_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with demo(tmp_path, "--port", port) as child:
            out, err = child.communicate(timeout=PATIENCE_S)
    assert (child.returncode, out) == (2, "")
    (line,) = [line for line in err.splitlines() if line.strip()]
    assert port in line
    assert "--port" in line
    assert list(tmp_path.iterdir()) == []


def test_the_shipped_calibration_is_for_the_shipped_model():
    calibration, loaded = load_calibration(EMBEDDED_CALIBRATION), load_model(EMBEDDED_URI)
    assert (calibration.model, calibration.model_digest) == (EMBEDDED_URI, loaded.model.digest)
    assert loaded.model.split_point(calibration.split_point).head_macs > 0
