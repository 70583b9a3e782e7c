"""Nothing inflates to anything but the size it is told, and nothing grows by being packed."""

from __future__ import annotations

import struct
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import lz4.block
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from split_inference.compression import (
    LZ4,
    LZ4HC,
    NONE,
    SEGMENT_BYTES,
    ZSTD,
    checked_segments,
    compress,
    inflate_into,
)
from split_inference.errors import MalformedFrameError, UnknownCodecError

PACKERS = (LZ4, LZ4HC, ZSTD)
ZEROS = bytes(2**20)


def decompressed(payload, compressor_id, raw_size):
    segments = checked_segments(payload, compressor_id, raw_size)
    target = np.empty(raw_size, np.uint8)
    inflate_into(target, segments, compressor_id)
    return target


def compressible(size):
    return np.resize(np.repeat(np.arange(50, dtype=np.uint8), 7), size)


@pytest.mark.parametrize("compressor_id", [NONE, *PACKERS])
@given(st.binary(min_size=1, max_size=200), st.integers(1, 20))
def test_decompressing_inverts_compressing_and_never_grows(compressor_id, piece, repeats):
    raw = np.frombuffer(piece * repeats, np.uint8)
    used_id, payload = compress(raw, compressor_id)
    assert used_id in (compressor_id, NONE)
    assert len(payload) <= raw.size
    assert (decompressed(payload, used_id, raw.size) == raw).all()


@pytest.mark.parametrize("compressor_id", PACKERS)
def test_bytes_that_do_not_shrink_are_stored_as_they_are(compressor_id, rng):
    raw = rng.integers(0, 256, size=5000).astype(np.uint8)
    assert compress(raw, compressor_id) == (NONE, raw.tobytes())
    assert compress(compressible(5000), compressor_id)[0] == compressor_id


