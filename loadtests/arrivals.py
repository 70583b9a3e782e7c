"""When requests are meant to start: seeded schedules, and each worker's share of them.

A schedule is the same for every number of workers: each worker draws the whole of it from the same seed and takes every
n-th arrival. So the merged process is the one asked for by construction, Poisson, evenly spaced or recorded, and a run
of four workers sends what a run of one would. Independent Poisson streams of rate/n would merge to a Poisson process
too, but even spacing and recordings would not survive, and results would change with the number of workers. Drawing
what others send costs 0.2 us an arrival. Schedules come in chunks: an hour at 1,000/s takes no more memory than a
second. Knows no clock. Times in seconds from the start of the run.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from loadtests.rate_curve import MAX_DURATION_S, RateCurve
from split_inference.errors import DataError, UsageError

Spacing = Literal["poisson", "even"]
CHUNK = 4096
# A recording is kept in memory, 8 bytes an arrival.
MAX_RECORDED = 20_000_000
# A week of 1,650/s. Each process draws all of them, what others send included (0.2 us each); a plan beyond is a slip of
# a digit rather than a wish.
MAX_ARRIVALS = 1_000_000_000
# Counting draws the whole schedule: this many take two seconds. Of more the expected number is right to within 0.1 %
# (three standard deviations of a Poisson variable).
COUNTED_EXACTLY = 10_000_000
_COLUMNS = ("intended_s", "arrival_s", "at_s", "time_s", "timestamp")


class Arrivals(Protocol):
    """A schedule: the intended starts of a whole run, in order, over all workers."""

    kind: str
    """As people call it: constant, poisson, ramp, ..."""
    duration_s: float
    mean_per_s: float
    """Over the duration."""

    def chunks(self) -> Iterator[NDArray[np.float64]]:
        """All intended starts, in ascending order, in pieces; the same ones at each call."""

    def planned(self) -> int:
        """Number of arrivals; of more than `COUNTED_EXACTLY` random ones the expected number."""

    def number_after(self, start_s: float) -> tuple[int, int]:
        """At least and at most so many are meant to start at `start_s` or later; one number for a schedule of at most
        `COUNTED_EXACTLY`."""


class RatedArrivals:
    """Arrivals that follow a rate: as a Poisson process, or evenly spaced.

    Poisson: independent devices, each of which asks seldom. Even: one arrival whenever the expected number of requests
    passes k + 1/2; at a constant rate that is a metronome.
    """

    def __init__(self, kind: str, curve: RateCurve, *, spacing: Spacing = "poisson", seed: int = 0) -> None:
        if seed < 0:
            raise UsageError(f"a seed is not negative, got {seed}")
        _check_number(curve.total)
        self.kind = kind
        self.curve = curve
        self.duration_s = curve.duration_s
        self.mean_per_s = curve.mean_per_s
        self._spacing = spacing
        self._seed = seed

    def planned(self) -> int:
        """See `Arrivals`."""
        if self._spacing == "even":
            # One for each k with k + 1/2 below the total.
            return math.ceil(self.curve.total - 0.5)
        return round(self.curve.total) if self.curve.total > COUNTED_EXACTLY else count_of(self)

    def number_after(self, start_s: float) -> tuple[int, int]:
        """See `Arrivals`."""
        if self.curve.total <= COUNTED_EXACTLY:
            return 2 * (count_of(self, after_s=start_s),)
        before = float(self.curve.expected(np.array([min(start_s, self.duration_s)]))[0])
        expected = self.curve.total - before
        # Five standard deviations of a Poisson variable, and what rounding does to an evenly spaced one.
        spread = 5 * math.sqrt(expected) + 2
        return max(0, math.floor(expected - spread)), math.ceil(expected + spread)

    def chunks(self) -> Iterator[NDArray[np.float64]]:
        """See `Arrivals`."""
        rng = np.random.default_rng([self._seed, 0])
        reached = -0.5 if self._spacing == "even" else 0.0
        while True:
            gaps = np.ones(CHUNK) if self._spacing == "even" else rng.standard_exponential(CHUNK)
            expected = reached + np.cumsum(gaps)
            reached = float(expected[-1])
            inside = expected[expected < self.curve.total]
            if len(inside):
                # Rounding must not turn two arrivals around, or move one behind the end.
                yield self.curve.when(inside)
            if len(inside) < CHUNK:
                return


class RecordedArrivals:
    """Arrivals at recorded times, counted from the first; `speed` 2 plays them in half the time."""

    def __init__(self, times_s: NDArray[np.float64], *, speed: float = 1.0, repeat: int = 1) -> None:
        if not len(times_s):
            raise UsageError("a recording without arrivals")
        if not (speed > 0 and math.isfinite(speed)) or not 1 <= repeat <= 1_000_000:
            raise UsageError(f"speed is above 0 and repeat 1..1,000,000, got {speed:g} and {repeat}")
        self.kind = "replay"
        times_s = np.sort(times_s)
        with np.errstate(over="ignore"):
            # What overflows lasts too long.
            self._times_s = (times_s - times_s[0]) / speed
        # The end of the recording is as far behind its last arrival as arrivals are apart on average.
        last_s = float(self._times_s[-1])
        self._period_s = last_s + (last_s / (len(times_s) - 1) if len(times_s) > 1 and last_s > 0 else 1.0)
        self._repeat = repeat
        self.duration_s = self._period_s * repeat
        if not self.duration_s <= MAX_DURATION_S:
            raise UsageError(
                f"a run lasts at most {MAX_DURATION_S:.0f} s; this recording would be played for "
                f"{self.duration_s:.6g} s: raise --speed, lower --repeat, or replay a part of it"
            )
        _check_number(len(times_s) * repeat)
        self.mean_per_s = len(times_s) / self._period_s

    def planned(self) -> int:
        """See `Arrivals`."""
        return len(self._times_s) * self._repeat

    def number_after(self, start_s: float) -> tuple[int, int]:
        """See `Arrivals`; always exact."""
        return 2 * (count_of(self, after_s=start_s),)

    def chunks(self) -> Iterator[NDArray[np.float64]]:
        """See `Arrivals`."""
        for number in range(self._repeat):
            for begin in range(0, len(self._times_s), CHUNK):
                yield self._times_s[begin : begin + CHUNK] + number * self._period_s


def count_of(arrivals: Arrivals, *, after_s: float = 0.0) -> int:
    """Arrivals of the schedule that are meant to start at `after_s` or later."""
    return sum(int(np.count_nonzero(chunk >= after_s)) for chunk in arrivals.chunks())


def share_of(arrivals: Arrivals, *, worker: int, workers: int) -> Iterator[tuple[int, float]]:
    """(Number within the whole schedule, intended start) of one worker's arrivals; worker 0 of 1 has them all."""
    if not 0 <= worker < workers:
        raise ValueError(f"worker {worker} of {workers}")
    first = 0
    for chunk in arrivals.chunks():
        skip = (worker - first) % workers
        for number in range(skip, len(chunk), workers):
            yield first + number, float(chunk[number])
        first += len(chunk)


