"""One process's part of a run: sends its share of the schedule, judges the answers, counts, and tells what it did.

Knows gevent and no Locust: what starts it, stops it and merges its counts is somebody else (loadtests/conductor.py).
"""

from __future__ import annotations

import gc
import itertools
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import gevent
from gevent.event import Event

from loadtests.answer_check import Verdict, judge
from loadtests.arrivals import Arrivals, share_of
from loadtests.histogram import Histogram
from loadtests.http_sender import CONNECT_TIMEOUT_S, HttpSender, SendError
from loadtests.open_loop import Dispatcher, Drop
from loadtests.options import RunOptions, check_file_limit, read_token
from loadtests.payload_traffic import PayloadTraffic, Prepared
from loadtests.precise_sleep import best_sleep
from loadtests.run_folder import RecordFile
from loadtests.run_recorder import RunRecorder, Tally
from loadtests.run_result import GeneratorProcess
from split_inference.errors import UsageError

# What is under way when somebody stops a run gets this long to end.
STOP_GRACE_S = 3.0
STOPPED = Verdict(kind="failed", reason="unanswered at the end")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """One request, for whoever watches."""

    label: str
    latency_s: float
    reply_bytes: int
    trouble: str
    """Why it was not good, as a reason; empty: an answer that is not wrong."""


