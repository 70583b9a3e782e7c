"""Encoding and decoding as users see it: any profile, any shape, any memory layout, and nothing but our errors."""

from __future__ import annotations

import dataclasses
import doctest
import itertools
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from split_inference import codec_profile, compression, feature_codec, packing
from split_inference.codec_profile import ClipRange, CodecProfile
from split_inference.errors import FeatureMismatchError, MalformedFrameError, SplitInferenceError, UnknownCodecError
from split_inference.feature_codec import (
    EncodedTensor,
    FeatureCodec,
    decode_codes,
    decode_planes,
    decode_tensor,
    planes_shape,
    raw_bytes,
)


def f32(values):
    return np.array(values, np.float32)


UNIFORM = tuple(f"u{bits}{c}" for bits in range(1, 9) for c in ("", "c"))
LOSSLESS = ("float32+none", "float32+lz4", "float32+lz4hc", "float32+zstd")
SOME_OF_EACH = (*LOSSLESS, "float16", "u1+none", "u2", "u3c+zstd", "u4c", "u8+lz4hc", "jpeg90")
SHAPES = ((1, 6, 5, 7), (3, 4, 2, 2), (2, 3, 11), (2, 9), (5, 1, 1, 1))


def codec(name, **options):
    return FeatureCodec(CodecProfile.parse(name), **options)


def relu_features(rng, shape):
    return np.maximum(rng.normal(size=shape), 0).astype(np.float32)


def replaced(encoded, **changes):
    fields = {field.name: getattr(encoded, field.name) for field in dataclasses.fields(encoded)}
    return EncodedTensor(**(fields | changes))


def same_bytes(one, other):
    return (
        (one.shape, one.dtype, one.quantizer_id, one.bits, one.compressor_id, one.channel_axis)
        == (other.shape, other.dtype, other.quantizer_id, other.bits, other.compressor_id, other.channel_axis)
        and one.ranges.tobytes() == other.ranges.tobytes()
        and bytes(one.payload) == bytes(other.payload)
    )


def half_a_step(encoded, features):
    """Largest allowed error; every value is at most its own magnitude's rounding beyond half a step."""
    steps = (encoded.ranges[:, 1].astype(np.float64) - encoded.ranges[:, 0]) / (2**encoded.bits - 1)
    return 0.5001 * steps.max() + np.spacing(np.abs(features).max())


def test_ids_on_the_wire_never_change_their_meaning():
    assert (
        feature_codec.FLOAT32,
        feature_codec.FLOAT16,
        feature_codec.UNIFORM_PER_TENSOR,
        feature_codec.UNIFORM_PER_CHANNEL,
        feature_codec.TILED_JPEG,
    ) == (0, 1, 2, 3, 4)
    assert codec_profile.COMPRESSOR_IDS == {"none": 0, "lz4": 1, "lz4hc": 2, "zstd": 3}
    assert feature_codec.DTYPES == ("float32", "float16")


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("float32+none", (0, 32, 0)),
        ("float32+lz4", (0, 32, 1)),
        ("float16+lz4hc", (1, 16, 2)),
        ("u1+none", (2, 1, 0)),
        ("u2", (2, 2, 1)),
        ("u4c+zstd", (3, 4, 3)),
        ("jpeg75", (4, 8, 0)),
    ],
)
def test_a_profile_sets_the_ids(name, ids):
    encoded = codec(name).encode(np.tile(f32([0, 1, 2, 3]), (1, 4, 50, 1)))
    assert (encoded.quantizer_id, encoded.bits, encoded.compressor_id) == ids


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        ("float32+none", CodecProfile(quantizer="float32", compressor="none")),
        ("float16+lz4", CodecProfile(quantizer="float16")),
        ("u2+lz4", CodecProfile(bits=2)),
        ("u4c+zstd", CodecProfile(bits=4, per_channel=True, compressor="zstd")),
        ("u8+lz4hc", CodecProfile(bits=8, compressor="lz4hc")),
        ("jpeg75", CodecProfile(quantizer="tiled-jpeg")),
        ("jpeg100", CodecProfile(quantizer="tiled-jpeg", jpeg_quality=100)),
    ],
)
def test_names_and_profiles_say_the_same(name, profile):
    assert profile.name == name
    assert CodecProfile.parse(name) == profile


