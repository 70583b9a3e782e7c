"""Sends prepared POSTs over keep-alive connections, as cheaply as gevent allows, and returns what came back.

geventhttpclient's parser (llhttp, the one inside Locust's FastHttpUser) on sockets of our own: its connection pool
looks at every socket with select(2), which ends at 1,024 descriptors, and 10,000 connections are wanted. A request is
one write of bytes that were made beforehand. Knows no payload files and no schedule. Not safe across threads.
"""

from __future__ import annotations

import collections
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gevent
from gevent import socket
from geventhttpclient.response import HTTPParseError, HTTPResponse

from loadtests.options import tls_context

# An honest answer to one sample is logits of 21,843 classes: 87 kB.
MAX_REPLY_BYTES = 1 << 20
CONNECT_TIMEOUT_S = 5.0
# Of one name: localhost has two, a large service a few.
MAX_ADDRESSES = 8
_READ_BYTES = 65_536
# Heads of a response, those of 1xx before it included. A server's own is below 1 kB, and proxies refuse to pass on more
# than 8 to 64 kB. Checked after each read, so that one read more may be kept.
MAX_HEAD_BYTES = 65_536
# Nothing is sent that asks for 100 Continue; a proxy may say 102 or 103 once or twice.
MAX_INTERIM = 8
# Parsing a piece takes the processor: a piece of this size, all in chunks of one byte, 3 ms.
_PARSED_BYTES = 16_384
# A whole head whose body has a length: the only one, because two of them are a trap.
_PLAIN = re.compile(
    rb"HTTP/1\.1 200 [^\r\n]*\r\n(?:(?!content-length:|transfer-encoding:)[^\r\n]+\r\n)*"
    rb"content-length:[ \t]*(\d{1,9})[ \t]*\r\n(?:(?!content-length:|transfer-encoding:)[^\r\n]+\r\n)*\r\n",
    re.IGNORECASE,
)
_HEAD_END = b"\r\n\r\n"
_INTERIM = re.compile(rb"HTTP/1\.[01] 1\d\d\b")
_CLOSES = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)


# Family and address, as getaddrinfo gives them.
_Address = tuple[int, tuple[Any, ...]]


class SendError(Exception):
    """No response: the reason in a few words, as it is counted."""


@dataclass(frozen=True, slots=True)
class Response:
    """A whole response."""

    status: int
    body: bytes
    head: bytes
    """Status line and header lines as they came, without the empty line at their end."""

    def header(self, name: str) -> str | None:
        """Value by lower-case name; the first of several."""
        for line in self.head.split(b"\r\n")[1:]:
            found, _, value = line.partition(b":")
            if found.lower() == name.encode():
                return value.strip().decode("latin-1")
        return None


class _Parser(HTTPResponse):  # type: ignore[misc]  # its types are not read
    def __init__(self) -> None:
        super().__init__("POST")
        self._interim = 0

    def _on_message_begin(self) -> None:
        # One piece may hold thousands of them.
        if self.is_whole:
            raise HTTPParseError("more than was announced")
        super()._on_message_begin()

    def _on_message_complete(self) -> None:
        super()._on_message_complete()
        self._interim += self.get_code() < 200
        if self._interim > MAX_INTERIM:
            raise HTTPParseError("too many interim responses")

    @property
    def is_whole(self) -> bool:
        """Of the response itself; those of 1xx are none."""
        return bool(self.message_complete) and self.get_code() >= 200

    def take_body(self) -> bytes:
        return bytes(self._body_buffer)

    @property
    def body_bytes(self) -> int:
        return len(self._body_buffer)


