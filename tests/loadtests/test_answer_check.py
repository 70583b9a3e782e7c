"""Replies judged: right, wrong, refused, failed; and the server's own times read from them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests.answer_check import MALFORMED_REPLY, judge
from split_inference.wire import DIGEST_BYTES, Prediction, ReplyFrame, encode_reply

TIMINGS = {"queue": 0.001, "tail": 0.004}


def reply(*classes, timings_s=TIMINGS):
    row = tuple(Prediction(index=each, label=str(each), score=0.5) for each in classes)
    return encode_reply(
        ReplyFrame(
            model_digest=bytes(DIGEST_BYTES), sample_count=1, timings_s=timings_s, predictions=(row,), logits=None
        )
    )


def no_header(_name):
    return None


@pytest.mark.parametrize(("answer", "kind"), [(7, "right"), (3, "wrong"), (None, "unchecked")])
def test_the_best_class_is_compared(answer, kind):
    verdict = judge(200, no_header, reply(7, 3), answer=answer)
    assert verdict.kind == kind
    assert dict(verdict.timings_s) == TIMINGS


def test_logits_are_compared_by_their_largest():
    body = encode_reply(
        ReplyFrame(
            model_digest=bytes(DIGEST_BYTES),
            sample_count=1,
            timings_s={},
            predictions=None,
            logits=np.array([[0.0, 2.0, 1.0]], np.float32),
        )
    )
    assert judge(200, no_header, body, answer=1).kind == "right"


@pytest.mark.parametrize(
    ("header", "batch"),
    [
        ("queue;dur=1.2, tail;dur=3, batch;desc=4", 4),
        ('batch;desc="16"', 16),
        ("queue;dur=1", None),
        ("minibatch;desc=4", None),
        ("batch;desc=999999999", None),
        ("", None),
    ],
)
def test_the_batch_is_read_from_server_timing(header, batch):
    assert judge(200, {"server-timing": header}.get, reply(1), answer=1).batch_samples == batch


@pytest.mark.parametrize("status", [408, 429, 503])
def test_refusals_for_load_are_refused_with_the_servers_name_for_it(status):
    verdict = judge(status, {"x-error": "OverloadedError"}.get, b"", answer=1)
    assert (verdict.kind, verdict.reason) == ("refused", f"{status} OverloadedError")


def test_other_statuses_are_failures_named_by_the_body_where_no_header_does():
    body = json.dumps({"error": "DigestMismatchError", "reason": "..."}).encode()
    verdict = judge(409, no_header, body, answer=1)
    assert (verdict.kind, verdict.reason) == ("failed", "409 DigestMismatchError")
    assert judge(502, no_header, b"<html>", answer=1).reason == "502"


def test_a_servers_text_cannot_break_a_line_or_fill_a_page():
    verdict = judge(500, {"x-error": "a\nb\x1b[31m" + "c" * 1000}.get, b"", answer=1)
    assert verdict.reason.isprintable()
    assert len(verdict.reason) < 80


@pytest.mark.parametrize("body", [b"[" * 60_000, b'{"error":' * 7_000])
def test_a_body_that_nests_too_deeply_counts_as_its_status(body):
    assert judge(503, no_header, body, answer=1).reason == "503"


@settings(max_examples=200)
@given(st.binary(max_size=200), st.sampled_from([200, 404, 500, 503]))
def test_any_bytes_are_judged_and_nothing_is_raised(body, status):
    verdict = judge(status, no_header, body, answer=1)
    assert verdict.kind in ("refused", "failed")
    if status == 200:
        assert verdict.reason == MALFORMED_REPLY


def test_every_damaged_byte_of_a_reply_is_a_malformed_reply():
    good = reply(7, 3)
    for position in range(len(good)):
        damaged = bytearray(good)
        damaged[position] ^= 0x10
        assert judge(200, no_header, bytes(damaged), answer=7).reason == MALFORMED_REPLY
