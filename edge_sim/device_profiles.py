"""Devices by name: what device_profiles.yaml says, and how a simulated one is made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from edge_sim.device import Device
from edge_sim.profile_files import Figure, ProfileData, ProfileName, read_profiles

DEVICE_PROFILES = Path(__file__).with_name("device_profiles.yaml")
Milliseconds = Annotated[float, Field(gt=0, le=1e6)]


class DeviceProfile(ProfileData):
    """One device; its times are those of whole networks at full speed."""

    label: str = Field(min_length=1, max_length=100)
    kind: Literal["cpu", "gpu"]
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    measured_ms: dict[str, Milliseconds] = Field(min_length=1)
    """By network, for one sample."""
    power: ProfileName
    """One of power_profiles.yaml."""
    sustained_after_s: Figure
    sustained_speed: Figure

    def build(self) -> Device:
        """A new device, idle and cool."""
        return Device(sustained_after_s=self.sustained_after_s.value, sustained_speed=self.sustained_speed.value)


class DeviceProfiles(ProfileData):
    """A file of devices."""

    source: str = Field(min_length=1, max_length=500)
    """Of all measured times in it."""
    profiles: dict[ProfileName, DeviceProfile]


def read_device_profiles(path: Path = DEVICE_PROFILES) -> dict[str, DeviceProfile]:
    """Devices by name. Raises ConfigError with file and field."""
    return read_profiles(path, DeviceProfiles).profiles
