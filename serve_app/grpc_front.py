"""Frames over gRPC: one request and one answer, or a stream of them from a gateway that forwards many devices.

Knows the messages of split_inference/grpc/inference.proto and the inference service. Knows no Ray and no server:
metadata come as pairs, statuses go out as gRPC's names, and whoever serves maps them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from dataclasses import dataclass

from serve_app.ingress import DEFAULT_TOP_K, MAX_BUDGET_MS, MAX_TOP_K, RETRIABLE_STATUSES, RETRY_AFTER_S, status_of
from serve_app.request_context import request_id_of, trace_context
from serve_app.service import Call, InferenceService
from serve_app.tokens import Client, TokenBook
from split_inference.errors import MalformedInputError, SlowSenderError, TooLargeError, WireError
from split_inference.grpc.inference_pb2 import FrameReply, FrameRequest
from split_inference.wire import encode_reply

# By the status that the same refusal has over HTTP; gRPC's names.
CODE_OF: Mapping[int, str] = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "FAILED_PRECONDITION",
    413: "OUT_OF_RANGE",
    415: "INVALID_ARGUMENT",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}
# Frames of one stream that wait, run or were answered and not taken yet: a gateway that sends faster is read no
# further, and its own sending blocks.
MAX_IN_FLIGHT = 32

LOG = logging.getLogger(__name__)
Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A reply, and what gRPC says of it where it is the only one of its call."""

    reply: FrameReply
    code: str
    """OK, or one of CODE_OF."""
    trailing: tuple[tuple[str, str], ...] = ()


class GrpcFront:
    """Answers one model's frames; what HTTP has in headers is in the metadata or in the message."""

    def __init__(
        self, service: InferenceService, *, tokens: TokenBook | None = None, log: logging.Logger = LOG
    ) -> None:
        self._service = service
        self._tokens = tokens or TokenBook(None)
        self._log = log

    def serve(self, service: InferenceService) -> None:
        """Frames that come from now on, also in open streams, are for this service."""
        self._service = service

    async def infer(self, request: FrameRequest, metadata: Metadata = ()) -> Outcome:
        """The answer to one frame; never raises but when it is cancelled."""
        return await self._answer(request, _texts(metadata))

    async def stream(
        self, requests: AsyncIterator[FrameRequest], metadata: Metadata = ()
    ) -> AsyncGenerator[FrameReply]:
        """Answers as they come, each with its request's sequence number; a bad frame ends nothing but itself.

        At most MAX_IN_FLIGHT are under way. When the stream is given up, so is all that waits for it. One in which
        nothing comes and nothing runs for `stream_idle_s` is ended, with a last reply that says so.
        """
        texts = _texts(metadata)
        try:
            # Before anything is read: not even a silent stream stays open without a token.
            client = self._tokens.client_of(texts.get("authorization"))
            with self._service.admission.stream(client):
                async with contextlib.aclosing(self._stream(requests, texts)) as replies:
                    async for reply in replies:
                        yield reply
        except WireError as error:
            request = FrameRequest()
            call = _call(self._service, request, texts)
            outcome = _refused(error, request, call)
            self._service.finish(call, status=outcome.reply.status, error=outcome.reply.error)
            yield outcome.reply

    async def _stream(
        self, requests: AsyncIterator[FrameRequest], texts: Mapping[str, str]
    ) -> AsyncGenerator[FrameReply]:
        """Raises SlowSenderError where the stream was idle for too long."""
        idle_s, now_s = self._service.limits.stream_idle_s, self._service.now_s
        active_s = now_s()
        done: asyncio.Queue[FrameReply | None] = asyncio.Queue()
        room = asyncio.Semaphore(MAX_IN_FLIGHT)
        running: set[asyncio.Task[None]] = set()

        async def answer(request: FrameRequest) -> None:
            nonlocal active_s
            try:
                outcome = await self._answer(request, texts)
            except BaseException:
                # Nobody takes what is not there.
                room.release()
                raise
            active_s = now_s()
            done.put_nowait(outcome.reply)

        async def read() -> None:
            nonlocal active_s
            try:
                async for request in requests:
                    active_s = now_s()
                    await room.acquire()
                    task = asyncio.create_task(answer(request))
                    running.add(task)
                    task.add_done_callback(running.discard)
            finally:
                # Also where the client's side broke: what it sent before is answered.
                if running:
                    await asyncio.wait(set(running))
                done.put_nowait(None)

        async def end_when_idle() -> None:
            while running or (left_s := active_s + idle_s - now_s()) > 0:
                await asyncio.sleep(idle_s if running else left_s)
            reader.cancel()

        reader = asyncio.create_task(read())
        watcher = asyncio.create_task(end_when_idle())
        try:
            while (reply := await done.get()) is not None:
                yield reply
                # Not before it was taken: a client that never reads is read no further either.
                room.release()
            if reader.cancelled() or reader.cancelling():
                raise SlowSenderError(f"nothing came in this stream for {idle_s:g} s")
            await reader
        finally:
            watcher.cancel()
            reader.cancel()
            for task in set(running):
                task.cancel()

    async def _answer(self, request: FrameRequest, texts: Mapping[str, str]) -> Outcome:
        # The same one to the end: others may be served meanwhile.
        service = self._service
        call = _call(service, request, texts)
        try:
            reply = await _reply(service, request, call, self._tokens.client_of(texts.get("authorization")))
            outcome = Outcome(
                reply=FrameReply(reply=reply, sequence=request.sequence, status=200, request_id=call.request_id),
                code="OK",
            )
        except WireError as error:
            outcome = _refused(error, request, call)
        except Exception:
            self._log.exception("a request failed")
            outcome = _outcome(
                500, "InternalError", "the server failed on this request; its log says why", 0, request, call
            )
        service.finish(call, status=outcome.reply.status, error=outcome.reply.error or None)
        return outcome


