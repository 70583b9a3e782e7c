"""ResNet-20 for 32x32 images (He et al. 2015, section 4.2), with and without batch normalisation.

Knows the network only: weights come from a file, data and training live in scripts/train_embedded_model.py.
The shipped form has its batch normalisations folded into the convolutions, so that an edge device runs 21
convolutions and nothing beside them; `fold_batch_norms` makes it from the trained form.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

STAGE_CHANNELS = (16, 32, 64)
BLOCKS_PER_STAGE = 3


def _convolution(channels_in: int, channels_out: int, *, kernel: int, stride: int, batch_norm: bool) -> nn.Module:
    convolution = nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=not batch_norm)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out)) if batch_norm else convolution


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; a 1x1 convolution on the shortcut where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int, batch_norm: bool) -> None:
        super().__init__()
        self.conv1 = _convolution(channels_in, channels_out, kernel=3, stride=stride, batch_norm=batch_norm)
        self.relu1 = nn.ReLU()
        self.conv2 = _convolution(channels_out, channels_out, kernel=3, stride=1, batch_norm=batch_norm)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and channels_in == channels_out
            else _convolution(channels_in, channels_out, kernel=1, stride=stride, batch_norm=batch_norm)
        )
        self.relu2 = nn.ReLU()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = self.conv2(self.relu1(self.conv1(x_NCHW)))
        output_NCHW: Tensor = self.relu2(y_NCHW + self.shortcut(x_NCHW))
        return output_NCHW


class ResNet20(nn.Module):
    """float32 [N, 3, 32, 32] -> logits [N, classes]; 0.27 million parameters, 41 million MACs per image."""

    def __init__(self, *, classes: int = 10, batch_norm: bool = False) -> None:
        super().__init__()
        self.conv = _convolution(3, STAGE_CHANNELS[0], kernel=3, stride=1, batch_norm=batch_norm)
        self.relu = nn.ReLU()
        channels_in = STAGE_CHANNELS[0]
        for stage, channels_out in enumerate(STAGE_CHANNELS, start=1):
            blocks = []
            for block in range(BLOCKS_PER_STAGE):
                stride = 2 if stage > 1 and block == 0 else 1
                blocks.append(ResidualBlock(channels_in, channels_out, stride=stride, batch_norm=batch_norm))
                channels_in = channels_out
            self.add_module(f"stage{stage}", nn.Sequential(*blocks))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels_in, classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x_NCHW = self.relu(self.conv(pixel_values))
        for stage in range(1, len(STAGE_CHANNELS) + 1):
            x_NCHW = self.get_submodule(f"stage{stage}")(x_NCHW)
        logits_NK: Tensor = self.classifier(self.pool(x_NCHW).flatten(1))
        return logits_NK


def fold_batch_norms(trained: ResNet20) -> ResNet20:
    """The same function with every batch normalisation folded into the convolution before it.

    Equal in exact arithmetic; in float32 the logits differ by rounding only. Returns a new module in eval mode.
    """
    folded = ResNet20(classes=trained.classifier.out_features, batch_norm=False)
    with torch.no_grad():
        for name, module in trained.named_modules():
            if not isinstance(module, nn.Sequential) or not isinstance(module[1], nn.BatchNorm2d):
                continue
            convolution = module[0]
            assert isinstance(convolution, nn.Conv2d)
            fused = torch.nn.utils.fusion.fuse_conv_bn_eval(convolution.eval(), module[1].eval())
            folded.get_submodule(name).load_state_dict(fused.state_dict())
        folded.classifier.load_state_dict(trained.classifier.state_dict())
    return folded.eval()
