"""Peer: what a user of Ray Serve writes first: one deployment with `@serve.batch`, and Serve's defaults otherwise.

Started as `serve run`, so through Serve's own proxy. Knows Ray and the common tail.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.2})
class BatchedTail:
    """The tail in a thread, so that the event loop stays free: anything less would be unfair."""

    def __init__(self) -> None:
        from benchmarks.serving.tail import peer_tail

        self._tail = peer_tail()

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.005)  # type: ignore[untyped-decorator]
    async def answers(self, bodies: list[bytes]) -> list[tuple[bytes, int]]:
        return [(answer, len(bodies)) for answer in await asyncio.to_thread(self._tail.answers, bodies)]

    async def __call__(self, request: Request) -> Response:
        both: Any = await self.answers(await request.body())
        answer, batch_samples = both
        return Response(answer, headers={"server-timing": f"batch;desc={batch_samples}"})


app = BatchedTail.bind()  # type: ignore[attr-defined]
