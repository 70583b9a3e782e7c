"""The ingress through httpx's ASGI transport, with a tiny model behind it."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import httpx
import numpy as np
import pytest

from serve_app.ingress import STATUS_OF
from serve_app.settings import Limits
from split_inference import errors
from split_inference.wire import FRAME_MEDIA_TYPE, REPLY_MEDIA_TYPE, decode_reply
from tests.patience import PATIENCE_S
from tests.serve_app.helpers import (
    DIGEST,
    LABELS,
    ROUTE,
    TinyRunner,
    asgi,
    ask,
    frame_of,
    ingress_of,
    one_hot_features,
    png,
    png_bomb,
    post,
    python_without,
)

JSON = {"accept": "application/json"}
GOOD_FRAME = frame_of(one_hot_features(1))


def leaves(kind):
    below = kind.__subclasses__()
    return [leaf for each in below for leaf in leaves(each)] if below else [kind]


def test_every_error_that_a_sender_can_cause_has_a_status():
    # OverloadedError is raised itself, and has DeadlineError below it.
    assert set(STATUS_OF) == {*leaves(errors.WireError), errors.OverloadedError}


def test_the_ingress_needs_neither_torch_nor_ray():
    python_without("import serve_app.ingress", "torch", "ray", "fastapi")


def test_get_gives_the_card():
    response = ask(ingress_of().answer, "GET", ROUTE)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert response.json() == dict(TinyRunner.card)


def test_head_is_answered_as_get_is():
    assert ask(ingress_of().answer, "HEAD", ROUTE).status_code == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_are_not_allowed(method):
    response = ask(ingress_of().answer, method, ROUTE)
    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD, POST")
    assert response.json()["error"] == "MethodNotAllowed"


def test_a_frame_is_answered_by_a_reply_frame():
    response = post(frame_of(one_hot_features(2, 0)))
    assert (response.status_code, response.headers["content-type"]) == (200, REPLY_MEDIA_TYPE)
    reply = decode_reply(response.content)
    assert reply.model_digest == bytes.fromhex(DIGEST)[:16]
    assert reply.sample_count == 2
    assert reply.logits is None
    assert reply.predictions is not None
    assert [[each.label for each in sample] for sample in reply.predictions] == [
        ["frog", "cat", "dog"],
        ["cat", "dog", "frog"],
    ]


def test_a_frame_is_answered_by_json_when_json_is_accepted():
    response = post(frame_of(one_hot_features(1, 2), deadline_budget_ms=150), headers=JSON)
    answer = response.json()
    assert (answer["model"], answer["digest"], answer["deadline_budget_ms"]) == ("tiny", DIGEST, 150)
    assert [sample[0]["label"] for sample in answer["predictions"]] == ["dog", "frog"]
    for sample in answer["predictions"]:
        assert sum(each["score"] for each in sample) == pytest.approx(1)
        assert [each["label"] for each in sample] == [LABELS[each["index"]] for each in sample]


def test_stages_sum_to_at_most_the_total():
    timings = post(GOOD_FRAME, headers=JSON).json()["timings_ms"]
    total = timings.pop("total")
    assert set(timings) == {"read", "parse", "queue", "decode", "tail"}
    # The tiny model reports 3 ms that did not pass.
    assert sum(timings.values()) <= total + 3


def test_logits_come_as_they_are_when_asked_for():
    features = one_hot_features(1, 2)
    expected = features.reshape(2, -1)[:, :3]
    reply = decode_reply(post(frame_of(features), query="?output=logits").content)
    assert reply.predictions is None
    np.testing.assert_array_equal(reply.logits, expected)
    assert post(frame_of(features), query="?output=logits", headers=JSON).json()["logits"] == expected.tolist()


@pytest.mark.parametrize(("top_k", "given"), [(1, 1), (2, 2), (100, 3)])
def test_as_many_classes_come_back_as_were_asked_for_and_exist(top_k, given):
    answer = post(GOOD_FRAME, query=f"?top_k={top_k}", headers=JSON).json()
    assert len(answer["predictions"][0]) == given


@pytest.mark.parametrize(
    "query", ["?top_k=0", "?top_k=101", "?top_k=x", "?top_k=", "?top_k=-1", "?top_k=²", "?output=x"]
)
def test_a_wrong_query_is_malformed(query):
    response = post(GOOD_FRAME, query=query)
    assert (response.status_code, response.json()["error"]) == (400, "MalformedInputError")


@pytest.mark.parametrize(
    ("status", "error", "body", "options"),
    [
        (400, "MalformedFrameError", GOOD_FRAME[:-1], {}),
        (400, "MalformedFrameError", GOOD_FRAME + b"\0", {}),
        (400, "MalformedFrameError", b"", {}),
        (400, "MalformedFrameError", bytes([GOOD_FRAME[0] ^ 1]) + GOOD_FRAME[1:], {}),
        (400, "MalformedInputError", b"no image", {"media_type": "image/png"}),
        (400, "MalformedInputError", b"", {"media_type": "image/jpeg"}),
        (400, "MalformedInputError", png(8, 8)[:45], {"media_type": "image/png"}),
        (404, "UnknownSplitPointError", frame_of(one_hot_features(1), split_point="nowhere"), {}),
        (409, "DigestMismatchError", frame_of(one_hot_features(1), digest="cd" * 32), {}),
        (409, "DigestMismatchError", GOOD_FRAME, {"headers": {"x-model-digest": "cd" * 32}}),
        (409, "DigestMismatchError", GOOD_FRAME, {"headers": {"x-model-digest": "nonsense"}}),
        (415, "UnsupportedMediaError", GOOD_FRAME, {"media_type": "text/plain"}),
        (415, "UnsupportedMediaError", GOOD_FRAME, {"media_type": None}),
        (415, "UnsupportedMediaError", b"RIFF", {"media_type": "audio/wav"}),
        (422, "FeatureMismatchError", frame_of(np.zeros((1, 2, 2, 3), np.float32)), {}),
    ],
)
def test_each_error_has_its_status_and_one_line(status, error, body, options):
    response = post(body, **options)
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json")
    assert b"\n" not in response.content
    assert response.json()["error"] == error
    assert response.json()["reason"]


def test_an_equal_digest_header_passes_in_either_case():
    assert post(GOOD_FRAME, headers={"x-model-digest": DIGEST.upper()}).status_code == 200


def test_parameters_of_the_content_type_are_ignored():
    assert post(GOOD_FRAME, media_type=f"{FRAME_MEDIA_TYPE}; version=1").status_code == 200


def test_a_path_below_the_model_is_an_unknown_model():
    response = ask(ingress_of().answer, "POST", f"{ROUTE}/other", content=GOOD_FRAME)
    assert (response.status_code, response.json()["error"]) == (404, "UnknownModelError")


def test_an_image_is_preprocessed_and_answered():
    answer = post(png(40, 30), media_type="image/png", headers=JSON).json()
    assert answer["predictions"][0][0]["label"] == "cat"
    assert set(answer["timings_ms"]) == {"read", "preprocess", "queue", "decode", "tail", "total"}


def test_an_image_with_too_many_pixels_is_refused_by_its_header():
    # The PNG holds no pixels at all: decoding it would be MalformedInputError.
    response = post(png_bomb(2000, 1000), media_type="image/png")
    assert (response.status_code, response.json()["error"]) == (413, "TooLargeError")


def test_an_image_that_promises_ten_billion_pixels_is_refused():
    response = post(png_bomb(100_000, 100_000), media_type="image/png")
    assert response.status_code in (400, 413)


def test_a_large_frame_is_parsed_off_the_event_loop_and_answered_alike():
    many = frame_of(one_hot_features(*[k % 3 for k in range(250)]), codec="float32")
    reply = decode_reply(post(many, query="?top_k=1").content)
    assert reply.predictions is not None
    assert [sample[0].index for sample in reply.predictions] == [k % 3 for k in range(250)]


class Bodies:
    """Request bodies in pieces that count how many were asked for."""

    def __init__(self, pieces, size):
        self.given = 0
        self._pieces, self._size = pieces, size

    async def __aiter__(self):
        for _ in range(self._pieces):
            self.given += 1
            yield bytes(self._size)


def test_a_body_that_is_announced_too_large_is_refused_before_it_is_read():
    bodies = Bodies(4, 1024)
    response = post(bodies, limits=Limits(max_frame_bytes=4095), headers={"content-length": "4096"})
    assert (response.status_code, response.json()["error"]) == (413, "TooLargeError")
    assert bodies.given == 0


@pytest.mark.parametrize("announced", ["9" * 30, "9" * 5000])
def test_a_length_beyond_all_numbers_is_refused(announced):
    assert post(Bodies(1, 1), headers={"content-length": announced}).status_code == 413


def test_a_body_in_pieces_is_given_up_at_the_limit():
    bodies = Bodies(100, 1024)
    response = post(bodies, limits=Limits(max_frame_bytes=4096))
    assert (response.status_code, response.json()["error"]) == (413, "TooLargeError")
    assert bodies.given <= 6


def test_an_encoded_input_has_its_own_limit():
    response = post(png(40, 30), media_type="image/png", limits=Limits(max_input_bytes=50))
    assert response.status_code == 413


def test_a_body_that_does_not_arrive_in_time_is_given_up():
    class Stalled:
        async def __aiter__(self):
            yield b"x"
            await asyncio.Event().wait()

    response = post(Stalled(), limits=Limits(body_timeout_s=0.1))
    assert (response.status_code, response.json()["error"]) == (408, "SlowSenderError")
    assert (response.headers["retry-after"], response.headers["connection"]) == ("1", "close")


def test_a_failure_of_the_server_says_no_details_and_is_logged(caplog):
    def fail():
        raise RuntimeError("secret path /srv/weights")

    response = post(GOOD_FRAME, runner=TinyRunner(on_run=fail))
    assert response.status_code == 500
    assert response.json() == {
        "error": "InternalError",
        "reason": "the server failed on this request; its log says why",
    }
    assert "secret path" in caplog.text


def test_requests_beyond_the_limit_are_refused_while_the_model_is_busy_and_may_come_again():
    running, finish = threading.Event(), threading.Event()

    def hold():
        running.set()
        assert finish.wait(timeout=PATIENCE_S)

    ingress = ingress_of(TinyRunner(on_run=hold), limits=Limits(max_pending_requests=2))

    async def scene():
        transport = httpx.ASGITransport(app=asgi(ingress.answer), root_path=ROUTE)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            options: dict[str, Any] = {"content": GOOD_FRAME, "headers": {"content-type": FRAME_MEDIA_TYPE}}
            admitted = [asyncio.create_task(client.post(ROUTE, **options)) for _ in range(2)]
            await asyncio.to_thread(running.wait, 10)
            refused = await client.post(ROUTE, **options)
            card = await client.get(ROUTE)
            finish.set()
            return refused, card, await asyncio.gather(*admitted)

    refused, card, admitted = asyncio.run(scene())
    assert (refused.status_code, refused.json()["error"], refused.headers["retry-after"]) == (
        503,
        "OverloadedError",
        "1",
    )
    assert card.status_code == 200, "the event loop answers while the model runs"
    assert [response.status_code for response in admitted] == [200, 200]


def test_a_request_that_is_cancelled_while_it_waits_never_runs():
    running, finish = threading.Event(), threading.Event()
    runs = []

    def hold():
        runs.append(1)
        running.set()
        assert finish.wait(timeout=PATIENCE_S)

    ingress = ingress_of(TinyRunner(on_run=hold))

    async def scene():
        transport = httpx.ASGITransport(app=asgi(ingress.answer), root_path=ROUTE)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            options: dict[str, Any] = {"content": GOOD_FRAME, "headers": {"content-type": FRAME_MEDIA_TYPE}}
            first = asyncio.create_task(client.post(ROUTE, **options))
            await asyncio.to_thread(running.wait, 10)
            second = asyncio.create_task(client.post(ROUTE, **options))
            while ingress.pending < 2:
                await asyncio.sleep(0)
            second.cancel()
            await asyncio.gather(second, return_exceptions=True)
            finish.set()
            return await first

    assert asyncio.run(scene()).status_code == 200
    assert len(runs) == 1
    assert ingress.pending == 0


def test_a_replica_whose_oldest_request_is_too_old_is_unhealthy():
    now_s = [0.0]
    seen: list[int] = []

    def look():
        ingress.check_health()
        now_s[0] = 61.0
        with pytest.raises(RuntimeError, match="61 s"):
            ingress.check_health()
        seen.append(1)

    ingress = ingress_of(TinyRunner(on_run=look), now_s=lambda: now_s[0])
    ask(ingress.answer, "POST", ROUTE, content=GOOD_FRAME, headers={"content-type": FRAME_MEDIA_TYPE})
    ingress.check_health()
    assert seen == [1]


def test_json_of_very_many_numbers_is_not_written(monkeypatch):
    monkeypatch.setattr("serve_app.ingress.MAX_JSON_NUMBERS", 5)
    frame = frame_of(one_hot_features(0, 1))
    response = post(frame, query="?output=logits", headers=JSON)
    assert (response.status_code, response.json()["error"]) == (413, "TooLargeError")
    assert "6 numbers" in response.json()["reason"]
    assert REPLY_MEDIA_TYPE in response.json()["reason"]
    assert post(frame, query="?output=logits").status_code == 200
    assert post(frame, query="?top_k=2", headers=JSON).status_code == 200
    assert post(frame, query="?top_k=3", headers=JSON).status_code == 413
    monkeypatch.setattr("serve_app.ingress.MAX_JSON_NUMBERS", 1)
    assert post(GOOD_FRAME, query="?output=logits", headers=JSON).status_code == 200


def test_hostile_text_in_a_request_stays_on_one_short_line():
    response = post(GOOD_FRAME, media_type="x" * 5000)
    assert len(response.content) < 400
    json.loads(response.content)
