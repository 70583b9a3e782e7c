"""Whether the load generator does what it says: schedule, stall, connections, workers; each figure beside its bound.

Everything is measured against the stub server, whose behaviour is known, on loopback and on one machine: generator and
stub share its cores. Needs a quiet machine: what a busy one shows is the generator's lateness, and the bounds say so.

    make bench-load
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import resource
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loadtests.run_result import RunResult, read_result
from loadtests.stub_payloads import write_stub_payloads
from split_inference.figures import Bound, report

# The asymptotic critical value of the Kolmogorov-Smirnov statistic at 1 %: 2 exp(-2 x^2) = 0.01.
KS_1_PERCENT = 1.628
# A process handles one start after the other, some 0.2 ms each: single gaps of sends cannot be exponential below that.
# Sums of twenty can be what they should.
SUMMED_GAPS = 20
CONNECTIONS = 10_000
PATIENCE_S = 120
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}

BOUNDS: dict[str, Bound] = {
    "poisson_1000_schedule_delay_p99_ms": ("<=", 5.0),
    "poisson_1000_rate_off": ("<=", 0.01),
    "poisson_1000_ks_intended_gaps": ("<=", KS_1_PERCENT),
    f"poisson_1000_ks_sums_of_{SUMMED_GAPS}_sent_gaps": ("<=", KS_1_PERCENT),
    "poisson_1000_not_right": ("==", 0),
    "stall_open_p999_s": (">=", 0.9),
    "stall_open_max_s": (">=", 0.95),
    "stall_closed_p999_s": ("<=", 0.1),
    "connections_open": (">=", CONNECTIONS),
    "connections_not_right": ("==", 0),
    "workers_intended_difference": ("==", 0),
    "workers_p50_ratio_off": ("<=", 0.1),
    "workers_p90_ratio_off": ("<=", 0.1),
    "workers_p99_ratio_off": ("<=", 0.25),
    "four_workers_percentile_error": ("<=", 0.0005),
}


@contextlib.contextmanager
def stub(payloads: Path, **options: float) -> Iterator[str]:
    """A stub server's URL."""
    arguments = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", f"{value:g}")]
    command = [sys.executable, "-m", "loadtests.stub_server", "--payloads", str(payloads), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}"
        finally:
            process.terminate()


def load(folder: Path, experiment: str, url: str, payloads: Path, *arguments: str) -> RunResult:
    """Run a locustfile headless; its record, valid or not."""
    file = Path(__file__).resolve().parent.parent / "loadtests" / f"{experiment}.py"
    command = [sys.executable, "-m", "locust", "-f", str(file), "--headless", "--only-summary", "--host", url]
    command += ["--payloads", str(payloads), "--folder", str(folder), *arguments]
    print(f"  {experiment} {' '.join(arguments)}", flush=True)
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    if not (folder / "result.json").exists():
        raise SystemExit(f"{experiment} gave no result: {done.stderr.strip()[-500:]}")
    result = read_result(folder)
    for reason in result.generator.invalid:
        print(f"    INVALID: {reason}", flush=True)
    return result


def records(folder: Path) -> list[dict[str, str]]:
    """Every request of a run, in the order of the schedule."""
    rows: list[dict[str, str]] = []
    for file in folder.glob("requests*.csv"):
        with file.open(newline="") as lines:
            rows += csv.DictReader(lines)
    return sorted(rows, key=lambda row: int(row["number"]))


