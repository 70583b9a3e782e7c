"""F. Ray's own autoscaler, asked offline: does every replica find a pod, and does a GPU group stay at zero at rest?

The RayService's cluster goes through the code that the sidecar runs (`ray kuberay-autoscaler`, Ray 2.60): the
conversion of a RayCluster into node types, and the v2 scheduler. Demand is what Serve would ask for: a bundle of
resources for each replica. Knows no cluster: nodes that would be launched are counted, none is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from k8s.checks.model import Document, Finding, Overlay, name_of, title
from k8s.checks.quantities import quantity

Bundle = Mapping[str, float]
"""Resources of one replica, such as {"CPU": 1.0, "GPU": 0.25}."""
HEAD = "headgroup"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What the autoscaler makes of a demand."""

    pods: Mapping[str, int]
    """Workers by group, groups without any included."""
    infeasible: int
    """Replicas that no pod would ever hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """At rest, and with every deployment at its largest."""

    rest: Shape
    full: Shape
    gpus: float
    """That replicas need with every deployment at its largest."""


def check_autoscaler(overlay: Overlay) -> list[Finding]:
    """Everything fits at rest and at the largest, no GPU pod runs at rest, and no more run than are needed."""
    service = overlay.rayservice()
    where = title(service)
    try:
        plan = plan_of(service)
    except (ValueError, KeyError, AssertionError) as error:
        return [Finding(where=where, problem=f"Ray's autoscaler refuses it: {' '.join(str(error).split())[:200]}")]
    found = []
    for what, shape in (("at rest", plan.rest), ("at the largest", plan.full)):
        if shape.infeasible:
            found.append(Finding(where=where, problem=f"{what}, {shape.infeasible} replicas fit no pod"))
    for group in service["spec"]["rayClusterConfig"].get("workerGroupSpecs", []):
        name, devices = group["groupName"], _devices(group)
        if not devices:
            continue
        if plan.rest.pods[name]:
            found.append(Finding(where=where, problem=f"{plan.rest.pods[name]} pods of group {name} run at rest"))
        needed = math.ceil(plan.gpus / devices)
        if plan.full.pods[name] != needed:
            problem = f"group {name} has {plan.full.pods[name]} pods at the largest; {needed} are needed"
            found.append(Finding(where=where, problem=problem))
    if plan.gpus and not any(map(_devices, service["spec"]["rayClusterConfig"].get("workerGroupSpecs", []))):
        found.append(Finding(where=where, problem="replicas need GPUs, and no group has any"))
    return found


def plan_of(service: Document) -> Plan:
    """Ask the autoscaler. Raises ValueError where Ray's code cannot read the cluster."""
    serve = yaml.safe_load(service["spec"]["serveConfigV2"])
    rest, full = demand(serve, largest=False), demand(serve, largest=True)
    return Plan(
        rest=shape_for(service, rest), full=shape_for(service, full), gpus=sum(each.get("GPU", 0.0) for each in full)
    )


def demand(serve: Mapping[str, Any], *, largest: bool) -> list[Bundle]:
    """A bundle for each replica: all that may run, or those that always do."""
    found: list[Bundle] = []
    for application in serve.get("applications", []):
        for deployment in application.get("deployments", []):
            scaling = deployment.get("autoscaling_config")
            count = deployment.get("num_replicas", 1)
            if scaling is not None:
                count = scaling.get("max_replicas", 1) if largest else scaling.get("min_replicas", 1)
            found += [_bundle(deployment.get("ray_actor_options") or {})] * count
    return found


def _bundle(options: Mapping[str, Any]) -> Bundle:
    # Serve asks for one CPU where a deployment says nothing.
    made = {"CPU": float(options.get("num_cpus", 1)), "GPU": float(options.get("num_gpus", 0))}
    made |= {str(name): float(amount) for name, amount in (options.get("resources") or {}).items()}
    if options.get("memory"):
        made["memory"] = float(options["memory"])
    if options.get("accelerator_type"):
        made[f"accelerator_type:{options['accelerator_type']}"] = 0.001
    return {name: amount for name, amount in made.items() if amount}


def shape_for(service: Document, bundles: Sequence[Bundle]) -> Shape:
    """What a fresh cluster with a running head grows to under this demand."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.schema import AutoscalerInstance
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.instance_manager_pb2 import Instance, NodeKind

    metadata = {"name": name_of(service), "namespace": service["metadata"].get("namespace", "default")}
    cluster = {"metadata": metadata, "spec": service["spec"]["rayClusterConfig"]}
    config = AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(cluster), skip_content_hash=True)
    types = config.get_node_type_configs()
    head = Instance(instance_id=HEAD, instance_type=HEAD, status=Instance.ALLOCATED, node_kind=NodeKind.HEAD)
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=types,
            max_num_nodes=config.get_max_num_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count(
                [ResourceRequestUtil.make(dict(bundle)) for bundle in bundles]
            ),
            current_instances=[AutoscalerInstance(cloud_instance_id=HEAD, im_instance=head)],
        )
    )
    launched = Counter({request.instance_type: request.count for request in reply.to_launch})
    return Shape(
        pods={name: launched[name] for name in types if name != HEAD},
        infeasible=len(reply.infeasible_resource_requests),
    )


def _devices(group: Document) -> float:
    limits = (group["template"]["spec"]["containers"][0].get("resources") or {}).get("limits") or {}
    return sum(quantity(amount) for name, amount in limits.items() if name.startswith("nvidia.com/"))
