"""Frames and inputs in, replies out, whatever protocol brought them: admission, deadlines, batches, observers.

Knows the wire, the micro-batcher and the seam `ModelRunner`. Knows no HTTP, no gRPC, no Ray and no torch. One event
loop; it is never blocked: batches run in the micro-batcher's threads, images and large frames are read in one more.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from serve_app.admission import Admission, Ticket
from serve_app.batching import DEFAULT_PATIENCE_S, BatchKey, CostModel
from serve_app.input_thread import InputThread
from serve_app.micro_batcher import BatchReport, MicroBatcher
from serve_app.model_runner import ModelRunner, Payload
from serve_app.observer import BatchFacts, Observers, Protocols, RequestFacts
from serve_app.settings import BatchingSettings, Limits
from split_inference.errors import DeadlineError, DigestMismatchError, OverloadedError
from split_inference.predictions import top_predictions
from split_inference.wire import Prediction, ReplyFrame, decode_frame

if TYPE_CHECKING:
    from serve_app.tokens import Client

# Parsing sums the checksum of every byte, about a millisecond per megabyte: above this size it leaves the event loop.
INLINE_PARSE_BYTES = 256 * 1024
# An answer for more samples is put together in a thread: probabilities, labels and text of 256 take 15 to 70 ms.
INLINE_SAMPLES = 8
# Share of accepted requests that are to be answered within their deadline.
PUNCTUAL_SHARE = 0.99
# Long waits are made of many batches, any of which may be slow.
CAUTION = 1.15
# What lies outside of this process, between the sender's clock and ours: nobody here can measure it.
OUTSIDE_S = 0.01
# A request that only the estimate of its own batch keeps out is let in after so long without one of its kind, and at
# most for a tenth of the model's time: else an estimate that a bad moment made too long would never be corrected.
PROBE_AFTER_S = 1.0
PROBE_SHARE = 0.1

LOG = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(kw_only=True, slots=True)
class Call:
    """One request from its headers to its answer: who asked what, and where the time went."""

    protocol: Protocols
    started_s: float
    client: str = ""
    request_id: str = ""
    trace_parent: str | None = None
    budget_ms: int | None = None
    """The sender's patience by its headers; a frame's own is read where this is None."""
    split_point: str | None = None
    codec: str | None = None
    samples: int = 0
    bytes_in: int = 0
    batch_samples: int = 0
    """Samples of the batch that it ran in."""
    timings_s: dict[str, float] = field(default_factory=dict)
    input_wait_s: float = 0.0
    """For the thread that reads images and large frames, and below what it took there; 0 where it was not needed."""
    input_s: float = 0.0


class WaitMargin:
    """How much longer than estimated an answer may take: the PUNCTUAL_SHARE quantile of how wrong estimates were.

    Errors are counted by the millisecond, and counts fade with a half-life, so that a stall every few seconds stays in
    mind between two of them. Only answers are counted: an earlier rule that refusals made the margin narrower, too,
    let twice as many answers be late when half of all requests were refused. So that a margin which refuses everybody
    fades all the same, PRIOR errors of PRIOR_S are always there.
    """

    HALF_LIFE_S = 15.0
    PRIOR, PRIOR_S = 100.0, 0.005
    MOST_S = 0.5
    # A quantile of half a thousand numbers takes 10 microseconds, and needs no more than this often.
    _REFRESH_S = 0.05

    def __init__(self) -> None:
        self._counts = np.zeros(round(1000 * self.MOST_S) + 1)
        self._seconds = self.PRIOR_S
        self._refreshed_s: float | None = None

    def learn(self, *, expected_s: float, took_s: float) -> None:
        """An answer was expected after `expected_s` and came after `took_s`."""
        error_ms = 1000 * (took_s - expected_s)
        self._counts[min(len(self._counts) - 1, max(0, math.ceil(error_ms)))] += 1

    def seconds(self, now_s: float, *, budget_s: float = math.inf) -> float:
        """The margin now, and at most half of a request's budget: what is short for everybody is not refused to all."""
        passed_s = self._REFRESH_S if self._refreshed_s is None else now_s - self._refreshed_s
        if passed_s >= self._REFRESH_S:
            self._refreshed_s = now_s
            self._counts *= 0.5 ** (passed_s / self.HALF_LIFE_S)
            counts = self._counts.copy()
            counts[round(1000 * self.PRIOR_S)] += self.PRIOR
            beyond = counts.sum() - counts.cumsum()
            within = beyond <= (1 - PUNCTUAL_SHARE) * counts.sum()
            self._seconds = float(within.argmax()) / 1000
        return min(self._seconds, budget_s / 2)