def ks(sample: NDArray[np.float64], cdf: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> float:
    """The Kolmogorov-Smirnov distance times the root of the sample's size."""
    values, n = cdf(np.sort(sample)), len(sample)
    above = np.arange(1, n + 1) / n - values
    return float(max(above.max(), (1 / n - above).max())) * math.sqrt(n)


def erlang_cdf(x: NDArray[np.float64], *, shape: int, rate: float) -> NDArray[np.float64]:
    """Distribution of the sum of `shape` exponential gaps."""
    total = np.zeros_like(x)
    term = np.ones_like(x)
    for k in range(shape):
        total += term
        term = term * rate * x / (k + 1)
    cdf: NDArray[np.float64] = 1 - np.exp(-rate * x) * total
    return cdf


def not_right(result: RunResult) -> int:
    """Requests that were not answered rightly."""
    return result.counts.intended - result.counts.right


def poisson_1000(folder: Path, payloads: Path) -> dict[str, float]:
    """1,000 requests a second from one process."""
    rate = 1000.0
    with stub(payloads, service_ms=2, servers=16) as url:
        result = load(folder, "poisson", url, payloads, "--rate", f"{rate:g}", "--duration", "20", "--records")
    rows = records(folder)
    # The order of sending is that of the schedule but for what overtook while two were due at the same time.
    sent = np.sort(np.array([float(row["sent_s"]) for row in rows]))
    intended = np.array([float(row["intended_s"]) for row in rows])
    sums = np.diff(sent[::SUMMED_GAPS])
    return {
        "poisson_1000_schedule_delay_p50_ms": 1000 * result.schedule_delay.percentile(0.5),
        "poisson_1000_schedule_delay_p99_ms": 1000 * result.schedule_delay.percentile(0.99),
        "poisson_1000_rate_off": abs(result.generator.achieved_rate_per_s / result.generator.intended_rate_per_s - 1),
        "poisson_1000_ks_intended_gaps": ks(np.diff(intended), lambda x: 1 - np.exp(-rate * x)),
        f"poisson_1000_ks_sums_of_{SUMMED_GAPS}_sent_gaps": ks(
            sums, lambda x: erlang_cdf(x, shape=SUMMED_GAPS, rate=rate)
        ),
        "poisson_1000_ks_sent_gaps": ks(np.diff(sent), lambda x: 1 - np.exp(-rate * x)),
        "poisson_1000_generator_cpu_share": result.generator.processes[0].cpu_share,
        "poisson_1000_not_right": not_right(result),
    }


def stall(folder: Path, payloads: Path) -> dict[str, float]:
    """A second in which the server does nothing, seen by both kinds of loop."""
    server = {"service_ms": 5, "servers": 4, "stall_at": 8, "stall_s": 1}
    shared = ("--duration", "16")
    with stub(payloads, **server) as url:
        opened = load(folder / "open", "poisson", url, payloads, "--rate", "200", *shared)
    with stub(payloads, **server) as url:
        closed = load(folder / "closed", "closed_loop", url, payloads, "--callers", "4", *shared)
    return {
        "stall_open_p99_s": opened.latency.percentile(0.99),
        "stall_open_p999_s": opened.latency.percentile(0.999),
        "stall_open_max_s": opened.latency.max_s,
        "stall_closed_p99_s": closed.latency.percentile(0.99),
        "stall_closed_p999_s": closed.latency.percentile(0.999),
        "stall_closed_max_s": closed.latency.max_s,
        "stall_closed_requests": closed.counts.sent,
    }


def many_connections(folder: Path, payloads: Path) -> dict[str, float]:
    """10,000 keep-alive connections from one process, each of which is used."""
    most = 0
    over = threading.Event()

    def watch(url: str) -> None:
        nonlocal most
        while not over.wait(1.0):
            with contextlib.suppress(OSError):
                seen = json.load(urllib.request.urlopen(f"{url}/stub", timeout=5))
                # The one that asks is no device.
                most = max(most, seen["connections"] - 1)

    with stub(payloads, service_ms=2, servers=16) as url:
        watcher = threading.Thread(target=watch, args=(url,), daemon=True)
        watcher.start()
        result = load(
            folder, "poisson", url, payloads, "--rate", "600", "--duration", "22", "--connections", str(CONNECTIONS),
            "--max-in-flight", str(CONNECTIONS),
        )  # fmt: skip
        over.set()
        watcher.join(10)
    return {
        "connections_open": most,
        "connections_requests": result.counts.sent,
        "connections_not_right": not_right(result),
        "connections_schedule_delay_p99_ms": 1000 * result.schedule_delay.percentile(0.99),
        "connections_generator_rss_mb": result.generator.processes[0].rss_mb,
    }


def workers(folder: Path, payloads: Path) -> dict[str, float]:
    """One process, and a master with two workers, in turn: the same arrivals have to give the same percentiles."""
    found: dict[str, list[RunResult]] = {"one": [], "two": []}
    with stub(payloads, service_ms=10, servers=2) as url:
        for turn in range(3):
            for name, more in (("one", ()), ("two", ("--processes", "2"))):
                arguments = ("--rate", "140", "--duration", "8", "--seed", "1", *more)
                found[name].append(load(folder / f"{name}{turn}", "poisson", url, payloads, *arguments))
                time.sleep(0.5)
    figures: dict[str, float] = {
        "workers_intended_difference": len({run.counts.intended for runs in found.values() for run in runs}) - 1
    }
    for name, share in SHARES.items():
        one, two = (float(np.median([run.latency.percentile(share) for run in found[key]])) for key in ("one", "two"))
        figures[f"workers_one_{name}_ms"] = 1000 * one
        figures[f"workers_{name}_ratio_off"] = abs(two / one - 1)
    return figures


def four_workers(folder: Path, payloads: Path) -> dict[str, float]:
    """Percentiles merged over four workers, beside an exact sort of all raw records."""
    with stub(payloads, service_ms=5, servers=4) as url:
        result = load(
            folder, "poisson", url, payloads, "--rate", "400", "--duration", "8", "--records", "--processes", "4"
        )
    raw = sorted(float(row["ended_s"]) - float(row["intended_s"]) for row in records(folder) if row["counted"] == "1")
    errors = [
        abs(result.latency.percentile(share) / raw[math.ceil(share * len(raw) - 1e-9) - 1] - 1)
        for share in (0.5, 0.9, 0.95, 0.99, 0.999, 1.0)
    ]
    return {"four_workers_records": len(raw), "four_workers_percentile_error": max(errors)}


def main() -> int:
    """Measure all, print, write runs/latest/bench-load.json; 1 where a bound is missed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The stub needs as many as the generator, and inherits this.
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        payloads = folder / "stub.payloads"
        write_stub_payloads(payloads)
        for part in (poisson_1000, stall, many_connections, workers, four_workers):
            print(part.__name__.replace("_", " "), flush=True)
            # Runs make their own folders, and want them to be new.
            (folder / part.__name__).mkdir()
            figures |= part(folder / part.__name__ / "run", payloads)
    return report("bench-load", figures, BOUNDS, command=["make", "bench-load"])


if __name__ == "__main__":
    raise SystemExit(main())
