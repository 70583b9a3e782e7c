"""What the load tests' commands say of a run, on the terminal and as JSON, and how they end."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from loadtests.commands import register
from loadtests.run_result import Generator, write_result
from tests.loadtests.results import run_of

LATE = "requests began 30 ms late at p99"


@pytest.fixture
def report_of(tmp_path):
    """Runs `load-report` on a run that is INVALID for such reasons; `bound_ms`: and judges its p50."""

    def made(*invalid, bound_ms=None, **facts):
        write_result(tmp_path / "run", run_of([0.01] * 50, generator=Generator(invalid=invalid), **facts))
        words = [str(tmp_path / "run"), "--json"]
        if bound_ms is not None:
            (tmp_path / "slo.yaml").write_text(f"version: 1\nlatency: {{p50_ms: {bound_ms}}}\n")
            words += ["--slo", str(tmp_path / "slo.yaml")]
        app = typer.Typer()
        register(app)
        done = CliRunner().invoke(app, ["load-report", *words])
        return done.exit_code, json.loads(done.stdout)

    return made


@pytest.mark.parametrize(
    ("bound_ms", "code", "outcome"), [(None, 0, None), (1000, 0, "met"), (1, 99, "missed")]
)  # fmt: skip
def test_a_valid_run_ends_as_its_objective_says(report_of, bound_ms, code, outcome):
    ended, said = report_of(bound_ms=bound_ms)
    assert (ended, said["outcome"], said["invalid"]) == (code, outcome, [])


@pytest.mark.parametrize(("bound_ms", "outcome"), [(None, None), (1000, "invalid"), (1, "invalid")])
def test_an_invalid_run_ends_with_3_and_says_why_with_and_without_an_objective(report_of, bound_ms, outcome):
    ended, said = report_of(LATE, bound_ms=bound_ms)
    assert (ended, said["outcome"], said["invalid"]) == (3, outcome, [LATE])


def test_a_run_that_was_stopped_is_invalid_for_an_objective_only(report_of):
    ended, said = report_of(warmup_s=1.0, measured_s=5.0, planned=run_of([], measured_s=60.0).planned)
    assert (ended, said["invalid"]) == (0, [])


def test_why_a_stopped_run_is_no_verdict_is_in_the_json(report_of):
    ended, said = report_of(bound_ms=1000, measured_s=5.0, planned=run_of([], measured_s=60.0).planned)
    assert ended == 3
    assert "stopped after 5.0 of 60 s" in said["invalid"][0]
