"""B. Every manifest, and every pod that comes of one, held to strict schemas: an unknown field is a mistake.

Kubernetes' own kinds for the oldest and the newest supported version (kubernetes-validate bundles them), other kinds by
the schemas of their CRDs. A kind without a schema fails. `mutants` are the negative control: what a schema must refuse.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import referencing

from k8s.checks.model import Document, Finding, Overlay, UnavailableError, dotted, title
from k8s.checks.pods import pods_of
from k8s.checks.render import ROOT

OLDEST, NEWEST = "1.29", "1.37"
# Keys whose content is the user's own.
_FREE = frozenset(
    {"annotations", "binaryData", "data", "labels", "limits", "matchLabels", "nodeSelector", "rayStartParams"}
    | {"requests", "stringData"}
)
_Path = tuple[str | int, ...]


def schema_folder() -> Path:
    """Where the CRDs' schemas lie. Raises UnavailableError."""
    named = os.environ.get("K8S_SCHEMA_DIR")
    data = Path(os.environ.get("SPLIT_INFERENCE_DATA") or ROOT.parent / "shared" / "data")
    folder = Path(named) if named else data / "k8s" / "jsonschema"
    if not folder.is_dir():
        raise UnavailableError(f"no schemas of CRDs at {folder}; K8S_SCHEMA_DIR names their folder")
    return folder


def check_schemas(overlay: Overlay) -> list[Finding]:
    """Manifests and pods against both versions."""
    found = []
    for document in overlay.documents:
        for version in (OLDEST, NEWEST):
            found += [Finding(where=title(document), problem=each) for each in problems_of(document, version)[:3]]
    for pod in pods_of(overlay):
        for version in (OLDEST, NEWEST):
            found += [Finding(where=pod.where, problem=each) for each in problems_of(pod.manifest(), version)[:3]]
    return list(dict.fromkeys(found))


def check_negative_controls(overlay: Overlay) -> list[Finding]:
    """Every mutant of every kind is refused, by one version at least: a schema that refuses nothing proves nothing."""
    by_kind = {(each.get("apiVersion"), each.get("kind")): each for each in overlay.documents}
    return [
        Finding(where=f"{title(document)} {dotted(path)}", problem="a mutant passes the schemas")
        for document in by_kind.values()
        for path, mutant in mutants(document)
        if not problems_of(mutant, OLDEST)
    ]


def problems_of(document: Document, version: str) -> list[str]:
    """What the strict schema says, shortest path first; nothing where it agrees."""
    validator = _validator(str(document.get("apiVersion")), str(document.get("kind")), version)
    if validator is None:
        return [f"no schema for {document.get('apiVersion')} {document.get('kind')}"]
    errors = sorted(validator.iter_errors(document), key=lambda error: len(error.absolute_path))
    found = [f"{dotted(tuple(error.absolute_path)) or 'document'}: {error.message[:160]}" for error in errors]
    # A CRD says of its metadata only that it is an object; the API server knows more.
    return found + [
        f"{dotted(('metadata', *error.absolute_path))}: {error.message[:160]}"
        for error in _metadata(version).iter_errors(document.get("metadata"))
    ]


def mutants(document: Document) -> Iterator[tuple[_Path, Document]]:
    """The document with one unknown key in one of its mappings, for each of them; and without its apiVersion."""
    for path, _ in _mappings(document, ()):
        mutant = copy.deepcopy(document)
        here: Any = mutant
        for part in path:
            here = here[part]
        here["noSuchField"] = 1
        yield (*path, "noSuchField"), mutant
    for key in ("spec", "data", "metadata"):
        if key in document:
            yield (key,), {**document, key: "no mapping"}


def _mappings(value: Any, path: _Path) -> Iterator[tuple[_Path, Document]]:
    if isinstance(value, dict):
        yield path, value
        for key, inner in value.items():
            if key not in _FREE:
                yield from _mappings(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _mappings(inner, (*path, index))


@cache
def _validator(api_version: str, kind: str, version: str) -> jsonschema.protocols.Validator | None:
    group, _, number = api_version.rpartition("/")
    if "." in group and not group.endswith(".k8s.io"):
        return _of_crd(group, kind, number)
    if group == "gateway.networking.k8s.io":
        return _of_crd(group, kind, number)
    return _of_kubernetes(group, kind, number, version)


def _of_crd(group: str, kind: str, number: str) -> jsonschema.protocols.Validator | None:
    file = schema_folder() / f"{kind.lower()}-{group.partition('.')[0]}-{number}.json"
    if not file.is_file():
        return None
    return jsonschema.Draft202012Validator(json.loads(file.read_text(encoding="utf-8")))


def _of_kubernetes(group: str, kind: str, number: str, version: str) -> jsonschema.protocols.Validator | None:
    name = f"{kind.lower()}-{group.partition('.')[0]}-{number}.json" if group else f"{kind.lower()}-{number}.json"
    file = _kubernetes_folder(version) / name
    if not file.is_file():
        return None
    registry = _definitions(version) @ referencing.Registry()
    return jsonschema.Draft202012Validator(json.loads(file.read_text(encoding="utf-8")), registry=registry)


@cache
def _kubernetes_folder(version: str) -> Path:
    try:
        import kubernetes_validate
    except ImportError:
        raise UnavailableError("kubernetes-validate is not installed: make install-dev") from None
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / f"v{version}.0-local-strict"
    if not folder.is_dir():
        raise UnavailableError(f"kubernetes-validate has no schemas of Kubernetes {version}")
    return folder


@cache
def _metadata(version: str) -> jsonschema.protocols.Validator:
    name = "https://kubernetes.io/api/_definitions.json#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
    return jsonschema.Draft202012Validator({"$ref": name}, registry=_definitions(version) @ referencing.Registry())


@cache
def _definitions(version: str) -> referencing.Resource[Any]:
    text = (_kubernetes_folder(version) / "_definitions.json").read_text(encoding="utf-8")
    return referencing.Resource.from_contents(json.loads(text))
