"""Find and stop every process that we started, and no other.

Three things tell a process as ours, because each alone fails: a random mark in the environment that the child was
started with (Ray's agents overwrite theirs when they set their title), the child's session (a grandchild may begin its
own), and a parent that is ours (it may have ended). What was seen once is remembered by id and start time, so that an
id that is given away again means nothing. Knows /proc (Linux); elsewhere only the child itself is known.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MARK_VARIABLE = "SPLIT_INFERENCE_STARTED_BY"
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    parent: int
    session: int
    start_ticks: int
    """Since the machine's start."""

    @property
    def identity(self) -> tuple[int, int]:
        """Id and start: the parent changes when it ends, and an id alone is given away again."""
        return self.pid, self.start_ticks


class OwnProcesses:
    """The processes that were started with `environment`, and theirs."""

    def __init__(self) -> None:
        self.mark = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._session: int | None = None
        self._known: set[tuple[int, int]] = set()

    @property
    def environment(self) -> dict[str, str]:
        """What the child has to be started with."""
        return {MARK_VARIABLE: self.mark}

    def hold_session(self, leader: int | None) -> None:
        """Count the session of this id as ours, for as long as the leader is not reaped and its id not given away."""
        self._session = leader

    def pids(self) -> list[int]:
        """Those that live, zombies not counted: they hold nothing and are their parent's to reap."""
        living = _living()
        found = {each for each in living if self._is_known(each) or self._marked(each)}
        while more := {each for each in living - found if each.parent in {parent.pid for parent in found}}:
            found |= more
        self._known |= {each.identity for each in found}
        return sorted(each.pid for each in found)

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to each of them, and to nobody who got one of their ids meanwhile."""
        for pid in self.pids():
            with contextlib.suppress(OSError), _handle(pid) as descriptor:
                # The handle stays with the process that had the id when it was opened, so it is checked after that.
                now = _process(pid)
                if now is not None and now.identity in self._known:
                    _send(pid, descriptor, number)

    def _is_known(self, process: _Process) -> bool:
        return process.identity in self._known or process.session == self._session

    def _marked(self, process: _Process) -> bool:
        wanted = f"{MARK_VARIABLE}={self.mark}".encode()
        try:
            return wanted in (_PROC / str(process.pid) / "environ").read_bytes().split(b"\0")
        except OSError:  # gone, or another user's
            return False


def _living() -> set[_Process]:
    if not _PROC.is_dir():
        return set()
    found = (_process(int(entry.name)) for entry in _PROC.iterdir() if entry.name.isdigit())
    return {each for each in found if each is not None}


def _process(pid: int) -> _Process | None:
    """What /proc says of a process, or None where it is gone or a zombie."""
    try:
        # The name in parentheses may hold anything, so fields are counted from behind it (man 5 proc, `stat`).
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    if fields[0] in "ZX":
        return None
    return _Process(pid=pid, parent=int(fields[1]), session=int(fields[3]), start_ticks=int(fields[19]))


@contextlib.contextmanager
def _handle(pid: int) -> Iterator[int | None]:
    """A descriptor of the process, or None on a kernel without them (before Linux 5.3)."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except (AttributeError, OSError):
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _send(pid: int, descriptor: int | None, number: signal.Signals) -> None:
    if descriptor is None:
        os.kill(pid, number)
    else:
        signal.pidfd_send_signal(descriptor, number)
