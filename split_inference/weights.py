"""Weights from files that cannot run code, and weights from a seed.

Knows safetensors and torch's restricted unpickler. Random weights are made with NumPy's PCG64, whose uniform float32
numbers are the same bits on every processor, so that a model with random weights has one digest everywhere.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from split_inference.errors import ModelLoadError, UnsafeModelError
from split_inference.model_split import first_line


def load_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file or a torch state dict; UnsafeModelError for any other pickle."""
    if not path.is_file():
        raise ModelLoadError(f"no weights file {path}")
    if path.suffix == ".safetensors":
        try:
            loaded: dict[str, Tensor] = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(f"{path} is no safetensors file: {first_line(error)}") from error
        return loaded
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # pickle, zip and torch errors of a dozen types
        raise UnsafeModelError(
            f"{path} is no state dict that loads without running code; save model.state_dict() as safetensors"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelLoadError(f"{path} holds no state dict (names to tensors); save model.state_dict()")
    return state


def load_weights_into(module: nn.Module, path: Path) -> None:
    """Load a weights file into a module; ModelLoadError names the first tensor that does not fit."""
    weights = load_weights(path)
    own = module.state_dict()
    for name, tensor in own.items():
        if name not in weights:
            if name.endswith("num_batches_tracked"):
                continue  # counts training steps; nothing in evaluation reads it
            raise ModelLoadError(f"{path} has no {name!r}, which {type(module).__name__} needs")
        if weights[name].shape != tensor.shape:
            raise ModelLoadError(
                f"{path}: {name!r} is {tuple(weights[name].shape)}; {type(module).__name__} needs {tuple(tensor.shape)}"
            )
    surplus = sorted(set(weights) - set(own))
    if surplus:
        raise ModelLoadError(f"{path}: {surplus[0]!r} has no place in {type(module).__name__}")
    module.load_state_dict(weights, strict=False)


@torch.no_grad()
def fill_with_random_weights(module: nn.Module, *, seed: int) -> None:
    """Overwrite all parameters: matrices uniform with He's variance 2 / fan_in, norm weights 1, biases 0.

    Parameters are visited by sorted name, so that the order in which a module was built does not matter.
    """
    rng = np.random.default_rng(seed)
    for name, parameter in sorted(module.named_parameters()):
        if parameter.ndim < 2:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        fan_in = parameter[0].numel()
        bound = np.float32(math.sqrt(6 / fan_in))
        unit = rng.random(parameter.shape, dtype=np.float32)
        parameter.copy_(torch.from_numpy((unit * np.float32(2) - np.float32(1)) * bound))
