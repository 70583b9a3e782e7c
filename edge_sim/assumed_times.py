"""Which times of a simulated server nobody measured: all of an assumed one, and those of split points not asked.

Knows scenarios and profiles. Knows no clock and no server.
"""

from __future__ import annotations

from collections.abc import Mapping

from edge_sim.model_profile import ModelProfile
from edge_sim.scenario import Scenario, Switch
from edge_sim.server_profile import ServerProfile


def assumed_times(
    scenario: Scenario, models: Mapping[str, ModelProfile], profiles: Mapping[str, ServerProfile]
) -> list[str]:
    """By model, a line for each. A split point that was not measured takes the times of another one."""
    said = []
    for name, profile in profiles.items():
        if profile.source == "assumed":
            said.append(f"server of {name}: all of its times")
        missing = sorted(_asked(scenario, name, models[name]) - set(profile.batch_s))
        if missing and "*" not in profile.batch_s:
            said.append(f"server of {name}, {', '.join(missing)}: the times of {next(iter(profile.batch_s))}")
    return said


def _asked(scenario: Scenario, name: str, model: ModelProfile) -> set[str]:
    """Split points of a model that the groups' policies may ask its server for."""
    allowed = scenario.models[name].split_points
    asked: set[str] = set()
    policies = [group.policy for group in scenario.groups if group.model == name]
    # Of switches, those that may be to this model: a switch that names none keeps what there was.
    policies += [fault.policy for fault in scenario.faults if isinstance(fault, Switch) and fault.model in (name, None)]
    for policy in policies:
        if policy.kind == "fixed":
            asked.add(policy.split_point)
        elif policy.kind == "server_only":
            asked.add("input")
        elif policy.kind == "adaptive":
            offered = {option.split_point for option in model.options}
            asked |= {each or "input" for each in offered if each is None or allowed is None or each in allowed}
    return asked
