"""Preprocessing: what the numbers mean, and what is refused before it costs anything."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from split_inference.errors import MalformedInputError, TooLargeError
from split_inference.preprocessing import ImagePreprocessing


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def resizes(monkeypatch):
    """Sizes that images are resized to; what would need gigabytes fails instead of being done."""
    sizes: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def counted(image, size, *arguments, **options):
        sizes.append(size)
        assert max(size[0] * size[1], *image.size) < 10_000_000, f"{image.size} resized to {size}"
        return resize(image, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", counted)
    return sizes


@pytest.mark.parametrize("size", [(65_000, 1), (1, 65_000), (2, 50_000)])
def test_a_line_of_pixels_is_no_way_to_ask_for_gigabytes(size, resizes):
    data = encoded(Image.new("RGB", size))
    assert len(data) < 10_000
    steps = ImagePreprocessing(height=224, width=224, shortest_edge=256)
    with pytest.raises(TooLargeError, match="pixels before it is cropped; at most 50000000 are made"):
        steps.apply(data)
    assert resizes == []
    assert steps.apply(encoded(Image.new("RGB", (100, 1)))).shape == (1, 3, 224, 224)


@pytest.mark.parametrize("size", [(20_000_000, 1), (1, 65_536)])
def test_a_line_longer_than_any_jpeg_is_refused_before_it_is_decoded(size, resizes):
    """Resizing one of 50 million pixels straight to a small square takes two gigabytes of weights."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
    with pytest.raises(TooLargeError, match="and 65535 along an edge"):
        ImagePreprocessing(height=8, width=8).apply(png)
    assert resizes == []
    assert ImagePreprocessing(height=8, width=8).apply(encoded(Image.new("L", (65_535, 1)))).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    "steps",
    [
        {"height": 32, "width": 48},
        {"height": 24, "width": 32, "shortest_edge": 40},
        {"height": 24, "width": 32, "shortest_edge": 40, "resample": "bicubic", "mean": [1, 2, 3], "std": [4, 5, 6]},
    ],
)
def test_a_card_from_before_resized_and_channels_gives_the_same_bits(rng, steps):
    image = noise(rng, 90, 130)
    kept = ImagePreprocessing.model_validate(steps)
    if kept.shortest_edge is None:
        small = image.resize((48, 32), Image.Resampling.BILINEAR)
    else:
        kind = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[kept.resample]
        small = image.resize((round(130 * 40 / 90), 40), kind).crop((13, 8, 45, 32))
    pixels = np.asarray(small, np.float32)
    wanted = (pixels - np.array(kept.mean, np.float32)) / np.array(kept.std, np.float32)
    np.testing.assert_array_equal(kept.apply(encoded(image))[0].transpose(1, 2, 0), wanted)


def noise(rng, height: int, width: int) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_pixels_are_normalised_per_channel(rng):
    image = noise(rng, 4, 6)
    steps = ImagePreprocessing(height=4, width=6, mean=(1, 2, 3), std=(10, 20, 40))
    got = steps.apply(encoded(image))
    want = (np.asarray(image, np.float32) - np.array([1, 2, 3], np.float32)) / np.array([10, 20, 40], np.float32)
    assert got.shape == (1, 3, 4, 6)
    assert got.dtype == np.float32
    assert np.array_equal(got[0].transpose(1, 2, 0), want)


def test_the_centre_is_cropped_after_the_shortest_edge_is_resized():
    image = Image.new("RGB", (40, 20))
    image.paste((255, 255, 255), (15, 0, 25, 20))  # the middle quarter is white
    steps = ImagePreprocessing(height=8, width=8, shortest_edge=16, resample="nearest")
    got = steps.apply(encoded(image))
    assert got.shape == (1, 3, 8, 8)
    assert got.min() == got.max() == 1.0


def test_a_picture_taken_sideways_is_turned_upright():
    image = Image.new("RGB", (2, 2))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    got = ImagePreprocessing(height=2, width=2).apply(encoded(image, exif=exif))
    assert got[0, 0].tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_every_colour_mode_becomes_rgb(mode):
    data = encoded(Image.new(mode, (3, 3)))
    assert ImagePreprocessing(height=3, width=3).apply(data).shape == (1, 3, 3, 3)


