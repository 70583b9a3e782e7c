"""One request in, one answer out: HTTP on this side, the inference service on the other.

Knows Starlette's Request and Response, statuses and headers. Knows no Ray and no torch, and never blocks its event
loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serve_app.admission import Admission, Ticket
from serve_app.model_runner import ModelRunner
from serve_app.monitor import Monitor, monitor_response
from serve_app.request_context import request_id_of, trace_context
from serve_app.server_timing import server_timing
from serve_app.service import Call, InferenceService
from serve_app.settings import AuthSettings, Limits
from serve_app.tokens import TokenBook
from split_inference.errors import (
    DeadlineError,
    DigestMismatchError,
    FeatureMismatchError,
    MalformedFrameError,
    MalformedInputError,
    OverloadedError,
    OverShareError,
    SlowSenderError,
    TooLargeError,
    UnauthorizedError,
    UnknownCodecError,
    UnknownModelError,
    UnknownSplitPointError,
    UnsupportedMediaError,
    WireError,
)
from split_inference.wire import FRAME_MEDIA_TYPE, REPLY_MEDIA_TYPE, ReplyFrame, encode_reply

STATUS_OF: Mapping[type[WireError], int] = {
    MalformedFrameError: 400,
    MalformedInputError: 400,
    UnauthorizedError: 401,
    UnknownModelError: 404,
    UnknownSplitPointError: 404,
    SlowSenderError: 408,
    DigestMismatchError: 409,
    TooLargeError: 413,
    UnknownCodecError: 415,
    UnsupportedMediaError: 415,
    FeatureMismatchError: 422,
    OverShareError: 429,
    OverloadedError: 503,
    DeadlineError: 503,
}
RETRIABLE_STATUSES = frozenset({408, 429, 503})
RETRY_AFTER_S = 1.0

IMAGE_MEDIA_TYPES = frozenset({"image/jpeg", "image/png", "image/webp"})
MAX_TOP_K = 100
DEFAULT_TOP_K = 5
# A day; a larger one is as good as none.
MAX_BUDGET_MS = 86_400_000
# A body that came with its headers, or a moment after them, never counts as one that is still arriving.
READ_GRACE_S = 0.02
# A timer that fires so late says that the event loop was busy, and nothing about the body.
_LAG_S = 0.005
_MOST_GRACES = 5

# Logits of 16 samples and a thousand classes. Python writes JSON in one go, and nobody else is served meanwhile.
MAX_JSON_NUMBERS = 16_384

# Refused while the sender may still be sending.
_LEAVES_A_BODY = frozenset({408, 413})

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What the request says about its answer."""

    as_json: bool
    as_logits: bool
    top_k: int

    @classmethod
    def of(cls, request: Request) -> Wanted:
        """Read Accept, `output` and `top_k`. Raises MalformedInputError."""
        as_json = "application/json" in request.headers.get("accept", "").lower()
        if not request.scope.get("query_string"):
            return cls(as_json=as_json, as_logits=False, top_k=DEFAULT_TOP_K)
        output = request.query_params.get("output", "topk")
        if output not in ("topk", "logits"):
            raise MalformedInputError(f"output is topk or logits, got {_shown(output)}")
        top_k = request.query_params.get("top_k", str(DEFAULT_TOP_K))
        if not (top_k.isascii() and top_k.isdecimal() and len(top_k) <= 3 and 1 <= int(top_k) <= MAX_TOP_K):
            raise MalformedInputError(f"top_k is a number from 1 to {MAX_TOP_K}, got {_shown(top_k)}")
        return cls(as_json=as_json, as_logits=output == "logits", top_k=int(top_k))


