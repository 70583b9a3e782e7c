"""A server of known behaviour: c servers, one queue, a known service time, and a stall when asked for.

    python -m loadtests.stub_server --payloads stub.payloads --service-ms 10 --servers 2 --stall-at 5 --stall-s 1

What a load generator says about it can be checked by arithmetic: with Poisson arrivals and constant service it is
M/D/c. Queue and service are computed and not slept: a reply is due when the queue's arithmetic says, so that a late
timer delays one reply by a fraction of a millisecond and no later one. Answers are those of the payload file, in real
reply frames with timings. It speaks as much HTTP/1.1 as load generators do (no chunked bodies), and only on loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import heapq
import json
import random
import select
import selectors
import signal
import ssl
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from split_inference.errors import SplitInferenceError, UsageError
from split_inference.payload_file import MAX_BODY_BYTES, PayloadFile
from split_inference.wire import DIGEST_BYTES, REPLY_MEDIA_TYPE, WIRE_VERSION, Prediction, ReplyFrame, encode_reply

Distribution = Literal["constant", "exponential"]

_MAX_HEAD_BYTES = 16384
_STATUS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 500: "Internal Server Error"}
_STATUS |= {501: "Not Implemented", 503: "Service Unavailable"}


@dataclass(frozen=True, kw_only=True, slots=True)
class StubBehaviour:
    """How the stub behaves; times in seconds."""

    service_s: float = 0.01
    """Mean of the service time."""
    distribution: Distribution = "constant"
    servers: int = 1
    """Requests in service at the same time; all others wait in one queue, first come first served."""
    stall_at_s: float | None = None
    """From the first request on: nothing goes on for `stall_s`."""
    stall_s: float = 1.0
    queue_limit: int | None = None
    """Requests that may wait; more are refused with 503."""
    error_share: float = 0.0
    """Share that is answered with 500."""
    wrong_share: float = 0.0
    """Share that is answered with another class."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.service_s >= 0 or self.servers < 1 or not self.stall_s >= 0:
            raise UsageError("the service time is not negative, and there is at least one server")


@dataclass(slots=True)
class StubQueue:
    """The queue's arithmetic: when each request that arrives now will be done. Knows no clock."""

    behaviour: StubBehaviour
    _free_s: list[float] = field(default_factory=list)
    _starts_s: list[float] = field(default_factory=list)
    _rng: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        self._free_s = [0.0] * self.behaviour.servers
        self._rng.seed(self.behaviour.seed)

    def arrive(self, now_s: float) -> tuple[float, float] | None:
        """(Begin of service, end of service) of a request that arrives now; None where the queue is full.

        Times are seconds since the first request, and arrivals come in order.
        """
        limit = self.behaviour.queue_limit
        if limit is not None:
            while self._starts_s and self._starts_s[0] <= now_s:
                heapq.heappop(self._starts_s)
            if len(self._starts_s) >= limit and self._free_s[0] > now_s:
                return None
        start_s = self._work_until(max(now_s, self._free_s[0]), 0.0)
        service_s = self.behaviour.service_s
        if self.behaviour.distribution == "exponential":
            service_s = self._rng.expovariate(1 / service_s) if service_s else 0.0
        end_s = self._work_until(start_s, service_s)
        heapq.heapreplace(self._free_s, end_s)
        if limit is not None:
            heapq.heappush(self._starts_s, start_s)
        return start_s, end_s

    def _work_until(self, start_s: float, work_s: float) -> float:
        """When `work_s` of work that begins at `start_s` is done: no work is done during the stall."""
        stall_s = self.behaviour.stall_at_s
        if stall_s is None or start_s + work_s < stall_s or start_s >= stall_s + self.behaviour.stall_s:
            return start_s + work_s
        return stall_s + self.behaviour.stall_s + work_s - max(0.0, stall_s - start_s)


class StubAnswers:
    """The right answer to each body of some payload files, as reply frames; and the models' cards."""

    def __init__(self, files: list[PayloadFile]) -> None:
        self.cards: dict[str, bytes] = {}
        self._digests: dict[str, bytes] = {}
        self._answers: dict[bytes, tuple[str, int]] = {}
        for file in files:
            model = file.header.model
            points = {option.split_point for option in file.header.options if option.split_point}
            card = {
                "name": model.name,
                "uri": model.uri,
                "digest": model.digest,
                "trained": model.trained,
                "wire_versions": [WIRE_VERSION],
                "split_points": [{"name": point, "features": []} for point in sorted(points)],
            }
            self.cards[model.name] = json.dumps(card).encode()
            self._digests[model.name] = bytes.fromhex(model.digest)[:DIGEST_BYTES]
            for number, option in enumerate(file.header.options):
                for index, answer in enumerate(option.answer):
                    self._answers[_key(file.body(number, index))] = (model.name, answer)

    def answer(self, model: str, body: bytes) -> int | None:
        """Class index of the right answer; None for a body that no file holds for this model."""
        name, answer = self._answers.get(_key(body), ("", -1))
        return answer if name == model else None

    def reply(self, model: str, index: int, *, queue_s: float, service_s: float) -> bytes:
        """A reply frame with the best class first, as a server's."""
        timings_s = {"queue": queue_s, "decode": 0.0, "tail": service_s, "total": queue_s + service_s}
        return encode_reply(
            ReplyFrame(
                model_digest=self._digests[model],
                sample_count=1,
                timings_s=timings_s,
                predictions=((Prediction(index=index, label=str(index), score=1.0),),),
                logits=None,
            )
        )