@pytest.mark.parametrize("stem", ["float32", "float16", *UNIFORM])
def test_every_name_is_read_back(stem):
    for compressor in ("none", "lz4", "lz4hc", "zstd"):
        assert CodecProfile.parse(f"{stem}+{compressor}").name == f"{stem}+{compressor}"
    default = "none" if stem == "float32" else "lz4"
    assert CodecProfile.parse(stem) == CodecProfile.parse(f"{stem}+{default}")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "u",
        "u0",
        "u9",
        "u16",
        "u4C",
        "u4+",
        "u4+gzip",
        "u4 +lz4",
        "float64",
        "jpeg",
        "jpeg0",
        "jpeg101",
        "jpeg75+lz4",
    ],
)
def test_a_name_without_a_meaning_is_refused_in_one_line(name):
    with pytest.raises(UnknownCodecError, match=r"unknown codec .*known are [^\n]*u1\.\.u8[^\n]*$"):
        CodecProfile.parse(name)


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 0},
        {"bits": 9},
        {"quantizer": "gaussian"},
        {"compressor": "gzip"},
        {"quantizer": "tiled-jpeg", "jpeg_quality": 0},
        {"quantizer": "tiled-jpeg", "compressor": "zstd"},
        {"quantizer": "float32", "bits": 8},
        {"quantizer": "float16", "per_channel": True},
        {"jpeg_quality": 90},
    ],
)
def test_a_profile_refuses_what_it_would_ignore_or_cannot_do(options):
    with pytest.raises(ValueError, match=r"must be|takes"):
        CodecProfile(**options)


@pytest.mark.parametrize("name", SOME_OF_EACH)
@pytest.mark.parametrize("shape", SHAPES)
def test_decoding_gives_the_shape_as_float32_writable_and_contiguous(name, shape, rng):
    features = relu_features(rng, shape)
    decoded = decode_tensor(codec(name).encode(features))
    assert decoded.shape == shape
    assert decoded.dtype == np.float32
    assert decoded.flags.c_contiguous
    assert decoded.flags.writeable


@pytest.mark.parametrize("name", LOSSLESS)
@given(arrays.arrays(np.float32, arrays.array_shapes(max_dims=5, max_side=6), elements=st.floats(width=32)))
def test_float32_is_exact_or_refused(name, features):
    if not np.isfinite(features).all():
        with pytest.raises(ValueError, match="finite"):
            codec(name).encode(features)
        return
    assert decode_tensor(codec(name).encode(features)).tobytes() == features.tobytes()


def test_float16_is_exact_for_what_float16_holds(rng):
    features = relu_features(rng, (2, 3, 50)).astype(np.float16)
    encoded = codec("float16").encode(features)
    assert encoded.dtype == "float16"
    assert (decode_tensor(encoded) == features).all()


@pytest.mark.parametrize("value", [65520.0, -65520.0, 1e30])
def test_values_that_float16_would_make_infinite_are_refused(value):
    with pytest.raises(ValueError, match="float16"):
        codec("float16").encode(f32([[1, value]]))


@pytest.mark.parametrize("value", [65504.0, -65519.99])
def test_values_that_float16_rounds_to_its_largest_are_taken(value):
    assert np.isfinite(decode_tensor(codec("float16").encode(f32([[1, value]])))).all()


@pytest.mark.parametrize("name", UNIFORM)
@given(
    arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=2, max_dims=4, max_side=6),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    ),
    st.data(),
)
def test_each_value_errs_by_at_most_half_a_step_on_any_channel_axis(name, features, data):
    axis = data.draw(st.integers(1, features.ndim - 1))
    encoded = codec(name, channel_axis=axis).encode(features)
    error = np.abs(decode_tensor(encoded).astype(np.float64) - features).max()
    assert error <= half_a_step(encoded, features)
    channels = features.shape[axis] if "c" in name else 1
    assert len(encoded.ranges) == len(features) * channels


