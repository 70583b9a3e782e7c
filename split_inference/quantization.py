"""Floats to small integers and back: ranges, codes and the one rule that says what a code means.

Knows nothing of packing, compression or frames. Shape legend: N samples, A elements between the sample axis and the
channel axis, C channels, B elements behind the channel axis. Every function works on such an NACB view, so that one
broadcast serves any channel axis; without channels it is [N, 1, 1, B].

A code means `float32(code) * step + low` with `step = float32((high - low) / (2**bits - 1))`, the division in float64:
two float32 roundings and no fused multiply-add, hence the same bits on every IEEE machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

MIN_BITS: Final = 1
MAX_BITS: Final = 8

# A constant tensor has no width. 2**-100 is far below anything a network tells apart, and still far enough above
# float32's smallest normal number (2**-126) that a 255th of it has a finite inverse.
MIN_WIDTH: Final = 2.0**-100

_LARGEST: Final = np.float32(np.finfo(np.float32).max)
_LARGEST_BUT_ONE: Final = np.nextafter(_LARGEST, np.float32(0))


def channel_grid(shape: tuple[int, ...], channel_axis: int | None) -> tuple[int, int, int, int]:
    """The four lengths N, A, C, B of a shape whose first axis counts samples; C = 1 without a channel axis."""
    if channel_axis is None:
        return shape[0], 1, 1, math.prod(shape[1:])
    return shape[0], math.prod(shape[1:channel_axis]), shape[channel_axis], math.prod(shape[channel_axis + 1 :])


def measured_ranges(features_NACB: NDArray[np.float32]) -> NDArray[np.float32]:
    """Smallest and largest value of each sample and channel, as [N * C, 2].

    A constant row is widened just enough to be a range, and decodes to the constant exactly.
    Raises ValueError for NaN and infinity, and where high - low is beyond float32.
    """
    low = features_NACB.min(axis=(1, 3)).reshape(-1)
    high = features_NACB.max(axis=(1, 3)).reshape(-1)
    refuse_non_finite(low, high)
    narrow = high - low.astype(np.float64) < MIN_WIDTH
    if narrow.any():
        low = np.where(narrow, np.minimum(low, _LARGEST_BUT_ONE), low)
        wider = np.maximum(low + np.float32(MIN_WIDTH), np.nextafter(low, _LARGEST))
        high = np.where(narrow, np.maximum(high, wider), high)
    return np.stack((low, high), axis=1)


def refuse_non_finite(low: NDArray[np.float32], high: NDArray[np.float32]) -> None:
    """Raise ValueError if these minima and maxima come from an array with NaN or infinity (both propagate)."""
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("features must be finite, got NaN or infinity")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scale:
    """What codes mean: arrays that broadcast over NACB."""

    low: NDArray[np.float32]
    step: NDArray[np.float32]
    levels: int
    """The highest code, 2**bits - 1."""

    @classmethod
    def of(cls, ranges: NDArray[np.float32], *, bits: int, grid: tuple[int, int, int, int]) -> Scale:
        """The scale of ranges [R, 2] with R = 1, C, N or N * C, over an array of the four lengths `grid`.

        Raises ValueError for another R, bits out of 1..8, and where the highest code would mean infinity.
        """
        if not MIN_BITS <= bits <= MAX_BITS:
            raise ValueError(f"bits must be {MIN_BITS}..{MAX_BITS}, got {bits}")
        samples, _, channels, _ = grid
        if len(ranges) not in (channels, samples * channels):
            raise ValueError(f"{len(ranges)} ranges for {samples} samples of {channels} channels")
        levels = 2**bits - 1
        low = ranges[:, 0]
        step = ((ranges[:, 1].astype(np.float64) - low) / levels).astype(np.float32)
        with np.errstate(over="ignore"):
            highest = step * np.float32(levels) + low
        if not np.isfinite(highest).all():
            raise ValueError(f"a range up to {ranges[:, 1].max():g} reaches beyond float32 at {bits} bits")
        shape = (len(ranges) // channels, 1, channels, 1)
        return cls(low=low.reshape(shape), step=step.reshape(shape), levels=levels)


def quantize(features_NACB: NDArray[np.float32], scale: Scale) -> NDArray[np.uint8]:
    """Round to the nearest level; flat codes in C order. Values beyond a range get its nearest end.

    Inside its range each value's error is at most half a step, up to float32 rounding.
    """
    # Far beyond its range a value may become infinite here, and is clipped like any other.
    with np.errstate(over="ignore"):
        scaled = features_NACB - scale.low
        scaled *= np.float32(1.0) / scale.step
    np.rint(scaled, out=scaled)
    # Not maximum and minimum: against a scalar NumPy's are a fifth as fast as clip.
    np.clip(scaled, 0, scale.levels, out=scaled)
    return scaled.astype(np.uint8).reshape(-1)


def dequantize(codes_NACB: NDArray[np.float32], scale: Scale) -> None:
    """Turn codes, held as float32, into the values they mean, in place.

    >>> values = np.float32([0, 1, 3]).reshape(1, 1, 1, 3)
    >>> dequantize(values, Scale.of(np.float32([[-1, 5]]), bits=2, grid=values.shape))
    >>> values.ravel().tolist()
    [-1.0, 1.0, 5.0]
    """
    codes_NACB *= scale.step
    codes_NACB += scale.low
