"""Links by name: the file that ships, what is refused and how, and the links that come of it; and their table."""

from __future__ import annotations

import io
import json
from itertools import pairwise

import pytest
from rich.console import Console

from edge_sim.energy import read_power_profiles, read_radio_profiles
from edge_sim.link import Bottleneck
from edge_sim.link_profiles import build_bottleneck, build_link, read_link_profiles, read_traces
from edge_sim.link_table import link_rows, render_links
from edge_sim.profile_files import MAX_PROFILE_BYTES, pick
from edge_sim.traces import Trace
from split_inference.errors import ConfigError, DataError

GOOD = """
profiles:
  home:
    up: {megabits_per_s: {value: 10, source: measured}}
    down: {megabits_per_s: {value: 20, assumed: true, low: 10, high: 40}}
    propagation_ms: {value: 5, source: ping}
"""


def read_text(tmp_path, text: str):
    path = tmp_path / "links.yaml"
    path.write_text(text)
    return read_link_profiles(path)


def test_the_profiles_that_ship_have_the_rates_of_the_literature():
    profiles = read_link_profiles()
    rates = {name: profiles[name].up.megabits_per_s for name in ("3g", "lte", "wifi")}
    assert {name: rate.value for name, rate in rates.items() if rate} == {"3g": 1.1, "lte": 5.85, "wifi": 18.88}
    assert not any(rate.assumed for rate in rates.values() if rate)
    assert {profile.radio for profile in profiles.values()} <= set(read_radio_profiles())
    # A third of the time at each state's share: the mean that its note speaks of.
    fading = build_bottleneck(profiles["lte-fading"].up, traces={}, seed=0)
    assert fading.mean_megabits_per_s == pytest.approx(5.85, rel=0.01)


def test_every_profile_that_ships_becomes_a_link(data_folder):
    profiles = read_link_profiles()
    traces = read_traces(profiles.values(), data_folder / "traces")
    assert len(traces) == 7
    for profile in profiles.values():
        link = build_link(profile, traces=traces, seed=3)
        up = link.deliver_up(0.0, 8000)
        down = link.deliver_down(up.arrives_at_s, 200)
        assert 0 < up.arrives_at_s < down.arrives_at_s < 5
        assert up.propagation_s >= profile.propagation_ms.value / 1000


def test_a_message_into_the_hole_of_a_recorded_drive_is_delivered_after_it(data_folder):
    profile = read_link_profiles()["att-lte-driving"]
    trace = read_traces([profile], data_folder / "traces")["ATT-LTE-driving.up"]
    moments = [trace.time_s(number) for number in range(trace.opportunities)]
    hole_from_s, hole_until_s = max(pairwise(moments), key=lambda pair: pair[1] - pair[0])
    assert hole_until_s - hole_from_s == pytest.approx(78.319)
    link = build_link(profile, traces={trace.name: trace})
    delivery = link.deliver_up(hole_from_s + 0.5, 1000)
    assert delivery.arrives_at_s == hole_until_s + 0.0275
    assert delivery.transmission_s == pytest.approx(77.819)
    # The one behind it waits in the queue, and says so.
    assert link.deliver_up(hole_from_s + 1.0, 1000).queued_s == pytest.approx(77.319)


