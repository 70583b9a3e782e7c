"""Bytes to fewer bytes and back, by id; never inflates to anything but the size it is told.

Knows no tensors. The receiver derives the raw size itself and passes it in; whatever size the packed bytes claim is
compared with it and otherwise ignored.

Raw bytes are compressed in segments of 1 MiB; every packed segment but the last is preceded by its length (u32,
little-endian). Nearly all features fit in one segment, which then costs no byte. Segments bound what decoding needs
beside its output: LZ4's block function holds its result twice.
"""

from __future__ import annotations

import struct
import threading
from typing import Final

import lz4.block
import numpy as np
import zstandard
from numpy.typing import NDArray

from split_inference.errors import MalformedFrameError, UnknownCodecError

NONE: Final = 0
LZ4: Final = 1
LZ4HC: Final = 2
ZSTD: Final = 3

SEGMENT_BYTES: Final = 2**20

# The format's own ceiling: one more byte of an LZ4 length field stands for at most 255 bytes of output.
_LZ4_MOST_TO_ONE: Final = 255
_LZ4HC_LEVEL: Final = 9
_ZSTD_LEVEL: Final = 3
_LENGTH: Final = struct.Struct("<I")


class _ZstdOfThread(threading.local):
    """Zstandard's contexts: slow to make and not safe to share between threads."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_content_size=True)
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=SEGMENT_BYTES)


_zstd = _ZstdOfThread()


def compress(raw: NDArray[np.uint8], compressor_id: int) -> tuple[int, bytes]:
    """Pack flat bytes; return (compressor id, payload).

    The payload is never larger than `raw`: where packing gains nothing the bytes are stored and the id is NONE.
    """
    if compressor_id != NONE:
        last_start = (raw.size - 1) // SEGMENT_BYTES * SEGMENT_BYTES
        parts = []
        for start in range(0, raw.size, SEGMENT_BYTES):
            packed = _pack(raw[start : start + SEGMENT_BYTES], compressor_id)
            if start != last_start:
                parts.append(_LENGTH.pack(len(packed)))
            parts.append(packed)
        payload = parts[0] if len(parts) == 1 else b"".join(parts)
        if len(payload) < raw.size:
            return compressor_id, payload
    return NONE, raw.tobytes()


def checked_segments(payload: bytes | memoryview, compressor_id: int, raw_size: int) -> list[memoryview]:
    """Cut `payload` into its packed segments, for `inflate_into`, without inflating any.

    Raises MalformedFrameError where the packed bytes show that they cannot unpack to `raw_size` bytes, and
    UnknownCodecError for an id without a meaning.
    """
    rest = memoryview(payload)
    if compressor_id == NONE:
        if len(rest) != raw_size:
            raise MalformedFrameError(f"stored payload is {len(rest)} bytes; shape and bits say {raw_size}")
        return [rest]
    if compressor_id not in (LZ4, LZ4HC, ZSTD):
        raise UnknownCodecError(f"compressor id {compressor_id} has no meaning here; known are {NONE}..{ZSTD}")
    check = _check_zstd if compressor_id == ZSTD else _check_lz4
    segments = []
    while raw_size > SEGMENT_BYTES:
        if len(rest) < _LENGTH.size:
            raise MalformedFrameError("payload ends inside a segment's length")
        (length,) = _LENGTH.unpack_from(rest)
        rest = rest[_LENGTH.size :]
        if length > len(rest):
            raise MalformedFrameError(f"segment is said to be {length} bytes; {len(rest)} are left")
        check(rest[:length], SEGMENT_BYTES)
        segments.append(rest[:length])
        rest = rest[length:]
        raw_size -= SEGMENT_BYTES
    check(rest, raw_size)
    return [*segments, rest]


def inflate_into(target: NDArray[np.uint8], segments: list[memoryview], compressor_id: int) -> None:
    """Fill flat `target` with what the checked segments unpack to, and share no memory with them.

    Raises MalformedFrameError unless that is exactly as long as `target`.
    """
    if compressor_id == NONE:
        target[:] = np.frombuffer(segments[0], np.uint8)
        return
    for index, packed in enumerate(segments):
        _inflate_segment(target[index * SEGMENT_BYTES : (index + 1) * SEGMENT_BYTES], packed, compressor_id)


def _inflate_segment(target: NDArray[np.uint8], packed: memoryview, compressor_id: int) -> None:
    unpack = _unpack_zstd if compressor_id == ZSTD else _unpack_lz4
    raw = unpack(packed, target.size)
    if len(raw) != target.size:
        raise MalformedFrameError(f"payload unpacks to {len(raw)} bytes; shape and bits say {target.size}")
    target[:] = np.frombuffer(raw, np.uint8)


def _pack(raw: NDArray[np.uint8], compressor_id: int) -> bytes:
    packed: bytes
    if compressor_id == LZ4:
        packed = lz4.block.compress(raw, store_size=False)
    elif compressor_id == LZ4HC:
        packed = lz4.block.compress(raw, mode="high_compression", compression=_LZ4HC_LEVEL, store_size=False)
    elif compressor_id == ZSTD:
        packed = _zstd.compressor.compress(raw.data)
    else:
        raise ValueError(f"compressor id {compressor_id} has no meaning here; known are {NONE}..{ZSTD}")
    return packed


def _check_lz4(packed: memoryview, raw_size: int) -> None:
    if raw_size > _LZ4_MOST_TO_ONE * len(packed):
        raise MalformedFrameError(f"{len(packed)} bytes of LZ4 cannot hold {raw_size}")


def _check_zstd(packed: memoryview, raw_size: int) -> None:
    # zstandard's decompress() allocates what the frame claims, whatever limit it is given: read the claim first.
    try:
        claimed = zstandard.get_frame_parameters(packed)
    except zstandard.ZstdError as error:
        raise MalformedFrameError(f"payload is not a zstd frame: {error}") from None
    if claimed.content_size != raw_size:
        raise MalformedFrameError(f"zstd frame claims {claimed.content_size} bytes; shape and bits say {raw_size}")
    if claimed.window_size > SEGMENT_BYTES or claimed.dict_id:
        raise MalformedFrameError(f"zstd frame wants a window of {claimed.window_size} bytes or a dictionary")


def _unpack_lz4(packed: memoryview, raw_size: int) -> bytes:
    try:
        raw: bytes = lz4.block.decompress(packed, uncompressed_size=raw_size)
    except lz4.block.LZ4BlockError as error:
        raise MalformedFrameError(f"payload is not LZ4 of {raw_size} bytes: {error}") from None
    return raw


def _unpack_zstd(packed: memoryview, raw_size: int) -> bytes:
    try:
        return _zstd.decompressor.decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise MalformedFrameError(f"payload is not zstd of {raw_size} bytes: {error}") from None
