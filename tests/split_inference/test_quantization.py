"""Codes mean what the documentation says, to the last bit, and err by at most half a step.

Shape legend as in quantization.py: N samples, A elements before the channels, C channels, B elements behind them.
"""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from split_inference import quantization
from split_inference.quantization import MIN_WIDTH, Scale, channel_grid, dequantize, measured_ranges, quantize


def f32(values):
    return np.array(values, np.float32)


ALL_BITS = range(1, 9)
LARGEST = np.finfo(np.float32).max
# Above this, high - low or high + step could be beyond float32, which is refused and tested by itself.
MODERATE = st.floats(-(2.0**120), 2.0**120, width=32)


def round_trip(features_NACB, *, bits, ranges=None):
    ranges = measured_ranges(features_NACB) if ranges is None else ranges
    scale = Scale.of(ranges, bits=bits, grid=features_NACB.shape)
    values = quantize(features_NACB, scale).astype(np.float32).reshape(features_NACB.shape)
    dequantize(values, scale)
    return values, scale


@pytest.mark.parametrize("bits", ALL_BITS)
@given(arrays.arrays(np.float32, arrays.array_shapes(min_dims=4, max_dims=4, max_side=5), elements=MODERATE))
def test_each_value_errs_by_at_most_half_a_step(bits, features_NACB):
    values, scale = round_trip(features_NACB, bits=bits)
    error = np.abs(values.astype(np.float64) - features_NACB)
    # Where a step is finer than float32 is at that magnitude, the sum's own rounding comes on top.
    rounding = np.spacing(np.abs(features_NACB) + np.abs(scale.low)).astype(np.float64)
    assert (error <= 0.5001 * scale.step.astype(np.float64) + rounding).all()


@pytest.mark.parametrize("bits", ALL_BITS)
def test_the_bound_of_half_a_step_is_reached_from_both_sides(bits):
    levels = 2**bits - 1
    features = np.linspace(0, levels, 1000 * levels + 1, dtype=np.float32).reshape(1, 1, 1, -1)
    values, _ = round_trip(features, bits=bits)
    assert (values - features).max() == pytest.approx(0.5, abs=2e-3)
    assert (values - features).min() == pytest.approx(-0.5, abs=2e-3)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (0.0, 0),
        (0.49, 0),
        (0.51, 1),
        (1.49, 1),
        (2.0, 2),
        (2.51, 3),
        (3.0, 3),
        (3.7, 3),
        (9e9, 3),
        (-0.4, 0),
        (-9e9, 0),
    ],
)
def test_values_round_to_the_nearest_code_and_clip_at_the_ends(value, code):
    scale = Scale.of(f32([[0, 3]]), bits=2, grid=(1, 1, 1, 1))
    assert quantize(np.float32(value).reshape(1, 1, 1, 1), scale).tolist() == [code]


@pytest.mark.parametrize("bits", ALL_BITS)
def test_a_code_means_two_float32_roundings_of_code_times_step_plus_low(bits, rng):
    low, high = np.sort(rng.normal(size=(2, 20)).astype(np.float32), axis=0)
    codes = rng.integers(0, 2**bits, size=(1, 3, 20, 5)).astype(np.float32)
    values = codes.copy()
    dequantize(values, Scale.of(np.stack((low, high), axis=1), bits=bits, grid=values.shape))
    for channel in range(20):
        step = np.float32((float(high[channel]) - float(low[channel])) / (2**bits - 1))
        for code, value in zip(codes[0, :, channel].ravel(), values[0, :, channel].ravel(), strict=True):
            assert value == np.float32(np.float32(code * step) + low[channel])


def test_the_lowest_code_is_the_low_end_exactly(rng):
    ranges = np.sort(rng.normal(size=(50, 2)).astype(np.float32), axis=1)
    values = np.zeros((1, 1, 50, 1), np.float32)
    dequantize(values, Scale.of(ranges, bits=3, grid=values.shape))
    assert (values.ravel() == ranges[:, 0]).all()


@pytest.mark.parametrize("constant", [0.0, -0.0, 1e-45, -1e-40, 1e-30, 0.1, -3.5, 1e30, LARGEST, -LARGEST])
@pytest.mark.parametrize("bits", ALL_BITS)
def test_a_constant_decodes_to_itself(constant, bits):
    features = np.full((2, 1, 1, 3), constant, np.float32)
    ranges = measured_ranges(features)
    assert (ranges[:, 0] < ranges[:, 1]).all()
    assert (round_trip(features, bits=bits)[0] == features).all()


