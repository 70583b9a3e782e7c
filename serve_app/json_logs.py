"""Logs that machines read: one JSON object per line, and one line per request.

Knows `logging` and the request's facts. Knows no Ray and no HTTP. Text from outside cannot end a line or colour a
terminal: everything but printable ASCII is escaped.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from serve_app.observer import BatchFacts, RequestFacts
from serve_app.request_context import trace_id_of

# What a record may carry in `extra`, in the order in which a line has it.
FIELDS = (
    "request_id",
    "trace_id",
    "trace_parent",
    "client",
    "protocol",
    "status",
    "error",
    "split_point",
    "codec",
    "samples",
    "bytes_in",
    "total_s",
    "timings_s",
    "suppressed",
)
_MICROSECOND_DIGITS = 6


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time, level, logger, message, then those of FIELDS that it has."""

    def format(self, record: logging.LogRecord) -> str:
        """One line without its end."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for field in FIELDS:
            value = getattr(record, field, None)
            if value is not None:
                line[field] = _plain(value)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return json.dumps(line, separators=(",", ":"), default=str, allow_nan=False)


class RequestLog:
    """An observer that writes a line for each request: refusals and faults at WARNING, all others at INFO.

    Of the refusals only so many a second are warnings, and the rest are INFO: an overloaded server refuses thousands,
    and writing each of them down would be most of its work. Below the logger's level a request costs a microsecond.
    """

    def __init__(
        self,
        log: logging.Logger,
        *,
        max_warnings_per_s: int = 10,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._max_warnings = max_warnings_per_s
        self._now_s = now_s
        self._second = -1
        self._warnings = 0
        self._suppressed = 0

    def batch_done(self, facts: BatchFacts) -> None:
        """Nothing: a batch's times are in its requests' lines."""

    def request_done(self, facts: RequestFacts) -> None:
        """One line, if the logger takes it."""
        failed = facts.error is not None or facts.status >= 400
        level = logging.WARNING if failed and self._may_warn() else logging.INFO
        if not self._log.isEnabledFor(level):
            return
        extra: dict[str, Any] = {
            "request_id": facts.request_id,
            "trace_id": trace_id_of(facts.trace_parent),
            "trace_parent": facts.trace_parent,
            "client": facts.client,
            "protocol": facts.protocol,
            "status": facts.status,
            "error": facts.error,
            "split_point": facts.split_point,
            "codec": facts.codec,
            "samples": facts.samples,
            "bytes_in": facts.bytes_in,
            "total_s": facts.total_s,
            "timings_s": facts.timings_s,
        }
        if level == logging.WARNING and self._suppressed:
            extra["suppressed"] = self._suppressed
            self._suppressed = 0
        self._log.log(level, "request %s", "refused" if failed else "answered", extra=extra)

    def _may_warn(self) -> bool:
        second = math.floor(self._now_s())
        if second != self._second:
            self._second, self._warnings = second, 0
        self._warnings += 1
        if self._warnings > self._max_warnings:
            self._suppressed += 1
            return False
        return True


def _plain(value: Any) -> Any:
    """As JSON has it: no NaN, no infinity, and times with the microseconds that a clock gives."""
    if isinstance(value, float):
        return round(value, _MICROSECOND_DIGITS) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return value