class Ingress:
    """Answers GET and POST for one model.

    GET gives the card. POST takes a frame, or an encoded image or sound for split point "input". Every refusal is one
    line of JSON whose status is in STATUS_OF. GET below `monitor/` gives the live page where there is a monitor.
    """

    def __init__(
        self, service: InferenceService, *, tokens: TokenBook | None = None, log: logging.Logger = LOG
    ) -> None:
        self._service = service
        self._runner: ModelRunner = service.runner
        self._limits: Limits = service.limits
        self._tokens = tokens or TokenBook.load(AuthSettings(), environ={})
        self._log = log
        self._card = json.dumps(self._runner.card, separators=(",", ":")).encode()
        self.monitor: Monitor | None = None

    def close(self) -> None:
        """Let the service's threads end after what they do now."""
        self._service.close()

    def check_health(self) -> None:
        """Raise RuntimeError where the oldest request has waited too long."""
        self._service.check_health()

    @property
    def pending(self) -> int:
        """Requests that arrive, wait or run."""
        return self._service.pending

    async def answer(self, request: Request) -> Response:
        """The answer to any request on the model's route; never raises but when it is cancelled."""
        call = Call(protocol="http", started_s=self._service.now_s())
        headers = request.headers
        call.request_id = request_id_of(headers.get("x-request-id"))
        own = None
        if "traceparent" in headers:
            trace = trace_context(headers.getlist("traceparent"), headers.getlist("tracestate"))
            own = trace.child() if trace else None
            call.trace_parent = own.trace_parent if own else None
        response = await answer_or_refuse(lambda each: self._answer(each, call), request, log=self._log)
        response.headers["x-request-id"] = call.request_id
        if own:
            response.headers["traceparent"] = own.trace_parent
            if own.state:
                response.headers["tracestate"] = own.state
        if request.method == "POST":
            self._service.finish(call, status=response.status_code, error=response.headers.get("x-error"))
        return response

    async def _answer(self, request: Request, call: Call) -> Response:
        rest = path_below_route(request)
        watched = self.monitor is not None and rest.split("/")[0] == "monitor"
        # A browser cannot send a token with the address of a page: the empty page is open, what it shows is not.
        if not (watched and rest == "monitor"):
            client = self._tokens.client_of(request.headers.get("authorization"))
            call.client = client.name
        if watched and self.monitor is not None:
            if request.method not in ("GET", "HEAD"):
                return method_not_allowed(request.method, allowed="GET, HEAD")
            status, content_type, headers, body = monitor_response(rest, self.monitor)
            return Response(body, status_code=status, headers=dict(headers), media_type=content_type)
        if rest:
            raise UnknownModelError(f"no model {_shown(f'{self._runner.name}/{rest}')} here")
        if request.method in ("GET", "HEAD"):
            return Response(self._card, media_type="application/json")
        if request.method != "POST":
            return method_not_allowed(request.method, allowed="GET, HEAD, POST")
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        is_frame = media_type == FRAME_MEDIA_TYPE
        if not is_frame:
            if media_type not in IMAGE_MEDIA_TYPES and not media_type.startswith("audio/"):
                raise UnsupportedMediaError(
                    f"content type {_shown(media_type)} is not taken; send {FRAME_MEDIA_TYPE}, "
                    f"{', '.join(sorted(IMAGE_MEDIA_TYPES))} or audio/*"
                )
            self._runner.check_input(media_type)
        wanted = Wanted.of(request)
        self._service.check_digest(request.headers.get("x-model-digest"))
        call.budget_ms = budget_ms_of(request)
        limit = self._limits.max_frame_bytes if is_frame else self._limits.max_input_bytes
        with self._service.enter(client, body_bytes=announced_bytes(request, limit=limit)) as ticket:
            began_s = self._service.now_s()
            body = await self._read(request, ticket, limit=limit)
            call.timings_s["read"] = self._service.now_s() - began_s
            work = self._service.answer_frame if is_frame else self._service.answer_input
            reply = await work(body, call, as_logits=wanted.as_logits, top_k=wanted.top_k)
            return await self._response(reply, call, wanted)

    async def _read(self, request: Request, ticket: Ticket, *, limit: int) -> bytes:
        watch = _BodyWatch(self._service.admission, ticket, timeout_s=self._limits.body_timeout_s)
        try:
            body = await read_body(
                request, limit=limit, arrived=lambda count: self._service.admission.arrived(ticket, count)
            )
        except asyncio.CancelledError:
            if watch.reason is None:
                raise
            watch.task.uncancel()
            raise watch.reason from None
        finally:
            watch.timer.cancel()
        self._service.admission.has_read(ticket)
        return body

    async def _response(self, reply: ReplyFrame, call: Call, wanted: Wanted) -> Response:
        headers = {"server-timing": f"{server_timing(call.timings_s)}, batch;desc={call.batch_samples}"}
        if not wanted.as_json:
            body = await self._service.put_together(lambda: encode_reply(reply), samples=call.samples)
            return Response(body, media_type=REPLY_MEDIA_TYPE, headers=headers)
        numbers = reply.logits.size if reply.logits is not None else sum(map(len, reply.predictions or ()))
        if numbers > MAX_JSON_NUMBERS and call.samples > 1:
            raise TooLargeError(
                f"the answer has {numbers} numbers, and JSON of more than {MAX_JSON_NUMBERS} is not written here; "
                f"ask for {REPLY_MEDIA_TYPE}, or send fewer samples"
            )
        content: dict[str, Any] = {"model": self._runner.name, "digest": self._runner.digest}
        if reply.logits is not None:
            content["logits"] = reply.logits.tolist()
        else:
            content["predictions"] = [
                [{"index": each.index, "label": each.label, "score": each.score} for each in sample]
                for sample in reply.predictions or ()
            ]
        content["timings_ms"] = {stage: 1000 * seconds for stage, seconds in reply.timings_s.items()}
        content["batch_samples"] = call.batch_samples
        if call.budget_ms is not None:
            content["deadline_budget_ms"] = call.budget_ms
        return json_response(content, headers=headers)


