"""Which of a model's tails get ready before the first request: compiled, captured as graphs, or only run once.

Knows split points and settings. Knows no torch modules and no device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from serve_app.settings import ExecutionSettings

if TYPE_CHECKING:
    import torch

    from split_inference.model_split import FeatureSpec, SplitPoint

MAX_COMPILED = 4


class TailSource(Protocol):
    """What is needed of a model: `split_inference.model_split.SplittableModel` is one."""

    @property
    def digest(self) -> str: ...

    @property
    def input(self) -> FeatureSpec: ...

    @property
    def split_points(self) -> tuple[SplitPoint, ...]: ...

    def split_point(self, name: str) -> SplitPoint: ...

    def tail(self, at: str) -> torch.nn.Module: ...


def points_to_compile(
    model: TailSource,
    settings: ExecutionSettings,
    *,
    served: Sequence[SplitPoint],
    calibrated: str | None,
    device: str = "cpu",
) -> tuple[str, ...]:
    """The names that `execution.compile` stands for; "auto" is documented there. Raises UnknownSplitPointError."""
    if settings.compile == "none" or (settings.compile == "auto" and device != "cpu"):
        return ()
    if settings.compile != "auto":
        return tuple(dict.fromkeys(model.split_point(name).name for name in settings.compile))
    if settings.precision == "float32":
        return ()
    return points_worth_it(model, served=served, calibrated=calibrated)


def points_to_warm(
    model: TailSource,
    settings: ExecutionSettings,
    *,
    served: Sequence[SplitPoint],
    calibrated: str | None,
    device: str = "cpu",
) -> tuple[str, ...]:
    """What has to be fast with the first request: what is compiled, or captured on a GPU, and one tail at least."""
    compiled = points_to_compile(model, settings, served=served, calibrated=calibrated, device=device)
    if compiled:
        return compiled
    names = {point.name for point in served}
    one = (calibrated if calibrated in names else served[0].name,)
    if device == "cpu" or settings.cuda_graphs == "off":
        return one
    return points_worth_it(model, served=served, calibrated=calibrated) or one


def points_worth_it(model: TailSource, *, served: Sequence[SplitPoint], calibrated: str | None) -> tuple[str, ...]:
    """The calibrated split point, where it is served, and stage ends; at most four."""
    chosen = stage_ends(served)
    names = {point.name for point in served}
    if calibrated is not None and model.split_point(calibrated).name in names:
        chosen = [model.split_point(calibrated).name, *chosen]
    return tuple(dict.fromkeys(chosen))[:MAX_COMPILED]


def stage_ends(points: Sequence[SplitPoint]) -> list[str]:
    """The last split point of each feature shape, those with most of the work on the device first.

    Only where at least a hundredth of the work is left for the tail: there is nothing to win by compiling less.
    """
    last: dict[Any, SplitPoint] = {}
    for point in points:
        last[tuple(spec.shape for spec in point.features)] = point
    ends = [point for point in last.values() if point.head_macs > 0 and point.head_macs_share <= 0.99]
    return [point.name for point in reversed(ends)]
