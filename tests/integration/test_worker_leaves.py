"""A worker that is ended politely in mid-run takes its share of the load with it: with real Locust processes.

Ended by a signal of its own, that is; where somebody stops the run, all of them end, and that is no reason.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess

import pytest

from loadtests.stub_payloads import write_stub_payloads
from tests.integration.load_processes import answered_by, finish, locust, start, stub_server
from tests.integration.processes import below, wait_for
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def payloads(tmp_path_factory):
    path = tmp_path_factory.mktemp("payloads") / "stub.payloads"
    write_stub_payloads(path)
    return path


@pytest.fixture(scope="module")
def stub(payloads):
    with stub_server(payloads, "--service-ms", "2", "--servers", "4") as url:
        yield url


@pytest.mark.parametrize(
    ("experiment", "arguments", "workers"),
    [
        ("poisson", ("--rate", "50"), 2),
        # Locust itself stops a run whose last worker has left.
        ("poisson", ("--rate", "50"), 1),
        ("closed_loop", ("--callers", "4", "--think-ms", "50"), 2),
    ],
)
def test_a_worker_that_is_ended_politely_makes_the_run_invalid(
    tmp_path, stub, payloads, experiment, arguments, workers
):
    folder, before = tmp_path / "run", answered_by(stub)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    master = start(
        folder, experiment, stub, payloads, *arguments, "--duration", "10", "--warmup", "0.2",
        "--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--expect-workers", str(workers),
    )  # fmt: skip
    command = locust(experiment, "--worker", "--master-host", "127.0.0.1", "--master-port", port)
    ended = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(workers)
    ]
    try:
        wait_for(lambda: answered_by(stub) > before + 40 or master.poll() is not None, why="the run did not begin")
        ended[-1].terminate()
        ran = finish(master, folder)
    finally:
        everyone: list[subprocess.Popen[bytes] | subprocess.Popen[str]] = [*ended, master]
        for process in everyone:
            process.kill()
            process.wait(PATIENCE_S)
        for stream in (master.stdout, master.stderr):
            assert stream is not None
            stream.close()
    assert ran.code == 3, ran.err[-2000:]
    reasons = [each for each in ran.result.generator.invalid if "was ended after" in each]
    assert len(reasons) == 1, ran.result.generator.invalid
    assert reasons[0] in ran.out
    # What it had sent until then is counted.
    assert len(ran.result.generator.processes) == workers
    assert ran.result.counts.right > 0


def test_workers_of_a_run_that_somebody_stops_are_no_reason(tmp_path, stub, payloads):
    folder, before = tmp_path / "run", answered_by(stub)
    process = start(
        folder, "poisson", stub, payloads, "--rate", "50", "--duration", "120", "--warmup", "0.2", "--processes", "2"
    )
    wait_for(lambda: answered_by(stub) > before + 40, why="the run did not begin")
    children = below(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    ran = finish(process, folder)
    generator = ran.result.generator
    assert any("before its end" in note for note in generator.notes), ran.out
    assert not [each for each in generator.invalid if "was ended after" in each or "the schedule has" in each]
    wait_for(lambda: not [pid for pid in children if pid in below(1)], why="a worker is left")
