"""Placement on fractions of GPUs that are not there, scaling and draining, on a real cluster of three nodes here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edge_sim.own_processes import OwnProcesses
from edge_sim.server_process import free_port
from tests.patience import RUN_PATIENCE_S

SCRIPT = Path(__file__).with_name("multi_node_script.py")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    ours = OwnProcesses()
    environment = {
        **os.environ,
        **ours.environment,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "1",
        "PYTHONPATH": str(ROOT),
    }
    log = tmp_path_factory.mktemp("cluster") / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(free_port()), str(free_port())],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            start_new_session=True,
        )
        ours.hold_session(process.pid)
        try:
            output, _ = process.communicate(timeout=RUN_PATIENCE_S)
        finally:
            process.kill()
            ours.signal_all(signal.SIGKILL)
            ours.hold_session(None)
    lines = [line for line in output.splitlines() if line.startswith("{")]
    assert lines, log.read_text()[-2000:]
    return json.loads(lines[-1])


def test_quarters_of_a_gpu_fill_both_gpus_and_the_ninth_replica_waits(found):
    assert found["packed"]["eight"] == {"RUNNING": 8}
    assert found["packed"]["by_node"] == [4, 4]
    assert found["packed"]["nine"] == {"RUNNING": 8, "STARTING": 1}


def test_the_policy_scales_up_under_load_and_down_after_it(found):
    assert found["scaled"]["before"] == {"RUNNING": 1}
    assert found["scaled"]["under_load"] == {"RUNNING": 4}
    assert found["scaled"]["after"] == {"RUNNING": 1}


def test_a_cold_model_has_no_replica_and_its_first_request_gets_one(found):
    assert found["cold"]["before"] == {}
    assert found["cold"]["answered"]
    assert found["cold"]["after"] == {}


def test_a_drained_node_loses_its_replica_only_when_another_one_answers(found):
    drained = found["drained"]
    assert (drained["code"], drained["error"]) == (0, "")
    assert drained["moved"]
    assert drained["nodes"] == 2
    assert drained["answers"] > 0
    # The raylet may be gone as well: a drained node that is idle ends by itself.
    assert sum(drained["left"]) == 0