def test_seeds_make_devices_and_given_bottlenecks_make_a_cell():
    profile = read_link_profiles()["lte-fading"]
    one, same, other = (build_link(profile, seed=seed).deliver_up(0.0, 100_000) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    cell = Bottleneck(8.0)
    first, second = (build_link(profile, seed=seed, up=cell, overhead_bytes=0) for seed in (1, 2))
    assert first.deliver_up(0.0, 1_000_000).transmission_s == 1.0
    assert second.deliver_up(0.0, 1000).queued_s == 1.0


def test_a_profile_of_ones_own_is_read(tmp_path):
    link = build_link(read_text(tmp_path, GOOD)["home"], overhead_bytes=0)
    assert link.deliver_up(0.0, 1_250_000).arrives_at_s == 1.005


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("up: {megabits", "ap: {megabits", "profiles.home.up: has to be set"),
        ("source: ping}", "source: ping, ms: 5}", "profiles.home.propagation_ms.ms: unknown key"),
        ("value: 10,", "value: ten,", "profiles.home.up.megabits_per_s.value: .*, got 'ten'"),
        ("value: 10,", "value: 0,", "profiles.home.up: megabits_per_s is above 0"),
        ("value: 10,", "value: .inf,", "profiles.home.up.megabits_per_s.value: .*finite"),
        ("value: 5,", "value: -5,", "profiles.home.propagation_ms.value: .*, got -5"),
        (", source: measured", "", "profiles.home.up.megabits_per_s: a figure needs its source, or assumed"),
        (", low: 10, high: 40", "", "profiles.home.down.megabits_per_s: an assumed figure needs low and high"),
        ("low: 10", "low: 30", "profiles.home.down.megabits_per_s: low, value and high ascend"),
        ("{megabits_per_s: {value: 10, source: measured}}", "{}", "profiles.home.up: a direction has one of"),
        ("up: {", "up: {trace: a.up, ", "profiles.home.up: a direction has one of"),
        ("{megabits_per_s: {value: 10, source: measured}}", "{trace: ../a.up}", "profiles.home.up.trace: .*pattern"),
        ("{megabits_per_s: {value: 10, source: measured}}", "{trace: a.up}", "profiles.home.up: .* need their source"),
        (
            "{megabits_per_s: {value: 10, source: measured}}",
            "{states: [{megabits_per_s: 0, mean_dwell_s: 1}], assumed: true}",
            "profiles.home.up: one of the states",
        ),
        ("propagation_ms", "loss: {value: 1, source: x}\n    propagation_ms", "profiles.home: loss is a probability"),
        ("  home:", "  'ho me':", "profiles.ho me.*pattern"),
        ("propagation_ms", "up: {}\n    propagation_ms", r"links.yaml:6: not YAML: up stands twice"),
        ("down: {", "down: &a {", ""),
        ("{value: 5, source: ping}", "*a", r"links.yaml:6: not YAML: aliases are not used here"),
        ("profiles:", "profiles: [", r"links.yaml:\d: not YAML"),
        (GOOD, "", "the file: .*valid dictionary"),
        (GOOD, "#" * (MAX_PROFILE_BYTES + 1), "more than 1048576 bytes"),
        (GOOD, "x: \x01", "not YAML"),
    ],
)
def test_a_wrong_profile_is_one_line_with_its_place(tmp_path, old, new, said):
    assert old in GOOD
    if not said:
        assert read_text(tmp_path, GOOD.replace(old, new, 1))
        return
    with pytest.raises(ConfigError, match=said) as caught:
        read_text(tmp_path, GOOD.replace(old, new, 1))
    assert "links.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_names_and_traces_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*none\.yaml: No such file"):
        read_link_profiles(tmp_path / "none.yaml")
    profiles = read_link_profiles()
    with pytest.raises(ConfigError, match=r"no link profile '4g'; there are 3g, .*wifi"):
        pick(profiles, "4g", what="link")
    assert pick(read_power_profiles(), "raspberry-pi-5", what="device").compute_w.value == 11
    with pytest.raises(DataError, match=r"no trace Verizon-LTE-short\.up: .*name the folder"):
        build_link(profiles["verizon-lte-short"])
    with pytest.raises(DataError, match=r"cannot read the trace .*Verizon-LTE-short\.down"):
        read_traces([profiles["verizon-lte-short"]], tmp_path)


def test_the_table_says_what_is_assumed_and_which_traces_are_not_at_hand():
    profiles = read_link_profiles()
    traces = {"Verizon-LTE-short.up": Trace([1, 2, 4], name="Verizon-LTE-short.up")}
    rows = link_rows(profiles, traces)
    assert json.loads(json.dumps(rows)) == rows
    by_name = {row["name"]: row for row in rows}
    assert by_name["lte"]["up"]["mean_megabits_per_s"] == 5.85
    assert "convention" in by_name["lte"]["up"]["source"]
    assert (by_name["lte"]["assumed"], by_name["3g"]["assumed"]) == (False, True)
    verizon = by_name["verizon-lte-short"]
    assert (verizon["up"]["duration_s"], verizon["up"]["longest_hole_s"]) == (0.004, 0.002)
    assert verizon["up"]["mean_megabits_per_s"] == pytest.approx(9.0)
    assert verizon["down"]["mean_megabits_per_s"] is None
    file = io.StringIO()
    render_links(Console(file=file, width=120), rows)
    text = file.getvalue()
    assert "~2 (0.5..5)" in text
    assert "9.00 (trace)" in text
    assert "? (trace)" in text
    assert "not at hand" in text
    assert "~ assumed" in text
