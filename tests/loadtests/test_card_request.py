"""Servers that are asked for a model card and answer as no server should: one line each, within one deadline."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from loadtests import card_request
from loadtests.preflight import find_targets
from loadtests.stub_payloads import write_stub_payloads
from split_inference.errors import DigestMismatchError, SplitInferenceError, UsageError
from split_inference.payload_file import PayloadFile
from tests.loadtests.test_run_plan import options


@pytest.fixture(scope="module")
def payloads(tmp_path_factory):
    path = tmp_path_factory.mktemp("payloads") / "stub.payloads"
    write_stub_payloads(path, inputs=1)
    return path


class Peer:
    """Answers each request with the pieces of `answer`, `pause_s` apart, until they end or nobody listens."""

    def __init__(self, answer, *, pause_s=0.0):
        self._answer = answer
        self._pause_s = pause_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        # Closing does not wake who accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                with sock, contextlib.suppress(OSError):
                    path = sock.recv(65_536).split(b" ")[1].decode()
                    for piece in self._answer(path):
                        sock.sendall(piece)
                        time.sleep(self._pause_s)


def whole(body, *, status=200, length=None):
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n" % (status, len(body) if length is None else length) + body


def line_for(payloads, answer, *, url=None, **facts):
    """What is said of a server that gives these pieces, or those of a path."""
    with (
        Peer(answer if callable(answer) else lambda path: answer, **facts) as peer,
        PayloadFile.open(payloads) as file,
        pytest.raises(SplitInferenceError) as caught,
    ):
        find_targets(options(url(peer) if url else peer.url, payloads), [file])
    line = str(caught.value)
    assert line.isprintable()
    return line, caught.value


def endless(begin, piece):
    yield begin
    while True:
        yield piece


DRIP = {"pause_s": 0.02}


@pytest.mark.parametrize(
    ("begin", "piece", "facts"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", b" ", DRIP),
        (b"HTTP/1.1 200 OK\r\nx: ", b"y", DRIP),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", DRIP),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100, {}),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n", DRIP),
    ],
)
def test_a_server_that_drips_or_never_ends_has_one_deadline(payloads, monkeypatch, begin, piece, facts):
    monkeypatch.setattr(card_request, "TIMEOUT_S", 0.3)
    began_s = time.monotonic()
    line, _ = line_for(payloads, lambda path: endless(begin, piece), **facts)
    assert "no whole answer" in line
    assert time.monotonic() - began_s < 30


def test_a_handshake_has_the_same_deadline(payloads, monkeypatch):
    monkeypatch.setattr(card_request, "TIMEOUT_S", 0.3)
    # A handshake record of 16 kB that does not end.
    monkeypatch.setattr(Peer, "_serve", _drip_a_handshake)
    line, _ = line_for(payloads, (), url=lambda peer: peer.url.replace("http", "https"))
    assert "no whole answer" in line


def _drip_a_handshake(peer):
    with contextlib.suppress(OSError):
        sock, _ = peer._listener.accept()
        with sock:
            for piece in endless(b"\x16\x03\x03\x40\x00", b"\x02"):
                sock.sendall(piece)
                time.sleep(0.02)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (whole(b"[" * 100_000), "JSON object"),
        (whole(b'{"a":' * 100_000), "JSON object"),
        (whole(b"<html>"), "JSON object"),
        (whole(b"{}"), "no model card"),
        (whole(b'{"digest": null}'), "no model card"),
        (whole(b'{"digest": "ab', length=100), "cut off"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{\r\n", "cut off"),
        (whole(b'{"digest": "' + b"a" * 5_000_000 + b'"}'), "more than"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 1000, "does not speak HTTP"),
        (b"SSH-2.0-x\r\n", "does not speak HTTP"),
        (b"", "no connection"),
        (whole(b'{"reason": "\\u001b[2Jno\\ud800\\nway"}', status=401), "401 when asked for stub: [2Jno way"),
        (whole(b'{"reason": 5}', status=500), "answered 500"),
    ],
)
def test_what_is_no_model_card_is_one_line_that_says_what_came(payloads, answer, said):
    line, error = line_for(payloads, [answer])
    assert said in line
    assert isinstance(error, UsageError)


@pytest.mark.parametrize(
    "more",
    ["5", "{}", "null", '[{"name": ["cut0"]}]', '[{"name": "x", "aliases": 5}]', '[5, {"aliases": {"cut0": 1}}]'],
)
def test_split_points_that_are_none_do_not_answer(payloads, more):
    with PayloadFile.open(payloads) as file:
        digest = file.header.model.digest
    line, _ = line_for(payloads, [whole(b'{"digest": "%s", "split_points": %s}' % (digest.encode(), more.encode()))])
    assert "does not answer for split point" in line


def test_a_strange_digest_is_shown_without_what_a_terminal_obeys(payloads):
    line, error = line_for(payloads, [whole(b'{"digest": "\\u001b]0;x\\u0007"}')])
    assert isinstance(error, DigestMismatchError)
    assert "]0;x" in line


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ("5", "it has none"),
        ('{"name": "x"}', "it has none"),
        ('[5, {"name": 5}, {"name": "\\u001b[31mred"}]', "it has (no name), [31mred"),
    ],
)
def test_a_catalogue_that_is_none_names_no_model(payloads, models, said):
    def answer(path):
        found = path.endswith("/models")
        return [whole(b'{"models": %s}' % models.encode()) if found else whole(b"{}", status=404)]

    assert said in line_for(payloads, answer)[0]
