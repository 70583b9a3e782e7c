"""Who gets in: how many requests, bytes of them and streams a replica holds, in all and of each client.

Of a client's share, bytes count from their announcement; of what all hold together, when they are here: what is only
announced takes no memory, and would be a way to keep others out.

Knows counts, rates and ages. Knows no HTTP, no Ray and no model; the clock is an argument. Used from one event loop, so
that plain numbers are enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serve_app.settings import Limits
from serve_app.tokens import ANONYMOUS, Client
from split_inference.errors import OverloadedError, OverShareError

# When to come back where no better time is known.
_RETRY_AFTER_S = 1.0
# Places are free again after about one answer's time; half a second would leave them empty meanwhile.
_SHARE_RETRY_AFTER_S = 0.1
# Of a client with a tiny rate: a longer wait would not fit into a header.
_MAX_RETRY_AFTER_S = 3600.0
# 0.29 * 100 is a hair less than 29, and a bucket that filled for exactly the stated time a hair less than full.
_ROUNDING = 1e-6


@dataclass(kw_only=True, slots=True, eq=False)
class _Use:
    """What one client uses now."""

    places: int = 0
    bytes: int = 0
    reading: int = 0
    streams: int = 0
    tokens: float = 0.0
    """Left in the bucket: requests that may come at once."""
    filled_s: float = 0.0


@dataclass(kw_only=True, slots=True, eq=False)
class Ticket:
    """One request that got in."""

    client: Client
    entered_s: float
    holder: object
    """What will answer it."""
    bytes: int = 0
    """Of its body, that are here."""
    is_reading: bool = False


class Admission:
    """Counts requests that arrive, wait or run, and refuses those beyond the limits."""

    def __init__(self, limits: Limits, *, now_s: Callable[[], float]) -> None:
        self._limits = limits
        self._now_s = now_s
        self._reading = 0
        self._bytes = 0
        self._streams = 0
        # A dict keeps the order of insertion, so that the first ticket is the oldest.
        self._tickets: dict[int, Ticket] = {}
        self._uses: dict[str, _Use] = {}

    @contextmanager
    def enter(self, *, body_bytes: int, client: Client = ANONYMOUS, holder: object = None) -> Iterator[Ticket]:
        """Hold a place until `holder` has answered. The body may have `body_bytes`; `arrived` is told what comes of it.

        Raises OverShareError where this client has used up its own part, OverloadedError where nothing is left.
        """
        limits = self._limits
        use = self._use_of(client)
        allowed = self.places_of(client)
        if len(self._tickets) >= limits.max_pending_requests:
            raise OverloadedError(f"{len(self._tickets)} requests are waiting here; send it again later")
        if use.places >= allowed:
            raise OverShareError(
                f"{client.name} has {use.places} requests here, which is its share; send it again later",
                retry_after_s=_SHARE_RETRY_AFTER_S,
            )
        # Else a few large bodies, or some without a length, would hold everybody's bytes with a part of the places.
        # One body is let in at any time, because a small share may be less than one.
        if client.share < 1 and use.places and use.bytes + body_bytes > self.bytes_of(client):
            raise OverShareError(
                f"{client.name} has {use.bytes} bytes here, and with this its share is used up; send it again later",
                retry_after_s=_SHARE_RETRY_AFTER_S,
            )
        self._refuse_too_many_bytes(body_bytes)
        # Last, because it takes something away.
        self._take_from_bucket(client, use)
        ticket = Ticket(client=client, entered_s=self._now_s(), holder=holder)
        self._tickets[id(ticket)] = ticket
        use.places += 1
        use.bytes += body_bytes
        try:
            yield ticket
        finally:
            self.has_read(ticket)
            self._bytes -= ticket.bytes
            use.places -= 1
            use.bytes -= body_bytes
            del self._tickets[id(ticket)]

    def arrived(self, ticket: Ticket, count: int) -> None:
        """So many more bytes of its body are here. Raises OverloadedError where all bodies together are too large."""
        self._refuse_too_many_bytes(count)
        ticket.bytes += count
        self._bytes += count

    def _refuse_too_many_bytes(self, more: int) -> None:
        if self._bytes + more > self._limits.max_pending_bytes:
            raise OverloadedError(f"{self._bytes} bytes are waiting here; send it again later")

    @contextmanager
    def stream(self, client: Client) -> Iterator[None]:
        """Hold one of the streams, whose frames need places of their own.

        Raises OverShareError where this client has as many as it may, OverloadedError where all have.
        """
        use = self._use_of(client)
        allowed = _part_of(self._limits.max_streams, client)
        if self._streams >= self._limits.max_streams:
            raise OverloadedError(f"{self._streams} streams are open here; come again later")
        if use.streams >= allowed:
            raise OverShareError(
                f"{client.name} has {use.streams} streams here, which is its share; come again later",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._streams += 1
        use.streams += 1
        try:
            yield
        finally:
            self._streams -= 1
            use.streams -= 1

    def reading(self, ticket: Ticket) -> None:
        """The body did not come with its headers. Raises OverShareError or OverloadedError where too many do that."""
        if ticket.is_reading:
            return
        limits = self._limits
        use = self._use_of(ticket.client)
        most = max(1, int(limits.max_pending_requests * limits.max_unread_share))
        if use.reading >= most:
            raise OverShareError(
                f"{use.reading} bodies of {ticket.client.name} are still arriving here, the most for one client; "
                "send it again later",
                retry_after_s=_RETRY_AFTER_S,
            )
        if self._reading >= limits.most_unread:
            raise OverloadedError(f"{self._reading} bodies are still arriving here; send it again later")
        ticket.is_reading = True
        use.reading += 1
        self._reading += 1

    def has_read(self, ticket: Ticket) -> None:
        """The request's body is here: it no longer counts among those that arrive."""
        if ticket.is_reading:
            ticket.is_reading = False
            self._use_of(ticket.client).reading -= 1
            self._reading -= 1

    def places_of(self, client: Client) -> int:
        """Places of this replica that the client may hold at one time."""
        return _part_of(self._limits.max_pending_requests, client)

    def bytes_of(self, client: Client) -> int:
        """Bytes of bodies that the client may hold at one time, beyond a single body."""
        return math.floor(self._limits.max_pending_bytes * client.share)

    def held_by(self, holder: object) -> int:
        """Requests that wait for this one's answer."""
        return sum(ticket.holder is holder for ticket in self._tickets.values())

    @property
    def pending(self) -> int:
        """Requests that arrive, wait or run."""
        return len(self._tickets)

    def oldest_age_s(self) -> float:
        """Age of the oldest request that is not answered yet; 0 where there is none."""
        oldest = next(iter(self._tickets.values()), None)
        return 0.0 if oldest is None else self._now_s() - oldest.entered_s

    def _use_of(self, client: Client) -> _Use:
        # Clients come from the file of tokens, so that there are only so many.
        use = self._uses.get(client.name)
        if use is None:
            use = self._uses[client.name] = _Use(tokens=client.burst, filled_s=self._now_s())
        return use

    def _take_from_bucket(self, client: Client, use: _Use) -> None:
        if client.rate_per_s is None:
            return
        now_s = self._now_s()
        use.tokens = min(client.burst, use.tokens + (now_s - use.filled_s) * client.rate_per_s)
        use.filled_s = now_s
        if use.tokens < 1 - _ROUNDING:
            raise OverShareError(
                f"{client.name} sends more than its {client.rate_per_s:g} requests a second; send it again later",
                retry_after_s=min((1 - use.tokens) / client.rate_per_s, _MAX_RETRY_AFTER_S),
            )
        use.tokens -= 1


def _part_of(total: int, client: Client) -> int:
    """What a client may have of it at one time: its share, and one in any case."""
    return max(1, math.floor(total * client.share + _ROUNDING))
