"""A whole replica without Ray: knobs and weights change while it answers, and every answer is that of its digest.

Shape legend: N samples, K classes.
"""

from __future__ import annotations

import asyncio
import gc
import json
import weakref

import httpx
import numpy as np
import pytest
import torch

from serve_app import model_loading
from serve_app import replica as replica_module
from serve_app.metrics import MODEL_INFO
from serve_app.model_loading import loads_undisturbing, prepare_in_child
from serve_app.replica import Replica
from serve_app.settings import AppSettings, LiveSettings
from serve_app.tail_cache import TailCache
from split_inference.errors import ConfigError, ModelLoadError, UsageError
from split_inference.grpc.inference_pb2 import FrameRequest
from split_inference.model_catalog import load_model
from split_inference.wire import FRAME_MEDIA_TYPE, decode_reply
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
    torch.export.save(program, file)
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


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return [Weights(package(folder, seed)) for seed in (1, 2)]


@pytest.fixture
def settings(weights, tmp_path):
    return AppSettings.model_validate({"model": weights[0].uri, "execution": {"cache": tmp_path / "cache"}})


class Client:
    """Asks a replica as Serve does: whatever its ingress is when the request comes."""

    def __init__(self, replica):
        transport = httpx.ASGITransport(app=asgi(lambda request: replica.ingress.answer(request)), root_path=ROUTE)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://server")
        self.seen = []

    async def ask(self, of, number):
        """The status; a 200 has to be the reference's bits."""
        answer = await self._client.post(
            f"{ROUTE}?output=logits", content=of.frames[number], headers={"content-type": FRAME_MEDIA_TYPE}
        )
        if answer.status_code == 200:
            reply = decode_reply(answer.content)
            assert reply.model_digest.hex() == of.digest[:32]
            np.testing.assert_array_equal(reply.logits, of.logits_NK[number : number + 1])
        self.seen.append((of.digest, answer.status_code))
        return answer.status_code

    async def card(self):
        return (await self._client.get(ROUTE)).json()


def test_weights_are_replaced_while_requests_run_and_every_answer_is_that_of_its_digest(settings, weights):
    old, new = weights

    async def scenario():
        replica = Replica(settings, live={"batching": {"max_batch_samples": 1}})
        client = Client(replica)
        first = weakref.ref(replica._served.runner)
        done = asyncio.Event()

        async def load(of, turn):
            while not done.is_set():
                await client.ask(of, turn % SAMPLES)
                turn += 1
                await asyncio.sleep(0)

        senders = [asyncio.create_task(load(of, turn)) for of in weights for turn in range(4)]
        while len(client.seen) < 50:
            await asyncio.sleep(0.01)
        assert replica.digest == old.digest
        before = len(client.seen)
        await replica.reconfigure({"model": new.uri, "batching": {"max_batch_samples": 1}})
        assert len(client.seen) > before, "nobody was answered while the weights were loaded"
        changed = len(client.seen)
        while len(client.seen) < changed + 50:
            await asyncio.sleep(0.01)
        done.set()
        await asyncio.gather(*senders)
        assert (await client.card())["digest"] == replica.digest == new.digest
        await replica.close()
        return first, client.seen

    first, seen = asyncio.run(scenario())
    # Nothing but answers and 409, and each digest's answers on its own side of one moment.
    assert {status for _, status in seen} == {200, 409}
    first_new = seen.index((new.digest, 200))
    # Requests that began before that moment may end after it: at most one of each of the four senders.
    assert seen[first_new:].count((old.digest, 200)) <= 4
    gc.unfreeze()
    gc.collect()
    assert first() is None, "the old weights are still in memory"


def test_what_the_same_settings_name_stays_and_knobs_change_alone(settings, weights):
    async def scenario():
        replica = Replica(settings)
        served = replica._served
        await replica.reconfigure({"batching": {"max_batch_samples": 3}})
        assert replica._served is served
        assert served.service.batching.max_batch_samples == 3
        await replica.reconfigure({"model": weights[0].uri})
        assert replica._served is served
        await replica.reconfigure(None)
        assert served.service.batching == LiveSettings().batching
        await replica.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("live", "kind"),
    [
        ({"model": "pt2:/no/such.pt2"}, ModelLoadError),
        ({"no_such_knob": "x"}, ConfigError),
        ({"calibration": "x"}, ConfigError),
    ],
)
def test_what_cannot_be_served_changes_nothing(settings, weights, live, kind):
    async def scenario():
        replica = Replica(settings)
        served = replica._served
        with pytest.raises(kind):
            await replica.reconfigure(live)
        assert replica._served is served
        assert await Client(replica).ask(weights[0], 0) == 200
        await replica.close()

    asyncio.run(scenario())


