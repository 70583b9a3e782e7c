"""Small networks for tests, each with one thing that a splitter can get wrong."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Branches(nn.Module):
    """Two branches, a shortcut over both, a shared activation, and an in-place addition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 8, 3, padding=1)
        self.right = nn.Conv2d(8, 8, 1)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(8, 5)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.relu(self.stem(pixel_values))
        y = self.relu(self.left(x))
        y += self.right(x)
        y = self.dropout(self.relu(y + x))
        logits: Tensor = self.classifier(y.mean((2, 3)))
        return logits


class Windows(nn.Module):
    """Folds windows into the batch axis and back, as window attention does, and keeps the batch size alive."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.outer = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        windows = x.reshape(x.shape[0] * 4, 6)
        mixed = torch.tanh(self.inner(windows))
        scale = torch.arange(x.shape[0] * 4, dtype=x.dtype).sum() * 0 + 2
        output: Tensor = self.outer((mixed * scale).reshape(x.shape[0], 24))
        return output


class Sizes(nn.Module):
    """Sizes that follow from the number of samples, but are no multiple of it, and an operation with two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.Linear(6, 6)
        self.classifier = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.steps(x.reshape(x.shape[0], 4, 6)).chunk(2, dim=1)
        scale = torch.ones(2 * x.shape[0] + 1).sum() * 0 + 1
        logits: Tensor = self.classifier((left - right.tanh()).mean(1) * scale)
        return logits


class Recurrent(nn.Module):
    """A layer with several outputs, of which one is used."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(6, 6, batch_first=True)
        self.classifier = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.recurrent(x.reshape(x.shape[0], 4, 6))
        logits: Tensor = self.classifier(steps[:, -1])
        return logits


class ChannelsLast(nn.Module):
    """Features that do not lie in memory in the order of their axes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.linear = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.classifier = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.to(memory_format=torch.channels_last)).permute(0, 2, 3, 1)
        y = self.norm(self.linear(y)).permute(0, 3, 1, 2)
        logits: Tensor = self.classifier(y.sum((2, 3)) / y.transpose(1, 3).mean())
        return logits


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.eval()
