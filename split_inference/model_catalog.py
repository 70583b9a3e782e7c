"""From a URI to a model that can be split, with its card.

    embedded:resnet20-cifar10              the small trained network that ships with the package
    hf:<hub id or local folder>            transformers image and audio classifiers, safetensors only
    pt2:<file>                             an exported program; inspected before torch sees it
    factory:<package.module>:<callable>    a function that gives a torch module; RUNS CODE: never from a request or card
    resnet18 ... resnet152, vgg16, vgg19   the seven classic networks; weights come from a file, or are random

Options follow a question mark: ?weights=FILE (safetensors, or a torch state dict), ?weights=random&seed=0 (for load
tests; everything says UNTRAINED), ?card=FILE (labels and preprocessing), ?name=NAME.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from split_inference.errors import ModelLoadError
from split_inference.model_card import CardFile, ModelCard, read_card
from split_inference.model_split import SplittableModel, export_model, first_line
from split_inference.model_uri import CLASSIC_MODELS, EMBEDDED_URI, ModelUri, parse_uri
from split_inference.weights import fill_with_random_weights, load_weights_into

__all__ = ["CLASSIC_MODELS", "EMBEDDED_URI", "LoadedModel", "ModelCard", "ModelUri", "load_model", "parse_uri"]

EMBEDDED_FOLDER = Path(__file__).resolve().parent / "embedded"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A model that can be split, and what it says of itself."""

    name: str
    model: SplittableModel
    card: ModelCard


def load_model(uri: str, *, max_tensors: int = 1) -> LoadedModel:
    """Load, export and find the split points of the model that a URI names.

    Raises ModelLoadError (nothing there, no network, no weights), UnsafeModelError (loading it would run code),
    ModelExportError (the model cannot be exported or split), ConfigError (a card file that is wrong).
    """
    parsed = parse_uri(uri)
    loader: Callable[[ModelUri, int], tuple[SplittableModel, CardFile]] = {
        "embedded": _load_embedded,
        "hf": _load_hf,
        "pt2": _load_pt2,
        "factory": _load_factory,
        "classic": _load_classic,
    }[parsed.scheme]
    try:
        model, card = loader(parsed, max_tensors)
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ModelLoadError(
            f"model {uri!r} is built by transformers, which is not installed here: "
            "pip install 'split-inference[transformers]'"
        ) from error
    outputs = model.output.elements
    if card.labels and len(card.labels) != outputs:
        raise ModelLoadError(f"model {uri!r} gives {outputs} outputs, but its card has {len(card.labels)} labels")
    shape = getattr(card.preprocessing, "input_shape", model.input.shape)
    if shape != model.input.shape:
        raise ModelLoadError(f"model {uri!r} takes {model.input.shape}, but its card's preprocessing gives {shape}")
    full = ModelCard(
        **{**card.model_dump(), "input_shape": model.input.shape},
        name=parsed.name,
        uri=uri,
        digest=model.digest,
        trained=not parsed.random_weights,
    )
    return LoadedModel(name=parsed.name, model=model, card=full)


def _own_card(uri: ModelUri, default: CardFile) -> CardFile:
    return read_card(Path(uri.options["card"])) if "card" in uri.options else default


def _apply_weights(module: nn.Module, uri: ModelUri) -> nn.Module:
    weights = uri.options.get("weights")
    if weights == "random":
        fill_with_random_weights(module, seed=int(uri.options.get("seed", "0")))
    elif weights is not None:
        load_weights_into(module, Path(weights))
    return module


def _load_embedded(uri: ModelUri, max_tensors: int) -> tuple[SplittableModel, CardFile]:
    from split_inference.embedded.resnet20 import ResNet20

    card = read_card(EMBEDDED_FOLDER / "resnet20_cifar10.card.json")
    module = ResNet20(classes=len(card.labels))
    load_weights_into(module, EMBEDDED_FOLDER / "resnet20_cifar10.safetensors")
    return export_model(module, torch.zeros(1, 3, 32, 32), max_tensors=max_tensors), card


def _load_pt2(uri: ModelUri, max_tensors: int) -> tuple[SplittableModel, CardFile]:
    from split_inference.pt2_archive import load_pt2

    path = Path(uri.path)
    beside = path.with_suffix(".card.json")
    card = _own_card(uri, read_card(beside) if beside.is_file() else CardFile(task="other"))
    return SplittableModel(load_pt2(path), max_tensors=max_tensors), card


def _load_hf(uri: ModelUri, max_tensors: int) -> tuple[SplittableModel, CardFile]:
    from split_inference.hf_models import load_hf

    module, card = load_hf(uri.path, random_weights=uri.random_weights)
    _apply_weights(module, uri)
    card = _own_card(uri, card)
    return export_model(module, torch.zeros(1, *_shape_of(card, uri)), max_tensors=max_tensors), card


def _load_classic(uri: ModelUri, max_tensors: int) -> tuple[SplittableModel, CardFile]:
    from split_inference.classic_models import build_classic_model, classic_card

    if "weights" not in uri.options:
        raise ModelLoadError(
            f"{uri.path} comes without weights: {uri.path}?weights=FILE.safetensors, "
            f"or {uri.path}?weights=random&seed=0 for load tests"
        )
    module = _apply_weights(build_classic_model(uri.path), uri)
    card = _own_card(uri, classic_card())
    return export_model(module, torch.zeros(1, *_shape_of(card, uri)), max_tensors=max_tensors), card


def _load_factory(uri: ModelUri, max_tensors: int) -> tuple[SplittableModel, CardFile]:
    module_name, _, callable_name = uri.path.rpartition(":")
    here = os.getcwd()
    if here not in sys.path:  # as `python -m` does, so that a factory may lie where the user stands
        sys.path.insert(0, here)
    try:
        made = getattr(importlib.import_module(module_name), callable_name)()
    except ImportError as error:
        raise ModelLoadError(f"model {uri.text!r}: cannot import {module_name}: {first_line(error)}") from error
    except AttributeError as error:
        raise ModelLoadError(f"model {uri.text!r}: {first_line(error)}") from error
    if not isinstance(made, nn.Module):
        raise ModelLoadError(f"model {uri.text!r} gave a {type(made).__name__}; a factory gives a torch.nn.Module")
    module = _apply_weights(made, uri)
    card = _own_card(uri, CardFile(task="other"))
    return export_model(module, torch.zeros(1, *_shape_of(card, uri)), max_tensors=max_tensors), card


def _shape_of(card: CardFile, uri: ModelUri) -> tuple[int, ...]:
    from_preprocessing = getattr(card.preprocessing, "input_shape", None)
    shape = card.input_shape or from_preprocessing
    if shape is None:
        raise ModelLoadError(
            f"model {uri.text!r}: nothing says what it takes; add ?card=FILE with input_shape or preprocessing"
        )
    return tuple(shape)
