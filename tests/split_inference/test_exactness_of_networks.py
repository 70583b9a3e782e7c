"""The networks that people split, each exact at every split point for one sample and for three."""

import pytest
import torch

from split_inference.classic_models import build_classic_model
from split_inference.exactness import through_frame, verify
from split_inference.model_catalog import load_model
from split_inference.model_split import export_model
from split_inference.weights import fill_with_random_weights
from split_inference.wire import MAX_FRAME_BYTES


def _assert_exact(model, *, at_least):
    results = verify(model, samples=(1, 3))
    assert [(r.split_point.name, r.samples, r.largest_difference) for r in results if not r.exact] == []
    assert len(model.split_points) >= at_least


def test_the_embedded_model_is_exact():
    _assert_exact(load_model("embedded:resnet20-cifar10").model, at_least=24)


def test_samples_that_one_frame_cannot_hold_travel_one_by_one(monkeypatch):
    sent = [torch.randn(3, 2, 5), torch.randn(3, 4)]
    together, size = through_frame(sent, split_point="x", digest="ab" * 32)
    monkeypatch.setattr("split_inference.exactness.MAX_FRAME_BYTES", 64)
    one_by_one, more = through_frame(sent, split_point="x", digest="ab" * 32)
    assert more > size
    for tensors in (together, one_by_one):
        assert all(torch.equal(arrived, tensor) for arrived, tensor in zip(tensors, sent, strict=True))


def test_three_samples_of_the_widest_features_of_vgg_arrive():
    features = torch.arange(3 * 64 * 224 * 224, dtype=torch.float32).reshape(3, 64, 224, 224)
    (arrived,), size = through_frame([features], split_point="stage1.1", digest="ab" * 32)
    assert torch.equal(arrived, features)
    assert size > features.numel() * 4 > MAX_FRAME_BYTES


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_is_exact(dtype):
    model = export_model(torch.nn.Linear(4, 3).to(dtype), torch.zeros(1, 4, dtype=dtype))
    assert all(result.exact for result in verify(model))


@pytest.mark.slow
def test_resnet34_is_exact():
    # At 32x32, a fiftieth of the arithmetic; `split-inference verify` runs the full size.
    network = build_classic_model("resnet34")
    fill_with_random_weights(network, seed=0)
    _assert_exact(export_model(network, torch.zeros(1, 3, 32, 32)), at_least=40)


@pytest.mark.slow
def test_mobilenet_v2_is_exact():
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    network = MobileNetV2ForImageClassification(MobileNetV2Config(image_size=64, num_labels=10))
    fill_with_random_weights(network, seed=0)
    _assert_exact(export_model(network, torch.zeros(1, 3, 64, 64)), at_least=95)


def test_a_vision_transformer_is_exact():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, image_size=64, patch_size=16
    )
    network = ViTForImageClassification(config)
    fill_with_random_weights(network, seed=0)
    _assert_exact(export_model(network, torch.zeros(1, 3, 64, 64)), at_least=15)


def test_an_audio_spectrogram_transformer_is_exact():
    from transformers import ASTConfig, ASTForAudioClassification

    config = ASTConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        max_length=128,
        num_mel_bins=64,
    )
    network = ASTForAudioClassification(config)
    fill_with_random_weights(network, seed=0)
    _assert_exact(export_model(network, torch.zeros(1, 128, 64)), at_least=19)


@pytest.mark.slow
def test_the_real_mobilenet_is_exact(data_folder):
    _assert_exact(load_model(f"pt2:{data_folder}/models/mobilenet_v2_imagenet.pt2").model, at_least=60)
