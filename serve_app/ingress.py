"""One request in, one answer out: HTTP on this side, a model behind `ModelRunner` on the other.

Knows Starlette's Request and Response, statuses and limits. Knows no Ray and no torch, and never blocks its event
loop: the model runs in one thread, the decoding of images and large frames in a second one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serve_app.admission import Admission, Ticket
from serve_app.answer import Answer, ModelRunner
from serve_app.settings import Limits
from split_inference.errors import (
    DigestMismatchError,
    FeatureMismatchError,
    MalformedFrameError,
    MalformedInputError,
    OverloadedError,
    SlowSenderError,
    TooLargeError,
    UnknownCodecError,
    UnknownModelError,
    UnknownSplitPointError,
    UnsupportedMediaError,
    WireError,
)
from split_inference.predictions import top_predictions
from split_inference.wire import (
    FRAME_MEDIA_TYPE,
    REPLY_MEDIA_TYPE,
    FeatureFrame,
    ReplyFrame,
    decode_frame,
    encode_reply,
)

STATUS_OF: Mapping[type[WireError], int] = {
    MalformedFrameError: 400,
    MalformedInputError: 400,
    UnknownModelError: 404,
    UnknownSplitPointError: 404,
    SlowSenderError: 408,
    DigestMismatchError: 409,
    TooLargeError: 413,
    UnknownCodecError: 415,
    UnsupportedMediaError: 415,
    FeatureMismatchError: 422,
    OverloadedError: 503,
}
RETRIABLE_STATUSES = frozenset({408, 503})
RETRY_AFTER_S = 1

IMAGE_MEDIA_TYPES = frozenset({"image/jpeg", "image/png", "image/webp"})
MAX_TOP_K = 100
# Parsing sums the checksum of every byte, about a millisecond per megabyte: above this size it leaves the event loop.
INLINE_PARSE_BYTES = 256 * 1024

LOG = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What the request says about its answer."""

    as_json: bool
    as_logits: bool
    top_k: int

    @classmethod
    def of(cls, request: Request) -> Wanted:
        """Read Accept, `output` and `top_k`. Raises MalformedInputError."""
        output = request.query_params.get("output", "topk")
        if output not in ("topk", "logits"):
            raise MalformedInputError(f"output is topk or logits, got {_shown(output)}")
        top_k = request.query_params.get("top_k", "5")
        if not (top_k.isascii() and top_k.isdecimal() and len(top_k) <= 3 and 1 <= int(top_k) <= MAX_TOP_K):
            raise MalformedInputError(f"top_k is a number from 1 to {MAX_TOP_K}, got {_shown(top_k)}")
        as_json = "application/json" in request.headers.get("accept", "").lower()
        return cls(as_json=as_json, as_logits=output == "logits", top_k=int(top_k))


@dataclass(kw_only=True, slots=True)
class Stages:
    """Seconds by stage, in the order in which they passed; "total" is the sum of the others and of what lay between."""

    now_s: Callable[[], float]
    started_s: float = field(init=False)
    _mark_s: float = field(init=False)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.started_s = self._mark_s = self.now_s()

    def end(self, stage: str) -> None:
        """The stage lasted from the last mark until now."""
        now_s = self.now_s()
        self.seconds[stage] = now_s - self._mark_s
        self._mark_s = now_s

    def finish(self, inner: Mapping[str, float]) -> dict[str, float]:
        """All stages, those measured inside the model, and the total until now."""
        return {**self.seconds, **inner, "total": self.now_s() - self.started_s}


