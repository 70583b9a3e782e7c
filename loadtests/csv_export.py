"""A run's seconds as CSV, for a spreadsheet or a notebook: one line a second, durations in milliseconds.

Knows the columns. Reads a record and writes a file; draws nothing.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

from loadtests.run_result import RunResult
from split_inference.errors import DataError

COLUMNS = (
    "second", "intended", "sent", "dropped", "answered", "good", "refused", "failed",
    "latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "latency_max_ms",
    "server_queue_p50_ms", "server_queue_p99_ms",
)  # fmt: skip


def write_seconds(folder: Path, result: RunResult) -> Path:
    """seconds.csv in the run's folder; a percentile of nothing is empty. DataError where it cannot be written."""
    file = folder / "seconds.csv"
    partial = folder / ".seconds.csv.partial"
    try:
        with partial.open("w", newline="", encoding="utf-8") as target:
            writer = csv.writer(target)
            writer.writerow(COLUMNS)
            for each in result.seconds:
                counts = (each.second, each.intended, each.sent, each.dropped, each.answered, each.good)
                times_s = each.latency.percentiles((0.5, 0.95, 0.99, 1.0))
                queue_s = each.server_queue.percentiles((0.5, 0.99))
                writer.writerow([*counts, each.refused, each.failed, *map(_ms, [*times_s, *queue_s])])
        partial.replace(file)
    except OSError as error:
        raise DataError(f"cannot write {file}: {error.strerror}; choose another place") from None
    return file


def _ms(value_s: float) -> str:
    return "" if math.isnan(value_s) else f"{1000 * value_s:.4g}"
