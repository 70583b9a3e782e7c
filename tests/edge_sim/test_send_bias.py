"""What asking took longer than expected: a mean that follows, forgets, and never says that asking is a bargain."""

from __future__ import annotations

import pytest

from edge_sim.policy import View, latency_s
from edge_sim.send_bias import SendBias
from tests.edge_sim.test_policy import SPLIT, WHOLE


def test_nothing_is_added_before_anything_is_known():
    assert SendBias().seconds(100.0) == 0.0


def test_a_constant_error_is_learnt_and_then_stays():
    bias = SendBias(half_life_s=1e9)
    for n in range(40):
        bias.learn(now_s=float(n), expected_s=0.1, took_s=0.3)
    assert bias.seconds(40.0) == pytest.approx(0.2, rel=1e-3)


def test_half_is_forgotten_after_the_half_life():
    bias = SendBias(half_life_s=10.0)
    bias.learn(now_s=5.0, expected_s=0.1, took_s=1.1)
    at_once = bias.seconds(5.0)
    assert at_once == pytest.approx(0.25)
    assert bias.seconds(15.0) == pytest.approx(at_once / 2)
    assert bias.seconds(25.0) == pytest.approx(at_once / 4)


def test_good_luck_is_no_reason_to_ask_but_makes_up_for_bad_luck():
    bias = SendBias(half_life_s=1e9)
    bias.learn(now_s=0.0, expected_s=1.0, took_s=0.0)
    assert bias.seconds(0.0) == 0.0
    bias.learn(now_s=0.0, expected_s=0.0, took_s=0.5)
    assert bias.seconds(0.0) == 0.0


def test_only_what_is_sent_is_expected_to_take_longer():
    calm, burnt = View(), View(send_bias_s=0.5)
    assert latency_s(burnt, WHOLE) == latency_s(calm, WHOLE)
    assert latency_s(burnt, SPLIT) == pytest.approx(latency_s(calm, SPLIT) + 0.5)


def test_a_half_life_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="half_life_s"):
        SendBias(half_life_s=0.0)
