"""One real device: this machine runs the head, its own network carries the frames, and the records are the fleet's.

Nothing is simulated: no padding, no link, no energy. What the network took is a round trip less what the server says of
itself, and stands under `up_s`, because a device cannot tell the two ways apart.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from edge_sim.arrivals import poisson_s
from edge_sim.client import Answer, EdgeClient
from edge_sim.clock import WallClock
from edge_sim.request_record import ANSWERED, GAVE_UP, Request, RequestWriter, how_text, who_text
from edge_sim.retry import RETRIABLE_STATUSES
from split_inference.errors import ServerError
from split_inference.inputs import EncodedInput


class RealWorker:
    """Asks at Poisson moments with real inputs, one after the other as they come; late ones wait for their turn."""

    def __init__(
        self,
        client: EdgeClient,
        inputs: Sequence[EncodedInput],
        writer: RequestWriter,
        *,
        name: str,
        seed: int = 0,
        label_of: Callable[[EncodedInput], int | None] = lambda item: None,
    ) -> None:
        self._client = client
        self._inputs = inputs
        self._writer = writer
        self._rng = random.Random(seed)
        self._label_of = label_of
        self._who = who_text(device=name, group="real", policy="fixed", model=client.model.name)
        self._how = how_text(mode="split", split_point=client.split_point.name, codec=client.codec_name)

    async def live(self, *, rate_per_s: float, seconds: float, deadline_s: float) -> None:
        """Ask until the time is up; every request has ended when this returns."""
        clock = WallClock()
        for number, intended_s in enumerate(poisson_s(self._rng, rate_per_s=rate_per_s, until_s=seconds)):
            await clock.sleep_until(intended_s)
            clock.start(self._ask(clock, Request(number, intended_s, clock.now_s() - intended_s), deadline_s))
        await clock.finish()

    async def _ask(self, clock: WallClock, request: Request, deadline_s: float) -> None:
        item = self._inputs[request.number % len(self._inputs)]
        asked_s = clock.now_s()
        try:
            answer = await self._client.infer(item.data)
        except ServerError as error:
            request.outcome, request.attempts = GAVE_UP, error.attempts
            request.reason = _reason(error, late=clock.now_s() - asked_s >= deadline_s)
        else:
            self._fill(request, answer, label=self._label_of(item))
        request.total_s = clock.now_s() - request.intended_s
        request.in_time = request.outcome == ANSWERED and request.total_s <= deadline_s
        self._writer.write(self._who, self._how, request)

    @staticmethod
    def _fill(request: Request, answer: Answer, *, label: int | None) -> None:
        stages, server = answer.stages_s, answer.server_stages_s
        request.outcome = ANSWERED
        request.head_s = sum(stages.get(stage, 0.0) for stage in ("preprocess", "head", "encode"))
        request.wait_s = stages.get("other", 0.0)
        request.server_queue_s = server.get("queue", 0.0)
        request.server_s = max(0.0, server.get("total", 0.0) - request.server_queue_s)
        request.up_s = max(0.0, stages.get("round_trip", 0.0) - request.server_queue_s - request.server_s)
        request.up_bytes, request.down_bytes = answer.sent_bytes, answer.received_bytes
        request.attempts = answer.attempts
        request.correct = None if label is None else answer.top.index == label


def _reason(error: ServerError, *, late: bool) -> str:
    """Why nobody answered, in the words of a fleet's records."""
    if late or not error.attempts:
        return "deadline"
    if error.status in RETRIABLE_STATUSES and not error.by_proxy:
        return "server_rejected"
    return "server_down" if error.retriable else "server_error"
