"""A scenario: one YAML file that says which devices there are, what they do, over which links, and what goes wrong.

Knows pydantic and the names of profiles. Unknown keys, impossible values and names that mean nothing are refused with
the file and the line. `python -m edge_sim schema` writes the JSON Schema of this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from edge_sim.policy import Objective
from edge_sim.server_profile import ServerProfile
from split_inference.errors import ConfigError
from split_inference.settings import Settings, dotted
from split_inference.yaml_lines import read_yaml
from split_inference.yaml_settings import first_problem_line

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Positive = Annotated[float, Field(gt=0, le=1e9)]
NotNegative = Annotated[float, Field(ge=0, le=1e9)]
# A frame at less takes longer than any run, and the arithmetic of links ends.
MIN_MBIT_S = 1e-6
MAX_DEVICES = 1_000_000


class Rate(Settings):
    """One direction of a link: a constant rate, a trace, or states that a link wanders through. Exactly one."""

    mbit_s: Annotated[float, Field(ge=MIN_MBIT_S, le=1e9)] | None = None
    trace: Path | None = None
    """A Mahimahi trace: one integer a line, the millisecond at which a packet of 1500 bytes may leave."""
    markov: tuple[MarkovState, ...] | None = Field(default=None, min_length=1, max_length=32)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(each is not None for each in (self.mbit_s, self.trace, self.markov)) != 1:
            raise ValueError("say exactly one of mbit_s, trace and markov")
        if self.markov is not None and not any(state.mbit_s > 0 for state in self.markov):
            raise ValueError("markov: one of the states needs mbit_s above 0")
        return self


class MarkovState(Settings):
    """A rate that lasts for a while, exponentially distributed; the next state is any other one."""

    mbit_s: NotNegative
    mean_s: Positive

    @model_validator(mode="after")
    def _carries(self) -> Self:
        if 0 < self.mbit_s < MIN_MBIT_S:
            raise ValueError(f"mbit_s is 0, or at least {MIN_MBIT_S:g}")
        return self


class LinkSettings(Settings):
    """A device's own link, or a cell that several share. What is not said is the profile's."""

    profile: Name | None = None
    """One of `python -m edge_sim links`; needs nothing else."""
    up: Rate | None = None
    down: Rate | None = None
    """Has to be said where up is: a trace without its other direction needs something that stands in."""
    delay_ms: NotNegative | None = None
    """Of a packet one way, without transmission."""
    jitter_ms: NotNegative | None = None
    loss: Annotated[float, Field(ge=0, le=0.5)] | None = None
    """Share of packets that are sent again, a round trip later."""
    radio: Name | None = None
    """Whose power is counted; by default the profile's."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.profile is None and (self.up is None or self.down is None):
            raise ValueError("say a profile, or up and down")
        if (self.up is None) != (self.down is None):
            raise ValueError("say both up and down, or neither")
        return self


class Arrivals(Settings):
    """When a device gets inputs."""

    kind: Literal["poisson", "periodic"] = "poisson"
    """Periodic devices begin at a random part of their period."""
    rate_per_s: Positive


class Fixed(Settings):
    """Always this split point and codec."""

    kind: Literal["fixed"]
    split_point: str
    codec: str


class ServerOnly(Settings):
    """The input is sent as it is."""

    kind: Literal["server_only"]


class DeviceOnly(Settings):
    """Nothing is sent."""

    kind: Literal["device_only"]


class Adaptive(Settings):
    """The best option by what the device knows."""

    kind: Literal["adaptive"]
    objective: Objective = "latency"
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share by which something else has to be better before it is chosen."""
    accuracy_floor: Annotated[float, Field(ge=0, le=1)] | None = None

    @model_validator(mode="after")
    def _floor(self) -> Self:
        if self.objective == "latency_with_accuracy" and self.accuracy_floor is None:
            raise ValueError("latency_with_accuracy needs accuracy_floor")
        return self


PolicySettings = Annotated[Fixed | ServerOnly | DeviceOnly | Adaptive, Field(discriminator="kind")]


class Group(Settings):
    """Devices of one kind that behave alike."""

    name: Name
    count: Annotated[int, Field(ge=1, le=MAX_DEVICES)]
    device: Name
    """One of `python -m edge_sim devices`."""
    link: LinkSettings | None = None
    """Each device its own."""
    cell: Name | None = None
    """Or one of `cells`, which all devices in it share."""
    model: Name
    policy: PolicySettings
    arrivals: Arrivals
    deadline_s: Positive | None = None
    """By default the scenario's."""
    battery_wh: Positive | None = None
    """None: from the mains."""
    max_in_flight: Annotated[int, Field(ge=1, le=1000)] = 2
    upload_limit_mbit_s: Positive | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.link is None) == (self.cell is None):
            raise ValueError("say either link or cell")
        return self


