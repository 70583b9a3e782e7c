"""Everything that can be wrong before the first request is sent: the host, the token, the models, their weights.

Asks the server for the card of each model and for nothing else. Raises one line for each wrong input; nothing that it
refuses has put load on anybody. Knows no Locust.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from loadtests.options import RunOptions, read_token, tls_context
from split_inference.errors import DigestMismatchError, UsageError
from split_inference.payload_file import PayloadFile, PayloadHeader

CATALOG_PATH = "/v1/models"
_TIMEOUT_S = 10.0
# A card of a network with 200 split points and 130 codecs each is 300 kB.
_MAX_CARD_BYTES = 4 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A model on the server that was found to be the one of a payload file."""

    path: str
    name: str


def model_path(name: str) -> str:
    """Route of a model."""
    return f"{CATALOG_PATH}/{quote(name, safe='')}"


def checked_host(options: RunOptions) -> str:
    """The server's URL; UsageError for what is none, or for another machine without --yes."""
    url = options.host
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(f"{url!r} is not a server's URL: expected http://HOST:PORT or https://HOST[:PORT]")
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError(f"--host may not carry a user name, a query or a fragment: {parts.hostname}")
    loopback = is_loopback(parts.hostname or "")
    if not loopback and not options.yes:
        raise UsageError(
            f"{parts.hostname} is not this machine; a load test can take a server down: add --yes if it may be tested"
        )
    if options.token_file and parts.scheme == "http" and not loopback and not options.insecure_token:
        raise UsageError(
            f"the token would travel to {parts.hostname} in the clear: use https://, or --insecure-token in a trusted "
            "network"
        )
    if options.ca and parts.scheme == "http":
        raise UsageError(f"--ca {options.ca} has no meaning with {url}: use an https:// URL")
    return url


def is_loopback(host: str) -> bool:
    """Whether packets to this host never leave the machine; names other than localhost are not looked up."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def find_targets(options: RunOptions, files: Sequence[PayloadFile]) -> list[Target]:
    """The server's model for each payload file, after comparing digests and split points."""
    url = checked_host(options)
    if options.models and len(options.models) != len(files):
        raise UsageError(f"--models names {len(options.models)} models for {len(files)} payload files")
    server = _Server(url, options)
    names = options.models or [file.header.model.name for file in files]
    return [_target(server, name, file) for name, file in zip(names, files, strict=True)]


def _target(server: _Server, name: str, file: PayloadFile) -> Target:
    status, card = server.get(model_path(name))
    if status == 404:
        _, catalog = server.get(CATALOG_PATH)
        models = catalog.get("models")
        known = [str(each.get("name"))[:80] for each in models if isinstance(each, dict)] if models else []
        raise UsageError(
            f"{server.url} has no model {name}; it has {', '.join(known[:8]) or 'none'}: --models says what it is "
            "called there"
        )
    if status != 200:
        reason = " ".join(str(card.get("reason", "")).split())[:200]
        raise UsageError(f"{server.url} answered {status} when asked for {name}{f': {reason}' if reason else ''}")
    header = file.header
    digest = card.get("digest")
    if digest != header.model.digest:
        raise DigestMismatchError(
            f"{server.url} has {name} with digest {str(digest)[:12]}.., {file.path} is for "
            f"{header.model.digest[:12]}..: make the payloads with the model that is served"
        )
    _check_split_points(server.url, name, header, card)
    return Target(path=model_path(name), name=name)


def _check_split_points(url: str, name: str, header: PayloadHeader, card: dict[str, Any]) -> None:
    served: set[str] = set()
    for point in card.get("split_points") or ():
        if isinstance(point, dict):
            served |= {str(point.get("name")), *map(str, point.get("aliases") or ())}
    missing = {option.split_point for option in header.options if option.split_point} - served
    if missing:
        raise UsageError(f"{url} does not answer for split point {sorted(map(str, missing))[0]} of {name}")


class _Server:
    def __init__(self, url: str, options: RunOptions) -> None:
        self.url = url
        self._parts = urlsplit(url)
        self._headers = {"accept": "application/json"}
        token = read_token(options.token_file)
        if token:
            self._headers["authorization"] = f"Bearer {token}"
        self._tls = tls_context(options.ca) if self._parts.scheme == "https" else None

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON object (empty where there is none); UsageError where nobody answers."""
        host = self._parts.hostname or ""
        try:
            # No redirects: a token would travel to wherever they point.
            connection: http.client.HTTPConnection = (
                http.client.HTTPSConnection(host, self._parts.port, timeout=_TIMEOUT_S, context=self._tls)
                if self._tls is not None
                else http.client.HTTPConnection(host, self._parts.port, timeout=_TIMEOUT_S)
            )
            try:
                connection.request("GET", self._parts.path.rstrip("/") + path, headers=self._headers)
                response = connection.getresponse()
                body = response.read(_MAX_CARD_BYTES + 1)
            finally:
                connection.close()
        except ssl.SSLCertVerificationError as error:
            raise UsageError(
                f"{self.url} has a certificate that is not trusted here ({error.verify_message}); see --ca"
            ) from None
        except ssl.SSLError as error:
            raise UsageError(f"no TLS connection to {self.url} ({error.reason}); is it an https:// server?") from None
        except TimeoutError:
            raise UsageError(f"no answer from {self.url} within {_TIMEOUT_S:g} s: is the server up?") from None
        except OSError as error:
            raise UsageError(f"no connection to {self.url} ({error.strerror or error}): is the server up?") from None
        except http.client.HTTPException as error:
            raise UsageError(f"{self.url} does not speak HTTP ({type(error).__name__})") from None
        try:
            content = json.loads(body) if len(body) <= _MAX_CARD_BYTES else None
        except ValueError:
            content = None
        return response.status, content if isinstance(content, dict) else {}
