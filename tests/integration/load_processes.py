"""Stub servers and Locust as real processes, for tests of the load tests; all on loopback, all stopped at the end."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loadtests.run_result import RunResult, read_result
from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A Locust run that ended."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def result(self) -> RunResult:
        """Its record."""
        return read_result(self.folder)


@contextlib.contextmanager
def stub_server(payloads: Path, *arguments: str) -> Iterator[str]:
    """A stub server's URL."""
    command = [sys.executable, "-m", "loadtests.stub_server", "--payloads", str(payloads), *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            scheme = "https" if "--tls" in arguments else "http"
            yield f"{scheme}://127.0.0.1:{json.loads(process.stdout.readline())['port']}"
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def answered_by(stub: str) -> int:
    """Requests that a stub server has seen."""
    with urllib.request.urlopen(f"{stub}/stub", timeout=PATIENCE_S) as answer:
        seen: int = json.load(answer).get("requests", 0)
    return seen


def locust(experiment: str, *arguments: str) -> list[str]:
    """A command line."""
    file = ROOT / "loadtests" / f"{experiment}.py"
    return [sys.executable, "-m", "locust", "-f", str(file), "--skip-log-setup", "--only-summary", *arguments]


def start(
    folder: Path, experiment: str, url: str, payloads: Path, *arguments: str, **facts: object
) -> subprocess.Popen[str]:
    """A headless run in a process group of its own; `folder` gets its files."""
    command = locust(
        experiment, "--headless", "--host", url, "--payloads", str(payloads), "--folder", str(folder), *arguments
    )
    process: subprocess.Popen[str] = subprocess.Popen(
        command,
        cwd=folder.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **facts,  # type: ignore[call-overload]
    )
    return process


def finish(process: subprocess.Popen[str], folder: Path, *, timeout_s: float = PATIENCE_S) -> Ran:
    """Wait for a run's end."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"a run hung: {out[-2000:]}\n{err[-2000:]}") from None
    return Ran(code=process.returncode, out=out, err=err, folder=folder)


def run(folder: Path, experiment: str, url: str, payloads: Path, *arguments: str, **facts: object) -> Ran:
    """A headless run, start to end."""
    return finish(start(folder, experiment, url, payloads, *arguments, **facts), folder)
