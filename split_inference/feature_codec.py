"""float32 features -> quantizer -> bit planes -> compressor, and back; a codec profile is one such choice, as a value.

Decoding needs no profile: an encoded tensor says by ids how it was made. An id never changes its meaning; a changed
codec gets a new one (docs/how-to/add-a-codec.md). Knows NumPy arrays and no frames, no torch and no model.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from split_inference import compression, packing, quantization, tiled_jpeg
from split_inference.codec_profile import COMPRESSOR_IDS, ClipRange, CodecProfile
from split_inference.errors import FeatureMismatchError, MalformedFrameError, UnknownCodecError

FLOAT32: Final = 0
FLOAT16: Final = 1
UNIFORM_PER_TENSOR: Final = 2
UNIFORM_PER_CHANNEL: Final = 3
TILED_JPEG: Final = 4

DTYPES: Final = ("float32", "float16")

_LARGEST: Final = np.finfo(np.float32).max
# Halfway between float32's largest number and the next power of two: from here on rounding gives infinity.
_WIDEST: Final = float(_LARGEST) + 2.0**103
_BAD_RANGES: Final = "ranges must be finite with low < high, and their width within float32"

# Halfway between float16's largest number and the next power of two: from here on rounding gives infinity.
_FLOAT16_OVERFLOW: Final = 65_520.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EncodedTensor:
    """What a frame carries for one tensor.

    Refuses, with ValueError, what no codec can mean: an empty shape, an axis that is not there, a range that is not
    finite with low < high, or whose width is beyond float32. Ids are not judged here: a newer sender may know more.
    """

    shape: tuple[int, ...]
    """Samples first."""
    dtype: str
    """Of the features before encoding, "float32" or "float16"; decoding gives float32, exact for both."""
    quantizer_id: int
    bits: int
    """Per element before compression: 32 and 16 of the floats, 8 of the tiled JPEG."""
    compressor_id: int
    channel_axis: int
    """Where a quantizer counts channels; 0 where it does not."""
    ranges: NDArray[np.float32]
    """Low and high, [R, 2]; R is 0, 1, C, N or N * C."""
    payload: bytes | memoryview

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"shape must have at least one element, got {self.shape}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {DTYPES}, got {self.dtype!r}")
        if not 0 <= self.channel_axis < len(self.shape):
            raise ValueError(f"channel axis {self.channel_axis} of {len(self.shape)} axes")
        if self.ranges.ndim != 2 or self.ranges.shape[1] != 2 or self.ranges.dtype != np.float32:
            raise ValueError(f"ranges must be float32 [R, 2], got {self.ranges.dtype} {list(self.ranges.shape)}")
        if len(self.ranges) == 1:
            # Nearly every frame; in Python's floats a tenth of the time of NumPy's for two numbers.
            low, high = self.ranges.tolist()[0]
            if not 0 < high - low < _WIDEST:
                raise ValueError(_BAD_RANGES)
        elif len(self.ranges):
            with np.errstate(over="ignore", invalid="ignore"):
                width = self.ranges[:, 1] - self.ranges[:, 0]
            # One test for all: NaN fails every comparison, and an infinite end makes an infinite or NaN width.
            if not (width.min() > 0 and width.max() <= _LARGEST):
                raise ValueError(_BAD_RANGES)


class FeatureCodec:
    """Encodes features with one profile; holds no state between calls, so threads may share it.

    Without `clip`, ranges are measured per sample: what a sample decodes to never depends on its neighbours.
    """

    def __init__(self, profile: CodecProfile, *, clip: ClipRange | None = None, channel_axis: int = 1) -> None:
        if channel_axis < 1:
            raise ValueError(f"channel_axis must be at least 1 (axis 0 counts samples), got {channel_axis}")
        if clip is not None and profile.quantizer in ("float32", "float16"):
            raise ValueError(f"{profile.name} has no ranges to clip")
        if clip is not None and len(clip.low) > 1 and not profile.per_channel:
            raise ValueError(f"{profile.name} has one range, the clip range {len(clip.low)}")
        self.profile = profile
        self.clip = clip
        self.channel_axis = channel_axis
        self._clip_ranges = clip.ranges() if clip is not None else None

    def __repr__(self) -> str:
        return f"FeatureCodec({self.profile.name}, clip={self.clip}, channel_axis={self.channel_axis})"

    def encode(self, features: NDArray[np.float32]) -> EncodedTensor:
        """Encode features [N, ...], float32 or float16, of any memory layout.

        Raises ValueError for an empty array, NaN or infinity, a dtype or a number of channels that does not fit, and
        values beyond what the profile can hold.
        """
        if features.ndim == 0 or features.size == 0:
            raise ValueError(f"features must have at least one element, got shape {features.shape}")
        if features.dtype not in (np.float32, np.float16):
            raise ValueError(f"features must be float32 or float16, got {features.dtype}")
        values = np.ascontiguousarray(features, np.float32)
        if self.profile.quantizer in ("float32", "float16"):
            return self._pass_through(values, features.dtype.name)
        return self._quantized(values, features.dtype.name)

    def _pass_through(self, values: NDArray[np.float32], dtype: str) -> EncodedTensor:
        low, high = values.min(), values.max()
        quantization.refuse_non_finite(low, high)
        half = self.profile.quantizer == "float16"
        if half and max(-low, high) >= _FLOAT16_OVERFLOW:
            raise ValueError(f"values from {low:g} to {high:g} do not fit in float16 (largest 65504)")
        raw = values.astype("<f2" if half else "<f4", copy=False).reshape(-1).view(np.uint8)
        compressor_id, payload = compression.compress(raw, COMPRESSOR_IDS[self.profile.compressor])
        return EncodedTensor(
            shape=values.shape,
            dtype=dtype,
            quantizer_id=FLOAT16 if half else FLOAT32,
            bits=16 if half else 32,
            compressor_id=compressor_id,
            channel_axis=0,
            ranges=np.empty((0, 2), np.float32),
            payload=payload,
        )

    def _quantized(self, values: NDArray[np.float32], dtype: str) -> EncodedTensor:
        jpeg = self.profile.quantizer == "tiled-jpeg"
        uses_channels = jpeg or self.profile.per_channel
        if uses_channels and self.channel_axis >= values.ndim:
            raise ValueError(f"channel_axis {self.channel_axis} is not an axis of features {values.shape}")
        bits = tiled_jpeg.BITS if jpeg else self.profile.bits
        grid = quantization.channel_grid(values.shape, self.channel_axis if self.profile.per_channel else None)
        view_NACB = values.reshape(grid)
        if self._clip_ranges is None:
            ranges = quantization.measured_ranges(view_NACB)
        else:
            quantization.refuse_non_finite(values.min(), values.max())
            ranges = self._ranges_for(channels=grid[2])
        codes = quantization.quantize(view_NACB, quantization.Scale.of(ranges, bits=bits, grid=grid))
        if jpeg:
            quantizer_id, compressor_id = TILED_JPEG, compression.NONE
            payload = tiled_jpeg.encode_tiles(
                codes.reshape(values.shape), channel_axis=self.channel_axis, quality=self.profile.jpeg_quality
            )
        else:
            quantizer_id = UNIFORM_PER_CHANNEL if self.profile.per_channel else UNIFORM_PER_TENSOR
            planes = packing.pack_planes(codes, bits=bits)
            compressor_id, payload = compression.compress(planes.reshape(-1), COMPRESSOR_IDS[self.profile.compressor])
        return EncodedTensor(
            shape=values.shape,
            dtype=dtype,
            quantizer_id=quantizer_id,
            bits=bits,
            compressor_id=compressor_id,
            channel_axis=self.channel_axis if uses_channels else 0,
            ranges=ranges,
            payload=payload,
        )

    def _ranges_for(self, *, channels: int) -> NDArray[np.float32]:
        assert self._clip_ranges is not None
        if len(self._clip_ranges) == 1:
            return np.repeat(self._clip_ranges, channels, axis=0)
        if len(self._clip_ranges) != channels:
            raise ValueError(f"features have {channels} channels, the clip range {len(self._clip_ranges)}")
        return self._clip_ranges


def decode_tensor(encoded: EncodedTensor, *, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """The float32 features of `encoded`, in its shape: writable, C-contiguous, sharing no memory with the payload.

    `out` takes the result instead of a new array, and is returned; ValueError unless it fits. Raises
    UnknownCodecError for an id without a meaning here, MalformedFrameError where ranges or payload do not fit the
    shape, and FeatureMismatchError for NaN or infinity. Beside the result it allocates less memory than a
    large result takes: a quarter at 8 bits, a half for float16, and at most about 4 MiB.
    """
    if out is not None and (out.shape != encoded.shape or out.dtype != np.float32 or not out.flags.c_contiguous):
        raise ValueError(f"out must be C-contiguous float32 {encoded.shape}, got {out.dtype} {out.shape}")
    if encoded.quantizer_id in (FLOAT32, FLOAT16):
        return _decode_floats(encoded, out)
    if encoded.quantizer_id in (UNIFORM_PER_TENSOR, UNIFORM_PER_CHANNEL):
        return _decode_planes(encoded, out)
    if encoded.quantizer_id == TILED_JPEG:
        return _decode_jpeg(encoded, out)
    raise UnknownCodecError(
        f"quantizer id {encoded.quantizer_id} has no meaning here; known are {FLOAT32}..{TILED_JPEG}"
    )


def holds_codes(encoded: EncodedTensor) -> bool:
    """Whether the tensor travels as codes and a scale, so that `decode_codes` can read it."""
    return encoded.quantizer_id in (UNIFORM_PER_TENSOR, UNIFORM_PER_CHANNEL, TILED_JPEG)


def quantizer_name(encoded: EncodedTensor) -> str:
    """The profile's name without its compressor: "u4", "u4c", "jpeg", "float16"; "unknown" for another id."""
    if encoded.quantizer_id in (UNIFORM_PER_TENSOR, UNIFORM_PER_CHANNEL):
        return f"u{encoded.bits}{'c' if encoded.quantizer_id == UNIFORM_PER_CHANNEL else ''}"
    return {FLOAT32: "float32", FLOAT16: "float16", TILED_JPEG: "jpeg"}.get(encoded.quantizer_id, "unknown")