class InferenceService:
    """Answers for one model. Raises WireError, and nothing else but faults of our own."""

    def __init__(
        self,
        runner: ModelRunner,
        *,
        limits: Limits | None = None,
        batching: BatchingSettings | None = None,
        cost: CostModel | None = None,
        admission: Admission | None = None,
        observers: Observers | None = None,
        now_s: Callable[[], float] = time.perf_counter,
        thread_start: Callable[[], None] = lambda: None,
        model_thread: Executor | None = None,
        prepare_thread: Executor | None = None,
        on_sticky_error: Callable[[BaseException], None] = lambda error: None,
        on_predictions: Callable[[Call, Sequence[Prediction]], None] = lambda call, best: None,
        log: logging.Logger = LOG,
    ) -> None:
        """`admission` is that of all models of this process, by default one of its own."""
        self.runner = runner
        self.limits = limits or Limits()
        self.now_s = now_s
        self.admission = admission or Admission(self.limits, now_s=now_s)
        self._observers = observers or Observers(())
        self._on_predictions = on_predictions
        self._margin = WaitMargin()
        self._started_s = now_s()
        self._let_in_s: dict[tuple[BatchKey, int], float] = {}
        """By key and samples, when a request was let in last; there are as many as split points, codecs and sizes."""
        self._digest_prefix = bytes.fromhex(runner.digest)[:16]
        self._batcher: MicroBatcher[Payload, Any, NDArray[np.float32]] = MicroBatcher(
            runner,
            settings=batching,
            cost=cost,
            now_s=now_s,
            on_batch=self._batch_done,
            on_sticky_error=on_sticky_error,
            thread_start=thread_start,
            model_thread=model_thread,
            prepare_thread=prepare_thread,
            log=log,
        )
        # For images and large frames, so that reading one holds neither the model nor the event loop up.
        self._input_thread = InputThread(now_s=now_s, thread_start=thread_start)
        # And one for large answers, which must not wait behind an image.
        self._answer_thread = ThreadPoolExecutor(1, thread_name_prefix="answer", initializer=thread_start)
        self._is_closed = False

    @property
    def pending(self) -> int:
        """Requests that arrive, wait or run."""
        return self.admission.pending

    @property
    def unanswered(self) -> int:
        """Those that this service has to answer."""
        return self.admission.held_by(self)

    @property
    def batching(self) -> BatchingSettings:
        """The knobs that are in force."""
        return self._batcher.settings

    def set_batching(self, settings: BatchingSettings) -> None:
        """Change the knobs; the next batch obeys them."""
        self._batcher.settings = settings

    def enter(self, client: Client, *, body_bytes: int) -> AbstractContextManager[Ticket]:
        """Hold a place until the answer is made. Raises OverShareError or OverloadedError."""
        return self.admission.enter(client=client, body_bytes=body_bytes, holder=self)

    def check_digest(self, digest: str | None) -> None:
        """Refuse another model's digest, given as hexadecimal digits, before anything is read."""
        if digest is not None and digest.strip().lower() != self.runner.digest:
            raise DigestMismatchError(self._digest_reason(digest))

    async def answer_frame(self, body: bytes, call: Call, *, as_logits: bool, top_k: int) -> ReplyFrame:
        """The reply to a feature frame."""
        began_s = self.now_s()
        call.bytes_in = len(body)
        if len(body) <= INLINE_PARSE_BYTES:
            frame = decode_frame(body)
        else:
            frame = await self._in_input_thread(lambda: decode_frame(body), call)
        if frame.model_digest != self._digest_prefix:
            raise DigestMismatchError(self._digest_reason(frame.model_digest.hex()))
        self.runner.check(frame)
        key = self.runner.key_of(frame)
        call.samples = frame.sample_count
        if call.budget_ms is None:
            call.budget_ms = frame.deadline_budget_ms
        call.timings_s["parse"] = self.now_s() - began_s
        return await self._run(key, frame, call, as_logits=as_logits, top_k=top_k)

    async def answer_input(self, body: bytes, call: Call, *, as_logits: bool, top_k: int) -> ReplyFrame:
        """The reply to an encoded image or sound, from the whole model."""
        began_s = self.now_s()
        call.bytes_in = len(body)
        inputs = await self._in_input_thread(lambda: self._preprocess(body, call), call)
        call.samples = len(inputs)
        call.timings_s["preprocess"] = self.now_s() - began_s
        return await self._run(self.runner.key_of(inputs), inputs, call, as_logits=as_logits, top_k=top_k)

    async def put_together(self, work: Callable[[], _T], *, samples: int) -> _T:
        """Make a part of an answer: at once for a few samples, and beside the event loop for many.

        Under the request's ticket, so that nobody takes a replica for idle that still has answers to give.
        """
        if samples <= INLINE_SAMPLES or self._is_closed:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._answer_thread, work)

    def finish(self, call: Call, *, status: int, error: str | None) -> None:
        """Tell the observers how the request ended, in the event loop's next turn: the answer goes first."""
        total_s = self.now_s() - call.started_s
        asyncio.get_running_loop().call_soon(self._tell, call, status, error, total_s)

    def _tell(self, call: Call, status: int, error: str | None, total_s: float) -> None:
        self._observers.request_done(
            RequestFacts(
                request_id=call.request_id,
                trace_parent=call.trace_parent,
                client=call.client,
                protocol=call.protocol,
                split_point=call.split_point,
                codec=call.codec,
                samples=call.samples,
                bytes_in=call.bytes_in,
                status=status,
                error=error,
                total_s=total_s,
                timings_s=call.timings_s,
                input_wait_s=call.input_wait_s,
                input_s=call.input_s,
            )
        )

    def check_health(self) -> None:
        """Raise RuntimeError where the oldest request has waited too long, or what was begun for one that has left."""
        ages_s = {
            "the oldest request has waited": max(self.admission.oldest_age_s(), self._batcher.oldest_age_s()),
            "the model has run one batch for": self._batcher.running_s(),
            "one input has been decoded for": self._input_thread.running_s(),
        }
        for what, age_s in ages_s.items():
            if age_s > self.limits.max_request_age_s:
                raise RuntimeError(f"{what} {age_s:.0f} s")

    async def drain(self) -> None:
        """Return when everything that waits is answered and counted."""
        await self._batcher.drain()
        # Counting has its turn behind the answers, and holds the model until then.
        await asyncio.sleep(0)

    def close(self) -> None:
        """Let the threads end after what they do now."""
        self._batcher.close()
        self._is_closed = True
        self._input_thread.close()
        # What has run is answered.
        self._answer_thread.shutdown(wait=False)

    async def _run(self, key: BatchKey, payload: Payload, call: Call, *, as_logits: bool, top_k: int) -> ReplyFrame:
        call.split_point, call.codec = key.split_point, key.codec
        expected_s, deadline_s = self._expected(key, call)
        entered_s = self.now_s()
        served = await self._batcher.submit(key, payload, samples=call.samples, deadline_s=deadline_s)
        if deadline_s - entered_s <= DEFAULT_PATIENCE_S:
            # Who waits longer is overtaken by whoever comes later with less time: no error of the estimate.
            self._margin.learn(expected_s=expected_s, took_s=self.now_s() - entered_s)
        call.batch_samples = served.batch_samples
        call.timings_s |= {"queue": served.queue_s, "decode": served.prepare_s, "tail": served.run_s}
        logits_NK = served.result
        predictions = None
        if not as_logits:
            predictions = await self.put_together(
                lambda: top_predictions(logits_NK, labels=self.runner.labels, top_k=top_k), samples=call.samples
            )
            self._on_predictions(call, predictions[0])
        call.timings_s["total"] = self.now_s() - call.started_s
        return ReplyFrame(
            model_digest=self._digest_prefix,
            sample_count=len(logits_NK),
            timings_s=call.timings_s,
            predictions=predictions,
            logits=logits_NK if as_logits else None,
        )

    async def _in_input_thread(self, work: Callable[[], _T], call: Call) -> _T:
        """Raises as `_expected` does, where too much is to be read before it."""
        wait_s = self._input_thread.wait_s()
        self._refuse_to_wait(wait_s, f"inputs are to be decoded for {wait_s:.0f} s before this one")
        late_s = self.now_s() + wait_s - _deadline_s(call)
        if wait_s and late_s > 0:
            raise DeadlineError(
                f"the input could be read in {1000 * wait_s:.0f} ms, and the request's budget is {call.budget_ms} ms",
                retry_after_s=late_s,
            )
        read = await self._input_thread.run(work)
        call.input_wait_s, call.input_s = read.waited_s, read.took_s
        return read.result

    def _preprocess(self, body: bytes, call: Call) -> NDArray[np.float32]:
        """In the inputs' thread, where others may have come first: what is too late by now is not worth decoding."""
        late_s = self.now_s() - _deadline_s(call)
        if late_s > 0:
            raise DeadlineError(
                f"the request's budget of {call.budget_ms} ms was over before its input could be read",
                retry_after_s=late_s,
            )
        return self.runner.preprocess(body)

    def _expected(self, key: BatchKey, call: Call) -> tuple[float, float]:
        """Seconds that the answer will take from now, and the time after which it is worth nothing.

        Raises DeadlineError where it would come later: at once, while its sender still has time for something else.
        Raises OverloadedError where so much is ahead of it that the replica would look as if it hung. What it takes by
        itself is no reason for that, and for the first one not always: an estimate that keeps everybody out is never
        corrected.
        """
        deadline_s = _deadline_s(call)
        wait_s = self._batcher.expected_wait_s(key, samples=call.samples, deadline_s=deadline_s)
        own_s = self._batcher.cost.batch_s(key, call.samples)
        ahead_s = wait_s - own_s
        self._refuse_to_wait(ahead_s, f"others are ahead for {ahead_s:.0f} s")
        now_s = self.now_s()
        last_s = self._let_in_s.get((key, call.samples), self._started_s)
        if call.budget_ms is None:
            self._let_in_s[key, call.samples] = now_s
            return wait_s, deadline_s
        margin_s = self._margin.seconds(now_s, budget_s=deadline_s - call.started_s)
        late_s = now_s + wait_s * CAUTION + margin_s - deadline_s
        if late_s > own_s * CAUTION or (late_s > 0 and now_s - last_s < max(PROBE_AFTER_S, own_s / PROBE_SHARE)):
            raise DeadlineError(
                f"the answer would take {1000 * wait_s:.0f} ms, and the request's budget is {call.budget_ms} ms",
                retry_after_s=late_s,
            )
        self._let_in_s[key, call.samples] = now_s
        # A probe runs whatever is expected of it.
        return wait_s, deadline_s if late_s <= 0 else math.inf

    def _refuse_to_wait(self, wait_s: float, what: str) -> None:
        most_s = self.limits.max_request_age_s / 2
        if wait_s > most_s:
            raise OverloadedError(
                f"{what}; nobody waits for more than {most_s:g} s here", retry_after_s=wait_s - most_s
            )

    def _batch_done(self, report: BatchReport) -> None:
        key = report.key
        assert isinstance(key, BatchKey)
        self._observers.batch_done(
            BatchFacts(
                split_point=key.split_point,
                codec=key.codec,
                samples=report.samples,
                items=report.items,
                bucket=self.runner.rows_run(key, report.samples),
                queue_delays_s=report.queue_delays_s,
                decode_s=report.prepare_s,
                tail_s=report.run_s,
            )
        )

    def _digest_reason(self, theirs: str) -> str:
        shown = theirs[:32] if len(theirs) <= 80 else f"{theirs[:32]}..."
        ours = self.runner.digest[:32]
        return f"{self.runner.name} has digest {ours}, the request is for {shown!r}; read the card again"


def _deadline_s(call: Call) -> float:
    """After which an answer is worth nothing; infinity where its sender said nothing."""
    # The budget began to run when the sender let go of the request; the headers' arrival is the nearest we know.
    return math.inf if call.budget_ms is None else call.started_s + call.budget_ms / 1000 - OUTSIDE_S
