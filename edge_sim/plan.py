"""What each way of answering costs one kind of device: seconds of its own, bytes, and how often it is right.

Knows numbers only: a model's profile, and seconds that somebody predicted. Policies choose among these options.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

SERVER_ONLY, SPLIT, DEVICE_ONLY = "server_only", "split", "device_only"
# Seconds to quantise, pack and compress one value. Measured at 1.6 ns on a server core (docs/results/codec_*.md);
# assumed to be six times that on every device, because nobody measured it there.
ENCODE_S_PER_VALUE = 10e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanOption:
    """One way of answering on one kind of device."""

    index: int
    """In the model's profile; -1 for the whole model on the device."""
    mode: str
    """server_only, split or device_only."""
    split_point: str | None
    codec: str | None
    head_s: float
    """Of the device at full speed, until the frame is ready; 0 for an input that is sent as it is."""
    rest_s: float
    """Of the device at full speed, to finish by itself afterwards what the server would have done."""
    sizes: tuple[int, ...]
    """Bytes of the body, by input; empty where nothing is sent."""
    correct: tuple[bool | None, ...]
    """By input; empty where unknown."""
    mean_bytes: float
    accuracy: float | None
    """Share of the inputs that are answered correctly."""


def device_only(*, whole_s: float, correct: Sequence[bool | None]) -> PlanOption:
    """The whole model on the device."""
    return PlanOption(
        index=-1,
        mode=DEVICE_ONLY,
        split_point=None,
        codec=None,
        head_s=whole_s,
        rest_s=0.0,
        sizes=(),
        correct=tuple(correct),
        mean_bytes=0.0,
        accuracy=accuracy_of(correct),
    )


def sending(
    index: int,
    *,
    split_point: str | None,
    codec: str | None,
    head_s: float,
    whole_s: float,
    values: int,
    sizes: Sequence[int],
    correct: Sequence[bool | None],
) -> PlanOption:
    """A head on the device, or nothing, and a body to the server. `values` is how many the codec encodes."""
    return PlanOption(
        index=index,
        mode=SERVER_ONLY if split_point is None else SPLIT,
        split_point=split_point,
        codec=codec,
        head_s=head_s + ENCODE_S_PER_VALUE * values,
        rest_s=max(0.0, whole_s - head_s),
        sizes=tuple(sizes),
        correct=tuple(correct),
        mean_bytes=fmean(sizes),
        accuracy=accuracy_of(correct),
    )


def accuracy_of(correct: Sequence[bool | None]) -> float | None:
    """Share of true ones; None where any is unknown."""
    if not correct or any(each is None for each in correct):
        return None
    return sum(1 for each in correct if each) / len(correct)


def cheapest(options: Sequence[PlanOption], cost: Callable[[PlanOption], float]) -> tuple[PlanOption, float]:
    """The option that costs least, the first of several, and what it costs."""
    best, best_cost = options[0], cost(options[0])
    for option in options[1:]:
        value = cost(option)
        if value < best_cost:
            best, best_cost = option, value
    return best, best_cost
