"""A. No secret in clear, and no image that may be another one tomorrow."""

from __future__ import annotations

import re
from collections.abc import Iterator

from k8s.checks.model import Document, Finding, Overlay, dotted, leaves, title
from k8s.checks.pods import pods_of

# Names of variables that hold secrets; a file's path and a mode are none.
_SECRET_NAME = re.compile(r"(PASSWORD|PASSWD|TOKEN|SECRET|API_?KEY|ACCESS_KEY|CREDENTIAL)", re.IGNORECASE)
_NO_SECRET = re.compile(r"(_FILE|_PATH|_MODE|_URL|_DIR)$|^AWS_ACCESS_KEY_ID_FILE$")
_SECRET_TEXT = {
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a token of this service": re.compile(r"\bsi_[A-Za-z0-9_-]{20,}"),
    "an AWS key": re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    "a GitHub token": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{30,}"),
    "a password in a URL": re.compile(r"://[^/\s:@$]+:[^/\s:@$]{4,}@"),
    "a bearer token": re.compile(r"[Bb]earer [A-Za-z0-9_.~+/-]{16,}"),
}
_TAG = re.compile(r"[\w][\w.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_FLOATING = re.compile(r"^(latest|main|master|nightly|edge|stable|dev|\d+|nightly-.*|latest-.*)$")


def check_no_secret_in_clear(overlay: Overlay) -> list[Finding]:
    """No Secret with content, no variable with a password, nothing anywhere that looks like one."""
    found = []
    for document in overlay.documents:
        if document.get("kind") == "Secret" and (document.get("data") or document.get("stringData")):
            found.append(Finding(where=title(document), problem="a Secret with content; name it, and make it by hand"))
        for path, value in leaves(document):
            kinds = [what for what, pattern in _SECRET_TEXT.items() if isinstance(value, str) and pattern.search(value)]
            found += [Finding(where=f"{title(document)} {dotted(path)}", problem=f"holds {what}") for what in kinds]
        found += _variables(document)
    return found


def _variables(document: Document) -> Iterator[Finding]:
    for path, value in leaves(document):
        if document.get("kind") == "ConfigMap" and path[0] == "data" and value:
            if _names_a_secret(str(path[1])):
                yield Finding(where=title(document), problem=f"{path[1]} is a secret's name; use a Secret")
        elif len(path) > 2 and path[-1] == "name" and path[-3] == "env" and _names_a_secret(str(value)):
            entry = _at(document, path[:-1])
            if "value" in entry:
                yield Finding(where=f"{title(document)} {dotted(path[:-1])}", problem=f"{value} has its value in clear")


def _names_a_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None and _NO_SECRET.search(name) is None


def _at(document: Document, path: tuple[str | int, ...]) -> Document:
    here = document
    for part in path:
        here = here[part]  # type: ignore[index]
    return here


def check_images_are_pinned(overlay: Overlay) -> list[Finding]:
    """Every image has a tag that stays, or a digest."""
    return [
        Finding(where=f"{pod.where} container {container.get('name')}", problem=problem)
        for pod in pods_of(overlay)
        for container in pod.containers()
        if (problem := _image_problem(str(container.get("image", ""))))
    ]


def split_image(image: str) -> tuple[str, str, str]:
    """Name, tag, digest; what is missing is "".

    >>> split_image("ghcr.io:443/someone/serve:0.1.0-ray2.60.0")
    ('ghcr.io:443/someone/serve', '0.1.0-ray2.60.0', '')
    """
    rest, _, digest = image.partition("@")
    head, slash, last = rest.rpartition("/")
    name, _, tag = last.partition(":")
    return f"{head}{slash}{name}", tag, digest


def _image_problem(image: str) -> str | None:
    name, tag, digest = split_image(image)
    if not name:
        return "no image"
    if digest:
        return None if _DIGEST.fullmatch(digest) else f"{image} has a digest that is none"
    if not tag:
        return f"{image} has no tag, which means :latest"
    if _FLOATING.match(tag) or not _TAG.fullmatch(tag):
        return f"{image} has a tag that moves"
    return None
