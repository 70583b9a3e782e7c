"""A small model, a server for it that is a function, and a clock that jumps: no sockets and no waiting."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from edge_sim.client import EdgeClient
from edge_sim.transport import Request, Response
from split_inference.feature_codec import decode_tensor
from split_inference.model_card import ModelCard
from split_inference.model_catalog import LoadedModel
from split_inference.model_split import export_model
from split_inference.preprocessing import ImagePreprocessing
from split_inference.wire import (
    DIGEST_BYTES,
    FRAME_MEDIA_TYPE,
    REPLY_MEDIA_TYPE,
    Prediction,
    ReplyFrame,
    decode_frame,
    encode_reply,
)
from tests.split_inference.models import Branches, seeded

URL = "http://127.0.0.1:8000"
LABELS = ("cat", "dog", "frog", "ship", "horse")
SERVER_STAGES_S = {"queue": 0.0005, "decode": 0.001, "tail": 0.002, "total": 0.004}


class ManualClock:
    """Time passes only where somebody sleeps, or where a test says so."""

    def __init__(self) -> None:
        self.time_s = 1000.0
        self.slept_s: list[float] = []

    def now_s(self) -> float:
        return self.time_s

    async def sleep(self, duration_s: float) -> None:
        self.slept_s.append(duration_s)
        self.time_s += duration_s


class FunctionTransport:
    """Answers with what a function of the request gives; an exception that it gives is raised."""

    def __init__(self, answer: Callable[[Request], Response | Exception]) -> None:
        self._answer = answer
        self.requests: list[Request] = []
        self.timeouts_s: list[float] = []
        self.closed = False

    async def send(self, request: Request, *, timeout_s: float) -> Response:
        self.requests.append(request)
        self.timeouts_s.append(timeout_s)
        answer = self._answer(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        self.closed = True


class TinyServer:
    """What a real server would answer for `loaded`; `before` may answer first, by number of the POST (0, 1, ...)."""

    def __init__(self, loaded: LoadedModel, before: Callable[[int], Response | Exception | None] = lambda _: None):
        self.loaded = loaded
        self.card = card_of(loaded)
        self.posts = 0
        self._before = before

    def __call__(self, request: Request) -> Response | Exception:
        if request.method == "GET":
            if request.path == "/v1/models":
                route = f"/v1/models/{self.loaded.name}"
                entries = [{"name": self.loaded.name, "uri": self.loaded.card.uri, "route": route}]
                return json_response({"models": entries})
            if request.path == f"/v1/models/{self.loaded.name}":
                return json_response(self.card)
            return error(404, "UnknownModelError", f"no model {request.path}")
        number, self.posts = self.posts, self.posts + 1
        return self._before(number) or self._reply(request)

    def _reply(self, request: Request) -> Response:
        with torch.inference_mode():
            if request.headers["content-type"] == FRAME_MEDIA_TYPE:
                frame = decode_frame(request.body)
                features = [torch.from_numpy(decode_tensor(each)) for each in frame.tensors]
                logits = self.loaded.model.tail(frame.split_point)(*features).numpy()
            else:
                assert self.loaded.card.preprocessing is not None
                logits = self.loaded.model.whole(
                    torch.from_numpy(self.loaded.card.preprocessing.apply(request.body))
                ).numpy()
        as_logits = "output=logits" in request.path
        best = [np.argsort(-row)[:2] for row in logits]
        predictions = tuple(
            tuple(Prediction(index=int(k), label=LABELS[k], score=0.5) for k in order) for order in best
        )
        reply = ReplyFrame(
            model_digest=bytes.fromhex(self.loaded.model.digest)[:DIGEST_BYTES],
            sample_count=len(logits),
            timings_s=SERVER_STAGES_S,
            predictions=None if as_logits else predictions,
            logits=logits if as_logits else None,
        )
        return Response(status=200, headers={"content-type": REPLY_MEDIA_TYPE}, body=encode_reply(reply))


def tiny_model(*, seed: int = 0, module: nn.Module | None = None, size: int = 8) -> LoadedModel:
    """A network with two branches, five classes and images of size x size, loaded as the catalogue would."""
    model = export_model(seeded(module or Branches(), seed), torch.zeros(1, 3, size, size))
    card = ModelCard(
        name="tiny",
        uri="embedded:tiny",
        digest=model.digest,
        labels=LABELS,
        preprocessing=ImagePreprocessing(height=size, width=size),
    )
    return LoadedModel(name="tiny", model=model, card=card)


def card_of(loaded: LoadedModel) -> dict[str, Any]:
    """The card that a server shows."""
    return {
        **loaded.card.model_dump(mode="json"),
        "wire_versions": [1],
        "split_points": [
            {
                "name": point.name,
                "aliases": list(point.aliases),
                "features": [
                    {"shape": list(spec.shape), "dtype": spec.dtype, "channel_axis": spec.channel_axis}
                    for spec in point.features
                ],
                "codecs": ["float32+none", "u2+lz4", "u4+lz4", "u8+lz4", "jpeg75"],
            }
            for point in loaded.model.split_points
        ],
    }


def edge(
    loaded: LoadedModel, transport: FunctionTransport, *, at: str = "stem", codec: str = "float32", **options
) -> EdgeClient:
    """A client with a jumping clock and a seeded generator."""
    options.setdefault("clock", ManualClock())
    return EdgeClient(URL, loaded, at, codec, transport=transport, rng=random.Random(7), **options)


def picture(colour: tuple[int, int, int] = (200, 40, 90), size: int = 8, kind: str = "PNG") -> bytes:
    """A small real image."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, kind)
    return buffer.getvalue()


def json_response(content: object, status: int = 200, **headers: str) -> Response:
    return Response(
        status=status,
        headers={"content-type": "application/json", **headers},
        body=json.dumps(content).encode(),
    )


def error(status: int, name: str, reason: str = "because", **headers: str) -> Response:
    """A refusal in our own words."""
    return json_response({"error": name, "reason": reason}, status, **headers)


def proxy_error(status: int) -> Response:
    """What something else on the way answers."""
    return Response(status=status, headers={"content-type": "text/html"}, body=b"<h1>oops</h1>")
