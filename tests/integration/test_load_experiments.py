"""Real Locust processes against a server of known behaviour: what is sent, what is measured, what is refused.

Bounds on the generator's own lateness are in `make bench-load`: a test has to pass on a machine that is busy, so that
whether a run is valid is asserted nowhere here but where it must not be.
"""

from __future__ import annotations

import csv
import json
import math
import os
import resource
import signal
import socket
import subprocess
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from loadtests.arrivals import RatedArrivals
from loadtests.rate_curve import constant
from loadtests.run_result import read_result
from loadtests.stub_payloads import write_stub_payloads
from tests.integration.load_processes import ROOT, answered_by, finish, locust, run, start, stub_server
from tests.integration.processes import below, wait_for
from tests.patience import PATIENCE_S

MET_OR_INVALID = (0, 3)
EXPERIMENTS = {
    "steady": ("--rate", "40", "--duration", "1.5"),
    "poisson": ("--rate", "40", "--duration", "1.5"),
    "step_up": ("--from-rate", "20", "--to-rate", "60", "--steps", "2", "--step-s", "1"),
    "ramp": ("--from-rate", "20", "--to-rate", "60", "--duration", "1.5"),
    "burst": ("--peak-rate", "100", "--on-s", "0.5", "--off-s", "0.5", "--duration", "1.5"),
    "diurnal": ("--rate", "40", "--day-s", "1.5", "--duration", "1.5"),
    "replay": ("--recording", "RECORDING", "--repeat", "2"),
    "soak": ("--rate", "40", "--duration", "1.5"),
    "mixed_fleet": ("--rate", "40", "--duration", "1.5"),
    "closed_loop": ("--callers", "2", "--duration", "1.5"),
}


@pytest.fixture(scope="module")
def payloads(tmp_path_factory):
    path = tmp_path_factory.mktemp("payloads") / "stub.payloads"
    write_stub_payloads(path, inputs=16, body_bytes=(500, 1500), shares=(0.75, 0.25))
    return path


@pytest.fixture(scope="module")
def stub(payloads):
    with stub_server(payloads, "--service-ms", "2", "--servers", "4") as url:
        yield url


def records_of(folder):
    rows = []
    for file in sorted(folder.glob("requests*.csv")):
        with file.open(newline="") as lines:
            rows += list(csv.DictReader(lines))
    return sorted(rows, key=lambda row: int(row["number"]))


def schedule(rate_per_s, duration_s, seed):
    arrivals = RatedArrivals("poisson", constant(rate_per_s, duration_s), seed=seed)
    return [at for chunk in arrivals.chunks() for at in chunk.tolist()]


def test_every_experiment_runs_and_says_before_what_it_will_send(tmp_path, stub, payloads):
    recording = tmp_path / "recording.csv"
    recording.write_text("intended_s\n" + "\n".join(str(number / 40) for number in range(40)))

    def one(name):
        arguments = [str(recording) if each == "RECORDING" else each for each in EXPERIMENTS[name]]
        return run(tmp_path / name, name, stub, payloads, "--warmup", "0.5", *arguments)

    with ThreadPoolExecutor(5) as pool:
        for name, ran in zip(EXPERIMENTS, pool.map(one, EXPERIMENTS), strict=True):
            assert ran.code in MET_OR_INVALID, (name, ran.err[-2000:])
            announced, done = ran.out.splitlines()[0], ran.result
            assert announced.startswith(f"{name}: ")
            assert stub in announced
            assert done.experiment == name
            assert done.counts.right == done.counts.answered == done.counts.sent > 0
            assert done.counts.wrong == done.failed_count == done.refused_count == 0
            header = json.loads((ran.folder / "header.json").read_text())
            assert header["options"]["warmup_s"] == 0.5
            assert header["versions"]["python"]