class HttpSender:
    """Connections to one server.

    `keep_open` connections take turns (first in, first out), so that all of them stay in use; else the one that was
    free last is used first, and there are as few as the load needs.
    """

    def __init__(
        self, url: str, *, ca: Path | None = None, token: str | None = None, timeout_s: float, keep_open: int = 0
    ) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._host = parts.hostname
        self._tls = tls_context(ca) if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._base_path = parts.path.rstrip("/")
        self._authority = parts.netloc
        self._token = token
        self._timeout_s = timeout_s
        self._keep_open = keep_open
        self._idle: collections.deque[socket.socket] = collections.deque()
        self._address: _Address | None = None
        self.opened = 0
        """Connections opened so far."""
        self.sent_again = 0
        """Requests sent once more, each time counted, because an idle connection turned out to be closed."""

    def head(self, path: str, *, media_type: str, body_bytes: int, more: str = "") -> bytes:
        """The head of a POST; `more` are further lines, each with its line end."""
        token = f"authorization: Bearer {self._token}\r\n" if self._token else ""
        return (
            f"POST {self._base_path}{path} HTTP/1.1\r\nhost: {self._authority}\r\ncontent-type: {media_type}\r\n"
            f"content-length: {body_bytes}\r\n{token}{more}\r\n"
        ).encode("ascii")

    def open_all(self, count: int, *, at_once: int = 128) -> None:
        """Open so many connections before the load begins; SendError where one is refused."""
        for begin in range(0, count, at_once):
            batch = [gevent.spawn(self._connect) for _ in range(min(at_once, count - begin))]
            gevent.joinall(batch, timeout=CONNECT_TIMEOUT_S + 1)
            for each in batch:
                if not each.successful():
                    gevent.killall(batch)
                    raise each.exception if isinstance(each.exception, SendError) else SendError("connect timeout")
                self._idle.append(each.value)

    def send(self, head: bytes, body: bytes) -> Response:
        """Deliver, and return the response of any status; SendError where none came within the timeout."""
        ends_s = time.monotonic() + self._timeout_s
        timeout = gevent.Timeout(self._timeout_s)
        timeout.start()
        try:
            return self._exchange(head, body, ends_s)
        except gevent.Timeout as expired:
            if expired is not timeout:
                raise
            raise SendError("timeout") from None
        finally:
            timeout.close()

    def _exchange(self, head: bytes, body: bytes, ends_s: float) -> Response:
        request = head + body if len(body) < _READ_BYTES else b""
        while True:
            reused = bool(self._idle)
            sock = (self._idle.popleft() if self._keep_open else self._idle.pop()) if reused else self._connect()
            kept = False
            try:
                if request:
                    # Nearly always all of it at once; sendall would ask the kernel for its buffer's size each time.
                    sent = sock.send(request)
                    if sent < len(request):
                        sock.sendall(memoryview(request)[sent:])
                else:
                    sock.sendall(head)
                    sock.sendall(body)
                found = _read(sock, ends_s)
                if found is not None:
                    response, kept = found
                    return response
            except OSError as error:
                # Of sending: `_read` tells by itself whether anything of a response has come.
                if not reused:
                    raise SendError(f"connection broken ({_reason(error)})") from None
            except HTTPParseError:
                raise SendError("malformed response") from None
            finally:
                # In a finally, because a timeout may end this at any point.
                if kept:
                    self._idle.append(sock)
                else:
                    sock.close()
            if not reused:
                raise SendError("connection closed without a response")
            # The server closed an idle connection just now, and nothing of a response has come. Asking again is safe:
            # inference changes nothing.
            self.sent_again += 1

    def _connect(self) -> socket.socket:
        sock = self._reach()
        try:
            sock.settimeout(CONNECT_TIMEOUT_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_hostname=self._host)
            # `send` has a timeout for the whole.
            sock.settimeout(None)
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                raise _no_connection(error) from None
            raise
        self.opened += 1
        return sock

    def _reach(self) -> socket.socket:
        """A connection to the first address of the name that takes one, and from then on to no other.

        So the checks before a run reach the server, too. SendError where none does, within CONNECT_TIMEOUT_S in all.
        """
        ends_s = time.monotonic() + CONNECT_TIMEOUT_S
        addresses = [self._address] if self._address is not None else self._addresses()
        trouble = OSError("no address")
        for tried, (family, address) in enumerate(addresses):
            # One that never answers leaves the others their part of the time.
            share_s = max(0.0, ends_s - time.monotonic()) / (len(addresses) - tried)
            try:
                sock = _connected(family, address, timeout_s=share_s)
            except OSError as error:
                trouble = error
                continue
            self._address = (family, address)
            return sock
        raise _no_connection(trouble)

    def _addresses(self) -> list[_Address]:
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise SendError(f"no such host ({_reason(error)})") from None
        return [(each[0], each[4]) for each in found[:MAX_ADDRESSES]]

    @property
    def idle(self) -> int:
        """Connections that are open and wait."""
        return len(self._idle)

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().close()


