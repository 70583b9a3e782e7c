"""When a device gets inputs: moments from a seed, one after the other."""

from __future__ import annotations

import random
from collections.abc import Iterator


def poisson_s(rng: random.Random, *, rate_per_s: float, until_s: float) -> Iterator[float]:
    """Moments of a Poisson process."""
    at_s = rng.expovariate(rate_per_s)
    while at_s < until_s:
        yield at_s
        at_s += rng.expovariate(rate_per_s)


def periodic_s(rng: random.Random, *, rate_per_s: float, until_s: float) -> Iterator[float]:
    """Moments at a steady rate from a random part of the period on: devices are not started in step."""
    first_s = rng.random() / rate_per_s
    number = 0
    while (at_s := first_s + number / rate_per_s) < until_s:
        yield at_s
        number += 1
