"""Counts what happens to each request of a run, and adds up what several processes counted.

A `Tally` is what one process saw since it last reported; tallies add up to the same whatever their number and order.
Knows no Locust, no HTTP and no SLO. Times in seconds since the run began.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loadtests.answer_check import Verdict
from loadtests.histogram import CURVE_BITS, Histogram
from loadtests.open_loop import Drop
from loadtests.run_result import Counts, OptionResult, Second, ServerTimes

# What a server may say as reasons or batch sizes must not fill memory.
_MAX_KINDS = 300
_STAGES = ("queue", "decode", "tail", "total")
_HISTOGRAMS = ("latency", "service", "schedule_delay", "refused_latency", *_STAGES)
_ANSWERED = frozenset({"right", "wrong", "unchecked"})


@dataclass(slots=True)
class _Second:
    counts: Counter[str] = field(default_factory=Counter)
    latency: Histogram = field(default_factory=lambda: Histogram(bits=CURVE_BITS))
    queue: Histogram = field(default_factory=lambda: Histogram(bits=CURVE_BITS))


@dataclass(slots=True)
class _Option:
    counts: Counter[str] = field(default_factory=Counter)
    latency: Histogram = field(default_factory=Histogram)


class Tally:
    """Everything that was counted."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.batch_sizes: Counter[str] = Counter()
        self.histograms = {name: Histogram() for name in _HISTOGRAMS}
        self.seconds: dict[int, _Second] = {}
        self.options: dict[str, _Option] = {}

    def second(self, at_s: float) -> _Second:
        """The record of one second of the run."""
        number = int(at_s)
        found = self.seconds.get(number)
        if found is None:
            found = self.seconds[number] = _Second()
        return found

    def option(self, label: str) -> _Option:
        """The record of one option."""
        found = self.options.get(label)
        if found is None:
            found = self.options[label] = _Option()
        return found

    def merge(self, other: Tally) -> None:
        """Add what another one counted."""
        for mine, theirs in zip(self._counters(), other._counters(), strict=True):
            mine.update(theirs)
        for name, histogram in other.histograms.items():
            self.histograms[name].merge(histogram)
        for number, second in other.seconds.items():
            own = self.second(number)
            own.counts.update(second.counts)
            own.latency.merge(second.latency)
            own.queue.merge(second.queue)
        for label, option in other.options.items():
            kept = self.option(label)
            kept.counts.update(option.counts)
            kept.latency.merge(option.latency)

    def to_json(self) -> dict[str, Any]:
        """Plain lists, texts and numbers, for a message between processes."""
        return {
            "counters": [dict(each) for each in self._counters()],
            "histograms": {name: each.to_json() for name, each in self.histograms.items() if each.count},
            "seconds": [
                [number, dict(each.counts), each.latency.to_json(), each.queue.to_json()]
                for number, each in self.seconds.items()
            ],
            "options": [[label, dict(each.counts), each.latency.to_json()] for label, each in self.options.items()],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Tally:
        """What `to_json` made; ValueError, KeyError or TypeError for anything else."""
        tally = cls()
        for mine, theirs in zip(tally._counters(), content["counters"], strict=True):
            mine.update({str(key): int(value) for key, value in theirs.items()})
        for name, each in content["histograms"].items():
            tally.histograms[name].merge(Histogram.from_json(each))
        for number, counts, latency, queue in content["seconds"]:
            second = _Second(Counter(counts), Histogram.from_json(latency), Histogram.from_json(queue))
            tally.seconds[int(number)] = second
        for label, counts, latency in content["options"]:
            tally.options[str(label)] = _Option(Counter(counts), Histogram.from_json(latency))
        return tally

    def _counters(self) -> tuple[Counter[str], ...]:
        return (self.counts, self.dropped, self.refused, self.failed, self.batch_sizes)

    def result_counts(self) -> Counts:
        """For the run's record."""
        return Counts(**{name: self.counts[name] for name in Counts.model_fields})

    def result_seconds(self) -> tuple[Second, ...]:
        """For the run's record, in order."""
        names = ("intended", "sent", "dropped", "answered", "good", "refused", "failed")
        return tuple(
            Second(
                second=number,
                latency=each.latency,
                server_queue=each.queue,
                **{name: each.counts[name] for name in names},
            )
            for number, each in sorted(self.seconds.items())
        )

    def result_options(self) -> dict[str, OptionResult]:
        """For the run's record."""
        return {
            label: OptionResult(intended=each.counts["intended"], good=each.counts["good"], latency=each.latency)
            for label, each in sorted(self.options.items())
        }

    def result_server(self) -> ServerTimes:
        """For the run's record."""
        return ServerTimes(**{stage: self.histograms[stage] for stage in _STAGES})


class RunRecorder:
    """Takes each request's end; requests that were meant to start during the warm-up are left out."""

    def __init__(self, *, warmup_s: float, ends_s: float, deadline_s: float | None) -> None:
        """`ends_s`: end of the run, up to which a request counts as sent on time."""
        self._warmup_s = warmup_s
        self._ends_s = ends_s
        self._deadline_s = deadline_s
        self._tally = Tally()

    def take(self) -> Tally:
        """What was counted since the last call."""
        taken, self._tally = self._tally, Tally()
        return taken

    def dropped(self, label: str, intended_s: float, why: Drop) -> None:
        """An arrival that was not sent."""
        if intended_s < self._warmup_s:
            return
        tally = self._tally
        tally.counts.update(intended=1, dropped=1)
        tally.dropped[why] += 1
        tally.second(intended_s).counts.update(intended=1, dropped=1)
        tally.option(label).counts["intended"] += 1

    def ended(self, label: str, *, intended_s: float, sent_s: float, ended_s: float, verdict: Verdict) -> bool:
        """A request that was sent, and how it ended; whether it was good (in time and not wrong)."""
        latency_s = ended_s - intended_s
        answered = verdict.kind in _ANSWERED
        in_time = answered and (self._deadline_s is None or latency_s <= self._deadline_s)
        good = in_time and verdict.kind != "wrong"
        if intended_s < self._warmup_s:
            return good
        tally = self._tally
        counts, histograms = tally.counts, tally.histograms
        second, option = tally.second(intended_s), tally.option(label)
        counts["intended"] += 1
        counts["sent"] += 1
        second.counts["intended"] += 1
        tally.second(sent_s).counts["sent"] += 1
        if sent_s <= self._ends_s:
            counts["sent_within"] += 1
        option.counts["intended"] += 1
        histograms["schedule_delay"].record(sent_s - intended_s)
        if answered:
            counts["answered"] += 1
            counts[verdict.kind] += 1
            second.counts["answered"] += 1
            histograms["latency"].record(latency_s)
            histograms["service"].record(ended_s - sent_s)
            second.latency.record(latency_s)
            option.latency.record(latency_s)
            self._server(verdict, second)
        elif verdict.kind == "refused":
            _count(tally.refused, verdict.reason)
            second.counts["refused"] += 1
            histograms["refused_latency"].record(latency_s)
        else:
            _count(tally.failed, verdict.reason)
            second.counts["failed"] += 1
        if in_time:
            counts["in_time"] += 1
        if good:
            counts["good"] += 1
            second.counts["good"] += 1
            option.counts["good"] += 1
        return good

    def _server(self, verdict: Verdict, second: _Second) -> None:
        for stage in _STAGES:
            spent_s = verdict.timings_s.get(stage)
            if spent_s is not None:
                self._tally.histograms[stage].record(spent_s)
        if "queue" in verdict.timings_s:
            second.queue.record(verdict.timings_s["queue"])
        if verdict.batch_samples is not None:
            _count(self._tally.batch_sizes, str(verdict.batch_samples), other="0")


def _count(counter: Counter[str], key: str, *, other: str = "other") -> None:
    counter[key if key in counter or len(counter) < _MAX_KINDS else other] += 1