def test_channels_get_ranges_of_their_own(rng):
    features = relu_features(rng, (1, 8, 20, 20)) * np.logspace(-3, 3, 8).astype(np.float32).reshape(1, 8, 1, 1)
    for axis in (1, 2, 3):
        moved = np.moveaxis(features, 1, axis)
        decoded = decode_tensor(codec("u6c", channel_axis=axis).encode(moved))
        error = np.abs(decoded - moved) / np.logspace(-3, 3, 8).reshape([8 if a == axis else 1 for a in range(4)])
        assert error.max() < 0.05


@pytest.mark.parametrize("name", SOME_OF_EACH)
def test_a_sample_decodes_to_the_same_in_any_company(name, rng):
    features = relu_features(rng, (4, 6, 5, 7)) * f32([1, 1000, 0.01, 5]).reshape(4, 1, 1, 1)
    together = decode_tensor(codec(name).encode(features))
    for sample in range(4):
        alone = decode_tensor(codec(name).encode(features[sample : sample + 1]))
        assert (alone[0] == together[sample]).all()


@pytest.mark.parametrize("name", SOME_OF_EACH)
def test_equal_profiles_decode_each_others_bytes(name, rng):
    features = relu_features(rng, (2, 6, 5, 7))
    one, other = codec(name), codec(CodecProfile.parse(name).name)
    assert one.profile == other.profile
    assert same_bytes(one.encode(features), other.encode(features))


@pytest.mark.parametrize("name", SOME_OF_EACH)
def test_memory_layout_does_not_matter(name, rng):
    features = relu_features(rng, (2, 6, 5, 8))
    expected = codec(name).encode(features)
    every_other = np.zeros((4, 12, 5, 16), np.float32)[::2, ::2, :, ::2]
    every_other[:] = features
    reversed_twice = features[::-1].copy()[::-1]
    for same_values in (np.asfortranarray(features), every_other, reversed_twice):
        assert not same_values.flags.c_contiguous
        assert same_bytes(codec(name).encode(same_values), expected)


@pytest.mark.parametrize("name", SOME_OF_EACH)
def test_encoding_leaves_the_features_alone(name, rng):
    features = relu_features(rng, (2, 6, 5, 7))
    before = features.copy()
    features.flags.writeable = False
    codec(name, clip=None).encode(features)
    assert (features == before).all()


@pytest.mark.parametrize("name", SOME_OF_EACH)
def test_what_is_decoded_outlives_the_payload(name, rng):
    encoded = codec(name).encode(relu_features(rng, (2, 6, 5, 7)))
    expected = decode_tensor(encoded)
    buffer = bytearray(encoded.payload)
    decoded = decode_tensor(replaced(encoded, payload=memoryview(buffer)))
    buffer[:] = b"\xff" * len(buffer)
    assert (decoded == expected).all()


@pytest.mark.parametrize("name", SOME_OF_EACH)
def test_decoding_into_a_given_array_fills_and_returns_it(name, rng):
    encoded = codec(name).encode(relu_features(rng, (2, 6, 5, 7)))
    out = np.full((2, 6, 5, 7), np.nan, np.float32)
    assert decode_tensor(encoded, out=out) is out
    assert (out == decode_tensor(encoded)).all()


@pytest.mark.parametrize(
    "out",
    [
        np.empty((2, 6, 5, 8), np.float32),
        np.empty((2, 6, 5, 7), np.float64),
        np.asfortranarray(np.empty((2, 6, 5, 7), np.float32)),
    ],
)
def test_an_array_that_does_not_fit_is_refused(out, rng):
    with pytest.raises(ValueError, match="out must be"):
        decode_tensor(codec("u4").encode(relu_features(rng, (2, 6, 5, 7))), out=out)


@pytest.mark.parametrize("name", ["float32+none", "float16", "u4", "u4c", "jpeg75"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_at_encoding(name, poison):
    features = np.ones((2, 3, 4, 4), np.float32)
    features[1, 2, 3, 3] = poison
    with pytest.raises(ValueError, match="finite"):
        codec(name).encode(features)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_nan_and_infinity_are_refused_at_encoding_with_a_clip_range_too(poison):
    clip = ClipRange(low=(0.0,), high=(1.0,))
    with pytest.raises(ValueError, match="finite"):
        codec("u4", clip=clip).encode(f32([[0.5, poison]]))


@pytest.mark.parametrize("features", [np.empty((0, 3), np.float32), np.empty((2, 0), np.float32), np.float32(1.0)])
def test_nothing_is_not_encoded(features):
    with pytest.raises(ValueError, match="at least one element"):
        codec("u4").encode(np.asarray(features))


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.uint8, ">f4", np.complex64])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match="float32 or float16"):
        codec("u4").encode(np.ones((1, 4), dtype))


