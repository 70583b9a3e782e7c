"""From an encoded image to the array that a model takes: the same steps on the device and on the server.

Knows NumPy and Pillow. Knows no torch and no model: the numbers come from the model's card.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from split_inference.errors import MalformedInputError, TooLargeError

# A 48-megapixel phone picture passes; decoded as RGB this is 150 MB, which a server process can hold.
MAX_PIXELS = 50_000_000
# The longest edge of a JPEG (ITU T.81, B.2.2). Resizing makes a table of weights as long as an edge: of a line of
# 50 million pixels, 100 kB as a PNG, two gigabytes.
MAX_EDGE = 65_535
# Each scan costs a pass over all pixels, and few bytes; encoders of progressive JPEGs make up to twenty.
MAX_SCANS = 32
# Of JPEG (ITU T.81, B.1.1): what is no stuffed byte, no restart and no fill byte.
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
# Formats that phones and cameras write. Others bring large decoders into reach of strangers' bytes.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

Triple = tuple[float, float, float]


class ImagePreprocessing(BaseModel):
    """Resize, crop and normalise an RGB image: (pixel - mean) / std with pixels 0..255."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Literal["image"] = "image"
    height: PositiveInt
    width: PositiveInt
    shortest_edge: PositiveInt | None = None
    """Resize so, then crop the centre; None resizes straight to height x width."""
    resized: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width to resize straight to, before the centre is cropped; instead of `shortest_edge`."""
    resample: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    channels: Literal["RGB", "BGR"] = "RGB"
    """The order in which the model takes them."""
    mean: Triple = (0.0, 0.0, 0.0)
    """Per channel, in the model's order, in pixel units (0..255)."""
    std: Triple = Field(default=(255.0, 255.0, 255.0))
    """Per channel, in pixel units; none may be 0."""

    @model_validator(mode="after")
    def _refuse_nonsense(self) -> ImagePreprocessing:
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        if self.shortest_edge is not None and self.shortest_edge < max(self.height, self.width):
            raise ValueError(f"shortest_edge {self.shortest_edge} is smaller than the crop {self.height}x{self.width}")
        # The numbers come with models, from a hub too: they are no way to ask for gigabytes.
        shortest = self.shortest_edge or 0
        most = max(self.height * self.width, shortest**2, math.prod(self.resized or (0,)))
        if most > MAX_PIXELS:
            raise ValueError(f"{most} pixels are asked for; at most {MAX_PIXELS} are made")
        if self.resized is not None and self.shortest_edge is not None:
            raise ValueError("resized and shortest_edge exclude each other")
        if self.resized is not None and (self.resized[0] < self.height or self.resized[1] < self.width):
            raise ValueError(f"resized {list(self.resized)} is smaller than the crop {self.height}x{self.width}")
        return self

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one sample: (3, height, width)."""
        return (3, self.height, self.width)

    def apply(self, data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.float32]:
        """An encoded image -> float32 [1, 3, H, W].

        The pixel count is read from the header and checked before anything is decoded (TooLargeError).
        Bytes that are no image of a known format, or end too early, raise MalformedInputError.
        """
        return self.apply_image(decode_image(data, max_pixels=max_pixels))

    def apply_image(self, image: Image.Image) -> NDArray[np.float32]:
        """An RGB image -> float32 [1, 3, H, W].

        Raises TooLargeError where resizing by the shortest edge would make more than MAX_PIXELS: a line of pixels that
        is a few kilobytes long would become gigabytes, nearly all of them cropped away.
        """
        resample = _RESAMPLING[self.resample]
        if self.shortest_edge is None:
            height, width = self.resized or (self.height, self.width)
            if image.size != (width, height):
                image = image.resize((width, height), resample)
            if self.resized is not None:
                image = self._centre_of(image)
        else:
            scale = self.shortest_edge / min(image.size)
            width, height = (max(self.shortest_edge, round(edge * scale)) for edge in image.size)
            if width * height > MAX_PIXELS:
                raise TooLargeError(
                    f"an image of {image.width}x{image.height} would be {width}x{height} pixels before it is cropped; "
                    f"at most {MAX_PIXELS} are made"
                )
            image = self._centre_of(image.resize((width, height), resample))
        pixels_HWC = np.asarray(image, dtype=np.float32)
        if self.channels == "BGR":
            pixels_HWC = pixels_HWC[:, :, ::-1]
        normal_HWC = (pixels_HWC - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(normal_HWC.transpose(2, 0, 1)[None])

    def _centre_of(self, image: Image.Image) -> Image.Image:
        left, top = (image.width - self.width) // 2, (image.height - self.height) // 2
        return image.crop((left, top, left + self.width, top + self.height))


def _scans(jpeg: bytes) -> int:
    """Scans of the first image; what follows its end, and what lies within its segments, is not looked at."""
    scans, at = 0, 2
    while scans <= MAX_SCANS and (found := _MARKER.search(jpeg, at)) is not None:
        marker = found[1][0]
        if marker == _END_OF_IMAGE:
            break
        scans += marker == _START_OF_SCAN
        at = found.end() + max(2, int.from_bytes(jpeg[found.end() : found.end() + 2], "big"))
    return scans


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An encoded image -> upright RGB image; MalformedInputError or TooLargeError, see ImagePreprocessing.apply."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images, and refuses larger ones; the limit here is the caller's, and is exact.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except Image.DecompressionBombError as error:
        raise TooLargeError(f"image has far more than {max_pixels} pixels; at most so many are decoded") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise MalformedInputError(f"{len(data)} bytes that are no {', '.join(IMAGE_FORMATS)} image") from error
    # A JPEG with another one behind it, as phones make them, is called MPO.
    if image.format in ("JPEG", "MPO") and _scans(data) > MAX_SCANS:
        raise MalformedInputError(f"the JPEG has more than {MAX_SCANS} scans, of which each costs a pass over it")
    width, height = image.size
    if width * height > max_pixels or max(width, height) > MAX_EDGE:
        raise TooLargeError(
            f"image is {width}x{height} pixels; at most {max_pixels} are decoded, and {MAX_EDGE} along an edge"
        )
    try:
        return ImageOps.exif_transpose(image).convert("RGB")
    except MemoryError:
        raise
    except Exception as error:
        # Pillow raises struct.error, TypeError and more where metadata are not what they say.
        raise MalformedInputError(f"the image cannot be decoded: {error}") from error
