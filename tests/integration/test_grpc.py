"""gRPC through real Ray Serve, behind HAProxy where it is installed: the same frames, the same answers."""

from __future__ import annotations

import asyncio
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
import yaml

from edge_sim.server_process import HOST, ServerProcess, free_port
from split_inference.codec_profile import CodecProfile
from split_inference.feature_codec import FeatureCodec
from split_inference.grpc.inference_pb2 import FrameRequest
from split_inference.grpc.inference_pb2_grpc import InferenceStub
from split_inference.model_catalog import EMBEDDED_URI, load_model
from split_inference.wire import FRAME_MEDIA_TYPE, FeatureFrame, decode_reply, encode_frame
from tests.patience import PATIENCE_S

CONFIG = Path(__file__).resolve().parents[2] / "config.yaml"
ROUTE = "/v1/models/resnet20-cifar10"
SERVICER = "split_inference.grpc.inference_pb2_grpc.add_InferenceServicer_to_server"
APPLICATION = [("application", "resnet20-cifar10")]


@pytest.fixture(scope="module")
def frames():
    loaded = load_model(EMBEDDED_URI).model
    images = torch.from_numpy(np.random.default_rng(3).standard_normal((20, 3, 32, 32), dtype=np.float32))
    with torch.inference_mode():
        features = loaded.head("stage2")(images)[0].numpy()
    codec = FeatureCodec(CodecProfile.parse("u4+lz4"), channel_axis=1)
    return [
        encode_frame(
            FeatureFrame(
                model_digest=bytes.fromhex(loaded.digest)[:16],
                split_point="stage2",
                sample_count=1,
                deadline_budget_ms=None,
                tensors=(codec.encode(np.ascontiguousarray(each[None])),),
            )
        )
        for each in features
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grpc")
    port = free_port()
    config = yaml.safe_load(CONFIG.read_text())
    config["grpc_options"] = {"port": port, "grpc_servicer_functions": [SERVICER]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    started = ServerProcess(folder / "config.yaml")
    with started.started(log=folder / "log"):
        started.wait_until_ready(ROUTE)
        yield f"{started.url}{ROUTE}", f"{HOST}:{port}"


def over_http(url, frame):
    request = urllib.request.Request(url, data=frame, headers={"content-type": FRAME_MEDIA_TYPE})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
        return decode_reply(response.read())


def best(reply):
    return [(each.index, each.label) for each in reply.predictions[0]]


def test_one_call_gives_the_answer_that_http_gives(server, frames):
    url, target = server
    with grpc.insecure_channel(target) as channel:
        stub = InferenceStub(channel)
        reply = stub.Infer(FrameRequest(frame=frames[0], sequence=3), metadata=APPLICATION, timeout=PATIENCE_S)
        assert (reply.status, reply.sequence) == (200, 3)
        assert best(decode_reply(reply.reply)) == best(over_http(url, frames[0]))
        with pytest.raises(grpc.RpcError) as refused:
            stub.Infer(FrameRequest(frame=b"nonsense"), metadata=APPLICATION, timeout=PATIENCE_S)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.value.details().startswith("MalformedFrameError: ")
        assert dict(refused.value.trailing_metadata())["x-error"] == "MalformedFrameError"


def test_a_stream_answers_every_frame_and_refuses_the_bad_one_alone(server, frames):
    url, target = server

    async def play():
        async with grpc.aio.insecure_channel(target) as channel:
            call = InferenceStub(channel).Stream(metadata=APPLICATION, timeout=PATIENCE_S)

            async def send():
                for number, frame in enumerate(frames):
                    await call.write(FrameRequest(frame=b"bad" if number == 4 else frame, sequence=number))
                await call.done_writing()

            sending = asyncio.ensure_future(send())
            replies = [reply async for reply in call]
            await sending
            return replies

    replies = {reply.sequence: reply for reply in asyncio.run(play())}
    assert sorted(replies) == list(range(20))
    assert replies[4].status == 400
    assert best(decode_reply(replies[9].reply)) == best(over_http(url, frames[9]))
    assert all(reply.status == 200 for number, reply in replies.items() if number != 4)
