"""Models that a `factory:` URI in the tests of commands can name."""

from __future__ import annotations

from torch import nn

from tests.split_inference.models import Branches, seeded


def branches() -> nn.Module:
    """Five classes, images of any size."""
    return seeded(Branches())