class ModelSettings(Settings):
    """A model of the scenario."""

    profile: str | None = None
    """Name of a profile that ships with the package, or a JSON file of `python -m edge_sim payloads --profile`; in
    virtual time, where there are no payloads."""
    payloads: Path | None = None
    """Prepared frames, which say what a profile says; needed on the wall clock."""
    inputs: Path | None = None
    """File or folder that the payloads were made from; needed where `compute` is real."""
    calibration: Path | None = None
    """Of the payloads' calibrated options, where `compute` is real; by default the embedded model's."""
    route: Annotated[str, Field(pattern=r"^/[A-Za-z0-9._~/-]*$", max_length=1024)] | None = None
    """Path on the server; by default /v1/models/<name>. It stands behind the server's URL: what is no path would be
    another host."""
    split_points: tuple[str, ...] | None = None
    """Those among which an adaptive device chooses; by default all of the profile."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.profile is None and self.payloads is None:
            raise ValueError("say profile, or payloads")
        return self


class ServerSettings(Settings):
    """Who answers."""

    url: str | None = None
    """On the wall clock."""
    profiles: Mapping[Name, Path | ServerProfile] = Field(default_factory=dict)
    """By model, in virtual time: a file of `python -m edge_sim calibrate-server`, or its content."""


class _Fault(Settings):
    at_s: NotNegative


class LinkDown(_Fault):
    """The links of a group, or a cell, carry nothing for a while."""

    kind: Literal["link_down"]
    group: Name | None = None
    cell: Name | None = None
    for_s: Positive

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.group is None) == (self.cell is None):
            raise ValueError("say either group or cell")
        return self


class ServerDown(_Fault):
    """Nobody answers for a while."""

    kind: Literal["server_down"]
    for_s: Positive


class ReplicaKilled(_Fault):
    """One replica of a model is gone, and another one comes."""

    kind: Literal["replica_killed"]
    model: Name
    back_after_s: Positive = 8.0


class Churn(_Fault):
    """A share of a group's devices leaves, and comes back."""

    kind: Literal["churn"]
    group: Name
    share: Annotated[float, Field(gt=0, le=1)]
    for_s: Positive


class BadFrames(_Fault):
    """A share of a group's frames is damaged for a while."""

    kind: Literal["bad_frames"]
    group: Name
    share: Annotated[float, Field(gt=0, le=1)]
    for_s: Positive


class Switch(_Fault):
    """A group changes its policy, or model and policy, while it runs."""

    kind: Literal["switch"]
    group: Name
    policy: PolicySettings
    model: Name | None = None


Fault = Annotated[LinkDown | ServerDown | ReplicaKilled | Churn | BadFrames | Switch, Field(discriminator="kind")]


