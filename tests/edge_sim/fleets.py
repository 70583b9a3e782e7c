"""Small fleets in virtual time for tests: hardware of round numbers, and scenarios as mappings."""

from __future__ import annotations

import json
from pathlib import Path

from edge_sim.conduct import PathFacts
from edge_sim.device import Device
from edge_sim.fleet_run import run_scenario
from edge_sim.link import Bottleneck, Link
from edge_sim.model_profile import ModelProfile
from edge_sim.power_meter import Power, PowerMeter
from edge_sim.scenario import Scenario
from edge_sim.traces import read_trace

SERVER = {"source": "assumed", "overhead_s": [0.0], "batch_s": {"*": {1: [0.01], 16: [0.04]}}, "max_pending": 100}
POWER = Power(compute_w=5.0, idle_w=1.0, radio_base_w=2.0, radio_w_per_mbit_s=0.5, tail_s=3.0, tail_w=0.5)
MODEL = ModelProfile.model_validate(
    {
        "name": "toy",
        "uri": "toy",
        "digest": "ab" * 32,
        "trained": True,
        "macs": 100,
        "correct_means": "label",
        "whole_correct": [True, True],
        "options": [
            {
                "mode": "server_only",
                "split_point": None,
                "codec": None,
                "calibrated": False,
                "elements": None,
                "head_macs_share": 0.0,
                "reply_bytes": 200,
                "sizes": [40_000, 40_000],
                "correct": [True, True],
            },
            {
                "mode": "split",
                "split_point": "half",
                "codec": "u4+lz4",
                "calibrated": False,
                "elements": 1000,
                "head_macs_share": 0.5,
                "reply_bytes": 200,
                "sizes": [5_000, 5_000],
                "correct": [True, False],
            },
        ],
    }
)


class ToyHardware:
    """Whole networks in `whole_s`, half of it before the split point; links as the scenario says, no headers."""

    assumed = ()

    def __init__(self, *, whole_s=0.2, folder=Path()):
        self.whole_s, self.folder = whole_s, folder

    def device(self, name):
        return Device()

    def head_s(self, device, model, split_point):
        return self.whole_s * (1 if split_point is None else 0.5)

    def _rate(self, rate):
        return rate.mbit_s if rate.mbit_s is not None else read_trace(self.folder / rate.trace)

    def _link(self, settings, seed, up, down):
        return Link(
            up,
            down,
            propagation_s=(settings.delay_ms or 0) / 1000,
            jitter_s=(settings.jitter_ms or 0) / 1000,
            loss=settings.loss or 0.0,
            overhead_bytes=0,
            seed=seed,
        )

    def link(self, settings, *, seed):
        up, down = Bottleneck(self._rate(settings.up)), Bottleneck(self._rate(settings.down))
        return self._link(settings, seed, up, down)

    def share(self, cell, settings, *, seed):
        return self._link(settings, seed, cell.up.bottleneck, cell.down.bottleneck)

    def path(self, settings):
        def bytes_per_s(rate):
            rate = self._rate(rate)
            return 125e3 * (rate if isinstance(rate, float) else rate.mean_megabits_per_s)

        return PathFacts(
            up_bytes_per_s=bytes_per_s(settings.up),
            down_bytes_per_s=bytes_per_s(settings.down),
            round_trip_s=2 * (settings.delay_ms or 0) / 1000,
        )

    def power(self, device, settings, *, battery_j):
        return PowerMeter(POWER, battery_j=battery_j)


def group(name="g", *, policy=None, **changes):
    return {
        "name": name,
        "count": 3,
        "device": "toy",
        "link": {"up": {"mbit_s": 8.0}, "down": {"mbit_s": 8.0}, "delay_ms": 10},
        "model": "toy",
        "policy": policy or {"kind": "server_only"},
        "arrivals": {"kind": "poisson", "rate_per_s": 1.0},
        **changes,
    }


def scenario(*groups, **changes):
    return Scenario.model_validate(
        {
            "version": 1,
            "seed": 7,
            "duration_s": 30.0,
            "models": {"toy": {"profile": "toy"}},
            "server": {"profiles": {"toy": SERVER}},
            "groups": list(groups) or [group()],
            **changes,
        }
    )


def simulate(made, folder, *, hardware=None, shard=None, models=None):
    """Rows of the run, and the bytes of its records."""
    folder.mkdir(parents=True)
    run_scenario(
        made,
        folder,
        hardware=hardware or ToyHardware(),
        models=models or {"toy": MODEL},
        command="test",
        facts={},
        base=folder,
        shard=shard,
    )
    text = (folder / "requests.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]
