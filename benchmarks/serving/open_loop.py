"""Open-loop load with a deadline: what was answered in time, late, refused or lost, second by second.

`http_load.open_loop` sends; here is what its record means. Latency and seconds count from the moment at which a request
was meant to be sent. Runs in a process of its own too, so that a bench can pin it to a core and go on with something
else, such as killing a replica. Knows frames only to write the deadline into them. No torch.

    python -m benchmarks.serving.open_loop URL FRAME_FILE... --rate 300 --seconds 10 --deadline-ms 100 --json
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.http_load import LoadResult, Outcome, open_loop, percentile, poisson_arrivals_s, request_bytes
from split_inference.wire import FRAME_MEDIA_TYPE, decode_frame, encode_frame

# A request that left this much after its time says that the generator, not the server, was too slow; or that every
# connection was busy.
LATE_START_S = 0.005
REJECTED = frozenset({429, 503})


@dataclass(frozen=True, kw_only=True, slots=True)
class Second:
    """Requests that were meant to be sent within one second of the run; each is counted once."""

    ok: int = 0
    """Answered within the deadline."""
    ok_late: int = 0
    """Answered, but after it."""
    rejected: int = 0
    """429 or 503."""
    failed: int = 0
    """Any other status, a broken connection, no answer, or never sent."""

    @property
    def meant(self) -> int:
        """All of them."""
        return self.ok + self.ok_late + self.rejected + self.failed


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenLoopResult:
    """What became of the requests of one run."""

    rate_per_s: float
    """That was asked for."""
    seconds: float
    deadline_ms: float
    per_second: tuple[Second, ...]
    statuses: dict[int, int]
    """Requests by status; 0: the connection broke, or no answer came."""
    unsent: int
    late: int
    """Sent more than LATE_START_S after their time; where these are many, the numbers are the generator's."""
    ok_p50_ms: float
    """Of all answers, in time or late; NaN where there are none, as in the next four."""
    ok_p99_ms: float
    rejected_p50_ms: float
    rejected_p99_ms: float
    mean_batch: float
    """Samples of the batches that answers say they were in."""
    own_cpu_s: float

    @property
    def total(self) -> Second:
        """All seconds together."""
        names = [each.name for each in dataclasses.fields(Second)]
        return Second(**{name: sum(getattr(second, name) for second in self.per_second) for name in names})

    @property
    def goodput_per_s(self) -> float:
        """Answers within the deadline, a second."""
        return self.total.ok / self.seconds

    @property
    def sound(self) -> bool:
        """Whether the generator kept up: at most one request in a hundred left late or not at all."""
        return self.late + self.unsent <= 0.01 * max(1, self.total.meant)

    def goodput_between(self, first_s: int, last_s: int) -> float:
        """Answers within the deadline, a second, of the whole seconds first_s <= t < last_s."""
        chosen = self.per_second[first_s:last_s]
        return sum(second.ok for second in chosen) / len(chosen) if chosen else float("nan")

    def to_json(self) -> dict[str, Any]:
        """As plain values, NaN as null; `from_json` reads it."""
        plain = dataclasses.asdict(self)
        plain["statuses"] = {str(status): count for status, count in self.statuses.items()}
        return {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in plain.items()}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> OpenLoopResult:
        """The result that `to_json` made."""
        values: dict[str, Any] = {name: float("nan") if value is None else value for name, value in plain.items()}
        values["statuses"] = {int(status): count for status, count in plain["statuses"].items()}
        values["per_second"] = tuple(Second(**second) for second in plain["per_second"])
        return cls(**values)


def with_deadline(frame: bytes, deadline_ms: int) -> bytes:
    """The same frame with this budget. Raises MalformedFrameError where the bytes are no frame."""
    return encode_frame(dataclasses.replace(decode_frame(frame), deadline_budget_ms=deadline_ms))


def run_open_loop(
    address: tuple[str, int],
    path: str,
    frames: Sequence[bytes],
    *,
    rate_per_s: float,
    seconds: float,
    deadline_ms: int,
    seed: int,
    connections: int = 256,
    headers: Sequence[tuple[str, str]] = (),
) -> OpenLoopResult:
    """Send the frames at Poisson times with this budget in each, and say what became of them."""
    requests = [
        request_bytes(address[0], path, with_deadline(frame, deadline_ms), media_type=FRAME_MEDIA_TYPE, headers=headers)
        for frame in frames
    ]
    arrivals_s = poisson_arrivals_s(rate_per_s=rate_per_s, seconds=seconds, seed=seed)
    result = open_loop(address, requests, arrivals_s=arrivals_s, connections=connections)
    return judge(result, arrivals_s, rate_per_s=rate_per_s, seconds=seconds, deadline_ms=deadline_ms)


