"""The catalogue: every form of URI gives a model with a true card, and every wrong one a line that helps."""

import json
import sys

import pytest
import torch
from safetensors.torch import save_file

from split_inference.classic_models import build_classic_model
from split_inference.errors import ConfigError, ModelExportError, ModelLoadError, UnsafeModelError
from split_inference.model_catalog import load_model, parse_uri
from split_inference.preprocessing import ImagePreprocessing
from tests.split_inference.models import Branches, seeded

CARD = {
    "task": "image-classification",
    "labels": list("abcde"),
    "preprocessing": {"kind": "image", "height": 8, "width": 8},
}


def make_branches() -> torch.nn.Module:
    """A factory, as a user's own module would have one."""
    return seeded(Branches())


def make_nothing() -> int:
    return 7


def make_by_value() -> torch.nn.Module:
    class ByValue(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    return ByValue()


@pytest.fixture
def card(tmp_path):
    path = tmp_path / "card.json"
    path.write_text(json.dumps(CARD))
    return path


def test_the_embedded_model_says_what_it_reached():
    loaded = load_model("embedded:resnet20-cifar10")
    assert loaded.name == "resnet20-cifar10"
    assert loaded.card.trained
    assert loaded.card.labels[:2] == ("airplane", "automobile")
    assert loaded.card.measured["top1_on_10000_cifar10_jpeg_test_images"] >= 0.88
    assert loaded.card.digest == loaded.model.digest
    assert isinstance(loaded.card.preprocessing, ImagePreprocessing)
    assert loaded.model.input.shape == loaded.card.preprocessing.input_shape == (3, 32, 32)


# As published: torchvision's and the papers' counts of parameters.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032), ("resnet101", 44_549_160),
     ("resnet152", 60_192_808), ("vgg16", 138_357_544), ("vgg19", 143_667_240)],
)  # fmt: skip
def test_a_classic_network_has_the_published_number_of_parameters(name, parameters):
    with torch.device("meta"):  # structure only: no memory, no arithmetic
        assert sum(p.numel() for p in build_classic_model(name).parameters()) == parameters


def test_a_classic_network_with_random_weights_says_untrained():
    loaded = load_model("resnet18?weights=random&seed=0")
    assert not loaded.card.trained
    assert loaded.model.split_point("output").head_macs == pytest.approx(1.81e9, rel=0.01)


def test_a_pt2_file_takes_its_card_from_beside_it_or_from_the_option(tmp_path, card):
    example = torch.zeros(2, 3, 8, 8)
    program = torch.export.export(
        make_branches(), (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=16)},)
    )
    path = tmp_path / "mine.pt2"
    torch.export.save(program, path)
    assert load_model(f"pt2:{path}").card.preprocessing is None
    assert load_model(f"pt2:{path}?card={card}").card.labels == tuple("abcde")
    (tmp_path / "mine.card.json").write_text(card.read_text())
    loaded = load_model(f"pt2:{path}")
    assert (loaded.name, loaded.card.labels) == ("mine", tuple("abcde"))


def test_a_factory_gives_the_model_that_its_function_makes(tmp_path, card):
    loaded = load_model(f"factory:{__name__}:make_branches?card={card}&name=mine")
    assert loaded.name == "mine"
    weights = tmp_path / "w.safetensors"
    save_file(seeded(Branches(), seed=9).state_dict(), weights)
    other = load_model(f"factory:{__name__}:make_branches?card={card}&weights={weights}")
    assert other.card.digest != loaded.card.digest


def test_a_local_transformers_folder_is_read_with_labels_and_preprocessing(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8,
        id2label={0: "cat", 1: "dog", 2: "axolotl"},
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(tmp_path)
    settings = {"do_resize": True, "size": {"height": 32, "width": 32}, "resample": 3, "do_rescale": True,
                "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3,
                "image_processor_type": "ViTImageProcessor"}  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    loaded = load_model(f"hf:{tmp_path}")
    assert loaded.card.labels == ("cat", "dog", "axolotl")
    steps = loaded.card.preprocessing
    assert isinstance(steps, ImagePreprocessing)
    assert (steps.height, steps.width, steps.resample, steps.shortest_edge) == (32, 32, "bicubic", None)
    assert steps.mean == pytest.approx((127.5,) * 3)
    assert steps.std == pytest.approx((63.75,) * 3)


def test_a_local_audio_folder_gets_its_shape_from_its_feature_extractor(tmp_path):
    from transformers import ASTConfig, ASTForAudioClassification

    config = ASTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, max_length=64, num_mel_bins=32
    )
    ASTForAudioClassification(config).save_pretrained(tmp_path)
    settings = {"feature_extractor_type": "ASTFeatureExtractor", "sampling_rate": 16000, "max_length": 64,
                "num_mel_bins": 32, "mean": -4.2, "std": 4.5, "do_normalize": True, "feature_size": 1,
                "padding_value": 0.0}  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    loaded = load_model(f"hf:{tmp_path}")
    assert loaded.card.task == "audio-classification"
    assert loaded.model.input.shape == (64, 32)


