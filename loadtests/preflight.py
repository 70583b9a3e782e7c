"""Everything that can be wrong before the first request is sent: the host, the token, the models, their weights.

Asks the server for the card of each model and for nothing else. Raises one line for each wrong input; nothing that it
refuses has put load on anybody. Knows no Locust.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from loadtests.answer_check import printable
from loadtests.card_request import CardServer
from loadtests.options import RunOptions
from split_inference.errors import DigestMismatchError, UsageError
from split_inference.payload_file import PayloadFile, PayloadHeader
from split_inference.server_url import CATALOG_PATH, checked_base_url, is_this_machine, model_path, refuse_exposed_token

_MAX_NAME_CHARS = 80
_MAX_REASON_CHARS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A model on the server that was found to be the one of a payload file."""

    path: str
    name: str


def checked_host(options: RunOptions) -> str:
    """The server's URL; UsageError for what is none, or for another machine without --yes."""
    url = checked_base_url(options.host, called="--host")
    parts = urlsplit(url)
    if not is_this_machine(url) and not options.yes:
        raise UsageError(
            f"{parts.hostname} is not this machine; a load test can take a server down: add --yes if it may be tested"
        )
    refuse_exposed_token(url, has_token=options.token_file is not None, allowed=options.insecure_token)
    if options.ca and parts.scheme == "http":
        raise UsageError(f"--ca {options.ca} has no meaning with {url}: use an https:// URL")
    return url


def find_targets(options: RunOptions, files: Sequence[PayloadFile]) -> list[Target]:
    """The server's model for each payload file, after comparing digests and split points."""
    url = checked_host(options)
    if options.models and len(options.models) != len(files):
        raise UsageError(f"--models names {len(options.models)} models for {len(files)} payload files")
    server = CardServer(url, options)
    names = options.models or [file.header.model.name for file in files]
    return [_target(server, name, file) for name, file in zip(names, files, strict=True)]


def _target(server: CardServer, name: str, file: PayloadFile) -> Target:
    status, card = server.get(model_path(name))
    if status == 404:
        _, catalog = server.get(CATALOG_PATH)
        known = [_name(each) or "(no name)" for each in _objects(catalog.get("models"))]
        raise UsageError(
            f"{server.url} has no model {name}; it has {', '.join(known[:8]) or 'none'}: --models says what it is "
            "called there"
        )
    if status != 200:
        reason = printable(card.get("reason"), most_chars=_MAX_REASON_CHARS)
        raise UsageError(f"{server.url} answered {status} when asked for {name}{f': {reason}' if reason else ''}")
    header = file.header
    digest = card.get("digest")
    if not isinstance(digest, str):
        raise UsageError(f"{server.url} answered with no model card for {name}: a card has a digest")
    if digest != header.model.digest:
        raise DigestMismatchError(
            f"{server.url} has {name} with digest {printable(digest, most_chars=12)}.., {file.path} is for "
            f"{header.model.digest[:12]}..: make the payloads with the model that is served"
        )
    _check_split_points(server.url, name, header, card)
    return Target(path=model_path(name), name=name)


def _check_split_points(url: str, name: str, header: PayloadHeader, card: dict[str, Any]) -> None:
    served: set[object] = set()
    for point in _objects(card.get("split_points")):
        aliases = point.get("aliases")
        names = [point.get("name"), *(aliases if isinstance(aliases, list) else ())]
        served |= {each for each in names if isinstance(each, str)}
    missing = {option.split_point for option in header.options if option.split_point} - served
    if missing:
        raise UsageError(f"{url} does not answer for split point {sorted(map(str, missing))[0]} of {name}")


def _objects(content: object) -> list[dict[str, Any]]:
    """The JSON objects of a list; none of what is no list."""
    return [each for each in content if isinstance(each, dict)] if isinstance(content, list) else []


def _name(content: dict[str, Any]) -> str:
    return printable(content.get("name"), most_chars=_MAX_NAME_CHARS)