def test_two_workers_send_the_schedule_of_one_process_and_report_what_was_recorded(tmp_path, stub, payloads):
    arguments = ("--rate", "100", "--duration", "3", "--warmup", "1", "--seed", "3", "--records")
    one = start(tmp_path / "one", "poisson", stub, payloads, *arguments)
    two = start(tmp_path / "two", "poisson", stub, payloads, *arguments, "--processes", "2")
    for ran in (finish(one, tmp_path / "one"), finish(two, tmp_path / "two")):
        assert ran.code in MET_OR_INVALID, ran.err[-2000:]
        rows, result = records_of(ran.folder), ran.result
        dropped = result.counts.dropped
        # The very same arrivals, whatever the number of processes.
        expected = schedule(100, 3, 3)
        sent = {int(row["number"]): float(row["intended_s"]) for row in rows}
        # Of the second that counts; what a busy machine was late for in the warm-up is dropped and not counted.
        warm = {number for number, at in enumerate(expected) if at >= 1}
        assert len(warm - sent.keys()) <= dropped
        assert all(abs(expected[number] - at) < 1e-6 for number, at in sent.items())
        assert {row["outcome"] for row in rows} == {"right"}
        # Percentiles agree with an exact sort of the raw records to three digits, also merged.
        counted = sorted(float(row["ended_s"]) - float(row["intended_s"]) for row in rows if row["counted"] == "1")
        assert result.latency.count == len(counted) == result.counts.sent
        for share in (0.5, 0.9, 0.99, 1.0):
            exact = counted[math.ceil(share * len(counted) - 1e-9) - 1]
            assert result.latency.percentile(share) == pytest.approx(exact, rel=0.0005, abs=2e-9)
        assert result.by_option.keys() == {"cut0, u8+none", "cut1, u8+none"}
        assert result.server.queue.count == result.counts.answered
    both = [read_result(tmp_path / name) for name in ("one", "two")]
    assert both[0].counts.intended == both[1].counts.intended
    assert (both[0].workers, both[1].workers) == (1, 2)
    assert len(both[1].generator.processes) == 2


def test_a_stall_shows_in_the_open_loop_and_hides_in_the_closed_one(tmp_path, payloads):
    """A second in which nothing goes on: everybody who would have asked meanwhile has waited."""
    stall = ("--service-ms", "5", "--servers", "4", "--stall-at", "2", "--stall-s", "1")
    with stub_server(payloads, *stall) as first, stub_server(payloads, *stall) as second:
        opened = start(
            tmp_path / "open", "steady", first, payloads, "--rate", "100", "--duration", "5", "--warmup", "1"
        )
        closed = start(
            tmp_path / "closed", "closed_loop", second, payloads, "--callers", "1", "--duration", "5", "--warmup", "1"
        )
        open_loop = finish(opened, tmp_path / "open").result
        closed_loop = finish(closed, tmp_path / "closed").result
    # In the open loop a quarter of all requests falls into the stall: of 400, 100 waited, the longest for a second.
    assert 0.9 < open_loop.latency.max_s < 3
    assert open_loop.latency.percentile(0.999) > 0.9
    assert open_loop.latency.percentile(0.9) > 0.3
    # In the closed loop one request waited, of however many this machine can ask one after the other.
    assert closed_loop.latency.max_s > 0.9
    assert closed_loop.latency.percentile(0.9) < 0.3
    assert not closed_loop.open_loop
    assert open_loop.open_loop


def test_a_worker_that_is_killed_makes_the_run_invalid(tmp_path, stub, payloads):
    folder, before = tmp_path / "run", answered_by(stub)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    master = start(
        folder, "poisson", stub, payloads, "--rate", "50", "--duration", "4", "--warmup", "0.2",
        "--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--expect-workers", "2",
    )  # fmt: skip
    command = locust("poisson", "--worker", "--master-host", "127.0.0.1", "--master-port", port)
    workers = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)
    ]
    try:
        wait_for(lambda: answered_by(stub) > before + 20 or master.poll() is not None, why="the run did not begin")
        workers[1].kill()
        ran = finish(master, folder)
    finally:
        everyone: list[subprocess.Popen[bytes] | subprocess.Popen[str]] = [*workers, master]
        for process in everyone:
            process.kill()
            process.wait(PATIENCE_S)
        for stream in (master.stdout, master.stderr):
            assert stream is not None
            stream.close()
    assert ran.code == 3, ran.err[-2000:]
    assert any("was lost in mid-run" in reason for reason in ran.result.generator.invalid)
    assert "INVALID" in ran.out
    assert ran.result.workers == 2
    assert len(ran.result.generator.processes) == 1


