"""Sleeping to within some 0.1 ms under gevent, whose own timers are up to a millisecond late.

libev waits in whole milliseconds, rounded up; what a load generator is late by is added to every latency it measures
from the intended start. A timerfd (Linux) wakes the same event loop at the moment itself. Elsewhere: gevent's sleep.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from typing import Final

import gevent
from gevent.hub import get_hub

_CLOCK_MONOTONIC: Final = 1
_READ: Final = 1
# TFD_NONBLOCK and TFD_CLOEXEC are O_NONBLOCK and O_CLOEXEC.
_FLAGS: Final = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class TimerSleep:
    """A sleep for one greenlet at a time; `close` it. Raises OSError where the system has no timerfd."""

    def __init__(self) -> None:
        if not sys.platform.startswith("linux"):
            raise OSError("timerfd is Linux's")
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            create, self._settime = libc.timerfd_create, libc.timerfd_settime
        except AttributeError:
            raise OSError("this C library has no timerfd") from None
        self._fd: int = create(_CLOCK_MONOTONIC, _FLAGS)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._hub = get_hub()
        self._watcher = self._hub.loop.io(self._fd, _READ)
        self._spec = _Itimerspec()

    def __call__(self, seconds: float) -> None:
        """Sleep; 0 lets the others run once."""
        if seconds <= 0:
            gevent.sleep(0)
            return
        # An all-zero time would disarm the timer.
        whole, nanoseconds = divmod(max(1, int(seconds * 1e9)), 1_000_000_000)
        self._spec.value.seconds, self._spec.value.nanoseconds = whole, nanoseconds
        # Setting it again also takes back that it is readable from the last time.
        if self._settime(self._fd, 0, ctypes.byref(self._spec), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        self._hub.wait(self._watcher)

    def close(self) -> None:
        """Give the descriptor back; safe to call twice."""
        if self._fd >= 0:
            self._watcher.stop()
            self._watcher.close()
            os.close(self._fd)
            self._fd = -1


def best_sleep() -> tuple[Callable[[float], None], Callable[[], None]]:
    """The most precise sleep that this system has, and what to call when it is needed no more."""
    try:
        timer = TimerSleep()
    except OSError:
        return gevent.sleep, lambda: None
    return timer, timer.close
