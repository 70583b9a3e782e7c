"""A whole replica without Ray: knobs and weights change while it answers, and every answer is that of its digest.

Shape legend: N samples, K classes.
"""

from __future__ import annotations

import asyncio
import threading
import weakref

import httpx
import numpy as np
import pytest

from serve_app import model_loading
from serve_app import replica as replica_module
from serve_app.metrics import CONFIG_PENDING, MODEL_INFO
from serve_app.replica import Replica
from serve_app.settings import AppSettings, BatchingSettings
from split_inference.grpc.inference_pb2 import FrameRequest
from split_inference.wire import FRAME_MEDIA_TYPE, decode_reply
from tests.patience import PATIENCE_S
from tests.serve_app.helpers import ROUTE, asgi
from tests.serve_app.weights import SAMPLES, Client, package, run


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
        began = len(client.seen)
        replica.reconfigure({"model": new.uri, "batching": {"max_batch_samples": 1}})
        assert replica.digest == old.digest
        await replica.settled()
        assert not replica.is_changing
        assert (await client.card())["digest"] == replica.digest == new.digest
        # By the replica's own doing: nobody here collects garbage.
        assert first() is None, "the old weights are still in memory"
        while client.seen.count((new.digest, 200, new.digest)) < 20:
            await asyncio.sleep(0.01)
        done.set()
        await asyncio.gather(*senders)
        await replica.close()
        return client.seen, began

    seen, began = run(scenario())
    assert {status for _, status, _ in seen} == {200, 409}
    # While the new weights were loaded, the old ones answered (but for the time in their thread), and refusals came.
    assert seen[began:].count((old.digest, 200, old.digest)) > 0
    assert seen[began:].count((new.digest, 409, old.digest)) > 10
    # Requests that began before the exchange may end after it: at most one of each of the four senders.
    assert seen.count((old.digest, 200, new.digest)) <= 4
    assert seen.count((new.digest, 200, old.digest)) == 0


def test_what_the_same_settings_name_stays_and_knobs_change_alone(settings, weights):
    async def scenario():
        replica = Replica(settings)
        served = replica._served
        for live, batching in [
            ({"batching": {"max_batch_samples": 3}}, BatchingSettings(max_batch_samples=3)),
            ({"model": weights[0].uri}, BatchingSettings()),
            (None, BatchingSettings()),
        ]:
            replica.reconfigure(live)
            assert not replica.is_changing
            await replica.settled()
            assert replica._served is served
            assert served.service.batching == batching
        await replica.close()

    run(scenario())


def pending(replica):
    """What the gauge says."""
    return replica._is_refused or replica.is_changing


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": "OTHER", "no_such_knob": "x"},
        {"model": "OTHER", "batching": {"max_in_flight": 9}},
        {"model": " x"},
        {"calibration": "x"},
    ],
)
def test_a_wrong_user_config_ends_nothing_and_changes_nothing(settings, weights, wrong, caplog):
    """What a replica's reconfigure raises would make Serve end it."""

    async def scenario():
        knobs = {"batching": {"max_batch_samples": 3}}
        replica = Replica(settings, live=knobs)
        replica.reconfigure({key: weights[1].uri if each == "OTHER" else each for key, each in wrong.items()})
        await replica.settled()
        assert replica.digest == weights[0].digest
        assert replica._served.service.batching == BatchingSettings(max_batch_samples=3)
        assert pending(replica)
        assert await Client(replica).ask(weights[0]) == 200
        replica.reconfigure(knobs)
        assert not pending(replica)
        await replica.close()

    run(scenario())
    [line] = [each for each in caplog.records if each.levelname == "ERROR"]
    assert "user_config is not obeyed" in line.getMessage()


