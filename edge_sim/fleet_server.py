"""What a device of the fleet asks a server, and what may come back: the seam between simulated and real servers."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Ask(NamedTuple):
    """One request as it reaches the server."""

    option: int
    """Index of the option in the model's profile: mode, split point and codec."""
    split_point: str
    """"input" where the whole model is asked for."""
    input: int
    """Index of the input."""
    body_bytes: int
    group: int = 0
    bad: bool = False
    """The body is damaged on purpose; a server answers 400."""
    body: bytes | None = None
    """What was computed just now; None for what was prepared."""


class Served(NamedTuple):
    """An answer."""

    queue_s: float
    """From the body's arrival until its batch began, with decoding."""
    service_s: float
    """Its batch, and the rest of what the server does."""
    batch_samples: int
    body_bytes: int
    right: bool | None
    """Whether the answer is the one that the payload file expects; None where nobody looked."""


class Refused(NamedTuple):
    """No answer, and why: a server's refusal, or a connection that broke."""

    reason: str
    """server_rejected, server_down, bad_frame, wrong_model or server_error."""
    retry_after_s: float | None
    """None where it makes no sense to ask again."""


class FleetServer(Protocol):
    """Answers requests; simulated or real."""

    async def infer(self, ask: Ask, *, until_s: float) -> Served | Refused | None:
        """None where nothing has come by `until_s` on the fleet's clock."""

    def reported_wait_s(self) -> float:
        """How long a request waits there before its batch begins, by what the last answers said."""
