"""Weights: what cannot be loaded without running code is refused, and random ones are the same everywhere."""

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from split_inference.errors import ModelLoadError, UnsafeModelError
from split_inference.weights import fill_with_random_weights, load_weights, load_weights_into
from tests.split_inference.models import Branches, seeded


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_come_back_as_they_were_saved(tmp_path, suffix):
    source, path = seeded(Branches(), seed=3), tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save(source.state_dict(), path)
    else:
        save_file(source.state_dict(), path)
    target = Branches()
    load_weights_into(target, path)
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor)


def test_a_pickle_of_more_than_tensors_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(Branches(), path)
    with pytest.raises(UnsafeModelError, match="state_dict"):
        load_weights(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises((UnsafeModelError, ModelLoadError)):
        load_weights(path)


def test_a_file_that_does_not_fit_names_the_tensor(tmp_path):
    path = tmp_path / "w.safetensors"
    state = seeded(Branches()).state_dict()
    save_file({k: v for k, v in state.items() if k != "left.bias"}, path)
    with pytest.raises(ModelLoadError, match=r"no 'left\.bias'"):
        load_weights_into(Branches(), path)
    save_file(state | {"left.bias": torch.zeros(9)}, path)
    with pytest.raises(ModelLoadError, match=r"'left\.bias' is \(9,\)"):
        load_weights_into(Branches(), path)
    save_file(state | {"surplus": torch.zeros(1)}, path)
    with pytest.raises(ModelLoadError, match="'surplus' has no place"):
        load_weights_into(Branches(), path)


def test_missing_and_broken_files_are_refused(tmp_path):
    with pytest.raises(ModelLoadError, match="no weights file"):
        load_weights(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ModelLoadError, match="no safetensors file"):
        load_weights(tmp_path / "bad.safetensors")


def test_random_weights_follow_the_seed_and_nothing_else():
    one, same, other = Branches(), Branches(), Branches()
    for module, seed in ((one, 5), (same, 5), (other, 6)):
        fill_with_random_weights(module, seed=seed)
    assert torch.equal(one.left.weight, same.left.weight)
    assert not torch.equal(one.left.weight, other.left.weight)


def test_random_weights_have_the_stated_variance_and_are_pinned():
    layer = nn.Linear(400, 300)
    fill_with_random_weights(layer, seed=1)
    assert layer.weight.var().item() == pytest.approx(2 / 400, rel=0.02)
    assert layer.bias.abs().max() == 0
    expected = (np.random.default_rng(1).random((300, 400), dtype=np.float32) * 2 - 1) * np.float32((6 / 400) ** 0.5)
    assert np.array_equal(layer.weight.detach().numpy(), expected)
