"""A scenario's devices, links and servers, put together; the clock decides whether they live in virtual or real time.

Knows how settings become objects, and the faults. Knows no YAML, no HTTP and no terminal.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from edge_sim.arrivals import periodic_s, poisson_s
from edge_sim.clock import FleetClock
from edge_sim.conduct import Conduct, Heads, PathFacts
from edge_sim.device import Device
from edge_sim.fleet_server import FleetServer
from edge_sim.link import Link
from edge_sim.model_profile import ModelProfile
from edge_sim.plan import PlanOption, device_only, sending
from edge_sim.policy import AdaptivePolicy, FixedPolicy, Policy
from edge_sim.power_meter import PowerMeter
from edge_sim.request_record import RequestWriter
from edge_sim.scenario import (
    Adaptive,
    BadFrames,
    Churn,
    DeviceOnly,
    Fault,
    Fixed,
    Group,
    LinkDown,
    LinkSettings,
    PolicySettings,
    ReplicaKilled,
    Scenario,
    ServerDown,
    ServerOnly,
    Switch,
)
from edge_sim.worker import EdgeWorker
from split_inference.errors import ConfigError

# Split points that a refusal names.
_NAMED = 8


class Hardware(Protocol):
    """What devices and links are made of: from profiles, or put in by a test. Raises ConfigError for unknown names."""

    @property
    def assumed(self) -> Sequence[str]:
        """The figures that were used and that nobody measured."""

    def device(self, name: str) -> Device:
        """A new one, idle and cool."""

    def head_s(self, device: str, model: ModelProfile, split_point: str | None) -> float:
        """At full speed, from the input to the split point; None is the whole model."""

    def link(self, settings: LinkSettings, *, seed: str) -> Link:
        """A new one, with queues of its own."""

    def share(self, cell: Link, settings: LinkSettings, *, seed: str) -> Link:
        """One more device in a cell: its own delays, the cell's queues."""

    def path(self, settings: LinkSettings) -> PathFacts:
        """What a device believes of such a link before it has measured it."""

    def power(self, device: str, settings: LinkSettings, *, battery_j: float | None) -> PowerMeter:
        """A full battery, or the mains."""


class FaultyServer(FleetServer, Protocol):
    """A server that faults can be done to."""

    def go_down(self, *, for_s: float) -> None: ...

    def kill_replica(self, *, back_after_s: float) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """A policy, and all that it may choose: what a worker knows as its Choices."""

    options: Sequence[PlanOption]
    whole: PlanOption
    policy: Policy
    model: str
    inputs: int
    server: FleetServer
    service_s: float
    reply_bytes: int
    heads: Heads | None = None


@dataclass(frozen=True, slots=True)
class Shard:
    """Every `count`-th device from `index` on; a device has the same seed in whatever shard it is."""

    index: int = 0
    count: int = 1


