"""Devices, links and power for a fleet, from the profiles that ship with the package and the scenario's own words.

Opens profile files and traces, each once. Says in the end which of the figures that were used nobody measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edge_sim.conduct import PathFacts
from edge_sim.device import Device
from edge_sim.device_fit import DeviceFit
from edge_sim.device_profiles import DeviceProfile, read_device_profiles
from edge_sim.energy import PowerProfile, RadioProfile, read_power_profiles, read_radio_profiles
from edge_sim.link import Bottleneck, Link
from edge_sim.link_profiles import LinkProfile, RateProfile, RateStateProfile, read_link_profiles
from edge_sim.model_profile import ModelProfile
from edge_sim.plan import ENCODE_S_PER_VALUE
from edge_sim.power_meter import Power, PowerMeter
from edge_sim.profile_files import Figure, pick
from edge_sim.rates import MarkovRate, RateState
from edge_sim.scenario import LinkSettings, Rate
from edge_sim.traces import Trace, read_trace
from edge_sim.work import ModelWork, Work, reference_work
from split_inference.errors import ConfigError, UsageError

# Radio of a link that does not say: its power is then LTE's.
DEFAULT_RADIO = "lte"
# Networks under another name in the table of measured times: the same layers, with a 1x1 convolution at the end.
_PUBLISHED = {"mobilenet_v2_imagenet": "mobilenet_v2"}


class ProfileHardware:
    """The `Hardware` of a fleet. The scenario's own paths start at `folder`; profiles' traces lie in `traces`."""

    def __init__(
        self, *, folder: Path, traces: Path | None = None, works: Mapping[str, ModelWork] | None = None
    ) -> None:
        self._folder = folder
        self._trace_folder = traces
        self._devices = read_device_profiles()
        self._links = read_link_profiles()
        self._powers = read_power_profiles()
        self._radios = read_radio_profiles()
        self._works = {**reference_work(), **(works or {})}
        self._fit = DeviceFit(self._devices, self._works)
        self._traces: dict[Path, Trace] = {}
        self._assumed: dict[str, str] = {
            "encoding, seconds a value": f"{ENCODE_S_PER_VALUE:g}, assumed {1.6e-9:g} to {3e-8:g}"
        }

    @property
    def assumed(self) -> list[str]:
        """The figures that were used and that nobody measured, each with its range, sorted."""
        return [f"{what}: {said}" for what, said in sorted(self._assumed.items())]

    def device(self, name: str) -> Device:
        profile = self._device(name)
        self._note(f"{name} sustained_after_s", profile.sustained_after_s)
        self._note(f"{name} sustained_speed", profile.sustained_speed)
        return profile.build()

    def head_s(self, device: str, model: ModelProfile, split_point: str | None) -> float:
        self._device(device)
        known = self._works.get(model.name)
        work = known if model.work is None else _counted(model.work)
        if work is None:
            raise UsageError(
                f"nobody counted the work of {model.name}; known are {', '.join(sorted(self._works))}: "
                "`python -m edge_sim payloads` counts it, for its payload file and with --profile"
            )
        # Another network of that name takes other times than those that were measured.
        is_published = known is not None and work.whole == known.whole
        published = _PUBLISHED.get(model.name, model.name) if is_published else ""
        if split_point is None:
            found = self._fit.whole(device, published, work.whole)
        else:
            found = self._fit.head(device, published, work.head(split_point), of=work.whole)
        if found.basis == "fitted":
            percent = round(100 * found.relative_error)
            self._assumed[f"{device} seconds of {model.name}"] = f"fitted, median error {percent} %"
        return found.seconds

    def link(self, settings: LinkSettings, *, seed: str) -> Link:
        return self._link(settings, seed=seed, up=None, down=None)

    def share(self, cell: Link, settings: LinkSettings, *, seed: str) -> Link:
        return self._link(settings, seed=seed, up=cell.up.bottleneck, down=cell.down.bottleneck)

    def path(self, settings: LinkSettings) -> PathFacts:
        up, down = self._rate_mbit_s(settings, "up"), self._rate_mbit_s(settings, "down")
        return PathFacts(
            up_bytes_per_s=up * 125e3,
            down_bytes_per_s=down * 125e3,
            round_trip_s=2 * (self._delay_s(settings) + self._jitter_s(settings)),
        )

    def power(self, device: str, settings: LinkSettings, *, battery_j: float | None) -> PowerMeter:
        return PowerMeter(self._power(device, self._radio_name(settings)), battery_j=battery_j)

    def power_facts(self, device: str, settings: LinkSettings) -> dict[str, dict[str, float | bool]]:
        """Low and high of the watts that a group's joules rest on, as shares of the value that was used."""
        device_power, radio = self._power_profiles(device, self._radio_name(settings))
        parts = {"compute": device_power.compute_w, "idle": device_power.idle_w, "radio": radio.base_mw}
        return {
            part: {
                "low": figure.lowest / figure.value if figure.value else 1.0,
                "high": figure.highest / figure.value if figure.value else 1.0,
                "assumed": figure.assumed,
            }
            for part, figure in parts.items()
        }

    def _device(self, name: str) -> DeviceProfile:
        return pick(self._devices, name, what="device")

    def _profile(self, settings: LinkSettings) -> LinkProfile | None:
        return None if settings.profile is None else pick(self._links, settings.profile, what="link")

    def _power_profiles(self, device: str, radio: str) -> tuple[PowerProfile, RadioProfile]:
        profile = self._device(device)
        return pick(self._powers, profile.power, what="power"), pick(self._radios, radio, what="radio")

    def _power(self, device: str, radio_name: str) -> Power:
        power, radio = self._power_profiles(device, radio_name)
        self._note(f"{device} compute_w", power.compute_w)
        self._note(f"{device} idle_w", power.idle_w)
        self._note(f"radio {radio_name} tail_s", radio.tail_s)
        self._note(f"radio {radio_name} tail_mw", radio.tail_mw)
        return Power(
            compute_w=power.compute_w.value,
            idle_w=power.idle_w.value,
            # While it sends, the rest of the device idles: some fits have that in them already.
            radio_base_w=radio.base_mw.value / 1000 + (0.0 if radio.whole_device else power.idle_w.value),
            radio_w_per_mbit_s=radio.mw_per_megabit_per_s.value / 1000,
            tail_s=radio.tail_s.value,
            tail_w=radio.tail_mw.value / 1000,
        )

    def _radio_name(self, settings: LinkSettings) -> str:
        profile = self._profile(settings)
        named = settings.radio or (profile.radio if profile else None)
        if not named:
            # A factor of hundreds lies between them.
            self._assumed["radio"] = f"{DEFAULT_RADIO}, where neither the link nor its profile names one"
        return named or DEFAULT_RADIO

    def _link(self, settings: LinkSettings, *, seed: str, up: Bottleneck | None, down: Bottleneck | None) -> Link:
        return Link(
            up if up is not None else self._bottleneck(settings, "up", seed=f"{seed}/up/rate"),
            down if down is not None else self._bottleneck(settings, "down", seed=f"{seed}/down/rate"),
            propagation_s=self._delay_s(settings),
            jitter_s=self._jitter_s(settings),
            loss=self._loss(settings),
            seed=seed,
        )

    def _delay_s(self, settings: LinkSettings) -> float:
        return self._own_or_profiles(settings, settings.delay_ms, "propagation_ms") / 1000

    def _jitter_s(self, settings: LinkSettings) -> float:
        return self._own_or_profiles(settings, settings.jitter_ms, "jitter_ms") / 1000

    def _loss(self, settings: LinkSettings) -> float:
        return self._own_or_profiles(settings, settings.loss, "loss")

    def _own_or_profiles(self, settings: LinkSettings, own: float | None, name: str) -> float:
        """What the scenario says, else its link profile, else 0."""
        profile = self._profile(settings)
        if own is not None or profile is None:
            return own or 0.0
        figure: Figure = getattr(profile, name)
        self._note(f"link {settings.profile} {name}", figure)
        return figure.value

    def _rate(self, settings: LinkSettings, direction: str) -> Rate | RateProfile:
        own: Rate | None = getattr(settings, direction)
        if own is not None:
            return own
        profile = self._profile(settings)
        assert profile is not None
        named: RateProfile = getattr(profile, direction)
        if named.megabits_per_s is not None:
            self._note(f"link {settings.profile} {direction}", named.megabits_per_s)
        elif named.assumed:
            self._assumed[f"link {settings.profile} {direction}"] = "assumed"
        return named

    def _bottleneck(self, settings: LinkSettings, direction: str, *, seed: str) -> Bottleneck:
        return Bottleneck(self._rate_process(settings, direction, seed=seed))

    def _rate_process(self, settings: LinkSettings, direction: str, *, seed: str) -> float | Trace | MarkovRate:
        rate = self._rate(settings, direction)
        if isinstance(rate, Rate):
            if rate.mbit_s is not None:
                return rate.mbit_s
            if rate.trace is not None:
                return self._trace(self._folder / rate.trace)
            assert rate.markov is not None
            return MarkovRate([RateState(each.mbit_s, each.mean_s) for each in rate.markov], seed=seed)
        if rate.megabits_per_s is not None:
            return rate.megabits_per_s.value
        if rate.states is not None:
            return MarkovRate([_state(each) for each in rate.states], seed=seed)
        assert rate.trace is not None
        if self._trace_folder is None:
            raise ConfigError(
                f"link {settings.profile} follows the trace {rate.trace}, which does not come with this package: "
                "say --traces FOLDER"
            )
        return self._trace(self._trace_folder / rate.trace)

    def _rate_mbit_s(self, settings: LinkSettings, direction: str) -> float:
        rate = self._rate_process(settings, direction, seed="mean")
        return rate if isinstance(rate, float | int) else rate.mean_megabits_per_s

    def _trace(self, path: Path) -> Trace:
        path = path.resolve()
        if path not in self._traces:
            self._traces[path] = read_trace(path)
        return self._traces[path]

    def _note(self, what: str, figure: Figure) -> None:
        if figure.assumed:
            self._assumed[what] = f"{figure.value:g}, assumed {figure.lowest:g} to {figure.highest:g}"


def _counted(work: Mapping[str, tuple[int, ...]]) -> ModelWork:
    try:
        heads = {name: Work(*counts) for name, counts in work.items()}
        return ModelWork(heads["output"], heads)
    except (TypeError, KeyError) as error:
        raise ConfigError(f"the model's work is not that of this version, make its payloads again: {error}") from None


def _state(state: RateStateProfile) -> RateState:
    return RateState(state.megabits_per_s, state.mean_dwell_s)
