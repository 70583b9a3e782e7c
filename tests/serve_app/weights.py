"""Two sets of weights of a small network, and a client that judges every answer by its digest.

Shape legend: N samples, K classes.
"""

from __future__ import annotations

import asyncio
import json
import threading

import httpx
import numpy as np
import torch

from split_inference.model_catalog import load_model
from split_inference.model_split import SplittableModel
from split_inference.wire import FRAME_MEDIA_TYPE, decode_reply
from tests.integration.processes import wait_for
from tests.serve_app.helpers import ROUTE, asgi, frame_of
from tests.split_inference.models import Branches, seeded

SAMPLES = 8
LABELS = list("abcde")


def package(folder, seed):
    """A small network with the weights of this seed, as a URI."""
    program = torch.export.export(
        seeded(Branches(), seed=seed), (torch.zeros(2, 3, 8, 8),),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=16)},),
    )  # fmt: skip
    file = folder / f"weights-{seed}.pt2"
    # Functional, as the cache has them: loading takes a third of the time.
    torch.export.save(SplittableModel(program).functional, file)
    file.with_suffix(".card.json").write_text(json.dumps({"labels": LABELS}))
    return f"pt2:{file}"


class Weights:
    """One package: its digest, frames for it, and the logits that the whole network gives."""

    def __init__(self, uri):
        self.uri = uri
        loaded = load_model(uri)
        self.digest = loaded.model.digest
        self.point = loaded.model.split_points[1].name
        inputs = torch.randn(SAMPLES, *loaded.model.input.shape, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            features = loaded.model.head(self.point)(inputs)
            assert len(features) == 1
            self.frames = [
                frame_of(features[0][n : n + 1].numpy(), split_point=self.point, digest=self.digest)
                for n in range(SAMPLES)
            ]
            tail = loaded.model.tail(self.point)
            self.logits_NK = np.concatenate([tail(features[0][n : n + 1]).numpy() for n in range(SAMPLES)])


class Client:
    """Asks a replica as Serve does: whatever its ingress is when the request comes."""

    def __init__(self, replica):
        transport = httpx.ASGITransport(app=asgi(lambda request: replica.ingress.answer(request)), root_path=ROUTE)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://server")
        self._replica = replica
        self.seen = []
        """Of each request: its digest, its status, and whose turn it was when it was answered."""

    async def ask(self, of, number=0):
        """The status; a 200 has to be the reference's bits."""
        answer = await self._client.post(
            f"{ROUTE}?output=logits", content=of.frames[number], headers={"content-type": FRAME_MEDIA_TYPE}
        )
        if answer.status_code == 200:
            reply = decode_reply(answer.content)
            assert reply.model_digest.hex() == of.digest[:32]
            np.testing.assert_array_equal(reply.logits, of.logits_NK[number : number + 1])
        self.seen.append((of.digest, answer.status_code, self._replica.digest))
        return answer.status_code

    async def card(self):
        return (await self._client.get(ROUTE)).json()


def serving_threads():
    """Threads of batchers and services that are alive."""
    names = ("model", "prepare", "input", "answer")
    return {each for each in threading.enumerate() if each.name.rpartition("_")[0] in names}


def run(scenario):
    """The scenario in an event loop; of the threads that served in it none is left a while later."""
    # By thread and not by name: one that an earlier test told to end may be among them, and end meanwhile.
    before = serving_threads()
    result = asyncio.run(scenario)
    wait_for(lambda: serving_threads() <= before, why="a thread that served is left")
    return result