class Fleet:
    """All devices of a scenario that belong to one shard. `start` them on the clock they were made for."""

    def __init__(
        self,
        scenario: Scenario,
        *,
        models: Mapping[str, ModelProfile],
        servers: Mapping[str, FleetServer],
        service_s: Mapping[str, float],
        hardware: Hardware,
        clock: FleetClock,
        writer: RequestWriter,
        shard: Shard | None = None,
        heads: Mapping[str, Heads] | None = None,
    ) -> None:
        """`servers` and `service_s` are by model. Raises ConfigError for names that profiles do not have."""
        self._scenario = scenario
        self._models = models
        self._servers = servers
        self._service_s = service_s
        self._hardware = hardware
        self._clock = clock
        self._writer = writer
        self._shard = shard or Shard()
        self._heads = heads or {}
        self._plans: dict[tuple[str, str], tuple[list[PlanOption], PlanOption]] = {}
        self._cells = {
            name: hardware.link(cell, seed=f"{scenario.seed}/cell/{name}") for name, cell in scenario.cells.items()
        }
        self.workers: dict[str, dict[int, EdgeWorker]] = {}
        """By group and number in it."""
        self._bad_shares: dict[str, list[float]] = {}
        """By group, those of the faults that last."""
        self._links: dict[str, list[Link]] = {}
        self._lives: list[Callable[[], Coroutine[Any, Any, None]]] = []
        for name, model in scenario.models.items():
            _refuse_unknown(model.split_points or (), models[name], where=f"models.{name}.split_points")
        number = 0
        for index, group in enumerate(scenario.groups):
            self.workers[group.name], self._links[group.name] = {}, []
            for member in range(group.count):
                if number % self._shard.count == self._shard.index:
                    try:
                        self._add(group, index, member)
                    except ConfigError as error:
                        raise ConfigError(f"groups[{index}] {group.name}: {error}") from None
                number += 1
        self._refuse_bad_switches()

    @property
    def devices(self) -> int:
        """In this shard."""
        return sum(len(each) for each in self.workers.values())

    def start(self) -> None:
        """Let all devices live, and faults happen."""
        for life in self._lives:
            self._clock.start(life())
        self._lives = []
        for fault in self._scenario.faults:
            self._clock.start(self._happen(fault))

    def _add(self, group: Group, index: int, member: int) -> None:
        scenario, hardware = self._scenario, self._hardware
        seed = f"{scenario.seed}/{group.name}/{member}"
        rng = random.Random(seed)
        settings = group.link if group.link is not None else scenario.cells[group.cell or ""]
        link = (
            hardware.link(settings, seed=f"{seed}/link")
            if group.cell is None
            else hardware.share(self._cells[group.cell], settings, seed=f"{seed}/link")
        )
        limit = group.upload_limit_mbit_s
        worker = EdgeWorker(
            name=f"{group.name}-{member}",
            group=group.name,
            group_index=index,
            clock=self._clock,
            device=hardware.device(group.device),
            link=link,
            power=hardware.power(
                group.device, settings, battery_j=None if group.battery_wh is None else 3600 * group.battery_wh
            ),
            choices=self._choices(group.device, group.model, group.policy),
            conduct=Conduct(
                deadline_s=group.deadline_s or scenario.deadline_s,
                max_in_flight=group.max_in_flight,
                upload_limit_bytes_per_s=None if limit is None else limit * 125e3,
            ),
            writer=self._writer,
            rng=rng,
            path=hardware.path(settings),
        )
        self.workers[group.name][member] = worker
        self._links[group.name].append(link)
        times = poisson_s if group.arrivals.kind == "poisson" else periodic_s
        arrivals = times(
            random.Random(f"{seed}/arrivals"), rate_per_s=group.arrivals.rate_per_s, until_s=scenario.duration_s
        )
        count = self._models[group.model].inputs
        first = rng.randrange(count)
        self._lives.append(partial(worker.live, arrivals, inputs=lambda request: (first + request) % count))

    def _choices(self, device: str, model: str, settings: PolicySettings) -> Bound:
        options, whole = self._plan(device, model)
        return Bound(
            options=options,
            whole=whole,
            policy=_policy(settings, options, whole, model=model),
            model=model,
            inputs=self._models[model].inputs,
            server=self._servers[model],
            service_s=self._service_s[model],
            reply_bytes=self._models[model].options[0].reply_bytes,
            heads=self._heads.get(model),
        )

    def _plan(self, device: str, model: str) -> tuple[list[PlanOption], PlanOption]:
        """The options of one kind of device for one model, the whole model among them."""
        known = self._plans.get((device, model))
        if known is not None:
            return known
        profile, hardware = self._models[model], self._hardware
        allowed = self._scenario.models[model].split_points
        whole_s = hardware.head_s(device, profile, None)
        whole = device_only(whole_s=whole_s, correct=profile.whole_correct or ())
        options = []
        for index, option in enumerate(profile.options):
            if allowed is not None and option.split_point is not None and option.split_point not in allowed:
                continue
            at = option.split_point
            options.append(
                sending(
                    index,
                    split_point=at,
                    codec=option.codec,
                    head_s=0.0 if at is None else hardware.head_s(device, profile, at),
                    whole_s=whole_s,
                    values=option.elements or 0,
                    sizes=option.sizes,
                    correct=option.correct or (),
                )
            )
        self._plans[device, model] = ([*options, whole], whole)
        return self._plans[device, model]

    async def _happen(self, fault: Fault) -> None:
        clock = self._clock
        await clock.sleep_until(fault.at_s)
        now_s = clock.now_s()
        if isinstance(fault, LinkDown):
            links = [self._cells[fault.cell]] if fault.cell is not None else self._links[fault.group or ""]
            for link in links:
                link.add_outage(now_s, now_s + fault.for_s)
        elif isinstance(fault, ServerDown):
            for server in self._servers.values():
                _faulty(server).go_down(for_s=fault.for_s)
        elif isinstance(fault, ReplicaKilled):
            _faulty(self._servers[fault.model]).kill_replica(back_after_s=fault.back_after_s)
        elif isinstance(fault, Churn):
            # By numbers in the whole group, so that the same devices leave in whatever shards.
            leaving = max(1, round(fault.share * self._group(fault.group).count))
            for member, worker in self.workers[fault.group].items():
                if member < leaving:
                    worker.away_until_s = max(worker.away_until_s, now_s + fault.for_s)
        elif isinstance(fault, BadFrames):
            active = self._bad_shares.setdefault(fault.group, [])
            active.append(fault.share)
            self._damage(fault.group)
            # Behind the last input nothing is damaged, and a run does not wait for it.
            await clock.sleep_until(min(now_s + fault.for_s, max(now_s, self._scenario.duration_s)))
            active.remove(fault.share)
            self._damage(fault.group)
        else:
            self._switch(fault)

    def _group(self, name: str) -> Group:
        return next(each for each in self._scenario.groups if each.name == name)

    def _damage(self, group: str) -> None:
        """Of faults that overlap, the worst one holds."""
        share = max(self._bad_shares[group], default=0.0)
        for worker in self.workers[group].values():
            worker.bad_share = share

    def _switch(self, fault: Switch) -> None:
        for worker in self.workers[fault.group].values():
            worker.switch(self._switched(fault, worker.model))

    def _switched(self, fault: Switch, model: str) -> Bound:
        """`model` is the one before, which goes on where the fault names none."""
        return self._choices(self._group(fault.group).device, fault.model or model, fault.policy)

    def _refuse_bad_switches(self) -> None:
        models = {group.name: group.model for group in self._scenario.groups}
        faults = [(fault.at_s, index, fault) for index, fault in enumerate(self._scenario.faults)]
        for _, index, fault in sorted(faults, key=lambda each: each[:2]):
            if isinstance(fault, Switch):
                try:
                    models[fault.group] = self._switched(fault, models[fault.group]).model
                except ConfigError as error:
                    raise ConfigError(f"faults[{index}] switch: {error}") from None


