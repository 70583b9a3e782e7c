"""A run on disk: header.json says how it was made, result.json what came out, and beside them what people look at.

Knows the files' names. The header is written before the load, so that a run that was killed still says what it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from loadtests.answer_check import Verdict
from split_inference.errors import UsageError
from split_inference.figures import made_by

RUNS = Path("runs")
RECORD_COLUMNS = "number,intended_s,sent_s,ended_s,outcome,reason,option,counted,queue_s,batch_samples\n"
_WRITE_BYTES = 1 << 20


def new_run_folder(experiment: str, *, folder: Path | None = None, runs: Path = RUNS) -> Path:
    """Make `folder`, or runs/<UTC time>-<experiment>; UsageError where it cannot be or is in use."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    for number in range(1, 1000):
        path = folder or runs / (f"{stamp}-{experiment}" if number == 1 else f"{stamp}-{experiment}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if folder is None:
                continue
            if not path.is_dir() or any(path.iterdir()):
                raise UsageError(f"{path} exists already; give --folder another name") from None
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from None
        return path
    raise UsageError(f"{runs} has a thousand runs of {stamp} already")


def write_header(folder: Path, *, command: str, facts: Mapping[str, Any]) -> None:
    """header.json: machine, versions, commit, command and what the run was asked for."""
    header = {"started_at": now_text(), **made_by(command), "locust": metadata.version("locust"), **facts}
    partial = folder / ".header.json.partial"
    partial.write_text(json.dumps(header, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(folder / "header.json")


def now_text() -> str:
    """ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class RecordFile:
    """Every request as a line of CSV; seconds since the run began, raw."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: TextIOWrapper = path.open("w", buffering=_WRITE_BYTES, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from None
        self._file.write(RECORD_COLUMNS)

    def write(
        self,
        number: int,
        label: str,
        *,
        intended_s: float,
        sent_s: float,
        ended_s: float,
        verdict: Verdict,
        counted: bool,
    ) -> None:
        """Append one request."""
        queue_s = verdict.timings_s.get("queue", "")
        batch = "" if verdict.batch_samples is None else verdict.batch_samples
        self._file.write(
            f"{number},{intended_s:.9f},{sent_s:.9f},{ended_s:.9f},{verdict.kind},{_cell(verdict.reason)},"
            f"{_cell(label)},{int(counted)},{queue_s},{batch}\n"
        )

    def close(self) -> None:
        """Put everything on disk."""
        self._file.close()


def _cell(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if "," in text or '"' in text else text
