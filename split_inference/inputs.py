"""Folders of inputs: encoded images or sounds as a device would have them, with labels where there are any.

Read are: a file; a folder of images or sounds, with labels.csv (columns file,label) or one folder per class; and an
.npz archive of JPEGs that share one header (jpeg_prefix, jpeg_body, offsets, labels), alone or as FOLDER/test.npz.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from split_inference.errors import DataError

IMAGE_SUFFIXES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
}
AUDIO_SUFFIXES = {".wav": "audio/wav", ".flac": "audio/flac", ".ogg": "audio/ogg"}
MEDIA_TYPES = IMAGE_SUFFIXES | AUDIO_SUFFIXES
# Of the index of an output; int() takes seconds for thousands of digits.
_MOST_DIGITS = 9


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedInput:
    """One image or sound, still encoded."""

    name: str
    data: bytes
    media_type: str
    label: int | None
    """Index of the right output, or None where nobody said."""
    header_bytes: int = 0
    """How many of the bytes are a header that all inputs of the set share, and that a fair comparison may leave out."""


def read_inputs(
    path: Path, *, limit: int | None = None, seed: int = 0, labels: Sequence[str] = ()
) -> list[EncodedInput]:
    """All inputs under a path, or a seeded sample of `limit` of them, sorted by name.

    `labels` are the model's, so that folders named like them count as labels. Raises DataError: nothing there,
    nothing readable there, or a labels.csv that does not fit; the message says what and where.
    """
    if path.is_file() and path.suffix == ".npz":
        return _read_archive(path, limit, seed)
    if path.is_file():
        if path.suffix.lower() not in MEDIA_TYPES:
            raise DataError(
                f"{path} is no image or sound: known are {', '.join(sorted(MEDIA_TYPES))} and .npz archives"
            )
        return [_read_file(path, path.name, None)]
    if not path.is_dir():
        raise DataError(f"no file or folder {path}")
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in MEDIA_TYPES and p.is_file())
    if not files:
        archive = path / "test.npz"
        if archive.is_file():
            return _read_archive(archive, limit, seed)
        raise DataError(f"{path} holds no images or sounds: known are {', '.join(sorted(MEDIA_TYPES))}, or a test.npz")
    known = _labels_from_table(path / "labels.csv") if (path / "labels.csv").is_file() else None
    index = {label: i for i, label in enumerate(labels)}
    chosen = files if limit is None or limit >= len(files) else [files[i] for i in _sample(len(files), limit, seed)]
    result = []
    for file in chosen:
        name = file.relative_to(path).as_posix()
        label = known.get(name) if known is not None else index.get(file.parent.name)
        result.append(_read_file(file, name, label))
    return result


def _sample(count: int, limit: int, seed: int) -> list[int]:
    return sorted(int(i) for i in np.random.default_rng(seed).choice(count, size=limit, replace=False))


def _read_file(file: Path, name: str, label: int | None) -> EncodedInput:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error
    return EncodedInput(name=name, data=data, media_type=MEDIA_TYPES[file.suffix.lower()], label=label)


def _labels_from_table(path: Path) -> dict[str, int]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        return _labels_from_rows(rows, path)
    except csv.Error as error:
        raise DataError(f"{path} line {rows.line_num + 1}: {error}") from None


def _labels_from_rows(rows: csv.DictReader[str], path: Path) -> dict[str, int]:
    if rows.fieldnames is None or not {"file", "label"} <= set(rows.fieldnames):
        raise DataError(f"{path} needs columns file and label, has {rows.fieldnames}")
    result = {}
    for row in rows:
        # A short row has None where text is missing; other digits than 0 to 9 are no index.
        label = row["label"] or ""
        if not (label.isascii() and label.isdecimal() and len(label) <= _MOST_DIGITS):
            raise DataError(f"{path} line {rows.line_num}: label must be the index of an output, got {label[:80]!r}")
        if not row["file"]:
            raise DataError(f"{path} line {rows.line_num}: no file stands beside the label")
        result[row["file"]] = int(label)
    return result


def _read_archive(path: Path, limit: int | None, seed: int) -> list[EncodedInput]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            prefix = archive["jpeg_prefix"].tobytes()
            body = archive["jpeg_body"].tobytes()
            offsets = _whole_numbers(archive["offsets"])
            labels = _whole_numbers(archive["labels"])
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen types for bytes that are no archive
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is no archive with jpeg_prefix, jpeg_body, offsets and labels: {reason}") from error
    count = len(labels)
    if count == 0:
        raise DataError(f"{path} holds no images")
    if min(labels) < 0:
        raise DataError(f"{path}: a label must be the index of an output, got {min(labels)}")
    ascending = all(start <= end for start, end in pairwise([0, *offsets]))
    if len(offsets) != count + 1 or offsets[-1] != len(body) or not ascending:
        raise DataError(f"{path}: offsets do not fit {count} images of {len(body)} bytes together")
    chosen = range(count) if limit is None or limit >= count else _sample(count, limit, seed)
    return [
        EncodedInput(
            name=f"{path.stem}-{i:05}.jpg",
            data=prefix + body[offsets[i] : offsets[i + 1]],
            media_type="image/jpeg",
            label=labels[i],
            header_bytes=len(prefix),
        )
        for i in chosen
    ]


def _whole_numbers(values: NDArray[Any]) -> list[int]:
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError(f"one whole number each is needed, got {values.dtype} {list(values.shape)}")
    result: list[int] = values.tolist()
    return result