def test_an_interrupted_run_is_written_and_leaves_no_process(tmp_path, stub, payloads):
    folder = tmp_path / "run"
    before = answered_by(stub)
    process = start(
        folder, "poisson", stub, payloads, "--rate", "50", "--duration", "120", "--warmup", "0.2", "--processes", "2",
        "--slo", str(ROOT / "loadtests" / "slo_files" / "interactive.yaml"),
    )  # fmt: skip
    wait_for(lambda: answered_by(stub) > before + 50, why="the run did not begin")
    children = below(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    ran = finish(process, folder)
    assert any("before its end" in note for note in ran.result.generator.notes), ran.out
    assert ran.result.counts.right > 0
    assert ran.result.measured_s < 60
    # What a gate saw a part of has not passed it.
    assert ran.code == 3, ran.out
    assert "of 120 s" in (folder / "summary.md").read_text()
    wait_for(lambda: not [pid for pid in children if pid in below(1)], why="a worker is left")


def certificate(folder):
    """Certificate and key of 127.0.0.1 in one file, signed by itself."""
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / "tls.pem"
    file.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return file


def test_https_with_a_ca_of_ones_own_and_a_token(tmp_path, payloads):
    tls = certificate(tmp_path)
    (tmp_path / "token").write_text("open-sesame\n")
    (tmp_path / "other").write_text("guess\n")
    short = ("--rate", "20", "--duration", "2", "--warmup", "0.2")
    ca = ("--ca", str(tls))
    cases = {
        "good": (*ca, "--token-file", str(tmp_path / "token")),
        "untrusted": ("--token-file", str(tmp_path / "token")),
        "refused": (*ca, "--token-file", str(tmp_path / "other")),
    }
    with stub_server(payloads, "--tls", str(tls), "--token", "open-sesame", "--service-ms", "1") as url:

        def one(name):
            return run(tmp_path / name, "poisson", url, payloads, *short, *cases[name])

        with ThreadPoolExecutor(3) as pool:
            good, untrusted, refused = pool.map(one, cases)
    assert good.code in MET_OR_INVALID, good.err
    assert good.result.counts.right == good.result.counts.sent > 0
    assert untrusted.code == 2
    assert "not trusted" in untrusted.err
    assert refused.code == 2
    assert "401" in refused.err
    for ran in (good, untrusted, refused):
        assert "open-sesame" not in ran.out + ran.err
    assert "open-sesame" not in "".join(file.read_text() for file in good.folder.iterdir())


def test_wrong_input_is_one_line_and_exit_code_2_before_any_load(tmp_path, stub, payloads):
    """What else can be wrong is in tests/loadtests/test_run_plan.py; here are the line, the code and the processes."""
    slo = tmp_path / "slo.yaml"
    slo.write_text("p99_ms: [\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    before = answered_by(stub)
    cases = {
        "unreachable": (nobody, (), "is the server up?"),
        "malformed SLO": (stub, ("--slo", str(slo)), "slo.yaml"),
        "few files": (stub, ("--connections", "1000", "--processes", "2"), "ulimit"),
    }

    def one(name):
        url, arguments, _ = cases[name]
        facts = {}
        if name == "few files":
            facts["preexec_fn"] = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
        return run(tmp_path / name, "poisson", url, payloads, *arguments, **facts)

    with ThreadPoolExecutor(3) as pool:
        for name, ran in zip(cases, pool.map(one, cases), strict=True):
            lines = [line for line in ran.err.splitlines() if line.startswith("poisson: ")]
            assert ran.code == 2, (name, ran.out, ran.err)
            assert len(lines) == 1, (name, ran.err)
            assert cases[name][2] in lines[0], (name, lines)
            assert "Traceback" not in ran.err
            assert not ran.folder.exists()
    assert answered_by(stub) == before


def test_an_experiment_lists_its_arguments():
    done = subprocess.run(
        [*locust("burst"), "--arguments"], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert all(argument in done.stdout for argument in ("--peak-rate", "--payloads", "--slo"))


def test_the_web_page_shows_the_arguments_and_runs_what_was_typed(tmp_path, stub, payloads):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path / "run"
    command = locust("poisson", "--web-host", "127.0.0.1", "--web-port", str(port), "--host", stub)
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            page = ""

            def there():
                nonlocal page
                try:
                    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read().decode()
                except OSError:
                    return False
                return True

            wait_for(there, why="no web page")
            for argument in ("payloads", "rate", "duration", "deadline_ms", "max_in_flight"):
                assert f'"{argument}"' in page, argument
            # What decides whose machine is loaded, and with whose token, is no matter of a page.
            for argument in ("yes", "token_file"):
                assert f'"{argument}"' not in page, argument
            form = {"user_count": 1, "spawn_rate": 1, "host": stub, "payloads": payloads, "rate": "30.0"}
            form |= {"duration": "2.0", "warmup": "0.5", "folder": folder}
            data = urllib.parse.urlencode(form).encode()
            answer = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/swarm", data, timeout=PATIENCE_S))
            assert answer["success"]
            wait_for(lambda: (folder / "result.json").exists(), why="no result")
            stats = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/stats/requests", timeout=PATIENCE_S))
            assert stats["stats"][-1]["num_requests"] > 0
        finally:
            process.terminate()
            process.communicate(timeout=PATIENCE_S)
    result = read_result(folder)
    assert result.planned.rate_per_s == 30
    assert result.counts.right == result.counts.sent > 0