def decode_codes(encoded: EncodedTensor, *, out: NDArray[np.uint8]) -> quantization.Scale:
    """Write the codes of `encoded` into `out` and give the scale that says what they mean.

    For whoever dequantises elsewhere, as on a GPU: a quarter of the bytes of the floats. The scale's arrays broadcast
    over the tensor seen as NACB, with C = 1 unless it has a range per channel. ValueError unless `out` fits and the
    tensor holds codes; else raises as decode_tensor does.
    """
    if out.shape != encoded.shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(f"out must be C-contiguous uint8 {encoded.shape}, got {out.dtype} {out.shape}")
    if not holds_codes(encoded):
        raise ValueError(f"a {quantizer_name(encoded)} tensor holds no codes")
    if encoded.quantizer_id == TILED_JPEG:
        scale = _jpeg_scale(encoded)
        tiled_jpeg.decode_tiles_into(out, encoded.payload, channel_axis=encoded.channel_axis)
        return scale
    scale, planes = _scale_and_planes(encoded)
    packing.unpack_planes(planes, out=out.reshape(-1))
    return scale


def holds_planes(encoded: EncodedTensor) -> bool:
    """Whether the tensor travels as bit planes and a scale, so that `decode_planes` can read it."""
    return encoded.quantizer_id in (UNIFORM_PER_TENSOR, UNIFORM_PER_CHANNEL)


