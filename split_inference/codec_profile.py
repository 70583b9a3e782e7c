"""A choice of quantizer and compressor as a value, with a short name; and the range that a calibration found.

Knows names, ids of compressors and limits. Knows no features and encodes nothing: that is feature_codec.py's.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from split_inference import compression, quantization
from split_inference.errors import UnknownCodecError

Quantizer = Literal["float32", "float16", "uniform", "tiled-jpeg"]
Compressor = Literal["none", "lz4", "lz4hc", "zstd"]

COMPRESSOR_IDS: Final[dict[Compressor, int]] = {
    "none": compression.NONE,
    "lz4": compression.LZ4,
    "lz4hc": compression.LZ4HC,
    "zstd": compression.ZSTD,
}
_NAME = re.compile(r"(float32|float16|u([1-8])(c?))(?:\+(none|lz4|lz4hc|zstd))?|jpeg([1-9]\d?|100)")
_KNOWN_NAMES = (
    "float32, float16, u1..u8 (u4c: a range per channel), each with +none, +lz4, +lz4hc or +zstd; jpeg1..jpeg100"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecProfile:
    """A choice of quantizer and compressor; equal profiles decode each other's bytes.

    An option that its quantizer ignores has to stay at its default, so equal names are equal profiles.

    >>> CodecProfile(bits=2).name, CodecProfile.parse("u4c+zstd").per_channel
    ('u2+lz4', True)
    """

    quantizer: Quantizer = "uniform"
    bits: int = 4
    """Of the uniform quantizer, 1..8."""
    per_channel: bool = False
    """One range per channel instead of one per tensor (uniform)."""
    compressor: Compressor = "lz4"
    jpeg_quality: int = 75
    """Of the tiled JPEG, 1..100."""

    def __post_init__(self) -> None:
        if self.quantizer not in get_args(Quantizer):
            raise ValueError(f"quantizer must be one of {get_args(Quantizer)}, got {self.quantizer!r}")
        if self.compressor not in COMPRESSOR_IDS:
            raise ValueError(f"compressor must be one of {tuple(COMPRESSOR_IDS)}, got {self.compressor!r}")
        if not quantization.MIN_BITS <= self.bits <= quantization.MAX_BITS:
            raise ValueError(f"bits must be {quantization.MIN_BITS}..{quantization.MAX_BITS}, got {self.bits}")
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality must be 1..100, got {self.jpeg_quality}")
        if self.quantizer != "uniform" and (self.bits, self.per_channel) != (4, False):
            raise ValueError(f"{self.quantizer} takes neither bits nor per_channel")
        if self.quantizer == "tiled-jpeg" and self.compressor != "lz4":
            raise ValueError("tiled-jpeg takes no compressor")
        if self.quantizer != "tiled-jpeg" and self.jpeg_quality != 75:
            raise ValueError(f"{self.quantizer} takes no jpeg_quality")

    @property
    def name(self) -> str:
        """Short name that `parse` reads back, as in "u4c+zstd"."""
        if self.quantizer == "tiled-jpeg":
            return f"jpeg{self.jpeg_quality}"
        quantizer = f"u{self.bits}{'c' * self.per_channel}" if self.quantizer == "uniform" else self.quantizer
        return f"{quantizer}+{self.compressor}"

    @classmethod
    def parse(cls, name: str) -> CodecProfile:
        """The profile of that name; without "+compressor" it is LZ4, and none for float32. Raises UnknownCodecError."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise UnknownCodecError(f"unknown codec {name!r}; known are {_KNOWN_NAMES}")
        quantizer, bits, per_channel, compressor, quality = match.groups()
        if quality is not None:
            return cls(quantizer="tiled-jpeg", jpeg_quality=int(quality))
        compressor = cast(Compressor, compressor or ("none" if quantizer == "float32" else "lz4"))
        if bits is not None:
            return cls(bits=int(bits), per_channel=bool(per_channel), compressor=compressor)
        return cls(quantizer=cast(Quantizer, quantizer), compressor=compressor)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipRange:
    """Calibrated range of the features, as low and high of the tensor or of each channel; values beyond are clipped."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.low or len(self.low) != len(self.high):
            raise ValueError(f"clip range needs as many lows as highs, got {len(self.low)} and {len(self.high)}")
        for low, high in zip(self.low, self.high, strict=True):
            if not (math.isfinite(low) and math.isfinite(high) and high - low >= quantization.MIN_WIDTH):
                raise ValueError(f"clip range must be finite with low < high, got {low} and {high}")

    def ranges(self) -> NDArray[np.float32]:
        """As float32 [R, 2]; raises ValueError where float32 makes low and high equal or infinite."""
        ranges = np.array((self.low, self.high)).T
        if np.abs(ranges).max() <= np.finfo(np.float32).max:
            ranges = ranges.astype(np.float32)
            if (ranges[:, 0] < ranges[:, 1]).all():
                return ranges
        raise ValueError("clip range is beyond float32, or narrower than it can tell apart")
