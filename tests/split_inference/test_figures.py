"""Figures: a missed bound fails, a bound without its figure fails, and the file says how it was made."""

import json

import pytest

from split_inference.figures import made_by, missed, report


@pytest.mark.parametrize(
    ("bound", "holds"),
    [
        (("<=", 2), True),
        (("<", 2), False),
        ((">=", 2), True),
        ((">", 2), False),
        (("==", 2), True),
        (("<=", 1.9), False),
    ],
)
def test_a_bound_is_an_operator_and_a_number(bound, holds):
    assert (missed({"x": 2}, {"x": bound}) == []) is holds


def test_a_bound_without_a_figure_is_missed():
    assert missed({}, {"x": ("<=", 1)}) == ["x"]


def test_not_a_number_misses_every_bound():
    assert missed({"x": float("nan")}, {"x": ("<=", 1)}) == ["x"]


def test_the_report_prints_each_figure_beside_its_bound_and_writes_the_file(tmp_path, capsys):
    code = report(
        "bench-x", {"good": 1.0, "bad": 3.0, "free": 7.0}, {"good": ("<=", 2), "bad": ("<=", 2)}, folder=tmp_path
    )
    assert code == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["good", "bad", "free"]
    assert lines[0].endswith("<= 2  ok")
    assert lines[1].endswith("<= 2  MISSED")
    written = json.loads((tmp_path / "bench-x.json").read_text())
    assert written["figures"] == {"good": 1.0, "bad": 3.0, "free": 7.0}
    assert written["bounds"] == {"good": ["<=", 2], "bad": ["<=", 2]}
    assert {"command", "commit", "machine", "versions"} <= set(written["made_by"])


def test_without_git_there_is_no_commit_and_nothing_else_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    made = made_by("bench-x")
    assert made["commit"] is None
    assert {"command", "machine", "versions"} <= set(made)


def test_all_bounds_held_is_exit_code_0(tmp_path):
    assert report("bench-x", {"x": 1.0}, {"x": ("<=", 2)}, folder=tmp_path) == 0
