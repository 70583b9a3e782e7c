from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app import histogram_counts
from serve_app.histogram_counts import HistogramCounts


@given(st.lists(st.tuples(st.floats(0, 20), st.sampled_from("ab"))), st.sets(st.integers(1, 15), min_size=1))
def test_buckets_are_cumulative_and_every_value_is_in_the_last_one(values, bounds):
    counts = HistogramCounts(sorted(bounds))
    for value, label in values:
        counts.observe(value, {"x": label})
    for label in {label for _, label in values}:
        own = [value for value, each in values if each == label]
        found = [(end, count) for labels, end, count in counts.buckets() if labels == {"x": label}]
        assert found == [(str(float(end)), sum(v <= end for v in own)) for end in sorted(bounds)] + [("+Inf", len(own))]
        [(total, count)] = [(total, count) for labels, total, count in counts.totals() if labels == {"x": label}]
        assert total == pytest.approx(sum(own))
        assert count == len(own)


def test_the_example_runs():
    assert doctest.testmod(histogram_counts).failed == 0
