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


class Undisturbed:
    """Measures while the host leaves this machine its time, and remembers how much it took where it never did."""

    def __init__(self, *, tries: int = TRIES, stat: Path = Path("/proc/stat")) -> None:
        self._tries = tries
        self._stat = stat
        self.most_stolen = 0.0
        """Of all that was measured and used: above MOST_STOLEN no figure made of it says anything."""

    def measure(self, what: str, measured: Callable[[], ResultT]) -> ResultT:
        """The first result that was left alone, or else the one that was disturbed least."""
        best: tuple[float, ResultT] | None = None
        for left in reversed(range(self._tries)):
            stolen = StolenTime(self._stat)
            result = measured()
            share = stolen.share()
            if best is None or share < best[0]:
                best = share, result
            if best[0] <= MOST_STOLEN:
                break
            then = "again" if left else f"the try with the least, {100 * best[0]:.0f} %, has to do"
            print(f"{what}: the host took {100 * share:.0f} % of the machine meanwhile; {then}", flush=True)
        assert best is not None
        self.most_stolen = max(self.most_stolen, best[0])
        return best[1]
