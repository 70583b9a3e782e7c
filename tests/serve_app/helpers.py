"""A tiny model behind the ingress, and requests to it without sockets.

Shape legend: N samples, K classes. The tiny model takes features [N, 2, 2, 2] at "middle" and has three classes.
"""

from __future__ import annotations

import asyncio
import io
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response

from serve_app.batching import BatchKey
from serve_app.ingress import Ingress
from serve_app.micro_batcher import Prepared
from serve_app.model_runner import ModelRunner, Payload
from serve_app.service import InferenceService
from serve_app.settings import Limits
from serve_app.tokens import TokenBook
from split_inference.codec_profile import CodecProfile
from split_inference.errors import FeatureMismatchError, UnknownSplitPointError, UnsupportedMediaError, WireError
from split_inference.feature_codec import FeatureCodec, decode_tensor
from split_inference.preprocessing import ImagePreprocessing
from split_inference.wire import FRAME_MEDIA_TYPE, FeatureFrame, encode_frame
from tests.patience import PATIENCE_S

ROUTE = "/v1/models/tiny"
DIGEST = "ab" * 32
LABELS = ("cat", "dog", "frog")
# Row k weighs the eight features for class k: every class can win.
WEIGHTS_KF = np.eye(3, 8, dtype=np.float32)


class TinyRunner:
    """Logits are the first three features of each sample; preprocessing gives the image's means."""

    name = "tiny"
    digest = DIGEST
    labels: tuple[str, ...] = LABELS
    card: Mapping[str, Any] = {"name": "tiny", "digest": DIGEST, "labels": list(LABELS)}

    def __init__(self, *, on_run: Callable[[], None] = lambda: None, max_pixels: int = 1_000_000) -> None:
        self.on_run = on_run
        self.buckets_of_four = False
        self.preprocessed = 0
        self.batches: list[int] = []
        self._max_pixels = max_pixels
        self._preprocessing = ImagePreprocessing(height=2, width=2)

    def check(self, frame: FeatureFrame) -> None:
        if frame.split_point != "middle":
            raise UnknownSplitPointError(f"no split point {frame.split_point!r}; the nearest are middle")
        if frame.tensors[0].shape[1:] != (2, 2, 2):
            raise FeatureMismatchError(f"tensor 0 has shape {list(frame.tensors[0].shape)}")

    def check_input(self, media_type: str) -> None:
        if not media_type.startswith("image/"):
            raise UnsupportedMediaError(f"tiny takes image inputs, not {media_type}")

    def preprocess(self, data: bytes) -> NDArray[np.float32]:
        self.preprocessed += 1
        return self._preprocessing.apply(data, max_pixels=self._max_pixels)

    def key_of(self, payload: Payload) -> BatchKey:
        is_frame = isinstance(payload, FeatureFrame)
        return BatchKey(split_point="middle" if is_frame else "input", shapes=((2, 2, 2),), codec="any")

    def prepare(self, key: BatchKey, payloads: Sequence[Payload]) -> Prepared[list[NDArray[np.float32]]]:
        good, bad = [], {}
        for index, payload in enumerate(payloads):
            try:
                good.append(self._features(payload))
            except WireError as error:
                bad[index] = error
        return Prepared(staged=good, bad=bad)

    def run(self, key: BatchKey, staged: list[NDArray[np.float32]]) -> list[NDArray[np.float32] | WireError]:
        self.on_run()
        self.batches.append(len(staged))
        return [features_NF @ WEIGHTS_KF.T for features_NF in staged]

    def rows_run(self, key: BatchKey, samples: int) -> int:
        return -(-samples // 4) * 4 if self.buckets_of_four else samples

    def discard(self, staged: list[NDArray[np.float32]]) -> None:
        staged.clear()

    def _features(self, payload: Payload) -> NDArray[np.float32]:
        if isinstance(payload, FeatureFrame):
            return decode_tensor(payload.tensors[0]).reshape(payload.sample_count, -1)
        return np.resize(payload.mean(axis=(2, 3)), (len(payload), 8))


def ingress_of(
    runner: ModelRunner | None = None,
    *,
    limits: Limits | None = None,
    now_s: Callable[[], float] = time.perf_counter,
    tokens: TokenBook | None = None,
    **options: Any,
) -> Ingress:
    """An ingress before the tiny model, or another one."""
    return Ingress(InferenceService(runner or TinyRunner(), limits=limits, now_s=now_s, **options), tokens=tokens)


def frame_of(
    features: NDArray[np.float32],
    *,
    codec: str = "float32",
    split_point: str = "middle",
    digest: str = DIGEST,
    deadline_budget_ms: int | None = None,
) -> bytes:
    """The bytes of a frame with one tensor."""
    return encode_frame(
        FeatureFrame(
            model_digest=bytes.fromhex(digest)[:16],
            split_point=split_point,
            sample_count=len(features),
            deadline_budget_ms=deadline_budget_ms,
            tensors=(FeatureCodec(CodecProfile.parse(codec)).encode(features),),
        )
    )


def one_hot_features(*classes: int) -> NDArray[np.float32]:
    """Features [N, 2, 2, 2] for which the tiny model answers these classes."""
    features_NF = np.zeros((len(classes), 8), dtype=np.float32)
    features_NF[np.arange(len(classes)), classes] = 4.0
    return features_NF.reshape(-1, 2, 2, 2)


def png(width: int, height: int, colour: tuple[int, int, int] = (200, 10, 10)) -> bytes:
    """A small real PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def png_bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises width x height pixels, and that holds none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def asgi(answer: Callable[[Request], Awaitable[Response]]) -> Any:
    """An ASGI application around a handler, as Serve makes one."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        response = await answer(Request(scope, receive, send))
        await response(scope, receive, send)

    return application


def ask(
    answer: Callable[[Request], Awaitable[Response]], method: str, url: str, *, root_path: str = ROUTE, **options: Any
) -> httpx.Response:
    """One request through httpx's ASGI transport."""

    async def exchange() -> httpx.Response:
        transport = httpx.ASGITransport(app=asgi(answer), root_path=root_path)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(method, url, **options)

    return asyncio.run(exchange())


def post(
    body: Any,
    *,
    runner: TinyRunner | None = None,
    limits: Limits | None = None,
    media_type: str | None = FRAME_MEDIA_TYPE,
    query: str = "",
    headers: Mapping[str, str] | None = None,
) -> httpx.Response:
    """One POST to a fresh ingress before the tiny model."""
    sent = dict(headers or {})
    if media_type is not None:
        sent["content-type"] = media_type
    ingress = ingress_of(runner, limits=limits)
    try:
        return ask(ingress.answer, "POST", f"{ROUTE}{query}", content=body, headers=sent)
    finally:
        ingress.close()


def python_without(code: str, *modules: str) -> None:
    """Run code in a fresh interpreter, and fail where it imported one of the modules."""
    check = f"import sys\n{code}\nfound = set({modules!r}) & sys.modules.keys()\nassert not found, found"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=PATIENCE_S)
