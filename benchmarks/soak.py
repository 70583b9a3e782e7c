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
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from benchmarks.chaos import PATH, config_of, frames_and_answers
from benchmarks.serving.http_load import LoadResult, open_loop, poisson_arrivals_s, request_bytes
from benchmarks.serving.process_stats import ProcessUse
from benchmarks.serving.systems import processes_of, ray_serve
from edge_sim.server_process import HOST
from split_inference.figures import Bound, report
from split_inference.inputs import read_inputs
from split_inference.model_catalog import EMBEDDED_FOLDER, EMBEDDED_URI
from split_inference.wire import FRAME_MEDIA_TYPE

Looks = list[tuple[float, ProcessUse]]
"""At one process: seconds since the beginning, and what it used."""
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
    seen: dict[str, Looks] = defaultdict(list)
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
                seen[f"{pid} {use.name[:60]}"].append((now_s, use))
            print(f"\r{now_s / 60:.1f} of {options.minutes:g} minutes", end="", file=sys.stderr)
            time.sleep(LOOK_EVERY_S)
        thread.join()
    print(file=sys.stderr)
    grown = [growth for name, looks in seen.items() if (growth := _growth(name, looks, seconds))]
    for each in sorted(grown, key=lambda each: -each.share)[:8]:
        print(
            f"{100 * each.share:+6.2f} %  {each.last / 1e6:7.1f} MB, {(each.last - each.first) / 1e6:+.1f} MB, "
            f"of them {each.own / 1e6:+.1f} MB neither shared nor a file's  {each.name}"
        )
    statuses: dict[int, int] = defaultdict(int)
    for result in results:
        for status, count in result.statuses().items():
            statuses[status] += count
    print(f"answers other than 200: {dict(statuses)} (400 and 409 were asked for)")
    figures = {
        "minutes": options.minutes,
        "processes": len(grown),
        "largest_growth_share": max((each.share for each in grown), default=float("nan")),
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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Growth:
    """Bytes of one process: medians of the first minute after warming up and of the last one."""

    name: str
    first: float
    last: float
    own: float
    """By which what is neither shared nor a file's grew."""

    @property
    def share(self) -> float:
        return self.last / self.first - 1


def _growth(name: str, looks: Looks, seconds: float) -> _Growth | None:
    """None for a process that is small, or was not there in both minutes."""
    settled_s = seconds / 6
    span_s = min(60.0, seconds / 6)
    first = [use for at_s, use in looks if settled_s <= at_s < settled_s + span_s]
    last = [use for at_s, use in looks if at_s >= seconds - span_s]
    if not first or not last:
        return None
    resident, own = (
        [statistics.median(map(size, uses)) for uses in (first, last)]
        for size in (attrgetter("resident_bytes"), attrgetter("own_bytes"))
    )
    if resident[0] <= SMALL_BYTES:
        return None
    return _Growth(name=name, first=resident[0], last=resident[1], own=own[1] - own[0])


if __name__ == "__main__":
    sys.exit(main())
