"""Pictures get the pixels that the model's own processor makes, or the model is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from split_inference.errors import ModelLoadError
from split_inference.hf_image_steps import image_steps

NORMAL: dict[str, object] = {
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
# As the files of published models have them: old ones name a feature extractor, and leave out what is by default.
FILES: dict[str, dict[str, object]] = {
    "mobilevit": {
        "feature_extractor_type": "MobileViTFeatureExtractor",
        "do_center_crop": True,
        "crop_size": 256,
        "do_flip_channel_order": True,
        "do_resize": True,
        "resample": 2,
        "size": 288,
    },
    "efficientnet": {
        "image_processor_type": "EfficientNetImageProcessor",
        "do_center_crop": False,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.478, 0.473, 0.474],
        "resample": 0,
        "size": {"height": 224, "width": 224},
    },
    "efficientnet-with-an-offset": {
        "image_processor_type": "EfficientNetImageProcessor",
        "include_top": False,
        "rescale_offset": True,
        "rescale_factor": 1 / 127.5,
        "size": {"height": 96, "width": 128},
    },
    "deit": {"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224, "resample": 3, **NORMAL},
    "swin": {"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "resample": 3, **NORMAL},
    "vit": {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 48}},
    "convnext": {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "crop_pct": 0.875, **NORMAL},
    "convnext-384": {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 384, "crop_pct": 0.875, **NORMAL},
    "mobilenet": {
        "image_processor_type": "MobileNetV2ImageProcessor",
        "size": {"shortest_edge": 256},
        "crop_size": {"height": 224, "width": 224},
        "resample": 2,
        "do_rescale": False,
        "do_normalize": False,
    },
}


def processor_of(tmp_path, settings):
    from transformers import AutoImageProcessor

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    return AutoImageProcessor.from_pretrained(tmp_path, backend="pil", local_files_only=True)


@pytest.mark.parametrize("name", FILES)
def test_a_picture_gets_the_pixels_that_the_models_own_processor_makes(tmp_path, name):
    processor = processor_of(tmp_path, FILES[name])
    steps = image_steps(processor, source=name)
    picture = Image.fromarray(np.random.default_rng(7).integers(0, 256, (80, 40, 3), dtype=np.uint8))
    wanted = processor(picture, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(steps.apply_image(picture), wanted, atol=1e-4 * np.ptp(wanted))
    assert type(steps).model_validate(json.loads(steps.model_dump_json())) == steps


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"do_resize": False}, r"makes \[1, 3, 600, 300\] of a picture of 300x600"),
        ({"size": {"shortest_edge": 64}}, "makes"),
        ({"resample": 5}, "is not understood: 5"),
        ({"do_normalize": True, "image_std": [0.0, 1.0, 1.0]}, "is not understood: Value error, std must be positive"),
        ({"do_normalize": True, "image_std": [float("nan"), 1.0, 1.0]}, "is not understood: std.0: .*finite"),
    ],
)
def test_what_cannot_be_done_here_is_refused(tmp_path, changed, reason):
    processor = processor_of(tmp_path, FILES["vit"] | changed)
    with pytest.raises(ModelLoadError, match=f"hf:some/model: ViTImageProcessor {reason}") as refusal:
        image_steps(processor, source="some/model")
    assert "\n" not in str(refusal.value)


def test_pixels_that_no_step_explains_are_refused(tmp_path):
    processor = processor_of(tmp_path, FILES["vit"])

    def brighter(picture, **options):
        made = processor(picture, **options)
        return {"pixel_values": made["pixel_values"] + 0.01}

    class Brighter:
        def __getattr__(self, name):
            return getattr(processor, name)

        def __call__(self, picture, **options):
            return brighter(picture, **options)

    with pytest.raises(ModelLoadError, match="Brighter makes other pixels"):
        image_steps(Brighter(), source="some/model")


def test_a_size_of_gigabytes_is_refused_before_a_picture_is_made_so(tmp_path):
    processor = processor_of(tmp_path, FILES["vit"] | {"size": {"height": 100_000, "width": 100_000}})

    class NeverCalled:
        def __getattr__(self, name):
            return getattr(processor, name)

    with pytest.raises(ModelLoadError, match=r"is not understood: .*10000000000 pixels are asked for"):
        image_steps(NeverCalled(), source="some/model")
