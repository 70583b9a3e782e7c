"""HTTP load from one thread: closed loop (so many requests in flight) and open loop (Poisson arrivals).

As cheap as Python allows, because the machine's cores are shared with what is measured: plain sockets, epoll and
requests that are made before the clock starts; about 50 us of processor time a request. Knows no frames and no model.

Latency in the open loop runs from the moment at which the request was meant to be sent, so that a server which stalls
cannot hide it by holding the generator up (coordinated omission).
"""

from __future__ import annotations

import collections
import contextlib
import heapq
import resource
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

# After this long without an answer a connection is given up.
PATIENCE_S = 30.0
# Between two attempts at a server that takes no connections.
_RETRY_S = 0.02
_MAX_HEADER_BYTES = 65536


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How one request ended."""

    intended_s: float
    """When it was meant to be sent, since the run began."""
    sent_s: float
    ended_s: float
    status: int
    """0: the connection broke, or no answer came in time."""
    body: bytes = b""
    batch_samples: int = 0
    """As the answer's `server-timing` says; 0 where it says nothing."""

    @property
    def latency_s(self) -> float:
        """From the intended start."""
        return self.ended_s - self.intended_s

    @property
    def service_s(self) -> float:
        """From the actual start."""
        return self.ended_s - self.sent_s


@dataclass(kw_only=True, slots=True)
class LoadResult:
    """What a run saw."""

    outcomes: list[Outcome] = field(default_factory=list)
    wall_s: float = 0.0
    own_cpu_s: float = 0.0
    unsent: int = 0
    """Requests whose time came when every connection was busy and the run ended before one was free."""

    def latencies_s(self, status: int = 200) -> NDArray[np.float64]:
        """Of all answers with this status, in order of arrival."""
        return np.array([each.latency_s for each in self.outcomes if each.status == status])

    def rate_per_s(self, status: int = 200) -> float:
        """Answers with this status a second."""
        return sum(each.status == status for each in self.outcomes) / self.wall_s if self.wall_s else 0.0

    def between(self, from_s: float, until_s: float) -> LoadResult:
        """What ended in this part of the run: without the seconds in which batches form for the first time."""
        outcomes = [each for each in self.outcomes if from_s < each.ended_s <= until_s]
        return LoadResult(outcomes=outcomes, wall_s=until_s - from_s)

    def statuses(self) -> dict[int, int]:
        """Requests by status."""
        return dict(collections.Counter(each.status for each in self.outcomes))


def percentile(values: NDArray[np.float64], share: float) -> float:
    """Smallest value that at least `share` of all are not above; NaN of none."""
    return float(np.quantile(values, share, method="inverted_cdf")) if len(values) else float("nan")


