"""Counting: each request once, merged over workers to the same as one process, and as an exact sort says."""

from __future__ import annotations

import json
import math
import random

import pytest

from loadtests.histogram import Histogram
from loadtests.run_recorder import RunRecorder, Tally
from loadtests.run_result import GeneratorProcess, Planned, RunResult
from tests.loadtests.helpers import FAILED, REFUSED, RIGHT, WRONG


def recorder(**facts):
    return RunRecorder(**{"warmup_s": 1.0, "ends_s": 10.0, "deadline_s": 0.1, **facts})


def requests(count, seed=0):
    """(label, intended, sent, ended, verdict) of a made-up run."""
    rng = random.Random(seed)
    for number in range(count):
        intended = 10.0 * number / count
        sent = intended + rng.expovariate(1000)
        verdict = rng.choices([RIGHT, WRONG, REFUSED, FAILED], [90, 4, 3, 3])[0]
        yield rng.choice("ab"), intended, sent, sent + rng.lognormvariate(-3, 1), verdict


def record(into, items):
    for label, intended, sent, ended, verdict in items:
        into.ended(label, intended_s=intended, sent_s=sent, ended_s=ended, verdict=verdict)


def test_each_request_is_counted_once_by_how_it_ended():
    run = recorder()
    run.ended("a", intended_s=2.0, sent_s=2.001, ended_s=2.05, verdict=RIGHT)
    run.ended("a", intended_s=3.0, sent_s=3.0, ended_s=3.2, verdict=RIGHT)
    run.ended("a", intended_s=3.5, sent_s=3.5, ended_s=3.51, verdict=WRONG)
    run.ended("b", intended_s=4.0, sent_s=4.0, ended_s=4.01, verdict=REFUSED)
    run.ended("b", intended_s=5.0, sent_s=5.0, ended_s=15.0, verdict=FAILED)
    run.dropped("b", 6.0, "late")
    tally = run.take()
    counts = tally.result_counts()
    assert (counts.intended, counts.sent, counts.dropped) == (6, 5, 1)
    assert (counts.answered, counts.right, counts.wrong, counts.in_time, counts.good) == (3, 2, 1, 2, 1)
    assert dict(tally.refused) == {"503 OverloadedError": 1}
    assert dict(tally.failed) == {"timeout": 1}
    assert dict(tally.dropped) == {"late": 1}
    assert tally.histograms["latency"].max_s == pytest.approx(0.2)
    assert tally.histograms["service"].min_s == pytest.approx(0.01)
    options = tally.result_options()
    assert (options["a"].intended, options["a"].good, options["b"].intended, options["b"].good) == (3, 1, 3, 0)


def test_latency_runs_from_the_intended_start_and_service_from_the_actual_one():
    run = recorder()
    run.ended("a", intended_s=2.0, sent_s=2.5, ended_s=2.6, verdict=RIGHT)
    histograms = run.take().histograms
    assert histograms["latency"].max_s == pytest.approx(0.6)
    assert histograms["service"].max_s == pytest.approx(0.1)
    assert histograms["schedule_delay"].max_s == pytest.approx(0.5)


def test_a_late_answer_is_late_from_the_intended_start():
    """A request that left late because the generator was busy is not in time because the server was quick."""
    run = recorder(deadline_s=0.1)
    assert not run.ended("a", intended_s=2.0, sent_s=2.09, ended_s=2.11, verdict=RIGHT)
    assert run.ended("a", intended_s=2.0, sent_s=2.09, ended_s=2.0999, verdict=RIGHT)


def test_the_warmup_is_not_counted():
    run = recorder()
    run.ended("a", intended_s=0.999, sent_s=1.2, ended_s=1.3, verdict=RIGHT)
    run.dropped("a", 0.5, "full")
    assert run.take().result_counts().intended == 0


def test_seconds_are_by_intended_start_but_for_what_was_sent():
    run = recorder()
    run.ended("a", intended_s=2.9, sent_s=3.1, ended_s=4.2, verdict=RIGHT)
    by_number = {second.second: second for second in run.take().result_seconds()}
    assert (by_number[2].intended, by_number[2].sent, by_number[2].answered) == (1, 0, 1)
    assert (by_number[3].intended, by_number[3].sent) == (0, 1)


def test_four_workers_add_up_to_one_process_and_to_an_exact_sort():
    items = list(requests(8000))
    whole = recorder()
    record(whole, items)
    merged = Tally()
    for worker in (2, 0, 3, 1):
        part = recorder()
        record(part, items[worker::4])
        # As it travels between processes.
        merged.merge(Tally.from_json(json.loads(json.dumps(part.take().to_json()))))
    alone = whole.take()
    assert merged.counts == alone.counts
    assert merged.result_options() == alone.result_options()
    assert merged.result_seconds() == alone.result_seconds()
    for name, histogram in alone.histograms.items():
        assert merged.histograms[name] == histogram
    latencies = sorted(
        ended - intended for _, intended, _, ended, verdict in items if intended >= 1 and verdict in (RIGHT, WRONG)
    )
    for share in (0.5, 0.9, 0.99, 0.999):
        exact = latencies[math.ceil(share * len(latencies) - 1e-9) - 1]
        assert merged.histograms["latency"].percentile(share) == pytest.approx(exact, rel=0.0005)


def test_taking_in_pieces_loses_nothing():
    items = list(requests(500))
    whole, piecewise, merged = recorder(), recorder(), Tally()
    record(whole, items)
    for begin in range(0, 500, 90):
        record(piecewise, items[begin : begin + 90])
        merged.merge(piecewise.take())
    assert merged.counts == whole.take().counts
    assert piecewise.take().counts == {}


def test_a_server_cannot_fill_memory_with_reasons():
    run = recorder()
    for number in range(2000):
        verdict = type(FAILED)(kind="failed", reason=f"500 {number}")
        run.ended("a", intended_s=2.0, sent_s=2.0, ended_s=2.1, verdict=verdict)
    failed = run.take().failed
    assert len(failed) < 400
    assert sum(failed.values()) == 2000


def test_a_tally_makes_a_record_that_holds_together():
    run = recorder()
    record(run, requests(1000))
    tally = run.take()
    result = RunResult(
        experiment="made-up",
        host="http://127.0.0.1:1",
        started_at="2026-01-01T00:00:00+00:00",
        command="",
        seed=0,
        planned=Planned(arrivals="poisson", rate_per_s=100, duration_s=10, requests=1000, bytes_per_s=1),
        measured_s=9.0,
        counts=tally.result_counts(),
        refused=dict(tally.refused),
        failed=dict(tally.failed),
        latency=tally.histograms["latency"],
        server=tally.result_server(),
        batch_sizes={int(size): count for size, count in tally.batch_sizes.items()},
        by_option=tally.result_options(),
        seconds=tally.result_seconds(),
    )
    assert result.batch_sizes == {2: tally.counts["right"]}
    assert result.server.queue.count == tally.counts["right"]
    assert sum(second.intended for second in result.seconds) == result.counts.intended
    assert isinstance(result.latency, Histogram)
    assert RunResult.model_validate_json(result.model_dump_json()) == result
    assert GeneratorProcess(name="x", cpu_share=0.1, rss_mb=1, schedule_delay_p99_s=0.001).sent == 0
