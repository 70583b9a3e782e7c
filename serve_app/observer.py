"""What happened, as facts, and who is told of it: the seam between answering requests and watching them.

Knows no Ray, no torch, no HTTP and none of the watchers: metrics, logs and the monitor are each an `Observer`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

LOG = logging.getLogger(__name__)

Protocols = Literal["http", "grpc"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchFacts:
    """One batch that ran."""

    split_point: str
    codec: str
    samples: int
    """Samples of all its requests together."""
    items: int
    """Requests in it."""
    bucket: int
    """Rows that ran: the samples, and empty rows where only larger sizes are warm."""
    queue_delays_s: tuple[float, ...]
    """By request: from its arrival in the queue until the batch left."""
    decode_s: float
    tail_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestFacts:
    """One request that was answered or refused."""

    request_id: str
    trace_parent: str | None
    """W3C `traceparent` of this server's own span; None where the request named no trace."""
    client: str
    """Who sent it, as far as is known: the token's name or an address. Text from outside."""
    protocol: Protocols
    split_point: str | None
    """None where the request was refused before it named one."""
    codec: str | None
    samples: int
    bytes_in: int
    """Bytes of the body that were read."""
    status: int
    """HTTP status; of gRPC answers the one that HTTP would have."""
    error: str | None
    """Name of the error's class, as the refusal's JSON says it; None where an answer was given."""
    total_s: float
    timings_s: Mapping[str, float]
    """Stage -> seconds, such as read, parse, queue, decode, tail."""
    input_wait_s: float = 0.0
    """For the thread that reads images and large frames; part of a stage above."""
    input_s: float = 0.0
    """Of that thread; 0 where it was not needed."""


class Observer(Protocol):
    """Is told what happened; called from the event loop and from the model's threads: quick and thread-safe."""

    def batch_done(self, facts: BatchFacts) -> None:
        """A batch ran."""
        ...

    def request_done(self, facts: RequestFacts) -> None:
        """A request was answered or refused."""
        ...


class Observers:
    """Tells several observers. What goes wrong in one of them reaches neither the request nor the others."""

    def __init__(self, observers: Iterable[Observer], *, log: logging.Logger = LOG) -> None:
        self._observers = tuple(observers)
        self._log = log
        self._failed: set[int] = set()

    def batch_done(self, facts: BatchFacts) -> None:
        """Tell all of them of a batch; never raises."""
        for observer in self._observers:
            self._tell(observer, observer.batch_done, facts)

    def request_done(self, facts: RequestFacts) -> None:
        """Tell all of them of a request; never raises."""
        for observer in self._observers:
            self._tell(observer, observer.request_done, facts)

    def _tell(self, observer: Observer, what: Callable[[Any], None], facts: BatchFacts | RequestFacts) -> None:
        try:
            what(facts)
        except Exception:
            # Once for each observer: what fails for one request fails for thousands a minute.
            if id(observer) not in self._failed:
                self._failed.add(id(observer))
                self._log.exception("%s fails; this is said once", type(observer).__name__)
