"""One process's part of a run, with a sender that needs no server: it ends when it should, and tells what it did."""

from __future__ import annotations

import gc
import time
from types import SimpleNamespace

import gevent
import pytest

from loadtests.http_sender import SendError
from loadtests.payload_traffic import PayloadTraffic
from loadtests.process_run import ProcessRun
from tests.loadtests.helpers import payload_file
from tests.loadtests.test_run_plan import options
from tests.patience import PATIENCE_S

HOUR_S = 3600.0


class Sender:
    """Answers every request with 500 after `answer_s`, or breaks."""

    def __init__(self, *, answer_s=0.001, trouble=""):
        self.answer_s = answer_s
        self.trouble = trouble
        self.sent_again = 0
        self.requests = 0

    def head(self, path, **_):
        return path.encode()

    def send(self, head, body):
        self.requests += 1
        gevent.sleep(self.answer_s)
        if self.trouble:
            raise SendError(self.trouble)
        return SimpleNamespace(status=500, body=b"", header=lambda name: None)

    def close(self):
        pass


@pytest.fixture
def run_of(tmp_path, monkeypatch):
    """Makes a run of so many seconds that is sent by `sender`."""
    # What pytest has loaded takes it longer to look through than these runs last.
    for name in ("collect", "freeze"):
        monkeypatch.setattr(gc, name, lambda: None)
    with payload_file(tmp_path) as file:

        def made(sender, duration_s):
            asked = options("http://127.0.0.1:1", file.path, "--warmup", "0")
            run = ProcessRun(asked, PayloadTraffic([file]), ["/m"], duration_s=duration_s, watch=lambda ended: None)
            run._sender = sender
            return run

        yield made


def closed(run, **facts):
    began_s = time.perf_counter()
    run.run_closed(2, worker=0, workers=1, start_unix_s=time.time(), **facts)
    return time.perf_counter() - began_s


def test_a_caller_that_thinks_for_long_ends_with_the_run(run_of):
    run = run_of(Sender(), 0.3)
    with gevent.Timeout(PATIENCE_S):
        took_s = closed(run, think_s=HOUR_S)
    assert took_s >= 0.3
    assert run.take().counts["sent"] == 2


def test_a_caller_that_thinks_for_long_ends_when_the_run_is_stopped(run_of):
    run = run_of(Sender(), HOUR_S)
    gevent.spawn_later(0.05, run.stop)
    with gevent.Timeout(PATIENCE_S):
        closed(run, think_s=HOUR_S)
    assert run.stopped_at_s == pytest.approx(0.05, abs=PATIENCE_S)
    assert run.take().counts["sent"] == 2


def test_callers_think_between_two_requests_and_ask_a_broken_server_no_faster(run_of):
    for sender, think_s in ((Sender(answer_s=0), 0.02), (Sender(answer_s=0, trouble="connection broken"), 0.0)):
        run = run_of(sender, 0.3)
        closed(run, think_s=think_s)
        assert 2 <= sender.requests <= 2 * (0.3 / (think_s or 0.01) + 1)


def test_each_request_that_was_sent_again_is_told_once(run_of):
    run = run_of(Sender(), 0.05)
    run._sender.sent_again = 2
    assert run.take().counts["sent_again"] == 2
    run._sender.sent_again = 5
    assert run.take().counts["sent_again"] == 3
    assert run.take().counts["sent_again"] == 0
