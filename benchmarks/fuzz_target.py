"""What the fuzzer sends frames to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Something that reads frames from strangers."""

    name: str
    check: Callable[[bytes], str]
    """Returns what came of the frame, as in "decoded" or the name of a refusal; anything raised has escaped."""
