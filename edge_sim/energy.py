"""What a request costs the device in joules: computing, sending, waiting, and the radio's tail.

Knows watts, seconds and bytes. Knows no links and no models; times come from whoever ran the request. Each result says
between which bounds it lies, and whether anything in it was assumed.

Left out: waking the radio (a quarter of a second of LTE), signal strength, the screen, and the battery's own losses.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pydantic import model_validator

from edge_sim.profile_files import Figure, ProfileData, ProfileName, read_profiles

POWER_PROFILES = Path(__file__).with_name("power_profiles.yaml")
RADIO_PROFILES = Path(__file__).with_name("radio_profiles.yaml")


class Joules(NamedTuple):
    """An amount of energy with its bounds; equal ones where the figures behind it have none."""

    value: float
    low: float
    high: float
    assumed: bool

    def plus(self, other: Joules) -> Joules:
        """The sum. Bounds add up as well: those of one device are wrong in the same direction."""
        return Joules(
            self.value + other.value, self.low + other.low, self.high + other.high, self.assumed or other.assumed
        )


NOTHING = Joules(0.0, 0.0, 0.0, False)


class RadioProfile(ProfileData):
    """Power while data moves, linear in its rate, and how long the radio stays awake afterwards."""

    mw_per_megabit_per_s: Figure
    base_mw: Figure
    tail_s: Figure
    tail_mw: Figure
    whole_device: bool = False
    """Whether the first two include the rest of the device, so that its idle power is not added meanwhile."""

    def transfer(self, size_bytes: int, duration_s: float) -> Joules:
        """Moving bytes for so long: (alpha * rate + beta) * duration is alpha * megabits + beta * duration.

        Measured for uplinks; for what is received an upper bound, because receiving costs less for each megabit.
        """
        if duration_s <= 0 and size_bytes <= 0:
            return NOTHING
        return _times(self.mw_per_megabit_per_s, size_bytes * 8e-9).plus(_times(self.base_mw, duration_s / 1000))

    def tail(self, duration_s: float) -> Joules:
        """Being awake for so long with nothing to do; see RadioTail for how long that is."""
        return _times(self.tail_mw, duration_s / 1000)


class PowerProfile(ProfileData):
    """A device's power, computing and waiting."""

    compute_w: Figure
    idle_w: Figure

    @model_validator(mode="after")
    def _computing_costs_more(self) -> PowerProfile:
        if self.idle_w.value > self.compute_w.value:
            raise ValueError(f"idle_w {self.idle_w.value} is above compute_w {self.compute_w.value}")
        return self


class RadioProfiles(ProfileData):
    """A file of radios."""

    profiles: dict[ProfileName, RadioProfile]


class PowerProfiles(ProfileData):
    """A file of devices."""

    profiles: dict[ProfileName, PowerProfile]


def read_radio_profiles(path: Path = RADIO_PROFILES) -> dict[str, RadioProfile]:
    """Radios by name. Raises ConfigError with file and field."""
    return read_profiles(path, RadioProfiles).profiles


def read_power_profiles(path: Path = POWER_PROFILES) -> dict[str, PowerProfile]:
    """Devices by name. Raises ConfigError with file and field."""
    return read_profiles(path, PowerProfiles).profiles


class RadioTail:
    """How long one device's radio is awake after its transfers.

    It stays awake for `tail_s` after the last one. A transfer inside that time cuts the tail before it short and begins
    a new one, so it pays only for what it extends: the time since the one before. Times never go back.
    """

    __slots__ = ("_end_s", "tail_s")

    def __init__(self, tail_s: float) -> None:
        if not tail_s >= 0:
            raise ValueError(f"tail_s must be 0 or more, got {tail_s}")
        self.tail_s = tail_s
        self._end_s = float("-inf")

    def extension_s(self, start_s: float, end_s: float) -> float:
        """Seconds of tail that a transfer from `start_s` to `end_s` adds to what was paid before."""
        if not start_s <= end_s:
            raise ValueError(f"a transfer ends after it begins, got {start_s} to {end_s} s")
        idle_s = max(0.0, start_s - self._end_s)
        self._end_s = max(self._end_s, end_s)
        return min(self.tail_s, idle_s)


class RequestEnergy(NamedTuple):
    """Where one request's energy went."""

    compute: Joules
    radio: Joules
    tail: Joules
    wait: Joules

    @property
    def total(self) -> Joules:
        return self.compute.plus(self.radio).plus(self.tail).plus(self.wait)


def request_energy(
    device: PowerProfile,
    radio: RadioProfile | None,
    *,
    compute_s: float,
    wait_s: float,
    up_bytes: int = 0,
    up_s: float = 0.0,
    down_bytes: int = 0,
    down_s: float = 0.0,
    tail_s: float = 0.0,
) -> RequestEnergy:
    """Energy of one request on one device.

    `compute_s` is head, codec and whatever else keeps the processor busy. `wait_s` is the rest of the latency, with the
    transfers in it: the device idles meanwhile, and the radio's power comes on top, unless its figures are those of the
    whole device. `up_s` and `down_s` are transmission times without the queue before them; bytes are those on the wire.
    `tail_s` is what RadioTail says. Without a radio (a request that stays on the device) nothing may have been sent.
    Raises ValueError for negative times, or transfers without a radio.
    """
    if min(compute_s, wait_s, up_bytes, up_s, down_bytes, down_s, tail_s) < 0:
        raise ValueError("times and bytes must be 0 or more")
    if radio is None:
        if up_bytes or down_bytes or up_s or down_s or tail_s:
            raise ValueError("a transfer needs a radio")
        return RequestEnergy(_times(device.compute_w, compute_s), NOTHING, NOTHING, _times(device.idle_w, wait_s))
    idle_s = max(0.0, wait_s - up_s - down_s) if radio.whole_device else wait_s
    return RequestEnergy(
        compute=_times(device.compute_w, compute_s),
        radio=radio.transfer(up_bytes, up_s).plus(radio.transfer(down_bytes, down_s)),
        tail=radio.tail(tail_s) if tail_s else NOTHING,
        wait=_times(device.idle_w, idle_s),
    )


class Battery:
    """So many joules, and no more. Raises ValueError for negative amounts."""

    __slots__ = ("capacity_j", "remaining_j")

    def __init__(self, capacity_j: float) -> None:
        if not capacity_j >= 0:
            raise ValueError(f"capacity_j must be 0 or more, got {capacity_j}")
        self.capacity_j = capacity_j
        self.remaining_j = capacity_j

    @property
    def empty(self) -> bool:
        return self.remaining_j <= 0

    def drain(self, joules: float) -> float:
        """Take energy out; what could be given, which is less only when the battery becomes empty."""
        if not joules >= 0:
            raise ValueError(f"joules must be 0 or more, got {joules}")
        given = min(joules, self.remaining_j)
        self.remaining_j -= given
        return given


def _times(figure: Figure, factor: float) -> Joules:
    # What took no time rests on no figure.
    if factor == 0:
        return NOTHING
    return Joules(figure.value * factor, figure.lowest * factor, figure.highest * factor, figure.assumed)
