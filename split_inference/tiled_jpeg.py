"""The tiled JPEG codec: eight-bit features as one grey image per sample, channels side by side.

Each channel is a tile, tiles fill a near-square grid row by row, unused tiles are black, and Pillow's baseline JPEG
does the rest: lossy, so no half-step bound holds. Each JPEG is preceded by its length (u32, little-endian). Samples
are images of their own, because JPEG's 8x8 blocks would let neighbours in one image change each other.

Knows codes and shapes; ranges and what a code means belong to quantization.py.
"""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from split_inference.errors import MalformedFrameError

BITS = 8

# libjpeg's own limit on either side of an image.
MAX_SIDE = 65_500

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, kw_only=True, slots=True)
class TileGrid:
    """How the channels of one sample lie in its image."""

    rows: int
    columns: int
    tile_height: int
    tile_width: int

    @classmethod
    def of(cls, shape: tuple[int, ...], channel_axis: int) -> TileGrid:
        """The grid for features [N, ...] with channels on `channel_axis`; a tile is the rest, its last axis across."""
        channels = shape[channel_axis]
        tile = shape[1:channel_axis] + shape[channel_axis + 1 :]
        columns = math.isqrt(channels - 1) + 1
        return cls(
            rows=-(-channels // columns),
            columns=columns,
            tile_height=math.prod(tile[:-1]),
            tile_width=tile[-1] if tile else 1,
        )

    @property
    def image_size(self) -> tuple[int, int]:
        """Width and height in pixels, in Pillow's order."""
        return self.columns * self.tile_width, self.rows * self.tile_height


def encode_tiles(codes: NDArray[np.uint8], *, channel_axis: int, quality: int) -> bytes:
    """JPEGs of codes [N, ...], one per sample; ValueError where an image would be larger than JPEG allows."""
    grid = TileGrid.of(codes.shape, channel_axis)
    if max(grid.image_size) > MAX_SIDE:
        raise ValueError(f"tiles make an image of {grid.image_size} pixels; JPEG allows {MAX_SIDE} a side")
    parts = []
    for sample in np.moveaxis(codes, channel_axis, 1):
        tiles = np.zeros((grid.rows * grid.columns, grid.tile_height, grid.tile_width), np.uint8)
        tiles[: len(sample)] = sample.reshape(-1, grid.tile_height, grid.tile_width)
        pixels = tiles.reshape(grid.rows, grid.columns, grid.tile_height, grid.tile_width).swapaxes(1, 2)
        width, height = grid.image_size
        file = io.BytesIO()
        Image.fromarray(pixels.reshape(height, width)).save(file, "JPEG", quality=quality)
        parts += [_LENGTH.pack(file.tell()), file.getvalue()]
    return b"".join(parts)


def decode_tiles_into(codes: NDArray[Any], payload: bytes | memoryview, *, channel_axis: int) -> None:
    """Fill `codes` [N, ...] with the codes that the JPEGs in `payload` show.

    Raises MalformedFrameError; an image whose header states another size than the shape gives is never decoded.
    """
    grid = TileGrid.of(codes.shape, channel_axis)
    rest = memoryview(payload)
    for sample in np.moveaxis(codes, channel_axis, 1):
        if len(rest) < _LENGTH.size:
            raise MalformedFrameError("payload ends inside a JPEG's length")
        (length,) = _LENGTH.unpack_from(rest)
        rest = rest[_LENGTH.size :]
        if length > len(rest):
            raise MalformedFrameError(f"JPEG is said to be {length} bytes; {len(rest)} are left")
        pixels = _decode_grey_jpeg(rest[:length], grid.image_size)
        rest = rest[length:]
        tiles = pixels.reshape(grid.rows, grid.tile_height, grid.columns, grid.tile_width).swapaxes(1, 2)
        channels = tiles.reshape(-1, grid.tile_height, grid.tile_width)[: len(sample)]
        sample[...] = channels.reshape(sample.shape)
    if rest:
        raise MalformedFrameError(f"{len(rest)} bytes follow the last JPEG")


def _decode_grey_jpeg(jpeg: memoryview, size: tuple[int, int]) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
            if (image.size, image.mode) != (size, "L"):
                raise MalformedFrameError(f"JPEG is {image.mode} {image.size}; the shape says L {size}")
            # Each scan of a progressive JPEG costs a pass over the image, and a few bytes; ours are baseline.
            if "progressive" in image.info:
                raise MalformedFrameError("JPEG is progressive; tiles are baseline")
            return np.asarray(image)
    except MalformedFrameError:
        raise
    except Exception as error:
        # Pillow's reader raises OSError, SyntaxError, ValueError, struct.error and more, and warns, on hostile bytes.
        raise MalformedFrameError(f"payload is not a JPEG: {type(error).__name__}") from None
