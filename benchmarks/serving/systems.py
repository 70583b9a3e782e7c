"""The systems of the comparison as processes: started, asked for their address and processes, stopped.

Knows commands and ports. Each serves the common tail; none knows of the others.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.serving.process_stats import ProcessUse, of, tree
from edge_sim.server_process import HOST, ServerProcess, free_port

START_TIMEOUT_S = 180.0
# Ray's resource of which each worker of the test cluster has one, and a replica takes one.
PLACE = "place"
_PEERS = Path("runs/peers")


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """Something that answers bodies over HTTP."""

    name: str
    address: tuple[str, int]
    path: str
    processes: Any
    """Gives the use of all its processes now."""
    application: str | None = None
    """Where it is asked over gRPC: the application's name."""


@contextlib.contextmanager
def ray_serve(
    name: str,
    config: Mapping[str, Any],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    command: Sequence[str] | None = None,
) -> Iterator[ServerProcess]:
    """`serve run` with this config, or another command with it, through HAProxy where that is installed."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(yaml.safe_dump(dict(config)))
        server = ServerProcess(file, environment=environment, command=command)
        with server.started(log=log):
            yield server


def processes_of(server: ServerProcess) -> dict[int, ProcessUse]:
    """All processes of a Serve instance."""
    return of(set(server.leftover()))


@contextlib.contextmanager
def plain(
    name: str,
    module: str,
    *,
    log: Path,
    path: str = "/",
    pythonpath: str = "",
    environment: Mapping[str, str] | None = None,
) -> Iterator[System]:
    """A peer that is started by `python -m module PORT`."""
    port = free_port()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    if pythonpath:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [pythonpath, os.environ.get("PYTHONPATH", "")]))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        _wait_for_port(port, process, log)
        yield System(name=name, address=(HOST, port), path=path, processes=lambda: tree(process.pid))
    finally:
        children = list(tree(process.pid))
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=5)
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                if pid != process.pid:
                    os.kill(pid, signal.SIGKILL)


def litserve_path() -> str | None:
    """Folder with LitServe in it, installed there now where need be; None where it cannot be had.

    Not into the project's own environment, whose versions are tested ones.
    """
    folder = _PEERS / "litserve"
    if not (folder / "litserve").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), "litserve"]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            return None
    return str(folder.resolve())


def _wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise RuntimeError(f"a peer ended at its start: {log.read_text()[-500:]}")
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=1):
                return
        except urllib.error.HTTPError as error:
            # LitServe says 503 until its worker is ready; any other answer means that it listens.
            if error.code != 503:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"a peer did not start within {START_TIMEOUT_S:g} s: {log.read_text()[-500:]}")
