from __future__ import annotations

import json
import logging
import math

import pytest

from serve_app.request_log import RequestLog
from tests.serve_app.facts import TRACE_PARENT, Clock, batch, refused, request


class Lines(logging.Handler):
    """A logger that keeps what is beyond a plain record's own fields, as JSON would have it."""

    def __init__(self, level=logging.INFO):
        super().__init__()
        self.log = logging.Logger("requests", level)
        self.log.addHandler(self)
        self._lines = []
        self._plain = set(vars(logging.makeLogRecord({})))

    def emit(self, record):
        fields = {name: value for name, value in vars(record).items() if name not in self._plain}
        line = {"level": record.levelname, "message": record.getMessage(), **fields}
        self._lines.append(json.loads(json.dumps(line, allow_nan=False)))

    def read(self):
        return self._lines


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


def test_times_have_microseconds_and_what_json_lacks_is_null():
    lines = Lines()
    RequestLog(lines.log).request_done(
        request(total_s=0.123456789, timings_s={"tail": math.nan, "queue": 1e-7, "read": math.inf})
    )
    [line] = lines.read()
    assert line["total_s"] == 0.123457
    assert line["timings_s"] == {"tail": None, "queue": 0.0, "read": None}


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
