"""Edge -> ingress -> tail in one process, without sockets: the split model is the whole model."""

from __future__ import annotations

import asyncio
import io

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from edge_sim.client import EdgeClient
from edge_sim.transport import Request, Response
from serve_app.ingress import Ingress
from serve_app.service import InferenceService
from serve_app.tail_runner import TailRunner
from split_inference.embedded.resnet20 import ResNet20
from tests.edge_sim.helpers import LABELS, tiny_model
from tests.serve_app.helpers import asgi
from tests.split_inference.models import Branches, ChannelsLast

URL = "http://server"


class InProcessTransport:
    """Delivers to an ASGI application of this process."""

    def __init__(self, ingress: Ingress, route: str) -> None:
        transport = httpx.ASGITransport(app=asgi(ingress.answer), root_path=route)
        self._client = httpx.AsyncClient(transport=transport, base_url=URL)

    async def send(self, request: Request, *, timeout_s: float) -> Response:
        response = await self._client.request(
            request.method, request.path, content=request.body, headers=dict(request.headers)
        )
        return Response(status=response.status_code, headers=dict(response.headers), body=response.content)

    async def close(self) -> None:
        await self._client.aclose()


@pytest.fixture(scope="module", params=["branches", "channels-last", "resnet20"])
def loaded(request):
    module, size = {
        "branches": (Branches(), 8),
        "channels-last": (ChannelsLast(), 8),
        "resnet20": (ResNet20(classes=len(LABELS)), 32),
    }[request.param]
    return tiny_model(module=module, size=size)


@pytest.fixture(scope="module")
def ingress(loaded):
    answering = Ingress(InferenceService(TailRunner(loaded.model, name=loaded.name, card=loaded.card)))
    yield answering
    answering.close()


def images(loaded, count: int) -> list[bytes]:
    """PNGs of noise, equal in every run."""
    rng = np.random.default_rng(5)
    encoded = []
    for _ in range(count):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (*loaded.model.input.shape[1:], 3), dtype=np.uint8)).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    return encoded


def whole(loaded, encoded: list[bytes]):
    batch = np.concatenate([loaded.card.preprocessing.apply(image) for image in encoded])
    with torch.inference_mode():
        return loaded.model.whole(torch.from_numpy(batch)).numpy()


def through(loaded, ingress, at: str, codec: str, ask):
    async def run():
        transport = InProcessTransport(ingress, f"/v1/models/{loaded.name}")
        async with EdgeClient(URL, loaded, at, codec, transport=transport) as edge:
            return await ask(edge)

    return asyncio.run(run())


@pytest.mark.parametrize("count", [1, 3])
def test_logits_are_the_same_bits_at_every_split_point(loaded, ingress, count):
    encoded = images(loaded, count)
    expected = whole(loaded, encoded)
    for point in loaded.model.split_points:
        answer = through(loaded, ingress, point.name, "float32", lambda edge: edge.infer_many(encoded, logits=True))
        assert answer.logits.tobytes() == expected.tobytes(), point.name


def test_eight_bits_give_the_same_answer_at_several_split_points(loaded, ingress):
    encoded = images(loaded, 3)
    expected = whole(loaded, encoded).argmax(axis=1).tolist()
    points = loaded.model.split_points
    for point in (points[1], points[len(points) // 2], points[-2]):
        answer = through(loaded, ingress, point.name, "u8", lambda edge: edge.infer_many(encoded))
        assert [sample[0].index for sample in answer.predictions] == expected, point.name


def test_an_image_sent_as_it_is_gets_the_same_answer(loaded, ingress):
    (encoded,) = images(loaded, 1)
    answer = through(
        loaded, ingress, "input", "float32", lambda edge: edge.send_input(encoded, "image/png", logits=True)
    )
    assert answer.logits.tobytes() == whole(loaded, [encoded]).tobytes()


def test_device_and_server_say_the_same_words(loaded, ingress):
    (encoded,) = images(loaded, 1)
    at = loaded.model.split_points[1].name
    there = through(loaded, ingress, at, "float32", lambda edge: edge.infer(encoded))
    here = through(loaded, ingress, at, "float32", lambda edge: edge.infer_locally(encoded))
    assert [(each.index, each.label) for each in there.predictions[0]] == [
        (each.index, each.label) for each in here.predictions[0]
    ]
    assert [each.score for each in there.predictions[0]] == pytest.approx([each.score for each in here.predictions[0]])


def test_the_servers_stages_fit_into_the_round_trip(loaded, ingress):
    (encoded,) = images(loaded, 1)
    at = loaded.model.split_points[1].name
    answer = through(loaded, ingress, at, "u4", lambda edge: edge.infer(encoded))
    assert {"queue", "decode", "tail", "total"} <= answer.server_stages_s.keys()
    assert answer.server_stages_s["total"] <= answer.stages_s["round_trip"]
    assert sum(answer.stages_s.values()) == pytest.approx(answer.total_s)
