"""One device's way to an answer: preprocess, head and encode here, send a frame, read the reply, time every stage.

Knows the head runner, the wire and what the server's card says. Knows no sockets (a Transport does), no Ray, and waits
only on the clock that it was given.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_sim.clock import Clock, SystemClock
from edge_sim.exchange import Exchange
from edge_sim.head_runner import HeadRunner, Input
from edge_sim.retry import RetryPolicy
from edge_sim.server_card import ServerCard, check_digest, check_split_point
from edge_sim.transport import HttpTransport, Request, Response, Transport
from split_inference.calibration import Calibration
from split_inference.codec_profile import CodecProfile
from split_inference.errors import (
    DigestMismatchError,
    MalformedFrameError,
    ServerError,
    UsageError,
)
from split_inference.feature_codec import FeatureCodec
from split_inference.model_catalog import LoadedModel, load_model
from split_inference.model_split import SplitPoint
from split_inference.predictions import top_predictions
from split_inference.server_url import model_path
from split_inference.wire import (
    DIGEST_BYTES,
    FRAME_MEDIA_TYPE,
    REPLY_MEDIA_TYPE,
    FeatureFrame,
    Prediction,
    ReplyFrame,
    decode_reply,
    encode_frame,
)

DEFAULT_TIMEOUT_S = 10.0
# The frame's field holds 32 bits; whoever waits longer than a day has no deadline.
MAX_BUDGET_MS = 24 * 3600 * 1000
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What one request gave, and where its time went."""

    predictions: tuple[tuple[Prediction, ...], ...]
    """Per sample, best first; empty where logits were asked for."""
    logits: NDArray[np.float32] | None
    """[samples, classes], where they were asked for."""
    sent_bytes: int
    """Body of the request that was answered; HTTP's own headers are not counted, they are the same in every mode."""
    received_bytes: int
    """Body of the answer."""
    attempts: int
    """Requests that it took, 1 where nothing went wrong; 0 for an answer computed here."""
    total_s: float
    """From the call to the answer."""
    stages_s: Mapping[str, float]
    """One after the other, together `total_s`: preprocess, head, encode, round_trip, other (hand-overs, waits)."""
    server_stages_s: Mapping[str, float]
    """What the server says of its part of `round_trip`."""

    @property
    def top(self) -> Prediction:
        """The best class of the first sample."""
        if not self.predictions:
            raise ValueError("this answer has logits and no predictions")
        return self.predictions[0][0]