def _read(sock: socket.socket, ends_s: float) -> tuple[Response, bool] | None:
    """A response, and whether the connection may be used again; None where it was closed before its first byte.

    SendError where it broke after that, or at `ends_s` (monotonic) was not whole; HTTPParseError for what is none.
    """
    data = _receive(sock)
    if not data:
        return None
    plain = _PLAIN.match(data)
    if plain is not None and not _CLOSES.search(data, 0, plain.end()):
        # Status 200 with a length in one piece: nearly all, and five times as quick as the parser.
        end, length = plain.end(), int(plain[1])
        if length <= MAX_REPLY_BYTES:
            pieces = bytearray(data)
            while len(pieces) < end + length:
                pieces += _receive_more(sock, ends_s)
            if len(pieces) > end + length:
                raise HTTPParseError("more than was announced")
            return Response(200, bytes(pieces[end:]), data[: end - 4]), True
    parser = _Parser()
    begun = bytearray(data)
    received = len(data)
    parser.feed(data)
    while not parser.is_whole:
        # What is no body: heads, and the frames, extensions and trailers of chunks, which take less than an honest body
        # (from six bytes a chunk on).
        if received - parser.body_bytes > MAX_HEAD_BYTES + parser.body_bytes or parser.body_bytes > MAX_REPLY_BYTES:
            raise HTTPParseError("too long")
        data = _receive_more(sock, ends_s, _PARSED_BYTES)
        received += len(data)
        parser.feed(data)
        if received <= 2 * MAX_HEAD_BYTES:
            begun += data
    if parser.body_bytes > MAX_REPLY_BYTES:
        raise HTTPParseError("too long")
    return Response(parser.get_code(), parser.take_body(), _head(begun)), not parser.should_close()


def _head(begun: bytes | bytearray) -> bytes:
    """The head of the response itself, behind those of interim ones."""
    head, _, rest = bytes(begun).partition(_HEAD_END)
    while _INTERIM.match(head):
        head, _, rest = rest.partition(_HEAD_END)
    return head


def _receive(sock: socket.socket) -> bytes:
    """The first that comes; empty where the connection was closed before."""
    try:
        data: bytes = sock.recv(_READ_BYTES)
    except ConnectionResetError:
        return b""
    return data


def _receive_more(sock: socket.socket, ends_s: float, most_bytes: int = _READ_BYTES) -> bytes:
    """What comes next of a response that has begun, which is never asked for again.

    A read of what is there already does not wait: whoever sends on and on would keep this process from everything else,
    the request's own timeout included.
    """
    gevent.sleep(0)
    if time.monotonic() > ends_s:
        raise SendError("timeout")
    try:
        data: bytes = sock.recv(most_bytes)
    except OSError as error:
        raise SendError(f"connection broken ({_reason(error)})") from None
    if not data:
        raise HTTPParseError("closed in the middle")
    return data


def _connected(family: int, address: tuple[Any, ...], *, timeout_s: float) -> socket.socket:
    if timeout_s <= 0:
        raise TimeoutError
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _no_connection(error: OSError) -> SendError:
    return SendError("connect timeout" if isinstance(error, TimeoutError) else f"no connection ({_reason(error)})")


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__)[:60]
