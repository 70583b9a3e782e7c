from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from serve_app.grpc_front import CODE_OF, MAX_IN_FLIGHT, GrpcFront
from serve_app.ingress import STATUS_OF
from serve_app.service import InferenceService
from serve_app.settings import Limits
from serve_app.tokens import TokenBook, entry_line, new_token, parse_entries
from split_inference.grpc.inference_pb2 import FrameRequest
from split_inference.wire import decode_reply
from tests.patience import PATIENCE_S
from tests.serve_app.helpers import TinyRunner, frame_of, one_hot_features

OTHER_DIGEST = frame_of(one_hot_features(0), digest="cd" * 32)
OTHER_PLACE = frame_of(one_hot_features(0), split_point="other")
ROOT = Path(__file__).resolve().parents[2]


def front_of(runner=None, *, tokens=None, **options):
    return GrpcFront(InferenceService(runner or TinyRunner(), **options), tokens=tokens)


def request(label=1, **options):
    return FrameRequest(frame=frame_of(one_hot_features(label)), **options)


def infer(message, *, metadata=(), **options):
    return asyncio.run(front_of(**options).infer(message, metadata))


def test_generated_code_is_what_the_proto_gives():
    result = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "generate_grpc.py"), "--check"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_every_status_has_a_code():
    assert {*STATUS_OF.values(), 500} == set(CODE_OF)


def test_an_answer_is_the_frame_that_http_gives():
    outcome = infer(request(2, sequence=7, request_id="abc"))
    assert (outcome.code, outcome.reply.status, outcome.reply.sequence, outcome.reply.request_id) == (
        "OK",
        200,
        7,
        "abc",
    )
    reply = decode_reply(outcome.reply.reply)
    assert reply.predictions is not None
    assert reply.predictions[0][0].label == "frog"
    logits = decode_reply(infer(request(2, logits=True)).reply.reply).logits
    assert logits is not None
    assert logits.argmax() == 2


@pytest.mark.parametrize(
    ("message", "code", "error"),
    [
        (FrameRequest(frame=b"nonsense"), "INVALID_ARGUMENT", "MalformedFrameError"),
        (FrameRequest(), "INVALID_ARGUMENT", "MalformedFrameError"),
        (
            FrameRequest(frame=frame_of(one_hot_features(0), digest="cd" * 32)),
            "FAILED_PRECONDITION",
            "DigestMismatchError",
        ),
        (FrameRequest(frame=frame_of(one_hot_features(0), split_point="other")), "NOT_FOUND", "UnknownSplitPointError"),
        (request(top_k=101), "INVALID_ARGUMENT", "MalformedInputError"),
        (FrameRequest(frame=b"x" * 2000), "OUT_OF_RANGE", "TooLargeError"),
    ],
)
def test_refusals_say_what_http_says(message, code, error):
    outcome = infer(message, limits=Limits(max_frame_bytes=1024))
    assert (outcome.code, outcome.reply.error, outcome.reply.reply) == (code, error, b"")
    assert ("x-error", error) in outcome.trailing
    assert outcome.reply.reason


def test_tokens_are_asked_for():
    token = new_token()
    tokens = TokenBook(parse_entries(entry_line("gateway", token), where="test"))
    assert infer(request(), tokens=tokens).code == "UNAUTHENTICATED"
    assert infer(request(), tokens=tokens, metadata=[("Authorization", f"Bearer {token}")]).code == "OK"


def test_a_deadline_that_cannot_be_met_is_unavailable_and_says_when_to_come_again():
    outcome = infer(request(deadline_ms=1), limits=Limits())
    assert (outcome.code, outcome.reply.status, outcome.reply.error) == ("UNAVAILABLE", 503, "DeadlineError")
    assert outcome.reply.retry_after_ms >= 1
    assert ("x-retry-after-ms", str(outcome.reply.retry_after_ms)) in outcome.trailing


def test_a_fault_of_ours_says_no_details(caplog):
    def fail():
        raise RuntimeError("secret path")

    outcome = infer(request(), runner=TinyRunner(on_run=fail))
    assert (outcome.code, outcome.reply.error) == ("INTERNAL", "InternalError")
    assert "secret" not in outcome.reply.reason


async def listed(messages):
    for message in messages:
        yield message


def test_a_stream_answers_everything_by_its_number_and_a_bad_frame_fails_alone():
    messages = [request(number % 3, sequence=number) for number in range(40)]
    messages[5] = FrameRequest(frame=b"bad", sequence=5)

    async def play():
        return [reply async for reply in front_of().stream(listed(messages))]

    replies = {reply.sequence: reply for reply in asyncio.run(play())}
    assert sorted(replies) == list(range(40))
    assert replies[5].error == "MalformedFrameError"
    for number in set(range(40)) - {5}:
        predictions = decode_reply(replies[number].reply).predictions
        assert predictions is not None
        assert predictions[0][0].index == number % 3


