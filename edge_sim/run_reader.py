"""A run's folder read back: its header, and its records as columns. Knows JSON and NumPy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
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


def read_run(folder: Path) -> Run:
    """Read it all. DataError names file and line of what is no record."""
    header = read_header(folder)
    file = folder / "requests.jsonl"
    if not file.is_file():
        raise DataError(f"{folder} has no requests.jsonl; is it a run's folder?")
    if file.stat().st_size > MAX_BYTES:
        raise DataError(f"{file} has {file.stat().st_size} bytes; at most {MAX_BYTES} are read")
    numbers: dict[str, list[float]] = {name: [] for name in NUMBERS}
    codes: dict[str, list[int]] = {name: [] for name in TEXTS}
    known: dict[str, dict[str, int]] = {name: {} for name in TEXTS}
    in_time: list[bool] = []
    correct: list[int] = []
    cut_off = False
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                cut_off = True
                break
            try:
                row = json.loads(line)
                values = [float(row[name]) for name in NUMBERS]
                texts = [row[name] or "" for name in TEXTS]
                timely, right = bool(row["in_time"]), row["correct"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{file}:{number}: no record of a request: {type(error).__name__} {error}") from None
            for name, value in zip(NUMBERS, values, strict=True):
                numbers[name].append(value)
            for name, text in zip(TEXTS, texts, strict=True):
                codes[name].append(known[name].setdefault(str(text), len(known[name])))
            in_time.append(timely)
            correct.append(-1 if right is None else int(bool(right)))
    return Run(
        folder=folder,
        header=header,
        numbers={name: np.asarray(values, dtype=np.float64) for name, values in numbers.items()},
        texts={name: Texts(tuple(known[name]), np.asarray(codes[name], dtype=np.int32)) for name in TEXTS},
        in_time=np.asarray(in_time, dtype=np.bool_),
        correct=np.asarray(correct, dtype=np.int8),
        cut_off=cut_off,
    )


def read_header(folder: Path) -> dict[str, Any]:
    """header.json. DataError where it is none."""
    try:
        header = json.loads((folder / "header.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} is no run's folder: {' '.join(str(error).split())}") from None
    if not isinstance(header, dict):
        raise DataError(f"{folder}/header.json is no header")
    return header
