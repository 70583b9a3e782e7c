"""Load tests ask what a fleet asked: the same options, as often, by attempts and not by requests."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from edge_sim.fleet_commands import app
from edge_sim.recorded_traffic import asked_of, traffic_for
from edge_sim.run_reader import read_run
from split_inference.errors import UsageError
from split_inference.model_catalog import EMBEDDED_FOLDER
from split_inference.payload_file import PayloadFile
from tests.edge_sim.fleets import group, scenario, simulate

FIXED = {"kind": "fixed", "split_point": "half", "codec": "u4+lz4"}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    groups = [
        group("server", count=2, policy={"kind": "server_only"}),
        group("split", count=6, policy=FIXED),
        group("device", count=5, policy={"kind": "device_only"}),
    ]
    rows = simulate(scenario(*groups, duration_s=200.0), folder)
    return folder, rows


def test_shares_and_rates_are_those_of_what_was_sent(recorded):
    folder, rows = recorded
    asked = {each.choice: each for each in asked_of(read_run(folder))}
    assert asked.keys() == {"server_only", "half,u4+lz4"}
    for name, key in (("server_only", "server"), ("half,u4+lz4", "split")):
        sent = sum(row["attempts"] for row in rows if row["group"] == key)
        assert asked[name].rate_per_s == pytest.approx(sent / 200)
    assert sum(each.share for each in asked.values()) == pytest.approx(1)
    # Six devices of eight ask this way, once a second each.
    assert asked["half,u4+lz4"].share == pytest.approx(6 / 8, abs=0.03)
    assert asked["half,u4+lz4"].rate_per_s == pytest.approx(6, rel=0.1)


def test_the_traffic_names_the_file_s_options_by_place(recorded):
    asked = asked_of(read_run(recorded[0]))
    options = [("other", "u8+lz4"), (None, None), ("half", "u4+lz4")]
    traffic = traffic_for(asked, options)
    assert {each.option for each in traffic} == {1, 2}
    assert sum(each.share for each in traffic) == pytest.approx(1)
    with pytest.raises(UsageError, match="half,u4"):
        traffic_for(asked, options[:2])


def test_what_has_no_traffic_is_refused(recorded, tmp_path):
    with pytest.raises(UsageError, match="sent nothing for 'other'"):
        asked_of(read_run(recorded[0]), model="other")
    simulate(scenario(group(policy={"kind": "device_only"})), tmp_path / "alone")
    with pytest.raises(UsageError, match="no device sent anything"):
        asked_of(read_run(tmp_path / "alone"))


def test_a_scenario_becomes_a_payload_file_in_two_commands(tmp_path):
    file = tmp_path / "fleet.yaml"
    profile = {"source": "assumed", "overhead_s": [0.001], "batch_s": {"*": {1: [0.003], 16: [0.02]}}}
    policies = {"all": {"kind": "server_only"}, "cut": {"kind": "fixed", "split_point": "stage2", "codec": "u4+lz4"}}
    groups = [
        {
            "name": name,
            "count": 3,
            "device": "pi-5",
            "link": {"profile": "wifi"},
            "model": "r20",
            "policy": policy,
            "arrivals": {"kind": "poisson", "rate_per_s": 1.0},
        }
        for name, policy in policies.items()
    ]
    made = {
        "version": 1,
        "duration_s": 30,
        "models": {"r20": {"profile": "resnet20-cifar10"}},
        "server": {"profiles": {"r20": profile}},
        "groups": groups,
    }
    file.write_text(json.dumps(made))
    runner = CliRunner()
    ran = runner.invoke(app, ["run", str(file), "--runs", str(tmp_path / "runs"), "--json"])
    assert ran.exit_code == 0, ran.output
    folder = next((tmp_path / "runs").iterdir())
    target = tmp_path / "fleet.payloads"
    words = ["payloads", "embedded:resnet20-cifar10", "--inputs", str(EMBEDDED_FOLDER / "samples"), "--limit", "3"]
    prepared = runner.invoke(app, [*words, "--traffic-of", str(folder), "--out", str(target), "--json"])
    assert prepared.exit_code == 0, prepared.output
    with PayloadFile.open(target) as payloads:
        titles = {payloads.header.options[each.option].split_point for each in payloads.header.traffic}
        assert titles == {None, "stage2"}
        rates = [each.rate_per_s for each in payloads.header.traffic]
    assert sum(rate or 0 for rate in rates) == pytest.approx(6, rel=0.3)
