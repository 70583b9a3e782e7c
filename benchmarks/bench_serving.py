"""Serving throughput: ours and its peers, on the same tail and the same bodies, in one run beside the in-process limit.

One system runs at a time, because even an idle Ray takes a fifth of a core. The in-process limit is measured right
before and right after each load, and what is compared between systems are their shares of it: a machine that becomes
slower in between does so for both. Figures are medians over rounds, with the spread. The load generator shares the
machine's cores with the server. What the host of a virtual machine took of it meanwhile is printed beside them.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.serving.grpc_load import grpc_closed_loop
from benchmarks.serving.http_load import LoadResult, closed_loop, percentile, request_bytes
from benchmarks.serving.limit import SIZES, LimitProcess, Yardstick, measure_together
from benchmarks.serving.process_stats import cpu_between
from benchmarks.serving.stolen_time import StolenTime
from benchmarks.serving.systems import System, litserve_path, plain, processes_of, ray_serve
from benchmarks.serving.tail import JUST_IN_TIME, OURS, PRECISION, TAIL, bodies, serve_config
from edge_sim.server_process import HOST, free_port
from split_inference.cli import progress_bar
from split_inference.figures import Bound, report
from split_inference.wire import FRAME_MEDIA_TYPE

CONCURRENCIES = (1, 32, 128)
# Before anything is counted: on a slow machine, with full batches, the first answers come after half a second.
SETTLE_S = 2.0
SERVICER = "split_inference.grpc.inference_pb2_grpc.add_InferenceServicer_to_server"
ONE, TWO, UVICORN = "ours, 1 replica", "ours, 2 replicas", "uvicorn + batcher"
# With torch.compile, as their users have it, and with the tail that our package compiles ahead of time; Ray Serve by
# its defaults, and with its knobs turned to where they were best here.
RAY, LIT = "ray @serve.batch, defaults", "litserve"
RAY_TUNED, LIT_OUR_TAIL = "ray @serve.batch, tuned, our tail", f"{LIT}, our tail"
# Beside our two replicas: as many models on as many cores.
LIT_TWO = f"{LIT}, 2 workers"
BOUNDS: dict[str, Bound] = {
    "one_replica_over_limit": (">=", 0.85),
    "two_replicas_over_one_process_limit": (">=", 1.25),
    "one_replica_over_ray_batch": (">=", 4.0),
    "one_replica_over_litserve": (">=", 1.4),
    "alone_p50_over_in_process_ms": ("<=", 1.5),
}


@dataclass(kw_only=True)
class Series:
    """One system at one concurrency, over all rounds."""

    rates_per_s: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    batch: list[float] = field(default_factory=list)
    over_limit: list[float] = field(default_factory=list)
    """Rate over the in-process limit around it."""
    over_alone_ms: list[float] = field(default_factory=list)
    """At concurrency 1: the median latency less what one sample takes in process, around it."""
    stolen: list[float] = field(default_factory=list)
    """Share of the machine that its host took meanwhile."""
    failed: Counter[int] = field(default_factory=Counter)
    """By status; 0 is a broken connection, or none in time."""


def _over_http(system: System, requests: list[bytes], concurrency: int, seconds: float) -> LoadResult:
    return closed_loop(system.address, requests, concurrency=concurrency, seconds=seconds)


def _over_grpc(system: System, frames: list[bytes], concurrency: int, seconds: float) -> LoadResult:
    assert system.application is not None
    return grpc_closed_loop(
        system.address, frames, application=system.application, concurrency=concurrency, seconds=seconds
    )


def measure(
    system: System,
    frames: list[bytes],
    concurrency: int,
    seconds: float,
    *,
    yardstick: Yardstick,
    best: int,
    into: Series,
) -> None:
    """One round: load that settles, then the time that counts. `best` is the limit's batch size."""
    load: Callable[[float], LoadResult]
    if system.application is not None:
        load = partial(_over_grpc, system, frames, concurrency)
    else:
        requests = [request_bytes(HOST, system.path, body, media_type=FRAME_MEDIA_TYPE) for body in frames]
        load = partial(_over_http, system, requests, concurrency)

    def counted() -> tuple[LoadResult, float]:
        before = system.processes()
        result = load(SETTLE_S + seconds)
        return result, cpu_between(before, system.processes())

    alone = concurrency == 1
    stolen = StolenTime()
    (whole, cpu_s), batch_s = yardstick.around(counted, size=1 if alone else best)
    into.stolen.append(stolen.share())
    result = whole.between(SETTLE_S, SETTLE_S + seconds)
    latencies_s = result.latencies_s()
    if alone:
        into.over_alone_ms.append(1000 * (percentile(latencies_s, 0.5) - batch_s))
    else:
        into.over_limit.append(result.rate_per_s() * batch_s / best)
    into.rates_per_s.append(result.rate_per_s())
    into.p50_ms.append(1000 * percentile(latencies_s, 0.5))
    into.p99_ms.append(1000 * percentile(latencies_s, 0.99))
    into.cpu_ms.append(1000 * cpu_s / max(1, len(whole.latencies_s())))
    sizes = [each.batch_samples for each in result.outcomes if each.batch_samples]
    into.batch.append(float(np.mean(sizes)) if sizes else float("nan"))
    into.failed.update({status: count for status, count in whole.statuses().items() if status != 200})


