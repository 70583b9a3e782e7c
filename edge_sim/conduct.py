"""What a simulated device is told: how to treat its requests, what to believe of its way, what it may choose from.

Knows seconds, bytes and the seams to policies, heads and servers. Does nothing; worker.py does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edge_sim.fleet_server import FleetServer
from edge_sim.plan import PlanOption
from edge_sim.policy import Policy


@dataclass(frozen=True, kw_only=True, slots=True)
class Conduct:
    """How a device treats its requests, whatever the policy."""

    deadline_s: float
    max_in_flight: int = 2
    """Requests at once: one that computes and one that is on its way."""
    max_attempts: int = 3
    """Times that one request is sent."""
    retry_jitter: float = 0.5
    """Up to this share is added to the wait that a server asks for."""
    upload_limit_bytes_per_s: float | None = None
    """A second's worth may be sent at once; what exceeds it is dropped before anything is computed."""
    switch_s: float = 0.5
    """Beside the round trip of the handshake: to load another head."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PathFacts:
    """What a device believes of its way to the server before it has measured anything."""

    up_bytes_per_s: float
    down_bytes_per_s: float
    round_trip_s: float
    """Without transmission."""


class Heads(Protocol):
    """Runs what a simulated device computes on this machine; see real_heads.py."""

    too_slow: int

    def begin(self, option: int, item: int) -> Awaitable[bytes]: ...


class Choices(Protocol):
    """What a device may do now: replaced as a whole when model or split are switched while it runs."""

    @property
    def options(self) -> Sequence[PlanOption]: ...

    @property
    def whole(self) -> PlanOption: ...

    @property
    def policy(self) -> Policy: ...

    @property
    def model(self) -> str: ...

    @property
    def inputs(self) -> int:
        """How many inputs its options know."""

    @property
    def server(self) -> FleetServer: ...

    @property
    def service_s(self) -> float: ...

    @property
    def reply_bytes(self) -> int: ...

    @property
    def heads(self) -> Heads | None:
        """None: what was prepared is replayed."""
