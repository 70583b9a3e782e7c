"""Fleets in virtual time: every request ends in time, stages add up, faults do what they say, one seed one history."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edge_sim.clock import WallClock
from edge_sim.fleet import Fleet, Shard
from edge_sim.fleet_commands import check_names
from edge_sim.fleet_run import FleetRecorder
from edge_sim.hardware import ProfileHardware
from edge_sim.recorder import RunRecorder
from edge_sim.scenario import LinkSettings, Scenario
from edge_sim.server_model import ServerModel
from edge_sim.server_profile import ServerProfile
from edge_sim.virtual_clock import Promise, VirtualClock
from split_inference.errors import ConfigError
from tests.edge_sim.fleets import MODEL, POWER, SERVER, ToyHardware, group, scenario, simulate
from tests.patience import PATIENCE_S

ALL = [
    group("server", policy={"kind": "server_only"}),
    group("device", policy={"kind": "device_only"}),
    group("fixed", policy={"kind": "fixed", "split_point": "half", "codec": "u4+lz4"}),
    group("adaptive", policy={"kind": "adaptive"}),
]
STAGES = (
    "wait_s", "head_s", "up_queue_s", "up_s", "up_propagation_s", "up_loss_s", "server_queue_s", "server_s", "down_s",
    "local_s",
)  # fmt: skip


SWITCH = {"kind": "switch", "at_s": 1, "group": "g"}


def changing(rates):
    up = {"markov": [{"mbit_s": rate, "mean_s": 1.0} for rate in rates]}
    return {"up": up, "down": {"mbit_s": 1.0}}


def outcomes(rows, of="outcome"):
    return Counter(row[of] for row in rows)


def test_all_policies_answer_and_their_stages_are_their_latency(tmp_path):
    rows = simulate(scenario(*ALL), tmp_path / "run")
    assert {row["outcome"] for row in rows} <= {"answered", "answered_locally", "dropped"}
    assert {row["group"] for row in rows} == {"server", "device", "fixed", "adaptive"}
    for row in rows:
        if row["outcome"].startswith("answered"):
            assert sum(row[stage] for stage in STAGES) == pytest.approx(row["total_s"], abs=1e-6)
            assert row["late_s"] == 0
            assert row["in_time"]


def test_one_seed_one_history_and_another_seed_another(tmp_path):
    cell = {"street": {"up": {"mbit_s": 4.0}, "down": {"mbit_s": 8.0}, "delay_ms": 20, "jitter_ms": 4, "loss": 0.02}}
    groups = [*ALL, {**group("in-a-cell"), "link": None, "cell": "street"}]
    for folder, seed in (("one", 1), ("two", 1), ("three", 2)):
        simulate(scenario(*groups, cells=cell, seed=seed), tmp_path / folder)
    records = [(tmp_path / folder / "requests.jsonl").read_bytes() for folder in ("one", "two", "three")]
    assert records[0] == records[1]
    assert records[0] != records[2]


def test_halving_every_rate_doubles_every_transmission_exactly(tmp_path):
    def transmissions(folder, rate):
        link = {"up": {"mbit_s": rate}, "down": {"mbit_s": rate}}
        policy = {"kind": "fixed", "split_point": "half", "codec": "u4+lz4"}
        made = scenario(group(policy=policy, link=link, max_in_flight=1000), deadline_s=100)
        # The first request of each device: nothing is queued before it.
        return {row["device"]: row["up_s"] for row in simulate(made, tmp_path / folder) if row["n"] == 0}

    fast, slow = transmissions("fast", 8.0), transmissions("slow", 4.0)
    assert fast
    assert {device: 2 * seconds for device, seconds in fast.items()} == slow


def test_a_device_that_is_too_slow_to_help_itself_gives_up_by_its_deadline(tmp_path):
    # The whole network needs longer than the deadline, and the server is away.
    down = {"kind": "server_down", "at_s": 0, "for_s": 60}
    made = scenario(group(max_in_flight=50), faults=[down], deadline_s=0.5)
    rows = simulate(made, tmp_path / "run", hardware=ToyHardware(whole_s=0.8))
    assert outcomes(rows) == {"gave_up": len(rows)}
    assert outcomes(rows, "reason") == {"server_down": len(rows)}
    assert max(row["total_s"] for row in rows) <= 0.5 + 0.1


def test_a_link_that_is_down_is_answered_locally_without_a_byte(tmp_path):
    made = scenario(faults=[{"kind": "link_down", "at_s": 10, "for_s": 10, "group": "g"}])
    rows = simulate(made, tmp_path / "run")
    during = [row for row in rows if 10.0 <= row["intended_s"] < 20.0]
    assert during
    assert {(row["outcome"], row["reason"], row["up_bytes"]) for row in during} == {
        ("answered_locally", "link_down", 0)
    }


def test_with_a_hole_in_the_trace_every_request_ends_by_its_deadline(tmp_path):
    # 1.2 Mbit/s for 5 s, then nothing for 78 s, looped.
    trace = tmp_path / "hole.up"
    trace.write_text("\n".join(str(ms) for ms in range(10, 5000, 10)) + "\n83000\n")
    link = {"up": {"trace": str(trace)}, "down": {"mbit_s": 8.0}, "delay_ms": 10}
    made = scenario(*[{**each, "link": link, "max_in_flight": 4} for each in ALL], duration_s=200.0, deadline_s=1.0)
    rows = simulate(made, tmp_path / "run")
    assert len(rows) > 1000
    assert max(row["total_s"] for row in rows) <= 1.0 + 0.1
    in_hole = [row for row in rows if 6.0 < row["intended_s"] < 80.0 and row["group"] == "server"]
    assert outcomes(in_hole)["answered_locally"] > 0.9 * len(in_hole)


def test_the_hole_of_a_real_trace_hangs_nobody(tmp_path, data_folder):
    link = {
        "up": {"trace": str(data_folder / "traces" / "ATT-LTE-driving.up")},
        "down": {"mbit_s": 13.0},
        "delay_ms": 27.5,
    }
    policies = ({"kind": "server_only"}, {"kind": "adaptive"})
    groups = [group(f"g{index}", policy=policy, link=link, count=1) for index, policy in enumerate(policies)]
    rows = simulate(scenario(*groups, duration_s=900.0), tmp_path / "run")
    in_hole = [row for row in rows if 788.0 < row["intended_s"] < 865.0]
    assert len(in_hole) > 50
    assert max(row["total_s"] for row in rows) <= 1.0 + 0.1
    assert {row["outcome"] for row in in_hole} <= {"answered_locally", "dropped", "gave_up"}


def test_devices_that_leave_take_no_inputs_and_come_back(tmp_path):
    made = scenario(faults=[{"kind": "churn", "at_s": 10, "for_s": 10, "group": "g", "share": 1.0}])
    rows = simulate(made, tmp_path / "run")
    assert not [row for row in rows if 10.0 <= row["intended_s"] < 20.0]
    assert [row for row in rows if row["intended_s"] >= 20.0]


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_the_same_devices_leave_in_whatever_shards(tmp_path, share):
    fault = {"kind": "churn", "at_s": 10, "for_s": 100, "group": "g", "share": share}
    made = scenario(group(count=4, policy={"kind": "device_only"}), faults=[fault])

    def staying(rows):
        return {row["device"] for row in rows if row["intended_s"] > 10}

    whole = staying(simulate(made, tmp_path / "whole"))
    parts = [row for i in range(4) for row in simulate(made, tmp_path / f"{i}", shard=Shard(i, 4))]
    assert whole == staying(parts)
    assert len(whole) == (2 if share == 0.5 else 3)


@pytest.mark.parametrize(
    "fault", [{"kind": "server_down"}, {"kind": "churn", "group": "g"}, {"kind": "bad_frames", "group": "g"}]
)
def test_a_shorter_fault_inside_a_longer_one_does_not_end_it(tmp_path, fault):
    small, whole = ({}, {}) if fault["kind"] == "server_down" else ({"share": 0.4}, {"share": 1.0})
    faults = [{**fault, **whole, "at_s": 5, "for_s": 20}, {**fault, **small, "at_s": 8, "for_s": 4}]
    rows = simulate(scenario(faults=faults), tmp_path / "run")
    assert not [row for row in rows if 5.1 < row["intended_s"] < 24.9 and row["outcome"] == "answered"]
    assert [row for row in rows if row["intended_s"] > 25.1 and row["outcome"] == "answered"]


class SlowHeads:
    """Computes every head in `head_s`, in virtual time."""

    def __init__(self, clock, head_s):
        self.clock, self.head_s = clock, head_s
        self.too_slow = 0

    def begin(self, option, item):
        job = Promise()
        self.clock.at(self.clock.now_s() + self.head_s, lambda _: self.clock.keep(job, b"computed"))
        return self._ended(job)

    async def _ended(self, job):
        await self.clock.wait(job)
        return job.value


@pytest.mark.parametrize(("head_s", "slow"), [(0.09, 0.0), (0.1019, 0.0), (0.1021, 1.0), (0.3, 1.0)])
def test_a_head_that_this_machine_ends_after_its_device_is_counted(tmp_path, head_s, slow):
    # The device needs 0.1 s for the head; 2 ms are this machine's scheduling.
    clock = VirtualClock()
    made = scenario(group(policy={"kind": "fixed", "split_point": "half", "codec": "u4+lz4"}, max_in_flight=1))
    server = ServerModel(ServerProfile.model_validate(SERVER), clock, seed="s", reply_bytes=200)
    heads = SlowHeads(clock, head_s)
    with RunRecorder(tmp_path, command="test", facts={}) as recorder:
        writer = FleetRecorder(recorder)
        fleet = Fleet(
            made,
            models={"toy": MODEL},
            servers={"toy": server},
            service_s={"toy": 0.01},
            hardware=ToyHardware(),
            clock=clock,
            writer=writer,
            heads={"toy": heads},
        )
        fleet.start()
        clock.run(until_s=40.0)
    answered = writer.progress.outcomes["answered"]
    assert answered > 10
    assert heads.too_slow == slow * answered


def test_damaged_frames_are_refused_and_answered_locally(tmp_path):
    made = scenario(faults=[{"kind": "bad_frames", "at_s": 0, "for_s": 30, "group": "g", "share": 1.0}])
    rows = simulate(made, tmp_path / "run")
    assert {(row["outcome"], row["reason"]) for row in rows} <= {
        ("answered_locally", "bad_frame"),
        ("dropped", "device_busy"),
    }
    assert all(row["attempts"] <= 1 for row in rows)


def test_a_switch_drops_what_comes_during_the_handshake_and_what_is_stale(tmp_path):
    new = {"kind": "fixed", "split_point": "half", "codec": "u4+lz4"}
    fast = {"kind": "poisson", "rate_per_s": 20.0}
    made = scenario(
        group(arrivals=fast, max_in_flight=50),
        faults=[{"kind": "switch", "at_s": 10, "group": "g", "policy": new}],
    )
    rows = simulate(made, tmp_path / "run")
    reasons = outcomes(rows, "reason")
    assert reasons["switching"] > 0
    assert reasons["stale"] > 0
    assert all(row["correct"] is None for row in rows if row["reason"] == "stale")
    after = [row for row in rows if row["intended_s"] > 11 and row["outcome"] == "answered"]
    assert {row["mode"] for row in after} == {"split"}


def one_input(name):
    """The toy under another name, with its first input only."""
    options = [each.model_copy(update={"sizes": each.sizes[:1], "correct": (True,)}) for each in MODEL.options]
    return MODEL.model_copy(update={"name": name, "whole_correct": (True,), "options": tuple(options)})


def test_a_switch_to_a_model_with_fewer_inputs_and_then_of_the_policy_alone(tmp_path):
    fast = {"kind": "poisson", "rate_per_s": 20.0}
    split = {"kind": "fixed", "split_point": "half", "codec": "u4+lz4"}
    made = scenario(
        group(arrivals=fast, max_in_flight=50),
        models={name: {"profile": name} for name in ("toy", "small")},
        server={"profiles": dict.fromkeys(("toy", "small"), SERVER)},
        faults=[
            {"kind": "switch", "at_s": 20, "group": "g", "policy": {"kind": "device_only"}},
            {"kind": "switch", "at_s": 10, "group": "g", "model": "small", "policy": split},
        ],
    )
    rows = simulate(made, tmp_path / "run", models={"toy": MODEL, "small": one_input("small")})
    began = [(row["intended_s"], row["model"], row["policy"]) for row in rows if row["outcome"] != "dropped"]
    assert {model for at_s, model, _ in began if at_s < 10} == {"toy"}
    assert {(model, policy) for at_s, model, policy in began if 11 < at_s < 20} == {("small", "fixed")}
    assert {(model, policy) for at_s, model, policy in began if at_s > 21} == {("small", "device_only")}


class Silent:
    """A server that never answers."""

    def __init__(self, clock):
        self._clock = clock

    def reported_wait_s(self):
        return 0.0

    async def infer(self, ask, *, until_s):
        await self._clock.sleep_until(until_s)


def fleet_on(clock, made, writer, server):
    return Fleet(
        made,
        models={"toy": MODEL},
        servers={"toy": server},
        service_s={"toy": 0.01},
        hardware=ToyHardware(whole_s=0.02),
        clock=clock,
        writer=writer,
    )


class Kept:
    def __init__(self):
        self.requests = []

    def write(self, who, how, request):
        self.requests.append(request)


def test_on_the_wall_clock_too_there_is_time_to_finish_on_the_device():
    kept = Kept()

    async def play():
        clock = WallClock()
        made = scenario(group(arrivals={"rate_per_s": 5.0}, deadline_s=0.3), duration_s=2.0)
        fleet_on(clock, made, kept, Silent(clock)).start()
        await clock.finish()

    asyncio.run(asyncio.wait_for(play(), PATIENCE_S))
    sent = [request for request in kept.requests if request.outcome != "dropped"]
    assert {request.reason for request in sent} == {"server_too_slow"}
    # All of them, where the machine does not stand still.
    assert sum(request.outcome == "answered_locally" for request in sent) > len(sent) / 2


def test_a_fault_that_is_longer_than_the_run_does_not_make_it_longer():
    clock, kept = VirtualClock(), Kept()
    fault = {"kind": "bad_frames", "at_s": 10, "for_s": 86_400, "group": "g", "share": 1.0}
    fleet_on(clock, scenario(group(), faults=[fault]), kept, Silent(clock)).start()
    clock.run()
    assert kept.requests
    assert clock.now_s() < 40


class EarlySplit(ToyHardware):
    """A fifth of a second before the split point, and seven tenths behind it."""

    def head_s(self, device, model, split_point):
        return 0.9 if split_point is None else 0.2


def test_while_the_processor_is_promised_to_the_next_input_the_server_is_waited_for(tmp_path):
    slow = {**SERVER, "overhead_s": [0.3], "batch_s": {"*": {1: [0.01], 16: [0.01]}}}
    made = scenario(
        group(
            count=1,
            policy={"kind": "fixed", "split_point": "half", "codec": "u4+lz4"},
            arrivals={"kind": "periodic", "rate_per_s": 10.0},
            deadline_s=1.0,
        ),
        server={"profiles": {"toy": slow}},
    )
    rows = simulate(made, tmp_path / "run", hardware=EarlySplit())
    # The server takes 0.3 s of the 0.8 that are left; finishing here would have to begin after 0.1.
    assert outcomes(rows)["answered"] > 20
    # Some whose processor was promised a moment later still stop waiting too early; without this it is most of them.
    assert outcomes(rows)["gave_up"] < outcomes(rows)["answered"] / 2


def test_a_floor_that_nothing_can_be_held_against_is_refused(tmp_path):
    unknown = [each.model_copy(update={"correct": None}) for each in MODEL.options]
    untrained = MODEL.model_copy(
        update={"trained": False, "correct_means": None, "whole_correct": None, "options": tuple(unknown)}
    )
    policy = {"kind": "adaptive", "objective": "latency_with_accuracy", "accuracy_floor": 0.9}
    with pytest.raises(ConfigError, match="the profile of toy does not say which answers are right"):
        simulate(scenario(group(policy=policy)), tmp_path / "run", models={"toy": untrained})


def test_times_that_a_simulated_server_was_not_measured_for_are_said(tmp_path):
    measured = {**SERVER, "source": "measured", "batch_s": {"input": {1: [0.01]}}}
    made = scenario(*ALL, server={"profiles": {"toy": measured}})
    simulate(made, tmp_path / "run")
    assumed = json.loads((tmp_path / "run/header.json").read_text())["assumed"]
    assert "server of toy, half: the times of input" in assumed


def test_what_is_stale_is_recorded_with_the_policy_it_began_with(tmp_path):
    fast = {"kind": "poisson", "rate_per_s": 20.0}
    switch = {"kind": "switch", "at_s": 10, "group": "g", "policy": {"kind": "device_only"}}
    rows = simulate(scenario(group(arrivals=fast, max_in_flight=50), faults=[switch]), tmp_path / "run")
    assert {row["policy"] for row in rows if row["reason"] == "stale" and row["intended_s"] < 10} == {"server_only"}


def test_the_stages_of_what_did_not_get_through_are_no_longer_than_it_took(tmp_path):
    link = {"up": {"mbit_s": 0.1}, "down": {"mbit_s": 8.0}, "delay_ms": 10}
    rows = simulate(scenario(group(link=link, max_in_flight=4)), tmp_path / "run")
    tried = [row for row in rows if row["reason"] == "link_too_slow"]
    assert tried
    for row in tried:
        assert sum(row[stage] for stage in STAGES) == pytest.approx(row["total_s"], abs=1e-5)


def test_an_upload_limit_drops_what_exceeds_it(tmp_path):
    rows = simulate(scenario(group(upload_limit_mbit_s=0.32)), tmp_path / "run")
    sent = sum(row["up_bytes"] for row in rows if row["device"] == "g-0")
    assert outcomes(rows, "reason")["upload_limit"] > 0
    assert sent <= 0.04e6 * 31


def test_what_is_not_sent_is_not_held_against_the_limit(tmp_path):
    faults = [{"kind": "link_down", "group": "g", "at_s": 0, "for_s": 60}]
    rows = simulate(scenario(group(upload_limit_mbit_s=0.32), faults=faults), tmp_path / "run")
    assert set(outcomes(rows, "outcome")) == {"answered_locally"}


def test_what_is_sent_again_is_held_against_the_limit_too(tmp_path):
    often = {"kind": "poisson", "rate_per_s": 6.0}
    half = {"kind": "fixed", "split_point": "half", "codec": "u4+lz4"}
    crowd = group(upload_limit_mbit_s=0.16, count=8, policy=half, arrivals=often, max_in_flight=6)
    busy = {"source": "assumed", "overhead_s": [0.0], "batch_s": {"*": {1: [0.4]}}, "max_pending": 1}
    rows = simulate(scenario(crowd, server={"profiles": {"toy": busy}}), tmp_path / "run")
    assert max(row["attempts"] for row in rows) > 1
    for device in {row["device"] for row in rows}:
        assert sum(row["up_bytes"] for row in rows if row["device"] == device) <= 0.02e6 * 31


def test_a_device_that_computes_all_the_time_pays_for_no_waiting(tmp_path):
    often = {"kind": "periodic", "rate_per_s": 20.0}
    always = group(arrivals=often, policy={"kind": "device_only"}, count=1, max_in_flight=4)
    rows = simulate(scenario(always), tmp_path / "run")
    joules = sum(row["compute_j"] + row["radio_j"] + row["idle_j"] for row in rows)
    last_s = max(row["intended_s"] + row["total_s"] for row in rows)
    assert joules <= POWER.compute_w * last_s + 1e-3


def test_a_battery_ends(tmp_path):
    rows = simulate(scenario(group(battery_wh=0.001, count=1)), tmp_path / "run")
    assert rows[-1]["reason"] == "battery_empty"
    spent = sum(row["compute_j"] + row["radio_j"] + row["idle_j"] for row in rows)
    assert 0 < spent < 3.6 + 5
    # It would be empty after 3.6 s of nothing but waiting.
    (first, *_) = (row["intended_s"] for row in rows if row["reason"] == "battery_empty")
    assert not [row for row in rows if row["intended_s"] > max(first, 3.6) and row["reason"] != "battery_empty"]


def test_a_full_device_drops_what_it_cannot_take(tmp_path):
    fast = {"kind": "periodic", "rate_per_s": 20.0}
    rows = simulate(scenario(group(arrivals=fast, policy={"kind": "device_only"})), tmp_path / "run")
    assert outcomes(rows, "reason")["device_busy"] > 0
    # One job at a time, 0.2 s each.
    answered = [row for row in rows if row["outcome"] == "answered_locally" and row["device"] == "g-0"]
    assert len(answered) == pytest.approx(30 / 0.2, rel=0.05)


def test_energy_of_a_request_alone(tmp_path):
    policy = {"kind": "fixed", "split_point": "half", "codec": "u4+lz4"}
    rows = simulate(scenario(group(policy=policy, count=1, arrivals={"rate_per_s": 0.05})), tmp_path / "run")
    row = rows[0]
    assert row["compute_j"] == pytest.approx(POWER.compute_w * row["head_s"], abs=1e-5)
    radio_j = POWER.radio_base_w * row["up_s"] + POWER.radio_w_per_mbit_s * 0.04 + POWER.tail_w * POWER.tail_s
    assert row["radio_j"] == pytest.approx(radio_j, abs=1e-5)
    assert row["idle_j"] == pytest.approx(POWER.idle_w * (row["total_s"] - row["head_s"] - row["up_s"]), abs=1e-5)


def test_shards_are_the_fleet(tmp_path):
    # With a server that no shard can fill, what a device does does not depend on the shard that it is in.
    made = scenario(*[{**each, "policy": {"kind": "device_only"}} for each in ALL])
    whole = simulate(made, tmp_path / "whole")
    parts = [row for i in range(3) for row in simulate(made, tmp_path / f"{i}", shard=Shard(i, 3))]

    def ordered(rows):
        return sorted(rows, key=lambda row: (row["device"], row["n"]))

    assert ordered(parts) == ordered(whole)


def test_correctness_follows_the_option_that_answered(tmp_path):
    policy = {"kind": "fixed", "split_point": "half", "codec": "u4+lz4"}
    rows = [row for row in simulate(scenario(group(policy=policy)), tmp_path / "run") if row["outcome"] == "answered"]
    share = np.mean([row["correct"] for row in rows])
    assert 0.3 < share < 0.7


def test_what_the_profile_lacks_is_refused_with_what_it_has(tmp_path):
    policy = {"kind": "fixed", "split_point": "third", "codec": "u4+lz4"}
    with pytest.raises(ConfigError, match=r"has no third with u4\+lz4; it has half with u4\+lz4"):
        simulate(scenario(group(policy=policy)), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"faults": [SWITCH | {"policy": {"kind": "fixed", "split_point": "x", "codec": "y"}}]},
            r"faults\[0\] switch:",
        ),
        ({"server": {"profiles": {"toy": "broken.json"}}}, "broken.json"),
        (
            {"models": {"toy": {"profile": "mobilenet_v2", "split_points": ["nowhere"]}}},
            r"models\.toy\.split_points: mobilenet_v2\S* has no nowhere; it has \S+, ",
        ),
    ],
)
def test_what_only_files_tell_is_refused_before_a_run(tmp_path, change, reason):
    (tmp_path / "broken.json").write_text("{}")
    content = scenario(group(device="pi-4b")).model_dump(mode="json")
    content["models"]["toy"]["profile"] = "mobilenet_v2"
    check_names(Scenario.model_validate(content), base=tmp_path, traces=None)
    with pytest.raises(ConfigError, match=reason):
        check_names(Scenario.model_validate(content | change), base=tmp_path, traces=None)


def test_an_explicit_nothing_is_not_what_the_profile_says():
    hardware = ProfileHardware(folder=Path())
    own = hardware.path(LinkSettings(profile="lte-fading"))
    still = hardware.path(LinkSettings(profile="lte-fading", jitter_ms=0, delay_ms=0, loss=0))
    assert own.round_trip_s > 0
    assert still.round_trip_s == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"groups": [group(), group()]}, "stands twice"),
        ({"groups": [group(model="other")]}, "there is no other"),
        ({"groups": [{**group(), "cell": "c"}]}, "either link or cell"),
        ({"faults": [{"kind": "churn", "at_s": 1, "for_s": 1, "group": "x", "share": 0.5}]}, "there is no x"),
        (
            {
                "cells": {"street": group()["link"]},
                "groups": [{**group(), "link": None, "cell": "street"}],
                "faults": [{"kind": "link_down", "at_s": 1, "for_s": 1, "group": "g"}],
            },
            "say cell: street",
        ),
        ({"faults": [{"kind": "server_down", "at_s": 99, "for_s": 1}]}, "after the end"),
        (
            {"groups": [group(link=changing([0.0, 0.0]))]},
            "link.up[^:]*\n.*markov: one of the states needs mbit_s above 0",
        ),
        ({"groups": [group(link=changing([1.0, 1e-7]))]}, "mbit_s is 0, or at least 1e-06"),
        ({"groups": [group(link={"up": {"mbit_s": 1e-7}, "down": {"mbit_s": 1.0}})]}, "equal to 0.000001"),
        ({"clock": "wall"}, "needs server.url"),
        ({"unknown": 1}, "Extra inputs"),
    ],
)
def test_impossible_scenarios_are_refused(change, reason):
    content = scenario().model_dump(mode="json") | change
    with pytest.raises(ValueError, match=reason):
        Scenario.model_validate(content)
