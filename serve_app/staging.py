"""Buffers of batches: where frames are decoded to, and where the tail reads from.

Knows torch tensors in the machine's memory, and their NumPy views. Knows no model and no codec.

On a GPU, buffers that the device copies from should be pinned: the copy then needs no detour and no waiting. Pinning
is a call of CUDA's, and all of those come from one thread (cuda_device.py says why). Buffers are taken by any thread,
so a new one is pageable; it is pinned when it is given back, which the device's thread does.

Shape legend: N rows, C channels, B bits, W bytes of one row's plane.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from serve_app.feature_form import FeatureForm
from split_inference.feature_codec import planes_shape
from split_inference.model_split import FeatureSpec

# Buffers of this many batches are kept between batches; the others are given back to the system.
_KEPT_BUFFERS = 6


@dataclass(kw_only=True, slots=True, eq=False)
class TensorBuffers:
    """The part of one tensor: fill `values`, and where there are scales `steps_NC` and `lows_NC` too."""

    form: FeatureForm
    values: NDArray[np.uint8] | NDArray[np.float32]
    """Floats or codes [N, ...], or planes [N, B, W]."""
    steps_NC: NDArray[np.float32] | None = None
    lows_NC: NDArray[np.float32] | None = None


@dataclass(kw_only=True, slots=True, eq=False)
class Staged:
    """One batch's buffers."""

    split_point: str
    forms: tuple[FeatureForm, ...]
    rows: int
    pinned: bool
    tensors: tuple[Tensor, ...] = ()
    """What the tail takes: the arrays of all `parts` behind one another."""
    parts: list[TensorBuffers] = field(default_factory=list)

    @property
    def capacity(self) -> int:
        """Rows that the buffers have."""
        return len(self.tensors[0])

    @property
    def row_bytes(self) -> int:
        """Bytes of one row: what a batch copies to its device, divided by its rows."""
        return sum(math.prod(tensor.shape[1:]) * tensor.element_size() for tensor in self.tensors)


class Staging:
    """Lends buffers and keeps a few; safe to use from several threads."""

    def __init__(self, *, pin: bool = False) -> None:
        self._pin = pin
        self._free: list[Staged] = []
        self._lock = threading.Lock()

    def take(
        self, split_point: str, specs: Sequence[FeatureSpec], forms: Sequence[FeatureForm], *, rows: int, capacity: int
    ) -> Staged:
        """Buffers of at least `capacity` rows. Calls nothing of a device's."""
        forms = tuple(forms)
        with self._lock:
            for index, staged in enumerate(self._free):
                fits = capacity <= staged.capacity <= 4 * capacity
                if fits and (staged.split_point, staged.forms) == (split_point, forms):
                    staged = self._free.pop(index)
                    staged.rows = rows
                    return staged
        return _new(split_point, specs, forms, rows=rows, capacity=capacity)

    def give_back(self, staged: Staged) -> None:
        """The buffers may be used for another batch; called by the device's thread, where there is one."""
        if self._pin and not staged.pinned:
            staged = _pinned_like(staged)
        with self._lock:
            self._free.append(staged)
            del self._free[:-_KEPT_BUFFERS]


def channels_of(spec: FeatureSpec) -> int:
    """Length of the channel axis; 1 where a sample is one number."""
    return spec.shape[spec.channel_axis - 1] if spec.shape else 1


def _new(
    split_point: str, specs: Sequence[FeatureSpec], forms: tuple[FeatureForm, ...], *, rows: int, capacity: int
) -> Staged:
    tensors: list[Tensor] = []
    for spec, form in zip(specs, forms, strict=True):
        shape: tuple[int, ...] = (capacity, *spec.shape)
        if form.kind == "floats":
            tensors.append(torch.zeros(shape))
            continue
        if form.kind == "planes":
            shape = planes_shape(shape, bits=form.bits)
        channels = channels_of(spec) if form.per_channel else 1
        # Zeros, because empty rows run too, and must be numbers.
        tensors += [torch.zeros(shape, dtype=torch.uint8), *(torch.zeros((capacity, channels)) for _ in range(2))]
    return _with_views(Staged(split_point=split_point, forms=forms, rows=rows, pinned=False), tensors)


def _pinned_like(staged: Staged) -> Staged:
    tensors = [tensor.new_zeros(tensor.shape, pin_memory=True) for tensor in staged.tensors]
    return _with_views(Staged(split_point=staged.split_point, forms=staged.forms, rows=0, pinned=True), tensors)


def _with_views(staged: Staged, tensors: Sequence[Tensor]) -> Staged:
    staged.tensors = tuple(tensors)
    arrays = iter(tensor.numpy() for tensor in tensors)
    for form in staged.forms:
        part = TensorBuffers(form=form, values=next(arrays))
        if form.kind != "floats":
            part.steps_NC, part.lows_NC = next(arrays), next(arrays)
        staged.parts.append(part)
    return staged
