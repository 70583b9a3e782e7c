from __future__ import annotations

import io
import json
import logging
import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.json_logs import FIELDS, JsonFormatter, RequestLog
from tests.serve_app.facts import TRACE_PARENT, Clock, batch, refused, request


class Lines:
    """A logger that writes JSON into memory."""

    def __init__(self, level=logging.INFO):
        self.stream = io.StringIO()
        handler = logging.StreamHandler(self.stream)
        handler.setFormatter(JsonFormatter())
        self.log = logging.Logger("requests", level)
        self.log.addHandler(handler)

    def read(self):
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


def formatted(message="hello", **extra):
    record = logging.Logger("ours").makeRecord("ours", logging.INFO, "f", 1, message, (), None, extra=extra)
    record.created = 1_700_000_000.25
    return JsonFormatter().format(record)


def test_a_line_without_a_request():
    assert json.loads(formatted()) == {
        "time": "2023-11-14T22:13:20.250+00:00",
        "level": "INFO",
        "logger": "ours",
        "message": "hello",
    }


def test_only_the_known_fields_are_written():
    line = json.loads(formatted(request_id="r", status=200, secret="no", error=None))
    assert line["request_id"] == "r"
    assert line["status"] == 200
    assert not {"secret", "error"} & line.keys()


@given(st.text(), st.text())
def test_text_from_outside_stays_in_one_printable_line(message, client):
    line = formatted(message.replace("%", ""), client=client)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["client"] == client


def test_times_have_microseconds_and_what_json_lacks_is_null():
    line = json.loads(formatted(total_s=0.123456789, timings_s={"tail": math.nan, "queue": 1e-7, "read": math.inf}))
    assert line["total_s"] == 0.123457
    assert line["timings_s"] == {"tail": None, "queue": 0.0, "read": None}


def test_what_json_cannot_write_is_written_as_text():
    assert json.loads(formatted(client=Clock))["client"] == str(Clock)


def test_an_exception_is_inside_the_line():
    try:
        raise KeyError("gone")
    except KeyError:
        lines = Lines()
        lines.log.error("failed", exc_info=sys.exc_info(), stack_info=True)
    [line] = lines.read()
    assert "KeyError: 'gone'" in line["exception"]
    assert "Stack" in line["stack"]


def test_a_request_is_one_line_with_its_ids_and_times():
    lines = Lines()
    log = RequestLog(lines.log)
    log.batch_done(batch())
    log.request_done(request(trace_parent=TRACE_PARENT))
    [line] = lines.read()
    assert line["message"] == "request answered"
    assert line["level"] == "INFO"
    assert line["request_id"] == "r-1"
    assert line["trace_id"] == TRACE_PARENT.split("-")[1]
    assert line["trace_parent"] == TRACE_PARENT
    assert line["timings_s"] == {"read": 0.003, "queue": 0.002, "tail": 0.004}
    assert line.keys() - {"time", "level", "logger", "message"} <= set(FIELDS)


@pytest.mark.parametrize("facts", [refused("MalformedFrameError", status=400), refused("InternalError", status=500)])
def test_failures_are_warnings_and_the_only_lines_at_that_level(facts):
    lines = Lines(logging.WARNING)
    log = RequestLog(lines.log)
    log.request_done(request())
    log.request_done(facts)
    [line] = lines.read()
    assert (line["level"], line["message"]) == ("WARNING", "request refused")
    assert (line["error"], line["status"]) == (facts.error, facts.status)


def test_a_flood_of_refusals_is_a_few_lines_a_second_that_say_how_many_there_were():
    lines, clock = Lines(logging.WARNING), Clock()
    log = RequestLog(lines.log, max_warnings_per_s=3, now_s=clock)
    for _ in range(100):
        log.request_done(refused())
    assert len(lines.read()) == 3
    clock.now_s += 1
    for _ in range(2):
        log.request_done(refused())
    assert [line.get("suppressed") for line in lines.read()] == [None, None, None, 97, None]


def test_at_info_no_refusal_is_lost():
    lines = Lines(logging.INFO)
    log = RequestLog(lines.log, max_warnings_per_s=3, now_s=Clock())
    for _ in range(10):
        log.request_done(refused())
    assert [line["level"] for line in lines.read()] == ["WARNING"] * 3 + ["INFO"] * 7
