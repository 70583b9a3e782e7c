"""Shards as typed, and what cannot be run in shards.

Knows scenarios and words. Knows no clock and no terminal.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from split_inference.errors import UsageError

if TYPE_CHECKING:
    from edge_sim.fleet import Shard
    from edge_sim.scenario import Scenario


def shard_of(text: str | None) -> Shard | None:
    """As typed, I/N; None for the whole. UsageError for what is no shard."""
    from edge_sim.fleet import Shard

    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise UsageError(f"--shard {text!r}: expected I/N with 0 <= I < N, as in 0/4")
    return Shard(int(match[1]), int(match[2]))


def refuse_what_would_be_shared(scenario: Scenario) -> None:
    """UsageError for a scenario whose shards would each have all of something for a part of the devices: together they
    would look faster than the whole."""
    if shared := sorted({group.cell for group in scenario.groups if group.cell is not None}):
        raise UsageError(
            f"--shard: the devices in cells.{shared[0]} share one link, of which every shard would have a whole one: "
            "run the scenario whole, or give each shard's devices cells of their own"
        )
    if scenario.clock == "virtual" and any(group.policy.kind != "device_only" for group in scenario.groups):
        raise UsageError(
            "--shard: in virtual time every shard would have a whole simulated server for a part of the devices: run "
            "the scenario whole; shards are for a real server (clock: wall)"
        )