def planes_shape(shape: Sequence[int], *, bits: int) -> tuple[int, int, int]:
    """Of what `decode_planes` writes for a tensor of this shape: samples, bits, bytes of one sample's plane."""
    return int(shape[0]), bits, packing.plane_bytes(math.prod(int(length) for length in shape[1:]))


def decode_planes(encoded: EncodedTensor, *, out: NDArray[np.uint8]) -> quantization.Scale:
    """Write the bit planes of each sample into `out` [N, bits, bytes] and give the scale that says what codes mean.

    For whoever unpacks and dequantises elsewhere, as on a GPU: `bits` eighths of the bytes of the codes. Planes lie as
    `packing.pack_planes` makes them of one sample: the most significant first, the first code in a byte's highest bit,
    zeros behind the last one. ValueError unless `out` fits and the tensor holds planes; else raises as decode_tensor
    does, and before anything is inflated where the payload cannot be as long as the shape says.
    """
    expected = planes_shape(encoded.shape, bits=encoded.bits)
    if out.shape != expected or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(f"out must be C-contiguous uint8 {expected}, got {out.dtype} {out.shape}")
    if not holds_planes(encoded):
        raise ValueError(f"a {quantizer_name(encoded)} tensor holds no bit planes")
    row_codes = math.prod(encoded.shape[1:])
    if encoded.shape[0] > 1 or row_codes % 8:
        scale, planes = _scale_and_planes(encoded)
        packing.planes_of_rows(planes, row_codes=row_codes, out=out)
        return scale
    # One sample, as nearly every frame has, is what was packed: it is inflated where it is wanted.
    scale, segments = _scale_and_segments(encoded)
    compression.inflate_into(out.reshape(-1), segments, encoded.compressor_id)
    return scale


