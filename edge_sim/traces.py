"""Cellular traces in Mahimahi's format: when each packet of 1,500 bytes may leave.

Knows the format and the arithmetic. Knows no queue, no clock and no randomness: the same question has the same answer.

A file has one integer per line, in milliseconds, never decreasing; each line is one opportunity for 1,500 bytes, and
a repeated line is one more at the same moment. The file loops: its period is its last timestamp.

Packets, not a fluid: a message of n bytes has left at its ceil(n / 1500)th opportunity. Mahimahi gives what one packet
leaves of an opportunity to the next one that is waiting; edge_sim.rates does the same with messages. What nobody is
waiting for is lost. One thing differs: a message that comes at the very moment of an opportunity may use it here, and
in Mahimahi only the next one, because its clock has whole milliseconds.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from split_inference.errors import DataError

# One opportunity carries one full Ethernet payload (mahimahi, mm-link(1)).
BYTES_PER_OPPORTUNITY = 1500
# 2.4 million lines of a six-digit millisecond; Mahimahi's largest are a little over 1 MB.
MAX_TRACE_BYTES = 16 * 2**20
# Each opportunity takes 40 bytes of memory as a Python integer in a list; this many are an hour at 10 Mbit/s.
MAX_OPPORTUNITIES = 3_000_000
# One day. Long recordings are loops of minutes; a larger number is nanoseconds or a Unix time by mistake.
MAX_TIMESTAMP_MS = 86_400_000
MILLISECONDS_PER_S = 1000.0


class Trace:
    """Opportunities that repeat for ever; several links may share one, because asking changes nothing.

    Raises DataError for timestamps that are no trace; `where` begins the message.
    """

    __slots__ = ("_count", "_period", "_ticks", "_ticks_per_s", "name")

    def __init__(self, timestamps_ms: Sequence[int], *, name: str = "trace", where: str | None = None) -> None:
        _check(timestamps_ms, where or name)
        self.name = name
        self._ticks = list(timestamps_ms)
        self._count = len(self._ticks)
        self._period = self._ticks[-1]
        # Times are an integer divided by this one number, so doubling the integers, or halving this, doubles each
        # time without rounding.
        self._ticks_per_s = MILLISECONDS_PER_S

    def __repr__(self) -> str:
        return f"Trace({self.name!r}, {self._count} opportunities in {self.duration_s:g} s)"

    @property
    def opportunities(self) -> int:
        """How many packets one loop carries."""
        return self._count

    @property
    def duration_s(self) -> float:
        """Length of one loop."""
        return self._period / self._ticks_per_s

    @property
    def mean_megabits_per_s(self) -> float:
        """What a link that always has something to send carries in the long run."""
        return self._count * BYTES_PER_OPPORTUNITY * 8 / self.duration_s / 1e6

    @property
    def longest_hole_s(self) -> float:
        """The longest time without an opportunity, the seam between two loops included."""
        ticks = np.asarray(self._ticks, dtype=np.int64)
        return max(int(np.diff(ticks).max(initial=0)), self._ticks[0]) / self._ticks_per_s

    def scaled(self, factor: float) -> Trace:
        """The same trace with every timestamp multiplied: 2 is half the rate, and holes twice as long.

        Raises ValueError unless the factor is between a millionth and a million.
        """
        if not 1e-6 <= factor <= 1e6:
            raise ValueError(f"factor must be between 1e-6 and 1e6, got {factor}")
        other = object.__new__(Trace)
        other.name = f"{self.name} x {factor:g}"
        other._ticks, other._count, other._period = self._ticks, self._count, self._period
        other._ticks_per_s = self._ticks_per_s / factor
        return other

    def first_opportunity(self, start_s: float) -> int:
        """Number of the first opportunity that is not before `start_s`, counted from 0 over all loops."""
        per_s = self._ticks_per_s
        # The smallest whole tick that is not before the start, as floats see it: the product may be off by rounding.
        tick = math.ceil(start_s * per_s)
        while tick / per_s < start_s:
            tick += 1
        while tick > 0 and (tick - 1) / per_s >= start_s:
            tick -= 1
        if tick <= 0:
            return 0
        # One back, so that the end of a loop belongs to it: opportunities at its last moment come before the next
        # loop's at its moment 0.
        loop, rest = divmod(tick - 1, self._period)
        return loop * self._count + bisect_left(self._ticks, rest + 1)

    def time_s(self, opportunity: int) -> float:
        """When that opportunity is."""
        loop, index = divmod(opportunity, self._count)
        return (loop * self._period + self._ticks[index]) / self._ticks_per_s

    def departure_s(self, start_s: float, size_bytes: int) -> float:
        """When a message that is handed to an idle link at `start_s` has left completely; at least 1 byte counts."""
        packets = max(1, -(-size_bytes // BYTES_PER_OPPORTUNITY))
        return self.time_s(self.first_opportunity(start_s) + packets - 1)


def parse_trace(data: bytes, *, name: str) -> Trace:
    """A trace from a file's bytes. Raises DataError with file, line and what to do."""
    if len(data) > MAX_TRACE_BYTES:
        raise DataError(f"{name}: {len(data)} bytes; at most {MAX_TRACE_BYTES} are read: cut the trace, it loops")
    lines = data.replace(b"\r\n", b"\n").split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    if not lines:
        raise DataError(f"{name}: the file is empty; a trace has one time in milliseconds per line")
    if len(lines) > MAX_OPPORTUNITIES:
        raise DataError(f"{name}: {len(lines)} lines; at most {MAX_OPPORTUNITIES} are read: cut the trace, it loops")
    # Checked before int(), which takes signs, spaces, underscores and thousands of digits.
    longest = len(str(MAX_TIMESTAMP_MS))
    if not all(map(bytes.isdigit, lines)) or max(map(len, lines)) > longest:
        number, line = next(
            (number, line) for number, line in enumerate(lines, start=1) if not line.isdigit() or len(line) > longest
        )
        shown = line[:20].decode("ascii", "backslashreplace")
        raise DataError(
            f"{name}:{number}: {shown!r} is no time; write one whole number of milliseconds per line, "
            f"at most {MAX_TIMESTAMP_MS}, and nothing else"
        )
    return Trace(list(map(int, lines)), name=Path(name).name, where=name)


def read_trace(path: Path) -> Trace:
    """A trace from a file. Raises DataError with file, line and what to do."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TRACE_BYTES + 1)
    except OSError as error:
        raise DataError(f"cannot read the trace {path}: {error.strerror or error}") from None
    return parse_trace(data, name=str(path))


def _check(timestamps_ms: Sequence[int], where: str) -> None:
    if not timestamps_ms:
        raise DataError(f"{where}: no opportunity; a trace has one time in milliseconds per line")
    times = np.asarray(timestamps_ms, dtype=np.int64)
    falls = np.flatnonzero(np.diff(times) < 0)
    if falls.size:
        at = int(falls[0]) + 1
        raise DataError(
            f"{where}:{at + 1}: {times[at]} ms comes after {times[at - 1]} ms; sort the file by time (sort -n)"
        )
    if times[0] < 0 or times[-1] > MAX_TIMESTAMP_MS:
        line = 1 if times[0] < 0 else int(np.flatnonzero(times > MAX_TIMESTAMP_MS)[0]) + 1
        raise DataError(
            f"{where}:{line}: {times[line - 1]} ms is not between 0 and {MAX_TIMESTAMP_MS} (a day); "
            "are these milliseconds since the recording began?"
        )
    if times[-1] == 0:
        raise DataError(
            f"{where}:{times.size}: the last time is 0 ms, and it is the loop's period; end with the recording's length"
        )
