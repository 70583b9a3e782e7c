"""A run of a scenario: in virtual time as fast as it computes, or on the wall clock against a real server.

Writes header.json and requests.jsonl into a run folder, tells a watcher how it goes, and says when the run's own
lateness makes it INVALID: devices that ask later than they were meant to have measured something else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from edge_sim.assumed_times import assumed_times
from edge_sim.clock import FleetClock, WallClock
from edge_sim.conduct import Heads
from edge_sim.fleet import Fleet, Hardware, Shard
from edge_sim.fleet_server import FleetServer
from edge_sim.http_fleet_server import HttpFleetServer
from edge_sim.model_profile import ModelProfile
from edge_sim.recorder import NOT_ENDED, RunRecorder
from edge_sim.request_record import Request, line_of
from edge_sim.scenario import Scenario
from edge_sim.server_model import ServerModel
from edge_sim.server_profile import BatchTimes, ServerProfile
from edge_sim.transport import Access, HttpTransport
from edge_sim.virtual_clock import VirtualClock
from split_inference.errors import UsageError
from split_inference.payload_file import PayloadFile, PayloadHeader

MAX_LATENESS_P99_S = WallClock.late_s
"""Of a valid run on the wall clock: the 99th percentile of how late requests began."""
# Sockets to one server; each of 2,000 devices has at most a few requests under way.
MAX_CONNECTIONS = 1000
# Of a request that is alone, before a device has measured one.
ASSUMED_SERVICE_S = 0.01
# What may still be under way after the last deadline: the clock's own lateness.
_GRACE_S = 1.0
_LINES = 2000
NO_TOKEN = Access()
NO_REQUEST = "no request was made"
"""Why a run says nothing in which nobody asked."""
# Over how many answers a live mean goes.
RECENT = 10


@dataclass(slots=True)
class Progress:
    """What a run knows of itself so far."""

    now_s: float = 0.0
    requests: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    recent: deque[Request] = field(default_factory=lambda: deque(maxlen=RECENT))
    """The last ones that were answered."""
    latency_s: float = 0.0
    """Of the answers, summed."""
    up_bytes: int = 0
    answered: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """What came of it."""

    folder: Path
    requests: int
    outcomes: Mapping[str, int]
    lateness_p99_s: float
    invalid: str | None
    """Why the run says nothing; None where it is valid."""
    wrong_answers: int
    assumed: Sequence[str]
    """The figures that were used and that nobody measured."""
    host_too_slow: int
    """Heads that this machine ended later than their devices would have, where it computed them."""


class _Ended(NamedTuple):
    wrong_answers: int = 0
    host_too_slow: int = 0
    assumed: Sequence[str] = ()


MakeHeads = Callable[[PayloadHeader, Path, Path | None], "RunnableHeads"]


class RunnableHeads(Heads, Protocol):
    """Heads that end with the run."""

    def close(self) -> None: ...


class FleetRecorder:
    """Takes finished requests: counts them, keeps how late they began, writes them in blocks."""

    def __init__(self, recorder: RunRecorder) -> None:
        self._recorder = recorder
        self._lines: list[str] = []
        self.late_s: list[float] = []
        self.progress = Progress()

    def write(self, who: str, how: str, request: Request) -> None:
        progress = self.progress
        progress.requests += 1
        progress.outcomes[request.outcome] += 1
        progress.up_bytes += request.up_bytes
        if request.in_time:
            progress.recent.append(request)
            progress.answered += 1
            progress.latency_s += request.total_s
        self.late_s.append(request.late_s)
        self._lines.append(line_of(who, how, request))
        if len(self._lines) >= _LINES:
            self.flush()

    @property
    def lateness_p99_s(self) -> float:
        """The 99th percentile of how late requests began; 0 where there are none."""
        return float(np.quantile(self.late_s, 0.99)) if self.late_s else 0.0

    def flush(self) -> None:
        """Hand over what has been put together."""
        if self._lines:
            self._lines.append("")
            self._recorder.lines("\n".join(self._lines))
            self._lines = []


def run_scenario(
    scenario: Scenario,
    folder: Path,
    *,
    hardware: Hardware,
    models: Mapping[str, ModelProfile],
    command: str,
    facts: Mapping[str, Any],
    base: Path,
    shard: Shard | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
    make_heads: MakeHeads | None = None,
    access: Access = NO_TOKEN,
) -> RunResult:
    """Run it and write the run. `base` is the folder that the scenario's own paths start from.

    `make_heads` is needed where the scenario's `compute` is real: real_heads.RealHeads, which brings torch. `access` is
    the real server's, on the wall clock.
    Raises UsageError for what cannot be run. Ctrl-C ends the run; what was recorded until then stays,
    and the run is INVALID.
    """
    header = {
        "scenario": scenario.model_dump(mode="json"),
        "scenario_name": scenario.name,
        "clock": scenario.clock,
        "seed": scenario.seed,
        "duration_s": scenario.duration_s,
        "shard": [shard.index, shard.count] if shard else [0, 1],
        "invalid": NOT_ENDED,
        **facts,
    }
    with RunRecorder(folder, command=command, facts=header) as recorder:
        writer = FleetRecorder(recorder)
        try:
            if scenario.clock == "virtual":
                ended = _run_virtual(scenario, writer, hardware, models, base, shard, watch)
            else:
                ended = asyncio.run(
                    _run_wall(scenario, writer, hardware, models, base, shard, watch, make_heads, access)
                )
        except BaseException:
            recorder.add_facts({"ended_at_s": writer.progress.now_s})
            raise
        finally:
            writer.flush()
    invalid, p99_s = _why_invalid(writer), writer.lateness_p99_s
    assumed = [*hardware.assumed, *ended.assumed]
    recorder.add_facts(
        {
            "assumed": assumed,
            "lateness_p99_s": p99_s,
            "invalid": invalid,
            "wrong_answers": ended.wrong_answers,
            "host_too_slow": ended.host_too_slow,
            "outcomes": dict(writer.progress.outcomes),
        }
    )
    return RunResult(
        folder=folder,
        requests=writer.progress.requests,
        outcomes=dict(writer.progress.outcomes),
        lateness_p99_s=p99_s,
        invalid=invalid,
        wrong_answers=ended.wrong_answers,
        assumed=assumed,
        host_too_slow=ended.host_too_slow,
    )


def _why_invalid(writer: FleetRecorder) -> str | None:
    if not writer.progress.requests:
        return NO_REQUEST
    p99_s = writer.lateness_p99_s
    if p99_s > MAX_LATENESS_P99_S:
        return f"requests began {1000 * p99_s:.0f} ms late at p99; at most {1000 * MAX_LATENESS_P99_S:.0f} ms count"
    return None


def model_profiles(scenario: Scenario, base: Path) -> dict[str, ModelProfile]:
    """By model: what its payloads say, or its profile. DataError, UsageError or ConfigError for what is none."""
    found = {}
    for name, model in scenario.models.items():
        if model.payloads is not None:
            found[name] = ModelProfile.from_payloads(base / model.payloads)
        else:
            assert model.profile is not None
            file = base / model.profile if model.profile.endswith(".json") else model.profile
            found[name] = ModelProfile.load(file)
    return found


def server_profiles(scenario: Scenario, base: Path) -> dict[str, ServerProfile]:
    """By model, files read."""
    return {
        name: ServerProfile.read(base / profile) if isinstance(profile, Path) else profile
        for name, profile in scenario.server.profiles.items()
    }


def expected_service_s(profile: ServerProfile) -> float:
    """Of a request that is alone: what devices assume before they know better."""
    times = next(iter(profile.batch_s.values()))
    return BatchTimes(times).seconds(1, 0.5) + profile.overhead().seconds(1, 0.5)


def _run_virtual(
    scenario: Scenario,
    writer: FleetRecorder,
    hardware: Hardware,
    models: Mapping[str, ModelProfile],
    base: Path,
    shard: Shard | None,
    watch: Callable[[Progress], None],
) -> _Ended:
    clock = VirtualClock()
    profiles = server_profiles(scenario, base)
    servers: dict[str, FleetServer] = {
        name: ServerModel(
            profiles[name],
            clock,
            seed=f"{scenario.seed}/server/{name}",
            reply_bytes=models[name].options[0].reply_bytes,
        )
        for name in scenario.models
    }
    fleet = Fleet(
        scenario,
        models=models,
        servers=servers,
        service_s={name: expected_service_s(profile) for name, profile in profiles.items()},
        hardware=hardware,
        clock=clock,
        writer=writer,
        shard=shard,
    )
    fleet.start()
    end_s = scenario.duration_s + _last_deadline_s(scenario) + _GRACE_S
    steps = 200
    try:
        for step in range(1, steps + 1):
            clock.run(until_s=end_s * step / steps)
            writer.progress.now_s = min(scenario.duration_s, end_s * step / steps)
            watch(writer.progress)
    finally:
        writer.progress.now_s = min(scenario.duration_s, clock.now_s())
        clock.close()
    return _Ended(assumed=assumed_times(scenario, models, profiles))


async def _run_wall(
    scenario: Scenario,
    writer: FleetRecorder,
    hardware: Hardware,
    models: Mapping[str, ModelProfile],
    base: Path,
    shard: Shard | None,
    watch: Callable[[Progress], None],
    make_heads: MakeHeads | None,
    access: Access,
) -> _Ended:
    assert scenario.server.url is not None
    clock = WallClock()
    transport = HttpTransport(
        scenario.server.url,
        token=access.token,
        ca=access.ca,
        allow_insecure_token=access.allow_insecure_token,
        connections=MAX_CONNECTIONS,
    )
    with contextlib.ExitStack() as files:
        servers = _http_servers(scenario, base, transport, clock, files)
        heads = _heads(scenario, servers, base, make_heads, files)
        try:
            fleet = Fleet(
                scenario,
                models=models,
                servers=servers,
                service_s=dict.fromkeys(scenario.models, ASSUMED_SERVICE_S),
                hardware=hardware,
                clock=clock,
                writer=writer,
                shard=shard,
                heads=heads,
            )
            clock.restart()
            fleet.start()
            watching = asyncio.ensure_future(_watch(clock, writer, watch))
            if scenario.strict:
                clock.start(_end_when_too_slow(scenario, clock, heads))
            try:
                await clock.finish()
            finally:
                writer.progress.now_s = min(scenario.duration_s, clock.now_s())
                watching.cancel()
                await clock.cancel()
        finally:
            await transport.close()
        return _Ended(
            sum(server.wrong_answers for server in servers.values()), sum(each.too_slow for each in heads.values())
        )


def _heads(
    scenario: Scenario,
    servers: Mapping[str, HttpFleetServer],
    base: Path,
    make_heads: MakeHeads | None,
    files: contextlib.ExitStack,
) -> dict[str, RunnableHeads]:
    if scenario.compute == "replay":
        return {}
    if make_heads is None:
        raise UsageError("compute: real is not possible here; run it with `python -m edge_sim run`")
    made = {}
    for name, model in scenario.models.items():
        assert model.inputs is not None
        calibration = None if model.calibration is None else base / model.calibration
        made[name] = make_heads(servers[name].payloads.header, base / model.inputs, calibration)
        files.callback(made[name].close)
    return made


async def _end_when_too_slow(scenario: Scenario, clock: FleetClock, heads: Mapping[str, Heads]) -> None:
    while clock.now_s() < scenario.duration_s:
        await clock.sleep(0.1)
        slow = sum(each.too_slow for each in heads.values())
        if slow:
            raise UsageError(
                f"this machine is too slow for its devices ({slow} heads ended late), and the scenario is strict: "
                "fewer devices, or compute: replay"
            )


def _http_servers(
    scenario: Scenario, base: Path, transport: HttpTransport, clock: FleetClock, files: contextlib.ExitStack
) -> dict[str, HttpFleetServer]:
    servers = {}
    for name, model in scenario.models.items():
        assert model.payloads is not None
        payloads = files.enter_context(PayloadFile.open(base / model.payloads))
        servers[name] = HttpFleetServer(transport, payloads, clock, route=model.route)
    return servers


async def _watch(clock: FleetClock, writer: FleetRecorder, watch: Callable[[Progress], None]) -> None:
    while True:
        await clock.sleep(0.25)
        writer.progress.now_s = clock.now_s()
        writer.flush()
        watch(writer.progress)


def _last_deadline_s(scenario: Scenario) -> float:
    return max(group.deadline_s or scenario.deadline_s for group in scenario.groups)
