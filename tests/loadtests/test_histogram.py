"""Percentiles within half a unit of the third digit, and merging that loses nothing."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests.histogram import CURVE_BITS, LARGEST_S, SMALLEST_S, THREE_DIGITS_BITS, Histogram

SHARES = (0.0, 0.01, 0.5, 0.9, 0.99, 0.999, 1.0)
# What "three digits" means: within half a unit of the third digit of 9.99, the strictest case.
THREE_DIGITS = 0.0005

durations = st.floats(min_value=SMALLEST_S, max_value=LARGEST_S, allow_nan=False)


def exact(values, share):
    return sorted(values)[max(1, math.ceil(share * len(values) - 1e-9)) - 1]


@settings(max_examples=200)
@given(st.lists(durations, min_size=1, max_size=300), st.floats(0, 1))
def test_a_percentile_agrees_with_an_exact_sort_to_three_digits(values, share):
    assert Histogram.of(values).percentile(share) == pytest.approx(exact(values, share), rel=THREE_DIGITS)


@settings(max_examples=100)
@given(st.lists(durations, min_size=1, max_size=100), st.integers(1, 12))
def test_the_error_is_at_most_half_a_bucket_for_every_precision(values, bits):
    histogram = Histogram.of(values, bits=bits)
    for share in SHARES:
        assert histogram.percentile(share) == pytest.approx(exact(values, share), rel=2.0 ** -(bits + 1) + 1e-12)


@settings(max_examples=100)
@given(st.lists(st.lists(durations, max_size=60), min_size=4, max_size=4), st.permutations(range(4)))
def test_four_merged_histograms_are_the_histogram_of_all_values_in_any_order(parts, order):
    merged = Histogram()
    for index in order:
        merged.merge(Histogram.of(parts[index]))
    whole = Histogram.of([value for part in parts for value in part])
    assert merged == whole
    assert merged.count == whole.count
    assert merged.sum_s == pytest.approx(whole.sum_s)


def test_million_draws_of_a_latency_agree_with_their_sort(rng):
    values = rng.lognormal(-4, 1.5, 20_000).tolist()
    histogram = Histogram.of(values)
    for share in SHARES:
        assert histogram.percentile(share) == pytest.approx(exact(values, share), rel=THREE_DIGITS)
    assert histogram.mean_s == pytest.approx(sum(values) / len(values))
    assert (histogram.min_s, histogram.max_s) == (min(values), max(values))


@settings(max_examples=100)
@given(st.lists(durations, max_size=50))
def test_json_gives_the_same_histogram_back(values):
    histogram = Histogram.of(values)
    back = Histogram.from_json(json.loads(json.dumps(histogram.to_json())))
    assert back == histogram
    assert (back.count, back.sum_s) == (histogram.count, histogram.sum_s)


@settings(max_examples=100)
@given(st.lists(durations, max_size=50))
def test_a_coarser_histogram_is_what_recording_coarsely_gives(values):
    assert Histogram.of(values).coarser(CURVE_BITS) == Histogram.of(values, bits=CURVE_BITS)


@settings(max_examples=100)
@given(st.lists(durations, min_size=1, max_size=50), durations)
def test_the_share_below_a_value_is_exact_but_for_its_own_bucket(values, limit):
    histogram = Histogram.of(values)
    width = 2.0**-THREE_DIGITS_BITS
    low = sum(value <= limit * (1 - width) for value in values) / len(values)
    high = sum(value <= limit * (1 + width) for value in values) / len(values)
    assert low <= histogram.share_at_most(limit) <= high


def test_an_empty_histogram_has_no_percentiles_and_no_mean():
    empty = Histogram()
    assert math.isnan(empty.percentile(0.99))
    assert math.isnan(empty.mean_s)
    assert empty.buckets() == []


def test_values_beyond_the_ends_count_as_the_ends():
    histogram = Histogram.of([0.0, -1.0, 1e9])
    assert (histogram.count, histogram.min_s, histogram.max_s) == (3, SMALLEST_S, LARGEST_S)


def test_buckets_count_everything_and_end_at_the_maximum(rng):
    histogram = Histogram.of(rng.exponential(0.1, 1000).tolist())
    edges, counts = zip(*histogram.buckets(), strict=True)
    assert sum(counts) == 1000
    assert list(edges) == sorted(edges)
    assert edges[-1] == histogram.max_s


def test_histograms_side_by_side_share_the_edges_of_their_buckets(rng):
    values = rng.exponential(0.1, 1000)
    parts = [Histogram.of(part.tolist(), bits=6).shared_buckets() for part in np.split(values, 50)]
    whole = Histogram.of(values.tolist(), bits=6)
    assert {edge for part in parts for edge, _ in part} == {edge for edge, _ in whole.shared_buckets()}
    for (edge, count), (cut, same) in zip(whole.shared_buckets(), whole.buckets(), strict=True):
        assert cut == min(edge, whole.max_s)
        assert count == same


def test_nan_and_unequal_precisions_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        Histogram().record(math.nan)
    with pytest.raises(ValueError, match="bits"):
        Histogram().merge(Histogram(bits=5))
    with pytest.raises(ValueError, match="finer"):
        Histogram(bits=5).coarser(6)


@pytest.mark.parametrize(
    "change",
    [
        {"bits": 99},
        {"bits": None},
        {"buckets": [1]},
        {"buckets": [10**9, 1]},
        {"buckets": [-(10**9), 1]},
        {"buckets": "many"},
        {"buckets": [1, 2, 1, 2]},
        {"min_s": 5.0},
        {"max_s": math.nan},
        {"sum_s": -1.0},
    ],
)
def test_a_damaged_record_is_refused(change):
    content = Histogram.of([0.5, 1.0]).to_json() | change
    with pytest.raises(ValueError, match="not a histogram"):
        Histogram.from_json(content)