def test_a_range_is_widened_no_more_than_needed(rng):
    features = np.stack([np.full(4, 7, np.float32), rng.normal(size=4).astype(np.float32)]).reshape(1, 1, 2, 4)
    (constant_low, constant_high), (low, high) = measured_ranges(features)
    assert (constant_low, constant_high) == (7, np.nextafter(np.float32(7), np.float32(8)))
    assert (low, high) == (features[0, 0, 1].min(), features[0, 0, 1].max())
    assert measured_ranges(np.zeros((1, 1, 1, 1), np.float32)).tolist() == [[0, MIN_WIDTH]]


def test_ranges_are_measured_by_sample_and_channel():
    features = np.arange(24, dtype=np.float32).reshape(2, 1, 3, 4)
    assert measured_ranges(features).tolist() == [[0, 3], [4, 7], [8, 11], [12, 15], [16, 19], [20, 23]]
    assert measured_ranges(features.reshape(2, 1, 1, 12)).tolist() == [[0, 11], [12, 23]]
    channels_last = np.moveaxis(features.reshape(2, 3, 4), 1, 2).copy().reshape(2, 4, 3, 1)
    assert measured_ranges(channels_last).tolist() == measured_ranges(features).tolist()


@pytest.mark.parametrize(
    ("shape", "axis", "grid"),
    [
        ((2, 3, 4, 5), 1, (2, 1, 3, 20)),
        ((2, 3, 4, 5), 2, (2, 3, 4, 5)),
        ((2, 3, 4, 5), 3, (2, 12, 5, 1)),
        ((2, 3, 4, 5), None, (2, 1, 1, 60)),
        ((2,), None, (2, 1, 1, 1)),
    ],
)
def test_any_channel_axis_becomes_the_third_of_four(shape, axis, grid):
    assert channel_grid(shape, axis) == grid


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(poison):
    features = np.ones((1, 1, 2, 3), np.float32)
    features[0, 0, 1, 2] = poison
    with pytest.raises(ValueError, match="finite"):
        measured_ranges(features)


@pytest.mark.parametrize(("low", "high"), [(-LARGEST, LARGEST), (-LARGEST / 2, LARGEST)])
def test_a_range_whose_width_is_beyond_float32_is_refused(low, high):
    with pytest.raises(ValueError, match="float32"):
        Scale.of(f32([[low, high]]), bits=4, grid=(1, 1, 1, 2))


@pytest.mark.parametrize("bits", ALL_BITS)
def test_the_largest_range_is_refused_where_rounded_steps_reach_infinity(bits):
    largest, codes = f32([[0, LARGEST]]), np.full((1, 1, 1, 1), 2**bits - 1, np.float32)
    if bits in (5, 7):
        with pytest.raises(ValueError, match="beyond float32"):
            Scale.of(largest, bits=bits, grid=codes.shape)
    else:
        dequantize(codes, Scale.of(largest, bits=bits, grid=codes.shape))
        assert np.isfinite(codes).all()


@pytest.mark.parametrize("bits", [0, 9, -1, 32])
def test_other_bit_widths_are_refused(bits):
    with pytest.raises(ValueError, match=r"bits must be 1\.\.8"):
        Scale.of(f32([[0, 1]]), bits=bits, grid=(1, 1, 1, 2))


def test_a_number_of_ranges_that_fits_neither_channels_nor_samples_is_refused():
    with pytest.raises(ValueError, match="5 ranges for 2 samples of 3 channels"):
        Scale.of(f32([[0, 1]] * 5), bits=4, grid=(2, 1, 3, 4))


def test_ranges_may_be_shared_by_samples_or_not(rng):
    features = rng.normal(size=(4, 2, 3, 5)).astype(np.float32)
    shared = f32([[-9, 9]] * 3)
    own = np.tile(shared, (4, 1))
    assert (round_trip(features, bits=5, ranges=shared)[0] == round_trip(features, bits=5, ranges=own)[0]).all()


def test_the_examples_in_the_documentation_run():
    assert doctest.testmod(quantization, extraglobs={"np": np}).failed == 0
