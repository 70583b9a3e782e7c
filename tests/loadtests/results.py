"""Records of runs for tests: made of latencies, without any load."""

from __future__ import annotations

from loadtests.histogram import CURVE_BITS, Histogram
from loadtests.run_result import Counts, Generator, GeneratorProcess, Planned, RunResult, Second


def run_of(latencies_s, *, seconds=None, refused=0, failed=0, wrong=0, deadline_s=None, measured_s=10.0, **changes):
    """A run whose answers took `latencies_s`; with `seconds`, one list of latencies for each second instead."""
    if seconds is not None:
        latencies_s = [each for second in seconds for each in second]
        measured_s = float(len(seconds))
    answered = len(latencies_s)
    in_time = sum(deadline_s is None or each <= deadline_s for each in latencies_s)
    sent = answered + refused + failed
    facts = {
        "experiment": "poisson",
        "host": "http://127.0.0.1:8000",
        "started_at": "2026-11-27T20:00:00.000+00:00",
        "command": "locust -f loadtests/poisson.py",
        "seed": 0,
        "planned": Planned(arrivals="poisson", rate_per_s=10, duration_s=measured_s, requests=sent, bytes_per_s=1000),
        "deadline_s": deadline_s,
        "measured_s": measured_s,
        "counts": Counts(
            intended=sent, sent=sent, answered=answered, in_time=in_time, right=answered - wrong, wrong=wrong,
            good=max(0, in_time - wrong),
        ),
        "refused": {"503 OverloadedError": refused} if refused else {},
        "failed": {"timeout": failed} if failed else {},
        "latency": Histogram.of(latencies_s),
        "service": Histogram.of(latencies_s),
        "schedule_delay": Histogram.of([0.0002] * sent),
        "seconds": tuple(second_of(number, values, deadline_s) for number, values in enumerate(seconds or [])),
        "generator": Generator(
            processes=(GeneratorProcess(name="generator", cpu_share=0.2, rss_mb=90, schedule_delay_p99_s=0.0002),)
        ),
    }  # fmt: skip
    return RunResult(**(facts | changes))


def second_of(number, latencies_s, deadline_s):
    """One second of a run."""
    good = sum(deadline_s is None or each <= deadline_s for each in latencies_s)
    return Second(
        second=number,
        intended=len(latencies_s),
        sent=len(latencies_s),
        answered=len(latencies_s),
        good=good,
        latency=Histogram.of(latencies_s, bits=CURVE_BITS),
    )
