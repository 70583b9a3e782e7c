"""Responses read from a socket: as pieces come, in every form, and nothing that is none passes for one."""

from __future__ import annotations

import itertools
import math

import gevent
import pytest
from geventhttpclient.response import HTTPParseError
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests.http_sender import MAX_HEAD_BYTES, MAX_INTERIM, MAX_REPLY_BYTES, HttpSender, SendError, _read

PLAIN = b"HTTP/1.1 200 OK\r\ncontent-type: a/b\r\nContent-Length: 5\r\nServer-Timing: x;dur=1\r\n\r\nhello"


class Socket:
    """Gives its pieces one after the other, then says that the other side has closed."""

    def __init__(self, *pieces):
        self._pieces = list(pieces)

    def recv(self, _size):
        piece = self._pieces.pop(0) if self._pieces else b""
        if isinstance(piece, Exception):
            raise piece
        return piece


def read(*pieces):
    return _read(Socket(*pieces), math.inf)


class Connection(Socket):
    """Takes what is sent, and gives its pieces without ever making anybody wait."""

    def __init__(self, *pieces, endless=b"", most=200_000):
        super().__init__(*pieces)
        self._endless = endless
        self._most = most
        self.sent = 0
        self.reads = 0

    def send(self, data):
        self.sent += 1
        return len(data)

    def recv(self, size):
        self.reads += 1
        assert self.reads < self._most, "it is still being read"
        return super().recv(size) or self._endless[:size]

    def close(self):
        pass


class Sender(HttpSender):
    """Has its connections already."""

    def __init__(self, new, timeout_s):
        super().__init__("http://127.0.0.1:1", timeout_s=timeout_s)
        self._new = list(new)

    def _connect(self):
        return self._new.pop(0)


def sender_of(*new, idle=(), timeout_s=60.0):
    """Sends over these connections: first the idle ones."""
    sender = Sender(new, timeout_s)
    # The one that was put back last is taken first.
    sender._idle.extend(reversed(idle))
    return sender


@settings(max_examples=100)
@given(st.lists(st.integers(1, len(PLAIN) - 1), max_size=6, unique=True).map(sorted))
def test_a_response_is_the_same_however_it_is_cut(cuts):
    edges = [0, *cuts, len(PLAIN)]
    pieces = [PLAIN[begin:end] for begin, end in itertools.pairwise(edges)]
    found = read(*pieces)
    assert found is not None
    response, kept = found
    assert (response.status, response.body, kept) == (200, b"hello", True)


def test_headers_are_found_by_their_lower_case_name():
    found = read(PLAIN)
    assert found is not None
    assert found[0].header("server-timing") == "x;dur=1"
    assert found[0].header("content-type") == "a/b"
    assert found[0].header("missing") is None


@given(st.lists(st.integers(1, 120), max_size=6, unique=True).map(sorted), st.booleans())
def test_why_a_request_was_refused_is_found_however_the_answer_is_cut(cuts, interim):
    before = b"HTTP/1.1 103 Early Hints\r\nx-error: no\r\n\r\n" if interim else b""
    data = before + b"HTTP/1.1 503 Busy\r\nretry-after: 1\r\nx-error: OverloadedError\r\ncontent-length: 4\r\n\r\nlate"
    cuts = [cut for cut in cuts if cut < len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise([0, *cuts, len(data)])]
    response, _ = read(*pieces)
    assert (response.status, response.body, response.header("x-error")) == (503, b"late", "OverloadedError")


@pytest.mark.parametrize(
    ("data", "status", "body", "kept"),
    [
        (b"HTTP/1.1 503 No\r\ncontent-length: 2\r\nx-error: E\r\n\r\nno", 503, b"no", True),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", 200, b"ok", False),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 200, b"ok", True),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", 200, b"ok", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200, b"", True),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", 200, b"ok", True),
    ],
)
def test_other_forms_go_through_the_parser(data, status, body, kept):
    found = read(data)
    assert found is not None
    assert (found[0].status, found[0].body, found[1]) == (status, body, kept)