@pytest.mark.parametrize("name", UNIFORM)
def test_clipped_values_land_on_the_ends_and_the_rest_errs_by_half_a_step(name, rng):
    features = rng.normal(size=(3, 4, 9, 9)).astype(np.float32) * 2
    encoded = codec(name, clip=ClipRange(low=(-1.5,), high=(2.5,))).encode(features)
    assert encoded.ranges.tolist() == [[-1.5, 2.5]] * (4 if "c" in name else 1)
    clipped = np.clip(features, -1.5, 2.5)
    assert np.abs(decode_tensor(encoded) - clipped).max() <= half_a_step(encoded, features)


def test_a_clip_range_may_differ_by_channel(rng):
    features = rng.normal(size=(2, 3, 8, 8)).astype(np.float32) * 3
    clip = ClipRange(low=(0.0, -1.0, -2.0), high=(1.0, 1.0, 3.0))
    encoded = codec("u8c", clip=clip).encode(features)
    low, high = (np.reshape(ends, (1, 3, 1, 1)) for ends in (clip.low, clip.high))
    assert np.abs(decode_tensor(encoded) - np.clip(features, low, high)).max() <= half_a_step(encoded, features)


def test_values_far_beyond_a_clip_range_do_no_harm():
    clip = ClipRange(low=(0.0,), high=(1e-20,))
    decoded = decode_tensor(codec("u2", clip=clip).encode(f32([[3e38, -3e38]])))
    assert decoded.tolist() == [[np.float32(1e-20), 0]]


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ((), ()),
        ((0.0,), (1.0, 2.0)),
        ((1.0,), (1.0,)),
        ((2.0,), (1.0,)),
        ((0.0,), (float("inf"),)),
        ((float("nan"),), (1.0,)),
    ],
)
def test_a_clip_range_refuses_nonsense(low, high):
    with pytest.raises(ValueError, match="clip range"):
        ClipRange(low=low, high=high)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0 + 1e-12), (0.0, 1e300)])
def test_a_clip_range_beyond_float32_is_refused(low, high):
    with pytest.raises(ValueError, match="float32"):
        codec("u4", clip=ClipRange(low=(low,), high=(high,)))


def test_options_that_do_not_fit_each_other_are_refused():
    two = ClipRange(low=(0.0, 0.0), high=(1.0, 1.0))
    with pytest.raises(ValueError, match="one range"):
        codec("u4", clip=two)
    with pytest.raises(ValueError, match="no ranges to clip"):
        codec("float32", clip=two)
    with pytest.raises(ValueError, match="axis 0 counts samples"):
        codec("u4c", channel_axis=0)
    with pytest.raises(ValueError, match="3 channels, the clip range 2"):
        codec("u4c", clip=two).encode(np.ones((1, 3, 2), np.float32))
    with pytest.raises(ValueError, match="not an axis"):
        codec("u4c", channel_axis=2).encode(np.ones((1, 3), np.float32))