@pytest.mark.parametrize("uri", ["pt2:/no/such.pt2", "resnet34?weights=/no/such.safetensors", "no-such-model"])
def test_weights_that_cannot_be_loaded_are_logged_and_the_old_ones_go_on(settings, weights, uri, caplog):
    async def scenario():
        replica = Replica(settings)
        replica.reconfigure({"model": uri})
        await replica.settled()
        assert replica.digest == weights[0].digest
        assert await Client(replica).ask(weights[0]) == 200
        [line] = [each for each in caplog.records if each.levelname == "ERROR"]
        assert uri in line.getMessage()
        assert line.exc_info is None
        # The next ones are served as if nothing had been.
        replica.reconfigure({"model": weights[1].uri})
        await replica.settled()
        assert not replica.is_changing
        assert await Client(replica).ask(weights[1]) == 200
        await replica.close()

    run(scenario())


def test_a_fault_while_loading_is_logged_with_its_traceback_and_the_old_weights_go_on(
    settings, weights, monkeypatch, caplog
):
    async def broken(*_, **options):
        raise ZeroDivisionError("a fault of ours")

    async def scenario():
        replica = Replica(settings)
        monkeypatch.setattr(replica_module, "load_runner_beside", broken)
        replica.reconfigure({"model": weights[1].uri})
        await replica.settled()
        assert await Client(replica).ask(weights[0]) == 200
        await replica.close()

    run(scenario())
    [line] = [each for each in caplog.records if each.levelname == "ERROR"]
    assert line.exc_info is not None


class Held:
    """A loader that says when it begins, and goes on when told to."""

    def __init__(self, monkeypatch):
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self.given_up = []
        monkeypatch.setattr(replica_module, "load_runner_beside", self._load)

    async def _load(self, settings, *, model_thread, given_up):
        self.begun.set()
        await self.go_on.wait()
        self.given_up.append(given_up.is_set())
        return await asyncio.to_thread(model_loading.load_runner, settings)


def test_of_two_changes_the_later_one_counts_and_the_earlier_one_never_answers(
    settings, weights, monkeypatch, tmp_path
):
    shown: list[str] = []

    async def scenario():
        replica = Replica(settings, say=shown.append)
        first = Held(monkeypatch)
        replica.reconfigure({"model": package(tmp_path, seed=3)})
        await first.begun.wait()
        replica.reconfigure({"model": weights[1].uri, "batching": {"max_batch_samples": 2}})
        # Another knob for the same weights gives up nothing.
        replica.reconfigure({"model": weights[1].uri, "batching": {"max_batch_samples": 3}})
        first.go_on.set()
        await replica.settled()
        assert first.given_up == [True, False]
        assert replica.digest == weights[1].digest
        assert replica._served.service.batching.max_batch_samples == 3
        await replica.close()

    run(scenario())
    assert len([line for line in shown if "retires" in line]) == 1


def test_a_change_that_is_taken_back_while_it_loads_leaves_everything_as_it_was(settings, weights, monkeypatch):
    async def scenario():
        replica = Replica(settings)
        served = replica._served
        held = Held(monkeypatch)
        replica.reconfigure({"model": weights[1].uri})
        await held.begun.wait()
        replica.reconfigure(None)
        held.go_on.set()
        await replica.settled()
        assert held.given_up == [True]
        assert replica._served is served
        await replica.close()

    run(scenario())


