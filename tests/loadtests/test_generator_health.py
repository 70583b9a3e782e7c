"""A run whose generator was late is no result, and says why."""

from __future__ import annotations

import pytest

from loadtests.generator_health import Sighting, StopRequest, generator_of
from loadtests.run_recorder import RunRecorder
from loadtests.run_result import GeneratorProcess
from tests.loadtests.helpers import RIGHT


def process(name="generator", **facts):
    return GeneratorProcess(
        **{"name": name, "cpu_share": 0.3, "rss_mb": 80, "schedule_delay_p99_s": 0.001, "sent": 900, **facts}
    )


def tally(count=1000, *, delay_s=0.0005, dropped=(), sent_after_s=None):
    run = RunRecorder(warmup_s=0.0, ends_s=10.0, deadline_s=None)
    for number in range(count):
        intended_s = 10.0 * number / count
        sent_s = intended_s + delay_s if sent_after_s is None else sent_after_s
        run.ended("a", intended_s=intended_s, sent_s=sent_s, ended_s=sent_s + 0.01, verdict=RIGHT)
    for why in dropped:
        run.dropped("a", 5.0, why)
    return run.take()


def judged(
    counted, *, processes=(), expected=1, lost=(), left=(), open_loop=True, stopped_at_s=None, without_callers=0,
    scheduled=None,
):  # fmt: skip
    sighting = Sighting(
        processes=tuple(processes) or (process(),),
        expected=expected,
        lost=lost,
        left=left,
        without_callers=without_callers,
        stopped_at_s=stopped_at_s,
    )
    return generator_of(counted, sighting, measured_s=10.0, open_loop=open_loop, scheduled=scheduled)


def test_a_generator_that_kept_its_schedule_is_valid():
    generator = judged(tally())
    assert generator.invalid == ()
    assert generator.achieved_rate_per_s == generator.intended_rate_per_s == 100


@pytest.mark.parametrize(
    ("counted", "facts", "why"),
    [
        (tally(delay_s=0.006), {}, "schedule delay p99"),
        (tally(sent_after_s=11.0), {}, "left on time"),
        (tally(dropped=["full"]), {}, "as many requests as allowed"),
        (tally(dropped=["late"] * 2), {}, "late for them"),
        (tally(), {"processes": [process(cpu_share=0.95)]}, "95% of a core"),
        (tally(), {"lost": ["worker 1"], "expected": 2}, "worker 1 was lost"),
        (tally(), {"left": [("worker 1", 2.0)]}, "worker 1 was ended after 2.0 s"),
        (tally(), {"left": [("worker 1", 2.0)], "open_loop": False}, "worker 1 was ended after 2.0 s"),
        (tally(), {"scheduled": (1001, 1001)}, "1000 arrivals were counted where the schedule has 1001"),
        (tally(), {"scheduled": (999, 999)}, "1000 arrivals were counted where the schedule has 999"),
        (tally(), {"expected": 2}, "never reported"),
        (tally(), {"processes": [process("a"), process("b", sent=0)], "expected": 2}, "b sent nothing"),
        (tally(0), {}, "nothing was to be sent"),
    ],
)
def test_every_reason_makes_a_run_invalid_in_one_line(counted, facts, why):
    reasons = judged(counted, **facts).invalid
    assert any(why in reason for reason in reasons), reasons
    assert all("\n" not in reason for reason in reasons)


def test_one_late_arrival_in_a_thousand_is_noise():
    assert judged(tally(dropped=["late"])).invalid == ()


def test_a_schedule_that_was_counted_whole_is_no_reason():
    assert judged(tally(), scheduled=(1000, 1000)).invalid == ()
    assert judged(tally(), scheduled=(990, 1010)).invalid == ()


def test_a_worker_that_is_missing_is_the_one_reason_for_the_share_that_is():
    for facts in ({"left": [("worker 1", 2.0)]}, {"lost": ["worker 1"], "expected": 2}, {"expected": 2}):
        assert len(judged(tally(), scheduled=(2000, 2000), **facts).invalid) == 1


def test_a_closed_loop_has_no_schedule_to_miss():
    assert judged(tally(delay_s=0.5), open_loop=False).invalid == ()
    assert judged(tally(), open_loop=False, processes=[process(cpu_share=0.99)]).invalid


def test_a_run_that_was_stopped_says_so_and_stays_a_result():
    generator = judged(tally(), stopped_at_s=7.0)
    assert generator.invalid == ()
    assert any("7.0 s" in note for note in generator.notes)


def test_requests_that_were_sent_again_are_told_and_no_reason():
    counted, more = tally(), tally(0)
    assert judged(counted).notes == ()
    more.counts["sent_again"] = 3
    counted.merge(type(more).from_json(more.to_json()))
    generator = judged(counted)
    assert generator.invalid == ()
    assert any(note.startswith("3 times a request was sent again") for note in generator.notes)


def test_workers_without_callers_are_no_reason_and_those_with_callers_are():
    four = [process(str(number), sent=900 if number < 2 else 0) for number in range(4)]
    facts = {"processes": four, "expected": 4, "open_loop": False}
    assert judged(tally(), **facts, without_callers=2).invalid == ()
    assert judged(tally(), **facts, without_callers=1).invalid == ("2 sent nothing",)


def test_a_run_ends_when_it_is_first_asked_to_and_not_when_the_last_worker_has_reported():
    stop = StopRequest()
    assert not stop
    assert stop.after_s(100.0) is None
    for now_s in (103.0, 106.0):
        stop.ask(now_s)
    assert stop
    assert stop.after_s(100.0) == 3.0
    assert stop.after_s(104.0) == 0.0