@pytest.mark.parametrize("name", ["u2", "u4c", "u8+zstd", "u3+lz4hc"])
def test_dense_features_are_stored_as_planes_and_never_grow(name, rng):
    features = rng.uniform(size=(1, 16, 13, 13)).astype(np.float32)
    encoded = codec(name).encode(features)
    assert encoded.compressor_id == compression.NONE
    assert len(encoded.payload) == encoded.bits * -(-features.size // 8)


@pytest.mark.parametrize("id_field", ["quantizer_id", "compressor_id"])
@pytest.mark.parametrize("unknown", [5, 100, 255])
def test_ids_without_a_meaning_are_refused_at_decoding(id_field, unknown, rng):
    encoded = codec("u4").encode(relu_features(rng, (1, 6, 5, 7)))
    with pytest.raises(UnknownCodecError, match=f"id {unknown}"):
        decode_tensor(replaced(encoded, **{id_field: unknown}))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("u4", {"bits": 0}),
        ("u4", {"bits": 9}),
        ("u4", {"bits": 3}),
        ("u4", {"shape": (1, 6, 5, 8)}),
        ("u4", {"shape": (1, 2**31, 2**31)}),
        ("u4", {"channel_axis": 1}),
        ("u4", {"ranges": np.empty((0, 2), np.float32)}),
        ("u4", {"ranges": f32([[0, 1]] * 6)}),
        ("u5", {"ranges": f32([[0, np.finfo(np.float32).max]])}),  # 31 steps, each rounded up, reach infinity
        ("u4c", {"channel_axis": 0}),
        ("u4c", {"channel_axis": 2}),
        ("u4c", {"ranges": f32([[0, 1]])}),
        ("float32", {"bits": 16}),
        ("float32", {"ranges": f32([[0, 1]])}),
        ("float32", {"payload": b""}),
        ("float16+none", {"shape": (1, 6, 5, 8)}),
        ("jpeg75", {"bits": 7}),
        ("jpeg75", {"compressor_id": 1}),
        ("jpeg75", {"channel_axis": 0}),
        ("jpeg75", {"channel_axis": 2}),
    ],
)
def test_a_tensor_that_contradicts_itself_is_malformed(name, changes, rng):
    encoded = codec(name).encode(relu_features(rng, (1, 6, 5, 7)))
    with pytest.raises(MalformedFrameError):
        decode_tensor(replaced(encoded, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": ()},
        {"shape": (1, 0, 5)},
        {"dtype": "float64"},
        {"channel_axis": 4},
        {"channel_axis": -1},
        {"ranges": f32([0, 1])},
        {"ranges": np.array([[0.0, 1.0]])},
        {"ranges": f32([[1, 1]])},
        {"ranges": f32([[0, 1], [2, 1]])},
        {"ranges": f32([[0, np.nan]])},
        {"ranges": f32([[np.nan, 1]])},
        {"ranges": f32([[0, np.inf]])},
        {"ranges": f32([[-np.inf, np.inf]])},
        {"ranges": f32([[-3e38, 3e38]])},
    ],
)
def test_an_encoded_tensor_refuses_nonsense(changes, rng):
    encoded = codec("u4").encode(relu_features(rng, (1, 6, 5, 7)))
    with pytest.raises(ValueError, match=r"shape|dtype|axis|ranges"):
        replaced(encoded, **changes)


@pytest.mark.parametrize("bits_of_poison", [0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF])
def test_poisoned_float32_payloads_are_refused_without_a_warning(bits_of_poison):
    for position in (0, 30, 62):
        payload = bytearray(codec("float32").encode(np.ones((1, 63), np.float32)).payload)
        struct.pack_into("<I", payload, 4 * position, bits_of_poison)
        with pytest.raises(FeatureMismatchError, match="finite"):
            decode_tensor(replaced(codec("float32").encode(np.ones((1, 63), np.float32)), payload=bytes(payload)))


@pytest.mark.parametrize("bits_of_poison", [0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFFFF])
def test_poisoned_float16_payloads_are_refused_without_a_warning(bits_of_poison):
    encoded = codec("float16+none").encode(np.ones((1, 63), np.float32))
    payload = bytearray(encoded.payload)
    struct.pack_into("<H", payload, 50, bits_of_poison)
    with pytest.raises(FeatureMismatchError, match="finite"):
        decode_tensor(replaced(encoded, payload=bytes(payload)))


@pytest.mark.parametrize("name", SOME_OF_EACH)
def test_damaged_payloads_raise_only_our_errors(name, rng):
    encoded = codec(name).encode(relu_features(rng, (2, 6, 5, 7)))
    for _ in range(200):
        payload = bytearray(encoded.payload)
        for _ in range(rng.integers(1, 4)):
            payload[rng.integers(len(payload))] = rng.integers(256)
        try:
            decoded = decode_tensor(replaced(encoded, payload=bytes(payload)))
        except SplitInferenceError:
            continue
        assert np.isfinite(decoded).all()


