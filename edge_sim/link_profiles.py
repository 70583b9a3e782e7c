"""Links by name: what link_profiles.yaml says, and how a Link is made of it.

Knows rates, delays and where they are from. Opens profile files and traces, and nothing else; time is edge_sim.link's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from edge_sim.link import OVERHEAD_BYTES, Bottleneck, Link
from edge_sim.profile_files import Figure, ProfileData, ProfileName, read_profiles
from edge_sim.rates import MarkovRate, RateState
from edge_sim.traces import Trace, read_trace
from split_inference.errors import DataError

LINK_PROFILES = Path(__file__).with_name("link_profiles.yaml")
# A name and no path: where traces lie is said once, by whoever runs, and a profile cannot reach out of that folder.
TraceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class RateStateProfile(ProfileData):
    """One state of a rate that changes by chance."""

    megabits_per_s: float = Field(ge=0, le=1e6)
    mean_dwell_s: float = Field(gt=0, le=1e6)


class RateProfile(ProfileData):
    """One direction's rate, one of three ways."""

    megabits_per_s: Figure | None = None
    """The same all the time."""
    trace: TraceName | None = None
    """Name of a Mahimahi file, which the user has."""
    states: tuple[RateStateProfile, ...] | None = Field(default=None, min_length=1, max_length=16)
    """Rates kept for exponential times, each followed by any other."""
    assumed: bool = False
    """Whether the trace or the states were never measured for this."""
    source: str | None = Field(default=None, min_length=1, max_length=500)

    @model_validator(mode="after")
    def _is_one_of_three(self) -> RateProfile:
        if sum(each is not None for each in (self.megabits_per_s, self.trace, self.states)) != 1:
            raise ValueError("a direction has one of megabits_per_s, trace and states")
        if self.megabits_per_s is not None and not self.megabits_per_s.lowest > 0:
            raise ValueError("megabits_per_s is above 0")
        if self.states is not None and not any(state.megabits_per_s > 0 for state in self.states):
            raise ValueError("one of the states has megabits_per_s above 0")
        if self.megabits_per_s is None and not self.assumed and self.source is None:
            raise ValueError("a trace or states need their source, or assumed: true")
        return self

    @property
    def is_assumed(self) -> bool:
        return self.assumed if self.megabits_per_s is None else self.megabits_per_s.assumed


class LinkProfile(ProfileData):
    """A way to the server and back. A trace that was recorded one way needs a `down` that says what stands in."""

    up: RateProfile
    down: RateProfile
    propagation_ms: Figure
    """One way: half of a round trip."""
    jitter_ms: Figure = Figure(value=0, source="off")
    loss: Figure = Figure(value=0, source="off")
    """Probability that a packet is lost."""
    radio: ProfileName | None = None
    """Profile in radio_profiles.yaml of what sending costs; None for a wire."""
    note: str | None = None

    @model_validator(mode="after")
    def _loss_is_a_probability(self) -> LinkProfile:
        if self.loss.highest >= 1:
            raise ValueError("loss is a probability below 1")
        return self


class LinkProfiles(ProfileData):
    """A file of links."""

    profiles: dict[ProfileName, LinkProfile]


def read_link_profiles(path: Path = LINK_PROFILES) -> dict[str, LinkProfile]:
    """Links by name. Raises ConfigError with file and field."""
    return read_profiles(path, LinkProfiles).profiles


def read_traces(profiles: Iterable[LinkProfile], folder: Path) -> dict[str, Trace]:
    """Each trace that these profiles name, once. Raises DataError where one is missing or no trace."""
    wanted = {rate.trace for profile in profiles for rate in (profile.up, profile.down) if rate.trace is not None}
    return {name: read_trace(folder / name) for name in sorted(wanted)}


def build_bottleneck(rate: RateProfile, *, traces: Mapping[str, Trace], seed: int | str) -> Bottleneck:
    """A bottleneck of its own; give it to several links to make a cell. Raises DataError for a trace not given."""
    if rate.megabits_per_s is not None:
        return Bottleneck(rate.megabits_per_s.value)
    if rate.states is not None:
        states = [RateState(state.megabits_per_s, state.mean_dwell_s) for state in rate.states]
        return Bottleneck(MarkovRate(states, seed=seed))
    assert rate.trace is not None
    if rate.trace not in traces:
        raise DataError(
            f"no trace {rate.trace}: traces do not come with this package; name the folder that has it "
            "(those of this name are in github.com/ravinet/mahimahi, folder traces)"
        )
    return Bottleneck(traces[rate.trace])


def build_link(
    profile: LinkProfile,
    *,
    traces: Mapping[str, Trace] | None = None,
    seed: int = 0,
    up: Bottleneck | None = None,
    down: Bottleneck | None = None,
    overhead_bytes: int = OVERHEAD_BYTES,
) -> Link:
    """A link of one device, with bottlenecks of its own where none are given. Raises DataError for a trace not given.

    Another seed is another device's jitter, losses and changing rate; the same trace runs the same for all.
    """
    traces = traces or {}
    return Link(
        up if up is not None else build_bottleneck(profile.up, traces=traces, seed=f"{seed}/up/rate"),
        down if down is not None else build_bottleneck(profile.down, traces=traces, seed=f"{seed}/down/rate"),
        propagation_s=profile.propagation_ms.value / 1000,
        jitter_s=profile.jitter_ms.value / 1000,
        loss=profile.loss.value,
        overhead_bytes=overhead_bytes,
        seed=seed,
    )
