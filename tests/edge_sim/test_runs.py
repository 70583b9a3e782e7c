"""Runs read back, summed up, merged and shown: figures agree with NumPy, nothing is lost, text stays text."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from edge_sim.fleet import Shard
from edge_sim.link import Link
from edge_sim.merge import merge_runs
from edge_sim.recorder import RunRecorder
from edge_sim.report import _choices, report_html, write_report
from edge_sim.run_reader import CHUNK_ROWS, read_run
from edge_sim.run_summary import summarize, summary_facts
from split_inference.errors import DataError
from split_inference.plots import MAX_POINTS, line_plot, thin, ticks
from tests.edge_sim.fleets import ToyHardware, group, scenario, simulate
from tests.edge_sim.test_fleet import ALL

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    simulate(scenario(*ALL, faults=[{"kind": "server_down", "at_s": 10, "for_s": 5}]), folder)
    return folder


def rows_of(folder):
    return [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]


def test_columns_are_the_rows(folder):
    run, rows = read_run(folder), rows_of(folder)
    assert len(run) == len(rows)
    assert not run.cut_off
    np.testing.assert_array_equal(run.numbers["total_s"], [row["total_s"] for row in rows])
    assert [run.texts["group"].names[code] for code in run.texts["group"].codes] == [row["group"] for row in rows]
    assert run.correct.tolist() == [-1 if row["correct"] is None else int(row["correct"]) for row in rows]


def test_the_summary_is_what_numpy_says_and_sums_to_all(folder):
    rows, found = rows_of(folder), summarize(read_run(folder))
    assert sum(each.requests for each in found) == len(rows)
    for each in found:
        own = [row for row in rows if row["group"] == each.group]
        answered = [row for row in own if row["outcome"].startswith("answered")]
        times = [row["total_s"] for row in answered]
        assert each.p95_s == pytest.approx(np.quantile(times, 0.95))
        assert each.mean_s == pytest.approx(np.mean(times))
        assert each.in_time == pytest.approx(np.mean([row["in_time"] for row in own]))
        assert each.up_bytes == pytest.approx(np.mean([row["up_bytes"] for row in own]))
        assert each.radio_j == pytest.approx(np.mean([row["radio_j"] for row in own]))
        assert sum(each.not_answered.values()) == len(own) - len(answered)
        good = [row for row in own if row["in_time"] and row["correct"] is not False]
        assert each.goodput_per_s == pytest.approx(len(good) / 30)
    assert json.dumps(summary_facts(found), allow_nan=False)


def test_a_last_line_that_was_cut_off_is_left_out_and_said(folder, tmp_path):
    text = (folder / "requests.jsonl").read_text()
    (tmp_path / "header.json").write_text((folder / "header.json").read_text())
    (tmp_path / "requests.jsonl").write_text(text[:-40])
    run = read_run(tmp_path)
    assert run.cut_off
    assert len(run) == len(rows_of(folder)) - 1
    assert "killed while it wrote" in report_html(run)


@pytest.mark.parametrize("line", ["{}", "no json", '{"device": 1}', "[]", "{good},{good}", "null"])
@pytest.mark.parametrize("before", [1, CHUNK_ROWS, CHUNK_ROWS + 7])
def test_a_broken_line_is_refused_with_its_number(folder, tmp_path, line, before):
    good = (folder / "requests.jsonl").read_text().splitlines()[0]
    (tmp_path / "header.json").write_text("{}")
    lines = [good] * before + [line.replace("{good}", good), good]
    (tmp_path / "requests.jsonl").write_text("".join(f"{each}\n" for each in lines))
    with pytest.raises(DataError, match=rf"requests\.jsonl:{before + 1}: no record"):
        read_run(tmp_path)


@pytest.mark.parametrize("value", ["null", '"text"', "[1]"])
def test_a_number_that_is_none_is_refused(folder, tmp_path, value):
    good = (folder / "requests.jsonl").read_text().splitlines()[0]
    (tmp_path / "header.json").write_text("{}")
    (tmp_path / "requests.jsonl").write_text(re.sub(r'"total_s":[0-9.]+', f'"total_s":{value}', good) + "\n")
    with pytest.raises(DataError, match=r"requests\.jsonl:1: no record"):
        read_run(tmp_path)


def test_merged_shards_are_the_whole_in_order(tmp_path):
    made = scenario(group(policy={"kind": "device_only"}), group("h", policy={"kind": "device_only"}))
    whole = simulate(made, tmp_path / "whole")
    folders = [tmp_path / f"shard-{index}" for index in range(3)]
    for index, folder in enumerate(folders):
        simulate(made, folder, shard=Shard(index, 3))
    merged = rows_of(merge_runs(folders, tmp_path / "merged", command="test"))
    assert [row["intended_s"] for row in merged] == sorted(row["intended_s"] for row in merged)

    def ordered(rows):
        return sorted(rows, key=lambda row: (row["device"], row["n"]))

    assert ordered(merged) == ordered(whole)
    with pytest.raises(DataError, match="2 shards of 3"):
        merge_runs(folders[:2], tmp_path / "some", command="test")
    with pytest.raises(DataError, match="and so is"):
        merge_runs([folders[0], *folders[:2]], tmp_path / "twice", command="test")
    outcomes = json.loads((tmp_path / "merged/header.json").read_text())["outcomes"]
    assert outcomes == json.loads((tmp_path / "whole/header.json").read_text())["outcomes"]
    (folders[1] / "requests.jsonl").rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"has no requests\.jsonl"):
        merge_runs(folders, tmp_path / "without", command="test")
    assert not (tmp_path / "without").exists()
    simulate(scenario(group(), seed=9), tmp_path / "other", shard=Shard(2, 3))
    with pytest.raises(DataError, match="of another run"):
        merge_runs([*folders[:2], tmp_path / "other"], tmp_path / "mixed", command="test")


def test_a_shard_whose_last_line_was_cut_off_is_joined_without_it_and_a_broken_one_leaves_nothing(tmp_path):
    made = scenario(group(policy={"kind": "device_only"}))
    folders = [tmp_path / f"{index}" for index in range(2)]
    rows = [simulate(made, folder, shard=Shard(index, 2)) for index, folder in enumerate(folders)]
    with (folders[1] / "requests.jsonl").open("a") as lines:
        lines.write('{"device": "g-1", "intended_s": 3')
    merged = rows_of(merge_runs(folders, tmp_path / "merged", command="test"))
    assert len(merged) == sum(map(len, rows))
    with (folders[1] / "requests.jsonl").open("a") as lines:
        lines.write("\n")
    with pytest.raises(DataError, match="no record of a request"):
        merge_runs(folders, tmp_path / "whole", command="test")
    assert not (tmp_path / "whole").exists()


def test_an_interrupted_run_is_invalid_and_its_goodput_is_of_what_it_did(tmp_path, monkeypatch):
    deliver_up = Link.deliver_up

    def interrupted(self, now_s, size):
        if now_s >= 10:
            raise KeyboardInterrupt
        return deliver_up(self, now_s, size)

    monkeypatch.setattr(Link, "deliver_up", interrupted)
    with pytest.raises(KeyboardInterrupt):
        simulate(scenario(group(count=20)), tmp_path / "run")
    run = read_run(tmp_path / "run")
    assert run.header["invalid"] == "the run did not end"
    assert 10 <= run.header["ended_at_s"] < 11
    (found,) = summarize(run)
    assert found.goodput_per_s == pytest.approx(run.in_time.sum() / run.header["ended_at_s"])
    assert "INVALID: the run did not end" in report_html(run)


def test_a_killed_shard_makes_the_whole_run_invalid(tmp_path, monkeypatch):
    for index in range(2):
        simulate(scenario(group()), tmp_path / f"{index}", shard=Shard(index, 2))
    # Killed outright, only the first header is there.
    monkeypatch.setattr(RunRecorder, "add_facts", lambda self, facts: None)
    simulate(scenario(group()), tmp_path / "killed", shard=Shard(1, 2))
    monkeypatch.undo()
    header = read_run(merge_runs([tmp_path / "0", tmp_path / "killed"], tmp_path / "bad", command="test")).header
    assert header["invalid"] == "shard 1: the run did not end"
    header = read_run(merge_runs([tmp_path / "0", tmp_path / "1"], tmp_path / "good", command="test")).header
    assert header["invalid"] is None


def test_text_from_a_run_stays_text_and_the_page_loads_nothing(folder, tmp_path):
    header = json.loads((folder / "header.json").read_text())
    header |= {"scenario_name": HOSTILE, "invalid": HOSTILE, "assumed": [HOSTILE], "command": HOSTILE}
    (tmp_path / "header.json").write_text(json.dumps(header))
    row = {**rows_of(folder)[0], "group": HOSTILE, "reason": HOSTILE, "outcome": "dropped", "split_point": HOSTILE}
    (tmp_path / "requests.jsonl").write_text(json.dumps(row) + "\n")
    page = write_report(read_run(tmp_path)).read_text()
    assert "<img" not in page
    assert page.count("&lt;img") >= 5
    assert not re.search(r"https?://|<script|src=", page.replace("src=x onerror", ""))
    assert "INVALID" in page


def test_what_was_dropped_at_once_is_no_choice_of_a_device(tmp_path):
    # The device is too slow to choose itself, and has more inputs than it may have under way.
    made = scenario(group(policy={"kind": "adaptive"}, arrivals={"kind": "poisson", "rate_per_s": 60.0}))
    simulate(made, tmp_path / "run", hardware=ToyHardware(whole_s=5.0))
    run = read_run(tmp_path / "run")
    assert run.texts["mode"].where("device_only").any()
    assert set(_choices(run)) == {"server_only"}


def test_a_page_stays_small_however_long_the_run(folder):
    assert len(report_html(read_run(folder))) < 200_000
    points = [(float(x), 1.0) for x in range(100_000)]
    assert len(thin(points)) == MAX_POINTS
    assert (thin(points)[0], thin(points)[-1]) == (points[0], points[-1])
    assert len(line_plot({"a": points}, title="t", x_label="x", y_label="y")) < 20_000


@pytest.mark.parametrize("most", [0.0, 1e-6, 0.3, 1.0, 7.0, 999.0, 1e9, float("nan")])
def test_ticks_are_round_few_and_reach_the_most(most):
    found = ticks(most)
    assert found[0] == 0
    assert 2 <= len(found) <= 11
    if most > 0:
        assert found[-1] >= most * (1 - 1e-9)