def raw_bytes(shape: Sequence[int]) -> int:
    """Bytes of a float32 tensor of that shape, as a Python integer that cannot overflow."""
    return 4 * math.prod(int(length) for length in shape)


def _decode_floats(encoded: EncodedTensor, out: NDArray[np.float32] | None) -> NDArray[np.float32]:
    half = encoded.quantizer_id == FLOAT16
    if encoded.bits != (16 if half else 32) or len(encoded.ranges):
        raise MalformedFrameError(f"a float tensor with {encoded.bits} bits and {len(encoded.ranges)} ranges")
    count = math.prod(encoded.shape)
    segments = compression.checked_segments(encoded.payload, encoded.compressor_id, count * encoded.bits // 8)
    out = np.empty(encoded.shape, np.float32) if out is None else out
    flat = out.reshape(-1)
    target = np.empty(count, "<f2") if half else flat
    compression.inflate_into(target.view(np.uint8), segments, encoded.compressor_id)
    # Hostile floats may be signalling NaNs, which warn when they are converted or compared.
    with np.errstate(invalid="ignore"):
        if half:
            flat[:] = target
        elif sys.byteorder == "big":
            flat.byteswap(inplace=True)
        finite = np.isfinite(flat.min()) and np.isfinite(flat.max())
    if not finite:
        raise FeatureMismatchError("features must be finite; the frame holds NaN or infinity")
    return out


def _decode_planes(encoded: EncodedTensor, out: NDArray[np.float32] | None) -> NDArray[np.float32]:
    scale, planes = _scale_and_planes(encoded)
    out = np.empty(encoded.shape, np.float32) if out is None else out
    packing.unpack_planes(planes, out=out.reshape(-1))
    quantization.dequantize(out.reshape(_grid(encoded)), scale)
    return out


def _scale_and_planes(encoded: EncodedTensor) -> tuple[quantization.Scale, NDArray[np.uint8]]:
    scale, segments = _scale_and_segments(encoded)
    planes = np.empty((encoded.bits, packing.plane_bytes(math.prod(encoded.shape))), np.uint8)
    compression.inflate_into(planes.reshape(-1), segments, encoded.compressor_id)
    return scale, planes


def _scale_and_segments(encoded: EncodedTensor) -> tuple[quantization.Scale, list[memoryview]]:
    per_channel = encoded.quantizer_id == UNIFORM_PER_CHANNEL
    if per_channel != (encoded.channel_axis > 0):
        raise MalformedFrameError(f"quantizer id {encoded.quantizer_id} with channel axis {encoded.channel_axis}")
    scale = _scale(encoded, _grid(encoded))
    raw_size = packing.packed_bytes(math.prod(encoded.shape), bits=encoded.bits)
    return scale, compression.checked_segments(encoded.payload, encoded.compressor_id, raw_size)


def _grid(encoded: EncodedTensor) -> tuple[int, int, int, int]:
    per_channel = encoded.quantizer_id == UNIFORM_PER_CHANNEL
    return quantization.channel_grid(encoded.shape, encoded.channel_axis if per_channel else None)


def _decode_jpeg(encoded: EncodedTensor, out: NDArray[np.float32] | None) -> NDArray[np.float32]:
    scale = _jpeg_scale(encoded)
    out = np.empty(encoded.shape, np.float32) if out is None else out
    tiled_jpeg.decode_tiles_into(out, encoded.payload, channel_axis=encoded.channel_axis)
    quantization.dequantize(out.reshape(_grid(encoded)), scale)
    return out


def _jpeg_scale(encoded: EncodedTensor) -> quantization.Scale:
    if encoded.bits != tiled_jpeg.BITS or encoded.compressor_id != compression.NONE or encoded.channel_axis < 1:
        raise MalformedFrameError(
            f"a tiled JPEG with {encoded.bits} bits, compressor id {encoded.compressor_id} "
            f"and channel axis {encoded.channel_axis}"
        )
    return _scale(encoded, _grid(encoded))


def _scale(encoded: EncodedTensor, grid: tuple[int, int, int, int]) -> quantization.Scale:
    try:
        return quantization.Scale.of(encoded.ranges, bits=encoded.bits, grid=grid)
    except ValueError as error:
        raise MalformedFrameError(str(error)) from None
