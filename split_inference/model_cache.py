"""Models that were exported once and need not be again: a folder of functional programs beside their cards.

Building a network with its library, exporting it and making its graph functional takes seconds of every process that
serves it, and gives the same program each time. Knows URIs, files and programs. The files hold no code and are
inspected like anybody's (pt2_archive); still a program found here is believed only when its digest is the one that
was written down, and folders that others may write to are the caller's to refuse.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch.utils import _pytree as pytree

from split_inference.errors import ModelLoadError, UnsafeModelError
from split_inference.model_card import ModelCard
from split_inference.model_catalog import LoadedModel, load_model
from split_inference.model_split import SplittableModel
from split_inference.model_uri import ModelUri, parse_uri
from split_inference.pt2_archive import load_pt2

FORMAT = 1
# Programs are as large as their weights, and each new version of this package or of torch makes its own.
KEPT = 8
_PACKAGE = Path(__file__).resolve().parent
# What a folder of the hub's format is made of; other files in it are not read by the loader.
_HF_FILES = ("*.json", "*.safetensors")


class _About(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    digest: str
    card: ModelCard


def load_cached_model(uri: str, folder: Path) -> LoadedModel:
    """As `load_model`, from `folder` where it lies there already; otherwise it is put there for the next time.

    Only for URIs whose every file can be told apart by its bytes: the classic networks and hf: folders. Others, among
    them factories, whose code nobody can know, are loaded as always. Raises what `load_model` raises; a folder that
    cannot be written to is no error, it only helps nobody. The KEPT programs used last are kept.
    """
    place = cache_place(uri, folder)
    if place is None:
        return load_model(uri)
    found = _read(uri, place)
    if found is not None:
        return found
    loaded = load_model(uri)
    _write(loaded, place)
    return loaded


def read_cached_model(uri: str, folder: Path) -> LoadedModel | None:
    """What lies in `folder` already, and nothing else: None where it is not there, or not whole.

    Reading runs no network and exports none.
    """
    place = cache_place(uri, folder)
    return None if place is None else _read(uri, place)


def cache_place(uri: str, folder: Path) -> Path | None:
    """The folder that this URI's program would lie in; None where it is not cached. Reads the files that it names."""
    parsed = parse_uri(uri)
    files = _files_of(parsed)
    if files is None:
        return None
    key = {
        "format": FORMAT,
        "uri": uri,
        "files": [[name, _sha256(path)] for name, path in files],
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "code": _code(),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return folder / f"{parsed.name[:60]}-{digest[:16]}"


def _files_of(uri: ModelUri) -> list[tuple[str, Path]] | None:
    """Every file that the model is made of; None where that cannot be said, or one is missing."""
    files = [
        (option, Path(value))
        for option in ("weights", "card")
        if (value := uri.options.get(option)) is not None and value != "random"
    ]
    if uri.scheme == "hf":
        source = Path(uri.path)
        if not source.is_dir():
            return None
        files += [(path.name, path) for pattern in _HF_FILES for path in sorted(source.glob(pattern))]
    elif uri.scheme != "classic":
        return None
    return files if all(path.is_file() for _, path in files) else None


def _read(uri: str, place: Path) -> LoadedModel | None:
    try:
        about = _About.model_validate_json((place / "about.json").read_bytes())
        model = SplittableModel(load_pt2(place / "program.pt2"))
    except (OSError, ValidationError, ModelLoadError, UnsafeModelError):
        return None
    if model.digest != about.digest or about.card.uri != uri:
        return None
    with suppress(OSError):
        os.utime(place / "about.json")
    return LoadedModel(name=about.card.name, model=model, card=about.card)


def _write(loaded: LoadedModel, place: Path) -> None:
    about = _About(digest=loaded.model.digest, card=loaded.card)
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = Path(tempfile.mkdtemp(prefix=".new-", dir=place.parent))
    except OSError:
        return
    try:
        with _one_tensor_out(loaded.model.functional) as program:
            torch.export.save(program, new / "program.pt2")
        (new / "about.json").write_text(about.model_dump_json(indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(place, ignore_errors=True)
        os.rename(new, place)
        _forget_the_oldest(place.parent)
    except OSError:
        # Full, or another process was sooner.
        shutil.rmtree(new, ignore_errors=True)


def _forget_the_oldest(folder: Path) -> None:
    def last_used_s(place: Path) -> float:
        return (place / "about.json").stat().st_mtime

    places = [place for place in folder.iterdir() if (place / "about.json").is_file()]
    for place in sorted(places, key=last_used_s)[:-KEPT]:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _one_tensor_out(program: torch.export.ExportedProgram) -> Iterator[torch.export.ExportedProgram]:
    """The program, giving its one tensor as it is, for a while.

    A library's own type of result would have to be imported to read the program again.
    """
    signatures = [entry.signature for entry in program.module_call_graph if entry.fqn == "" and entry.signature]
    before = [signature.out_spec for signature in signatures]
    for signature in signatures:
        signature.out_spec = pytree.tree_structure(0)
    try:
        yield program
    finally:
        for signature, spec in zip(signatures, before, strict=True):
            signature.out_spec = spec


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _code() -> str:
    """Of this package's own code: a program that an older version made may have other split points."""
    sha = hashlib.sha256()
    for path in sorted(_PACKAGE.glob("*.py")):
        sha.update(path.read_bytes())
    return sha.hexdigest()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