def request_bytes(
    host: str, path: str, body: bytes, *, media_type: str, headers: Sequence[tuple[str, str]] = ()
) -> bytes:
    """A whole POST as it goes over the wire."""
    lines = [
        f"POST {path} HTTP/1.1",
        f"host: {host}",
        f"content-type: {media_type}",
        f"content-length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class _Connection:
    """One keep-alive connection, with at most one request on it."""

    __slots__ = ("_left", "batch_samples", "buffer", "intended_s", "need", "sent_s", "sock", "status")

    def __init__(self, address: tuple[str, int]) -> None:
        self.sock = socket.create_connection(address, timeout=PATIENCE_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        self.buffer = bytearray()
        self.need = -1
        self.status = 0
        self.batch_samples = 0
        self.intended_s = self.sent_s = 0.0
        self._left: memoryview = memoryview(b"")

    def start(self, request: bytes) -> bool:
        """Send; whether everything went out at once."""
        self.buffer.clear()
        self.need = -1
        self._left = memoryview(request)
        return self.send_more()

    def send_more(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            self._left = self._left[self.sock.send(self._left) :]
        return len(self._left) == 0

    def receive(self) -> bool:
        """Read what is there; whether the answer is complete. Raises ConnectionError where the other side left."""
        chunk = self.sock.recv(1 << 20)
        if not chunk:
            raise ConnectionResetError
        self.buffer += chunk
        if self.need < 0:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self.buffer) > _MAX_HEADER_BYTES:
                    raise ConnectionResetError
                return False
            head = bytes(self.buffer[:end]).lower()
            self.status = int(head[9:12])
            batch = head.find(b"batch;desc=")
            self.batch_samples = int(head[batch + 11 :].split(b"\r\n", 1)[0]) if batch >= 0 else 0
            at = head.find(b"\r\ncontent-length:")
            # In chunks come only Serve's own refusals, whose end is enough to know.
            self.need = 0 if at < 0 else end + 4 + int(head[at + 17 :].split(b"\r\n", 1)[0])
        if self.need == 0:
            return self.buffer.endswith(b"0\r\n\r\n")
        return len(self.buffer) >= self.need

    def body(self) -> bytes:
        end = self.buffer.find(b"\r\n\r\n")
        return bytes(self.buffer[end + 4 : self.need])


class _Loop:
    """What both kinds of load share: connections, the epoll loop and the record."""

    def __init__(self, address: tuple[str, int], requests: Sequence[bytes], *, keep_bodies: bool) -> None:
        self._address = address
        self._requests = requests
        self._keep_bodies = keep_bodies
        self._epoll = select.epoll()
        self._by_fd: dict[int, _Connection] = {}
        self._next = 0
        self.result = LoadResult()
        self._began_s = 0.0

    def now_s(self) -> float:
        return time.perf_counter() - self._began_s

    def begin(self) -> None:
        self._began_s = time.perf_counter()

    def open(self) -> _Connection:
        return _Connection(self._address)

    def send(self, connection: _Connection | None, intended_s: float) -> bool:
        """Start the next request, on a new connection where there is none; False where it could not be sent."""
        request = self._requests[self._next % len(self._requests)]
        self._next += 1
        sent_s = self.now_s()
        try:
            connection = connection or self.open()
            connection.intended_s, connection.sent_s = intended_s, sent_s
            done = connection.start(request)
        except OSError:
            # Refused, or the other side has left: a server that is down is a result, and no reason to stop asking.
            self.result.outcomes.append(Outcome(intended_s=intended_s, sent_s=sent_s, ended_s=self.now_s(), status=0))
            if connection is not None:
                connection.sock.close()
            return False
        fd = connection.sock.fileno()
        events = select.EPOLLIN if done else select.EPOLLIN | select.EPOLLOUT
        self._by_fd[fd] = connection
        self._epoll.register(fd, events)
        return True

    def poll(self, timeout_s: float) -> list[_Connection | None]:
        """Connections that have become free; None for each that is gone."""
        free: list[_Connection | None] = []
        if 0 < timeout_s < 0.002:
            # epoll rounds up to whole milliseconds, which would send every request half a millisecond late.
            select.select([self._epoll], (), (), timeout_s)
            timeout_s = 0.0
        for fd, event in self._epoll.poll(max(0.0, timeout_s), 512):
            connection = self._by_fd[fd]
            try:
                if event & select.EPOLLOUT and connection.send_more():
                    self._epoll.modify(fd, select.EPOLLIN)
                if event & ~select.EPOLLOUT and connection.receive():
                    self._release(fd)
                    self._record(connection, status=connection.status)
                    closes = b"connection: close" in bytes(connection.buffer[:2048]).lower()
                    if closes:
                        connection.sock.close()
                    free.append(None if closes else connection)
            except (OSError, ValueError):
                self._release(fd)
                self._record(connection, status=0)
                connection.sock.close()
                free.append(None)
        return free

    @property
    def in_flight(self) -> int:
        return len(self._by_fd)

    def abandon(self) -> None:
        """Close what is still open; what was in flight counts as unanswered."""
        for fd, connection in list(self._by_fd.items()):
            self._release(fd)
            self._record(connection, status=0)
            connection.sock.close()
        self._epoll.close()

    def _release(self, fd: int) -> None:
        self._epoll.unregister(fd)
        del self._by_fd[fd]

    def _record(self, connection: _Connection, *, status: int) -> None:
        self.result.outcomes.append(
            Outcome(
                intended_s=connection.intended_s,
                sent_s=connection.sent_s,
                ended_s=self.now_s(),
                status=status,
                body=connection.body() if self._keep_bodies and status else b"",
                batch_samples=connection.batch_samples if status else 0,
            )
        )


def closed_loop(
    address: tuple[str, int],
    requests: Sequence[bytes],
    *,
    concurrency: int,
    seconds: float,
    keep_bodies: bool = False,
) -> LoadResult:
    """Keep `concurrency` requests in flight for `seconds`; each answer is followed by the next request at once."""
    loop = _Loop(address, requests, keep_bodies=keep_bodies)
    idle: list[_Connection | None] = [loop.open() for _ in range(concurrency)]
    cpu_s = _cpu_s()
    loop.begin()
    try:
        while loop.now_s() < seconds:
            # A connection that was closed is opened again: so many are in flight at any time.
            unsent: list[_Connection | None] = [None for each in idle if not loop.send(each, loop.now_s())]
            idle = [*unsent, *loop.poll(_RETRY_S if unsent else 0.2)]
        loop.result.wall_s = loop.now_s()
        while loop.in_flight and loop.now_s() < seconds + PATIENCE_S:
            for connection in loop.poll(0.2):
                if connection is not None:
                    connection.sock.close()
    finally:
        loop.result.own_cpu_s = _cpu_s() - cpu_s
        for connection in idle:
            if connection is not None:
                connection.sock.close()
        loop.abandon()
    # Answers that came after the time are no part of the rate; those that never came are part of the result.
    loop.result.outcomes = [
        each for each in loop.result.outcomes if each.ended_s <= loop.result.wall_s or not each.status
    ]
    return loop.result


def poisson_arrivals_s(*, rate_per_s: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Times of a Poisson process within 0..seconds."""
    rng = np.random.default_rng(seed)
    count = int(rate_per_s * seconds + 10 * (rate_per_s * seconds) ** 0.5 + 10)
    times_s = np.cumsum(rng.exponential(1 / rate_per_s, count))
    return times_s[times_s < seconds]


def open_loop(
    address: tuple[str, int],
    requests: Sequence[bytes],
    *,
    arrivals_s: NDArray[np.float64],
    connections: int = 256,
    keep_bodies: bool = False,
) -> LoadResult:
    """Send a request at each of the given times, whatever the server does.

    A request whose time comes when all connections are busy waits for one, and its latency counts from its time.
    """
    loop = _Loop(address, requests, keep_bodies=keep_bodies)
    idle: list[_Connection] = [loop.open() for _ in range(min(connections, 16))]
    opened = len(idle)
    waiting: collections.deque[float] = collections.deque()
    upcoming = arrivals_s.tolist()
    heapq.heapify(upcoming)
    cpu_s = _cpu_s()
    loop.begin()
    try:
        end_s = (upcoming[-1] if upcoming else 0.0) + PATIENCE_S
        while upcoming or waiting or loop.in_flight:
            now_s = loop.now_s()
            if now_s > end_s:
                break
            while upcoming and upcoming[0] <= now_s:
                waiting.append(heapq.heappop(upcoming))
            while waiting:
                if not idle and opened >= connections:
                    break
                connection = idle.pop() if idle else None
                opened += connection is None
                if not loop.send(connection, waiting.popleft()):
                    opened -= 1
            wait_s = upcoming[0] - loop.now_s() if upcoming else 0.2
            for free in loop.poll(min(wait_s, 0.2)):
                if free is None:
                    opened -= 1
                else:
                    idle.append(free)
        loop.result.wall_s = loop.now_s()
        loop.result.unsent = len(waiting) + len(upcoming)
    finally:
        loop.result.own_cpu_s = _cpu_s() - cpu_s
        for each in idle:
            each.sock.close()
        loop.abandon()
    return loop.result


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
