"""What came back, judged: right, wrong, refused or failed; and where the server says its time went.

Knows reply frames, the statuses of our own refusals and the `server-timing` header. Knows no sockets and no clock. Text
from the server is cut and cleaned before it becomes a reason that somebody reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from split_inference.errors import MalformedFrameError
from split_inference.wire import best_class

Kind = Literal["right", "wrong", "unchecked", "refused", "failed"]

# Asked again later, the same request might be answered: load, deadline, a body that came too slowly.
REFUSED_STATUSES = frozenset({408, 429, 503})
MALFORMED_REPLY = "malformed reply"
_MAX_REASON_CHARS = 60
_MAX_ERROR_BODY_BYTES = 65_536
_BATCH = re.compile(r"(?:^|[,\s])batch;desc=\"?(\d{1,5})\b")


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What one response means."""

    kind: Kind
    reason: str = ""
    """Of a refusal or failure, as in "503 OverloadedError"."""
    timings_s: Mapping[str, float] = field(default_factory=dict)
    """Stage to seconds, as the reply says; of answers only."""
    batch_samples: int | None = None


def judge(status: int, header: Callable[[str], str | None], body: bytes, *, answer: int | None) -> Verdict:
    """The meaning of a response; `header` gives a header's value by its lower-case name.

    `answer` is the class index that is right, None where nobody knows.
    """
    if status != 200:
        kind: Kind = "refused" if status in REFUSED_STATUSES else "failed"
        return Verdict(kind=kind, reason=f"{status} {_error_name(header, body)}".strip())
    try:
        given, timings_s = best_class(body)
    except MalformedFrameError:
        return Verdict(kind="failed", reason=MALFORMED_REPLY)
    batch = _BATCH.search(header("server-timing") or "")
    return Verdict(
        kind="unchecked" if answer is None else "right" if given == answer else "wrong",
        timings_s=timings_s,
        batch_samples=int(batch[1]) if batch else None,
    )


def _error_name(header: Callable[[str], str | None], body: bytes) -> str:
    name: object = header("x-error")
    if not name and len(body) <= _MAX_ERROR_BODY_BYTES:
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            # A body of nothing but brackets nests too deeply for the parser.
            return ""
        name = content.get("error") if isinstance(content, dict) else None
    return printable(name, most_chars=_MAX_REASON_CHARS)


def printable(said: object, *, most_chars: int) -> str:
    """A server's text as it may be shown: one line, cut, without what a terminal obeys; empty for what is no text."""
    text = said[: 4 * most_chars] if isinstance(said, str) else ""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())[:most_chars].strip()
