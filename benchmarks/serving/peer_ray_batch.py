"""Peer: what a user of Ray Serve writes first: one deployment with `@serve.batch`, by its defaults and tuned.

Started as `serve run`, so through Serve's own proxy. Knows Ray and the common tail.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import Response


class _Tail:
    """The tail in a thread, so that the event loop stays free: anything less would be unfair."""

    def __init__(self) -> None:
        from benchmarks.serving.tail import peer_tail

        self._tail = peer_tail()

    async def run(self, bodies: list[bytes]) -> list[tuple[bytes, int]]:
        return [(answer, len(bodies)) for answer in await asyncio.to_thread(self._tail.answers, bodies)]

    async def answers(self, body: bytes) -> tuple[bytes, int]:
        raise NotImplementedError

    async def __call__(self, request: Request) -> Response:
        answer, batch_samples = await self.answers(await request.body())
        return Response(answer, headers={"server-timing": f"batch;desc={batch_samples}"})


@serve.deployment
class DefaultTail(_Tail):
    """Serve's defaults: at most 5 requests in a replica, at most 10 in a batch, 10 ms of waiting for it."""

    @serve.batch  # type: ignore[untyped-decorator]
    async def batch(self, bodies: list[bytes]) -> list[tuple[bytes, int]]:
        return await self.run(bodies)

    async def answers(self, body: bytes) -> tuple[bytes, int]:
        both: Any = await self.batch(body)
        return both  # type: ignore[no-any-return]


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.2})
class TunedTail(_Tail):
    """Knobs turned to where they were best here."""

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.005)  # type: ignore[untyped-decorator]
    async def batch(self, bodies: list[bytes]) -> list[tuple[bytes, int]]:
        return await self.run(bodies)

    async def answers(self, body: bytes) -> tuple[bytes, int]:
        both: Any = await self.batch(body)
        return both  # type: ignore[no-any-return]


default = DefaultTail.bind()  # type: ignore[attr-defined]
tuned = TunedTail.bind()  # type: ignore[attr-defined]