class Scenario(Settings):
    """The whole file."""

    version: Literal[1]
    name: Name = "scenario"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    clock: Literal["virtual", "wall"] = "virtual"
    compute: Literal["replay", "real"] = "replay"
    """real: this machine runs the heads, and each takes at least as long as on its device. Wall clock only."""
    strict: bool = False
    """A machine too slow for its devices ends the run; else it is only counted."""
    duration_s: Positive
    deadline_s: Positive = 1.0
    models: Annotated[Mapping[Name, ModelSettings], Field(min_length=1)]
    server: ServerSettings = ServerSettings()
    cells: Mapping[Name, LinkSettings] = Field(default_factory=dict)
    groups: Annotated[tuple[Group, ...], Field(min_length=1, max_length=1000)]
    faults: Annotated[tuple[Fault, ...], Field(max_length=1000)] = ()

    @model_validator(mode="after")
    def _names(self) -> Self:
        names = [group.name for group in self.groups]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"groups: the name {name} stands twice")
        for group in self.groups:
            _known(group.model, self.models, f"groups: {group.name}.model")
            if group.cell is not None:
                _known(group.cell, self.cells, f"groups: {group.name}.cell")
        for index, fault in enumerate(self.faults):
            place = f"faults[{index}]"
            if fault.at_s > self.duration_s:
                raise ValueError(f"{place}: at_s {fault.at_s:g} is after the end, {self.duration_s:g}")
            if isinstance(fault, LinkDown | Churn | BadFrames | Switch) and fault.group is not None:
                _known(fault.group, names, f"{place}.group")
            if isinstance(fault, LinkDown) and fault.group is not None:
                cell = self.groups[names.index(fault.group)].cell
                if cell is not None:
                    raise ValueError(
                        f"{place}.group: {fault.group} shares a cell, which is down as a whole: say cell: {cell}"
                    )
            if isinstance(fault, LinkDown) and fault.cell is not None:
                _known(fault.cell, self.cells, f"{place}.cell")
            if isinstance(fault, ReplicaKilled | Switch) and fault.model is not None:
                _known(fault.model, self.models, f"{place}.model")
        if self.clock == "wall" and self.server.url is None:
            raise ValueError("server: clock wall needs server.url")
        if self.clock == "wall":
            for name, model in self.models.items():
                if model.payloads is None:
                    raise ValueError(f"models: {name}: clock wall needs payloads (`python -m edge_sim payloads`)")
        if self.compute == "real":
            if self.clock != "wall":
                raise ValueError("compute: real heads take real time; say clock: wall")
            for name, model in self.models.items():
                if model.inputs is None:
                    raise ValueError(f"models: {name}.inputs has to be set where compute is real")
        if self.clock == "wall":
            for fault in self.faults:
                if isinstance(fault, ServerDown | ReplicaKilled):
                    raise ValueError(f"faults: {fault.kind} is for simulated servers; stop a real one yourself")
        for name in self.server.profiles:
            _known(name, self.models, "server.profiles")
        if self.clock == "virtual":
            for name in self.models:
                if name not in self.server.profiles:
                    raise ValueError(f"server: clock virtual needs server.profiles.{name}")
        return self


def _known(name: str, known: Any, where: str) -> None:
    if name not in known:
        raise ValueError(f"{where}: there is no {name}; there are {', '.join(sorted(known)) or 'none'}")


def read_scenario(path: Path) -> Scenario:
    """The scenario in a file, its own paths resolved against the file's folder.

    Raises ConfigError: file, line, field, what is wrong.
    """
    file = read_yaml(path)
    if not isinstance(file.data, dict):
        raise ConfigError(f"{path}: expected a mapping with version, groups, ...")
    try:
        scenario = Scenario.model_validate(file.data)
    except ValidationError as error:
        raise ConfigError(first_problem_line(file, error, Scenario, root="scenario")) from None
    for place, named in _files_of(scenario):
        full = (path.parent / named).resolve()
        if not full.is_file():
            raise ConfigError(f"{path}:{file.line_of(place)}: {dotted(place)}: no file {full}")
    return scenario


def _files_of(scenario: Scenario) -> list[tuple[tuple[int | str, ...], Path]]:
    found: list[tuple[tuple[int | str, ...], Path]] = []
    links: list[tuple[tuple[int | str, ...], LinkSettings]] = [
        (("cells", name), link) for name, link in scenario.cells.items()
    ]
    links += [(("groups", i, "link"), group.link) for i, group in enumerate(scenario.groups) if group.link]
    for place, link in links:
        for direction in ("up", "down"):
            rate: Rate | None = getattr(link, direction)
            if rate is not None and rate.trace is not None:
                found.append(((*place, direction, "trace"), rate.trace))
    for name, model in scenario.models.items():
        if model.profile is not None and model.profile.endswith(".json"):
            found.append((("models", name, "profile"), Path(model.profile)))
        if model.payloads is not None:
            found.append((("models", name, "payloads"), model.payloads))
    for name, profile in scenario.server.profiles.items():
        if isinstance(profile, Path):
            found.append((("server", "profiles", name), profile))
    return found