class _BodyWatch:
    """Times a body: after the grace it counts as one that is still arriving, after the timeout it is given up.

    Timers and no second task: most bodies are there at once, and then this costs two microseconds.
    """

    def __init__(self, admission: Admission, ticket: Ticket, *, timeout_s: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.reason: WireError | None = None
        self._admission = admission
        self._ticket = ticket
        self._timeout_s = timeout_s
        self._graces_left = _MOST_GRACES
        self._loop = asyncio.get_running_loop()
        self._begin_grace()

    def _begin_grace(self) -> None:
        self._due_s = self._loop.time() + READ_GRACE_S
        self.timer = self._loop.call_later(READ_GRACE_S, self._after_grace)

    def _after_grace(self) -> None:
        if self._graces_left > 0 and self._loop.time() - self._due_s > _LAG_S:
            # It is we who are late: the body may have been here for long, and its turn comes after this timer's.
            self._graces_left -= 1
            self._begin_grace()
            return
        try:
            self._admission.reading(self._ticket)
        except WireError as error:
            self._give_up(error)
        else:
            self.timer = self._loop.call_later(self._timeout_s - READ_GRACE_S, self._after_timeout)

    def _after_timeout(self) -> None:
        self._give_up(SlowSenderError(f"the body did not arrive within {self._timeout_s:g} s"))

    def _give_up(self, reason: WireError) -> None:
        self.reason = reason
        self.task.cancel()


def budget_ms_of(request: Request) -> int | None:
    """The header `x-deadline-ms`: milliseconds that the sender will wait from now on. Raises MalformedInputError."""
    text = request.headers.get("x-deadline-ms")
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 8 and int(text) <= MAX_BUDGET_MS):
        raise MalformedInputError(f"x-deadline-ms is a number from 0 to {MAX_BUDGET_MS}, got {_shown(text)}")
    return int(text)


async def answer_or_refuse(answer: Callable[[Request], Any], request: Request, *, log: logging.Logger) -> Response:
    """The handler's response, or one line of JSON for what it raised; a fault of ours is logged and not shown."""
    try:
        response: Response = await answer(request)
        return response
    except WireError as error:
        return refusal(error)
    except ClientDisconnect:
        # Nobody reads this; it only must not look like a fault of the server.
        return json_response(
            {"error": "ClientDisconnect", "reason": "the sender left before its body was here"},
            400,
            {"x-error": "ClientDisconnect"},
        )
    except Exception:
        log.exception("a request failed")
        reason = "the server failed on this request; its log says why"
        return json_response({"error": "InternalError", "reason": reason}, 500, {"x-error": "InternalError"})


def refusal(error: WireError) -> Response:
    """Status and one line of JSON for an error of the tree."""
    status = status_of(error)
    headers = {"x-error": type(error).__name__}
    if status in RETRIABLE_STATUSES:
        wait_s = getattr(error, "retry_after_s", RETRY_AFTER_S)
        # The standard header has whole seconds only, which is an age for a phone.
        headers["retry-after"] = str(max(1, math.ceil(wait_s)))
        headers["x-retry-after-ms"] = str(max(1, math.ceil(1000 * wait_s)))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if status in _LEAVES_A_BODY:
        # The rest of the body would be read as the next request.
        headers["connection"] = "close"
    reason = " ".join(str(error).split())
    return json_response({"error": type(error).__name__, "reason": reason}, status, headers)


def status_of(error: WireError) -> int:
    """The HTTP status of an error of the tree."""
    return next((STATUS_OF[kind] for kind in type(error).__mro__ if kind in STATUS_OF), 400)


def method_not_allowed(method: str, *, allowed: str) -> Response:
    """405, and the methods that there are."""
    content = {"error": "MethodNotAllowed", "reason": f"{method} is not answered here; allowed: {allowed}"}
    return json_response(content, 405, {"allow": allowed})


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """One line of JSON."""
    body = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def path_below_route(request: Request) -> str:
    """What the path says after the application's own route, without slashes around it."""
    path, root = request.scope["path"], request.scope.get("root_path", "")
    return str(path).removeprefix(root).strip("/")


def announced_bytes(request: Request, *, limit: int) -> int:
    """Bytes that the body may have: Content-Length where there is one, else the limit. Raises TooLargeError."""
    announced = request.headers.get("content-length", "")
    if not (announced.isascii() and announced.isdecimal()):
        return limit
    # More digits than any limit has, and more than int() takes, are never read as a number.
    if len(announced) > 18 or int(announced) > limit:
        raise TooLargeError(f"the body has {announced[:18]} bytes; at most {limit} are taken here")
    return int(announced)


async def read_body(request: Request, *, limit: int, arrived: Callable[[int], None] = lambda count: None) -> bytes:
    """The body, given up as soon as it is longer than `limit`; `arrived` is told of each part, and may refuse it.

    Raises TooLargeError or ClientDisconnect.
    """
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise TooLargeError(f"the body has more than {limit} bytes, which is the most that is taken here")
        arrived(len(chunk))
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _shown(text: str) -> str:
    """Text from outside, short enough for one line."""
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
