"""Small integers to bit planes and back.

Plane b holds bit b of every code, eight codes to a byte: the upper planes of few-bit features are mostly zero, which a
byte-wise compressor sees only once they lie apart. The most significant plane comes first. Knows no ranges and no
compressor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Codes handled at a time: eight bits of each lie open as bytes (512 KiB), which stays in a core's second-level cache
# and keeps the memory of unpacking independent of the tensor's size. A multiple of 8, so blocks end between bytes.
_BLOCK = 1 << 16


def plane_bytes(count: int) -> int:
    """Bytes of one plane of `count` codes."""
    return (count + 7) // 8


def packed_bytes(count: int, *, bits: int) -> int:
    """Bytes of all planes of `count` codes."""
    return bits * plane_bytes(count)


def pack_planes(codes: NDArray[np.uint8], *, bits: int) -> NDArray[np.uint8]:
    """Planes [bits, bytes] of flat codes below 2**bits, most significant first; the last byte is filled with zeros.

    >>> pack_planes(np.uint8([3, 0, 1, 0, 0, 0, 0, 2]), bits=2).tolist()
    [[129], [160]]
    """
    masks = np.left_shift(1, np.arange(bits - 1, -1, -1)).astype(np.uint8)[:, np.newaxis]
    if codes.size <= _BLOCK:
        return np.packbits(codes & masks, axis=1)
    planes = np.empty((bits, plane_bytes(codes.size)), np.uint8)
    for start in range(0, codes.size, _BLOCK):
        block = np.packbits(codes[start : start + _BLOCK] & masks, axis=1)
        planes[:, start // 8 : start // 8 + block.shape[1]] = block
    return planes


def unpack_planes(planes: NDArray[np.uint8], *, out: NDArray[Any]) -> None:
    """Write the codes that `planes` [bits, bytes] hold into flat `out`, whose dtype may be any that holds them.

    >>> codes = np.empty(8, np.float32)
    >>> unpack_planes(np.uint8([[129], [160]]), out=codes)
    >>> codes.tolist()
    [3.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 2.0]
    """
    for start in range(0, out.size, _BLOCK):
        count = min(_BLOCK, out.size - start)
        bits = np.unpackbits(planes[:, start // 8 : start // 8 + plane_bytes(count)], axis=1)
        codes = bits[0]
        for plane in bits[1:]:
            # Doubling by addition: NumPy has a SIMD loop for it, and none for shifting bytes.
            np.add(codes, codes, out=codes)
            np.bitwise_or(codes, plane, out=codes)
        out[start : start + count] = codes[:count]


def planes_of_rows(planes: NDArray[np.uint8], *, row_codes: int, out: NDArray[np.uint8]) -> None:
    """Divide `planes` [bits, bytes] of N rows behind one another into planes of each row, `out` [N, bits, bytes].

    Each row of `row_codes` codes begins with a byte of its own and ends in zero bits, as if it had been packed alone:
    whoever unpacks it elsewhere needs no neighbour.

    >>> out = np.empty((2, 1, 1), np.uint8)
    >>> planes_of_rows(pack_planes(np.uint8([1, 1, 1, 0, 1, 0]), bits=1), row_codes=3, out=out)
    >>> [f"{row:08b}" for row in out.ravel().tolist()]
    ['11100000', '01000000']
    """
    rows, bits, width = out.shape
    if row_codes % 8 == 0:
        out[:] = planes.reshape(bits, rows, width).swapaxes(0, 1)
        return
    for row in range(rows):
        start, shift = divmod(row * row_codes, 8)
        np.left_shift(planes[:, start : start + width], shift, out=out[row])
        if shift:
            # The last row may end before the byte that others borrow from.
            following = planes[:, start + 1 : start + 1 + width] >> (8 - shift)
            out[row, :, : following.shape[1]] |= following
    out[:, :, -1] &= 0xFF << (-row_codes % 8) & 0xFF