def test_weights_that_could_not_be_loaded_are_tried_again(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(replica_module, "RETRY_S", 0.0)

    async def scenario():
        replica = Replica(settings)
        late = tmp_path / "weights-3.pt2"
        replica.reconfigure({"model": f"pt2:{late}"})
        await replica.settled()
        before = replica.digest
        package(tmp_path, seed=3)
        replica.check_health()
        await replica.settled()
        assert replica.digest != before
        await replica.close()

    run(scenario())


def test_a_replica_that_ends_in_the_middle_of_a_change_answers_what_it_has(settings, weights):
    async def scenario():
        replica = Replica(settings)
        client = Client(replica)
        replica.reconfigure({"model": weights[1].uri})
        asked = asyncio.create_task(client.ask(weights[0]))
        await asyncio.sleep(0.02)
        await asyncio.wait_for(replica.close(), timeout=PATIENCE_S)
        assert await asked == 200

    # What it was loading, it loads to the end: two of these at once would spoil each other.
    run(scenario())


def test_a_replica_that_starts_with_replaced_weights_loads_no_others(settings, weights, monkeypatch):
    loaded = []

    def load(settings, **options):
        loaded.append(settings.model)
        return model_loading.load_runner(settings, **options)

    monkeypatch.setattr(replica_module, "load_runner", load)

    async def scenario():
        replica = Replica(settings, live={"model": weights[1].uri})
        assert await Client(replica).ask(weights[1]) == 200
        await replica.close()

    run(scenario())
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
                replica.reconfigure({"model": weights[1].uri})
                await replica.settled()
        asked.put_nowait(None)
        assert [each async for each in replies] == []
        await replica.close()
        return statuses

    assert run(scenario()) == [200, 200]


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
            replica.reconfigure({"model": weights[1].uri})
            while replica.digest != weights[1].digest:
                await asyncio.sleep(0.01)
            assert replica._retiring is not None
            assert replica._admission.pending == 1
            arrived.set()
            answer = await slow
            await replica.settled()
        np.testing.assert_array_equal(decode_reply(answer.content).logits, weights[0].logits_NK[:1])
        await replica.close()

    run(scenario())


def test_a_model_that_hangs_is_unwell_also_when_others_took_its_place(weights, tmp_path, monkeypatch):
    go_on = threading.Event()
    settings = AppSettings.model_validate(
        {
            "model": weights[0].uri,
            "limits": {"max_request_age_s": 0.2, "body_timeout_s": 0.1},
            "execution": {"cache": tmp_path},
        }
    )

    async def beside(settings, *, model_thread, given_up):
        return await asyncio.to_thread(model_loading.load_runner, settings)

    monkeypatch.setattr(replica_module, "load_runner_beside", beside)

    async def scenario():
        replica = Replica(settings)
        runs = replica._served.runner.run

        def hangs(*arguments):
            go_on.wait(timeout=PATIENCE_S)
            return runs(*arguments)

        monkeypatch.setattr(replica._served.runner, "run", hangs)
        hung = asyncio.create_task(Client(replica).ask(weights[0]))
        await asyncio.sleep(0.3)
        replica.reconfigure({"model": weights[1].uri})
        while replica.digest != weights[1].digest:
            await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError, match="has waited"):
            replica.check_health()
        # Nor when whoever waited has gone.
        hung.cancel()
        await asyncio.wait({hung})
        assert replica._admission.pending == 0
        await asyncio.sleep(0.3)
        with pytest.raises(RuntimeError, match="have not ended"):
            replica.check_health()
        go_on.set()
        await replica.settled()
        replica.check_health()
        await replica.close()

    run(scenario())


def test_metrics_and_monitor_say_which_weights_answer(settings, weights):
    class Kept:
        def __init__(self, metric):
            self.metric = metric

        def record(self, value, labels):
            if self.metric == MODEL_INFO:
                info[labels["digest"]] = value
            elif self.metric == CONFIG_PENDING:
                info["pending"] = value

        def flush(self):
            pass

    info: dict[str, float] = {}

    async def scenario():
        replica = Replica(settings, live={"monitor": True}, make_instrument=Kept)
        replica.check_health()
        assert info == {weights[0].digest[:12]: 1, "pending": 0}
        replica.reconfigure({"monitor": True, "model": weights[1].uri})
        replica.check_health()
        assert info == {weights[0].digest[:12]: 1, "pending": 1}
        await replica.settled()
        replica.check_health()
        assert info == {weights[0].digest[:12]: 0, weights[1].digest[:12]: 1, "pending": 0}
        transport = httpx.ASGITransport(app=asgi(replica.ingress.answer), root_path=ROUTE)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            data = (await client.get(f"{ROUTE}/monitor/data")).json()
        assert data["digest"] == weights[1].digest
        await replica.close()

    run(scenario())