class ProcessRun:
    """Sends for one process. `prepare` before the start, then `run_open` or `run_closed`, then `report`."""

    def __init__(
        self,
        options: RunOptions,
        traffic: PayloadTraffic,
        paths: Sequence[str],
        *,
        duration_s: float,
        watch: Callable[[Ended], None],
        records: Path | None = None,
    ) -> None:
        """`paths`: the route of each payload file's model on the server."""
        self._options = options
        self._traffic = traffic
        self._paths = list(paths)
        self._duration_s = duration_s
        self._watch = watch
        self._sender = HttpSender(
            options.host,
            ca=options.ca,
            token=read_token(options.token_file),
            timeout_s=options.timeout_s,
            keep_open=options.connections,
        )
        self.recorder = RunRecorder(warmup_s=options.warmup_s, ends_s=duration_s, deadline_s=options.deadline_s)
        self._records: RecordFile | None = None
        if records is not None:
            self.write_records(records)
        self._heads: dict[tuple[int, str, int], bytes] = {}
        self._in_flight: set[gevent.Greenlet] = set()
        self._began_s = 0.0
        self._cpu_at_warmup: tuple[float, float] | None = None
        self._cpu_share = 0.0
        self._dispatching: gevent.Greenlet | None = None
        self._stopped = Event()
        self.stopped_at_s: float | None = None
        """When the run was stopped before its end; None where it was not."""
        self.sent = 0
        self._sent_again = 0
        """Of the sender's, that were taken already."""
        self.delays = Histogram()

    def now_s(self) -> float:
        """Seconds since the run began, monotonic."""
        return time.perf_counter() - self._began_s

    def write_records(self, path: Path) -> None:
        """Write every request into this file from now on."""
        self._records = RecordFile(path)

    def prepare(self) -> None:
        """Raise the file limit and open the connections that were asked for; UsageError where it fails."""
        options = self._options
        check_file_limit(max(options.connections, options.max_in_flight))
        try:
            self._sender.open_all(options.connections)
        except SendError as error:
            raise UsageError(
                f"{options.host}: {error} after {self._sender.idle} of {options.connections} connections; "
                "lower --connections, or raise what the server accepts"
            ) from None

    def run_open(self, arrivals: Arrivals, *, worker: int, workers: int, start_unix_s: float) -> None:
        """Send this worker's share, each at its time, and wait for the answers."""
        self._begin(start_unix_s)
        sleep_s, close_sleep = best_sleep()
        dispatcher = Dispatcher(
            now_s=self.now_s,
            sleep_s=sleep_s,
            start=self._start,
            drop=self._drop,
            in_flight=lambda: len(self._in_flight),
            max_in_flight=self._options.max_in_flight,
            drop_after_s=self._options.drop_after_s,
        )
        try:
            # Whoever stopped it before it began found nothing to end.
            if not self._stopped.is_set():
                self._dispatching = gevent.spawn(dispatcher.run, share_of(arrivals, worker=worker, workers=workers))
                self._dispatching.get()
        finally:
            close_sleep()
        # The run lasts as long as was asked for, also where the last arrivals are early.
        self._stopped.wait(max(0.0, self._duration_s - self.now_s()))
        self._finish(self._options.timeout_s + CONNECT_TIMEOUT_S)

    def run_closed(
        self, users: int, *, worker: int, workers: int, start_unix_s: float, think_s: float = 0.0, streams: int = 1
    ) -> None:
        """`users` callers, each of whom asks `streams` times at once, waits for the answers, thinks, and asks again."""
        self._begin(start_unix_s)
        numbers = itertools.count(worker, workers)
        callers = [gevent.spawn(self._call_on_and_on, numbers, think_s, streams) for _ in range(users)]
        self._stopped.wait(max(0.0, self._duration_s - self.now_s()))
        # Whoever thinks stops by itself now; whoever waits for an answer is under way.
        self._finish(self._options.timeout_s + CONNECT_TIMEOUT_S)
        gevent.killall(callers)

    def stop(self) -> None:
        """End early: send nothing more, give what is under way a moment."""
        if self.stopped_at_s is None and not self._stopped.is_set():
            self.stopped_at_s = max(0.0, self.now_s()) if self._began_s else 0.0
            self._stopped.set()
            if self._dispatching is not None:
                self._dispatching.kill(block=False)

    def take(self) -> Tally:
        """What was counted since the last call."""
        tally = self.recorder.take()
        tally.counts["sent_again"] += self._sender.sent_again - self._sent_again
        self._sent_again = self._sender.sent_again
        return tally

    def report(self, name: str) -> GeneratorProcess:
        """How this process did."""
        scale = 1 if sys.platform == "darwin" else 1024
        return GeneratorProcess(
            name=name,
            cpu_share=self._cpu_share,
            rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6,
            schedule_delay_p99_s=self.delays.percentile(0.99) if self.delays.count else 0.0,
            sent=self.sent,
        )

    def close(self) -> None:
        """Close connections and files."""
        self._sender.close()
        if self._records is not None:
            self._records.close()

    def _begin(self, start_unix_s: float) -> None:
        # Machines agree on wall-clock time to milliseconds; within a process the clock is monotonic.
        self._began_s = time.perf_counter() + (start_unix_s - time.time())
        # Looking through all that Locust and Flask have made takes tens of milliseconds, in which nothing is sent.
        gc.collect()
        gc.freeze()
        if (wait_s := -self.now_s()) > 0:
            gevent.sleep(wait_s)
        gevent.spawn_later(max(0.0, self._options.warmup_s - self.now_s()), self._note_cpu)

    def _note_cpu(self) -> None:
        self._cpu_at_warmup = (time.process_time(), time.perf_counter())

    def _start(self, number: int, intended_s: float) -> None:
        prepared = self._traffic.request(number)
        greenlet = gevent.spawn(self._request, number, prepared, intended_s)
        self._in_flight.add(greenlet)

    def _drop(self, number: int, intended_s: float, why: Drop) -> None:
        label = self._traffic.request(number).label
        self.recorder.dropped(label, intended_s, why)
        self._watch(Ended(label=label, latency_s=0.0, reply_bytes=0, trouble=f"dropped ({why})"))

    def _call_on_and_on(self, numbers: Iterator[int], think_s: float, streams: int) -> None:
        while not self._stopped.is_set() and (now_s := self.now_s()) < self._duration_s:
            asked = [
                gevent.spawn(self._request, number, self._traffic.request(number), now_s)
                for number in itertools.islice(numbers, streams - 1)
            ]
            self._in_flight.update([gevent.getcurrent(), *asked])
            number = next(numbers)
            ended_well = self._request(number, self._traffic.request(number), now_s)
            gevent.joinall(asked)
            self._in_flight.difference_update(asked)
            # A server that is down is asked again, and not ten thousand times a second.
            pause_s = min(think_s if ended_well or think_s else 0.01, self._duration_s - self.now_s())
            if pause_s > 0:
                self._stopped.wait(pause_s)
            else:
                gevent.sleep(0)

    def _request(self, number: int, prepared: Prepared, intended_s: float) -> bool:
        """Send one and count it; whether there was a response."""
        head = self._head(prepared, intended_s)
        sent_s = self.now_s()
        self.sent += 1
        reply_bytes = 0
        verdict = STOPPED
        ended_s = sent_s
        try:
            try:
                response = self._sender.send(head, prepared.body)
            except SendError as error:
                ended_s = self.now_s()
                verdict = Verdict(kind="failed", reason=str(error))
                return False
            ended_s = self.now_s()
            reply_bytes = len(response.body)
            verdict = judge(response.status, response.header, response.body, answer=prepared.answer)
            return True
        finally:
            if verdict is STOPPED:
                ended_s = self.now_s()
            self._in_flight.discard(gevent.getcurrent())
            self._ended(number, prepared.label, intended_s, sent_s, ended_s, verdict, reply_bytes)

    def _ended(
        self,
        number: int,
        label: str,
        intended_s: float,
        sent_s: float,
        ended_s: float,
        verdict: Verdict,
        reply_bytes: int,
    ) -> None:
        self.recorder.ended(label, intended_s=intended_s, sent_s=sent_s, ended_s=ended_s, verdict=verdict)
        counted = intended_s >= self._options.warmup_s
        if counted:
            self.delays.record(sent_s - intended_s)
        if self._records is not None:
            self._records.write(
                number, label, intended_s=intended_s, sent_s=sent_s, ended_s=ended_s, verdict=verdict, counted=counted
            )
        trouble = verdict.reason if verdict.kind in ("refused", "failed") else ""
        if verdict.kind == "wrong":
            trouble = "wrong answer"
        self._watch(Ended(label=label, latency_s=ended_s - intended_s, reply_bytes=reply_bytes, trouble=trouble))

    def _head(self, prepared: Prepared, intended_s: float) -> bytes:
        path = self._paths[prepared.model]
        if self._options.announce_deadline and self._options.deadline_s is not None:
            left_ms = max(0, round(1000 * (self._options.deadline_s - (self.now_s() - intended_s))))
            more = f"x-deadline-ms: {left_ms}\r\n"
            return self._sender.head(path, media_type=prepared.media_type, body_bytes=len(prepared.body), more=more)
        key = (prepared.model, prepared.media_type, len(prepared.body))
        head = self._heads.get(key)
        if head is None:
            head = self._heads[key] = self._sender.head(
                path, media_type=prepared.media_type, body_bytes=len(prepared.body)
            )
        return head

    def _finish(self, patience_s: float) -> None:
        if self._cpu_at_warmup is not None:
            cpu_s, at_s = self._cpu_at_warmup
            self._cpu_share = (time.process_time() - cpu_s) / max(1e-9, time.perf_counter() - at_s)
        waiting = list(self._in_flight)
        gevent.joinall(waiting, timeout=STOP_GRACE_S if self.stopped_at_s is not None else patience_s)
        gevent.killall(list(self._in_flight))
        self._stopped.set()
        self.close()
