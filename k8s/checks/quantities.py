"""Kubernetes' resource quantities ("250m", "8Gi") as numbers."""

from __future__ import annotations

import re

_SUFFIXES = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_SUFFIXES |= {f"{letter}i": 1024.0 ** (power + 1) for power, letter in enumerate("KMGT")}
_QUANTITY = re.compile(r"([0-9.]+)([A-Za-z]*)")


def quantity(text: str | int | float) -> float:
    """Its value: cores, bytes or pieces. Raises ValueError where it is none.

    >>> quantity("250m"), quantity("1Gi"), quantity(2)
    (0.25, 1073741824.0, 2.0)
    """
    found = _QUANTITY.fullmatch(str(text))
    if found is None or found[2] not in _SUFFIXES:
        raise ValueError(f"{text!r} is no quantity")
    return float(found[1]) * _SUFFIXES[found[2]]
