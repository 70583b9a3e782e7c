"""Measured times are used as they are; the fit is non-negative, deterministic, scales, and says how wrong it is."""

from __future__ import annotations

import numpy as np
import pytest

from edge_sim.device_fit import DeviceFit, leave_one_model_out
from edge_sim.device_profiles import read_device_profiles
from edge_sim.work import Work, reference_work

DEVICES, WORKS = read_device_profiles(), reference_work()


@pytest.fixture(scope="module")
def fit():
    return DeviceFit(DEVICES, WORKS)


def test_every_measured_row_is_what_was_measured(fit):
    for name, device in DEVICES.items():
        for model, ms in device.measured_ms.items():
            found = fit.whole(name, model, WORKS[model].whole)
            assert (found.seconds, found.relative_error, found.basis) == (ms / 1000, 0.0, "measured")


def test_heads_grow_to_the_whole(fit):
    for model in ("resnet18", "mobilenet_v2"):
        work = WORKS[model]
        times = [fit.head("pi-4b", model, head, of=work.whole).seconds for head in work.heads.values()]
        assert times == sorted(times)
        assert times[0] == 0
        assert times[-1] == pytest.approx(DEVICES["pi-4b"].measured_ms[model] / 1000)


def test_costs_are_not_negative_and_the_same_each_time(fit):
    again = DeviceFit(DEVICES, WORKS)
    for name in DEVICES:
        assert (fit.costs(name) >= 0).all()
        np.testing.assert_array_equal(fit.costs(name), again.costs(name))


def test_a_device_twice_as_slow_is_predicted_twice_as_slow(fit):
    pi = DEVICES["pi-4b"]
    slow = pi.model_copy(update={"measured_ms": {model: 2 * ms for model, ms in pi.measured_ms.items()}})
    doubled = DeviceFit({**DEVICES, "pi-4b": slow}, WORKS)
    work = WORKS["resnet34"].whole
    ratio = doubled.whole("pi-4b", "resnet34", work).seconds / fit.whole("pi-4b", "resnet34", work).seconds
    assert ratio == pytest.approx(2, rel=1e-3)


def test_the_check_has_every_row_of_the_processors_once_and_is_better_than_one_number_of_gflops():
    rows = leave_one_model_out(DEVICES, WORKS)
    expected = {
        (name, model) for name, device in DEVICES.items() if device.kind == "cpu" for model in device.measured_ms
    }
    assert {(row.device, row.model) for row in rows} == expected
    errors = [abs(row.relative_error) for row in rows]
    # One number per device: MACs a second by its other rows.
    simple = []
    for row in rows:
        own = {model: ms for model, ms in DEVICES[row.device].measured_ms.items() if model != row.model}
        speed = np.median([sum(WORKS[model].whole[:5]) / ms for model, ms in own.items()])
        simple.append(abs(sum(WORKS[row.model].whole[:5]) / speed / 1000 / row.measured_s - 1))
    assert np.median(errors) < 0.3
    assert np.median(errors) < np.median(simple)


def test_work_adds_up():
    assert Work(1, 2, 3, 4, 5, 6, 7).plus(Work(layers=1)) == Work(1, 2, 3, 4, 5, 6, 8)
