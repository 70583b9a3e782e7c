"""A headless Locust run as a process of its own: started, waited for, read back. Importing Locust would patch us.

Knows command lines and run folders; what is sent and how it is judged is the experiment's business.
"""

from __future__ import annotations

import contextlib
import csv
import math
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from loadtests.observation import Observation
from loadtests.run_result import RunResult, read_result
from split_inference.errors import ServerError, UsageError

EXPERIMENTS: Final = Path(__file__).resolve().parent
# Beyond its duration: importing, reading payloads, waiting for the last answers, writing the report.
_PATIENCE_S: Final = 120.0
_STOP_S: Final = 15.0
# Exit codes after which there is a record; 1 is Locust's own where requests failed.
_RAN: Final = frozenset({0, 1, 3, 99})


@dataclass(frozen=True, kw_only=True, slots=True)
class LocustTarget:
    """Where the load goes, and what is common to all runs of one command."""

    host: str
    payloads: tuple[Path, ...]
    options: Mapping[str, str]
    """Further arguments by name, as in {"deadline-ms": "250"}; "" for a flag."""


def run_locust(
    target: LocustTarget, experiment: str, folder: Path, *, duration_s: float, **arguments: object
) -> RunResult:
    """Run one experiment into `folder`, quietly. `arguments` as in rate=50, records=True.

    Raises UsageError with the experiment's own line where it refused, ServerError where it broke or hung. Ctrl-C ends
    the run too, in order.
    """
    words = [
        sys.executable, "-m", "locust", "-f", str(EXPERIMENTS / f"{experiment}.py"), "--headless", "--only-summary",
        "--skip-log-setup", "--host", target.host, "--payloads", ",".join(map(str, target.payloads)),
        "--folder", str(folder), "--duration", f"{duration_s:g}",
    ]  # fmt: skip
    for name, value in {**target.options, **{key.replace("_", "-"): value for key, value in arguments.items()}}.items():
        if value is not False and value is not None:
            words += [f"--{name}"] if value is True or value == "" else [f"--{name}", str(value)]
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=duration_s + _PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise ServerError(f"{experiment} was still running {_PATIENCE_S:g} s after its end; see {folder}") from None
    finally:
        _end(process)
    last = next((line for line in reversed(errors.strip().splitlines()) if line.strip()), "it said nothing")
    if process.returncode == 2:
        raise UsageError(last.removeprefix(f"{experiment}: "))
    if process.returncode not in _RAN or not (folder / "result.json").is_file():
        raise ServerError(f"{experiment} ended with {process.returncode}: {last}")
    return read_result(folder)


def observed(folder: Path, result: RunResult, *, rate_per_s: float) -> Observation:
    """What a run with records saw, request by request. What was dropped for lack of room was never answered, and stands
    at the end."""
    arrivals, latencies, delays, kinds = [], [], [], []
    for file in sorted(folder.glob("requests*.csv")):
        with file.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                if row["counted"] == "1":
                    arrivals.append(float(row["intended_s"]))
                    answered = row["outcome"] in ("right", "wrong", "unchecked")
                    latencies.append(float(row["ended_s"]) - float(row["intended_s"]) if answered else math.inf)
                    delays.append(float(row["sent_s"]) - float(row["intended_s"]))
                    kinds.append(row["outcome"])
    end_s = max(arrivals, default=0.0)
    for _ in range(result.dropped.get("full", 0)):
        arrivals.append(end_s)
        latencies.append(math.inf)
        delays.append(0.0)
        kinds.append("failed")
    order = np.argsort(arrivals, kind="stable")
    outcome = np.array(kinds)[order]
    return Observation(
        rate_per_s=rate_per_s,
        arrivals_s=np.array(arrivals)[order],
        latencies_s=np.array(latencies)[order],
        delays_s=np.array(delays)[order],
        wrong=outcome == "wrong",
        refused=outcome == "refused",
        failed=outcome == "failed",
        deadline_s=result.deadline_s,
        invalid=result.generator.invalid,
    )


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
