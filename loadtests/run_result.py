"""The record of one load test: what was asked for, what came back, and how the generator itself did.

The contract between those who measure (loadtests/run_recorder.py) and those who judge, draw and compare. Knows the
JSON of `result.json` in a run's folder and no Locust, no HTTP, no SLO.

Every request whose intended start lies between the end of the warm-up and the end of the run is counted once:
    intended = sent + dropped
    sent = answered + refused + failed
    answered = right + wrong + unchecked
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, ValidationError, model_validator

from loadtests.histogram import CURVE_BITS, Histogram
from split_inference.errors import DataError
from split_inference.json_files import first_problem

VERSION: Final = 1
RESULT_FILE: Final = "result.json"
# An hour of seconds with their histograms is 10 MB; a day of soak stays below this.
MAX_RESULT_BYTES: Final = 512 * 2**20
_MAX_SECONDS: Final = 31 * 86_400


def _histogram(value: Any) -> Histogram:
    return value if isinstance(value, Histogram) else Histogram.from_json(value)


HistogramField = Annotated[Histogram, PlainValidator(_histogram), PlainSerializer(Histogram.to_json)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class ModelUnderTest(_Record):
    """A model that the requests were for."""

    name: str
    digest: str
    trained: bool = True
    """False: random weights; times are real, answers mean nothing."""


class Planned(_Record):
    """What was to be sent, over the whole run, the warm-up included."""

    arrivals: str
    """Kind of the arrivals: constant, poisson, ramp, step, burst, diurnal, replay, closed, ..."""
    rate_per_s: Seconds | None
    """Mean over the duration; None for a closed loop, whose rate is the server's doing."""
    duration_s: Seconds
    requests: Count | None
    """Arrivals that the schedule holds; None for a closed loop."""
    bytes_per_s: Seconds | None
    """Request bodies a second, at the mean rate and the mean body."""
    users: Count | None = None
    """Concurrent callers of a closed loop; None in an open one."""


class Counts(_Record):
    """Requests after the warm-up."""

    intended: Count = 0
    sent: Count = 0
    dropped: Count = 0
    """Their time came and the generator had no room for them; never sent."""
    answered: Count = 0
    """Got a reply with a class in it."""
    in_time: Count = 0
    """Answered within the deadline from the intended start; all answered where there is no deadline."""
    right: Count = 0
    """The answer is what a float server answers to this body."""
    wrong: Count = 0
    unchecked: Count = 0
    """Answered where nothing says what is right."""
    good: Count = 0
    """In time and not wrong."""


class OptionResult(_Record):
    """One of the ways in which was asked, as the payload file names it."""

    intended: Count = 0
    good: Count = 0
    latency: HistogramField = Field(default_factory=Histogram)


class Second(_Record):
    """One second of the run, counted from its start; by intended start, but for `sent`."""

    second: Count
    intended: Count = 0
    sent: Count = 0
    """Actually sent within this second, whenever they were meant to be."""
    dropped: Count = 0
    answered: Count = 0
    good: Count = 0
    refused: Count = 0
    failed: Count = 0
    latency: HistogramField = Field(default_factory=lambda: Histogram(bits=CURVE_BITS))
    """Of the answered, from the intended start; coarser (within 0.8 %)."""
    server_queue: HistogramField = Field(default_factory=lambda: Histogram(bits=CURVE_BITS))
    """Time in the server's queue, as its replies say."""


class ServerTimes(_Record):
    """Stages as the server's replies tell them, of the answered; empty where it says nothing."""

    queue: HistogramField = Field(default_factory=Histogram)
    decode: HistogramField = Field(default_factory=Histogram)
    tail: HistogramField = Field(default_factory=Histogram)
    total: HistogramField = Field(default_factory=Histogram)


class GeneratorProcess(_Record):
    """One process that sent requests."""

    name: str
    cpu_share: Annotated[float, Field(ge=0)]
    """Of one core, over the measured part of the run; the open loop runs on one."""
    rss_mb: Seconds
    """Largest resident memory, 1e6 bytes."""
    schedule_delay_p99_s: Seconds
    sent: Count = 0


class Generator(_Record):
    """How those who sent did; what they measured is worth nothing where they themselves were late."""

    processes: tuple[GeneratorProcess, ...] = ()
    achieved_rate_per_s: Seconds = 0.0
    """Requests that left between the end of the warm-up and the end of the run, a second."""
    intended_rate_per_s: Seconds = 0.0
    """Intended starts in the same time, a second."""
    invalid: tuple[str, ...] = ()
    """Why this run is no result, each one line; empty: it is one."""
    notes: tuple[str, ...] = ()
    """What a reader should know and what does not make the run worthless."""