def read_recording(path: Path, *, column: str = "") -> NDArray[np.float64]:
    """Arrival times in seconds from a file; DataError with file and line for what is none.

    A number on each line; or CSV with a header and a column named like one of `intended_s`, `arrival_s`, `at_s`,
    `time_s`, `timestamp` (or as `column` says); or JSON lines with such a key, as a fleet's requests.jsonl has. JSON
    lines with `attempts` of 0 are left out: what a device answered, gave up or dropped by itself was sent to nobody.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            first = file.readline()
            file.seek(0)
            if not first:
                values: Iterator[tuple[int, str]] = iter(())
            elif first.lstrip().startswith("{"):
                values = _json_times(path, file, column)
            elif _is_number(first.strip().split(",")[0]) and not column:
                values = enumerate((line.split(",")[0] for line in file), start=1)
            else:
                values = _csv_times(path, file, column)
            times_s = [_time_s(path, number, text) for number, text in islice(values, MAX_RECORDED + 1) if text.strip()]
    except OSError as error:
        raise DataError(f"cannot read the recording {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text; a recording has a time in seconds on each line, or is CSV") from None
    if not times_s:
        raise DataError(f"{path} has no arrivals; a recording has a time in seconds on each line, or is CSV")
    if len(times_s) > MAX_RECORDED:
        raise DataError(f"{path} has more than {MAX_RECORDED} arrivals; replay a part of it")
    return np.array(times_s)


def _csv_times(path: Path, file: Iterator[str], column: str) -> Iterator[tuple[int, str]]:
    rows = csv.reader(file)
    names = [name.strip() for name in next(rows, [])]
    wanted = [column] if column else list(_COLUMNS)
    found = next((name for name in wanted if name in names), None)
    if found is None:
        raise DataError(f"{path}:1: no column {' or '.join(wanted)}; there are {', '.join(names)[:200]}")
    position = names.index(found)
    for row in rows:
        if len(row) > position:
            yield rows.line_num, row[position]
        elif row:
            raise DataError(f"{path}:{rows.line_num}: {len(row)} columns; {found} is number {position + 1}")


def _json_times(path: Path, file: Iterator[str], column: str) -> Iterator[tuple[int, str]]:
    wanted = [column] if column else list(_COLUMNS)
    unsent = sent = 0
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            content = None
        found = next((name for name in wanted if name in content), None) if isinstance(content, dict) else None
        if found is None:
            raise DataError(f"{path}:{number}: no JSON object with {' or '.join(wanted)}")
        if content.get("attempts") == 0:
            unsent += 1
            continue
        sent += 1
        yield number, str(content[found])
    if unsent and not sent:
        raise DataError(f"{path}: none of its {unsent} requests was sent to a server (attempts is 0)")


def _check_number(arrivals: float) -> None:
    if arrivals > MAX_ARRIVALS:
        raise UsageError(
            f"a run has at most {MAX_ARRIVALS:,} arrivals, and this one {arrivals:,.0f}: lower the rate or the "
            "duration, or run one after the other"
        )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _time_s(path: Path, line: int, text: str) -> float:
    if not _is_number(text):
        raise DataError(f"{path}:{line}: not a time in seconds: {text.strip()[:60]!r}")
    return float(text)
