"""What an image processor of the transformers library does to a picture, as steps of ours, and proof that it is that.

A processor's file leaves out what its class does by default, and classes read the same key differently. So the steps
come from the processor itself, and two pictures go through both: a model that gets other pixels than it was trained on
answers, and answers worse, and nothing else would say so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from pydantic import ValidationError

from split_inference.errors import ModelLoadError
from split_inference.json_files import first_problem
from split_inference.preprocessing import ImagePreprocessing

# PIL's numbers, which processors use.
_RESAMPLE_NAMES = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
# Of the span of all values: what adding and dividing in another order makes of float32.
TOLERANCE = 1e-4
# Twice as long as wide and the other way round: then no edge is rounded, which the processors do in several ways.
_PICTURES = ((300, 600), (600, 300))


def image_steps(processor: Any, *, source: str) -> ImagePreprocessing:
    """The steps of a processor that runs on PIL. Raises ModelLoadError where ours cannot do what it does."""
    try:
        steps = _steps(processor)
    except ValidationError as error:
        raise ModelLoadError(f"hf:{source}: {_name(processor)} is not understood: {first_problem(error)}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(f"hf:{source}: {_name(processor)} is not understood: {error}") from error
    for seed, size in enumerate(_PICTURES):
        picture = _picture(size, seed=seed)
        wanted = np.asarray(processor(picture, return_tensors="np")["pixel_values"])
        ours = steps.apply_image(picture)
        if wanted.shape != ours.shape:
            raise ModelLoadError(
                f"hf:{source}: {_name(processor)} makes {list(wanted.shape)} of a picture of {size[0]}x{size[1]}; "
                "resizing, cropping and normalising to one size is all that is known here"
            )
        if np.abs(wanted - ours).max() > TOLERANCE * np.ptp(wanted):
            raise ModelLoadError(
                f"hf:{source}: {_name(processor)} makes other pixels than resizing, cropping, normalising and the "
                "order of channels explain; the model would be served, and wrong"
            )
    return steps


def _steps(processor: Any) -> ImagePreprocessing:
    size, crop = processor.size, processor.crop_size if getattr(processor, "do_center_crop", False) else None
    shortest = resized = None
    if size.shortest_edge is not None:
        shortest = height = width = size.shortest_edge
        crop_pct = getattr(processor, "crop_pct", None)
        if crop is None and crop_pct and shortest < 384:
            # ConvNeXt's: resize to edge / crop_pct, then crop to the edge; from 384 on it resizes straight.
            shortest = int(shortest / crop_pct)
        elif crop is None:
            shortest = None
    else:
        height, width = size.height, size.width
    if crop is not None:
        if shortest is None and (crop.height, crop.width) != (height, width):
            resized = (height, width)
        height, width = crop.height, crop.width
    scale = processor.rescale_factor if processor.do_rescale else 1.0
    # What is subtracted and divided by after scaling, as one step on pixels of 0 to 255.
    offset = 1.0 if getattr(processor, "rescale_offset", False) else 0.0
    mean, std = (np.zeros(3), np.ones(3))
    if processor.do_normalize:
        mean, std = (np.broadcast_to(np.float64(each), 3) for each in (processor.image_mean, processor.image_std))
    divisor = std**2 if getattr(processor, "include_top", False) else std
    return ImagePreprocessing(
        height=height,
        width=width,
        shortest_edge=shortest,
        resized=resized,
        resample=_RESAMPLE_NAMES[int(processor.resample)],  # type: ignore[arg-type]
        channels="BGR" if getattr(processor, "do_flip_channel_order", False) else "RGB",
        mean=tuple(float(each) for each in (mean + offset) / scale),  # type: ignore[arg-type]
        std=tuple(float(each) for each in divisor / scale),  # type: ignore[arg-type]
    )


def _picture(size: tuple[int, int], *, seed: int) -> Image.Image:
    """Smooth enough to be a picture, and no two corners or channels alike."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (size[1] // 20, size[0] // 20, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def _name(processor: Any) -> str:
    return type(processor).__name__.removesuffix("Pil")
