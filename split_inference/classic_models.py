"""The seven classic networks of the ancestor system, by name: structure only, weights come from elsewhere.

ResNets are transformers' own, configured as in He et al. 2015 (table 1); VGGs follow Simonyan and Zisserman 2014
(table 1, columns D and E). Images are preprocessed as ImageNet classifiers are: shortest edge 256, centre 224x224.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from split_inference.model_card import CardFile
from split_inference.preprocessing import ImagePreprocessing

CLASSES = 1000
# block type, layers per stage
_RESNETS = {
    "resnet18": ("basic", [2, 2, 2, 2]),
    "resnet34": ("basic", [3, 4, 6, 3]),
    "resnet50": ("bottleneck", [3, 4, 6, 3]),
    "resnet101": ("bottleneck", [3, 4, 23, 3]),
    "resnet152": ("bottleneck", [3, 8, 36, 3]),
}
_WIDTHS = {"basic": [64, 128, 256, 512], "bottleneck": [256, 512, 1024, 2048]}
# 3x3 convolutions per stage
_VGGS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
_VGG_WIDTHS = (64, 128, 256, 512, 512)
# ImageNet's mean and deviation per channel, as every library states them, here in pixel units
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class VGG(nn.Module):
    """float32 [N, 3, 224, 224] -> logits [N, classes]."""

    def __init__(self, convolutions: Sequence[int], *, classes: int = CLASSES) -> None:
        super().__init__()
        channels_in = 3
        for stage, (count, channels) in enumerate(zip(convolutions, _VGG_WIDTHS, strict=True), start=1):
            layers: list[nn.Module] = []
            for _ in range(count):
                layers += [nn.Conv2d(channels_in, channels, 3, padding=1), nn.ReLU()]
                channels_in = channels
            self.add_module(f"stage{stage}", nn.Sequential(*layers, nn.MaxPool2d(2)))
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, classes)
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        x_NCHW = pixel_values
        for stage in range(1, len(_VGG_WIDTHS) + 1):
            x_NCHW = self.get_submodule(f"stage{stage}")(x_NCHW)
        logits_NK: Tensor = self.classifier(torch.flatten(x_NCHW, 1))
        return logits_NK


def build_classic_model(name: str) -> nn.Module:
    """The network of that name with whatever weights it is built with; the caller fills them."""
    if name in _VGGS:
        return VGG(_VGGS[name])
    from transformers import ResNetConfig, ResNetForImageClassification

    kind, depths = _RESNETS[name]
    config = ResNetConfig(
        layer_type=kind, depths=depths, hidden_sizes=_WIDTHS[kind], embedding_size=64, num_labels=CLASSES
    )
    module: nn.Module = ResNetForImageClassification(config)
    return module


def classic_card() -> CardFile:
    """Preprocessing of ImageNet classifiers; classes are numbered, as label texts come with somebody's weights."""
    return CardFile(
        task="image-classification",
        preprocessing=ImagePreprocessing(
            height=224, width=224, shortest_edge=256, resample="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD
        ),
    )
