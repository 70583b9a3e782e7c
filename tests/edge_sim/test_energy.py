"""Joules of a request: figures computed by hand, the radio's tail against its timeline, and bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sim.energy import (
    NOTHING,
    Battery,
    Joules,
    RadioTail,
    read_power_profiles,
    read_radio_profiles,
    request_energy,
)
from split_inference.errors import ConfigError

RADIOS = read_radio_profiles()
DEVICES = read_power_profiles()


@pytest.mark.parametrize(
    ("radio", "megabits_per_s", "milliwatts"),
    [
        ("lte", 5.85, 438.39 * 5.85 + 1288.04),
        ("3g", 1.1, 868.98 * 1.1 + 817.88),
        ("wifi", 18.88, 283.17 * 18.88 + 132.86),
        ("lte-2021", 20.0, 76.7 * 20 + 2926),
    ],
)
def test_sending_takes_the_power_that_the_paper_says(radio, megabits_per_s, milliwatts):
    size_bytes = 125_000
    duration_s = size_bytes * 8 / (megabits_per_s * 1e6)
    energy = RADIOS[radio].transfer(size_bytes, duration_s)
    assert energy.value == pytest.approx(milliwatts / 1000 * duration_s)
    assert energy == (energy.value, energy.value, energy.value, False)


def test_a_request_is_the_sum_of_its_four_parts():
    energy = request_energy(
        DEVICES["raspberry-pi-4b"],
        RADIOS["lte"],
        compute_s=0.05,
        wait_s=0.1,
        up_bytes=8000,
        up_s=0.02,
        down_bytes=200,
        down_s=0.001,
        tail_s=11.576,
    )
    assert energy.compute == pytest.approx((0.36, 0.36, 0.36, False))
    assert energy.radio.value == pytest.approx((438.39 * 0.0656 + 1288.04 * 0.021) / 1000)
    assert energy.tail == pytest.approx((11.576 * 1.06, 11.576 * 0.6, 11.576 * 1.28804, True))
    assert energy.wait == pytest.approx((0.23, 0.22, 0.3, False))
    assert energy.total.value == pytest.approx(sum(part.value for part in energy))
    assert energy.total.low == pytest.approx(sum(part.low for part in energy))
    # Where a tail is paid it is most of it, and it is assumed: so the sum is.
    assert energy.total.assumed
    assert energy.tail.value > 0.9 * energy.total.value


def test_a_request_that_rests_on_measurements_alone_is_not_assumed():
    energy = request_energy(DEVICES["raspberry-pi-zero-2w"], RADIOS["lte"], compute_s=1, wait_s=1, up_bytes=1, up_s=1)
    assert not energy.total.assumed
    assert request_energy(DEVICES["phone-mid"], None, compute_s=1, wait_s=0).total.assumed


def test_a_fit_of_the_whole_device_replaces_its_idle_power():
    device = DEVICES["raspberry-pi-zero-2w"]
    apart = request_energy(device, RADIOS["lte"], compute_s=0, wait_s=1.0, up_bytes=1000, up_s=0.25)
    whole = request_energy(device, RADIOS["lte-2021"], compute_s=0, wait_s=1.0, up_bytes=1000, up_s=0.25)
    assert apart.wait.value == pytest.approx(0.6)
    assert whole.wait.value == pytest.approx(0.45)


def test_a_request_on_the_device_costs_no_radio():
    energy = request_energy(DEVICES["raspberry-pi-5"], None, compute_s=0.2, wait_s=0.0)
    assert (energy.radio, energy.tail, energy.wait) == (NOTHING, NOTHING, NOTHING)
    assert energy.total.value == pytest.approx(2.2)
    with pytest.raises(ValueError, match="a transfer needs a radio"):
        request_energy(DEVICES["raspberry-pi-5"], None, compute_s=0.2, wait_s=0.0, up_bytes=1)
    with pytest.raises(ValueError, match="0 or more"):
        request_energy(DEVICES["raspberry-pi-5"], RADIOS["lte"], compute_s=-0.2, wait_s=0.0)


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0, 5)), min_size=1, max_size=20), st.floats(0, 15))
def test_tails_add_up_to_the_time_awake_without_a_transfer(transfers, tail_s):
    tail = RadioTail(tail_s)
    now_s = paid_s = awake_s = 0.0
    until_s = 0.0
    for number, (gap_s, length_s) in enumerate(transfers):
        start_s = now_s + gap_s
        # On the timeline: awake from the end of the last transfer to this one, at most tail_s; the first pays its own.
        awake_s += min(tail_s, start_s - until_s) if number else 0.0
        now_s = until_s = start_s + length_s
        paid_s += tail.extension_s(start_s, now_s)
    assert paid_s == pytest.approx(awake_s + tail_s, abs=1e-6)


def test_a_transfer_inside_the_tail_pays_the_extension_only():
    tail = RadioTail(10.0)
    assert tail.extension_s(0.0, 1.0) == 10.0
    assert tail.extension_s(4.0, 5.0) == 3.0
    assert tail.extension_s(4.5, 4.8) == 0.0
    assert tail.extension_s(5.0, 6.0) == 0.0
    assert tail.extension_s(100.0, 101.0) == 10.0
    with pytest.raises(ValueError, match="ends after it begins"):
        tail.extension_s(3.0, 2.0)
    with pytest.raises(ValueError, match="tail_s"):
        RadioTail(-1.0)


def test_bounds_enclose_every_figure_that_ships():
    for radio in RADIOS.values():
        for energy in (radio.transfer(1000, 0.1), radio.tail(1.0)):
            assert 0 <= energy.low <= energy.value <= energy.high
    for device in DEVICES.values():
        assert device.idle_w.highest <= device.compute_w.highest


def test_a_battery_gives_what_it_has():
    battery = Battery(10.0)
    assert battery.drain(4.0) == 4.0
    assert (battery.remaining_j, battery.empty) == (6.0, False)
    assert battery.drain(8.0) == 6.0
    assert battery.empty
    assert battery.drain(1.0) == 0.0
    with pytest.raises(ValueError, match="joules must be"):
        battery.drain(-1.0)
    with pytest.raises(ValueError, match="capacity_j"):
        Battery(float("nan"))


def test_what_is_added_up_is_assumed_where_any_part_is():
    assert Joules(1, 1, 1, False).plus(Joules(2, 1, 4, True)) == (3, 2, 5, True)


def test_a_device_that_idles_above_its_load_is_refused(tmp_path):
    path = tmp_path / "power.yaml"
    path.write_text("profiles: {a: {compute_w: {value: 1, source: x}, idle_w: {value: 2, source: x}}}")
    with pytest.raises(ConfigError, match=r"power\.yaml: profiles\.a: idle_w 2\.0 is above compute_w 1\.0"):
        read_power_profiles(path)