def _key(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=12).digest()


class _Stub:
    """What all connections share."""

    def __init__(
        self, behaviour: StubBehaviour, answers: StubAnswers, loop: asyncio.AbstractEventLoop, token: str | None
    ) -> None:
        self.behaviour = behaviour
        self.answers = answers
        self.loop = loop
        self.authorization = f"authorization: bearer {token}".lower() if token else None
        self.seen: Counter[str] = Counter()
        self.connections = 0
        self._queue = StubQueue(behaviour)
        self._rng = random.Random(behaviour.seed + 1)
        self._began_s: float | None = None

    def begin(self, connection: _Connection, path: str, body: bytes) -> None:
        """Answer a POST when its time comes."""
        now_s = self.loop.time()
        if self._began_s is None:
            self._began_s = now_s
        self.seen["requests"] += 1
        model = unquote(path.partition("?")[0].removeprefix("/v1/models/"))
        answer = self.answers.answer(model, body)
        if answer is None:
            reason = "no payload file that was given holds this body for this model"
            connection.respond(404, _refusal("UnknownModelError", reason))
            return
        times_s = self._queue.arrive(now_s - self._began_s)
        if times_s is None:
            self.seen["refused"] += 1
            connection.respond(503, _refusal("OverloadedError", "the queue is full"), "retry-after: 1\r\n")
            return
        start_s, end_s = times_s
        if self._rng.random() < self.behaviour.error_share:
            self.loop.call_at(self._began_s + end_s, connection.respond, 500, _refusal("InternalError", "injected"))
            return
        if self._rng.random() < self.behaviour.wrong_share:
            answer += 1
        queue_s, service_s = max(0.0, start_s - (now_s - self._began_s)), end_s - start_s
        reply = self.answers.reply(model, answer, queue_s=queue_s, service_s=service_s)
        timing = f"server-timing: queue;dur={1000 * queue_s:.3f}, tail;dur={1000 * service_s:.3f}, batch;desc=1\r\n"
        self.loop.call_at(self._began_s + end_s, connection.respond, 200, reply, timing, REPLY_MEDIA_TYPE)

    def get(self, path: str) -> tuple[int, bytes]:
        """Catalogue, card, or what was seen so far."""
        if path == "/v1/models":
            models = [
                {"name": name, "uri": f"stub:{name}", "route": f"/v1/models/{name}"} for name in self.answers.cards
            ]
            return 200, json.dumps({"models": models}).encode()
        if path == "/stub":
            return 200, json.dumps({**self.seen, "connections": self.connections}).encode()
        card = self.answers.cards.get(unquote(path.removeprefix("/v1/models/")))
        return (200, card) if card is not None else (404, _refusal("UnknownModelError", "no such model here"))


