from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.request_context import TraceContext, request_id_of, trace_context, trace_id_of
from tests.serve_app.facts import TRACE_PARENT

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"


def same(size):
    return "5c" * size


@pytest.mark.parametrize(
    "inbound",
    ["a", "7", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "01HZX3J9Q0", "Root=1-67891233-abcdef", "a.b:c_d", "x" * 128],
)
def test_a_safe_request_id_is_kept(inbound):
    assert request_id_of(inbound, random_hex=same) == inbound


@pytest.mark.parametrize(
    "inbound", [None, "", " a", "a b", "a\n", "a\r\nset-cookie: b", "-a", "ä", "a;b", "a'b", '{"a":1}', "x" * 129]
)
def test_any_other_is_replaced(inbound):
    assert request_id_of(inbound, random_hex=same) == "5c" * 16


def test_new_ids_differ():
    assert len({request_id_of(None) for _ in range(100)}) == 100


@given(st.text())
def test_what_comes_back_is_always_safe(inbound):
    assert re.fullmatch(r"[A-Za-z0-9._:=-]{1,128}", request_id_of(inbound))


def test_the_recommendations_example():
    context = trace_context([TRACE_PARENT], ["congo=t61rcWkgMzE"])
    assert context == TraceContext(trace_id=TRACE_ID, span_id=SPAN_ID, flags=1, state="congo=t61rcWkgMzE")
    assert context.trace_parent == TRACE_PARENT


def test_a_child_is_a_new_span_of_the_same_trace():
    parent = trace_context([TRACE_PARENT], ["a=1,b=2"])
    assert parent is not None
    child = parent.child(random_hex=same)
    assert child.trace_parent == f"00-{TRACE_ID}-{'5c' * 8}-01"
    assert child.state == "a=1,b=2"
    assert trace_id_of(child.trace_parent) == TRACE_ID
    assert trace_id_of(None) is None


def test_a_span_id_is_never_zero():
    drawn = iter(["00" * 8, "00" * 8, "01" * 8])
    parent = TraceContext(trace_id=TRACE_ID, span_id=SPAN_ID, flags=0)
    assert parent.child(random_hex=lambda size: next(drawn)).span_id == "01" * 8


def test_flags_that_nobody_knows_are_not_passed_on():
    parent = trace_context([f"00-{TRACE_ID}-{SPAN_ID}-ff"])
    assert parent is not None
    assert parent.child(random_hex=same).trace_parent.endswith("-03")


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        TRACE_PARENT.upper(),
        TRACE_PARENT[:-1],
        f"{TRACE_PARENT}0",
        f"{TRACE_PARENT}-more",
        f"{TRACE_PARENT}-",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"0-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID[:-1]}g-{SPAN_ID}-01",
        f"00_{TRACE_ID}_{SPAN_ID}_01",
        f"{TRACE_PARENT}\n",
        f"cc-{TRACE_ID}-{SPAN_ID}-01.what",
    ],
)
def test_a_malformed_trace_parent_is_ignored_with_its_state(header):
    assert trace_context([header], ["a=1"]) is None


def test_none_or_several_trace_parents_are_no_trace():
    assert trace_context([]) is None
    assert trace_context([TRACE_PARENT, TRACE_PARENT]) is None


@pytest.mark.parametrize("header", [f"cc-{TRACE_ID}-{SPAN_ID}-01", f"cc-{TRACE_ID}-{SPAN_ID}-01-what-comes-later"])
def test_a_later_version_is_read_as_far_as_it_is_known(header):
    context = trace_context([header])
    assert context is not None
    assert context.trace_parent == TRACE_PARENT


@pytest.mark.parametrize(
    "states",
    [
        ["a=1"],
        ["a=1 , b=2,,c=3\t"],
        ["a=1", "b=2"],
        ["tenant@vendor=x y;z:1", "0a*/_-=!"],
        [",".join(f"k{index}=v" for index in range(32))],
        [f"a={'x' * 256}"],
        [],
        [""],
    ],
)
def test_a_sane_state_is_passed_on_untouched(states):
    context = trace_context([TRACE_PARENT], states)
    assert context is not None
    assert context.state == ",".join(states)


@pytest.mark.parametrize(
    "states",
    [
        ["a"],
        ["a="],
        ["=1"],
        ["A=1"],
        ["a=1=2"],
        ["a=ä"],
        ["a=1\n"],
        ["a=1,a=2"],
        ["a=1", "a=2"],
        [f"a={'x' * 257}"],
        [",".join(f"k{index}=v" for index in range(33))],
        [",".join(f"k{index}={'x' * 200}" for index in range(20))],
    ],
)
def test_any_other_state_is_dropped_alone(states):
    context = trace_context([TRACE_PARENT], states)
    assert context is not None
    assert context.state == ""
    assert context.trace_parent == TRACE_PARENT


@given(st.lists(st.text(), max_size=2), st.lists(st.text(), max_size=3))
def test_nothing_in_either_header_raises(trace_parents, trace_states):
    trace_context(trace_parents, trace_states)
