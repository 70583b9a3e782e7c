"""Seconds of networks on devices on which nobody measured them: a fit by family of operations.

Four rows a device cannot tell seven families apart, so that devices help each other: a common profile says how
expensive the families are to one another on processors of this kind (one for CPUs, one for GPUs), each device has a
speed, and deviates from the common profile by as little as its own rows need (ridge, in relative error). Costs are
never negative.
How wrong the fit is, is measured by leaving each model out on every device (docs/results/device-fit_*.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_sim.device_profiles import DeviceProfile
from edge_sim.work import ModelWork, Work

Array = NDArray[np.float64]
# How firmly a device is held to the common profile, and that to the prior; all three chosen from a coarse grid by
# leaving models out, so that the error of the check is a little too good.
RIDGE = 1.0
COMMON_RIDGE = 3.0
# What the families cost beside one MAC of a 1x1 convolution, before any row is seen: depthwise is bound by memory, 3x3
# has Winograd's way, linear layers read a weight for each MAC. Assumed; the rows move it.
PRIOR = (8.0, 1.0, 0.5, 1.2, 5.0, 10.0, 1e5)
_KINDS: tuple[Literal["cpu"], Literal["gpu"]] = ("cpu", "gpu")
_ROUNDS = 40
_SWEEPS = 400
# All numbers are near one: a sweep that moves none of them by more has reached what a float can tell apart.
_STILL = 1e-14


@dataclass(frozen=True, slots=True)
class Prediction:
    """How long a network takes, and how sure that is."""

    seconds: float
    relative_error: float
    """To expect of it: 0 for a measured row, else the fit's median error where the model was left out."""
    basis: Literal["measured", "fitted"]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """One row of the check: a network on a device, predicted without any row of that network."""

    device: str
    model: str
    measured_s: float
    predicted_s: float

    @property
    def relative_error(self) -> float:
        """Signed: positive where the prediction is too long."""
        return self.predicted_s / self.measured_s - 1


class DeviceFit:
    """Seconds per unit of each family, for every device of a table."""

    def __init__(self, devices: Mapping[str, DeviceProfile], works: Mapping[str, ModelWork]) -> None:
        """`works` has the networks of the devices' measured rows; others in it do no harm."""
        self._devices = devices
        self._works = works
        self._costs = _fit(devices, {name: work.whole for name, work in works.items()})

    @cached_property
    def expected_error(self) -> Mapping[str, float]:
        """By kind of device: median of the check by leaving each model out, without a sign."""
        found: dict[str, float] = {}
        for kind in _KINDS:
            rows = leave_one_model_out(self._devices, self._works, kind=kind)
            found[kind] = float(np.median([abs(row.relative_error) for row in rows])) if rows else float("inf")
        return found

    def _error_of(self, device: str) -> float:
        return self.expected_error[self._devices[device].kind]

    def costs(self, device: str) -> Array:
        """Seconds per unit, in the order of Work's fields."""
        return self._costs[device]

    def whole(self, device: str, model: str, work: Work) -> Prediction:
        """One sample of a whole network; `model` is its name in the table, if it has one."""
        measured_ms = self._devices[device].measured_ms.get(model)
        if measured_ms is not None:
            return Prediction(measured_ms / 1000, 0.0, "measured")
        return Prediction(self._seconds(device, work), self._error_of(device), "fitted")

    def head(self, device: str, model: str, work: Work, *, of: Work) -> Prediction:
        """One sample of a head: its predicted share of the whole network `of`, times what the whole takes."""
        whole_s = self._seconds(device, of)
        share = self._seconds(device, work) / whole_s if whole_s > 0 else 0.0
        return Prediction(share * self.whole(device, model, of).seconds, self._error_of(device), "fitted")

    def _seconds(self, device: str, work: Work) -> float:
        return float(np.dot(self._costs[device], np.asarray(work, dtype=np.float64)))


