"""The load generators count what happened, and nothing that did not.

A stub with a known way to answer stands for the server; sockets and time are real, because they are what is measured.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from benchmarks.serving import open_loop as open_loop_module
from benchmarks.serving.half_sent import half_of, half_sent
from benchmarks.serving.http_load import (
    LoadResult,
    Outcome,
    closed_loop,
    open_loop,
    percentile,
    poisson_arrivals_s,
    request_bytes,
)
from benchmarks.serving.limit import LimitProcess, Yardstick
from benchmarks.serving.open_loop import OpenLoopProcess, OpenLoopResult, Second, judge, run_open_loop, with_deadline
from benchmarks.serving.process_stats import cpu_between, cpu_by_name, of, tree
from split_inference.codec_profile import CodecProfile
from split_inference.feature_codec import FeatureCodec
from split_inference.wire import FeatureFrame, decode_frame, encode_frame
from tests.benchmarks.stub_server import Reply, Stub, stub_server
from tests.integration.processes import wait_for
from tests.patience import PATIENCE_S

REQUESTS = [request_bytes("stub", "/p", bytes([index]) * 30_000, media_type="x/y") for index in range(3)]


def frame_bytes(seed: int = 0) -> bytes:
    features = np.random.default_rng(seed).random((1, 8, 4, 4), dtype=np.float32)
    frame = FeatureFrame(
        model_digest=bytes(16),
        split_point="cut",
        sample_count=1,
        deadline_budget_ms=None,
        tensors=(FeatureCodec(CodecProfile.parse("u4+lz4")).encode(features),),
    )
    return encode_frame(frame)


async def at_once(stub: Stub) -> Reply:
    return Reply()


def statuses_in_turn(*statuses: int):
    turn = itertools.cycle(statuses)

    async def answer(stub: Stub) -> Reply:
        return Reply(status=next(turn))

    return answer


class Rendezvous:
    """Answers nobody before `count` requests wait: where fewer are in flight, there are no rounds.

    Who waited for longer than any test's run is let go, because a run may end between two of a round's requests.
    """

    PATIENCE_S = 1.2

    def __init__(self, count: int, *, then_close: bool = False) -> None:
        self._count = count
        self._then_close = then_close
        self._waiting: list[asyncio.Future[None]] = []
        self.rounds = 0

    async def __call__(self, stub: Stub) -> Reply:
        here = asyncio.get_running_loop().create_future()
        self._waiting.append(here)
        if len(self._waiting) == self._count:
            self.rounds += 1
            everyone, self._waiting = self._waiting, []
            for each in everyone:
                if not each.done():
                    each.set_result(None)
        try:
            await asyncio.wait_for(here, self.PATIENCE_S)
        except TimeoutError:
            self._waiting.remove(here)
        return Reply(then_close=self._then_close)


def test_every_request_is_counted_once_and_by_its_status():
    with stub_server(statuses_in_turn(200, 503, 200, 429)) as stub:
        result = closed_loop(stub.address, REQUESTS, concurrency=4, seconds=0.3)
    statuses = result.statuses()
    # What was in flight at the end was answered, but belongs to no second of the run.
    assert 0 <= stub.received - sum(statuses.values()) <= 4
    assert set(statuses) == {200, 429, 503}
    assert statuses[200] == pytest.approx(2 * statuses[503], abs=6)
    assert len(result.latencies_s(503)) == statuses[503]
    assert result.rate_per_s() == statuses[200] / result.wall_s
    assert 0.3 <= result.wall_s < PATIENCE_S
    assert 0 < result.own_cpu_s <= result.wall_s + 0.1


def test_a_part_of_a_run_holds_what_ended_in_it():
    ends_s = (0.5, 1.0, 1.5, 2.0, 2.5)
    whole = LoadResult(
        outcomes=[Outcome(intended_s=0.0, sent_s=0.0, ended_s=each, status=200) for each in ends_s], wall_s=3.0
    )
    part = whole.between(1.0, 2.0)
    assert [each.ended_s for each in part.outcomes] == [1.5, 2.0]
    assert part.rate_per_s() == 2.0
    assert sum(whole.between(at, at + 1).rate_per_s() for at in (0.0, 1.0, 2.0)) == len(ends_s)


def test_a_yardstick_is_what_the_machine_did_before_and_after():
    class Slowing(LimitProcess):
        """Each batch takes a second longer than the one before; what is measured in between counts as one too."""

        def __init__(self):
            self.asked = []

        def ask(self, size, seconds):
            self.asked.append((size, seconds))

        def read(self):
            return {"batch_s": float(len(self.asked)), "rate_per_s": 0.0}

    process = Slowing()
    yardstick = Yardstick(process, seconds=0.25)
    found, batch_s = yardstick.around(lambda: process.ask(0, 0) or "load", size=16)
    assert (found, batch_s) == ("load", 2.0)
    assert process.asked == [(16, 0.25), (0, 0), (16, 0.25)]


def test_all_bodies_are_sent_in_turn_and_whole():
    with stub_server(at_once) as stub:
        closed_loop(stub.address, REQUESTS, concurrency=1, seconds=0.1)
    sent = [request.partition(b"\r\n\r\n")[2] for request in REQUESTS]
    assert stub.bodies[:6] == [*sent, *sent]


def test_the_closed_loop_keeps_exactly_so_many_in_flight():
    rendezvous = Rendezvous(8)
    with stub_server(rendezvous) as stub:
        result = closed_loop(stub.address, REQUESTS, concurrency=8, seconds=0.3)
    assert rendezvous.rounds > 3, "with fewer than 8 in flight nobody would have been answered"
    assert stub.most_in_flight == 8
    assert stub.connections == 8
    assert result.statuses().keys() == {200}


def test_a_server_that_closes_connections_without_a_word_does_not_lower_the_concurrency():
    rendezvous = Rendezvous(8, then_close=True)
    with stub_server(rendezvous) as stub:
        result = closed_loop(stub.address, REQUESTS, concurrency=8, seconds=0.5)
    assert rendezvous.rounds > 3
    assert stub.most_in_flight == 8
    assert result.statuses()[200] >= 8 * (rendezvous.rounds - 1)


def test_a_server_that_was_away_is_asked_again_by_as_many_as_before():
    rendezvous = Rendezvous(8)
    begun, asked = threading.Event(), threading.Event()
    addresses = []

    def serve_twice() -> None:
        with stub_server(at_once) as first:
            addresses.append(first.address)
            begun.set()
            wait_for(lambda: first.received > 20, why="nobody asks")
        # For as long as nobody listens, connections are refused.
        time.sleep(0.1)
        with stub_server(rendezvous, port=first.address[1]):
            assert asked.wait(PATIENCE_S)

    thread = threading.Thread(target=serve_twice)
    thread.start()
    try:
        assert begun.wait(PATIENCE_S)
        result = closed_loop(addresses[0], REQUESTS, concurrency=8, seconds=1.0)
    finally:
        asked.set()
        thread.join()
    assert rendezvous.rounds > 3, "all eight came back"
    assert result.statuses()[0] >= 8
    assert result.statuses()[0] < 1000, "a server that is away is not asked without a pause"


def test_a_request_that_is_never_answered_is_part_of_the_result(monkeypatch):
    async def never(stub: Stub) -> Reply:
        await asyncio.Event().wait()
        return Reply()

    monkeypatch.setattr("benchmarks.serving.http_load.PATIENCE_S", 0.2)
    with stub_server(never) as stub:
        result = closed_loop(stub.address, REQUESTS, concurrency=3, seconds=0.1)
    assert result.statuses() == {0: 3}
    assert result.rate_per_s() == 0


def test_a_server_that_ends_in_the_middle_is_a_result_and_no_exception():
    async def closes(stub: Stub) -> Reply:
        return Reply(instead_close=True)

    with stub_server(closes) as stub:
        broken = closed_loop(stub.address, REQUESTS, concurrency=2, seconds=0.1)
        first = stub.received
    assert broken.statuses().keys() == {0}
    assert broken.statuses()[0] >= first - 2

    with socket.create_server(("127.0.0.1", 0), backlog=4) as listening:
        address = listening.getsockname()
        # The first two connections are taken by the kernel and reset when the socket closes.
        arrivals_s = np.array([0.0, 0.001, 0.2, 0.21])
        closer = threading.Timer(0.1, listening.close)
        closer.start()
        refused = open_loop(address, REQUESTS, arrivals_s=arrivals_s, connections=1)
        closer.join()
    assert refused.statuses() == {0: 4}
    assert refused.unsent == 0


def test_what_the_answer_says_of_its_batch_is_read():
    async def answer(stub: Stub) -> Reply:
        return Reply(headers="server-timing: queue;dur=1.5, batch;desc=16\r\n")

    with stub_server(answer) as stub:
        result = closed_loop(stub.address, REQUESTS, concurrency=1, seconds=0.05, keep_bodies=True)
    assert {each.batch_samples for each in result.outcomes} == {16}
    assert {each.body for each in result.outcomes} == {b"ok"}


def test_the_open_loop_measures_from_the_intended_start_so_that_a_stall_shows():
    async def stalls_once(stub: Stub) -> Reply:
        if stub.received == 20:
            await asyncio.sleep(0.3)
        return Reply()

    arrivals_s = np.arange(100) / 100
    with stub_server(stalls_once) as stub:
        result = open_loop(stub.address, REQUESTS, arrivals_s=arrivals_s, connections=1)
    assert result.statuses() == {200: 100}
    by_service = sum(each.service_s > 0.1 for each in result.outcomes)
    by_latency = sum(each.latency_s > 0.1 for each in result.outcomes)
    # A busy machine may stall as well: each time one request, and those that come meanwhile.
    assert 1 <= by_service <= by_latency / 5, "a generator that measures from the actual start sees one slow request"
    assert by_latency >= 15, "twenty users came while the server stalled, and waited more than 0.1 s"
    assert np.allclose(sorted(each.intended_s for each in result.outcomes), arrivals_s)


def test_the_open_loop_sends_whatever_the_server_does_within_its_connections():
    async def all_at_once(stub: Stub) -> Reply:
        while stub.most_in_flight < 30:
            await asyncio.sleep(0.01)
        return Reply()

    async def slow(stub: Stub) -> Reply:
        await asyncio.sleep(0.15)
        return Reply()

    with stub_server(all_at_once) as stub:
        free = open_loop(stub.address, REQUESTS, arrivals_s=np.arange(30) / 1000, connections=64)
        assert stub.most_in_flight == 30, "nobody waits for an answer to somebody else"
    with stub_server(slow) as stub:
        bounded = open_loop(stub.address, REQUESTS, arrivals_s=np.arange(30) / 1000, connections=10)
        assert (stub.most_in_flight, stub.connections) == (10, 10)
    assert free.statuses() == bounded.statuses() == {200: 30}
    assert percentile(bounded.latencies_s(), 1.0) > 0.4, "the last ten waited for two rounds before theirs"


def test_poisson_arrivals_are_seeded_ascending_and_have_the_asked_rate():
    arrivals_s = poisson_arrivals_s(rate_per_s=200, seconds=50, seed=7)
    again_s = poisson_arrivals_s(rate_per_s=200, seconds=50, seed=7)
    assert np.array_equal(arrivals_s, again_s)
    assert not np.array_equal(arrivals_s[:100], poisson_arrivals_s(rate_per_s=200, seconds=50, seed=8)[:100])
    assert (np.diff(arrivals_s) > 0).all()
    assert arrivals_s[0] > 0
    assert arrivals_s[-1] < 50
    assert abs(len(arrivals_s) - 10_000) < 4 * 10_000**0.5
    gaps_s = np.diff(arrivals_s)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(1, abs=0.05), "gaps are exponential, not even"


def test_each_kind_of_end_is_counted_in_the_second_of_its_arrival():
    def outcome(intended_s: float, latency_s: float, status: int = 200, sent_late_s: float = 0.0) -> Outcome:
        return Outcome(
            intended_s=intended_s, sent_s=intended_s + sent_late_s, ended_s=intended_s + latency_s, status=status
        )

    outcomes = [
        outcome(0.1, 0.1),
        outcome(0.9, 0.101),
        outcome(1.1, 0.002, status=503),
        outcome(1.2, 0.004, status=429),
        outcome(1.3, 0.03, status=500),
        outcome(1.4, 0.03, status=0),
        outcome(2.0, 0.05, sent_late_s=0.006),
    ]
    arrivals_s = np.array([*(each.intended_s for each in outcomes), 2.4])
    result = judge(
        LoadResult(outcomes=outcomes, wall_s=2.5, unsent=1), arrivals_s, rate_per_s=3, seconds=2.5, deadline_ms=100
    )
    assert result.per_second == (
        Second(ok=1, ok_late=1),
        Second(rejected=2, failed=2),
        Second(ok=1, failed=1),
    )
    assert result.total.meant == len(arrivals_s)
    assert result.goodput_per_s == 2 / 2.5
    assert result.goodput_between(1, 3) == 0.5
    assert (result.late, result.unsent, result.sound) == (1, 1, False)
    assert (result.rejected_p50_ms, result.rejected_p99_ms) == pytest.approx((2, 4))
    assert np.isnan(result.mean_batch)
    again = OpenLoopResult.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False)))
    assert again.to_json() == result.to_json()
    assert again.per_second == result.per_second


def test_frames_go_out_with_their_deadline_in_them():
    frames = [frame_bytes(seed) for seed in range(2)]
    with stub_server(at_once) as stub:
        result = run_open_loop(stub.address, "/p", frames, rate_per_s=100, seconds=0.2, deadline_ms=80, seed=3)
    assert stub.received == result.total.ok == len(poisson_arrivals_s(rate_per_s=100, seconds=0.2, seed=3))
    assert {decode_frame(body).deadline_budget_ms for body in stub.bodies} == {80}
    assert len(with_deadline(frames[0], 80)) == len(frames[0])


def test_the_open_loop_runs_in_a_process_of_its_own_on_the_core_that_it_is_given():
    core = min(os.sched_getaffinity(0))
    with stub_server(statuses_in_turn(200, 200, 503)) as stub:
        load = OpenLoopProcess(
            stub.address, "/p", [frame_bytes()], rate_per_s=60, seconds=1.0, deadline_ms=1000, seed=5, cores=[core]
        )
        result = load.result()
    meant = len(poisson_arrivals_s(rate_per_s=60, seconds=1.0, seed=5))
    assert result.total == Second(ok=meant - meant // 3, rejected=meant // 3)
    assert result.statuses == {200: meant - meant // 3, 503: meant // 3}
    assert stub.received == meant


def test_a_process_that_cannot_reach_the_server_says_so(capfd):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = gone.getsockname()
    load = OpenLoopProcess(address, "/p", [frame_bytes()], rate_per_s=10, seconds=0.2, deadline_ms=100, seed=0)
    with pytest.raises(RuntimeError, match="open-loop process"):
        load.result()
    assert "refused" in capfd.readouterr().err


def test_the_open_loop_imports_no_torch():
    code = "import sys, benchmarks.serving.open_loop, benchmarks.serving.half_sent; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize("arguments", [["ftp://x/y", "f", "--rate", "1"], ["http://x/y", "f", "--rate", "0"]])
def test_wrong_arguments_are_refused_in_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as refused:
        open_loop_module.main(arguments)
    assert refused.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_half_sent_requests_stop_exactly_in_the_middle_of_the_body():
    with stub_server(at_once) as stub:
        with half_sent(stub.address, REQUESTS, connections=50) as held:
            wait_for(lambda: stub.connections == 50, why="not all have connected")
            assert held.open_now == 50
            # Others are served meanwhile.
            other = closed_loop(stub.address, REQUESTS, concurrency=1, seconds=0.05)
        assert other.statuses().keys() == {200}
        wait_for(lambda: len(stub.partial) == 50, why="not all halves have come")
    whole = [request.partition(b"\r\n\r\n")[2] for request in REQUESTS]
    assert [length for length, _ in stub.partial] == [30_000] * 50
    assert {body for _, body in stub.partial} == {body[:15_000] for body in whole}
    assert held.summary().statuses == {0: 50}
    assert held.summary().closed == 0


def test_how_each_half_sent_request_ended_is_reported():
    with stub_server(at_once, body_timeout_s=0.3) as stub, half_sent(stub.address, REQUESTS, connections=40) as held:
        wait_for(lambda: held.open_now == 0, why="some are still open")
    found = held.summary()
    assert (found.connections, found.opened, found.closed, found.statuses) == (40, 40, 40, {408: 40})
    assert found.first_end_s is not None
    assert found.last_end_s is not None
    assert 0.2 < found.first_end_s <= found.last_end_s < 3
    assert all(each.answered_s is not None for each in held.endings)


def test_a_server_that_takes_no_connection_is_reported():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = gone.getsockname()
    with half_sent(address, REQUESTS, connections=3) as held:
        pass
    assert held.summary().opened == 0


def test_a_request_without_a_body_has_no_half():
    assert half_of(b"POST / HTTP/1.1\r\n\r\nabcd") == b"POST / HTTP/1.1\r\n\r\nab"
    with pytest.raises(ValueError, match="half a body"):
        half_of(b"GET / HTTP/1.1\r\n\r\n")


BURN = """
import sys, time
def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end: pass
print("here", flush=True); sys.stdin.readline()
burn(0.4)
print("burnt", flush=True); sys.stdin.readline()
"""
# A parent that does nothing but wait, so that all that is seen is its child's.
PARENT = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {BURN!r}])
print("reaped", flush=True); sys.stdin.readline()
"""


def test_processor_time_of_a_child_is_seen_while_it_lives_and_counted_once_when_it_ends():
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None

        def go_on(expected: str) -> None:
            assert parent.stdin is not None
            assert parent.stdout is not None
            assert parent.stdout.readline().strip() == expected

        go_on("here")
        start = tree(parent.pid)
        assert len(start) == 2
        parent.stdin.write("\n")
        parent.stdin.flush()
        go_on("burnt")
        burnt = tree(parent.pid)
        parent.stdin.write("\n")
        parent.stdin.flush()
        go_on("reaped")
        reaped = tree(parent.pid)
        parent.stdin.close()
    assert 0.35 < cpu_between(start, burnt) < 0.6
    assert max(cpu_by_name(start, burnt).values()) == pytest.approx(cpu_between(start, burnt), abs=0.05)
    assert cpu_between(burnt, reaped) < 0.15, "what had been counted is not counted again"
    assert 0.35 < cpu_between(start, reaped) < 0.7, "the parent has the whole life of the child that it waited for"
    assert all(use.resident_bytes > 1e6 for use in burnt.values())


def test_processes_that_are_gone_are_left_out():
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    assert of({child.pid, os.getpid()}).keys() == {os.getpid()}
