"""Who runs on this machine, read from /proc: an eye of our own, so that clean-up is not judged by what did it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.patience import PATIENCE_S


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """One living process."""

    pid: int
    parent: int
    session: int
    command: str


def processes() -> dict[int, Process]:
    """All living processes by id; zombies live no more."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name in parentheses may hold anything, so the fields are counted from behind it.
            state, parent, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        if state not in "ZX":
            pid = int(entry.name)
            found[pid] = Process(pid=pid, parent=int(parent), session=int(session), command=command)
    return found


def below(root: int) -> dict[int, Process]:
    """All descendants of a process, and whoever shares a session with one of them; without the root itself."""
    everyone = processes()
    found: dict[int, Process] = {}
    grown = True
    while grown:
        sessions = {each.session for each in found.values()}
        more = {
            pid: each
            for pid, each in everyone.items()
            if pid not in found and pid != root and (each.parent in (root, *found) or each.session in sessions)
        }
        found |= more
        grown = bool(more)
    return found


def wait_for(what: Callable[[], object], *, why: str, timeout_s: float = PATIENCE_S) -> None:
    """Return when `what()` is true; fails after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline_s, why
        time.sleep(0.05)
