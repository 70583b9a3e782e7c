"""What a run leaves on disk."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from edge_sim.recorder import RunRecorder, new_run_folder
from split_inference.errors import UsageError


def test_a_run_has_a_header_that_explains_it_and_a_line_per_request(tmp_path):
    folder = new_run_folder(tmp_path / "runs")
    with RunRecorder(folder, command="split-inference demo", facts={"model": {"digest": "ab"}}) as recorder:
        recorder.request(mode="shared", total_s=0.5)
        recorder.request(mode="device-only", total_s=0.25)
    header = json.loads((folder / "header.json").read_text())
    assert {"started_at", "host", "command", "commit", "versions", "machine", "model"} <= header.keys()
    assert (header["command"], header["model"]) == ("split-inference demo", {"digest": "ab"})
    lines = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
    assert [line["mode"] for line in lines] == ["shared", "device-only"]


def test_the_header_is_there_before_the_first_request_and_lines_before_the_end(tmp_path):
    recorder = RunRecorder(tmp_path, command="c", facts={})
    assert (tmp_path / "header.json").is_file()
    recorder.request(number=1)
    assert json.loads((tmp_path / "requests.jsonl").read_text()) == {"number": 1}
    recorder.close()
    recorder.close()


def test_nothing_half_written_stays_beside_the_header(tmp_path):
    with pytest.raises(TypeError):
        RunRecorder(tmp_path, command="c", facts={"odd": object()})
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_json_lacks_are_refused(tmp_path):
    with RunRecorder(tmp_path, command="c", facts={}) as recorder, pytest.raises(ValueError, match="JSON"):
        recorder.request(total_s=float("nan"))
    assert (tmp_path / "requests.jsonl").read_text() == ""


def test_runs_of_one_second_get_folders_of_their_own(tmp_path):
    now = datetime(2026, 11, 20, 22, 30, tzinfo=UTC)
    folders = [new_run_folder(tmp_path, now=now) for _ in range(3)]
    assert [folder.name for folder in folders] == ["20261120T223000Z", "20261120T223000Z-2", "20261120T223000Z-3"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UsageError, match="cannot write"):
        new_run_folder(tmp_path / "runs")
