"""Who gets in: how many requests, and how many bytes of them, this replica holds at one time.

Knows counts and ages. Knows no HTTP, no Ray and no model; the clock is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serve_app.settings import Limits
from split_inference.errors import OverloadedError


class Ticket:
    """One request that got in."""

    def __init__(self, *, entered_s: float) -> None:
        self.entered_s = entered_s
        self.is_read = False


class Admission:
    """Counts requests that arrive, wait or run, and refuses those beyond the limits.

    Used from one event loop, so that plain integers are enough.
    """

    def __init__(self, limits: Limits, *, now_s: Callable[[], float]) -> None:
        self._limits = limits
        self._now_s = now_s
        self._unread = 0
        self._bytes = 0
        self._tickets: dict[int, Ticket] = {}

    @contextmanager
    def enter(self, *, body_bytes: int) -> Iterator[Ticket]:
        """Hold a place for a body of at most `body_bytes`, until the answer is made. Raises OverloadedError."""
        limits = self._limits
        if len(self._tickets) >= limits.max_pending_requests:
            raise OverloadedError(f"{len(self._tickets)} requests are waiting here; send it again later")
        if self._unread >= limits.max_unread_requests:
            raise OverloadedError(f"{self._unread} bodies are still arriving here; send it again later")
        if self._bytes + body_bytes > limits.max_pending_bytes:
            raise OverloadedError(f"{self._bytes} bytes are waiting here; send it again later")
        ticket = Ticket(entered_s=self._now_s())
        self._tickets[id(ticket)] = ticket
        self._unread += 1
        self._bytes += body_bytes
        try:
            yield ticket
        finally:
            self.has_read(ticket)
            self._bytes -= body_bytes
            del self._tickets[id(ticket)]

    def has_read(self, ticket: Ticket) -> None:
        """The request's body is here: it no longer counts among those that arrive."""
        if not ticket.is_read:
            ticket.is_read = True
            self._unread -= 1

    @property
    def pending(self) -> int:
        """Requests that arrive, wait or run."""
        return len(self._tickets)

    def oldest_age_s(self) -> float:
        """Age of the oldest request that is not answered yet; 0 where there is none."""
        # A dict keeps the order of insertion, so the first ticket is the oldest.
        oldest = next(iter(self._tickets.values()), None)
        return 0.0 if oldest is None else self._now_s() - oldest.entered_s