def _call(service: InferenceService, request: FrameRequest, texts: Mapping[str, str]) -> Call:
    trace = trace_context([texts["traceparent"]] if "traceparent" in texts else [])
    return Call(
        protocol="grpc",
        started_s=service.now_s(),
        request_id=request_id_of(request.request_id or texts.get("x-request-id")),
        trace_parent=trace.child().trace_parent if trace else None,
    )


async def _reply(service: InferenceService, request: FrameRequest, call: Call, client: Client) -> bytes:
    call.client = client.name
    if request.top_k > MAX_TOP_K:
        raise MalformedInputError(f"top_k is a number from 1 to {MAX_TOP_K}, got {request.top_k}")
    if request.deadline_ms:
        call.budget_ms = min(request.deadline_ms, MAX_BUDGET_MS)
    frame, limit = request.frame, service.limits.max_frame_bytes
    if len(frame) > limit:
        raise TooLargeError(f"the frame has {len(frame)} bytes; at most {limit} are taken here")
    with service.enter(client, body_bytes=len(frame)) as ticket:
        service.admission.arrived(ticket, len(frame))
        reply = await service.answer_frame(frame, call, as_logits=request.logits, top_k=request.top_k or DEFAULT_TOP_K)
        return await service.put_together(lambda: encode_reply(reply), samples=call.samples)


def _refused(error: WireError, request: FrameRequest, call: Call) -> Outcome:
    status = status_of(error)
    wait_s = getattr(error, "retry_after_s", RETRY_AFTER_S) if status in RETRIABLE_STATUSES else 0.0
    reason = " ".join(str(error).split())
    return _outcome(status, type(error).__name__, reason, max(1, round(1000 * wait_s)) if wait_s else 0, request, call)


def _outcome(status: int, error: str, reason: str, retry_ms: int, request: FrameRequest, call: Call) -> Outcome:
    trailing = [("x-error", error), ("x-request-id", call.request_id)]
    if retry_ms:
        trailing.append(("x-retry-after-ms", str(retry_ms)))
    return Outcome(
        reply=FrameReply(
            sequence=request.sequence,
            status=status,
            error=error,
            reason=reason,
            retry_after_ms=retry_ms,
            request_id=call.request_id,
        ),
        code=CODE_OF.get(status, "UNKNOWN"),
        trailing=tuple(trailing),
    )


def _texts(metadata: Metadata) -> dict[str, str]:
    """Metadata by name; of a name that comes twice the first."""
    texts: dict[str, str] = {}
    for name, value in metadata:
        if isinstance(value, str):
            texts.setdefault(name.lower(), value)
    return texts
