"""Each figure beside its bound; missed and invalid have exit codes of their own; files say the same in each format."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.gate import judge
from loadtests.gate_output import write_outputs
from loadtests.run_result import Counts, Generator, Planned
from loadtests.slo import Slo
from tests.loadtests.results import run_of

STEADY = [0.010] * 90 + [0.050] * 10


def slo(**said):
    return Slo.model_validate({"version": 1, "name": "test", **said})


@pytest.mark.parametrize(
    ("said", "met"),
    [
        ({"latency": {"p50_ms": 11}}, True),
        ({"latency": {"p50_ms": 9}}, False),
        ({"latency": {"p90_ms": 11, "p95_ms": 51}}, True),
        ({"latency": {"p95_ms": 49}}, False),
        ({"latency": {"max_ms": 50}}, True),
        ({"min_goodput": 0.9}, True),
        ({"min_goodput": 0.91}, False),
        ({"min_goodput_per_s": 9.0}, True),
        ({"min_goodput_per_s": 9.1}, False),
        ({"max_errors": 0.0}, True),
        ({"max_rejects": 0.0}, True),
    ],
)
def test_each_bound_is_held_against_its_figure(said, met):
    verdict = judge(run_of(STEADY, deadline_s=0.02), slo(**said))
    assert verdict.outcome == ("met" if met else "missed")
    assert verdict.exit_code == (0 if met else 99)


@given(
    st.lists(st.floats(0.001, 10), min_size=1, max_size=200),
    st.sampled_from(["p50_ms", "p90_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms"]),
    st.floats(0.5, 20_000),
)
def test_a_looser_bound_is_never_missed_where_a_tighter_one_is_met(latencies_s, name, bound_ms):
    run = run_of(latencies_s)
    tight = judge(run, slo(latency={name: bound_ms})).outcome
    loose = judge(run, slo(latency={name: 2 * bound_ms})).outcome
    assert (tight, loose) in {("met", "met"), ("missed", "met"), ("missed", "missed")}


def test_shares_are_of_what_was_meant_to_be_sent():
    run = run_of([0.01] * 80, refused=15, failed=3, wrong=2)
    figures = {check.name: check.figure for check in judge(run, slo(min_goodput=1, max_errors=0, max_rejects=0)).checks}
    assert figures == pytest.approx({"min_goodput": 78 / 98, "max_errors": 5 / 98, "max_rejects": 15 / 98})


def test_what_was_not_measured_misses_its_bound():
    nothing = run_of([], failed=5)
    verdict = judge(nothing, slo(latency={"p99_ms": 3_000_000}))
    assert verdict.outcome == "missed"
    assert "not measured" in str(verdict.checks[0])
    empty = run_of([], counts=Counts())
    assert judge(empty, slo(max_errors=1.0)).outcome == "missed"


def test_an_invalid_run_is_neither_met_nor_missed():
    for bound_ms in (1, 1000):
        run = run_of(STEADY, generator=Generator(invalid=("requests began 30 ms late at p99",)))
        verdict = judge(run, slo(latency={"p99_ms": bound_ms}))
        assert (verdict.outcome, verdict.exit_code) == ("invalid", 3)


@pytest.mark.parametrize(
    ("measured_s", "said"), [(5.3, "stopped after 7.3 of 12 s"), (0.0, "before its warm-up of 2 s")]
)
def test_a_run_that_was_stopped_is_invalid_for_the_gate(measured_s, said):
    planned = Planned(arrivals="poisson", rate_per_s=10, duration_s=12, requests=120, bytes_per_s=1000)
    stopped = run_of(STEADY, planned=planned, warmup_s=2.0, measured_s=measured_s)
    for max_errors in (0.0, 1.0):
        verdict = judge(stopped, slo(latency={"p99_ms": 100}, max_errors=max_errors))
        assert (verdict.outcome, verdict.exit_code) == ("invalid", 3)
        assert any(said in reason for reason in verdict.invalid)
    whole = run_of(STEADY, planned=planned, warmup_s=2.0, measured_s=10.0)
    assert judge(whole, slo(latency={"p99_ms": 100})).outcome == "met"


def test_a_verdict_says_what_its_reader_might_miss():
    closed = judge(run_of(STEADY, open_loop=False), slo(latency={"p99_ms": 100}, min_goodput=0.5))
    assert any("closed loop" in note for note in closed.notes)
    assert any("no deadline" in note for note in closed.notes)
    refusing = judge(run_of(STEADY, refused=100), slo(latency={"p99_ms": 100}))
    assert any("100 of 200 requests" in note for note in refusing.notes)


@pytest.mark.parametrize("kind", ["met", "missed", "invalid"])
def test_the_files_say_the_verdict_in_their_own_formats(tmp_path, kind):
    run = run_of(STEADY, generator=Generator(invalid=("late <b>&", "lost")) if kind == "invalid" else Generator())
    nasty = 'name | with <script> & "quotes"\x07'
    said = {"latency": {"p99_ms": 10 if kind == "missed" else 100}, "max_errors": 0.5}
    verdict = judge(run, Slo.model_validate({"version": 1, "name": nasty, **said}))
    write_outputs(tmp_path, verdict)

    said_json = json.loads((tmp_path / "gate.json").read_text())
    assert (said_json["outcome"], said_json["exit_code"]) == (kind, verdict.exit_code)
    assert [check["met"] for check in said_json["checks"]] == [check.is_met for check in verdict.checks]

    suite = ElementTree.fromstring((tmp_path / "junit.xml").read_text())
    counted = {name: len(list(suite.iter(name))) for name in ("failure", "error", "skipped", "testcase")}
    assert {name: int(suite.attrib[f"{name}s"]) for name in ("failure", "error")} == {
        name: counted[name] for name in ("failure", "error")
    }
    assert (int(suite.attrib["tests"]), int(suite.attrib["skipped"])) == (counted["testcase"], counted["skipped"])
    assert counted["failure"] == (kind == "missed")
    assert counted["error"] == (kind == "invalid")

    text = (tmp_path / "summary.md").read_text()
    assert kind.upper() in text
    assert "<" not in text.replace("<=", "")
    assert not list(tmp_path.glob(".*"))
