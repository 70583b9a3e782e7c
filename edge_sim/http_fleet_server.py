"""A real server, as a fleet asks it: prepared bodies over HTTP, answers decoded and compared with what was expected.

Knows payload files, the transport and the wire. Knows no devices and no links.
"""

from __future__ import annotations

import json

from edge_sim.clock import FleetClock
from edge_sim.fleet_server import Ask, Refused, Served
from edge_sim.reported_wait import ReportedWait
from edge_sim.transport import Request, Response, Transport
from split_inference.errors import MalformedFrameError, ServerError, TooLargeError, WireError
from split_inference.payload_file import PayloadFile
from split_inference.server_url import model_path
from split_inference.wire import REPLY_MEDIA_TYPE, decode_reply

# What a broken connection or a server that is starting is worth waiting for.
RETRY_AFTER_S = 0.1
_REASONS = {400: "bad_frame", 401: "server_error", 408: "server_rejected", 409: "wrong_model", 429: "server_rejected"}


class HttpFleetServer:
    """A `FleetServer` on a WallClock, for one model."""

    def __init__(
        self, transport: Transport, payloads: PayloadFile, clock: FleetClock, *, route: str | None = None
    ) -> None:
        self._transport = transport
        self.payloads = payloads
        self._clock = clock
        self._path = f"{route or model_path(payloads.header.model.name)}?top_k=1"
        self._digest = payloads.header.model.digest
        self._bodies: dict[tuple[int, int], bytes] = {}
        self._reported_wait = ReportedWait()
        self.wrong_answers = 0
        """Answers that were not what the payload file expects."""

    def reported_wait_s(self) -> float:
        return self._reported_wait.seconds(self._clock.now_s())

    async def infer(self, ask: Ask, *, until_s: float) -> Served | Refused | None:
        began_s = self._clock.now_s()
        left_s = until_s - began_s
        if left_s <= 0:
            return None
        option = self.payloads.header.options[ask.option]
        body = self._body(ask) if ask.body is None else ask.body
        if ask.bad:
            # At the front, where frames and images alike say what they are: some images decode with a wrong end.
            body = bytes(each ^ 0xFF for each in body[:8]) + body[8:]
        request = Request(
            method="POST",
            path=self._path,
            headers={
                "content-type": option.media_type,
                "accept": REPLY_MEDIA_TYPE,
                "x-deadline-ms": str(max(1, int(1000 * left_s))),
                **({} if option.mode == "split" else {"x-model-digest": self._digest}),
            },
            body=body,
        )
        try:
            response = await self._transport.send(request, timeout_s=left_s)
        except ServerError:
            return None if self._clock.now_s() >= until_s else Refused("server_down", RETRY_AFTER_S)
        if response.status != 200:
            return self._refused(response)
        return self._served(response, took_s=self._clock.now_s() - began_s, expected=option.answer[ask.input])

    def _body(self, ask: Ask) -> bytes:
        body = self._bodies.get((ask.option, ask.input))
        if body is None:
            body = self._bodies[ask.option, ask.input] = self.payloads.body(ask.option, ask.input)
        return body

    def _refused(self, response: Response) -> Refused:
        reason = _REASONS.get(response.status, "server_rejected" if response.status == 503 else "server_error")
        if not _is_ours(response.body):
            # A proxy's word, whatever its status: the replica behind it is gone or not there yet.
            return Refused("server_down", RETRY_AFTER_S)
        stated_ms = response.headers.get("x-retry-after-ms", "")
        retry_after_s = float(stated_ms) / 1000 if stated_ms.isdigit() else RETRY_AFTER_S
        if response.status in (503, 429):
            self._reported_wait.learn(self._clock.now_s(), retry_after_s)
        return Refused(reason, retry_after_s if response.status in (408, 429, 503) else None)

    def _served(self, response: Response, *, took_s: float, expected: int) -> Served | Refused:
        try:
            reply = decode_reply(response.body)
        except (MalformedFrameError, TooLargeError, WireError):
            return Refused("server_error", None)
        queue_s = reply.timings_s.get("queue", 0.0)
        self._reported_wait.learn(self._clock.now_s(), queue_s)
        best = reply.predictions[0][0].index if reply.predictions and reply.predictions[0] else None
        right = best == expected
        self.wrong_answers += not right
        return Served(queue_s, max(0.0, took_s - queue_s), 0, len(response.body), right)


def _is_ours(body: bytes) -> bool:
    try:
        return "error" in json.loads(body)
    except ValueError:
        return False
