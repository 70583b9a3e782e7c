"""Requests to a server and its answers, over HTTP: connections, timeouts, TLS, the token, and a cap on what comes back.

Knows no frames, no models and no retries: a body is opaque bytes. Another way to a server (in process, through a shaped
link) is another class with the same two methods.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import aiohttp

from split_inference.errors import ServerError, UsageError
from split_inference.server_url import checked_base_url, refuse_exposed_token

# The largest honest answer is raw logits of a full frame: 256 samples x 21,843 classes x 4 bytes = 22 MB.
MAX_RESPONSE_BYTES = 32 * 1024 * 1024
# Long enough for a TLS handshake over a phone's first packets, short enough to notice a dead address.
CONNECT_TIMEOUT_S = 5.0
# Below the 65 s and more that servers and proxies keep an idle connection, so that we are the one that closes it.
KEEPALIVE_S = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One request; `path` begins with a slash and may carry a query."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """One answer, whatever its status; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """How a server lets one in."""

    token: str | None = field(default=None, repr=False)
    """Bearer token; None where nobody is asked for one."""
    ca: Path | None = None
    """PEM file with the certificates to trust instead of the system's."""
    allow_insecure_token: bool = False
    """Whether the token may travel over plain http:// beyond this machine."""


def read_token(path: Path | None) -> str | None:
    """The token in a file, or None without one. Raises UsageError where it cannot be read."""
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise UsageError(f"cannot read the token file {path}: {reason}") from error


class Transport(Protocol):
    """A way to one server."""

    async def send(self, request: Request, *, timeout_s: float) -> Response:
        """Deliver and return the answer of any status; a ServerError without status when there is none in time."""

    async def close(self) -> None:
        """Let go of connections; safe to call twice."""


class HttpTransport:
    """Keep-alive HTTP to one base URL, http or https.

    Raises UsageError for a URL, certificate file or token that cannot be used; redirects are not followed, because a
    token and an input would travel to wherever they point.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        ca: Path | None = None,
        allow_insecure_token: bool = False,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        connections: int = 16,
    ) -> None:
        self._base = checked_base_url(url)
        refuse_exposed_token(self._base, has_token=token is not None, allowed=allow_insecure_token)
        self._token = checked_token(token)
        self._tls = _tls_context(ca) if self._base.startswith("https:") else None
        if ca is not None and self._tls is None:
            raise UsageError(f"--ca {ca} has no meaning with {self._base}: use an https:// URL")
        self._max_response_bytes = max_response_bytes
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def send(self, request: Request, *, timeout_s: float) -> Response:
        if not request.path.startswith("/"):
            # Behind the base it would be another host or port, which gets frames and token.
            raise UsageError(f"a path on the server begins with a slash, got {request.path[:80]!r}")
        headers = dict(request.headers)
        if self._token is not None:
            headers["authorization"] = f"Bearer {self._token}"
        timeout = aiohttp.ClientTimeout(
            total=timeout_s,
            sock_connect=min(timeout_s, CONNECT_TIMEOUT_S),
            # By default aiohttp rounds 5 s and more up to a whole second, which would be after the deadline.
            ceil_threshold=math.inf,
        )
        try:
            async with self._open_session().request(
                request.method,
                self._base + request.path,
                data=request.body or None,
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
            ) as answer:
                body = await self._read(answer)
                lower = {name.lower(): value for name, value in answer.headers.items()}
                return Response(status=answer.status, headers=lower, body=body)
        except aiohttp.ClientConnectorCertificateError as error:
            raise UsageError(f"{self._base} has a certificate that is not trusted here ({error}); see --ca") from error
        except aiohttp.ClientConnectorSSLError as error:
            raise UsageError(f"no TLS connection to {self._base} ({error}); is it an https:// server?") from error
        except TimeoutError as error:
            raise ServerError(f"no answer from {self._base} within {timeout_s:.3g} s", retriable=True) from error
        except aiohttp.ClientConnectorError as error:
            reason = error.os_error.strerror or str(error.os_error)
            raise ServerError(f"no connection to {self._base} ({reason}): is the server up?", retriable=True) from error
        except aiohttp.ClientError as error:
            reason = str(error) or type(error).__name__
            raise ServerError(f"the connection to {self._base} broke off ({reason})", retriable=True) from error

    async def _read(self, answer: aiohttp.ClientResponse) -> bytes:
        stated = answer.content_length or 0
        pieces = bytearray()
        if stated <= self._max_response_bytes:
            async for piece in answer.content.iter_any():
                pieces += piece
                if len(pieces) > self._max_response_bytes:
                    break
        if max(stated, len(pieces)) > self._max_response_bytes:
            # The rest is still on its way: the connection cannot be used again.
            answer.close()
            raise ServerError(
                f"{self._base} answered more than {self._max_response_bytes} bytes: no answer of ours is that large",
                status=answer.status,
            )
        return bytes(pieces)

    def _open_session(self) -> aiohttp.ClientSession:
        # Made inside the running loop: aiohttp binds a session to it.
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self._connections,
                    keepalive_timeout=KEEPALIVE_S,
                    ssl=self._tls if self._tls is not None else True,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                # Nothing of ours is content-encoded, and a small compressed answer could inflate past the cap.
                auto_decompress=False,
                headers={"accept-encoding": "identity"},
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()
            if self._tls is not None:
                # aiohttp closes TLS transports in a later turn of the loop; without one they are reported as leaked.
                await asyncio.sleep(0)


def checked_token(token: str | None) -> str | None:
    """The token, when it can stand in a header; UsageError without repeating it otherwise."""
    if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
        raise UsageError("the token is empty or has characters that cannot stand in a header: expected one ASCII word")
    return token


def _tls_context(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"--ca {ca} cannot be read as PEM certificates ({error})") from error
