"""Senders that fall silent: many connections that send their headers and half of the body, and then nothing.

What a server does with them is half of the question; how it serves others meanwhile is the other half, so they are
held in a thread that sleeps until one of them ends. Knows sockets and the status line of an answer, and no frames.

    python -m benchmarks.serving.half_sent http://127.0.0.1:8000/v1/models/resnet20-cifar10 --connections 1000
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import resource
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from benchmarks.serving.http_load import request_bytes
from split_inference.wire import FRAME_MEDIA_TYPE

_CONNECT_TIMEOUT_S = 5.0
_MOST_HEADER_BYTES = 65536
# Standard streams, the epoll, the other load generator's connections.
_SPARE_FILES = 600


@dataclass(kw_only=True, slots=True)
class Ending:
    """How one half-sent request ended; seconds count from when its half was sent."""

    opened: bool = True
    """False where the server did not even take the connection, or closed it while the half was being sent."""
    status: int = 0
    """Of the answer; 0 where there was none."""
    answered_s: float | None = None
    closed_s: float | None = None
    """When the server closed the connection; None where it still held it at the end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HalfSentSummary:
    """How all of them ended."""

    connections: int
    opened: int
    closed: int
    """By the server, of those that were opened."""
    statuses: dict[int, int]
    """Connections by status; 0: no answer."""
    first_end_s: float | None
    last_end_s: float | None
    """When the server closed the first and the last of them."""


@dataclass(kw_only=True, slots=True, eq=False)
class HeldConnections:
    """What is known of them now; complete when the `with` block of `half_sent` has ended."""

    endings: list[Ending] = field(default_factory=list)

    @property
    def open_now(self) -> int:
        """Connections that the server has not closed."""
        return sum(each.opened and each.closed_s is None for each in self.endings)

    def summary(self) -> HalfSentSummary:
        """Counts and times over all of them."""
        closed_s = sorted(each.closed_s for each in self.endings if each.closed_s is not None)
        return HalfSentSummary(
            connections=len(self.endings),
            opened=sum(each.opened for each in self.endings),
            closed=len(closed_s),
            statuses=dict(sorted(collections.Counter(each.status for each in self.endings).items())),
            first_end_s=closed_s[0] if closed_s else None,
            last_end_s=closed_s[-1] if closed_s else None,
        )


def half_of(request: bytes) -> bytes:
    """The request's headers and the first half of its body. Raises ValueError where there is no body to halve."""
    head, separator, body = request.partition(b"\r\n\r\n")
    if not separator or len(body) < 2:
        raise ValueError("half a body can be sent only of a request that has one of at least 2 bytes")
    return head + separator + body[: len(body) // 2]


@contextlib.contextmanager
def half_sent(address: tuple[str, int], requests: Sequence[bytes], *, connections: int) -> Iterator[HeldConnections]:
    """Send half of a request on each of so many connections, and hold them for as long as the block lasts.

    Raises OSError where this process may not have so many files open.
    """
    allow_open_files(connections + _SPARE_FILES)
    held = HeldConnections()
    watcher = _Watcher(held)
    try:
        for index in range(connections):
            watcher.send(address, half_of(requests[index % len(requests)]))
        watcher.start()
        yield held
    finally:
        watcher.close()


class _Watcher:
    """The connections, and the thread that notes what comes back on them."""

    def __init__(self, held: HeldConnections) -> None:
        self._held = held
        self._epoll = select.epoll()
        self._by_fd: dict[int, tuple[socket.socket, Ending, float, bytearray]] = {}
        self._wake, self._waker = socket.socketpair()
        self._epoll.register(self._wake, select.EPOLLIN)
        self._thread = threading.Thread(target=self._watch, name="half-sent")

    def send(self, address: tuple[str, int], half: bytes) -> None:
        ending = Ending()
        self._held.endings.append(ending)
        try:
            sock = socket.create_connection(address, timeout=_CONNECT_TIMEOUT_S)
        except OSError:
            ending.opened = False
            return
        try:
            sock.sendall(half)
        except OSError:
            ending.opened = False
            sock.close()
            return
        sock.setblocking(False)
        self._by_fd[sock.fileno()] = (sock, ending, time.perf_counter(), bytearray())
        self._epoll.register(sock, select.EPOLLIN)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        if self._thread.is_alive():
            self._waker.send(b"x")
            self._thread.join()
        for sock, *_ in self._by_fd.values():
            sock.close()
        self._epoll.close()
        self._wake.close()
        self._waker.close()

    def _watch(self) -> None:
        while True:
            for fd, _ in self._epoll.poll():
                if fd == self._wake.fileno():
                    return
                self._read(fd)

    def _read(self, fd: int) -> None:
        sock, ending, sent_s, head = self._by_fd[fd]
        try:
            chunk = sock.recv(65536)
        except OSError:
            # Reset instead of closed: the server had unread bytes of ours, as it should have.
            chunk = b""
        elapsed_s = time.perf_counter() - sent_s
        if chunk:
            if ending.status == 0 and len(head) < _MOST_HEADER_BYTES:
                head += chunk
                if b"\r\n" in head and head.startswith(b"HTTP/1.") and head[9:12].isdigit():
                    ending.status, ending.answered_s = int(head[9:12]), elapsed_s
            return
        ending.closed_s = elapsed_s
        self._epoll.unregister(fd)
        del self._by_fd[fd]
        sock.close()


def allow_open_files(count: int) -> None:
    """Raise this process's limit of open files to `count` where it is lower. Raises OSError where it may not be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise OSError(f"{count} open files are needed and {hard} are allowed: raise the hard limit (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def main(arguments: Sequence[str] | None = None) -> int:
    """Hold half-sent requests for a while, print how they ended."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.half_sent", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("url", help="http://HOST:PORT/PATH")
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--body-bytes", type=int, default=34_000, help="of the whole body, of which half is sent")
    parser.add_argument("--hold-s", type=float, default=10.0, help="for how long at most they are held (default 10)")
    options = parser.parse_args(arguments)
    parts = urlsplit(options.url)
    if parts.scheme != "http" or not parts.hostname:
        parser.error(f"the URL has to be http://HOST:PORT/PATH, got {options.url!r}")
    if options.connections < 1 or options.body_bytes < 2:
        parser.error("at least 1 connection and a body of at least 2 bytes are needed")
    request = request_bytes(parts.netloc, parts.path or "/", bytes(options.body_bytes), media_type=FRAME_MEDIA_TYPE)
    with half_sent((parts.hostname, parts.port or 80), [request], connections=options.connections) as held:
        end_s = time.monotonic() + options.hold_s
        while held.open_now and time.monotonic() < end_s:
            time.sleep(0.1)
    print(json.dumps(dataclasses.asdict(held.summary()), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
