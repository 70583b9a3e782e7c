"""Who is asking: bearer tokens, kept as hashes, each with a name, a rate and a share of a replica's places.

Knows the file of tokens and the Authorization header's grammar. Knows no HTTP, no Ray and no clock: rates are counted
in admission.py. Every replica counts for itself, so that a client's limit is the sum over the replicas.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from serve_app.settings import AuthSettings, ServedName
from split_inference.errors import ConfigError, UnauthorizedError
from split_inference.settings import Settings, first_problem

TOKEN_PREFIX = "si_"
# 256 bits, as SHA-256 has. A guess is hopeless, which is why a fast hash without salt is enough: slow ones protect
# passwords that people think of.
TOKEN_BYTES = 32
# Ours have 46 characters; hashing whatever else is sent must cost nothing.
MAX_HEADER_CHARACTERS = 512
MAX_CLIENTS = 1000


class ClientEntry(Settings):
    """One client in the file of tokens."""

    name: ServedName
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the token."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Of each replica's places that the client may hold at one time."""
    rate_per_s: float | None = Field(default=None, gt=0)
    """Requests a second that each replica takes of it; without one, as many as its share holds."""
    burst: float | None = Field(default=None, ge=1)
    """Requests that may come at once within the rate; by default one second's."""

    @model_validator(mode="after")
    def _burst_has_a_rate(self) -> ClientEntry:
        if self.burst is not None and self.rate_per_s is None:
            raise ValueError("burst is of a rate; set rate_per_s too")
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class Client:
    """Whoever a token belongs to, and what it may use of one replica."""

    name: str
    share: float = 1.0
    rate_per_s: float | None = None
    burst: float = 1.0


ANONYMOUS = Client(name="anonymous")


class TokenBook:
    """All tokens that are taken here, as hashes."""

    def __init__(self, entries: Sequence[ClientEntry] | None) -> None:
        """None: no tokens are asked for. An empty list would let nobody in and is refused with ValueError."""
        if entries is not None and not entries:
            raise ValueError("a book of tokens without tokens lets nobody in")
        self._hashes = [(bytes.fromhex(entry.sha256), _client(entry)) for entry in entries or ()]
        self._open = entries is None

    @classmethod
    def load(cls, settings: AuthSettings, *, environ: Mapping[str, str]) -> TokenBook:
        """The book that the settings name. Raises ConfigError: no tokens, or tokens that others could read."""
        if settings.mode == "none":
            return cls(None)
        if settings.tokens_file is not None:
            path = _expanded(settings.tokens_file)
            return cls(parse_entries(_read_private(path), where=str(path)))
        assert settings.tokens_env is not None
        text = environ.get(settings.tokens_env, "")
        if not text.strip():
            raise ConfigError(f"auth.tokens_env: the environment variable {settings.tokens_env} is not set")
        return cls(parse_entries(text, where=f"${settings.tokens_env}"))

    def client_of(self, authorization: str | None) -> Client:
        """The client that the header's token belongs to. Raises UnauthorizedError, which says no more than that.

        Every hash is compared, in constant time, whichever fits.
        """
        if self._open:
            return ANONYMOUS
        scheme, _, token = (authorization or "")[: MAX_HEADER_CHARACTERS + 1].strip().partition(" ")
        offered = hashlib.sha256(token.strip().encode("utf-8", "replace")).digest()
        found = None
        for known, client in self._hashes:
            if hmac.compare_digest(known, offered):
                found = client
        fits = authorization is not None and len(authorization) <= MAX_HEADER_CHARACTERS and scheme.lower() == "bearer"
        if found is None or not fits:
            raise UnauthorizedError("a bearer token that is known here is needed in the header Authorization")
        return found


def new_token() -> str:
    """A fresh token."""
    return TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)


def hash_of(token: str) -> str:
    """What the file holds of a token: 64 hex digits."""
    return hashlib.sha256(token.encode()).hexdigest()


def parse_entries(text: str, *, where: str) -> list[ClientEntry]:
    """The clients in a YAML or JSON list. Raises ConfigError with the entry and the field that is wrong."""
    try:
        # An empty list is one too: JSON is YAML.
        data: Any = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        # ValueError: a thing like a date that is none.
        raise ConfigError(f"{where} is neither YAML nor JSON") from None
    if not isinstance(data, list) or not data:
        raise ConfigError(f"{where} has to be a list of clients, each with name and sha256; it has none")
    if len(data) > MAX_CLIENTS:
        raise ConfigError(f"{where} has {len(data)} clients; every request compares with all, so at most {MAX_CLIENTS}")
    entries = []
    for index, item in enumerate(data):
        if not isinstance(item, dict):
            raise ConfigError(f"{where}[{index}] has to be a client with name and sha256, which make-token writes")
        try:
            entries.append(ClientEntry.model_validate(item))
        except ValidationError as error:
            path, reason = first_problem(error, ClientEntry)
            # A token pasted in a wrong place must not be repeated in a log: neither as a value nor as a key.
            reason = "has to be 64 hex digits" if path[:1] == ("sha256",) else reason.partition(", got ")[0]
            field = f".{path[0]}" if path and path[0] in ClientEntry.model_fields else ""
            raise ConfigError(f"{where}[{index}]{field}: {reason}") from None
    for field in ("name", "sha256"):
        values = [getattr(entry, field) for entry in entries]
        twice = next((index for index, value in enumerate(values) if value in values[:index]), None)
        if twice is not None:
            raise ConfigError(f"{where}[{twice}].{field}: an earlier client has the same")
    return entries


def entry_line(name: str, token: str, *, rate_per_s: float | None = None, share: float = 1.0) -> str:
    """One line of a file of tokens, as YAML that is JSON too."""
    entry: dict[str, Any] = {"name": name, "sha256": hash_of(token), "share": share}
    if rate_per_s is not None:
        entry["rate_per_s"] = rate_per_s
    return f"- {json.dumps(entry)}\n"


def _client(entry: ClientEntry) -> Client:
    burst = entry.burst if entry.burst is not None else max(1.0, entry.rate_per_s or 1.0)
    return Client(name=entry.name, share=entry.share, rate_per_s=entry.rate_per_s, burst=burst)


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ConfigError(f"auth.tokens_file: {path} begins with a home folder that is not there") from None


def _read_private(path: Path) -> str:
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise ConfigError(f"auth.tokens_file: {path} is no file")
        # Kubernetes mounts secrets as root's, readable by the pod's group. Who may write could add a token.
        mode = stat.S_IMODE(state.st_mode)
        if mode & 0o027:
            raise ConfigError(
                f"auth.tokens_file: {path} has mode {mode:o}, which lets others read or change it; chmod 600 {path}"
            )
        if state.st_size > 1_000_000:
            raise ConfigError(
                f"auth.tokens_file: {path} has {state.st_size} bytes; a file of tokens is no larger than 1 MB"
            )
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        # ValueError: bytes that are no UTF-8, or a path with a null byte.
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"auth.tokens_file: {path} cannot be read: {reason}") from None


def append_entry(path: Path, line: str) -> None:
    """Add a line to a file of tokens that only its owner can read; it is made where there is none.

    Raises ConfigError where it cannot be written, or would hold the client twice.
    """
    try:
        before = _read_private(path) if path.exists() else ""
        if before.lstrip().startswith("["):
            raise ConfigError(f"{path} is a JSON list, to which no line can be added; add the entry by hand")
        if before.strip():
            parse_entries(f"{before.rstrip()}\n{line}", where=str(path))
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            file.write(line if not before or before.endswith("\n") else f"\n{line}")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
