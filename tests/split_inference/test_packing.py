"""Bit planes hold what went in, in the documented order, at any length."""

from __future__ import annotations

import doctest
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from split_inference import packing
from split_inference.packing import pack_planes, packed_bytes, plane_bytes, planes_of_rows, unpack_planes


def u8(values):
    return np.array(values, np.uint8)


BITS_AND_CODES = st.integers(1, 8).flatmap(
    lambda bits: st.tuples(
        st.just(bits), arrays.arrays(np.uint8, st.integers(1, 100), elements=st.integers(0, 2**bits - 1))
    )
)


@pytest.mark.parametrize(
    ("codes", "bits", "planes"),
    [
        ([1], 1, [[0b10000000]]),
        ([0, 1], 1, [[0b01000000]]),
        ([2], 2, [[0b10000000], [0]]),
        ([1], 2, [[0], [0b10000000]]),
        ([3, 0, 1, 0, 0, 0, 0, 2], 2, [[0b10000001], [0b10100000]]),
        ([1] * 9, 1, [[0xFF, 0b10000000]]),
        ([0x80, 0x01], 8, [[0b10000000], *[[0]] * 6, [0b01000000]]),
    ],
)
def test_planes_are_laid_out_as_documented(codes, bits, planes):
    assert pack_planes(u8(codes), bits=bits).tolist() == planes
    out = np.empty(len(codes), np.uint8)
    unpack_planes(u8(planes), out=out)
    assert out.tolist() == codes


@given(BITS_AND_CODES)
def test_unpacking_inverts_packing(bits_and_codes):
    bits, codes = bits_and_codes
    planes = pack_planes(codes, bits=bits)
    assert planes.shape == (bits, plane_bytes(codes.size))
    assert planes.size == packed_bytes(codes.size, bits=bits)
    out = np.empty(codes.size, np.float32)
    unpack_planes(planes, out=out)
    assert (out == codes).all()


@pytest.mark.parametrize("count", [(1 << 16) - 1, 1 << 16, (1 << 16) + 1, 3 * (1 << 16) + 5])
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_blocks_leave_no_seam(count, bits, rng):
    codes = rng.integers(0, 2**bits, size=count).astype(np.uint8)
    planes = pack_planes(codes, bits=bits)
    whole = np.packbits((codes >> (bits - 1)) & 1)
    assert (planes[0] == whole).all()
    out = np.empty(count, np.float32)
    unpack_planes(planes, out=out)
    assert (out == codes).all()


def test_unpacking_needs_no_memory_that_grows_with_the_tensor(rng):
    planes = rng.integers(0, 256, size=(8, 1 << 18)).astype(np.uint8)
    out = np.empty(1 << 21, np.float32)
    tracemalloc.start()
    unpack_planes(planes, out=out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 2**20


def test_the_examples_in_the_documentation_run():
    assert doctest.testmod(packing, extraglobs={"np": np}).failed == 0


@given(st.integers(1, 8), st.integers(1, 6), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_planes_of_rows_are_those_of_each_row_packed_alone(bits, rows, row_codes, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, row_codes)).astype(np.uint8)
    out = np.full((rows, bits, plane_bytes(row_codes)), 0xAA, np.uint8)
    planes = pack_planes(codes.reshape(-1), bits=bits)
    # Whatever a sender left behind the last code is nobody's.
    planes[:, -1] |= 0xFF >> (8 - -codes.size % 8)
    planes_of_rows(planes, row_codes=row_codes, out=out)
    np.testing.assert_array_equal(out, np.stack([pack_planes(row, bits=bits) for row in codes]))
