"""A run on disk: runs/<time>/header.json says how it was made, requests.jsonl has one line per request.

The header is written first and whole, so that a run that was killed still says what it was; each line is complete when
it is written, so that what was measured up to then can be read. Knows no model and no server.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Any

from split_inference.errors import UsageError
from split_inference.figures import made_by

RUNS = Path("runs")
# Why a run says nothing, until it ends and says better: one that was killed cannot say so any more.
NOT_ENDED = "the run did not end"


def new_run_folder(runs: Path = RUNS, *, now: datetime | None = None) -> Path:
    """Make runs/<UTC time>, numbered where two runs start in one second; UsageError where it cannot be."""
    stamp = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
    for number in range(1, 1000):
        folder = runs / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UsageError(f"cannot write {folder}: {error.strerror}") from error
        return folder
    raise UsageError(f"{runs} has a thousand runs of {stamp} already")


class RunRecorder:
    """Appends requests to a run's folder; a context manager.

    `facts` explain the run in the header: model, digest, config, what a mode means. Values have to be JSON.
    """

    def __init__(self, folder: Path, *, command: str, facts: Mapping[str, Any]) -> None:
        self.folder = folder
        header = {
            "started_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "host": socket.gethostname(),
            **made_by(command),
            **facts,
            "requests": "requests.jsonl: one JSON object per request; seconds and bytes",
        }
        self._write_header(header)
        self._lines: TextIOWrapper = (folder / "requests.jsonl").open("x", encoding="utf-8")

    def request(self, **facts: Any) -> None:
        """Append one request; flushed, so that another process may follow the file."""
        self._lines.write(json.dumps(facts, separators=(",", ":"), allow_nan=False) + "\n")
        self._lines.flush()

    def add_facts(self, facts: Mapping[str, Any]) -> None:
        """Put what is known only at the end into the header; also after closing."""
        header = json.loads((self.folder / "header.json").read_text(encoding="utf-8"))
        self._write_header({**header, **facts})

    def _write_header(self, header: Mapping[str, Any]) -> None:
        partial = self.folder / ".header.json.partial"
        partial.write_text(json.dumps(header, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(self.folder / "header.json")

    def lines(self, text: str) -> None:
        """Append whole lines that somebody else put together; not flushed one by one."""
        self._lines.write(text)

    def close(self) -> None:
        """Put everything on disk; safe to call twice."""
        if not self._lines.closed:
            self._lines.flush()
            os.fsync(self._lines.fileno())
            self._lines.close()

    def __enter__(self) -> RunRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
