"""How much of the machine its host gave to others meanwhile: a virtual machine's "steal" time, from /proc/stat.

What is stolen is no property of what is measured. Where there is no such file (no Linux) nothing is known to be stolen.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

# Beyond this share a measurement says more about the neighbours than about us.
MOST_STOLEN = 0.03
TRIES = 6
_STEAL = 7

ResultT = TypeVar("ResultT")


class StolenTime:
    """Counts from when it is made."""

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._began = self._read()

    def share(self) -> float:
        """Of all processors' time since then, 0..1."""
        now = self._read()
        total = sum(now) - sum(self._began)
        return (now[_STEAL] - self._began[_STEAL]) / total if total else 0.0

    def _read(self) -> list[int]:
        """Ticks of all processors: user, nice, system, idle, iowait, irq, softirq, steal; guests are among users."""
        try:
            words = self._stat.read_text(encoding="ascii").splitlines()[0].split()
        except OSError:
            return [0] * (_STEAL + 1)
        return [int(word) for word in words[1 : _STEAL + 2]]


def undisturbed(what: str, measured: Callable[[], ResultT], *, stat: Path = Path("/proc/stat")) -> ResultT:
    """What is measured while the host left this machine its time. Raises SystemExit where it never did."""
    for _ in range(TRIES):
        stolen = StolenTime(stat)
        result = measured()
        share = stolen.share()
        if share <= MOST_STOLEN:
            return result
        print(f"{what}: the host took {100 * share:.0f} % of the machine meanwhile; again", flush=True)
    raise SystemExit(f"{what}: this machine was not left alone once in {TRIES} tries; nothing was measured")
