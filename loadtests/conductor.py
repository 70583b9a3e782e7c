"""Conducts the runs of one experiment over any number of processes: Locust's events in, a verdict and files out.

Checks before the load, the start in step of all workers, the merging of their counts, the end in order. Locust brings
processes, master and workers, web page and statistics; what is sent when, `ProcessRun` knows.

Importing this patches the process (gevent): see experiment.py.
"""

# ruff: noqa: I001  Locust patches the standard library and has to come first.
from locust import events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import STATE_MISSING, MasterRunner, WorkerRunner

import shlex
import socket
import sys
import time
import uuid
from argparse import Namespace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import gevent
import psutil
from gevent.event import Event

from loadtests.arrivals import Arrivals
from loadtests.experiment_arguments import add_arguments
from loadtests.generator_health import Sighting, StopRequest
from loadtests.options import ArgumentGroup, RunOptions
from loadtests.payload_traffic import Mode, PayloadTraffic
from loadtests.process_run import Ended, ProcessRun
from loadtests.run_folder import new_run_folder, now_text, write_header
from loadtests.run_plan import RunPlan
from loadtests.run_recorder import Tally
from loadtests.run_result import GeneratorProcess
from loadtests.run_summary import summary, verdict_lines
from loadtests.verdict import conclude
from split_inference.errors import SplitInferenceError, UsageError

# Workers read and check their payload files in this time; a gigabyte takes a second.
_READY_TIMEOUT_S = 60.0
# From the last worker's being ready to the first request: messages have to arrive.
_HEAD_START_S = 0.5
# How much later than planned a worker may report before it counts as lost.
_REPORT_GRACE_S = 10.0
_READY, _GO, _STOP, _DONE = "load_ready", "load_go", "load_stop", "load_done"


class Experiment(Protocol):
    """How requests arrive, and the arguments that say more."""

    open_loop: ClassVar[bool]
    mode: ClassVar[Mode]

    @classmethod
    def add_arguments(cls, group: ArgumentGroup) -> None: ...

    @classmethod
    def arrivals(cls, given: Namespace, traffic: PayloadTraffic) -> Arrivals: ...


class LoadFailure(Exception):
    """Why a request was not good, for Locust's own table of failures."""


