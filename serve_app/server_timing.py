"""The `server-timing` header: where a request's time went, as browsers and `curl -v` show it.

Knows the header's grammar (W3C Server Timing: `name;dur=milliseconds`, comma-separated). Pure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

# A token of HTTP (RFC 9110, 5.6.2) without what a stage's name never needs.
_NO_TOKEN = re.compile(r"[^A-Za-z0-9._-]+")


def server_timing(timings_s: Mapping[str, float]) -> str:
    """The header's value in the mapping's order; empty where nothing was measured.

    Milliseconds with at most three decimals. Times that are no times (negative, NaN, infinite) are left out.

    >>> server_timing({"queue": 0.001234, "tail": 0.0056})
    'queue;dur=1.234, tail;dur=5.6'
    """
    return ", ".join(
        f"{_NO_TOKEN.sub('-', stage) or '-'};dur={_milliseconds(seconds)}"
        for stage, seconds in timings_s.items()
        if math.isfinite(seconds) and seconds >= 0
    )


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3f}".rstrip("0").rstrip(".")
