"""In what form the features of one tensor reach the tail: as floats, as codes, or as bit planes.

Knows names of quantizers. Knows no torch and no buffers.

A batch's rows all have one form, because a tail that is compiled, or captured as a graph, has fixed inputs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

_UNIFORM = re.compile(r"u([1-8])(c?)")


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureForm:
    """Of one tensor of a split point."""

    kind: Literal["floats", "codes", "planes"]
    """floats: decoded already. codes: a byte each, with scales. planes: bits of codes, with scales."""
    bits: int = 8
    """Of a code; below 8 only for planes."""
    per_channel: bool = True
    """Whether there is a scale for each channel, or one for each sample."""

    @property
    def arrays(self) -> int:
        """How many arrays the tail takes for the tensor: its floats, or codes or planes with steps and lows."""
        return 1 if self.kind == "floats" else 3


FLOATS: Final = FeatureForm(kind="floats")
CODES: Final = FeatureForm(kind="codes")
"""With a scale for each channel, whatever the quantizer: one form serves them all, and with it one compiled tail."""


def form_of(quantizer: str, *, from_codes: bool, planes: bool) -> FeatureForm:
    """The form of a quantizer's features; `planes` says whether the tail unpacks bits.

    >>> form_of("u2", from_codes=True, planes=True)
    FeatureForm(kind='planes', bits=2, per_channel=False)
    >>> form_of("jpeg", from_codes=True, planes=True).kind, form_of("u2", from_codes=True, planes=False).kind
    ('codes', 'codes')
    """
    if not from_codes:
        return FLOATS
    match = _UNIFORM.fullmatch(quantizer)
    # A number of bits that no quantizer has is left to the decoder, which refuses it.
    if not planes or match is None:
        return CODES
    return FeatureForm(kind="planes", bits=int(match[1]), per_channel=bool(match[2]))
