"""One request until it is answered: retries inside a time budget, and errors as exceptions of our tree.

Knows statuses, the retry policy and the clock. Knows no sockets (a Transport does), no frames and no model.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from edge_sim.clock import Clock, SystemClock
from edge_sim.retry import RetryPolicy, may_retry
from edge_sim.server_card import Catalog, ServerCard, refusal, refusal_error
from edge_sim.transport import Request, Response, Transport
from split_inference.errors import ServerError, SplitInferenceError, UnknownModelError
from split_inference.server_url import CATALOG_PATH, model_path


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivered:
    """A request and the answer of status 200 that it got."""

    request: Request
    response: Response
    round_trip_s: float
    """Of the attempt that was answered."""
    attempts: int


class Exchange:
    """Sends through a transport, again where that can help, never past `timeout_s` or the policy's attempts."""

    def __init__(
        self, transport: Transport, *, url: str, timeout_s: float, retry: RetryPolicy, clock: Clock, rng: random.Random
    ) -> None:
        self._transport = transport
        self._url = url
        self._timeout_s = timeout_s
        self._retry = retry
        self._clock = clock
        self._rng = rng

    @classmethod
    def plain(cls, transport: Transport, *, url: str, timeout_s: float) -> Exchange:
        """With the usual retries, on the machine's clock."""
        return cls(
            transport, url=url, timeout_s=timeout_s, retry=RetryPolicy(), clock=SystemClock(), rng=random.Random()
        )

    async def deliver(self, request: Callable[[float], Request], *, started_s: float | None = None) -> Delivered:
        """Send until there is an answer of status 200; the budget counts from `started_s`, by default from now.

        `request` makes the request from the seconds that remain: a frame says its budget, which shrinks. Raises the
        WireError that the server raised, or ServerError.
        """
        deadline_s = (self._clock.now_s() if started_s is None else started_s) + self._timeout_s
        failed = 0
        failure: ServerError | None = None
        while True:
            remaining_s = deadline_s - self._clock.now_s()
            if remaining_s <= 0:
                # The pause overslept: what went wrong before says more than that time is up.
                raise failure or ServerError(
                    f"no answer from {self._url} within {self._timeout_s:.3g} s", retriable=True
                )
            sent, sent_s = request(remaining_s), self._clock.now_s()
            retry_after_s: float | None = None
            try:
                response = await self._transport.send(sent, timeout_s=remaining_s)
                if response.status == 200:
                    return Delivered(
                        request=sent,
                        response=response,
                        round_trip_s=self._clock.now_s() - sent_s,
                        attempts=failed + 1,
                    )
                retry_after_s = _retry_after_s(response)
                raise self._error_of(response)
            except ServerError as error:
                failed += 1
                error.attempts = failed
                if not error.retriable:
                    raise
                wait_s = self._retry.wait_s(
                    failed_attempts=failed,
                    retry_after_s=retry_after_s,
                    remaining_s=deadline_s - self._clock.now_s(),
                    rng=self._rng,
                )
                if wait_s is None:
                    raise
                failure = error
            await self._clock.sleep(wait_s)

    async def read_card(self, served_name: str, *, started_s: float | None = None) -> ServerCard:
        """The card of a model; UnknownModelError names the models that the server does have.

        A 404 in the server's own words names them already; one from a proxy needs a look at the catalogue.
        """
        path = model_path(served_name)
        try:
            delivered = await self._get(path, started_s)
        except ServerError as error:
            if error.status == 404:
                raise await self._unknown_model(served_name, instead=error) from error
            raise
        return ServerCard.parse(delivered.response.body, where=self._url + path)

    async def read_catalog(self) -> Catalog:
        """What the server has."""
        delivered = await self._get(CATALOG_PATH, None)
        return Catalog.parse(delivered.response.body, where=self._url + CATALOG_PATH)

    async def _get(self, path: str, started_s: float | None) -> Delivered:
        request = Request(method="GET", path=path, headers={"accept": "application/json"})
        return await self.deliver(lambda _: request, started_s=started_s)

    async def _unknown_model(self, served_name: str, *, instead: SplitInferenceError) -> SplitInferenceError:
        try:
            catalog = await self.read_catalog()
        except SplitInferenceError:
            return instead
        names = ", ".join(entry.name for entry in catalog.models) or "none"
        return UnknownModelError(f"{self._url} does not serve {served_name}; it serves: {names}")

    def _error_of(self, response: Response) -> SplitInferenceError:
        ours = refusal(response.body, response.headers)
        retriable = may_retry(response.status, has_our_body=ours is not None)
        if ours is None:
            error = ServerError(
                f"{self._url} answered {response.status}, but not our server did: a proxy on the way, or another URL",
                status=response.status,
                retriable=retriable,
            )
            error.by_proxy = True
            return error
        return refusal_error(*ours, status=response.status, retriable=retriable, where=self._url)


def _retry_after_s(response: Response) -> float | None:
    """Seconds of our own header in milliseconds, else of Retry-After, whose whole seconds are long for a phone.

    A date or nonsense counts as none, because clocks differ.
    """
    for name, unit_s in (("x-retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = response.headers.get(name, "")
        if text.isascii() and text.isdigit() and len(text) < 10:
            return float(text) * unit_s
    return None