def main() -> int:
    """Measure, print the table, hold the bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--without-peers", action="store_true")
    parser.add_argument("--only", choices=list(GROUPS), action="append", help="one of the systems; may be repeated")
    options = parser.parse_args()
    chosen = options.only or [name for name in GROUPS if name.startswith("ours") or not options.without_peers]
    logs = Path("runs/bench-serving")
    logs.mkdir(parents=True, exist_ok=True)
    print("preparing bodies ...", file=sys.stderr)
    frames = bodies()
    table: dict[tuple[str, int], Series] = defaultdict(Series)
    limits: dict[int, list[float]] = defaultdict(list)
    limits_two: list[float] = []
    with contextlib.ExitStack() as running:
        processes = [LimitProcess(), LimitProcess()]
        for process in processes:
            running.callback(process.close)
        yardstick = Yardstick(processes[0], seconds=options.seconds / 4)
        with progress_bar() as bar:
            task = bar.add_task("measuring", total=len(chosen) * options.rounds)
            for name in chosen:
                with contextlib.ExitStack() as started:
                    systems = GROUPS[name](started, logs)
                    for _ in range(options.rounds):
                        for size in SIZES:
                            limits[size].append(measure_together(processes[:1], size=size, seconds=options.seconds / 4))
                        best = max(limits, key=lambda size: statistics.median(limits[size]))
                        for concurrency in CONCURRENCIES:
                            for system in systems:
                                measure(
                                    system,
                                    frames,
                                    concurrency,
                                    options.seconds,
                                    yardstick=yardstick,
                                    best=best,
                                    into=table[system.name, concurrency],
                                )
                        limits_two.append(measure_together(processes, size=best, seconds=options.seconds / 2))
                        bar.advance(task)
    best = max(limits, key=lambda size: statistics.median(limits[size]))
    print(f"the tail: {PRECISION}, compiled")
    _print_table(table, limits, limits_two, best)
    for (name, concurrency), series in table.items():
        if series.failed:
            print(f"{name} at {concurrency}: failed, by status (0: no answer): {dict(series.failed)}")
    return report("bench-serving", _figures(table, limits, limits_two, best), BOUNDS)


def _ours(started: contextlib.ExitStack, logs: Path, *, name: str, replicas: int) -> list[System]:
    # Fractions of a CPU, so that generator and proxies are no reason to wait for a place.
    config = serve_config({"tail": replicas}, replica_cpus=0.2)
    grpc_port = free_port()
    config["grpc_options"] = {"port": grpc_port, "grpc_servicer_functions": [SERVICER]}
    ours = started.enter_context(ray_serve("ours", config, log=logs / f"ours-{replicas}.log"))
    path = "/v1/models/tail"
    ours.wait_until_ready(path, timeout_s=300)
    while len(ours.running_replicas("tail")) < replicas:
        time.sleep(0.5)
    over_http = System(name=name, address=(HOST, ours.port), path=path, processes=lambda: processes_of(ours))
    over_grpc = replace(over_http, name=f"{name}, gRPC", address=(HOST, grpc_port), application="tail")
    return [over_http, over_grpc]


def _ray_batch(started: contextlib.ExitStack, logs: Path, *, tail: str) -> list[System]:
    kind = "default" if tail == JUST_IN_TIME else "tuned"
    config = {
        "http_options": {"host": HOST, "port": 8000},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": [{"name": "batch", "import_path": f"benchmarks.serving.peer_ray_batch:{kind}"}],
    }
    defaults = {"RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0", TAIL: tail}
    ray = started.enter_context(ray_serve("ray", config, log=logs / "ray.log", environment=defaults))
    ray.wait_until_ready("/-/healthz", timeout_s=180)
    name = RAY if tail == JUST_IN_TIME else RAY_TUNED
    return [System(name=name, address=(HOST, ray.port), path="/", processes=lambda: processes_of(ray))]


def _uvicorn(started: contextlib.ExitStack, logs: Path) -> list[System]:
    return [started.enter_context(plain(UVICORN, "benchmarks.serving.peer_uvicorn", log=logs / "uvicorn.log"))]


def _litserve(started: contextlib.ExitStack, logs: Path, *, name: str, tail: str, workers: int = 1) -> list[System]:
    folder = litserve_path()
    if folder is None:
        print("LitServe cannot be installed here; it is left out", file=sys.stderr)
        return []
    module = "benchmarks.serving.peer_litserve"
    log = logs / "litserve.log"
    environment = {TAIL: tail, "LITSERVE_WORKERS": str(workers)}
    peer = plain(name, module, log=log, path="/predict", pythonpath=folder, environment=environment)
    return [started.enter_context(peer)]


GROUPS: dict[str, Callable[[contextlib.ExitStack, Path], list[System]]] = {
    "ours-1": partial(_ours, name=ONE, replicas=1),
    "ours-2": partial(_ours, name=TWO, replicas=2),
    "ray": partial(_ray_batch, tail=JUST_IN_TIME),
    "ray-tuned": partial(_ray_batch, tail=OURS),
    "litserve": partial(_litserve, name=LIT, tail=JUST_IN_TIME),
    "litserve-our-tail": partial(_litserve, name=LIT_OUR_TAIL, tail=OURS),
    "litserve-2": partial(_litserve, name=LIT_TWO, tail=JUST_IN_TIME, workers=2),
    "uvicorn": _uvicorn,
}


def _figures(
    table: dict[tuple[str, int], Series], limits: dict[int, list[float]], limits_two: list[float], best: int
) -> dict[str, float]:
    limit = statistics.median(limits[best])

    def rate(name: str) -> float:
        return max(statistics.median(table[name, concurrency].rates_per_s) for concurrency in CONCURRENCIES)

    def share(name: str) -> float:
        return max(statistics.median(table[name, concurrency].over_limit) for concurrency in CONCURRENCIES[1:])

    measured = {name for name, _ in table}
    figures = {
        "limit_per_s": limit,
        "limit_batch": best,
        "limit_two_processes_per_s": statistics.median(limits_two),
        "alone_in_process_ms": 1000 / statistics.median(limits[1]),
        "failed_requests": float(sum(series.failed.total() for series in table.values())),
        "stolen_by_the_host_median": statistics.median(share for series in table.values() for share in series.stolen),
        "stolen_by_the_host_most": max(share for series in table.values() for share in series.stolen),
    }
    if ONE in measured:
        figures |= {
            "one_replica_per_s": rate(ONE),
            "one_replica_over_limit": share(ONE),
            "alone_p50_over_in_process_ms": statistics.median(table[ONE, 1].over_alone_ms),
        }
    if TWO in measured:
        figures |= {
            "two_replicas_per_s": rate(TWO),
            "two_replicas_over_one_process_limit": share(TWO),
            "two_replicas_over_two_process_limit": share(TWO) * limit / statistics.median(limits_two),
        }
    compared = {
        RAY: (ONE, "one_replica_over_ray_batch"),
        LIT: (ONE, "one_replica_over_litserve"),
        RAY_TUNED: (ONE, "one_replica_over_ray_batch_tuned_with_our_tail"),
        LIT_OUR_TAIL: (ONE, "one_replica_over_litserve_with_our_tail"),
        LIT_TWO: (TWO, "two_replicas_over_litserve_with_two_workers"),
    }
    for name, (ours, key) in compared.items():
        if {name, ours} <= measured:
            figures[key] = share(ours) / share(name) if share(name) else float("nan")
    return figures


def _print_table(
    table: dict[tuple[str, int], Series], limits: dict[int, list[float]], limits_two: list[float], best: int
) -> None:
    columns = ("system", "concurrency", "requests/s (spread)", "of the limit", "p50 ms", "p99 ms", "CPU ms/request")
    print(f"| {' | '.join(columns)} | mean batch |\n{'|---' * (len(columns) + 1)}|")
    for size, rates in limits.items():
        cpu_ms = 1000 / statistics.median(rates)
        print(f"| in process, 1 thread | batch {size} | {_spread(rates)} | | | | {cpu_ms:.2f} | |")
    print(f"| two such processes | batch {best} | {_spread(limits_two)} | | | | | |")
    for (name, concurrency), series in sorted(table.items(), key=lambda each: (each[0][1], each[0][0])):
        batch = statistics.median(series.batch)
        cells = (
            name,
            str(concurrency),
            _spread(series.rates_per_s),
            f"{statistics.median(series.over_limit):.2f}" if series.over_limit else "",
            f"{statistics.median(series.p50_ms):.1f}",
            f"{statistics.median(series.p99_ms):.1f}",
            f"{statistics.median(series.cpu_ms):.2f}",
            "" if np.isnan(batch) else f"{batch:.1f}",
        )
        print(f"| {' | '.join(cells)} |")


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f}-{max(values):.0f})"


if __name__ == "__main__":
    sys.exit(main())
