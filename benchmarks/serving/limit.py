"""The in-process limit: decode, dequantise and tail of the same bodies, in a loop, with nothing else.

`python -m benchmarks.serving.limit` loads, says "ready", and then answers each line "SIZE SECONDS" on its standard
input with one line of JSON; so that several such processes can be measured together, and between other measurements.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

SIZES = (1, 2, 4, 8, 16, 32)

ResultT = TypeVar("ResultT")


class LimitProcess:
    """One such process, asked from outside."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.serving.limit"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.read()

    def ask(self, size: int, seconds: float) -> None:
        """Begin to measure."""
        assert self._process.stdin
        self._process.stdin.write(f"{size} {seconds}\n")
        self._process.stdin.flush()

    def read(self) -> dict[str, float]:
        """Wait for the answer."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process of the in-process limit ended")
        found: dict[str, float] = json.loads(line)
        return found

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=20)


class Yardstick:
    """The limit of one process right before and right after something else, which a machine's moods move as well."""

    def __init__(self, process: LimitProcess, *, seconds: float) -> None:
        self._process = process
        self._seconds = seconds

    def around(self, measured: Callable[[], ResultT], *, size: int) -> tuple[ResultT, float]:
        """What was measured, and the seconds that a batch took in this process: the mean of both medians."""
        before_s = self._batch_s(size)
        result = measured()
        return result, (before_s + self._batch_s(size)) / 2

    def _batch_s(self, size: int) -> float:
        self._process.ask(size, self._seconds)
        return self._process.read()["batch_s"]


def measure_together(processes: Sequence[LimitProcess], *, size: int, seconds: float) -> float:
    """Samples a second of all of them at the same time."""
    for process in processes:
        process.ask(size, seconds)
    return sum(process.read()["rate_per_s"] for process in processes)


def main() -> int:
    """Answer until standard input ends."""
    from benchmarks.serving.tail import Tail, bodies

    frames = bodies()
    # Buckets of all sizes, so that each size runs the library made for it.
    tail = Tail(buckets=(1, 2, 4, 8, 16, 32))
    print(json.dumps({"ready": 1}), flush=True)
    for line in sys.stdin:
        size, seconds = int(line.split()[0]), float(line.split()[1])
        batch = [frames[index % len(frames)] for index in range(size)]
        tail.logits(batch)
        done = 0
        times_s = []
        began_s = time.perf_counter()
        while (now_s := time.perf_counter()) - began_s < seconds:
            tail.logits(batch)
            times_s.append(time.perf_counter() - now_s)
            done += size
        rate = done / (time.perf_counter() - began_s)
        print(json.dumps({"rate_per_s": rate, "batch_s": sorted(times_s)[len(times_s) // 2]}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