class _Connection(asyncio.Protocol):
    """As much of HTTP/1.1 as a load generator speaks: keep-alive, Content-Length, one request at a time."""

    __slots__ = ("_body_from", "_buffer", "_head", "_need", "_stub", "_transport", "_waiting")

    def __init__(self, stub: _Stub) -> None:
        self._stub = stub
        self._buffer = bytearray()
        self._head: list[str] = []
        self._need = -1
        self._body_from = 0
        self._waiting = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._stub.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._stub.connections -= 1

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._waiting:
            self._take()

    def respond(self, status: int, body: bytes, headers: str = "", media_type: str = "application/json") -> None:
        """Send a response; then the next request of this connection may begin."""
        if self._transport is not None:
            head = (
                f"HTTP/1.1 {status} {_STATUS[status]}\r\ncontent-type: {media_type}\r\n"
                f"content-length: {len(body)}\r\n{headers}\r\n"
            )
            self._transport.write(head.encode("latin-1") + body)
        self._waiting = False
        if self._buffer:
            self._take()

    def _take(self) -> None:
        if self._need < 0:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > _MAX_HEAD_BYTES:
                    self._give_up(400, "the head of the request is too long")
                return
            self._head = self._buffer[:end].decode("latin-1").split("\r\n")
            lengths = [line[15:].strip() for line in self._head if line[:15].lower() == "content-length:"]
            if any(line.lower().startswith("transfer-encoding:") for line in self._head):
                return self._give_up(501, "the stub takes Content-Length only")
            text = lengths[0] if lengths else "0"
            if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) <= MAX_BODY_BYTES):
                return self._give_up(400, "not a Content-Length")
            self._body_from = end + 4
            self._need = end + 4 + int(text)
        if len(self._buffer) < self._need:
            return
        body = bytes(self._buffer[self._body_from : self._need])
        del self._buffer[: self._need]
        self._need = -1
        self._waiting = True
        method, _, rest = self._head[0].partition(" ")
        path = rest.partition(" ")[0]
        expected = self._stub.authorization
        if expected is not None and not any(line.lower() == expected for line in self._head):
            self.respond(401, _refusal("UnauthorizedError", "no token, or none that is known here"))
        elif method == "POST":
            self._stub.begin(self, path, body)
        elif method == "GET":
            self.respond(*self._stub.get(path))
        else:
            self._give_up(501, "GET and POST only")

    def _give_up(self, status: int, reason: str) -> None:
        self._buffer.clear()
        self._waiting = True
        if self._transport is not None:
            self.respond(status, _refusal("MalformedFrameError", reason), "connection: close\r\n")
            self._transport.close()


def _refusal(name: str, reason: str) -> bytes:
    return json.dumps({"error": name, "reason": reason}).encode()


class _PreciseSelector(selectors.EpollSelector):
    """epoll rounds timeouts up to whole milliseconds, a tenth of a usual service time; select does not."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and 0 < timeout < 0.05:
            select.select([self.fileno()], (), (), timeout)
            timeout = 0
        return super().select(timeout)


async def _serve(
    behaviour: StubBehaviour, files: list[Path], port: int, *, token: str | None, tls: ssl.SSLContext | None
) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        answers = StubAnswers([stack.enter_context(PayloadFile.open(file)) for file in files])
    stub = _Stub(behaviour, answers, loop, token)
    try:
        server = await loop.create_server(lambda: _Connection(stub), "127.0.0.1", port, backlog=4096, ssl=tls)
    except OSError as error:
        raise UsageError(f"cannot listen on port {port}: {error.strerror}; --port 0 takes a free one") from None
    stop = asyncio.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(each, stop.set)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    async with server:
        await stop.wait()


def main() -> None:
    """The command line; the first line of output is {"port": N}."""
    parser = argparse.ArgumentParser(
        description="A server of known behaviour for trying load generators (M/D/c, or M/M/c). Ctrl-C ends it.",
        epilog="The first line of output is JSON with the port. GET /stub tells what was seen.",
    )
    parser.add_argument("--payloads", type=Path, nargs="+", required=True, help="files whose bodies it answers")
    parser.add_argument("--port", type=int, default=0, help="on 127.0.0.1; 0: a free one (%(default)s)")
    parser.add_argument("--service-ms", type=float, default=10.0, help="mean service time (%(default)s)")
    parser.add_argument("--distribution", choices=("constant", "exponential"), default="constant")
    parser.add_argument("--servers", type=int, default=1, help="requests served at the same time (%(default)s)")
    parser.add_argument("--stall-at", type=float, help="seconds after the first request at which nothing goes on")
    parser.add_argument("--stall-s", type=float, default=1.0, help="for how long (%(default)s)")
    parser.add_argument("--queue-limit", type=int, help="requests that may wait; more get 503 (no limit)")
    parser.add_argument("--error-share", type=float, default=0.0, help="share answered with 500 (%(default)s)")
    parser.add_argument("--wrong-share", type=float, default=0.0, help="share answered wrongly (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--token", help="refuse requests without this bearer token")
    parser.add_argument("--tls", type=Path, help="PEM file with certificate and key: speak https")
    given = parser.parse_args()
    try:
        tls = None
        if given.tls is not None:
            tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            tls.load_cert_chain(given.tls)
        behaviour = StubBehaviour(
            service_s=given.service_ms / 1000,
            distribution=given.distribution,
            servers=given.servers,
            stall_at_s=given.stall_at,
            stall_s=given.stall_s,
            queue_limit=given.queue_limit,
            error_share=given.error_share,
            wrong_share=given.wrong_share,
            seed=given.seed,
        )
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(_PreciseSelector())) as runner:
            runner.run(_serve(behaviour, given.payloads, given.port, token=given.token, tls=tls))
    except SplitInferenceError as error:
        print(f"stub_server: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
