"""EdgeClient against a server that is a function: answers, stages, checks at the start, and what happens on 409."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import torch

from edge_sim.client import EdgeClient
from split_inference.calibration import Calibration, Clip
from split_inference.errors import (
    DigestMismatchError,
    FeatureMismatchError,
    MalformedInputError,
    ServerError,
    UnknownCodecError,
    UnknownModelError,
    UnknownSplitPointError,
    UsageError,
)
from split_inference.wire import decode_frame
from tests.edge_sim.helpers import (
    LABELS,
    SERVER_STAGES_S,
    URL,
    FunctionTransport,
    ManualClock,
    TinyServer,
    card_of,
    edge,
    error,
    json_response,
    picture,
    proxy_error,
    tiny_model,
)


@pytest.fixture(scope="module")
def loaded():
    return tiny_model()


def whole(loaded, *images: bytes):
    batch = np.concatenate([loaded.card.preprocessing.apply(image) for image in images])
    with torch.inference_mode():
        return loaded.model.whole(torch.from_numpy(batch)).numpy()


def run(client: EdgeClient, use):
    async def enter():
        async with client as entered:
            return await use(entered)

    return asyncio.run(enter())


def test_the_answer_is_the_whole_models_answer(loaded):
    transport = FunctionTransport(TinyServer(loaded))
    answer = run(edge(loaded, transport), lambda client: client.infer(picture()))
    best = int(whole(loaded, picture())[0].argmax())
    assert (answer.top.index, answer.top.label) == (best, LABELS[best])
    assert transport.closed


@pytest.mark.parametrize("at", ["input", "stem", "relu", "classifier"])
def test_logits_through_a_float32_frame_are_the_whole_models_bit_for_bit(loaded, at):
    transport = FunctionTransport(TinyServer(loaded))
    answer = run(edge(loaded, transport, at=at), lambda client: client.infer(picture(), logits=True))
    assert answer.logits.tobytes() == whole(loaded, picture()).tobytes()


def test_several_inputs_travel_in_one_frame_and_come_back_in_order(loaded):
    transport = FunctionTransport(TinyServer(loaded))
    images = [picture((r, 250 - r, 40)) for r in (0, 90, 250)]
    answer = run(edge(loaded, transport), lambda client: client.infer_many(images, logits=True))
    assert answer.logits.tobytes() == whole(loaded, *images).tobytes()
    (post,) = [request for request in transport.requests if request.method == "POST"]
    assert decode_frame(post.body).sample_count == 3


def test_stages_sum_to_the_total_on_the_real_clock(loaded):
    transport = FunctionTransport(TinyServer(loaded))
    client = EdgeClient(URL, loaded, "stem", "u4", transport=transport)

    async def use(entered):
        return (
            await entered.infer(picture()),
            await entered.infer_locally(picture()),
            await entered.infer_many([picture()] * 2),
        )

    for answer in run(client, use):
        assert sum(answer.stages_s.values()) == pytest.approx(answer.total_s)
        assert min(answer.stages_s.values()) >= 0
    assert set(answer.stages_s) == {"preprocess", "head", "encode", "round_trip", "other"}
    assert answer.server_stages_s == SERVER_STAGES_S


def test_bytes_are_those_of_the_bodies(loaded):
    transport = FunctionTransport(TinyServer(loaded))
    answer = run(edge(loaded, transport, codec="u2"), lambda client: client.infer(picture()))
    assert answer.sent_bytes == len(transport.requests[-1].body)
    assert answer.received_bytes > 0


def test_the_frame_says_how_much_of_the_budget_is_left(loaded):
    transport = FunctionTransport(TinyServer(loaded))
    run(edge(loaded, transport, timeout_s=2.5), lambda client: client.infer(picture()))
    assert decode_frame(transport.requests[-1].body).deadline_budget_ms == 2500
    assert transport.timeouts_s[-1] == 2.5


def test_an_input_can_be_sent_as_it_is(loaded):
    transport = FunctionTransport(TinyServer(loaded))
    client = edge(loaded, transport, at="input")
    answer = run(client, lambda entered: entered.send_input(picture(), "image/png", logits=True))
    post = transport.requests[-1]
    assert (post.body, post.headers["content-type"]) == (picture(), "image/png")
    assert post.headers["x-model-digest"] == loaded.model.digest
    assert answer.logits.tobytes() == whole(loaded, picture()).tobytes()


def test_an_array_needs_no_preprocessing(loaded):
    array = loaded.card.preprocessing.apply(picture())
    transport = FunctionTransport(TinyServer(loaded))
    answer = run(edge(loaded, transport), lambda client: client.infer(array, logits=True))
    assert answer.logits.tobytes() == whole(loaded, picture()).tobytes()


def test_the_whole_model_can_run_here_without_a_request(loaded):
    transport = FunctionTransport(TinyServer(loaded))
    answer = run(edge(loaded, transport), lambda client: client.infer_locally(picture()))
    assert answer.top.index == int(whole(loaded, picture())[0].argmax())
    assert (answer.sent_bytes, answer.attempts) == (0, 0)
    assert [request.method for request in transport.requests] == ["GET"]
    assert sum(each.score for each in answer.predictions[0]) == pytest.approx(1.0)


def test_bytes_that_are_no_image_are_refused_before_anything_is_sent(loaded):
    transport = FunctionTransport(TinyServer(loaded))
    with pytest.raises(MalformedInputError):
        run(edge(loaded, transport), lambda client: client.infer(b"no image"))
    assert [request.method for request in transport.requests] == ["GET"]


def test_features_that_are_not_finite_are_not_sent(loaded):
    array = np.full((1, 3, 8, 8), np.nan, dtype=np.float32)
    transport = FunctionTransport(TinyServer(loaded))
    with pytest.raises(FeatureMismatchError, match="stem"):
        run(edge(loaded, transport), lambda client: client.infer(array))


# What entering checks


def test_another_digest_is_refused_at_the_start(loaded):
    transport = FunctionTransport(TinyServer(tiny_model(seed=1)))
    with pytest.raises(DigestMismatchError, match="load the same model on both sides"):
        run(edge(loaded, transport), lambda client: client.infer(picture()))
    assert transport.closed


def test_a_split_point_that_does_not_exist_is_refused_at_the_start(loaded):
    transport = FunctionTransport(TinyServer(loaded))
    with pytest.raises(UnknownSplitPointError, match="stem"):
        run(edge(loaded, transport, at="stam"), lambda client: client.infer(picture()))
    assert transport.requests == []


def test_a_split_point_that_the_server_does_not_serve_is_refused_at_the_start(loaded):
    server = TinyServer(loaded)
    server.card["split_points"] = [point for point in server.card["split_points"] if point["name"] != "stem"]
    with pytest.raises(UnknownSplitPointError, match="does not answer for split point stem"):
        run(edge(loaded, FunctionTransport(server)), lambda client: client.infer(picture()))


def test_a_codec_that_the_server_does_not_decode_is_refused_at_the_start(loaded):
    with pytest.raises(UnknownCodecError, match=r"u3\+zstd"):
        run(
            edge(loaded, FunctionTransport(TinyServer(loaded)), codec="u3+zstd"), lambda client: client.infer(picture())
        )


def test_any_quality_of_tiled_jpeg_is_covered_by_the_cards_one(loaded):
    client = edge(loaded, FunctionTransport(TinyServer(loaded)), codec="jpeg40")
    assert run(client, lambda entered: entered.infer(picture())).top.label in LABELS


def test_an_unknown_codec_is_refused_before_anything_is_asked():
    with pytest.raises(UnknownCodecError):
        EdgeClient(URL, "embedded:tiny", "stem", "u99")


def test_neither_codec_nor_calibration_is_refused():
    with pytest.raises(UsageError, match="codec"):
        EdgeClient(URL, "embedded:tiny", "stem", None)


def test_a_server_of_another_wire_version_is_refused(loaded):
    server = TinyServer(loaded)
    server.card["wire_versions"] = [7]
    with pytest.raises(ServerError, match="wire version 7"):
        run(edge(loaded, FunctionTransport(server)), lambda client: client.infer(picture()))


def test_other_shapes_are_refused_at_the_start(loaded):
    server = TinyServer(loaded)
    for point in server.card["split_points"]:
        point["features"][0]["shape"] = [1, 2, 3]
    with pytest.raises(FeatureMismatchError):
        run(edge(loaded, FunctionTransport(server)), lambda client: client.infer(picture()))


def test_a_model_that_is_not_served_is_named_beside_those_that_are(loaded):
    class Proxied(TinyServer):
        def __call__(self, request: Any) -> Any:
            answer: Any = super().__call__(request)
            return answer if answer.status == 200 else proxy_error(404)

    client = edge(loaded, FunctionTransport(Proxied(loaded)), served_name="other")
    with pytest.raises(UnknownModelError, match="serves: tiny"):
        run(client, lambda entered: entered.infer(picture()))


def test_a_card_that_is_no_card_is_the_servers_fault(loaded):
    transport = FunctionTransport(lambda request: json_response({"name": "tiny"}))
    with pytest.raises(ServerError, match="is no ServerCard"):
        run(edge(loaded, transport), lambda client: client.infer(picture()))


def test_what_a_newer_server_says_beyond_our_knowledge_is_ignored(loaded):
    server = TinyServer(loaded)
    server.card["colour"] = "green"
    assert run(edge(loaded, FunctionTransport(server)), lambda client: client.infer(picture())).top.label in LABELS


def test_a_client_that_was_not_entered_says_so(loaded):
    client = edge(loaded, FunctionTransport(TinyServer(loaded)))
    with pytest.raises(UsageError, match="async with"):
        asyncio.run(client.infer(picture()))


# Calibrations


def calibration(loaded, **changes) -> Calibration:
    facts = {
        "model": loaded.card.uri,
        "model_digest": loaded.model.digest,
        "split_point": "stem",
        "codec": "u2+lz4",
        "clip": (Clip(low=(0.0,), high=(2.0,)),),
        "channel_axes": (1,),
    }
    return Calibration(**{**facts, **changes})


def test_a_calibrations_ranges_are_sent(loaded):
    transport = FunctionTransport(TinyServer(loaded))
    client = EdgeClient(URL, loaded, "stem", calibration=calibration(loaded), transport=transport)
    run(client, lambda entered: entered.infer(picture()))
    (tensor,) = decode_frame(transport.requests[-1].body).tensors
    assert (tensor.bits, tensor.ranges.tolist()) == (2, [[0.0, 2.0]])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_digest": "cd" * 32}, "calibrate again"),
        ({"split_point": "left"}, "split point left"),
        ({"codec": "u3+lz4"}, r"codec u3\+lz4"),
    ],
)
def test_a_calibration_for_something_else_is_refused(loaded, changes, reason):
    transport = FunctionTransport(TinyServer(loaded))
    with pytest.raises(UsageError, match=reason):
        run(
            EdgeClient(URL, loaded, "stem", "u2", calibration=calibration(loaded, **changes), transport=transport),
            lambda entered: entered.infer(picture()),
        )


# 409: the server may be changing its model


def digest_refused(*numbers: int):
    return lambda number: error(409, "DigestMismatchError", "tiny has another digest") if number in numbers else None


def test_a_passing_409_is_answered_at_the_second_try(loaded):
    transport = FunctionTransport(TinyServer(loaded, digest_refused(0)))
    answer = run(edge(loaded, transport), lambda client: client.infer(picture()))
    assert [request.method for request in transport.requests] == ["GET", "POST", "GET", "POST"]
    assert answer.attempts == 2


def test_a_409_that_stays_is_raised_after_one_more_try(loaded):
    transport = FunctionTransport(TinyServer(loaded, digest_refused(0, 1, 2, 3)))
    with pytest.raises(DigestMismatchError, match="another digest"):
        run(edge(loaded, transport), lambda client: client.infer(picture()))
    assert [request.method for request in transport.requests] == ["GET", "POST", "GET", "POST"]


def test_a_409_with_another_model_in_the_card_is_one_clear_line(loaded):
    server = TinyServer(loaded)

    def roll_out(number):
        server.card = card_of(tiny_model(seed=1))
        return error(409, "DigestMismatchError")

    server._before = roll_out
    transport = FunctionTransport(server)
    with pytest.raises(DigestMismatchError, match="load the same model on both sides") as caught:
        run(edge(loaded, transport), lambda client: client.infer(picture()))
    assert "\n" not in str(caught.value)
    assert [request.method for request in transport.requests] == ["GET", "POST", "GET"]


def test_an_answer_for_another_model_is_refused(loaded):
    other = TinyServer(tiny_model(seed=1))
    server = TinyServer(loaded)

    def answer(request):
        return server(request) if request.method == "GET" else other(request)

    with pytest.raises(DigestMismatchError, match="another model"):
        run(edge(loaded, FunctionTransport(answer)), lambda client: client.infer(picture()))


def test_a_reply_that_is_no_reply_frame_is_the_servers_fault(loaded):
    server = TinyServer(loaded)

    def answer(request):
        return server(request) if request.method == "GET" else json_response({"hello": "world"})

    with pytest.raises(ServerError, match="no reply frame"):
        run(edge(loaded, FunctionTransport(answer)), lambda client: client.infer(picture()))


def test_waits_between_retries_count_as_other(loaded):
    clock = ManualClock()
    transport = FunctionTransport(
        TinyServer(loaded, lambda number: error(503, "OverloadedError") if number == 0 else None)
    )
    answer = run(edge(loaded, transport, clock=clock), lambda client: client.infer(picture()))
    assert answer.attempts == 2
    assert answer.total_s == pytest.approx(sum(clock.slept_s))
    assert sum(answer.stages_s.values()) == pytest.approx(answer.total_s)