def test_pickled_transformers_weights_are_refused(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32)
    ViTForImageClassification(config).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="cannot load hf:"):
        load_model(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("resnet35", "unknown model 'resnet35'"),
        ("ftp:model", "the schemes are"),
        ("hf:", "unknown model"),
        ("resnet18", "comes without weights"),
        ("resnet18?weight=random", "option 'weight' is not known"),
        ("resnet18?weights=random&seed=x", "seed must be a whole number"),
        ("resnet18?weights=random&seed=\u00b2", "seed must be a whole number"),
        ("resnet18?weights=random&seed=" + 5000 * "9", "seed must be a whole number"),
        ("resnet18?weights=none.safetensors", "no weights file"),
        ("embedded:other", "no embedded model"),
        ("pt2:none.pt2", "no file"),
        ("pt2:x.pt2?weights=random", "option 'weights' is not known for pt2"),
        ("factory:module", "is written factory:"),
        ("factory:no_such_module_here:make", "cannot import no_such_module_here"),
        (f"factory:{__name__}:absent", "absent"),
        (f"factory:{__name__}:make_nothing", "gave a int"),
        (f"factory:{__name__}:make_branches", "nothing says what it takes"),
        ("hf:./no/such/folder", "no folder"),
        ("hf:not a hub id", "neither a folder nor a hub id"),
    ],
)
def test_a_wrong_uri_is_refused_in_one_line(uri, reason):
    with pytest.raises(ModelLoadError, match=reason) as caught:
        load_model(uri)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("uri", ["resnet18?weights=random", "hf:org/model"])
def test_a_library_that_an_image_lacks_is_named_with_what_to_install(uri, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelLoadError, match=r"not installed here: pip install 'split-inference\[transformers\]'"):
        load_model(uri)


def test_a_hub_that_is_not_reached_is_said_at_once(monkeypatch):
    from huggingface_hub import constants

    # Port 9 of the loopback interface: nobody listens, so that the refusal is immediate on every machine.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ModelLoadError, match=r"127\.0\.0\.1 is not reached .*give hf:FOLDER"):
        load_model("hf:some-org/some-model")


def test_a_model_that_does_not_export_says_so(tmp_path):
    path = tmp_path / "card.json"
    path.write_text(json.dumps({"input_shape": [3]}))
    with pytest.raises(ModelExportError, match=r"torch\.export refuses ByValue"):
        load_model(f"factory:{__name__}:make_by_value?card={path}")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is not JSON"),
        (100_000 * "[", "is not JSON"),
        (6000 * "1", "is not JSON"),
        ('{"label": []}', "label"),
        ('{"preprocessing": {"kind": "image"}}', "height"),
    ],
)
def test_a_wrong_card_names_its_field(tmp_path, content, reason):
    path = tmp_path / "card.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=reason):
        load_model(f"factory:{__name__}:make_branches?card={path}")


def test_a_card_with_too_few_labels_is_refused(tmp_path):
    path = tmp_path / "card.json"
    path.write_text(json.dumps(CARD | {"labels": ["a", "b"]}))
    with pytest.raises(ModelLoadError, match="gives 5 outputs, but its card has 2 labels"):
        load_model(f"factory:{__name__}:make_branches?card={path}")


def test_names_are_safe_in_a_url():
    assert parse_uri("hf:org/My_Net-1.0").name == "My_Net-1.0"
    assert parse_uri("factory:a.b:make").name == "make"
    with pytest.raises(ModelLoadError, match="letters, digits"):
        parse_uri("resnet18?weights=random&name=a/b")


def test_an_unsafe_state_dict_is_refused_through_the_uri(tmp_path):
    path = tmp_path / "whole.pt"
    torch.save(Branches(), path)
    with pytest.raises(UnsafeModelError):
        load_model(f"resnet18?weights={path}")
