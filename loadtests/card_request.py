"""Asks a server for JSON before a load begins: one deadline for the whole of it, and one line for each way to fail.

Knows HTTP, TLS and the token; what the JSON means is somebody else's. Works on plain and on gevent's sockets. No
redirects: a token would travel to wherever they point.
"""

from __future__ import annotations

import http.client
import io
import json
import select
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from loadtests.options import RunOptions, read_token, tls_context
from split_inference.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

TIMEOUT_S = 10.0
# A card of a network with 200 split points and 130 codecs each is 300 kB.
MAX_CARD_BYTES = 4 * 2**20


class CardServer:
    """A server's answers to GET."""

    def __init__(self, url: str, options: RunOptions) -> None:
        self.url = url
        self._parts = urlsplit(url)
        self._headers = {"accept": "application/json"}
        token = read_token(options.token_file)
        if token:
            self._headers["authorization"] = f"Bearer {token}"
        self._tls = tls_context(options.ca) if self._parts.scheme == "https" else None

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON object; UsageError where nobody answers, or with 200 something else.

        With another status the object is empty where there is none.
        """
        try:
            status, body = self._ask(path)
        except ssl.SSLCertVerificationError as error:
            raise UsageError(
                f"{self.url} has a certificate that is not trusted here ({error.verify_message}); see --ca"
            ) from None
        except ssl.SSLError as error:
            raise UsageError(f"no TLS connection to {self.url} ({error.reason}); is it an https:// server?") from None
        except TimeoutError:
            raise UsageError(f"no whole answer from {self.url} within {TIMEOUT_S:g} s: is the server up?") from None
        except OSError as error:
            raise UsageError(f"no connection to {self.url} ({error.strerror or error}): is the server up?") from None
        except http.client.IncompleteRead:
            raise UsageError(f"the answer of {self.url} to GET {path} was cut off: is a proxy in between?") from None
        except http.client.HTTPException as error:
            raise UsageError(f"{self.url} does not speak HTTP ({type(error).__name__})") from None
        if len(body) > MAX_CARD_BYTES:
            raise UsageError(f"{self.url} answered GET {path} with more than {MAX_CARD_BYTES} bytes: no model card")
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, dict):
            return status, content
        if status == 200:
            raise UsageError(f"{self.url} answered GET {path} with something else than a JSON object")
        return status, {}

    def _ask(self, path: str) -> tuple[int, bytes]:
        host = self._parts.hostname or ""
        ends_s = time.monotonic() + TIMEOUT_S
        port = self._parts.port or (443 if self._tls else 80)
        connection = http.client.HTTPConnection(host, port)
        # The port is named where it is not the scheme's own.
        headers = {"host": self._parts.netloc, **self._headers}
        try:
            connection.sock = _connected(host, port, self._tls, ends_s)
            connection.sock.settimeout(_left_s(ends_s))
            connection.request("GET", self._parts.path.rstrip("/") + path, headers=headers)
            response = _response(connection.sock, ends_s)
            response.begin()
            body = response.read(MAX_CARD_BYTES + 1)
            # Where less came than was announced, a read of so many bytes at most says nothing.
            if response.length and len(body) <= MAX_CARD_BYTES:
                raise http.client.IncompleteRead(b"", response.length)
            return response.status, body
        finally:
            connection.close()


class _Reader(io.RawIOBase):
    """Reads a socket until `ends_s` and not until each read took long."""

    def __init__(self, sock: socket.socket, ends_s: float) -> None:
        self._sock = sock
        self._ends_s = ends_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        self._sock.settimeout(_left_s(self._ends_s))
        return self._sock.recv_into(buffer)


def _response(sock: socket.socket, ends_s: float) -> http.client.HTTPResponse:
    response = http.client.HTTPResponse(sock, method="GET")
    response.fp.close()
    response.fp = io.BufferedReader(_Reader(sock, ends_s), 65_536)
    return response


def _connected(host: str, port: int, tls: ssl.SSLContext | None, ends_s: float) -> socket.socket:
    sock = socket.create_connection((host, port), timeout=_left_s(ends_s))
    if tls is None:
        return sock
    try:
        sock = tls.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
        _shake_hands(sock, ends_s)
    except BaseException:
        sock.close()
        raise
    return sock


def _shake_hands(sock: ssl.SSLSocket, ends_s: float) -> None:
    # gevent's sockets give each wait of a handshake the whole timeout.
    sock.settimeout(0)
    while True:
        try:
            return sock.do_handshake()
        except ssl.SSLWantReadError:
            select.select([sock], (), (), _left_s(ends_s))
        except ssl.SSLWantWriteError:
            select.select((), [sock], (), _left_s(ends_s))


def _left_s(ends_s: float) -> float:
    left_s = ends_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s
