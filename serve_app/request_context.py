"""Which request this is: its id, and the trace that it is part of.

Pure: headers in, values out; chance is an argument. Knows the W3C Trace Context recommendation
(https://www.w3.org/TR/trace-context/): what is malformed there is ignored, never an error, because a request is worth
answering whatever some hop on its way wrote into it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

RandomHex = Callable[[int], str]
"""So many random bytes, as hexadecimal digits."""

# What request ids of common proxies and SDKs are made of (UUID, ULID, X-Ray's `Root=1-...`). Nothing that ends a log
# line, a header or a string in a shell.
_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=-]{0,127}")

_TRACE_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
# sampled, and (level 2) random-trace-id; all other bits of a child are zero.
_KNOWN_FLAGS = 0x03
# The recommendation asks for 512 characters at least and 32 members at most.
_MAX_TRACE_STATE_CHARS = 2048
_MAX_TRACE_STATE_MEMBERS = 32
_STATE_KEY = r"[a-z0-9][a-z0-9_*/@-]{0,255}"
_STATE_VALUE = r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_STATE_MEMBER = re.compile(rf"({_STATE_KEY})={_STATE_VALUE}")


def request_id_of(inbound: str | None, *, random_hex: RandomHex = secrets.token_hex) -> str:
    """The sender's `x-request-id` where it is safe to log and to send back, else a new one of 32 hex digits."""
    if inbound is not None and _SAFE_ID.fullmatch(inbound):
        return inbound
    return random_hex(16)


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceContext:
    """Position in a trace: this span, and what every hop hands on."""

    trace_id: str
    """32 hex digits, not all zero."""
    span_id: str
    """16 hex digits, not all zero: `parent-id` in the header."""
    flags: int
    """0..255; bit 0: the caller may have recorded this trace."""
    state: str = ""
    """`tracestate` as it came; empty where there is none."""

    @property
    def trace_parent(self) -> str:
        """The header `traceparent`, version 00."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags & _KNOWN_FLAGS:02x}"

    def child(self, *, random_hex: RandomHex = secrets.token_hex) -> TraceContext:
        """A span of our own in the same trace."""
        return TraceContext(
            trace_id=self.trace_id, span_id=_not_zero(random_hex, 8), flags=self.flags & _KNOWN_FLAGS, state=self.state
        )


def trace_context(trace_parents: Sequence[str], trace_states: Sequence[str] = ()) -> TraceContext | None:
    """The caller's position by all headers of either name; None where there is no valid `traceparent`, or several.

    An invalid `tracestate` is dropped alone. One without a valid `traceparent` means nothing.
    """
    if len(trace_parents) != 1:
        return None
    match = _TRACE_PARENT.fullmatch(trace_parents[0].strip(" \t"))
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    # Version 00 ends here; later ones may go on after a hyphen, and ff is none.
    if version == "ff" or (version == "00" and more is not None):
        return None
    if not trace_id.strip("0") or not span_id.strip("0"):
        return None
    state = ",".join(trace_states)
    return TraceContext(
        trace_id=trace_id, span_id=span_id, flags=int(flags, 16), state=state if _is_sane(state) else ""
    )


def trace_id_of(trace_parent: str | None) -> str | None:
    """The trace id inside a `traceparent` that was made here."""
    return trace_parent.split("-")[1] if trace_parent else None


def _is_sane(state: str) -> bool:
    if len(state) > _MAX_TRACE_STATE_CHARS:
        return False
    members = [member for each in state.split(",") if (member := each.strip(" \t"))]
    matches = [_STATE_MEMBER.fullmatch(member) for member in members]
    keys = [match[1] for match in matches if match]
    return len(members) <= _MAX_TRACE_STATE_MEMBERS and len(keys) == len(members) == len(set(keys))


def _not_zero(random_hex: RandomHex, size: int) -> str:
    while True:
        drawn = random_hex(size)
        # All zeros mean "none" in the header.
        if drawn.strip("0"):
            return drawn
