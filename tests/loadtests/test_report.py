"""The page says what the record says, escapes what comes from outside, and draws from little or nothing."""

from __future__ import annotations

import csv
import re

import numpy as np
import pytest

from loadtests.gate import judge
from loadtests.report import _curve, _slices, report_html, write_report
from loadtests.run_result import Generator, ModelUnderTest, OptionResult
from loadtests.slo import Slo
from tests.loadtests.results import run_of


def a_run(**changes):
    rng = np.random.default_rng(4)
    seconds = [list(rng.lognormal(-4, 0.5, 40)) for _ in range(300)]
    return run_of([], seconds=seconds, deadline_s=0.05, **changes)


def test_the_files_are_whole_or_not_there(tmp_path):
    page = write_report(tmp_path, a_run())
    assert {file.name for file in tmp_path.iterdir()} == {"report.html", "seconds.csv"}
    assert page.read_text().count("<figure>") == 4


def test_a_line_of_the_csv_is_a_second(tmp_path):
    run = a_run()
    write_report(tmp_path, run)
    with (tmp_path / "seconds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 300
    assert sum(int(row["good"]) for row in rows) == run.counts.good
    for row in rows:
        assert float(row["latency_p50_ms"]) <= float(row["latency_p99_ms"]) <= float(row["latency_max_ms"])


def test_a_run_without_an_answer_has_a_page(tmp_path):
    page = write_report(tmp_path, run_of([], failed=3, seconds=[[], []]))
    assert "timeout" in page.read_text()
    assert "nan" not in page.read_text().lower()


def test_text_from_outside_stays_text():
    nasty = "<script>alert(1)</script>"
    run = a_run(
        experiment=nasty,
        host=nasty,
        command=nasty,
        models=(ModelUnderTest(name=nasty, digest="0" * 64, trained=False),),
        by_option={nasty: OptionResult(intended=1)},
        generator=Generator(invalid=(nasty,), notes=(nasty,)),
    )
    verdict = judge(run, Slo.model_validate({"version": 1, "name": nasty, "max_errors": 1}))
    assert "<script" not in report_html(run, verdict)


def test_the_verdict_and_its_bounds_are_on_the_page():
    run = a_run()
    slo = Slo.model_validate({"version": 1, "name": "phones", "latency": {"p99_ms": 1}, "max_errors": 0.5})
    page = report_html(run, judge(run, slo))
    assert "phones: <span class=missed>missed<" in page
    assert re.search(r"latency\.p99_ms</td><td>[0-9.]+</td><td>&lt;= 1</td><td class=missed>missed", page)


@pytest.mark.parametrize("is_open", [True, False])
def test_the_page_says_which_loop_it_was_and_what_that_means(is_open):
    page = report_html(a_run(open_loop=is_open))
    assert ("coordinated omission" in page) == (not is_open)


def test_an_invalid_run_says_so_before_anything_else():
    page = report_html(a_run(generator=Generator(invalid=("requests began 30 ms late at p99",))))
    assert page.index("INVALID: requests began 30 ms late") < page.index("<table")


def test_the_last_slice_of_a_curve_is_divided_by_the_seconds_that_it_has():
    run = run_of([], seconds=[[0.01] * 10 for _ in range(241)])
    slices = _slices(run.seconds)
    assert {rate for _, rate in _curve(slices, lambda each: each.intended)} == {10.0}


def test_a_long_run_is_drawn_with_few_points():
    rng = np.random.default_rng(1)
    run = run_of([], seconds=[list(rng.lognormal(-4, 0.5, 3)) for _ in range(3600)])
    assert len(report_html(run)) < 400_000
