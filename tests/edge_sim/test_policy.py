"""The adaptive policy takes what is cheapest by its objective, keeps to it within its margin, and obeys its floor."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sim.plan import device_only, sending
from edge_sim.policy import AdaptivePolicy, FixedPolicy, View, above_floor, energy_j, latency_s

WHOLE = device_only(whole_s=0.2, correct=[True] * 10)
SERVER = sending(
    0, split_point=None, codec=None, head_s=0, whole_s=0.2, values=0, sizes=[50_000] * 10, correct=[True] * 10
)
SPLIT = sending(
    1,
    split_point="a",
    codec="u4",
    head_s=0.05,
    whole_s=0.2,
    values=0,
    sizes=[5_000] * 10,
    correct=[True] * 8 + [False] * 2,
)
OPTIONS = [SERVER, SPLIT, WHOLE]


def view(mbit_s=10.0, **changes):
    made = View(up_bytes_per_s=mbit_s * 125e3, delay_s=0.05, service_s=0.01, compute_w=5, radio_w=2, idle_w=0.5)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(("mbit_s", "best"), [(100, SERVER), (4, SPLIT), (0.1, WHOLE)])
def test_latency_prefers_the_server_on_fast_links_and_the_device_on_slow_ones(mbit_s, best):
    assert AdaptivePolicy(objective="latency").choose(view(mbit_s), OPTIONS) is best


@given(st.floats(0.01, 1000), st.floats(0, 1), st.floats(0, 1), st.floats(1, 3))
def test_without_a_margin_nothing_is_cheaper_than_the_choice(mbit_s, wait_s, server_wait_s, slowdown):
    now = view(mbit_s, wait_s=wait_s, server_wait_s=server_wait_s, slowdown=slowdown)
    soonest = AdaptivePolicy(objective="latency", margin=0).choose(now, OPTIONS)
    assert latency_s(now, soonest) == min(latency_s(now, option) for option in OPTIONS)
    thriftiest = AdaptivePolicy(objective="energy", margin=0).choose(now, OPTIONS)
    assert energy_j(now, thriftiest) == min(energy_j(now, option) for option in OPTIONS)


def test_noise_within_the_margin_is_not_followed():
    policy = AdaptivePolicy(objective="latency", margin=0.2)
    first = policy.choose(view(100), OPTIONS)
    # Where server and split cost about the same, estimates wander around it.
    for mbit_s in (9.5, 10.5, 9.0, 11.0):
        costs = sorted(latency_s(view(mbit_s), option) for option in OPTIONS)
        assert costs[1] < costs[0] * 1.25
        assert policy.choose(view(mbit_s), OPTIONS) is first
    assert policy.choose(view(1.0), OPTIONS) is not first


def test_a_tail_that_a_transfer_would_add_makes_the_device_cheaper():
    assert AdaptivePolicy(objective="energy").choose(view(100, tail_j=0.0), OPTIONS) is SERVER
    assert AdaptivePolicy(objective="energy").choose(view(100, tail_j=10.0), OPTIONS) is WHOLE


def test_bytes_are_least_on_the_device():
    assert AdaptivePolicy(objective="bytes").choose(view(), OPTIONS) is WHOLE
    assert AdaptivePolicy(objective="bytes").choose(view(), [SERVER, SPLIT]) is SPLIT


@pytest.mark.parametrize("objective", ["latency", "energy", "bytes"])
def test_what_would_miss_the_deadline_is_left_out_while_anything_else_is_left(objective):
    policy = AdaptivePolicy(objective=objective)
    # The device needs 0.2 s, the split 0.12 s, the server 0.1 s.
    assert policy.choose(view(deadline_s=0.11), OPTIONS) is SERVER
    assert policy.choose(view(4, deadline_s=0.15), OPTIONS) is SPLIT
    # Nothing is in time: as if there were no deadline.
    assert policy.choose(view(deadline_s=0.01), [WHOLE]) is WHOLE


def test_the_floor_leaves_out_what_is_wrong_too_often():
    policy = AdaptivePolicy(objective="latency_with_accuracy", floor=0.9)
    assert policy.choose(view(4), OPTIONS) is not SPLIT
    assert above_floor([SPLIT], 0.9) == [SPLIT]
    unknown = sending(2, split_point="b", codec="u4", head_s=0, whole_s=0.2, values=0, sizes=[1], correct=[])
    assert unknown not in above_floor([unknown, *OPTIONS], 0.5)
    assert above_floor([unknown], 0.5) == [unknown]


def test_a_fixed_policy_is_deaf():
    policy = FixedPolicy("server_only", SERVER)
    assert policy.choose(view(0.001), OPTIONS) is SERVER