def leave_one_model_out(
    devices: Mapping[str, DeviceProfile], works: Mapping[str, ModelWork], *, kind: Literal["cpu", "gpu"] = "cpu"
) -> list[LeftOut]:
    """Each row of the devices of a kind, predicted by a fit that has seen no row of its network on any device."""
    chosen = {name: device for name, device in devices.items() if device.kind == kind}
    models = sorted({model for device in chosen.values() for model in device.measured_ms})
    found = []
    for model in models:
        others = {name: work.whole for name, work in works.items() if name != model}
        costs = _fit(chosen, others)
        work = np.asarray(works[model].whole, dtype=np.float64)
        for name, device in chosen.items():
            if model in device.measured_ms and name in costs:
                found.append(LeftOut(name, model, device.measured_ms[model] / 1000, float(costs[name] @ work)))
    return found


def _fit(devices: Mapping[str, DeviceProfile], works: Mapping[str, Work]) -> dict[str, Array]:
    costs: dict[str, Array] = {}
    for kind in _KINDS:
        rows = {
            name: [(works[model], ms / 1000) for model, ms in device.measured_ms.items() if model in works]
            for name, device in devices.items()
            if device.kind == kind
        }
        costs |= _fit_kind({name: own for name, own in rows.items() if own})
    return costs


def _fit_kind(rows: Mapping[str, Sequence[tuple[Work, float]]]) -> dict[str, Array]:
    if not rows:
        return {}
    works = {name: np.asarray([work for work, _ in own], dtype=np.float64) for name, own in rows.items()}
    times = {name: np.asarray([seconds for _, seconds in own]) for name, own in rows.items()}
    # Families at the prior's prices, in units of a mean network, so that all numbers are near one.
    prices = np.asarray(PRIOR, dtype=np.float64)
    mean = float(np.mean(np.concatenate(list(works.values())) @ prices))
    unit = mean / prices
    works = {name: each / unit for name, each in works.items()}
    common = np.ones(len(unit))
    rows_of_all = sum(len(each) for each in works.values())
    ridge_of_all = np.sqrt(COMMON_RIDGE * rows_of_all)
    speed = {name: 1.0 for name in rows}
    for _ in range(_ROUNDS):
        for name in rows:
            speed[name] = float(np.exp(np.mean(np.log(times[name] / np.maximum(works[name] @ common, 1e-12)))))
        left = np.concatenate([works[name] * speed[name] / times[name][:, None] for name in rows])
        common = _non_negative_least_squares(
            np.concatenate([left, ridge_of_all * np.eye(len(unit))]),
            np.concatenate([np.ones(len(left)), np.full(len(unit), ridge_of_all)]),
            start=common,
        )
    costs = {}
    for name in rows:
        base = common * speed[name]
        left = works[name] * base / times[name][:, None]
        ridge = np.sqrt(RIDGE) * np.eye(len(unit))
        factor = _non_negative_least_squares(
            np.concatenate([left, ridge]),
            np.concatenate([np.ones(len(left)), np.full(len(unit), np.sqrt(RIDGE))]),
            start=np.ones(len(unit)),
        )
        costs[name] = base * factor / unit
    return costs


def _non_negative_least_squares(left: Array, right: Array, *, start: Array) -> Array:
    """The x >= 0 that brings left @ x nearest to right: coordinate descent, which only ever improves.

    A trace of a ridge keeps columns that nobody's rows have where they start.
    """
    tiny = 1e-6
    gram = left.T @ left + tiny * np.eye(left.shape[1])
    goal = left.T @ right + tiny * start
    x = start.copy()
    for _ in range(_SWEEPS):
        largest = 0.0
        for column in range(len(x)):
            before = x[column]
            x[column] = max(0.0, before + (goal[column] - gram[column] @ x) / gram[column, column])
            largest = max(largest, abs(x[column] - before))
        if largest < _STILL:
            break
    return x
