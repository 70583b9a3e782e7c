"""What a server reported of its queue follows its answers, and is forgotten where there are none."""

from __future__ import annotations

from itertools import pairwise

import pytest

from edge_sim.reported_wait import HALF_LIFE_S, ReportedWait
from tests.edge_sim.fleets import SERVER, group, scenario, simulate


def test_it_comes_to_be_what_is_reported():
    wait = ReportedWait()
    for number in range(40):
        wait.learn(0.01 * number, 0.3)
    assert wait.seconds(0.4) == pytest.approx(0.3, rel=0.01)


def test_half_of_it_is_forgotten_after_each_half_life_when_read_and_when_it_learns():
    wait, other = ReportedWait(), ReportedWait()
    for each in (wait, other):
        each.learn(0.0, 1.0)
    believed = [wait.seconds(number * HALF_LIFE_S) for number in range(4)]
    assert [later / sooner for sooner, later in pairwise(believed)] == pytest.approx([0.5] * 3)
    other.learn(HALF_LIFE_S, 0.0)
    assert other.seconds(HALF_LIFE_S) == pytest.approx(0.8 * believed[1])


def test_adaptive_devices_ask_again_after_a_burst(tmp_path):
    """A crowd fills the server for five seconds and leaves; what it reported must not keep the others away for ever."""
    fast = {"up": {"mbit_s": 1000.0}, "down": {"mbit_s": 1000.0}, "delay_ms": 1}
    made = scenario(
        group("crowd", count=40, link=fast, arrivals={"kind": "periodic", "rate_per_s": 20.0}),
        group("adaptive", link=fast, policy={"kind": "adaptive"}),
        server={"profiles": {"toy": {**SERVER, "batch_s": {"*": {1: [0.01], 16: [0.16]}}}}},
        faults=[{"kind": "churn", "at_s": 5, "for_s": 1000, "group": "crowd", "share": 1.0}],
        duration_s=60.0,
    )
    rows = [row for row in simulate(made, tmp_path / "run") if row["group"] == "adaptive"]
    assert "device_only" in {row["mode"] for row in rows if 2 < row["intended_s"] < 10}
    assert {row["mode"] for row in rows if row["intended_s"] > 50} == {"server_only"}
