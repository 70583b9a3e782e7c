"""Trace files: what is refused and how, and departures against a count of the opportunities one by one."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sim.traces import (
    BYTES_PER_OPPORTUNITY,
    MAX_OPPORTUNITIES,
    MAX_TIMESTAMP_MS,
    MAX_TRACE_BYTES,
    Trace,
    parse_trace,
    read_trace,
)
from split_inference.errors import DataError, UsageError

timestamps = (
    st.lists(st.integers(0, 60), min_size=1, max_size=30).map(sorted).filter(lambda times: times[-1] > 0)
)  # small, so that repeated times, the seam of the loop and holes all come up
starts_s = st.one_of(st.floats(0, 1), st.integers(0, 500).map(lambda ms: ms / 1000))


def opportunities_from(times_ms: list[int], start_s: float, count: int) -> list[float]:
    """The first `count` moments that are not before the start, counted one by one."""
    found: list[float] = []
    loop = 0
    while len(found) < count:
        moments = [(loop * times_ms[-1] + ms) / 1000 for ms in times_ms]
        found += [moment for moment in moments if moment >= start_s]
        loop += 1
    return found[:count]


def test_a_trace_is_read_and_summed_up():
    trace = parse_trace(b"0\n2\n2\r\n10\n", name="some/cell.up")
    assert (trace.name, trace.opportunities, trace.duration_s) == ("cell.up", 4, 0.01)
    assert trace.mean_megabits_per_s == pytest.approx(4 * 1500 * 8 / 0.01 / 1e6)
    assert trace.longest_hole_s == 0.008
    assert "4 opportunities in 0.01 s" in repr(trace)


def test_the_hole_at_the_seam_of_the_loop_counts():
    assert Trace([30, 31, 40]).longest_hole_s == 0.03


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "t.up: the file is empty"),
        (b"\n", "t.up:1: '' is no time"),
        (b"1\n\n3\n", "t.up:2: '' is no time"),
        (b"1\n2.5\n", "t.up:2: '2.5' is no time"),
        (b"1\n-2\n", "t.up:2: '-2' is no time"),
        (b"1\n 2\n", "t.up:2: ' 2' is no time"),
        (b"1\n+2\n", "t.up:2: '\\+2' is no time"),
        (b"1_000\n", "t.up:1: '1_000' is no time"),
        (b"1\r2\n", "t.up:1: '1\\\\r2' is no time"),
        (b"1\n\xff\xfe\x00\n", "t.up:2: '.*xff.*' is no time"),
        ("1\n\u0663\n".encode(), "t.up:2: .* is no time"),
        (b"9" * 5000, "t.up:1: '99999999999999999999' is no time"),
        (b"1\n99999999\n", "t.up:2: 99999999 ms is not between 0 and 86400000"),
        (b"1\n5\n4\n", "t.up:3: 4 ms comes after 5 ms; sort"),
        (b"0\n0\n", "t.up:2: the last time is 0 ms"),
    ],
)
def test_what_is_no_trace_is_refused_with_file_and_line(data, said):
    with pytest.raises(DataError, match=said) as caught:
        parse_trace(data, name="t.up")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UsageError)


def test_a_file_beyond_the_limits_is_refused_unread(tmp_path):
    path = tmp_path / "big.up"
    path.write_bytes(b"1\n" * (MAX_TRACE_BYTES // 2 + 1))
    with pytest.raises(DataError, match="at most 16777216 are read"):
        read_trace(path)
    with pytest.raises(DataError, match=f"at most {MAX_OPPORTUNITIES} are read"):
        parse_trace(b"1\n" * (MAX_OPPORTUNITIES + 1), name="t.up")


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"cannot read the trace .*none\.up: No such file"):
        read_trace(tmp_path / "none.up")


@given(st.binary(max_size=40))
def test_any_bytes_are_a_trace_or_refused(data):
    with suppress(DataError):
        trace = parse_trace(data, name="t.up")
        assert trace.departure_s(0.0, 10_000) > 0


def test_timestamps_from_code_are_checked_like_a_file():
    with pytest.raises(DataError, match="trace:2: 1 ms comes after 3 ms"):
        Trace([3, 1])
    with pytest.raises(DataError, match="trace:1: -1 ms is not between"):
        Trace([-1, 1])
    with pytest.raises(DataError, match="no opportunity"):
        Trace([])
    assert Trace([MAX_TIMESTAMP_MS]).duration_s == 86_400


def test_departures_of_a_small_trace():
    trace = Trace([1, 3, 3, 10])
    assert trace.departure_s(0.0, 1) == 0.001
    assert trace.departure_s(0.001, 1500) == 0.001
    assert trace.departure_s(0.0011, 1500) == 0.003
    assert trace.departure_s(0.0011, 3000) == 0.003
    assert trace.departure_s(0.0011, 3001) == 0.010
    assert trace.departure_s(0.0, 4 * 1500 + 1) == 0.011
    # The end of a loop and moment 0 of the next are the same moment, in this order.
    assert Trace([0, 10]).departure_s(0.01, 1500) == 0.01
    assert Trace([0, 10]).departure_s(0.01, 3000) == 0.01
    assert Trace([0, 10]).departure_s(0.01, 4500) == 0.02


@given(timestamps, starts_s, st.integers(1, 100_000))
def test_a_departure_is_the_opportunity_that_a_count_finds(times_ms, start_s, size_bytes):
    packets = -(-size_bytes // BYTES_PER_OPPORTUNITY)
    assert Trace(times_ms).departure_s(start_s, size_bytes) == opportunities_from(times_ms, start_s, packets)[-1]


@given(timestamps, st.integers(0, 200))
def test_times_and_numbers_of_opportunities_are_inverse(times_ms, number):
    trace = Trace(times_ms)
    first = trace.first_opportunity(trace.time_s(number))
    assert trace.time_s(first) == trace.time_s(number)
    assert first == 0 or trace.time_s(first - 1) < trace.time_s(number)


@given(timestamps, starts_s, st.integers(1, 100_000))
def test_doubled_timestamps_double_each_transmission_exactly(times_ms, start_s, size_bytes):
    plain_s = Trace(times_ms).departure_s(start_s, size_bytes) - start_s
    doubled = Trace([2 * ms for ms in times_ms])
    assert doubled.departure_s(2 * start_s, size_bytes) - 2 * start_s == 2 * plain_s
    scaled = Trace(times_ms).scaled(2)
    assert scaled.departure_s(2 * start_s, size_bytes) - 2 * start_s == 2 * plain_s


def test_scaling_scales_rate_and_holes():
    trace = Trace([30, 31, 40]).scaled(0.5)
    assert (trace.duration_s, trace.longest_hole_s) == (0.02, 0.015)
    assert trace.mean_megabits_per_s == 2 * Trace([30, 31, 40]).mean_megabits_per_s
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="factor must be between"):
            trace.scaled(wrong)


@pytest.fixture(scope="module")
def driving(data_folder):
    return read_trace(data_folder / "traces" / "ATT-LTE-driving.up")


def test_a_message_into_a_hole_of_a_real_trace_leaves_after_it(driving):
    assert driving.longest_hole_s == 78.319
    moments = [driving.time_s(number) for number in range(driving.opportunities)]
    hole_s, last_before = max((b - a, number) for number, (a, b) in enumerate(pairwise(moments)))
    assert hole_s == pytest.approx(driving.longest_hole_s)
    hole_from_s, hole_until_s = driving.time_s(last_before), driving.time_s(last_before + 1)
    assert driving.departure_s(hole_from_s + 0.001, 1) == hole_until_s
    assert driving.departure_s(hole_until_s - 0.001, 1) == hole_until_s


def test_every_real_trace_is_read(data_folder):
    paths = sorted((data_folder / "traces").iterdir())
    assert len(paths) >= 7
    for path in paths:
        trace = read_trace(path)
        assert 0.5 < trace.mean_megabits_per_s < 20
        assert trace.departure_s(0.0, trace.opportunities * BYTES_PER_OPPORTUNITY) == trace.duration_s