def test_a_stream_holds_no_more_than_its_window_and_gives_its_places_back_when_given_up():
    gate = threading.Event()

    def hold() -> None:
        gate.wait(PATIENCE_S)

    runner = TinyRunner(on_run=hold)
    read: list[int] = []

    async def endless():
        number = 0
        while True:
            read.append(number)
            yield request(sequence=number)
            number += 1

    async def play():
        service = InferenceService(runner)
        front = GrpcFront(service)
        replies = front.stream(endless())
        first = asyncio.ensure_future(anext(replies))
        while service.pending < MAX_IN_FLIGHT:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        assert service.pending == MAX_IN_FLIGHT
        assert len(read) == MAX_IN_FLIGHT + 1
        gate.set()
        assert (await first).status == 200
        await replies.aclose()
        while service.pending:
            await asyncio.sleep(0.01)
        service.close()

    asyncio.run(asyncio.wait_for(play(), PATIENCE_S))


def test_a_client_that_sends_and_never_reads_is_read_no_further_than_its_window():
    read: list[int] = []

    async def endless():
        while len(read) < 1000:
            read.append(len(read))
            yield request(sequence=len(read))

    async def play():
        service = InferenceService(TinyRunner())
        replies = GrpcFront(service).stream(endless())
        assert (await anext(replies)).status == 200
        # All that may be answered is; nobody takes the replies.
        while service.pending:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert len(read) == MAX_IN_FLIGHT + 1
        assert (await anext(replies)).status == 200
        while len(read) < MAX_IN_FLIGHT + 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert len(read) == MAX_IN_FLIGHT + 2
        await replies.aclose()
        service.close()

    asyncio.run(asyncio.wait_for(play(), PATIENCE_S))


def test_a_stream_without_a_token_ends_before_anything_is_read():
    token = new_token()
    tokens = TokenBook(parse_entries(entry_line("gateway", token), where="test"))

    async def silent():
        await asyncio.Event().wait()
        yield request()

    async def play():
        front = GrpcFront(InferenceService(TinyRunner()), tokens=tokens)
        return [reply async for reply in front.stream(silent(), [("authorization", "Bearer wrong")])]

    (reply,) = asyncio.run(asyncio.wait_for(play(), PATIENCE_S))
    assert (reply.status, reply.error) == (401, "UnauthorizedError")


def silent_stream():
    async def silent():
        await asyncio.Event().wait()
        yield request()

    return silent()


def test_a_stream_in_which_nothing_comes_is_ended_and_one_that_works_is_not():
    now_s = [0.0]
    service = InferenceService(TinyRunner(), limits=Limits(stream_idle_s=10.0), now_s=lambda: now_s[0])

    async def slow():
        for number in range(5):
            now_s[0] += 9.0
            yield request(sequence=number)
        await asyncio.Event().wait()

    async def play():
        loop = asyncio.get_running_loop()
        sleep = asyncio.sleep

        async def jump(seconds):
            now_s[0] += seconds
            await sleep(0)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("serve_app.grpc_front.asyncio.sleep", jump)
            replies = [reply async for reply in GrpcFront(service).stream(slow())]
        assert loop.is_running()
        return replies

    replies = asyncio.run(asyncio.wait_for(play(), PATIENCE_S))
    assert [reply.status for reply in replies] == [200] * 5 + [408]
    assert replies[-1].error == "SlowSenderError"
    service.close()


def test_more_streams_than_a_replica_holds_are_refused_and_places_are_given_back():
    service = InferenceService(TinyRunner(), limits=Limits(max_streams=2))

    async def play():
        front = GrpcFront(service)
        for _ in range(3):
            held = [front.stream(silent_stream()) for _ in range(2)]
            waiting = [asyncio.create_task(anext(each)) for each in held]
            await asyncio.sleep(0)
            (reply,) = [reply async for reply in front.stream(silent_stream())]
            assert (reply.status, reply.error) == (503, "OverloadedError")
            assert reply.retry_after_ms > 0
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)

    asyncio.run(asyncio.wait_for(play(), PATIENCE_S))
    service.close()


def test_where_the_clients_side_breaks_what_it_sent_is_answered_and_the_break_is_seen():
    replies = []

    async def broken():
        for number in range(3):
            yield request(sequence=number)
        raise ConnectionResetError("link gone")

    async def play():
        async for reply in front_of().stream(broken()):
            replies.append(reply.sequence)

    with pytest.raises(ConnectionResetError, match="link gone"):
        asyncio.run(asyncio.wait_for(play(), PATIENCE_S))
    assert sorted(replies) == [0, 1, 2]
