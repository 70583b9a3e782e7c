"""Tiles lie where they should, come back close to what they were, and hostile images are never decoded."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from split_inference.codec_profile import CodecProfile
from split_inference.errors import MalformedFrameError
from split_inference.feature_codec import FeatureCodec, decode_tensor
from split_inference.tiled_jpeg import MAX_SIDE, TileGrid, decode_tiles_into, encode_tiles


def u8(values):
    return np.array(values, np.uint8)


def smooth_codes(shape):
    """A slope per channel: what JPEG keeps nearly exactly."""
    ramp = np.linspace(20, 200, shape[-1]) + np.linspace(0, 30, shape[-2])[:, np.newaxis]
    channels = np.arange(int(np.prod(shape[:-2]))).reshape(*shape[:-2], 1, 1) % 5
    return np.broadcast_to(ramp + channels, shape).astype(np.uint8)


def decoded(payload, shape, *, channel_axis=1):
    codes = np.empty(shape, np.float32)
    decode_tiles_into(codes, payload, channel_axis=channel_axis)
    return codes


def images_in(payload):
    images = []
    while payload:
        (length,) = struct.unpack_from("<I", payload)
        images.append(Image.open(io.BytesIO(payload[4 : 4 + length])))
        payload = payload[4 + length :]
    return images


def payload_of(image, **options):
    file = io.BytesIO()
    image.save(file, options.pop("format", "JPEG"), **options)
    return struct.pack("<I", file.tell()) + file.getvalue()


@pytest.mark.parametrize(
    ("shape", "axis", "rows_columns_height_width"),
    [
        ((1, 1, 8, 9), 1, (1, 1, 8, 9)),
        ((1, 4, 8, 9), 1, (2, 2, 8, 9)),
        ((2, 5, 8, 9), 1, (2, 3, 8, 9)),
        ((1, 256, 14, 14), 1, (16, 16, 14, 14)),
        ((1, 10, 7), 2, (3, 3, 1, 10)),
        ((1, 6), 1, (2, 3, 1, 1)),
        ((1, 2, 3, 4, 5), 1, (1, 2, 12, 5)),
    ],
)
def test_channels_fill_a_near_square_grid(shape, axis, rows_columns_height_width):
    grid = TileGrid.of(shape, axis)
    assert (grid.rows, grid.columns, grid.tile_height, grid.tile_width) == rows_columns_height_width


def test_tiles_lie_row_by_row_and_unused_ones_are_black():
    codes = np.repeat(u8([40, 80, 120, 160, 200]), 64).reshape(1, 5, 8, 8)
    (image,) = images_in(encode_tiles(codes, channel_axis=1, quality=100))
    assert (image.size, image.mode) == ((24, 16), "L")
    assert np.asarray(image)[::8, ::8].tolist() == [[40, 80, 120], [160, 200, 0]]


@pytest.mark.parametrize(("shape", "axis"), [((1, 16, 8, 8), 1), ((3, 5, 16, 24), 1), ((2, 9, 40, 8), 1)])
def test_smooth_codes_come_back_nearly_exactly(shape, axis):
    codes = smooth_codes(shape)
    back = decoded(encode_tiles(codes, channel_axis=axis, quality=100), shape, channel_axis=axis)
    assert np.abs(back - codes).max() <= 3


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_any_axis_may_hold_the_channels(axis, rng):
    codes = rng.integers(100, 110, size=(2, 6, 8, 10)).astype(np.uint8)
    codes += (np.arange(codes.shape[axis]) * 12).astype(np.uint8).reshape([-1 if a == axis else 1 for a in range(4)])
    back = decoded(encode_tiles(codes, channel_axis=axis, quality=100), codes.shape, channel_axis=axis)
    assert np.abs(back - codes).max() <= 3


def test_lower_quality_takes_fewer_bytes(rng):
    features = np.maximum(rng.normal(size=(1, 16, 14, 14)), 0).astype(np.float32)
    sizes = [len(FeatureCodec(CodecProfile.parse(f"jpeg{q}")).encode(features).payload) for q in (95, 75, 30, 5)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4


def test_the_profile_stays_within_its_range_and_close(rng):
    base = np.linspace(0, 3, 16 * 16, dtype=np.float32).reshape(16, 16)
    features = np.stack([base * scale for scale in (0.5, 1, 2)])[np.newaxis]
    encoded = FeatureCodec(CodecProfile.parse("jpeg95")).encode(features)
    back = decode_tensor(encoded)
    assert back.min() >= encoded.ranges[0, 0]
    assert back.max() <= encoded.ranges[0, 1]
    assert np.abs(back - features).mean() < 0.02 * 6


def test_each_sample_is_an_image_of_its_own():
    assert len(images_in(encode_tiles(smooth_codes((3, 4, 9, 9)), channel_axis=1, quality=75))) == 3


def test_an_image_larger_than_jpeg_allows_is_refused_at_encoding():
    with pytest.raises(ValueError, match=f"JPEG allows {MAX_SIDE}"):
        encode_tiles(np.zeros((1, 1, 1, MAX_SIDE + 1), np.uint8), channel_axis=1, quality=75)


@pytest.mark.parametrize(
    ("why", "image", "options"),
    [
        ("wider", Image.new("L", (17, 16)), {}),
        ("transposed", Image.new("L", (8, 32)), {}),
        ("a bomb", Image.new("L", (8192, 8192)), {}),
        ("coloured", Image.new("RGB", (16, 16)), {}),
        ("progressive", Image.new("L", (16, 16)), {"progressive": True}),
        ("a PNG", Image.new("L", (16, 16)), {"format": "PNG"}),
        ("a GIF", Image.new("L", (16, 16)), {"format": "GIF"}),
    ],
)
def test_another_image_than_the_shape_says_is_refused(why, image, options):
    assert decoded(payload_of(Image.new("L", (16, 16))), (1, 4, 8, 8)).max() == 0
    with pytest.raises(MalformedFrameError):
        decoded(payload_of(image, **options), (1, 4, 8, 8))


def test_the_size_is_read_before_anything_is_decoded():
    # Nothing behind the header: decoding would fail in another way.
    file = payload_of(Image.new("L", (8192, 8192)))[4:]
    header = file[: file.index(b"\xff\xda") + 10]
    with pytest.raises(MalformedFrameError, match=r"L \(8192, 8192\); the shape says L \(16, 16\)"):
        decoded(struct.pack("<I", len(header)) + header, (1, 4, 8, 8))


def test_every_prefix_and_every_tail_is_refused():
    codes = smooth_codes((2, 4, 8, 8))
    payload = encode_tiles(codes, channel_axis=1, quality=75)
    for end in range(len(payload)):
        with pytest.raises(MalformedFrameError):
            decoded(payload[:end], codes.shape)
    with pytest.raises(MalformedFrameError, match="follow"):
        decoded(payload + b"\0", codes.shape)


def test_damaged_images_are_refused_or_decode_to_codes(rng):
    codes = smooth_codes((1, 4, 8, 8))
    payload = encode_tiles(codes, channel_axis=1, quality=75)
    for _ in range(2000):
        damaged = bytearray(payload)
        for _ in range(rng.integers(1, 6)):
            damaged[rng.integers(4, len(damaged))] = rng.integers(256)
        try:
            back = decoded(bytes(damaged), codes.shape)
        except MalformedFrameError:
            continue
        assert 0 <= back.min() <= back.max() <= 255