class EdgeClient:
    """Runs a model's head here and asks a server for the rest; an asynchronous context manager.

    `model` is a URI or a model that is loaded already; `served_name` its name on the server, by default its own.
    `codec` is a profile or its name; with a `calibration`, its codecs are used, and `codec` may be None.
    `timeout_s` is a whole request's budget, retries included.

    Entering loads the model, reads the server's card and checks digest, split point and codec against it. Raises
    UsageError for what cannot be asked, DigestMismatchError, UnknownSplitPointError, UnknownCodecError or
    UnknownModelError where the two sides do not fit, ServerError where the server is away or broken.

    >>> async with EdgeClient("http://127.0.0.1:8000", "embedded:resnet20-cifar10", "stage3", "u2+lz4") as edge:
    ...     answer = await edge.infer(Path("cat.jpg").read_bytes())                                  # doctest: +SKIP
    """

    def __init__(
        self,
        url: str,
        model: str | LoadedModel,
        split_point: str,
        codec: str | CodecProfile | None = None,
        *,
        calibration: Calibration | None = None,
        served_name: str | None = None,
        token: str | None = None,
        ca: Path | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        allow_insecure_token: bool = False,
        retry: RetryPolicy | None = None,
        transport: Transport | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        if timeout_s <= 0:
            raise UsageError(f"timeout_s must be positive, got {timeout_s}")
        self._url = url
        self._given_model = model
        self._given_split_point = split_point
        self._profile = _profile(codec, calibration)
        self._calibration = calibration
        self._served_name = served_name
        self._clock = clock or SystemClock()
        self._transport = transport or HttpTransport(url, token=token, ca=ca, allow_insecure_token=allow_insecure_token)
        self._exchange = Exchange(
            self._transport,
            url=url,
            timeout_s=timeout_s,
            retry=retry or RetryPolicy(),
            clock=self._clock,
            rng=rng or random.Random(),
        )
        # One thread of its own: the head would otherwise stall the loop that reads the sockets.
        self._device = ThreadPoolExecutor(max_workers=1, thread_name_prefix="edge-head")
        self._loaded: LoadedModel | None = None
        self._runner: HeadRunner | None = None
        self._point: SplitPoint | None = None
        self._card: ServerCard | None = None

    async def __aenter__(self) -> EdgeClient:
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def infer(self, data: Input, *, top_k: int = 5, logits: bool = False) -> Answer:
        """The answer for one encoded image or sound, or for one preprocessed array [1, ...]."""
        return await self.infer_many([data], top_k=top_k, logits=logits)

    async def infer_many(self, inputs: Sequence[Input], *, top_k: int = 5, logits: bool = False) -> Answer:
        """The answers for several inputs in one frame: one round trip, one sample of the frame each."""
        runner, started_s = self._started(self._runner), self._clock.now_s()
        work = await self._on_device(lambda: runner.run(inputs))

        def request(remaining_s: float) -> Request:
            frame = FeatureFrame(
                model_digest=self._wire_digest,
                split_point=self.split_point.name,
                sample_count=work.sample_count,
                deadline_budget_ms=min(MAX_BUDGET_MS, max(1, int(remaining_s * 1000))),
                tensors=work.tensors,
            )
            return self._post(encode_frame(frame), FRAME_MEDIA_TYPE, top_k=top_k, logits=logits)

        return await self._ask(request, started_s=started_s, device_s=work.stages_s, samples=work.sample_count)

    async def send_input(self, data: bytes, media_type: str, *, top_k: int = 5, logits: bool = False) -> Answer:
        """The answer for an encoded image or sound sent as it is: everything is done on the server."""
        started_s = self._clock.now_s()
        request = self._post(data, media_type, top_k=top_k, logits=logits)
        return await self._ask(lambda remaining_s: request, started_s=started_s, device_s={}, samples=1)

    async def infer_locally(self, data: Input, *, top_k: int = 5) -> Answer:
        """The answer of the whole model on this device; nothing is sent."""
        runner, started_s = self._started(self._runner), self._clock.now_s()
        local = await self._on_device(lambda: runner.run_whole([data]))
        predictions = top_predictions(local.logits_NK, labels=self.model.card.labels, top_k=top_k)
        total_s = self._clock.now_s() - started_s
        return Answer(
            predictions=predictions,
            logits=local.logits_NK,
            sent_bytes=0,
            received_bytes=0,
            attempts=0,
            total_s=total_s,
            stages_s={**local.stages_s, "other": total_s - sum(local.stages_s.values())},
            server_stages_s={},
        )

    @property
    def model(self) -> LoadedModel:
        """The model whose head runs here."""
        return self._started(self._loaded)

    @property
    def split_point(self) -> SplitPoint:
        """Where it is cut."""
        return self._started(self._point)

    @property
    def codec_name(self) -> str:
        """Name of the codec that encodes the features."""
        return self._profile.name

    @property
    def card(self) -> ServerCard:
        """What the server last said of its model."""
        return self._started(self._card)

    async def _start(self) -> None:
        given = self._given_model
        loaded = given if isinstance(given, LoadedModel) else await self._on_device(lambda: load_model(given))
        point = loaded.model.split_point(self._given_split_point)
        codecs = self._codecs(loaded, point)
        self._loaded, self._point = loaded, point
        self._runner = await self._on_device(lambda: HeadRunner(loaded, at=point, codecs=codecs))
        self._card = await self._exchange.read_card(self._name)
        check_digest(self._card, loaded.model.digest, where=self._url)
        check_split_point(self._card, point, self._profile.name, where=self._url)

    async def _stop(self) -> None:
        self._device.shutdown(wait=False, cancel_futures=True)
        await self._transport.close()

    def _codecs(self, loaded: LoadedModel, point: SplitPoint) -> tuple[FeatureCodec, ...]:
        calibration = self._calibration
        if calibration is None:
            return tuple(FeatureCodec(self._profile, channel_axis=spec.channel_axis) for spec in point.features)
        if calibration.model_digest != loaded.model.digest:
            raise UsageError(
                f"the calibration is for {calibration.model} with digest {calibration.model_digest[:12]}.., the model "
                f"here is {loaded.name} with {loaded.model.digest[:12]}..: calibrate again"
            )
        if calibration.split_point not in (point.name, *point.aliases):
            raise UsageError(f"the calibration is for split point {calibration.split_point}, not for {point.name}")
        return calibration.codecs()

    async def _ask(
        self,
        request: Callable[[float], Request],
        *,
        started_s: float,
        device_s: Mapping[str, float],
        samples: int,
    ) -> Answer:
        refused = 0
        try:
            delivered = await self._exchange.deliver(request, started_s=started_s)
        except DigestMismatchError:
            # A rollout may be passing by: the card says which model the server has now.
            refused = 1
            self._card = await self._exchange.read_card(self._name, started_s=started_s)
            check_digest(self._card, self.model.model.digest, where=self._url)
            delivered = await self._exchange.deliver(request, started_s=started_s)
        try:
            reply = self._read_reply(delivered.response, samples=samples)
        except ServerError as error:
            error.attempts = refused + delivered.attempts
            raise
        total_s = self._clock.now_s() - started_s
        stages_s = {**device_s, "round_trip": delivered.round_trip_s}
        return Answer(
            predictions=reply.predictions or (),
            logits=reply.logits,
            sent_bytes=len(delivered.request.body),
            received_bytes=len(delivered.response.body),
            attempts=refused + delivered.attempts,
            total_s=total_s,
            stages_s={**stages_s, "other": total_s - sum(stages_s.values())},
            server_stages_s=dict(reply.timings_s),
        )

    def _read_reply(self, response: Response, *, samples: int) -> ReplyFrame:
        try:
            reply = decode_reply(response.body)
        except MalformedFrameError as error:
            raise ServerError(f"{self._url} answered with something that is no reply frame ({error})") from error
        if reply.model_digest != self._wire_digest:
            raise DigestMismatchError(f"{self._url} answered for another model than it was asked for")
        if reply.sample_count != samples:
            raise ServerError(f"{self._url} answered for {reply.sample_count} samples; {samples} were sent")
        return reply

    def _post(self, body: bytes, media_type: str, *, top_k: int, logits: bool) -> Request:
        query = "output=logits" if logits else f"top_k={top_k}"
        return Request(
            method="POST",
            path=f"{model_path(self._name)}?{query}",
            headers={
                "content-type": media_type,
                "accept": REPLY_MEDIA_TYPE,
                # A frame carries the digest itself; an encoded input has no other place for it.
                **({} if media_type == FRAME_MEDIA_TYPE else {"x-model-digest": self.model.model.digest}),
            },
            body=body,
        )

    async def _on_device(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._device, work)

    @property
    def _name(self) -> str:
        return self._served_name or self.model.name

    @property
    def _wire_digest(self) -> bytes:
        return bytes.fromhex(self.model.model.digest)[:DIGEST_BYTES]

    @staticmethod
    def _started(value: _Result | None) -> _Result:
        if value is None:
            raise UsageError("the client has not started: use `async with EdgeClient(...) as edge:`")
        return value


def _profile(codec: str | CodecProfile | None, calibration: Calibration | None) -> CodecProfile:
    given = CodecProfile.parse(codec) if isinstance(codec, str) else codec
    calibrated = CodecProfile.parse(calibration.codec) if calibration is not None else None
    profile = given or calibrated
    if profile is None:
        raise UsageError("give a codec (as in u4+lz4) or a calibration")
    if calibrated is not None and profile != calibrated:
        raise UsageError(f"the calibration is for codec {calibrated.name}, not for {profile.name}")
    return profile
