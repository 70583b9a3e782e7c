"""What happens above the capacity: twice the requests that can be answered, and a thousand bodies that never end.

One replica of the common tail, with the largest batch of 16, 4 or 1 that takes at most a third of the deadline in this
process: where one takes all of it, nobody can be answered in time. The capacity is measured in the same run, in the
closed loop; then come Poisson arrivals at twice that rate, each with a deadline; then the capacity is measured again,
and goodput is judged by the mean of the two, so that a machine that became slower is not taken for a server that did;
and then 1,000 connections send half a body each while honest requests go on. Figures are of the generator's own clock,
from the moment at which each request was meant to be sent.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving.half_sent import allow_open_files, half_sent
from benchmarks.serving.http_load import closed_loop, request_bytes
from benchmarks.serving.open_loop import OpenLoopProcess, OpenLoopResult
from benchmarks.serving.process_stats import ProcessUse
from benchmarks.serving.stolen_time import MOST_STOLEN, Undisturbed
from benchmarks.serving.systems import processes_of, ray_serve
from benchmarks.serving.tail import PRECISION, Tail, bodies, serve_config
from edge_sim.server_process import HOST, ServerProcess
from split_inference.figures import Bound, report
from split_inference.wire import FRAME_MEDIA_TYPE

DEADLINE_MS = 250
HALF_SENT = 1000
# Of the capacity: what an honest fleet asks for while somebody else misbehaves.
HONEST_SHARE = 0.6
BOUNDS: dict[str, Bound] = {
    "stolen_by_the_host": ("<=", MOST_STOLEN),
    "overload_goodput_over_capacity": (">=", 0.9),
    # Else a server that overload has damaged would be judged by what is left of it.
    "capacity_after_over_before": (">=", 0.85),
    "overload_rejects_p99_ms": ("<", 50.0),
    "overload_accepted_p99_ms": ("<=", DEADLINE_MS),
    "overload_rss_growth_share": ("<", 0.03),
    "overload_other_failures": ("<=", 0.0),
    "half_sent_honest_share_after_3_s": (">=", 0.9),
}


def main() -> int:
    """Measure and hold the bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload")
    options = parser.parse_args()
    logs = Path("runs/bench-overload")
    logs.mkdir(parents=True, exist_ok=True)
    frames = bodies()
    most, batch_s = largest_batch(frames)
    config = serve_config({"one": 1}, replica_cpus=1, max_batch_samples=most)
    with ray_serve("ours", config, log=logs / "ours.log") as server:
        server.wait_until_ready("/v1/models/one", timeout_s=300)
        address, path = (HOST, server.port), "/v1/models/one"
        requests = [request_bytes(HOST, path, body, media_type=FRAME_MEDIA_TYPE) for body in frames]
        closed_loop(address, requests, concurrency=32, seconds=2)
        undisturbed = Undisturbed(tries=3)
        measured = undisturbed.measure(
            "overload", lambda: overload_of(server, address, path, frames, requests, seconds=options.seconds)
        )
        honest_rate = HONEST_SHARE * measured.capacity_per_s
        honest = undisturbed.measure(
            "half-sent", lambda: honest_beside_half_sent(address, path, frames, requests, rate_per_s=honest_rate)
        )
    print(f"the tail: {PRECISION}, compiled")
    _print_seconds("overload", measured.overload)
    _print_seconds("half-sent", honest)
    figures = {
        "max_batch_samples": float(most),
        "batch_in_process_ms": 1000 * batch_s,
        "stolen_by_the_host": undisturbed.most_stolen,
        **_overload_figures(measured),
        **_half_sent_figures(honest, honest_rate),
    }
    return report("bench-overload", figures, BOUNDS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Overloaded:
    """A minute above the capacity, and the capacity before and after it."""

    before_per_s: float
    overload: OpenLoopResult
    growth_share: float
    """Of the replica's memory between the tenth second and the last but one."""
    after_per_s: float

    @property
    def capacity_per_s(self) -> float:
        """The mean of before and after."""
        return (self.before_per_s + self.after_per_s) / 2


def overload_of(
    server: ServerProcess,
    address: tuple[str, int],
    path: str,
    frames: list[bytes],
    requests: list[bytes],
    *,
    seconds: float,
) -> Overloaded:
    """Measure all of it, one after the other."""

    def capacity_per_s() -> float:
        return closed_loop(address, requests, concurrency=32, seconds=10).between(2, 10).rate_per_s()

    print("measuring the capacity ...", file=sys.stderr)
    before = capacity_per_s()
    print(f"{before:.0f} requests/s; now twice as many for {seconds:g} s ...", file=sys.stderr)
    load = OpenLoopProcess(
        address, path, frames, rate_per_s=2 * before, seconds=seconds, deadline_ms=DEADLINE_MS, seed=1
    )
    growth = _growth(server, seconds=seconds)
    overload = load.result()
    print("the capacity again ...", file=sys.stderr)
    return Overloaded(before_per_s=before, overload=overload, growth_share=growth, after_per_s=capacity_per_s())


def honest_beside_half_sent(
    address: tuple[str, int], path: str, frames: list[bytes], requests: list[bytes], *, rate_per_s: float
) -> OpenLoopResult:
    """Fifteen seconds of honest requests, and a thousand half bodies after the first few of them."""
    print("half-sent bodies ...", file=sys.stderr)
    load = OpenLoopProcess(address, path, frames, rate_per_s=rate_per_s, seconds=15, deadline_ms=1000, seed=2)
    # The generator needs a second or two to begin.
    time.sleep(6)
    allow_open_files(HALF_SENT + 200)
    with half_sent(address, requests, connections=HALF_SENT) as held:
        honest = load.result()
        print(held.summary())
    return honest


def largest_batch(frames: list[bytes]) -> tuple[int, float]:
    """Samples, and seconds in this process: the largest of 16, 4 and 1 within a third of the deadline."""
    tail = Tail()
    for size in (16, 4, 1):
        times_s = []
        for _ in range(7):
            began_s = time.perf_counter()
            tail.logits(frames[:size])
            times_s.append(time.perf_counter() - began_s)
        batch_s = statistics.median(times_s)
        if batch_s <= DEADLINE_MS / 3000:
            break
    return size, batch_s


def _growth(server: ServerProcess, *, seconds: float) -> float:
    time.sleep(min(10.0, seconds / 3))
    before = _replica_bytes(processes_of(server))
    time.sleep(max(0.0, seconds - min(10.0, seconds / 3) - 1))
    return _replica_bytes(processes_of(server)) / before - 1


def _replica_bytes(uses: dict[int, ProcessUse]) -> int:
    return sum(use.resident_bytes for use in uses.values() if "ServeReplica" in use.name)


def _overload_figures(measured: Overloaded) -> dict[str, float]:
    overload = measured.overload
    total = overload.total
    return {
        "capacity_before_per_s": measured.before_per_s,
        "capacity_after_per_s": measured.after_per_s,
        "capacity_after_over_before": measured.after_per_s / measured.before_per_s,
        "capacity_per_s": measured.capacity_per_s,
        "overload_rate_per_s": overload.rate_per_s,
        "overload_goodput_per_s": overload.goodput_per_s,
        "overload_goodput_over_capacity": overload.goodput_per_s / measured.capacity_per_s,
        "overload_mean_batch": overload.mean_batch,
        "overload_rejected_share": total.rejected / max(1, total.meant),
        "overload_rejects_p99_ms": overload.rejected_p99_ms,
        "overload_accepted_p50_ms": overload.ok_p50_ms,
        "overload_accepted_p99_ms": overload.ok_p99_ms,
        "overload_other_failures": float(total.failed),
        "overload_generator_late_share": overload.late / max(1, total.meant),
        "overload_rss_growth_share": measured.growth_share,
    }


def _half_sent_figures(honest: OpenLoopResult, honest_rate: float) -> dict[str, float]:
    # The worst run of seconds that begins three seconds after the first one that suffered.
    shares = [second.ok / max(1, second.meant) for second in honest.per_second]
    suffered = next((index for index, share in enumerate(shares) if share < 0.9), None)
    after = shares[suffered + 3 :] if suffered is not None else shares
    return {
        "half_sent_honest_rate_per_s": honest_rate,
        "half_sent_worst_second_share": min(shares),
        "half_sent_honest_share_after_3_s": min(after) if after else float("nan"),
    }


def _print_seconds(name: str, result: OpenLoopResult) -> None:
    print(f"{name}: answered in time / meant, by second")
    print(" ".join(f"{second.ok}/{second.meant}" for second in result.per_second))


if __name__ == "__main__":
    sys.exit(main())
