"""An HTTP server for the load generators to be tested on: what it does with each request is a function.

In a thread with a loop of its own. Sees what servers rarely tell: how much of a body came, and how many wait at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from tests.patience import PATIENCE_S


@dataclass(kw_only=True)
class Stub:
    """What the server saw; read it when the block has ended, or while nothing is sent."""

    address: tuple[str, int]
    connections: int = 0
    received: int = 0
    """Whole requests."""
    in_flight: int = 0
    most_in_flight: int = 0
    bodies: list[bytes] = field(default_factory=list)
    """Of whole requests."""
    partial: list[tuple[int, bytes]] = field(default_factory=list)
    """Announced length and what came of it, of requests whose connection ended first."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What to answer with."""

    status: int = 200
    body: bytes = b"ok"
    headers: str = ""
    then_close: bool = False
    """Without a word in the headers."""
    instead_close: bool = False
    """Close, and answer nothing."""

    def encode(self) -> bytes:
        return (
            f"HTTP/1.1 {self.status} X\r\n{self.headers}content-length: {len(self.body)}\r\n\r\n".encode() + self.body
        )


Answer = Callable[[Stub], Awaitable[Reply]]


@contextlib.contextmanager
def stub_server(answer: Answer, *, port: int = 0, body_timeout_s: float | None = None) -> Iterator[Stub]:
    """Serve for as long as the block lasts; a body that takes longer than `body_timeout_s` gets 408 and an end."""
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    stub = Stub(address=("127.0.0.1", 0))

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stub.connections += 1
        try:
            while True:
                try:
                    head = await reader.readuntil(b"\r\n\r\n")
                except (asyncio.IncompleteReadError, ConnectionError):
                    return
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                body = b""
                try:
                    async with asyncio.timeout(body_timeout_s):
                        while len(body) < length:
                            chunk = await reader.read(length - len(body))
                            if not chunk:
                                raise ConnectionResetError
                            body += chunk
                except (TimeoutError, ConnectionError) as error:
                    stub.partial.append((length, body))
                    if isinstance(error, TimeoutError):
                        writer.write(Reply(status=408, body=b"slow").encode())
                    return
                stub.received += 1
                stub.bodies.append(body)
                stub.in_flight += 1
                stub.most_in_flight = max(stub.most_in_flight, stub.in_flight)
                reply = await answer(stub)
                stub.in_flight -= 1
                if reply.instead_close:
                    return
                writer.write(reply.encode())
                if reply.then_close:
                    return
        except asyncio.CancelledError:
            return
        finally:
            writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(serve_one, "127.0.0.1", port, backlog=2048)
        stub.address = server.sockets[0].getsockname()
        ready.set()
        await stop.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(PATIENCE_S)
        yield stub
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
