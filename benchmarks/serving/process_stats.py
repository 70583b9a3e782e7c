"""Processor time and memory of a process and all its descendants, from /proc."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessUse:
    """What one process has used."""

    pid: int
    name: str
    cpu_s: float
    """Of the process itself."""
    waited_cpu_s: float
    """Of the children that it has waited for, over their whole lives."""
    resident_bytes: int
    own_bytes: int
    """Of these, what is neither a file's nor shared: heap and stacks."""


def tree(root: int) -> dict[int, ProcessUse]:
    """The process and all its descendants, by id."""
    everyone: dict[int, tuple[int, ProcessUse]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            entry = _read(int(folder.name))
            if entry is not None:
                everyone[int(folder.name)] = entry
    found: dict[int, ProcessUse] = {}
    wanted = {root}
    while wanted:
        found |= {pid: everyone[pid][1] for pid in wanted if pid in everyone}
        wanted = {pid for pid, (parent, _) in everyone.items() if parent in wanted and pid not in found}
    return found


def of(pids: set[int]) -> dict[int, ProcessUse]:
    """These processes, as far as they exist."""
    return {pid: entry[1] for pid in pids if (entry := _read(pid)) is not None}


def cpu_between(before: Mapping[int, ProcessUse], after: Mapping[int, ProcessUse]) -> float:
    """Processor seconds that all processes used between two looks; what is new counts from its start.

    What ended in between counts where a process of the same set waited for it.
    """
    own_s = sum(use.cpu_s - (before[pid].cpu_s if pid in before else 0.0) for pid, use in after.items())
    waited_s = sum(
        use.waited_cpu_s - (before[pid].waited_cpu_s if pid in before else 0.0) for pid, use in after.items()
    )
    # Its parent now has all of its life, of which we had seen a part.
    ended_s = sum(use.cpu_s + use.waited_cpu_s for pid, use in before.items() if pid not in after)
    return own_s + max(0.0, waited_s - ended_s)


def cpu_by_name(before: Mapping[int, ProcessUse], after: Mapping[int, ProcessUse]) -> dict[str, float]:
    """Processor seconds of the living processes between two looks, by command, the busiest first."""
    used: dict[str, float] = {}
    for pid, use in after.items():
        used[use.name] = used.get(use.name, 0.0) + use.cpu_s - (before[pid].cpu_s if pid in before else 0.0)
    return dict(sorted(used.items(), key=lambda each: -each[1]))


def _read(pid: int) -> tuple[int, ProcessUse] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        statm = Path(f"/proc/{pid}/statm").read_text().split()
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None
    name = text[text.index("(") + 1 : text.rindex(")")]
    fields = text[text.rindex(")") + 2 :].split()
    own_ticks, waited_ticks = (sum(map(int, fields[start : start + 2])) for start in (11, 13))
    return int(fields[1]), ProcessUse(
        pid=pid,
        name=words or name,
        cpu_s=own_ticks * _TICK_S,
        waited_cpu_s=waited_ticks * _TICK_S,
        resident_bytes=int(fields[21]) * _PAGE_BYTES,
        own_bytes=(int(statm[1]) - int(statm[2])) * _PAGE_BYTES,
    )