@pytest.mark.parametrize("name", ["float32", "float16+zstd", "u1", "u8", "u8c+zstd"])
def test_a_lying_shape_is_refused_before_its_memory_is_taken(name, rng):
    encoded = codec(name).encode(relu_features(rng, (1, 6, 5, 7)))
    lying = replaced(encoded, shape=(1, 6, 2**20))
    tracemalloc.start()
    with pytest.raises(MalformedFrameError):
        decode_tensor(lying)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**10


@pytest.mark.parametrize("name", ["float32+lz4", "float32+zstd", "float16", "u1", "u8", "u8c", "u8c+zstd", "jpeg75"])
def test_decoding_needs_at_most_twice_the_memory_of_its_result(name, rng):
    features = np.resize(relu_features(rng, (1, 64, 8, 64)), (1, 64, 128, 512))
    encoded = codec(name).encode(features)
    tracemalloc.start()
    decode_tensor(encoded)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 2 * raw_bytes(features.shape)


def test_raw_bytes_do_not_overflow():
    assert raw_bytes((1, 256, 14, 14)) == 4 * 256 * 14 * 14
    assert raw_bytes((2**32 - 1,) * 8) == 4 * (2**32 - 1) ** 8
    assert raw_bytes(tuple(np.array([2**31, 2**31], np.uint32))) == 2**64


def test_every_profile_survives_every_shape(rng):
    for name, shape in itertools.product((*UNIFORM, "jpeg50"), SHAPES):
        features = relu_features(rng, shape)
        for axis in range(1, len(shape)):
            assert decode_tensor(codec(name, channel_axis=axis).encode(features)).shape == shape


def test_the_examples_in_the_documentation_run():
    for module in (codec_profile, feature_codec):
        assert doctest.testmod(module, extraglobs={"np": np}).failed == 0


@pytest.mark.parametrize("name", [f"{uniform}+{how}" for uniform in UNIFORM for how in ("none", "lz4", "zstd")])
@pytest.mark.parametrize("shape", SHAPES)
def test_planes_of_each_sample_unpack_to_its_codes_and_have_the_same_scale(name, shape):
    encoded = codec(name).encode(relu_features(np.random.default_rng(1), shape))
    codes = np.empty(shape, np.uint8)
    scale = decode_codes(encoded, out=codes)
    planes = np.full(planes_shape(shape, bits=encoded.bits), 0xAA, np.uint8)
    same = decode_planes(encoded, out=planes)
    assert (same.step.tobytes(), same.low.tobytes()) == (scale.step.tobytes(), scale.low.tobytes())
    for sample, expected in zip(planes, codes, strict=True):
        unpacked = np.empty(expected.size, np.uint8)
        packing.unpack_planes(sample, out=unpacked)
        np.testing.assert_array_equal(unpacked, expected.reshape(-1))


@pytest.mark.parametrize("name", ["float32", "float16", "jpeg75"])
def test_what_has_no_planes_is_refused(name):
    encoded = codec(name).encode(f32([0, 1, 2, 3]).reshape(1, 1, 2, 2))
    with pytest.raises(ValueError, match="holds no bit planes"):
        decode_planes(encoded, out=np.empty(planes_shape(encoded.shape, bits=encoded.bits), np.uint8))


@pytest.mark.parametrize("shape", [(1, 1, 512), (1, 2, 63), (2, 4, 64)])
@pytest.mark.parametrize("how", ["none", "lz4", "zstd"])
def test_a_payload_of_another_length_is_refused_before_planes_are_written(shape, how):
    encoded = codec(f"u4+{how}").encode(relu_features(np.random.default_rng(0), shape))
    larger = replaced(encoded, shape=(shape[0], 4 * shape[1], 1 << 12))
    out = np.zeros(planes_shape(larger.shape, bits=4), np.uint8)
    tracemalloc.start()
    try:
        with pytest.raises(MalformedFrameError):
            decode_planes(larger, out=out)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert not out.any()
    with pytest.raises(ValueError, match="out must be"):
        decode_planes(encoded, out=out)


def test_bits_that_no_quantizer_has_are_refused_as_planes_too():
    encoded = replaced(codec("u4+none").encode(f32([[0, 1, 2, 3]])), bits=9)
    with pytest.raises(MalformedFrameError, match="bits"):
        decode_planes(encoded, out=np.empty((1, 9, 1), np.uint8))