@pytest.mark.parametrize(
    "pieces",
    [
        (b"garbage\r\n\r\n",),
        (PLAIN[:-1],),
        (PLAIN[:20],),
        (PLAIN + b"more",),
        (PLAIN.replace(b"200", b"500") * 2,),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc",),
        (b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (MAX_REPLY_BYTES + 1), b"x" * (MAX_REPLY_BYTES + 1)),
    ],
)
def test_what_is_no_response_is_refused(pieces):
    with pytest.raises(HTTPParseError):
        read(*pieces)


def test_a_connection_that_was_closed_before_its_answer_is_told_from_one_that_broke():
    assert read() is None
    assert read(ConnectionResetError()) is None
    with pytest.raises(SendError, match="broken"):
        read(PLAIN[:-2], ConnectionResetError())


OK_HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK_HEAD + b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("begin", "endless"),
    [
        (OK_HEAD + b"x-long: ", b"a" * 65_536),
        (OK_HEAD + b"x-long: ", b"a" * 100),
        (OK_HEAD, b"x-another: header\r\n" * 3000),
        (b"HTTP/1.1 200 ", b"a" * 65_536),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n" * 2600),
        (CHUNKED, b"400\r\n" + b"a" * 1024 + b"\r\n"),
        (CHUNKED, b"1\r\na\r\n" * 1000),
        (CHUNKED + b"1;", b"x" * 65_536),
        (CHUNKED + b"0\r\n", b"x-trailer: y\r\n" * 1000),
        (OK_HEAD + b"\r\n", b"a" * 65_536),
    ],
)
def test_a_response_without_an_end_is_malformed_within_a_bounded_number_of_bytes(begin, endless):
    connection = Connection(begin, endless=endless, most=4 * (MAX_REPLY_BYTES + MAX_HEAD_BYTES) // len(endless))
    with pytest.raises(SendError, match="malformed response"):
        sender_of(connection).send(b"head", b"body")


def test_whoever_sends_without_a_pause_meets_the_timeout_and_leaves_others_their_turn():
    turns = 0

    def count():
        nonlocal turns
        while True:
            turns += 1
            gevent.sleep(0)

    other = gevent.spawn(count)
    endless = Connection(CHUNKED + b"1;", endless=b"x")
    with pytest.raises(SendError, match="timeout"):
        sender_of(endless, timeout_s=0.05).send(b"head", b"body")
    other.kill()
    assert turns >= endless.reads - 2


def test_some_interim_responses_are_let_through():
    early = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    found = read(early * MAX_INTERIM + PLAIN)
    assert found is not None
    assert found[0].body == b"hello"
    with pytest.raises(HTTPParseError):
        read(early * (MAX_INTERIM + 1) + PLAIN)


def test_a_large_honest_answer_in_small_chunks_is_read():
    whole = CHUNKED + b"8\r\n12345678\r\n" * 11_000 + b"0\r\n\r\n"
    pieces = [whole[begin : begin + 10_000] for begin in range(0, len(whole), 10_000)]
    found = read(*pieces)
    assert found is not None
    assert found[0].body == b"12345678" * 11_000


def test_a_closed_idle_connection_is_replaced_and_counted():
    fresh = Connection(PLAIN)
    sender = sender_of(fresh, idle=[Connection(), Connection(ConnectionResetError())])
    assert sender.send(b"head", b"body").body == b"hello"
    assert (fresh.sent, sender.sent_again) == (1, 2)


@pytest.mark.parametrize("end", [ConnectionResetError(), b""])
def test_an_answer_that_breaks_off_is_a_failure_and_never_sent_again(end):
    fresh = Connection(PLAIN)
    sender = sender_of(fresh, idle=[Connection(PLAIN[:-2], end)])
    with pytest.raises(SendError, match=r"broken|malformed"):
        sender.send(b"head", b"body")
    assert (fresh.sent, sender.sent_again) == (0, 0)


def test_the_head_carries_path_length_token_and_no_body():
    sender = HttpSender("https://example.com:8443/base", token="secret", timeout_s=1)
    head = sender.head("/v1/models/m", media_type="a/b", body_bytes=7, more="x-deadline-ms: 5\r\n").decode()
    assert head.startswith("POST /base/v1/models/m HTTP/1.1\r\nhost: example.com:8443\r\n")
    for line in ("content-length: 7", "content-type: a/b", "authorization: Bearer secret", "x-deadline-ms: 5"):
        assert f"{line}\r\n" in head
    assert head.endswith("\r\n\r\n")
