"""The simulator's command line as a user runs it: files, one line for what is wrong, exit codes, the same run again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from edge_sim.transport import Response
from tests.edge_sim.loopback import handler_of, http_server
from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
MIXED = ROOT / "edge_sim" / "scenarios" / "mixed.yaml"
pytestmark = pytest.mark.slow


def edge_sim(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "edge_sim", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    result = edge_sim("run", MIXED, "--runs", runs, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), runs


def test_a_run_writes_its_records_and_a_header_that_explains_them(ran):
    facts, _ = ran
    folder = Path(facts["folder"])
    header = json.loads((folder / "header.json").read_text())
    rows = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
    assert len(rows) == facts["requests"] == sum(facts["outcomes"].values())
    assert header["invalid"] is None
    assert header["seed"] == 1
    assert any("assumed" in each for each in header["assumed"])
    assert header["scenario"]["groups"][0]["name"] == "pi-at-home"


def test_replayed_it_is_the_same_byte_for_byte(ran):
    facts, runs = ran
    result = edge_sim("replay", facts["folder"], "--runs", runs, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["same_records"] is True


ABSENT = object()


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (["groups", 0, "cuont"], 3, "cuont: unknown key; did you mean count"),
        (["duration_s"], ABSENT, "duration_s: has to be set"),
        (["groups", 1, "policy", "split_point"], ABSENT, "groups[1].policy.split_point: has to be set"),
        (["groups", 0, "count"], 0, "count: Input should be greater than or equal to 1"),
        (["groups", 0, "device"], "pi-99", "no device profile 'pi-99'"),
        (["groups", 1, "cell"], "road", "there is no road"),
        (["models", "mobilenet", "profile"], "gone.json", "no file"),
    ],
)
def test_a_wrong_scenario_is_one_line_with_the_file(tmp_path, place, value, said):
    content = yaml.safe_load(MIXED.read_text())
    at = content
    for step in place[:-1]:
        at = at[step]
    if value is ABSENT:
        del at[place[-1]]
    else:
        at[place[-1]] = value
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(content))
    result = edge_sim("run", file, "--runs", tmp_path)
    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert len([line for line in result.stderr.splitlines() if "edge_sim:" in line]) == 1


def test_validate_schema_devices_and_links_speak_json():
    assert json.loads(edge_sim("validate", MIXED, "--json").stdout)["devices"] == 35
    assert json.loads(edge_sim("schema").stdout)["title"] == "Scenario"
    check = json.loads(edge_sim("devices", "--check", "--json").stdout)
    assert check["figures"]["rows"] == 46
    links = json.loads(edge_sim("links", "--json").stdout)
    assert {"3g", "lte", "wifi"} <= {row["name"] for row in links}


def test_load_goes_to_this_machine_only_unless_told_otherwise(tmp_path):
    content = yaml.safe_load(MIXED.read_text())
    (tmp_path / "some.payloads").write_bytes(b"")
    content |= {"clock": "wall", "server": {"url": "http://192.0.2.1:8000"}, "faults": []}
    content["models"] = {"mobilenet": {"payloads": "some.payloads"}}
    file = tmp_path / "away.yaml"
    file.write_text(yaml.safe_dump(content))
    result = edge_sim("run", file, "--runs", tmp_path)
    assert result.returncode == 2
    assert "--yes" in result.stderr


def test_a_server_for_a_run_in_virtual_time_is_refused(tmp_path):
    result = edge_sim("run", MIXED, "--url", "http://127.0.0.1:1", "--runs", tmp_path / "runs")
    assert result.returncode == 2
    assert "virtual time" in result.stderr
    assert "clock: wall" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_shards_of_what_they_would_share_are_refused(tmp_path):
    content = yaml.safe_load(MIXED.read_text())
    file = tmp_path / "cells.yaml"
    file.write_text(yaml.safe_dump(content))
    result = edge_sim("run", file, "--shard", "0/2", "--runs", tmp_path / "runs")
    assert result.returncode == 2
    assert "share one link" in result.stderr
    for group in content["groups"]:
        if group.pop("cell", None):
            group["link"] = {"profile": "lte"}
    file.write_text(yaml.safe_dump({**content, "cells": {}, "faults": []}))
    result = edge_sim("run", file, "--shard", "0/2", "--runs", tmp_path / "runs")
    assert result.returncode == 2
    assert "shards are for a real server" in result.stderr
    assert not (tmp_path / "runs").exists()
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged/header.json").write_text('{"merged": ["a", "b"], "shard": [0, 1]}')
    result = edge_sim("replay", tmp_path / "merged")
    assert result.returncode == 2
    assert "is shards joined" in result.stderr


def test_a_model_of_ones_own_is_simulated_by_the_work_that_payloads_counted(tmp_path):
    samples = ROOT / "split_inference" / "embedded" / "samples"
    profile = tmp_path / "mine.json"
    made = edge_sim(
        *("payloads", "embedded:resnet20-cifar10", "--inputs", samples, "--limit", 2),
        *("--out", tmp_path / "r20.payloads", "--profile", profile),
    )
    assert made.returncode == 0, made.stderr
    content = {
        "version": 1,
        "clock": "virtual",
        "duration_s": 5,
        "models": {"mine": {"profile": "mine.json"}},
        "server": {"profiles": {"mine": {"source": "assumed", "overhead_s": [0.01], "batch_s": {"*": {1: [0.01]}}}}},
        "groups": [
            {
                "name": "phones",
                "count": 2,
                "device": "pi-4b",
                "link": {"up": {"mbit_s": 5.0}, "down": {"mbit_s": 5.0}},
                "model": "mine",
                "policy": {"kind": "device_only"},
                "arrivals": {"kind": "periodic", "rate_per_s": 1.0},
            }
        ],
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content))
    seconds = {}
    for name in ("resnet20-cifar10", "mine", "nobody's"):
        facts = json.loads(profile.read_text())
        profile.write_text(json.dumps({**facts, "name": name, **({"work": None} if name == "nobody's" else {})}))
        result = edge_sim("run", tmp_path / "own.yaml", "--runs", tmp_path / "runs", "--json")
        if name == "nobody's":
            assert result.returncode == 2
            assert "`python -m edge_sim payloads` counts it" in result.stderr
            continue
        assert result.returncode == 0, result.stderr
        found = json.loads(result.stdout)
        assert "radio: lte, where neither the link nor its profile names one" in found["assumed"]
        rows = (Path(found["folder"]) / "requests.jsonl").read_text().splitlines()
        seconds[name] = {json.loads(row)["local_s"] for row in rows}
    assert len(seconds["mine"]) == 1
    assert seconds["mine"] == seconds["resnet20-cifar10"]


@pytest.mark.parametrize("route", ["@evil.example/v1", ".evil.example/x", "v1/models/m", "/v1?x=1", "/v1#x"])
def test_a_route_that_would_be_another_host_is_refused(tmp_path, route):
    content = yaml.safe_load(MIXED.read_text())
    (tmp_path / "some.payloads").write_bytes(b"")
    content |= {"clock": "wall", "server": {"url": "http://127.0.0.1:8000"}, "faults": []}
    content["models"] = {"mobilenet": {"payloads": "some.payloads", "route": route}}
    file = tmp_path / "route.yaml"
    file.write_text(yaml.safe_dump(content))
    result = edge_sim("validate", file)
    assert result.returncode == 2
    assert "models.mobilenet.route" in result.stderr


def test_a_server_of_no_model_is_refused_before_the_run(tmp_path):
    content = yaml.safe_load(MIXED.read_text())
    (profile,) = list(content["server"]["profiles"].values())[:1]
    content["server"]["profiles"]["nobody"] = profile
    file = tmp_path / "extra.yaml"
    file.write_text(yaml.safe_dump(content))
    result = edge_sim("validate", file)
    assert result.returncode == 2
    assert "server.profiles: there is no nobody" in result.stderr


@pytest.mark.parametrize("url", ["nonsense", "http://[::1"])
def test_what_is_no_url_is_one_line(tmp_path, url):
    content = yaml.safe_load(MIXED.read_text())
    (tmp_path / "some.payloads").write_bytes(b"")
    content |= {"clock": "wall", "server": {"url": url}, "faults": []}
    content["models"] = {"mobilenet": {"payloads": "some.payloads"}}
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(content))
    commands = (
        ("run", file, "--runs", tmp_path),
        ("calibrate-server", "--url", url, "--payloads", "none", "--out", tmp_path / "server.json"),
    )
    for words in commands:
        result = edge_sim(*words)
        assert result.returncode == 2
        assert f"{url!r} is not a server's URL" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_a_token_goes_over_plain_http_to_this_machine_only_unless_told_otherwise(tmp_path):
    content = yaml.safe_load(MIXED.read_text())
    (tmp_path / "some.payloads").write_bytes(b"")
    (tmp_path / "token").write_text("si_secret\n")
    content |= {"clock": "wall", "server": {"url": "http://192.0.2.1:8000"}, "faults": []}
    content["models"] = {"mobilenet": {"payloads": "some.payloads"}}
    file = tmp_path / "away.yaml"
    file.write_text(yaml.safe_dump(content))
    result = edge_sim("run", file, "--runs", tmp_path / "runs", "--yes", "--token-file", tmp_path / "token")
    assert result.returncode == 2
    assert "in the clear" in result.stderr
    assert "--insecure-token" in result.stderr
    assert "si_secret" not in result.stderr
    assert not (tmp_path / "runs").exists()


def test_every_device_of_a_fleet_shows_the_token(tmp_path):
    samples = ROOT / "split_inference" / "embedded" / "samples"
    made = edge_sim(
        "payloads", "embedded:resnet20-cifar10", "--inputs", samples, "--limit", 2, "--out", tmp_path / "r20.payloads"
    )
    assert made.returncode == 0, made.stderr
    (tmp_path / "token").write_text("si_secret\n")
    group = {
        "name": "phones",
        "count": 2,
        "device": "pi-4b",
        "link": {"profile": "wifi"},
        "model": "resnet20-cifar10",
        "policy": {"kind": "server_only"},
        "arrivals": {"kind": "periodic", "rate_per_s": 4.0},
    }
    content: dict[str, object] = {"version": 1, "clock": "wall", "duration_s": 1, "groups": [group]}
    content["models"] = {"resnet20-cifar10": {"payloads": "r20.payloads"}}
    shown = set()

    def answer(request):
        shown.add(request.headers.get("authorization"))
        return Response(status=401, headers={}, body=b'{"error": "UnauthorizedError"}')

    with http_server(handler_of(answer)) as url:
        content["server"] = {"url": url}
        file = tmp_path / "wall.yaml"
        file.write_text(yaml.safe_dump(content))
        result = edge_sim("run", file, "--runs", tmp_path, "--token-file", tmp_path / "token", "--json")
    # Refused, devices answer themselves.
    assert json.loads(result.stdout)["outcomes"].keys() == {"answered_locally"}, result.stderr
    assert shown == {"Bearer si_secret"}