@pytest.mark.parametrize("data", [b"", b"no image", b"GIF89a" + bytes(20), b"\xff\xd8\xff\xe0" + bytes(50)])
def test_bytes_that_are_no_image_are_refused(data):
    with pytest.raises(MalformedInputError):
        ImagePreprocessing(height=8, width=8).apply(data)


def test_every_prefix_of_a_jpeg_is_refused_or_decodes(rng):
    data = encoded(noise(rng, 16, 16), "JPEG")
    for end in range(0, len(data), 7):
        with pytest.raises(MalformedInputError):
            ImagePreprocessing(height=8, width=8).apply(data[:end])


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("edge", [8_000, 11_000, 60_000])
def test_a_pixel_bomb_is_refused_before_it_is_decoded(edge):
    """Above our limit, in the range where Pillow only warns, and where Pillow refuses by itself."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", edge, edge, 8, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(1000))) + png_chunk(b"IEND", b"")
    tracemalloc.start()
    with pytest.raises(TooLargeError):
        ImagePreprocessing(height=8, width=8).apply(png)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_a_jpeg_of_hundreds_of_scans_is_refused_before_it_is_decoded(rng):
    data = encoded(noise(rng, 64, 64), "JPEG", progressive=True)
    last_scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(MalformedInputError, match="more than 32 scans"):
        ImagePreprocessing(height=8, width=8).apply(data[:-2] + 40 * last_scan + b"\xff\xd9")
    assert ImagePreprocessing(height=8, width=8).apply(data).shape == (1, 3, 8, 8)


def test_only_scans_of_the_picture_itself_count(rng):
    """Not those of a thumbnail among its metadata, nor what a phone puts behind its end."""
    data = encoded(noise(rng, 64, 64), "JPEG", progressive=True)
    comment = b"\xff\xfe" + struct.pack(">H", 402) + 200 * b"\xff\xda"
    trailer = 100 * b"\xff\xda\x00\x02"
    padded = data[:2] + comment + data[2:] + trailer
    expected = ImagePreprocessing(height=8, width=8).apply(data)
    np.testing.assert_array_equal(ImagePreprocessing(height=8, width=8).apply(padded), expected)


def exif_entry(tag: int, kind: int, content: bytes) -> bytes:
    count = len(content) if kind == 2 else 1
    return struct.pack("<HHI", tag, kind, count) + content.ljust(4, b"\0")


@pytest.mark.parametrize("tag", [0x0100, 0x011A])
def test_metadata_that_are_not_what_they_say_are_refused(rng, tag):
    """ImageWidth, XResolution as text, beside an orientation for which they are written again."""
    entries = exif_entry(tag, 2, b"ab\0") + exif_entry(0x0112, 3, b"\x06")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    with pytest.raises(MalformedInputError, match="cannot be decoded"):
        ImagePreprocessing(height=8, width=8).apply(encoded(noise(rng, 8, 8), "JPEG", exif=exif))


def test_the_pixel_limit_is_the_callers(rng):
    data = encoded(noise(rng, 10, 10))
    with pytest.raises(TooLargeError, match="10x10 pixels; at most 99"):
        ImagePreprocessing(height=8, width=8).apply(data, max_pixels=99)
    assert ImagePreprocessing(height=8, width=8).apply(data, max_pixels=100).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"height": 0}, "height"),
        ({"std": (1, 0, 1)}, "std"),
        ({"std": (1, float("nan"), 1)}, "std.*finite"),
        ({"mean": (1, float("inf"), 1)}, "mean.*finite"),
        ({"height": 100_000, "width": 100_000}, "10000000000 pixels are asked for; at most 50000000"),
        ({"shortest_edge": 8_000}, "64000000 pixels are asked for"),
        ({"resized": (8, 10_000_000)}, "80000000 pixels are asked for"),
        ({"shortest_edge": 4}, "shortest_edge"),
        ({"men": 1}, "men"),
    ],
)
def test_nonsense_is_refused(wrong, reason):
    with pytest.raises(ValidationError, match=f"(?s){reason}"):
        ImagePreprocessing.model_validate({"height": 8, "width": 8} | wrong)
