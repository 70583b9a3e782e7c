"""The ingress as a target of the fuzzer: the real one, before the real runner with a model of three weights.

The model serves what the fuzzer's honest frames name, so that a frame which lies in one place only gets as far as that
place: to the shapes, to the codec, to the tail.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import torch
from starlette.requests import Request
from torch import Tensor, nn

from benchmarks.fuzz_target import Target
from benchmarks.hostile_frames import SEED_DIGEST, SEED_SPLIT_POINT
from serve_app.ingress import STATUS_OF, Ingress
from serve_app.service import InferenceService
from serve_app.tail_runner import TailRunner
from split_inference.errors import UnknownSplitPointError
from split_inference.model_card import ModelCard
from split_inference.model_split import FeatureSpec, SplitPoint
from split_inference.wire import FRAME_MEDIA_TYPE

_SPEC = FeatureSpec(shape=(2, 2, 2), dtype="float32", channel_axis=1)
_REFUSALS = {(status, kind.__name__) for kind, status in STATUS_OF.items()}


class _Mean(nn.Module):
    """float32 [N, 2, 2, 2] -> [N, 3]."""

    def forward(self, features: Tensor) -> Tensor:
        return features.flatten(1).mean(1, keepdim=True) * torch.tensor([1.0, 2.0, 3.0])


class _Source:
    """A model with the fuzzer's split point, as TailRunner wants one."""

    digest = (SEED_DIGEST * 2).hex()
    input = _SPEC
    split_points = (
        SplitPoint(
            name=SEED_SPLIT_POINT,
            aliases=(),
            features=(_SPEC,),
            head_macs=1,
            tail_macs=1,
            head_parameters=0,
            total_parameters=0,
        ),
    )

    def split_point(self, name: str) -> SplitPoint:
        if name != SEED_SPLIT_POINT:
            raise UnknownSplitPointError(f"no split point {name!r}")
        return self.split_points[0]

    def tail(self, at: str) -> nn.Module:
        return _Mean()


class IngressTarget:
    """Sends each frame as a POST, in this thread's own event loop; close it at the end."""

    def __init__(self) -> None:
        card = ModelCard(name="tiny", uri="tiny", digest=_Source.digest, input_shape=_SPEC.shape)
        log = logging.getLogger("fuzz")
        log.addHandler(logging.NullHandler())
        log.propagate = False
        self._ingress = Ingress(InferenceService(TailRunner(_Source(), name="tiny", card=card), log=log), log=log)
        self._loop = asyncio.new_event_loop()

    def target(self) -> Target:
        return Target(name="ingress", check=self.check)

    def check(self, data: bytes) -> str:
        """The status, and with it the class of a refusal; anything outside the one table raises."""
        response = self._loop.run_until_complete(self._ingress.answer(Request(_scope(len(data)), _receiver(data))))
        if response.status_code == 200:
            return "200"
        refusal = json.loads(bytes(response.body))
        if (response.status_code, refusal["error"]) not in _REFUSALS or "\n" in refusal["reason"]:
            raise AssertionError(f"status {response.status_code}: {refusal}")
        return f"{response.status_code} {refusal['error']}"

    def close(self) -> None:
        self._ingress.close()
        self._loop.close()


def _scope(length: int) -> dict[str, Any]:
    headers = [(b"content-type", FRAME_MEDIA_TYPE.encode()), (b"content-length", str(length).encode())]
    return {"type": "http", "method": "POST", "path": "/", "root_path": "", "query_string": b"", "headers": headers}


def _receiver(data: bytes) -> Any:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": data, "more_body": False}

    return receive
