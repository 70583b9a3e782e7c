"""Responses read from a socket: as pieces come, in every form, and nothing that is none passes for one."""

from __future__ import annotations

import itertools

import pytest
from geventhttpclient.response import HTTPParseError
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests.http_sender import MAX_REPLY_BYTES, HttpSender, _read

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
    return _read(Socket(*pieces))


@settings(max_examples=100, deadline=None)
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
    with pytest.raises(ConnectionResetError):
        read(PLAIN[:-2], ConnectionResetError())


def test_the_head_carries_path_length_token_and_no_body():
    sender = HttpSender("https://example.com:8443/base", token="secret", timeout_s=1)
    head = sender.head("/v1/models/m", media_type="a/b", body_bytes=7, more="x-deadline-ms: 5\r\n").decode()
    assert head.startswith("POST /base/v1/models/m HTTP/1.1\r\nhost: example.com:8443\r\n")
    for line in ("content-length: 7", "content-type: a/b", "authorization: Bearer secret", "x-deadline-ms: 5"):
        assert f"{line}\r\n" in head
    assert head.endswith("\r\n\r\n")
