"""The pods that an overlay's documents become, with what KubeRay's operator adds to a RayService's templates.

Admission and scheduling see pods, not templates: the autoscaler's sidecar, the workers' init container and the Job that
empties Redis are in no manifest, and have to pass as well. Restates KubeRay 1.7 (controllers/ray/common/pod.go).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from k8s.checks.model import Document, Overlay, name_of, title

# Of the operator, where autoscalerOptions.resources says nothing.
_SIDECAR_RESOURCES = {"requests": {"cpu": "500m", "memory": "512Mi"}, "limits": {"cpu": "500m", "memory": "512Mi"}}
_INIT_RESOURCES = {"requests": {"cpu": "200m", "memory": "256Mi"}, "limits": {"cpu": "200m", "memory": "256Mi"}}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pod:
    """One pod, or any of many that are alike."""

    where: str
    labels: dict[str, str]
    spec: Document
    annotations: dict[str, str] = field(default_factory=dict)
    ray_group: Document | None = None
    """Of a Ray pod: the head's or the worker group's spec."""
    claims: tuple[str, ...] = ()
    """Volumes that a StatefulSet makes for it."""

    @property
    def is_head(self) -> bool:
        """Whether it is the head of the Ray cluster."""
        return self.labels.get("ray.io/node-type") == "head"

    @property
    def is_worker(self) -> bool:
        """Whether it is one of the workers."""
        return self.labels.get("ray.io/node-type") == "worker"

    def containers(self) -> list[Document]:
        """Init containers first."""
        return [*self.spec.get("initContainers", []), *self.spec.get("containers", [])]

    def manifest(self) -> Document:
        """As the API server would get it."""
        metadata = {"name": "checked", "labels": dict(self.labels)}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": copy.deepcopy(self.spec)}


def pods_of(overlay: Overlay) -> list[Pod]:
    """Every pod of an overlay; those of Ray last."""
    found = []
    for kind in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
        for document in overlay.of_kind(kind):
            template = document["spec"]["template"]
            claims = tuple(name_of(claim) for claim in document["spec"].get("volumeClaimTemplates", []))
            found.append(_pod(title(document), template, claims=claims))
    for document in overlay.of_kind("RayService"):
        found += _ray_pods(document)
    return found


def ray_pods(overlay: Overlay) -> list[Pod]:
    """Head and one worker of each group."""
    return [pod for pod in pods_of(overlay) if pod.is_head or pod.is_worker]


def ray_container(pod: Pod) -> Document:
    """The container that runs Ray: the first one."""
    container: Document = pod.spec["containers"][0]
    return container


def _pod(where: str, template: Document, *, claims: tuple[str, ...] = ()) -> Pod:
    metadata = template.get("metadata") or {}
    return Pod(
        where=where,
        labels=dict(metadata.get("labels") or {}),
        annotations=dict(metadata.get("annotations") or {}),
        spec=copy.deepcopy(template["spec"]),
        claims=claims,
    )


def _ray_pods(service: Document) -> Iterator[Pod]:
    config = service["spec"]["rayClusterConfig"]
    head = config["headGroupSpec"]
    yield _ray_pod(service, head, "head", "headgroup", _with_sidecar(head["template"]["spec"], config))
    if config.get("gcsFaultToleranceOptions"):
        # Empties Redis when a cluster is deleted; made of the head's template.
        spec = copy.deepcopy(head["template"]["spec"])
        spec["containers"] = spec["containers"][:1]
        spec["restartPolicy"] = "Never"
        yield _ray_pod(service, head, "redis-cleanup", "headgroup", spec)
    for group in config.get("workerGroupSpecs", []):
        yield _ray_pod(service, group, "worker", group["groupName"], _with_wait(group["template"]["spec"]))


def _ray_pod(service: Document, group: Document, node_type: str, group_name: str, spec: Document) -> Pod:
    made = _pod(f"{title(service)} {node_type} ({group_name})", group["template"])
    labels = {
        "ray.io/cluster": f"{name_of(service)}-xxxxx",
        "ray.io/group": group_name,
        "ray.io/is-ray-node": "yes",
        "ray.io/node-type": node_type,
        "ray.io/serve": "true" if node_type == "worker" else "false",
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
    }
    return Pod(
        where=made.where,
        labels={**made.labels, **labels},
        annotations=made.annotations,
        spec=spec,
        ray_group=group if node_type != "redis-cleanup" else None,
    )


def _with_sidecar(template_spec: Document, config: Document) -> Document:
    spec = copy.deepcopy(template_spec)
    if not config.get("enableInTreeAutoscaling"):
        return spec
    options: dict[str, Any] = config.get("autoscalerOptions") or {}
    ray = spec["containers"][0]
    sidecar = {
        "name": "autoscaler",
        "image": options.get("image", ray["image"]),
        "command": ["/bin/bash", "-c", "--"],
        "args": ["ray kuberay-autoscaler --cluster-name $(RAY_CLUSTER_NAME) --cluster-namespace default"],
        "resources": options.get("resources", _SIDECAR_RESOURCES),
        "env": list(options.get("env", [])),
        "envFrom": list(options.get("envFrom", [])),
        "volumeMounts": list(options.get("volumeMounts", [])),
    }
    if "imagePullPolicy" in options:
        sidecar["imagePullPolicy"] = options["imagePullPolicy"]
    if "securityContext" in options:
        sidecar["securityContext"] = options["securityContext"]
    # The sidecar's log is read by the head.
    spec.setdefault("volumes", []).append({"name": "ray-logs", "emptyDir": {}})
    for container in (ray, sidecar):
        container.setdefault("volumeMounts", []).append({"name": "ray-logs", "mountPath": "/tmp/ray"})
    spec["containers"].append(copy.deepcopy(sidecar))
    if options.get("version") == "v2":
        spec.setdefault("restartPolicy", "Never")
    return spec


def _with_wait(template_spec: Document) -> Document:
    spec = copy.deepcopy(template_spec)
    ray = spec["containers"][0]
    wait = {
        "name": "wait-gcs-ready",
        "image": ray["image"],
        "command": ["/bin/bash", "-c", "--"],
        "args": ["until ray health-check --address split-inference-head-svc:6379 > /dev/null 2>&1; do sleep 5; done"],
        "resources": _INIT_RESOURCES,
    }
    for key in ("imagePullPolicy", "securityContext", "env", "envFrom", "volumeMounts"):
        if key in ray:
            wait[key] = copy.deepcopy(ray[key])
    spec["initContainers"] = [wait, *spec.get("initContainers", [])]
    return spec