class RunResult(_Record):
    """A whole run; `result.json`."""

    version: Literal[1] = VERSION
    experiment: str
    """Name of the locustfile or command."""
    open_loop: bool = True
    """False: a closed loop, whose latencies leave out what waited while the server was slow."""
    host: str
    models: tuple[ModelUnderTest, ...] = ()
    started_at: str
    """ISO 8601, UTC."""
    command: str
    seed: int
    workers: Annotated[int, Field(ge=1)] = 1
    planned: Planned
    deadline_s: Seconds | None = None
    warmup_s: Seconds = 0.0
    """Requests meant to start before it are sent and not counted."""
    measured_s: Seconds
    """From the end of the warm-up to the end of the run (earlier than planned where it was stopped)."""
    counts: Counts
    refused: dict[str, Count] = Field(default_factory=dict)
    """Reason, as in "429 OverShareError", to requests that the server refused for load or deadline (408, 429, 503)."""
    dropped: dict[str, Count] = Field(default_factory=dict)
    """Late: the generator was busy when the time came. Full: as many requests as it may have were under way."""
    failed: dict[str, Count] = Field(default_factory=dict)
    """Reason, as in "timeout" or "500", to requests that got no answer for any other reason."""
    latency: HistogramField = Field(default_factory=Histogram)
    """From the intended start to the whole answer, of the answered."""
    service: HistogramField = Field(default_factory=Histogram)
    """From the actual start to the whole answer, of the answered."""
    schedule_delay: HistogramField = Field(default_factory=Histogram)
    """From the intended to the actual start, of all that were sent."""
    refused_latency: HistogramField = Field(default_factory=Histogram)
    """From the intended start to the refusal."""
    server: ServerTimes = Field(default_factory=ServerTimes)
    batch_sizes: dict[int, Count] = Field(default_factory=dict)
    """Samples in the batch that a request was answered in, to requests."""
    by_option: dict[str, OptionResult] = Field(default_factory=dict)
    seconds: tuple[Second, ...] = ()
    """In order; whole run but the warm-up; seconds in which nothing was meant or sent may be missing."""
    generator: Generator = Field(default_factory=Generator)

    @model_validator(mode="after")
    def _refuse_nonsense(self) -> RunResult:
        counts = self.counts
        refused, failed = self.refused_count, self.failed_count
        if counts.intended != counts.sent + counts.dropped:
            raise ValueError(f"intended {counts.intended} is not sent {counts.sent} + dropped {counts.dropped}")
        if counts.sent != counts.answered + refused + failed:
            raise ValueError(
                f"sent {counts.sent} is not answered {counts.answered} + refused {refused} + failed {failed}"
            )
        if counts.answered != counts.right + counts.wrong + counts.unchecked:
            raise ValueError("answered is not right + wrong + unchecked")
        if not counts.good <= counts.in_time <= counts.answered:
            raise ValueError("good, in_time and answered are not in order")
        numbers = [each.second for each in self.seconds]
        if any(before >= after for before, after in pairwise(numbers)) or (numbers and numbers[-1] > _MAX_SECONDS):
            raise ValueError("seconds are not in order, or more than a month")
        if any(each.bits != CURVE_BITS for second in self.seconds for each in (second.latency, second.server_queue)):
            raise ValueError(f"the histograms of seconds have {CURVE_BITS} bits")
        return self

    @property
    def refused_count(self) -> int:
        """Requests that were refused, for whatever reason."""
        return sum(self.refused.values())

    @property
    def failed_count(self) -> int:
        """Requests that failed, for whatever reason."""
        return sum(self.failed.values())

    @property
    def goodput_share(self) -> float:
        """Good requests of the intended ones, 0..1; 0 of none."""
        return self.counts.good / self.counts.intended if self.counts.intended else 0.0

    @property
    def goodput_per_s(self) -> float:
        """Good requests a second."""
        return self.counts.good / self.measured_s if self.measured_s else 0.0

    @property
    def is_valid(self) -> bool:
        """Whether the generator kept its schedule, so that this is a result."""
        return not self.generator.invalid


def read_result(path: Path) -> RunResult:
    """A run from its folder or its result.json; DataError in one line where there is none."""
    file = path / RESULT_FILE if path.is_dir() else path
    try:
        size = file.stat().st_size
        if size > MAX_RESULT_BYTES:
            raise DataError(f"{file} is {size} bytes; a run's result has at most {MAX_RESULT_BYTES}")
        return RunResult.model_validate_json(file.read_bytes())
    except OSError as error:
        raise DataError(
            f"cannot read the run {file}: {error.strerror}; give a run's folder or its result.json"
        ) from None
    except ValidationError as error:
        raise DataError(f"{file} is no result of a load test: {first_problem(error)}") from None


def write_result(folder: Path, result: RunResult) -> Path:
    """Write result.json into the run's folder, whole or not at all; DataError where it cannot be written."""
    target = folder / RESULT_FILE
    partial = folder / f".{RESULT_FILE}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(result.model_dump(mode="json"), separators=(",", ":")) + "\n", encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror}; choose another place") from None
    return target
