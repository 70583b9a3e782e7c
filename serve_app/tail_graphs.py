"""Tails as CUDA graphs: one captured graph for each split point, number of rows and form of features.

A small tail is a hundred kernels that each run for microseconds, and launching them from Python takes longer than
running them. A graph launches all of them at once. Its inputs and output lie at fixed addresses, so rows are copied
into the first and out of the second, and a batch is filled up to the graph's number of rows.

Knows tensors, and a device that captures (cuda_device.py). Knows no CUDA, no model and no batching; everything here is
called from one thread. Decision record 0011 says why graphs, and not torch.compile.

Shape legend: N rows, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from serve_app.cuda_device import GraphDevice
from serve_app.feature_form import FeatureForm

LOG = logging.getLogger(__name__)
# Forms come from outside: 17 for each tensor. Beyond this many graphs, what is new runs eagerly.
MAX_GRAPHS = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphKey:
    """What one graph is for."""

    split_point: str
    bucket: int
    """Rows that it runs, empty ones among them."""
    forms: tuple[FeatureForm, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Graph:
    inputs: tuple[Tensor, ...]
    launch: Callable[[], object]
    output_NK: Tensor


class TailGraphs:
    """Captures a graph when it is first asked for, and launches it ever after."""

    def __init__(self, capturer: GraphDevice, *, device: torch.device, most: int = MAX_GRAPHS) -> None:
        self._capturer = capturer
        self._device = device
        self._most = most
        self._graphs: dict[GraphKey, _Graph] = {}
        self._refused: dict[str, str] = {}

    @property
    def refused(self) -> Mapping[str, str]:
        """Split points that cannot be captured, and why, in one line."""
        return self._refused

    def __len__(self) -> int:
        """Graphs that are captured."""
        return len(self._graphs)

    def run(self, key: GraphKey, tail: Callable[..., Tensor], inputs: Sequence[Tensor], *, rows: int) -> Tensor | None:
        """Logits [N, K] of the first `rows` rows of `inputs`, on the device; None where there is no such graph.

        The result is the caller's own: the next launch does not change it.
        """
        graph = self._graphs.get(key) or self._capture(key, tail, inputs)
        if graph is None:
            return None
        # On one stream: the copies wait for the last launch, and the launch for the copies. Rows behind hold what an
        # earlier batch left there: numbers, whose answers nobody reads.
        for fixed, given in zip(graph.inputs, inputs, strict=True):
            fixed[:rows].copy_(given[:rows], non_blocking=True)
        graph.launch()
        return graph.output_NK[:rows].clone()

    def _capture(self, key: GraphKey, tail: Callable[..., Tensor], inputs: Sequence[Tensor]) -> _Graph | None:
        if key.split_point in self._refused or len(self._graphs) >= self._most:
            return None
        fixed = tuple(
            torch.zeros((key.bucket, *given.shape[1:]), dtype=given.dtype, device=self._device) for given in inputs
        )
        try:
            launch, output_NK = self._capturer.capture(lambda: tail(*fixed))
        except RuntimeError as error:
            lines = str(error).strip().splitlines()
            reason = self._refused[key.split_point] = lines[0] if lines else type(error).__name__
            LOG.warning("the tail behind %s runs eagerly, without a CUDA graph: %s", key.split_point, reason)
            return None
        graph = self._graphs[key] = _Graph(inputs=fixed, launch=launch, output_NK=output_NK)
        return graph
