from __future__ import annotations

import math
import re

from hypothesis import given
from hypothesis import strategies as st

from serve_app.server_timing import server_timing


def test_stages_keep_their_order_and_times_are_milliseconds():
    assert server_timing({"queue": 0.001234, "tail": 0.0056}) == "queue;dur=1.234, tail;dur=5.6"
    assert server_timing({"tail": 12.0, "decode": 0.0}) == "tail;dur=12000, decode;dur=0"
    assert server_timing({}) == ""


def test_what_is_no_time_is_left_out():
    assert server_timing({"a": math.nan, "b": math.inf, "c": -0.001, "d": 0.1}) == "d;dur=100"


def test_hardly_any_time_is_not_written_with_an_exponent():
    assert server_timing({"a": 1e-9, "b": 1e-6, "c": 123456.0}) == "a;dur=0, b;dur=0.001, c;dur=123456000"


MEMBER = re.compile(r"[A-Za-z0-9._-]+;dur=\d+(\.\d{1,3})?")


@given(st.dictionaries(st.text(), st.floats(min_value=0, max_value=1e6)))
def test_whatever_a_stage_is_called_the_header_is_well_formed(timings_s):
    value = server_timing(timings_s)
    members = value.split(", ") if value else []
    assert len(members) == len(timings_s)
    assert all(MEMBER.fullmatch(member) for member in members)
