"""Which way a request is answered: always the same one, or the best one by what the device knows just now.

Knows options, estimates and objectives. Knows no clock, no link and no server: what is known of them is in a `View`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from edge_sim.plan import DEVICE_ONLY, PlanOption, cheapest

Objective = Literal["latency", "energy", "bytes", "latency_with_accuracy"]


@dataclass(slots=True)
class View:
    """What a device knows when a request begins. One object per device, refreshed for each request."""

    wait_s: float = 0.0
    """Until its processor is free."""
    deadline_s: float = math.inf
    """Until the answer is too late."""
    slowdown: float = 1.0
    """Seconds that a second at full speed takes now; above 1 while it is throttled."""
    up_bytes_per_s: float = 1.0
    """By what it measured, or by its profile as long as it measured nothing."""
    up_queue_s: float = 0.0
    """Until what it is sending already has left."""
    delay_s: float = 0.0
    """Of a packet there and back, without transmission."""
    down_s: float = 0.0
    """Transmission of a reply."""
    server_wait_s: float = 0.0
    """That the server reports."""
    service_s: float = 0.0
    """Of a request on the server once its turn has come."""
    send_bias_s: float = 0.0
    """By which asking the server took longer than all this lately."""
    battery_share: float = 1.0
    compute_w: float = 1.0
    """Power while it computes."""
    radio_w: float = 1.0
    """Power while it sends."""
    tail_j: float = 0.0
    """Of the radio's tail, that a transfer now would add."""
    idle_w: float = 0.0


class Policy(Protocol):
    """Chooses among a device's options."""

    name: str

    def choose(self, view: View, options: Sequence[PlanOption]) -> PlanOption: ...


class FixedPolicy:
    """Always the one that it was made with; also server-only and device-only."""

    def __init__(self, name: str, option: PlanOption) -> None:
        self.name = name
        self.option = option

    def choose(self, view: View, options: Sequence[PlanOption]) -> PlanOption:
        return self.option


class AdaptivePolicy:
    """The option with the least estimated cost, with hysteresis.

    It changes its mind only for what is better by `margin` (a share of the cost) than what it did last, so that noise
    in the estimates is not followed. With `floor`, options that are known to be right less often are left out; where
    none is left, the most accurate one is taken. Of these, those that would miss the deadline are left out as long as
    any is in time.
    """

    name = "adaptive"

    def __init__(self, *, objective: Objective, margin: float = 0.1, floor: float | None = None) -> None:
        self._cost: Callable[[View, PlanOption], float] = {
            "latency": latency_s,
            "latency_with_accuracy": latency_s,
            "energy": energy_j,
            "bytes": _bytes,
        }[objective]
        self._margin = margin
        self._floor = floor
        self._last: PlanOption | None = None

    def choose(self, view: View, options: Sequence[PlanOption]) -> PlanOption:
        allowed = options if self._floor is None else above_floor(options, self._floor)
        # However little it costs, it would be given up.
        allowed = [option for option in allowed if latency_s(view, option) <= view.deadline_s] or allowed
        cost = self._cost
        best, least = cheapest(allowed, lambda option: cost(view, option))
        last = self._last
        if last is not None and last is not best and last in allowed and cost(view, last) <= least / (1 - self._margin):
            return last
        self._last = best
        return best


def above_floor(options: Sequence[PlanOption], floor: float) -> Sequence[PlanOption]:
    """Those that are right at least so often, or the most accurate one; unknown accuracy is none."""
    known = [option for option in options if option.accuracy is not None]
    enough = [option for option in known if option.accuracy is not None and option.accuracy >= floor]
    return enough or (known[:1] and [max(known, key=lambda option: option.accuracy or 0.0)]) or list(options)


def latency_s(view: View, option: PlanOption) -> float:
    """From the request to its answer."""
    compute_s = view.wait_s + option.head_s * view.slowdown
    if option.mode == DEVICE_ONLY:
        return compute_s
    # What is being sent goes on leaving while the head runs.
    queue_s = max(0.0, view.up_queue_s - compute_s)
    return (
        compute_s
        + queue_s
        + option.mean_bytes / view.up_bytes_per_s
        + view.delay_s
        + view.server_wait_s
        + view.service_s
        + view.down_s
        + view.send_bias_s
    )


def energy_j(view: View, option: PlanOption) -> float:
    """Of the device, for one request: compute, sending, waiting."""
    compute_s = option.head_s * view.slowdown
    if option.mode == DEVICE_ONLY:
        return compute_s * view.compute_w
    send_s = option.mean_bytes / view.up_bytes_per_s
    waiting_s = latency_s(view, option) - compute_s - send_s
    return compute_s * view.compute_w + send_s * view.radio_w + max(0.0, waiting_s) * view.idle_w + view.tail_j


def _bytes(view: View, option: PlanOption) -> float:
    # Among options that send equally much, the sooner one.
    return option.mean_bytes + 1e-3 * latency_s(view, option)