@pytest.mark.parametrize("compressor_id", PACKERS)
@pytest.mark.parametrize("size", [SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 2 * SEGMENT_BYTES + 77])
def test_segments_leave_no_seam(compressor_id, size):
    raw = compressible(size)
    used_id, payload = compress(raw, compressor_id)
    assert used_id == compressor_id
    assert len(checked_segments(payload, used_id, size)) == -(-size // SEGMENT_BYTES)
    assert (decompressed(payload, used_id, size) == raw).all()


def test_one_segment_is_exactly_what_the_library_makes():
    raw = compressible(5000)
    assert compress(raw, LZ4)[1] == lz4.block.compress(raw.tobytes(), store_size=False)


@pytest.mark.parametrize("compressor_id", PACKERS)
@pytest.mark.parametrize("size", [300, SEGMENT_BYTES + 300])
def test_truncated_payloads_are_refused(compressor_id, size):
    payload = compress(compressible(size), compressor_id)[1]
    for end in [*range(min(30, len(payload))), len(payload) // 2, len(payload) - 1]:
        with pytest.raises(MalformedFrameError):
            decompressed(payload[:end], compressor_id, size)


@pytest.mark.parametrize("compressor_id", PACKERS)
def test_trailing_bytes_are_refused(compressor_id):
    payload = compress(compressible(300), compressor_id)[1]
    for tail in (b"\0", b"\xff" * 9, payload):
        with pytest.raises(MalformedFrameError):
            decompressed(payload + tail, compressor_id, 300)


@pytest.mark.parametrize("compressor_id", [NONE, *PACKERS])
@pytest.mark.parametrize("claimed", [1, 299, 301, 4000, SEGMENT_BYTES + 1, 64 * 2**20])
def test_a_payload_of_another_size_than_derived_is_refused(compressor_id, claimed):
    payload = compress(compressible(300), compressor_id)[1]
    with pytest.raises(MalformedFrameError):
        decompressed(payload, compressor_id, claimed)


@pytest.mark.parametrize(
    ("name", "compressor_id", "payload", "raw_size"),
    [
        ("lz4 to more than derived", LZ4, lz4.block.compress(ZEROS, store_size=False), 100),
        ("lz4 too short for what is derived", LZ4, lz4.block.compress(ZEROS, store_size=False), 64 * 2**20),
        ("zstd to more than derived", ZSTD, zstandard.compress(ZEROS), 100),
        ("zstd to less than derived", ZSTD, zstandard.compress(ZEROS), 64 * 2**20),
        ("empty", LZ4, b"", 64 * 2**20),
        ("empty zstd", ZSTD, b"", 64 * 2**20),
    ],
)
def test_a_bomb_is_refused_before_inflating(name, compressor_id, payload, raw_size):
    tracemalloc.start()
    with pytest.raises(MalformedFrameError):
        decompressed(payload, compressor_id, raw_size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**10, name


@pytest.mark.parametrize("claim", [1, 1000, 2**20 - 1, 2**20 + 1, 2 * SEGMENT_BYTES, 2**32 - 1])
def test_a_zstd_frame_that_lies_of_its_content_is_refused(claim):
    payload = bytearray(zstandard.compress(ZEROS))
    assert zstandard.get_frame_parameters(payload).content_size == len(ZEROS)
    struct.pack_into("<I", payload, 5, claim)  # behind magic and descriptor
    assert zstandard.get_frame_parameters(payload).content_size == claim
    for raw_size in {min(claim, 2 * SEGMENT_BYTES), len(ZEROS)}:
        with pytest.raises(MalformedFrameError):
            decompressed(bytes(payload), ZSTD, raw_size)


def test_a_zstd_frame_without_its_content_size_is_refused():
    with pytest.raises(MalformedFrameError, match="claims"):
        decompressed(zstandard.ZstdCompressor(write_content_size=False).compress(ZEROS), ZSTD, len(ZEROS))


def test_a_zstd_frame_with_a_window_larger_than_any_content_is_refused():
    parameters = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=True)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=len(ZEROS))
    payload = stream.compress(ZEROS[:10]) + stream.compress(ZEROS[10:]) + stream.flush()
    claimed = zstandard.get_frame_parameters(payload)
    if claimed.window_size <= SEGMENT_BYTES:
        # The library narrows the window to the content; widen it by hand, in the byte behind the descriptor.
        payload = payload[:4] + bytes([payload[4] & ~0x20, 17 << 3]) + payload[5:]
    assert zstandard.get_frame_parameters(payload).window_size > SEGMENT_BYTES
    with pytest.raises(MalformedFrameError):
        decompressed(payload, ZSTD, len(ZEROS))


def test_a_skippable_zstd_frame_is_refused():
    payload = b"\x50\x2a\x4d\x18" + struct.pack("<I", 100) + bytes(100)
    with pytest.raises(MalformedFrameError):
        decompressed(payload, ZSTD, 100)


@pytest.mark.parametrize("compressor_id", [4, 99, 255])
def test_an_unknown_id_is_refused(compressor_id):
    with pytest.raises(UnknownCodecError, match=f"compressor id {compressor_id}"):
        checked_segments(b"abc", compressor_id, 3)
    with pytest.raises(ValueError, match=f"compressor id {compressor_id}"):
        compress(compressible(10), compressor_id)


def test_what_is_inflated_shares_no_memory_with_the_payload():
    for compressor_id in (NONE, *PACKERS):
        used_id, payload = compress(compressible(300), compressor_id)
        buffer = bytearray(payload)
        target = decompressed(memoryview(buffer), used_id, 300)
        buffer[:] = bytes(len(buffer))
        assert (target == compressible(300)).all()


def test_threads_do_not_disturb_each_other():
    def round_trip(seed):
        raw = np.resize(np.random.default_rng(seed).integers(0, 4, size=3000), 60_000).astype(np.uint8)
        used_id, payload = compress(raw, ZSTD)
        return bool((decompressed(payload, used_id, raw.size) == raw).all())

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(round_trip, range(60)))