class Ingress:
    """Answers GET and POST for one model.

    GET gives the card. POST takes a frame, or an encoded image or sound for split point "input". Every refusal is one
    line of JSON whose status is in STATUS_OF.
    """

    def __init__(
        self,
        runner: ModelRunner,
        *,
        limits: Limits | None = None,
        log: logging.Logger = LOG,
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._runner = runner
        self._limits = limits or Limits()
        self._log = log
        self._now_s = now_s
        self._admission = Admission(self._limits, now_s=now_s)
        self._digest_prefix = bytes.fromhex(runner.digest)[:16]
        self._card = json.dumps(runner.card, separators=(",", ":")).encode()
        # One thread for the model: batches of one process gain nothing from running at the same time.
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        # Another for images and large frames, so that decoding one does not hold the model up.
        self._input_thread = ThreadPoolExecutor(1, thread_name_prefix="input")

    @property
    def pending(self) -> int:
        """Requests that arrive, wait or run."""
        return self._admission.pending

    async def answer(self, request: Request) -> Response:
        """The answer to any request on the model's route; never raises but when it is cancelled."""
        return await answer_or_refuse(self._answer, request, log=self._log)

    def check_health(self) -> None:
        """Raise RuntimeError where the oldest request has waited too long: the model thread hangs."""
        age_s = self._admission.oldest_age_s()
        if age_s > self._limits.max_request_age_s:
            raise RuntimeError(f"the oldest request has waited {age_s:.0f} s")

    def close(self) -> None:
        """Let both threads end after what they do now."""
        self._model_thread.shutdown(wait=False, cancel_futures=True)
        self._input_thread.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, request: Request) -> Response:
        rest = path_below_route(request)
        if rest:
            raise UnknownModelError(f"no model {_shown(f'{self._runner.name}/{rest}')} here")
        if request.method in ("GET", "HEAD"):
            return Response(self._card, media_type="application/json")
        if request.method != "POST":
            return method_not_allowed(request.method, allowed="GET, HEAD, POST")
        return await self._post(request)

    async def _post(self, request: Request) -> Response:
        stages = Stages(now_s=self._now_s)
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
        self._check_digest_header(request)
        limit = self._limits.max_frame_bytes if is_frame else self._limits.max_input_bytes
        with self._admission.enter(body_bytes=announced_bytes(request, limit=limit)) as ticket:
            body = await self._read(request, ticket, limit=limit)
            stages.end("read")
            work = self._answer_frame if is_frame else self._answer_input
            return await work(body, wanted, stages)

    async def _read(self, request: Request, ticket: Ticket, *, limit: int) -> bytes:
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                body = await read_body(request, limit=limit)
        except TimeoutError:
            raise SlowSenderError(f"the body did not arrive within {self._limits.body_timeout_s:g} s") from None
        self._admission.has_read(ticket)
        return body

    async def _answer_frame(self, body: bytes, wanted: Wanted, stages: Stages) -> Response:
        small = len(body) <= INLINE_PARSE_BYTES
        frame = decode_frame(body) if small else await _in(self._input_thread, lambda: decode_frame(body))
        if frame.model_digest != self._digest_prefix:
            raise DigestMismatchError(_digest_reason(self._runner.name, frame.model_digest.hex(), self._runner.digest))
        self._runner.check(frame)
        stages.end("parse")

        def work() -> Response:
            stages.end("queue")
            return self._reply(self._runner.run_frame(frame), wanted, stages, frame)

        return await _in(self._model_thread, work)

    async def _answer_input(self, body: bytes, wanted: Wanted, stages: Stages) -> Response:
        inputs = await _in(self._input_thread, lambda: self._runner.preprocess(body))
        stages.end("preprocess")

        def work() -> Response:
            stages.end("queue")
            return self._reply(self._runner.run_input(inputs), wanted, stages, None)

        return await _in(self._model_thread, work)

    def _reply(self, answer: Answer, wanted: Wanted, stages: Stages, frame: FeatureFrame | None) -> Response:
        logits_NK = answer.logits_NK
        predictions = None
        if not wanted.as_logits:
            predictions = top_predictions(logits_NK, labels=self._runner.labels, top_k=wanted.top_k)
        timings_s = stages.finish(answer.timings_s)
        if not wanted.as_json:
            reply = ReplyFrame(
                model_digest=self._digest_prefix,
                sample_count=len(logits_NK),
                timings_s=timings_s,
                predictions=predictions,
                logits=logits_NK if wanted.as_logits else None,
            )
            return Response(encode_reply(reply), media_type=REPLY_MEDIA_TYPE)
        content: dict[str, Any] = {"model": self._runner.name, "digest": self._runner.digest}
        if predictions is None:
            content["logits"] = logits_NK.tolist()
        else:
            content["predictions"] = [
                [{"index": each.index, "label": each.label, "score": each.score} for each in sample]
                for sample in predictions
            ]
        content["timings_ms"] = {stage: 1000 * seconds for stage, seconds in timings_s.items()}
        if frame is not None and frame.deadline_budget_ms is not None:
            content["deadline_budget_ms"] = frame.deadline_budget_ms
        return json_response(content)

    def _check_digest_header(self, request: Request) -> None:
        digest = request.headers.get("x-model-digest")
        if digest is not None and digest.strip().lower() != self._runner.digest:
            raise DigestMismatchError(_digest_reason(self._runner.name, digest, self._runner.digest))


async def answer_or_refuse(answer: Callable[[Request], Any], request: Request, *, log: logging.Logger) -> Response:
    """The handler's response, or one line of JSON for what it raised; a fault of ours is logged and not shown."""
    try:
        response: Response = await answer(request)
        return response
    except WireError as error:
        return refusal(error)
    except ClientDisconnect:
        # Nobody reads this; it only must not look like a fault of the server.
        return json_response({"error": "ClientDisconnect", "reason": "the sender left before its body was here"}, 400)
    except Exception:
        log.exception("a request failed")
        reason = "the server failed on this request; its log says why"
        return json_response({"error": "InternalError", "reason": reason}, 500)


def refusal(error: WireError) -> Response:
    """Status and one line of JSON for an error of the tree."""
    status = next((STATUS_OF[kind] for kind in type(error).__mro__ if kind in STATUS_OF), 400)
    headers = {"retry-after": str(RETRY_AFTER_S)} if status in RETRIABLE_STATUSES else None
    reason = " ".join(str(error).split())
    return json_response({"error": type(error).__name__, "reason": reason}, status, headers)


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


async def read_body(request: Request, *, limit: int) -> bytes:
    """The body, given up as soon as it is longer than `limit`. Raises TooLargeError or ClientDisconnect."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise TooLargeError(f"the body has more than {limit} bytes, which is the most that is taken here")
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def _in(thread: ThreadPoolExecutor, work: Callable[[], _T]) -> _T:
    # Cancelling the awaiting request also cancels the work where it has not begun.
    return await asyncio.get_running_loop().run_in_executor(thread, work)


def _digest_reason(name: str, theirs: str, ours: str) -> str:
    return f"{name} has digest {ours[:32]}, the request is for {_shown(theirs[:32])}; read the card again"


def _shown(text: str) -> str:
    """Text from outside, short enough for one line."""
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