def _refuse_unknown(split_points: Sequence[str], model: ModelProfile, *, where: str) -> None:
    known = list(dict.fromkeys(each.split_point for each in model.options if each.split_point is not None))
    for name in split_points:
        if name not in known:
            more = f" and {len(known) - _NAMED} more" if len(known) > _NAMED else ""
            raise ConfigError(f"{where}: {model.name} has no {name}; it has {', '.join(known[:_NAMED])}{more}")


def _policy(settings: PolicySettings, options: Sequence[PlanOption], whole: PlanOption, *, model: str) -> Policy:
    if isinstance(settings, Adaptive):
        if settings.accuracy_floor is not None and all(option.accuracy is None for option in options):
            raise ConfigError(
                f"the profile of {model} does not say which answers are right, so that no accuracy_floor can be held"
            )
        return AdaptivePolicy(objective=settings.objective, margin=settings.margin, floor=settings.accuracy_floor)
    if isinstance(settings, DeviceOnly):
        return FixedPolicy(settings.kind, whole)
    for option in options:
        if isinstance(settings, ServerOnly) and option.mode == "server_only":
            return FixedPolicy(settings.kind, option)
        if isinstance(settings, Fixed) and (option.split_point, option.codec) == (settings.split_point, settings.codec):
            return FixedPolicy(settings.kind, option)
    wanted = "server_only" if isinstance(settings, ServerOnly) else f"{settings.split_point} with {settings.codec}"
    known = ", ".join(f"{each.split_point} with {each.codec}" for each in options if each.split_point is not None)
    raise ConfigError(f"the profile of {model} has no {wanted}; it has {known}")


def _faulty(server: FleetServer) -> FaultyServer:
    # Scenarios with these faults are refused on the wall clock, and so every server here is a simulated one.
    assert hasattr(server, "go_down")
    return server  # type: ignore[return-value]
