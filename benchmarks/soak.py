"""Mixed load for a long time: memory of every process must not grow.

The embedded model with two replicas: frames, JPEGs for the whole model, and a few requests that are wrong, at a steady
Poisson rate. Memory is looked at every few seconds; the first sixth of the time (five of thirty minutes) is for warming
up, and growth is the median of the last minute over the median of the first minute after that, process by process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

from benchmarks.chaos import PATH, config_of, frames_and_answers
from benchmarks.serving.http_load import LoadResult, open_loop, poisson_arrivals_s, request_bytes
from benchmarks.serving.systems import processes_of, ray_serve
from edge_sim.server_process import HOST
from split_inference.figures import Bound, report
from split_inference.inputs import read_inputs
from split_inference.model_catalog import EMBEDDED_FOLDER, EMBEDDED_URI
from split_inference.wire import FRAME_MEDIA_TYPE

Memory = dict[str, list[tuple[float, int]]]
"""By process: seconds since the beginning, and bytes."""
RATE_PER_S = 120.0
LOOK_EVERY_S = 5.0
# Smaller processes grow by as much as one page of a log buffer.
SMALL_BYTES = 20_000_000
BOUNDS: dict[str, Bound] = {
    "largest_growth_share": ("<", 0.05),
    "unexpected_statuses": ("==", 0),
    "generator_unsent": ("==", 0),
}


def main() -> int:
    """Load, look, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    options = parser.parse_args()
    seconds = 60 * options.minutes
    logs = Path("runs/soak")
    logs.mkdir(parents=True, exist_ok=True)
    memory: Memory = defaultdict(list)
    own: Memory = defaultdict(list)
    with ray_serve("soak", config_of(EMBEDDED_URI), log=logs / "serve.log") as server:
        server.wait_until_ready(PATH, timeout_s=180)
        results: list[LoadResult] = []
        requests = _requests()

        def load() -> None:
            # In pieces, so that the record of half an hour does not fill memory.
            began_s = time.monotonic()
            piece = 0
            while (left_s := seconds - (time.monotonic() - began_s)) > 1:
                arrivals_s = poisson_arrivals_s(rate_per_s=RATE_PER_S, seconds=min(30.0, left_s), seed=piece)
                result = open_loop((HOST, server.port), requests, arrivals_s=arrivals_s, connections=64)
                result.outcomes[:] = [each for each in result.outcomes if each.status != 200][:1000]
                results.append(result)
                piece += 1

        thread = threading.Thread(target=load)
        thread.start()
        began_s = time.monotonic()
        while thread.is_alive():
            now_s = time.monotonic() - began_s
            for pid, use in processes_of(server).items():
                name = f"{pid} {use.name[:60]}"
                memory[name].append((now_s, use.resident_bytes))
                own[name].append((now_s, use.own_bytes))
            print(f"\r{now_s / 60:.1f} of {options.minutes:g} minutes", end="", file=sys.stderr)
            time.sleep(LOOK_EVERY_S)
        thread.join()
    print(file=sys.stderr)
    growth = _growth(memory, seconds)
    for name, share in sorted(growth.items(), key=lambda each: -each[1])[:8]:
        ends = [_ends(series[name], seconds) for series in (memory, own)]
        (first, last), (own_first, own_last) = [pair or (0, 0) for pair in ends]
        print(
            f"{100 * share:+6.2f} %  {last / 1e6:7.1f} MB, {(last - first) / 1e6:+.1f} MB, "
            f"of them {(own_last - own_first) / 1e6:+.1f} MB neither shared nor a file's  {name}"
        )
    statuses: dict[int, int] = defaultdict(int)
    for result in results:
        for status, count in result.statuses().items():
            statuses[status] += count
    print(f"answers other than 200: {dict(statuses)} (400 and 409 were asked for)")
    figures = {
        "minutes": options.minutes,
        "processes": len(growth),
        "largest_growth_share": max(growth.values(), default=float("nan")),
        "unexpected_statuses": sum(count for status, count in statuses.items() if status not in (400, 409)),
        "generator_unsent": sum(result.unsent for result in results),
    }
    return report("soak", figures, BOUNDS)


def _requests() -> list[bytes]:
    frames, _ = frames_and_answers(EMBEDDED_URI)
    made = [request_bytes(HOST, PATH, frame, media_type=FRAME_MEDIA_TYPE) for frame in frames]
    for each in read_inputs(EMBEDDED_FOLDER / "samples")[:8]:
        made.append(request_bytes(HOST, PATH, each.data, media_type=each.media_type))
    # Every thirtieth is wrong: a broken checksum, and another model's digest.
    broken = bytearray(frames[0])
    broken[-1] ^= 1
    made.append(request_bytes(HOST, PATH, bytes(broken), media_type=FRAME_MEDIA_TYPE))
    wrong = [("x-model-digest", "ab" * 32)]
    made.append(request_bytes(HOST, PATH, frames[0], media_type=FRAME_MEDIA_TYPE, headers=wrong))
    return made


def _growth(memory: Memory, seconds: float) -> dict[str, float]:
    pairs = {name: _ends(series, seconds) for name, series in memory.items()}
    return {name: pair[1] / pair[0] - 1 for name, pair in pairs.items() if pair and pair[0] > SMALL_BYTES}


def _ends(series: list[tuple[float, int]], seconds: float) -> tuple[float, float] | None:
    """Medians of the first minute after warming up and of the last one; None for what was not there in both."""
    settled_s = seconds / 6
    span_s = min(60.0, seconds / 6)
    first = [size for at_s, size in series if settled_s <= at_s < settled_s + span_s]
    last = [size for at_s, size in series if at_s >= seconds - span_s]
    return (statistics.median(first), statistics.median(last)) if first and last else None


if __name__ == "__main__":
    sys.exit(main())
