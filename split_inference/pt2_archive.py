"""Read an exported program (.pt2) from a file that somebody else made, without running anything it carries.

torch 2.13 unpickles weights and constants that the archive flags so, falls back to unpickling sample inputs,
loads compiled libraries that lie in the archive, and evaluates the text of symbolic expressions. So the archive is
inspected first, and torch is given a copy that holds only what was inspected: what this file's zip reader saw is
what torch sees. Anything else is refused with one line.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from split_inference.errors import ModelLoadError, UnsafeModelError
from split_inference.model_split import first_line

MAX_ARCHIVE_BYTES = (
    4 << 30
)  # unpacked; above VGG-19's 575 MB and a ViT-H's 2.5 GB in float32, below this class of server's memory
_SAMPLE_INPUTS = re.compile(r"data/sample_inputs/[\w.-]+\.pt")
_PAYLOAD = re.compile(r"data/(weights|constants)/(?:weight|tensor)_\d+")
_CONFIG = re.compile(r"data/(weights|constants)/[\w.-]+_(?:weights|constants)_config\.json")
_PROGRAM = re.compile(r"models/[\w.-]+\.json")
_MARKS = {"archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id", "version"}
# Symbols, numbers, arithmetic and sympy's integer functions: nothing that evaluates to more than a size. No powers, of
# which a few towering digits would keep sympy busy for ever.
_EXPRESSION = re.compile(
    r"(?:\s|(?<!\*)\*(?!\*)|[-+/%(),.<>=&|~]|\d|\b(?:[su]\d+|Symbol|Integer|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|ModularIndexing"
    r"|ToFloat|TruncToInt|FloorToInt|CeilToInt|IntTrueDiv|FloatTrueDiv|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|true|false|True|False"
    r"|int_oo|oo|positive|integer|Add|Mul|Rational|One|Zero|NegativeOne)\b|'[su]\d+')*"
)
# aten's own operators, less the one that maps files, and arithmetic on sizes.
_TARGET = re.compile(
    r"torch\.ops\.aten\.(?!from_file\b)\w+\.\w+|torch\.ops\.higher_order\.\w+|torch\.sym_\w+|torch\._sym_\w+"
    r"|_operator\.(?:add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
    r"|math\.(?:ceil|floor|trunc|sqrt)"
)
_CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict"}


def load_pt2(path: Path) -> torch.export.ExportedProgram:
    """The exported program in a file; ModelLoadError where it is none, UnsafeModelError where it would run code."""
    if not path.is_file():
        raise ModelLoadError(f"no file {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            inspected = _inspected_copy(archive, path)
        return torch.export.load(inspected)
    except (UnsafeModelError, ModelLoadError):
        raise
    except Exception as error:  # zipfile, json and torch raise many types for bytes that are no archive
        raise ModelLoadError(
            f"{path} is no exported program that torch {torch.__version__} reads: {first_line(error)}"
        ) from error


def _inspected_copy(archive: zipfile.ZipFile, path: Path) -> io.BytesIO:
    infos = [info for info in archive.infolist() if not info.is_dir()]
    names = [info.filename for info in infos]
    roots = {PurePosixPath(name).parts[0] for name in names}
    if len(roots) != 1 or len(set(names)) != len(names):
        raise UnsafeModelError(f"{path}: an archive has one top folder and no name twice; export it again")
    total = sum(info.file_size for info in infos)
    if total > MAX_ARCHIVE_BYTES:
        raise ModelLoadError(f"{path} unpacks to {total} bytes; at most {MAX_ARCHIVE_BYTES} are read")
    (root,) = roots
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as inspected:
        for info in infos:
            name = info.filename[len(root) + 1 :]
            content = archive.read(info)
            inspected.writestr(zipfile.ZipInfo(info.filename), _inspect(name, content, path))
    copy.seek(0)
    return copy


def _inspect(name: str, content: bytes, path: Path) -> bytes:
    """The content as torch may see it; UnsafeModelError where it must not."""
    if _CONFIG.fullmatch(name):
        for key, entry in json.loads(content)["config"].items():
            if entry.get("use_pickle") or not re.fullmatch(r"(?:weight|tensor)_\d+", str(entry.get("path_name"))):
                raise UnsafeModelError(
                    f"{path}: {key} is stored as a pickle, which can run code; save it as plain tensors"
                )
    elif _SAMPLE_INPUTS.fullmatch(name):
        try:
            torch.load(io.BytesIO(content), weights_only=True)
        except Exception as error:
            raise UnsafeModelError(
                f"{path}: its sample inputs are a pickle of more than tensors, which can run code; export it again"
            ) from error
    elif _PROGRAM.fullmatch(name):
        program = json.loads(content)
        # Guards are source text that torch would compile. We check shapes ourselves and never ask for them.
        program["guards_code"] = []
        for where, text in _texts(program):
            if not _is_harmless(where, text):
                raise UnsafeModelError(f"{path}: {where} {text[:60]!r} is not among what an exported model says")
        return json.dumps(program).encode()
    elif not (_PAYLOAD.fullmatch(name) or name in _MARKS):
        raise UnsafeModelError(f"{path}: entry {name!r} is not among what an exported model needs, and may run code")
    return content


def _is_harmless(where: str, text: str) -> bool:
    if where == "expr_str":
        return _EXPRESSION.fullmatch(text) is not None
    if where in ("target", "as_operator"):
        return _TARGET.fullmatch(text) is not None
    if where in ("in_spec", "out_spec"):
        # Other containers name classes that torch would import.
        return all(kind in _CONTAINERS for kind in _spec_types(json.loads(text)))
    return True


def _spec_types(spec: Any) -> Iterator[object]:
    if isinstance(spec, dict):
        yield spec.get("type")
        yield from _spec_types(spec.get("children_spec", []))
    elif isinstance(spec, list):
        for inner in spec:
            yield from _spec_types(inner)


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a graph's JSON that torch evaluates or looks up, with the key it stands under."""
    if isinstance(value, dict):
        is_node = "inputs" in value and "outputs" in value
        for inner_key, inner in value.items():
            # `target` names an operator only in a node; elsewhere it is the name of a weight.
            yield from _texts(inner, inner_key if inner_key != "target" or is_node else "")
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, key)
    elif isinstance(value, str):
        yield key, value
