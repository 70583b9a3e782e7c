"""A run that was checked and can begin: what is sent, when, to whom; and the record that comes of it.

Everything that can be wrong is found here, before anything is sent. Knows no Locust and no gevent.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadtests.arrivals import Arrivals
from loadtests.generator_health import HealthBounds, Sighting, generator_of
from loadtests.options import RunOptions, check_file_limit
from loadtests.payload_traffic import PayloadTraffic
from loadtests.preflight import Target, find_targets
from loadtests.run_recorder import Tally
from loadtests.run_result import ModelUnderTest, Planned, RunResult
from loadtests.run_summary import announcement
from loadtests.verdict import read_slo_file
from split_inference.errors import UsageError
from split_inference.payload_file import PayloadFile

if TYPE_CHECKING:
    from loadtests.slo import Slo


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """Made by `open` or `closed`, which raise one line for whatever is wrong."""

    experiment: str
    options: RunOptions
    slo: Slo | None
    files: tuple[PayloadFile, ...]
    traffic: PayloadTraffic
    targets: tuple[Target, ...]
    duration_s: float
    planned: Planned
    arrivals: Arrivals | None
    """None: a closed loop."""
    callers: int = 0
    streams: int = 1
    """Requests that each caller sends at once; it asks again when all are answered."""
    think_s: float = 0.0

    @classmethod
    def open(cls, experiment: str, options: RunOptions, schedule: Callable[[PayloadTraffic], Arrivals]) -> RunPlan:
        """An open loop with the arrivals that `schedule` makes for what is sent."""
        slo = read_slo_file(options.slo)
        with _opened(options) as (files, traffic, kept):
            arrivals = schedule(traffic)
            _check_warmup(options, arrivals.duration_s)
            check_file_limit(max(options.connections, options.max_in_flight))
            targets = tuple(find_targets(options, files))
            kept.pop_all()
        planned = Planned(
            arrivals=arrivals.kind,
            rate_per_s=arrivals.mean_per_s,
            duration_s=arrivals.duration_s,
            requests=arrivals.planned(),
            bytes_per_s=arrivals.mean_per_s * traffic.mean_body_bytes,
        )
        return cls(
            experiment=experiment,
            options=options,
            slo=slo,
            files=files,
            traffic=traffic,
            targets=targets,
            duration_s=arrivals.duration_s,
            planned=planned,
            arrivals=arrivals,
        )

    @classmethod
    def closed(
        cls, experiment: str, options: RunOptions, *, callers: int, streams: int, think_s: float, duration_s: float
    ) -> RunPlan:
        """A closed loop of so many callers, over all workers."""
        if not 1 <= callers <= 100_000:
            raise UsageError(f"--callers is 1..100000, got {callers}")
        if not 1 <= streams <= 1000:
            raise UsageError(f"--streams is 1..1000, got {streams}")
        if not 0 <= think_s <= 3600 or not 0 < duration_s <= 7 * 86_400:
            raise UsageError(
                f"--think-ms is 0 or more and --duration above 0 s, got {1000 * think_s:g} and {duration_s:g}"
            )
        slo = read_slo_file(options.slo)
        _check_warmup(options, duration_s)
        check_file_limit(max(options.connections, callers * streams))
        with _opened(options) as (files, traffic, kept):
            targets = tuple(find_targets(options, files))
            kept.pop_all()
        planned = Planned(
            arrivals="closed", rate_per_s=None, duration_s=duration_s, requests=None, bytes_per_s=None, users=callers
        )
        return cls(
            experiment=experiment,
            options=options,
            slo=slo,
            files=files,
            traffic=traffic,
            targets=targets,
            duration_s=duration_s,
            planned=planned,
            arrivals=None,
            callers=callers,
            streams=streams,
            think_s=think_s,
        )

    def close(self) -> None:
        """Close the payload files; safe to call twice."""
        self.traffic.close()

    def callers_of(self, worker: int, workers: int) -> int:
        """One worker's part of the callers."""
        return self.callers // workers + (worker < self.callers % workers)

    def is_idle(self, worker: int, workers: int) -> bool:
        """Whether there is no caller for this worker; in an open loop every worker has a share."""
        return self.arrivals is None and not self.callers_of(worker, workers)

    def _scheduled(self) -> tuple[int, int] | None:
        return None if self.arrivals is None else self.arrivals.number_after(self.options.warmup_s)

    def announcement(self, *, workers: int) -> str:
        """What is going to be sent."""
        return announcement(
            self.experiment,
            self.planned,
            host=self.options.host,
            shares=self.traffic.shares(),
            workers=workers,
            max_in_flight=self.options.max_in_flight,
        )

    def result(self, tally: Tally, sighting: Sighting, *, command: str, started_at: str) -> RunResult:
        """The run's record."""
        options, open_loop = self.options, self.arrivals is not None
        ended_s = self.duration_s if sighting.stopped_at_s is None else min(sighting.stopped_at_s, self.duration_s)
        measured_s = max(0.0, ended_s - options.warmup_s)
        return RunResult(
            experiment=self.experiment,
            open_loop=open_loop,
            host=options.host,
            models=tuple(
                ModelUnderTest(name=target.name, digest=file.header.model.digest, trained=file.header.model.trained)
                for target, file in zip(self.targets, self.files, strict=True)
            ),
            started_at=started_at,
            command=command,
            seed=options.seed,
            workers=sighting.expected,
            planned=self.planned,
            deadline_s=options.deadline_s,
            warmup_s=options.warmup_s,
            measured_s=measured_s,
            counts=tally.result_counts(),
            dropped=dict(tally.dropped),
            refused=dict(tally.refused),
            failed=dict(tally.failed),
            latency=tally.histograms["latency"],
            service=tally.histograms["service"],
            schedule_delay=tally.histograms["schedule_delay"],
            refused_latency=tally.histograms["refused_latency"],
            server=tally.result_server(),
            batch_sizes={int(size): count for size, count in tally.batch_sizes.items()},
            by_option=tally.result_options(),
            seconds=tally.result_seconds(),
            generator=generator_of(
                tally,
                sighting,
                measured_s=measured_s,
                open_loop=open_loop,
                scheduled=self._scheduled() if sighting.stopped_at_s is None else None,
                bounds=HealthBounds(schedule_delay_p99_s=self.options.max_late_s),
            ),
        )


@contextlib.contextmanager
def _opened(
    options: RunOptions,
) -> Iterator[tuple[tuple[PayloadFile, ...], PayloadTraffic, contextlib.ExitStack]]:
    """The payload files and what is sent of them; closed again unless the stack is emptied."""
    with contextlib.ExitStack() as stack:
        files = tuple(stack.enter_context(PayloadFile.open(path)) for path in options.payloads)
        traffic = PayloadTraffic(
            files, mode=options.mode, option=options.option, weights=options.weights, seed=options.seed
        )
        yield files, traffic, stack


def _check_warmup(options: RunOptions, duration_s: float) -> None:
    if options.warmup_s >= duration_s:
        raise UsageError(f"--warmup of {options.warmup_s:g} s leaves nothing of a run of {duration_s:g} s to count")