class Conductor:
    """Conducts the runs of one locustfile in this process: as all of it, as master, or as worker."""

    def __init__(self, kind: type[Experiment]) -> None:
        self._kind = kind
        self._name = Path(sys.modules[kind.__module__].__file__ or kind.__module__).stem
        self._environment: Environment | None = None
        self._plan: tuple[dict[str, Any], RunPlan] | None = None
        self._run_id = ""
        self._process: ProcessRun | None = None
        self._conducting: gevent.Greenlet | None = None
        # Of the master: what each worker said.
        self._ready: dict[str, str] = {}
        self._done: dict[str, GeneratorProcess] = {}
        self._left: dict[str, float] = {}
        self._tally = Tally()
        self._news = Event()
        self._finished = Event()
        self._finished.set()
        self._stop = StopRequest()

    def listen(self) -> None:
        """Join Locust's events."""
        events.init_command_line_parser.add_listener(self._add_arguments)
        events.init.add_listener(self._init)
        events.test_start.add_listener(self._test_start)
        events.test_stopping.add_listener(self._test_stopping)
        events.report_to_master.add_listener(self._report_to_master)
        events.worker_report.add_listener(self._worker_report)

    def _add_arguments(self, parser: LocustArgumentParser) -> None:
        add_arguments(parser, name=self._name, of=self._kind.add_arguments)

    def _init(self, environment: Environment, **_: Any) -> None:
        self._environment = environment
        runner = environment.runner
        # Fired in reverse order: what is added after the runner's own listener ends the run before its worker leaves.
        events.quitting.add_listener(self._test_stopping)
        if isinstance(runner, MasterRunner):
            runner.register_message(_READY, self._worker_ready)
            runner.register_message(_DONE, self._worker_done)
        elif isinstance(runner, WorkerRunner):
            runner.register_message(_GO, self._go, concurrent=True)
            runner.register_message(_STOP, self._stop_worker, concurrent=True)
        options = environment.parsed_options
        if not isinstance(runner, WorkerRunner) and options is not None and (options.headless or options.autostart):
            try:
                self._checked_plan()
            except SplitInferenceError as error:
                print(f"{self._name}: {error}", file=sys.stderr, flush=True)
                if options.processes:
                    _end_forked_workers()
                raise SystemExit(2) from None

    def _checked_plan(self) -> RunPlan:
        assert self._environment is not None
        given = self._environment.parsed_options
        assert given is not None
        key = {**vars(given), "host": self._environment.host}
        if self._plan is None or self._plan[0] != key:
            if self._plan is not None:
                self._plan[1].close()
                self._plan = None
            self._plan = (key, self._new_plan(given))
        return self._plan[1]

    def _new_plan(self, given: Namespace) -> RunPlan:
        assert self._environment is not None
        kind = self._kind
        options = RunOptions.of(given, host=self._environment.host, mode=kind.mode)
        if kind.open_loop:
            return RunPlan.open(self._name, options, lambda traffic: kind.arrivals(given, traffic))
        return RunPlan.closed(
            self._name,
            options,
            callers=given.callers,
            streams=given.streams,
            think_s=given.think_ms / 1000,
            duration_s=given.duration,
        )

    # ------------------------------------------------------------------ start

    def _test_start(self, environment: Environment, **_: Any) -> None:
        self._environment = environment
        self._stop = StopRequest()
        if isinstance(environment.runner, WorkerRunner):
            gevent.spawn(self._prepare_worker)
            return
        self._finished.clear()
        self._ready, self._done, self._left, self._tally = {}, {}, {}, Tally()
        self._run_id = uuid.uuid4().hex
        self._conducting = gevent.spawn(self._conduct)

    def _conduct(self) -> None:
        environment = self._environment
        assert environment is not None
        try:
            plan = self._checked_plan()
            folder = new_run_folder(self._name, folder=plan.options.folder)
            runner = environment.runner
            workers = list(runner.clients) if isinstance(runner, MasterRunner) else []
            print(plan.announcement(workers=max(1, len(workers))), flush=True)
            write_header(folder, command=_command(), facts={"experiment": self._name, "options": plan.options.facts()})
            started_at = now_text()
            sighting = self._conduct_workers(workers, plan, folder) if workers else self._conduct_here(plan, folder)
            self._finish(plan, sighting, folder=folder, started_at=started_at)
        except SplitInferenceError as error:
            environment.process_exit_code = 2
            print(f"{self._name}: {error}", file=sys.stderr, flush=True)
        except Exception:
            # Locust would log it, and a run that broke must not look like one that went well.
            environment.process_exit_code = 1
            raise
        finally:
            self._finished.set()
            gevent.spawn(self._end_of_test, environment)

    def _conduct_here(self, plan: RunPlan, folder: Path) -> Sighting:
        process = self._new_process(plan, records=folder / "requests.csv" if plan.options.records else None)
        process.prepare()
        if self._stop:
            raise UsageError("stopped before anything was sent")
        self._send(process, plan, worker=0, workers=1, start_unix_s=time.time() + _HEAD_START_S)
        self._tally.merge(process.take())
        return Sighting(processes=(process.report("generator"),), expected=1, stopped_at_s=process.stopped_at_s)

    def _conduct_workers(self, workers: list[str], plan: RunPlan, folder: Path) -> Sighting:
        self._wait_for(
            lambda: self._stop or all(each in self._ready or self._is_gone(each) for each in workers),
            timeout_s=_READY_TIMEOUT_S,
        )
        troubles = [
            f"worker {index}: {self._ready[each]}" for index, each in enumerate(workers) if self._ready.get(each)
        ]
        if troubles:
            raise UsageError(troubles[0])
        if self._stop:
            raise UsageError("stopped before anything was sent")
        if missing := [each for each in workers if each not in self._ready]:
            raise UsageError(
                f"{len(missing)} of {len(workers)} workers left, or were not ready in {_READY_TIMEOUT_S:g} s"
            )
        start_unix_s = time.time() + _HEAD_START_S
        for index, worker in enumerate(workers):
            content = {
                "run": self._run_id,
                "worker": index,
                "workers": len(workers),
                "start_unix_s": start_unix_s,
                "records": str(folder / f"requests-{index}.csv") if plan.options.records else "",
            }
            self._master.send_message(_GO, content, client_id=worker)
        patience_s = plan.duration_s + plan.options.timeout_s + _HEAD_START_S + _REPORT_GRACE_S
        self._wait_for(lambda: all(each in self._done or self._is_gone(each) for each in workers), timeout_s=patience_s)
        lost = [f"worker {index}" for index, each in enumerate(workers) if each not in self._done]
        return Sighting(
            processes=tuple(self._done[each] for each in workers if each in self._done),
            expected=len(workers),
            lost=lost,
            left=[
                (f"worker {index}", self._left[each])
                for index, each in enumerate(workers)
                # Later there was nothing left to send.
                if self._left.get(each, plan.duration_s) < plan.duration_s
            ],
            without_callers=sum(plan.is_idle(index, len(workers)) for index in range(len(workers))),
            stopped_at_s=self._stop.after_s(start_unix_s),
        )

    @property
    def _master(self) -> MasterRunner:
        assert self._environment is not None
        assert isinstance(self._environment.runner, MasterRunner)
        return self._environment.runner

    def _is_gone(self, worker: str) -> bool:
        client = self._master.clients.get(worker)
        return client is None or client.state == STATE_MISSING

    def _wait_for(self, holds: Any, *, timeout_s: float) -> None:
        until_s = time.monotonic() + timeout_s
        while not holds() and time.monotonic() < until_s:
            self._news.clear()
            # Workers that go away send no news.
            self._news.wait(0.5)

    def _new_process(self, plan: RunPlan, *, records: Path | None) -> ProcessRun:
        self._process = ProcessRun(
            plan.options,
            plan.traffic,
            [target.path for target in plan.targets],
            duration_s=plan.duration_s,
            watch=self._tell_locust,
            records=records,
        )
        return self._process

    def _send(self, process: ProcessRun, plan: RunPlan, *, worker: int, workers: int, start_unix_s: float) -> None:
        if plan.arrivals is not None:
            process.run_open(plan.arrivals, worker=worker, workers=workers, start_unix_s=start_unix_s)
        else:
            callers = plan.callers_of(worker, workers)
            process.run_closed(
                callers,
                worker=worker,
                workers=workers,
                start_unix_s=start_unix_s,
                think_s=plan.think_s,
                streams=plan.streams,
            )

    def _tell_locust(self, ended: Ended) -> None:
        assert self._environment is not None
        self._environment.events.request.fire(
            request_type="POST",
            name=ended.label,
            response_time=1000 * ended.latency_s,
            response_length=ended.reply_bytes,
            exception=LoadFailure(ended.trouble) if ended.trouble else None,
            context={},
        )

    # ------------------------------------------------------------------ worker

    def _prepare_worker(self) -> None:
        trouble = ""
        try:
            plan = self._checked_plan()
            process = self._new_process(plan, records=None)
            process.prepare()
        except SplitInferenceError as error:
            trouble = str(error)
        assert self._environment is not None
        self._environment.runner.send_message(_READY, {"trouble": trouble})

    def _go(self, environment: Environment, msg: Any, **_: Any) -> None:
        said = msg.data
        process, plan = self._process, self._checked_plan()
        assert process is not None
        self._finished.clear()
        self._run_id = said["run"]
        if said["records"]:
            process.write_records(Path(said["records"]))
        name = f"worker {said['worker']} ({socket.gethostname()})"
        self._send(process, plan, worker=said["worker"], workers=said["workers"], start_unix_s=said["start_unix_s"])
        content = {
            "run": self._run_id,
            "tally": process.take().to_json(),
            "process": process.report(name).model_dump(mode="json"),
            "stopped_at_s": process.stopped_at_s,
        }
        environment.runner.send_message(_DONE, content)
        self._finished.set()

    def _stop_worker(self, **_: Any) -> None:
        if self._process is not None:
            self._process.stop()

    def _report_to_master(self, client_id: str, data: dict[str, Any]) -> None:
        if self._process is not None and self._run_id:
            data["load"] = {"run": self._run_id, "tally": self._process.take().to_json()}

    # ------------------------------------------------------------------ master

    def _worker_ready(self, msg: Any, **_: Any) -> None:
        self._ready[msg.node_id] = msg.data["trouble"]
        self._news.set()

    def _worker_report(self, client_id: str, data: dict[str, Any]) -> None:
        if data.get("load", {}).get("run") == self._run_id:
            self._tally.merge(Tally.from_json(data["load"]["tally"]))

    def _worker_done(self, msg: Any, **_: Any) -> None:
        if msg.data["run"] == self._run_id:
            self._tally.merge(Tally.from_json(msg.data["tally"]))
            self._done[msg.node_id] = GeneratorProcess.model_validate(msg.data["process"])
            # Asked now and not when all have ended: Locust itself stops a run whose last worker has left. Ctrl-C comes
            # to a group of processes at once, and so to this one before a worker's answer to it.
            if msg.data["stopped_at_s"] is not None and not self._stop:
                self._left[msg.node_id] = msg.data["stopped_at_s"]
            self._news.set()

    # ------------------------------------------------------------------ end

    def _test_stopping(self, environment: Environment, **_: Any) -> None:
        """Somebody stops the run (Ctrl-C, --run-time, the web page), or it is over: see that it ends in order."""
        if self._finished.is_set() or self._conducting is gevent.getcurrent():
            return
        self._stop.ask(time.time())
        if isinstance(environment.runner, MasterRunner):
            environment.runner.send_message(_STOP)
        elif self._process is not None:
            self._process.stop()
        self._finished.wait(_REPORT_GRACE_S)

    def _finish(self, plan: RunPlan, sighting: Sighting, *, folder: Path, started_at: str) -> None:
        assert self._environment is not None
        result = plan.result(self._tally, sighting, command=_command(), started_at=started_at)
        print(summary(result), flush=True)
        verdict, code = conclude(folder, result, plan.slo)
        if code is not None:
            self._environment.process_exit_code = code
        if verdict is not None:
            print("\n".join(f"  {line}" for line in verdict_lines(verdict)), flush=True)
        print(f"  written: {folder}", flush=True)

    def _end_of_test(self, environment: Environment) -> None:
        options = environment.parsed_options
        if options is not None and options.headless:
            environment.runner.quit()
        else:
            environment.runner.stop()


def _command() -> str:
    return shlex.join(["locust", *(Path(each).name if each.startswith("/") else each for each in sys.argv[1:])])


def _end_forked_workers() -> None:
    # Locust has forked them already, and leaves them to find out within a minute that there is no master.
    for child in psutil.Process().children():
        child.terminate()