def judge(
    result: LoadResult, arrivals_s: NDArray[np.float64], *, rate_per_s: float, seconds: float, deadline_ms: float
) -> OpenLoopResult:
    """Sort every request that was meant to be sent into one of the four kinds, by the second of its arrival."""
    kinds = [collections.Counter[str]() for _ in range(int(np.ceil(seconds)))]
    for each in result.outcomes:
        kinds[int(each.intended_s)][_kind(each, deadline_ms)] += 1
    meant = collections.Counter(int(arrival_s) for arrival_s in arrivals_s)
    for second, counts in enumerate(kinds):
        # What was never sent left no outcome.
        counts["failed"] += meant[second] - counts.total()
    ok_ms = 1000 * result.latencies_s()
    rejected_ms = np.array([1000 * each.latency_s for each in result.outcomes if each.status in REJECTED])
    batches = [each.batch_samples for each in result.outcomes if each.batch_samples]
    return OpenLoopResult(
        rate_per_s=rate_per_s,
        seconds=seconds,
        deadline_ms=deadline_ms,
        per_second=tuple(Second(**counts) for counts in kinds),
        statuses=result.statuses(),
        unsent=result.unsent,
        late=sum(each.sent_s - each.intended_s > LATE_START_S for each in result.outcomes),
        ok_p50_ms=percentile(ok_ms, 0.5),
        ok_p99_ms=percentile(ok_ms, 0.99),
        rejected_p50_ms=percentile(rejected_ms, 0.5),
        rejected_p99_ms=percentile(rejected_ms, 0.99),
        mean_batch=float(np.mean(batches)) if batches else float("nan"),
        own_cpu_s=result.own_cpu_s,
    )


def _kind(outcome: Outcome, deadline_ms: float) -> str:
    if outcome.status == 200:
        return "ok" if 1000 * outcome.latency_s <= deadline_ms else "ok_late"
    return "rejected" if outcome.status in REJECTED else "failed"


class OpenLoopProcess:
    """The same run in a process of its own: it begins with the object, and `result` waits for its end."""

    def __init__(
        self,
        address: tuple[str, int],
        path: str,
        frames: Sequence[bytes],
        *,
        rate_per_s: float,
        seconds: float,
        deadline_ms: int,
        seed: int,
        connections: int = 256,
        cores: Sequence[int] = (),
    ) -> None:
        """`cores` are those that it may run on; by default all."""
        self._folder = tempfile.TemporaryDirectory(prefix="open-loop-")
        files = [Path(self._folder.name) / f"{index}.frame" for index in range(len(frames))]
        for file, frame in zip(files, frames, strict=True):
            file.write_bytes(frame)
        options = {
            "rate": rate_per_s,
            "seconds": seconds,
            "deadline-ms": deadline_ms,
            "seed": seed,
            "connections": connections,
        }
        command = [sys.executable, "-m", "benchmarks.serving.open_loop", f"http://{address[0]}:{address[1]}{path}"]
        command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
        if cores:
            command += ["--cores", ",".join(map(str, cores))]
        self._process = subprocess.Popen([*command, "--json", *map(str, files)], stdout=subprocess.PIPE, text=True)
        self._timeout_s = seconds + 90

    def result(self) -> OpenLoopResult:
        """Wait for the end. Raises RuntimeError where the process failed; it says why on standard error."""
        try:
            output, _ = self._process.communicate(timeout=self._timeout_s)
        finally:
            self.close()
        if self._process.returncode != 0:
            raise RuntimeError(f"the open-loop process ended with {self._process.returncode}")
        return OpenLoopResult.from_json(json.loads(output))

    def close(self) -> None:
        """End it where it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
        self._folder.cleanup()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and print the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.open_loop", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("url", help="http://HOST:PORT/PATH of the model")
    parser.add_argument("frames", type=Path, nargs="+", help="files, each with the bytes of one frame")
    parser.add_argument("--rate", type=float, required=True, help="requests a second, on average")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--deadline-ms", type=int, default=100, help="of each request; its frame says so")
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals")
    parser.add_argument("--connections", type=int, default=256, help="at most so many at a time")
    parser.add_argument("--cores", help="cores to run on, as in 1 or 0,1")
    parser.add_argument("--json", action="store_true", help="everything as JSON, not a summary")
    options = parser.parse_args(arguments)
    parts = urlsplit(options.url)
    if parts.scheme != "http" or not parts.hostname:
        parser.error(f"the URL has to be http://HOST:PORT/PATH, got {options.url!r}")
    if options.rate <= 0 or options.seconds <= 0 or options.connections < 1:
        parser.error("rate, seconds and connections have to be positive")
    if options.cores:
        os.sched_setaffinity(0, {int(core) for core in options.cores.split(",")})
    result = run_open_loop(
        (parts.hostname, parts.port or 80),
        parts.path or "/",
        [file.read_bytes() for file in options.frames],
        rate_per_s=options.rate,
        seconds=options.seconds,
        deadline_ms=options.deadline_ms,
        seed=options.seed,
        connections=options.connections,
    )
    if options.json:
        print(json.dumps(result.to_json()))
        return 0
    total = result.total
    print(
        f"{total.meant} requests in {result.seconds:g} s: {total.ok} within {result.deadline_ms:g} ms "
        f"({result.goodput_per_s:.1f}/s), {total.ok_late} late, {total.rejected} refused, {total.failed} failed; "
        f"{result.late} left late"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
