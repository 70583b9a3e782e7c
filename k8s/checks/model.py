"""What the checks speak of: an overlay's documents and findings. Knows no file, no tool and no rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]
"""One Kubernetes manifest as YAML has it."""


class UnavailableError(Exception):
    """A tool or a folder that a check needs is not here, in one line: which, and how to get it. Never a pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is wrong."""

    where: str
    """Such as "RayService/split-inference group gpu"."""
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlay:
    """What one overlay renders to."""

    name: str
    documents: tuple[Document, ...]

    def of_kind(self, kind: str) -> list[Document]:
        """Documents of this kind."""
        return [document for document in self.documents if document.get("kind") == kind]

    def find(self, kind: str, name: str) -> Document | None:
        """The document of this kind with this name."""
        return next((document for document in self.of_kind(kind) if name_of(document) == name), None)

    def rayservice(self) -> Document:
        """The only RayService. Raises ValueError where there is none, or more."""
        found = self.of_kind("RayService")
        if len(found) != 1:
            raise ValueError(f"{self.name} has {len(found)} RayServices; one is expected")
        return found[0]


def name_of(document: Mapping[str, Any]) -> str:
    """Its metadata.name, or ""."""
    metadata = document.get("metadata")
    return str(metadata.get("name", "")) if isinstance(metadata, Mapping) else ""


def title(document: Mapping[str, Any]) -> str:
    """Kind/name, for findings."""
    return f"{document.get('kind')}/{name_of(document)}"


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every scalar in a document, with its path."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, (*path, str(key)))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, (*path, index))
    else:
        yield path, value


def dotted(path: tuple[str | int, ...]) -> str:
    """`spec.containers[0].name`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
