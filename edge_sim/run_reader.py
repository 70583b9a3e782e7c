"""A run's folder read back: its header, and its records as columns. Knows JSON and NumPy."""

from __future__ import annotations

import itertools
import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from split_inference.errors import DataError

NUMBERS = (
    "intended_s",
    "late_s",
    "total_s",
    "wait_s",
    "head_s",
    "up_queue_s",
    "up_s",
    "up_propagation_s",
    "up_loss_s",
    "server_queue_s",
    "server_s",
    "down_s",
    "local_s",
    "up_bytes",
    "down_bytes",
    "compute_j",
    "radio_j",
    "idle_j",
    "attempts",
)
TEXTS = ("device", "group", "policy", "mode", "model", "split_point", "codec", "outcome", "reason")
# Ten million requests of 600 bytes; more is several runs.
MAX_BYTES = 6 << 30
# Parsed together; as objects they take a few megabytes.
CHUNK_ROWS = 1000
_NUMBERS_OF, _TEXTS_OF, _VERDICT_OF = itemgetter(*NUMBERS), itemgetter(*TEXTS), itemgetter("in_time", "correct")


@dataclass(frozen=True, slots=True)
class Texts:
    """A column of texts: each row's place among the different ones."""

    names: tuple[str, ...]
    """"" where a row has none."""
    codes: NDArray[np.int32]

    def where(self, name: str) -> NDArray[np.bool_]:
        """The rows that have it."""
        found: NDArray[np.bool_] = self.codes == (self.names.index(name) if name in self.names else -1)
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """All requests of a run, by column."""

    folder: Path
    header: Mapping[str, Any]
    numbers: Mapping[str, NDArray[np.float64]]
    texts: Mapping[str, Texts]
    in_time: NDArray[np.bool_]
    correct: NDArray[np.int8]
    """1, 0, or -1 where nobody knows."""
    cut_off: bool
    """The last line was not whole: the run was killed while it wrote."""

    def __len__(self) -> int:
        return len(self.in_time)

    @property
    def seconds(self) -> float:
        """How long requests were made: as planned, or until the run was interrupted."""
        said = self.header.get("ended_at_s") or self.header.get("duration_s") or 0.0
        return float(said) or max(1e-9, float(self.numbers["intended_s"].max(initial=0.0)))


def read_run(folder: Path) -> Run:
    """Read it all. DataError names file and line of what is no record."""
    header = read_header(folder)
    file = folder / "requests.jsonl"
    if not file.is_file():
        raise DataError(f"{folder} has no requests.jsonl; is it a run's folder?")
    if file.stat().st_size > MAX_BYTES:
        raise DataError(f"{file} has {file.stat().st_size} bytes; at most {MAX_BYTES} are read")
    columns = _Columns()
    number, cut_off = 1, False
    with file.open("rb") as lines:
        while chunk := list(itertools.islice(lines, CHUNK_ROWS)):
            cut_off = not chunk[-1].endswith(b"\n")
            if cut_off:
                chunk.pop()
            try:
                columns.add(chunk)
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{file}:{_bad_line(chunk, number)}") from None
            number += len(chunk)
    return columns.run(folder, header, cut_off=cut_off)


class _Columns:
    """Rows turned into columns, many at a time: a row by itself would cost twice as much."""

    def __init__(self) -> None:
        self._numbers: list[NDArray[np.float64]] = []
        self._codes: list[NDArray[np.int32]] = []
        self._known: dict[str, dict[str, int]] = {name: {} for name in TEXTS}
        self._in_time: list[NDArray[np.bool_]] = []
        self._correct: list[NDArray[np.int8]] = []

    def add(self, lines: Sequence[bytes]) -> None:
        """Raises ValueError, KeyError or TypeError where one of them is no record; then nothing more is to be added."""
        if not lines:
            return
        rows = json.loads(b"[" + b",".join(lines) + b"]")
        if len(rows) != len(lines):
            raise ValueError("two records in a line")
        # None would become "not a number".
        numbers = [array("d", column) for column in zip(*map(_NUMBERS_OF, rows), strict=True)]
        texts = list(zip(*map(_TEXTS_OF, rows), strict=True))
        in_time, correct = zip(*map(_VERDICT_OF, rows), strict=True)
        codes = []
        for name, column in zip(TEXTS, texts, strict=True):
            known = self._known[name]
            place = {text: known.setdefault(str(text or ""), len(known)) for text in dict.fromkeys(column)}
            codes.append([place[text] for text in column])
        self._numbers.append(np.array(numbers, dtype=np.float64))
        self._codes.append(np.array(codes, dtype=np.int32))
        self._in_time.append(np.array(in_time, dtype=np.bool_))
        self._correct.append(np.array([-1 if each is None else bool(each) for each in correct], dtype=np.int8))

    def run(self, folder: Path, header: Mapping[str, Any], *, cut_off: bool) -> Run:
        numbers = np.concatenate([np.empty((len(NUMBERS), 0)), *self._numbers], axis=1)
        codes = np.concatenate([np.empty((len(TEXTS), 0), dtype=np.int32), *self._codes], axis=1)
        return Run(
            folder=folder,
            header=header,
            numbers=dict(zip(NUMBERS, numbers, strict=True)),
            texts={name: Texts(tuple(self._known[name]), codes[index]) for index, name in enumerate(TEXTS)},
            in_time=np.concatenate([np.empty(0, dtype=np.bool_), *self._in_time]),
            correct=np.concatenate([np.empty(0, dtype=np.int8), *self._correct]),
            cut_off=cut_off,
        )


def _bad_line(lines: Sequence[bytes], first: int) -> str:
    """The number of the first line that is no record, and why it is none."""
    for number, line in enumerate(lines, start=first):
        try:
            _Columns().add([line])
        except (ValueError, KeyError, TypeError) as error:
            return f"{number}: no record of a request: {type(error).__name__} {error}"
    return f"{first}: no records of requests in this line and the {len(lines) - 1} after it"


def read_header(folder: Path) -> dict[str, Any]:
    """header.json. DataError where it is none."""
    try:
        header = json.loads((folder / "header.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} is no run's folder: {' '.join(str(error).split())}") from None
    if not isinstance(header, dict):
        raise DataError(f"{folder}/header.json is no header")
    return header
