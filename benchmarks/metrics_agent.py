"""What Ray's metrics agent costs beside a replica: idle, and with requests; in a second as a whole and in bursts.

    python -m benchmarks.metrics_agent
    python -m benchmarks.metrics_agent RAY_metrics_report_interval_ms=4000

Seconds of the processor as the kernel counts them, so that a busy machine changes them little. No bound: it answers
which of Ray's settings is worth its trouble (docs/results/metrics-agent_*.md).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from edge_sim.server_process import ServerProcess
from split_inference.model_catalog import EMBEDDED_FOLDER

ROUTE = "/v1/models/resnet20-cifar10"
IMAGE = EMBEDDED_FOLDER / "samples" / "test-00000.jpg"
NAMES = {
    "agent": ("dashboard/agent.py", "DashboardAgent"),
    "replica": ("ServeReplica:resnet20",),
    "controller": ("ServeController",),
}
IDLE_S, LOADED_S, STEP_S = 60.0, 30.0, 0.5
SENDERS = 4


def main() -> int:
    """Start a server with the environment variables given as arguments; print three lines."""
    environment = dict(argument.split("=", 1) for argument in sys.argv[1:])
    logs = Path("runs/metrics-agent")
    logs.mkdir(parents=True, exist_ok=True)
    server = ServerProcess(Path("config.yaml"), environment=environment)
    with server.started(log=logs / "log"):
        server.wait_until_ready(ROUTE)
        pids = _processes(server)
        time.sleep(15)
        before = {name: _cpu_s(pid) for name, pid in pids.items()}
        time.sleep(IDLE_S)
        idle_s = {name: _cpu_s(pid) - before[name] for name, pid in pids.items()}
        shown = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in idle_s.items())
        print(f"idle for {IDLE_S:g} s: {shown}", flush=True)
        with _load(server.url + ROUTE) as answered:
            time.sleep(12)
            began, answers_before = time.perf_counter(), len(answered)
            steps = []
            last_s = _cpu_s(pids["agent"])
            while time.perf_counter() - began < LOADED_S:
                time.sleep(STEP_S)
                now_s = _cpu_s(pids["agent"])
                steps.append(now_s - last_s)
                last_s = now_s
            answers = len(answered) - answers_before
        each_us = 1e6 * (sum(steps) - idle_s["agent"] * LOADED_S / IDLE_S) / max(1, answers)
        print(
            f"{answers / LOADED_S:.0f} requests/s for {LOADED_S:g} s: agent {sum(steps):.2f} s, "
            f"{each_us:.0f} us a request above idle"
        )
        print(f"at most {max(steps):.2f} s in {STEP_S:g} s")
    return 0


def _processes(server: ServerProcess) -> dict[str, int]:
    found: dict[str, int] = {}
    for pid in server.leftover():
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found |= {name: pid for name, marks in NAMES.items() if any(mark in command for mark in marks)}
    return found


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def _load(url: str) -> Iterator[list[int]]:
    """Senders that each wait for their answers; the list grows by one with each."""
    stop = threading.Event()
    answered: list[int] = []
    body = IMAGE.read_bytes()

    def send() -> None:
        while not stop.is_set():
            request = urllib.request.Request(url, data=body, headers={"content-type": "image/jpeg"})
            with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=10) as response:
                answered.append(len(response.read()))

    threads = [threading.Thread(target=send, daemon=True) for _ in range(SENDERS)]
    for thread in threads:
        thread.start()
    try:
        yield answered
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=15)


if __name__ == "__main__":
    sys.exit(main())