def test_a_replica_that_starts_with_replaced_weights_loads_no_others(settings, weights, monkeypatch):
    loaded = []

    def load(settings, **options):
        loaded.append(settings.model)
        return model_loading.load_runner(settings, **options)

    monkeypatch.setattr(replica_module, "load_runner", load)

    async def scenario():
        replica = Replica(settings, live={"model": weights[1].uri})
        assert await Client(replica).ask(weights[1], 0) == 200
        await replica.close()

    asyncio.run(scenario())
    assert loaded == [weights[1].uri]


def test_an_open_stream_gets_answers_of_the_new_weights(settings, weights):
    async def scenario():
        replica = Replica(settings)
        asked: asyncio.Queue[FrameRequest | None] = asyncio.Queue()

        async def requests():
            while (message := await asked.get()) is not None:
                yield message

        replies = replica.grpc.stream(requests())
        statuses = []
        for of in (weights[0], weights[1]):
            asked.put_nowait(FrameRequest(frame=of.frames[0], logits=True))
            reply = await anext(replies)
            statuses.append(reply.status)
            np.testing.assert_array_equal(decode_reply(reply.reply).logits, of.logits_NK[:1])
            if of is weights[0]:
                await replica.reconfigure({"model": weights[1].uri})
        asked.put_nowait(None)
        assert [each async for each in replies] == []
        await replica.close()
        return statuses

    assert asyncio.run(scenario()) == [200, 200]


def test_a_request_whose_body_is_slow_is_answered_by_the_weights_that_it_came_to(settings, weights):
    async def scenario():
        replica = Replica(settings)
        arrived = asyncio.Event()
        frame = weights[0].frames[0]

        async def body():
            yield frame[:10]
            await arrived.wait()
            yield frame[10:]

        transport = httpx.ASGITransport(app=asgi(lambda request: replica.ingress.answer(request)), root_path=ROUTE)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            headers = {"content-type": FRAME_MEDIA_TYPE, "content-length": str(len(frame))}
            slow = asyncio.create_task(client.post(f"{ROUTE}?output=logits", content=body(), headers=headers))
            await asyncio.sleep(0.05)
            change = asyncio.create_task(replica.reconfigure({"model": weights[1].uri}))
            while replica.digest != weights[1].digest:
                await asyncio.sleep(0.01)
            assert not change.done()
            arrived.set()
            answer = await slow
            await change
        np.testing.assert_array_equal(decode_reply(answer.content).logits, weights[0].logits_NK[:1])
        await replica.close()

    asyncio.run(scenario())


def test_metrics_and_monitor_say_which_weights_answer(settings, weights):
    class Kept:
        def __init__(self, metric):
            self.metric = metric

        def record(self, value, labels):
            if self.metric == MODEL_INFO:
                info[labels["digest"]] = value

        def flush(self):
            pass

    info: dict[str, float] = {}

    async def scenario():
        replica = Replica(settings, live={"monitor": True}, make_instrument=Kept)
        replica.check_health()
        assert info == {weights[0].digest[:12]: 1}
        await replica.reconfigure({"monitor": True, "model": weights[1].uri})
        replica.check_health()
        assert info == {weights[0].digest[:12]: 0, weights[1].digest[:12]: 1}
        transport = httpx.ASGITransport(app=asgi(replica.ingress.answer), root_path=ROUTE)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            data = (await client.get(f"{ROUTE}/monitor/data")).json()
        assert data["digest"] == weights[1].digest
        await replica.close()

    asyncio.run(scenario())


@pytest.mark.slow
def test_what_has_to_be_exported_is_so_in_a_child_and_then_comes_from_the_cache(tmp_path):
    settings = AppSettings.model_validate({"model": "resnet18?weights=random", "execution": {"cache": tmp_path}})
    assert not loads_undisturbing(settings)
    prepare_in_child(settings)
    assert loads_undisturbing(settings)
    [place] = TailCache(tmp_path).models().iterdir()
    written = place.stat().st_mtime_ns
    prepare_in_child(settings)
    assert place.stat().st_mtime_ns == written


def test_a_child_that_cannot_prepare_says_why_in_one_line(tmp_path):
    settings = AppSettings.model_validate(
        {"model": "resnet18?weights=random&seed=no", "execution": {"cache": tmp_path}}
    )
    with pytest.raises(UsageError, match="seed"):
        prepare_in_child(settings)
