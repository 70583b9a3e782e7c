"""One line in the log per request, with its ids and times as fields.

Knows `logging` and the request's facts. Knows no Ray and no HTTP, and writes no JSON itself: with
`logging_config.encoding: JSON` Serve's own formatter writes every field of a record and escapes what came from outside.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

from serve_app.observer import BatchFacts, RequestFacts
from serve_app.request_context import trace_id_of

_MICROSECOND_DIGITS = 6


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
            "total_s": _rounded(facts.total_s),
            "timings_s": {stage: _rounded(seconds) for stage, seconds in facts.timings_s.items()},
        }
        if level == logging.WARNING and self._suppressed:
            extra["suppressed"] = self._suppressed
            self._suppressed = 0
        known = {field: value for field, value in extra.items() if value is not None}
        self._log.log(level, "request %s", "refused" if failed else "answered", extra=known)

    def _may_warn(self) -> bool:
        second = math.floor(self._now_s())
        if second != self._second:
            self._second, self._warnings = second, 0
        self._warnings += 1
        if self._warnings > self._max_warnings:
            self._suppressed += 1
            return False
        return True


def _rounded(seconds: float) -> float | None:
    """A time with the microseconds that a clock gives; JSON has no NaN and no infinity."""
    return round(seconds, _MICROSECOND_DIGITS) if math.isfinite(seconds) else None
