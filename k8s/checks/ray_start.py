"""The `ray start` command that KubeRay writes for a pod, from rayStartParams and what the operator adds."""

from __future__ import annotations

from k8s.checks.model import Document, Overlay, name_of
from k8s.checks.pods import Pod, ray_container
from k8s.checks.quantities import quantity

# Of the operator, for every pod: metrics where monitors look, and the agent that its readiness probe asks.
METRICS_PORT, AGENT_PORT, GCS_PORT = 8080, 52365, 6379


def ray_start_words(pod: Pod, overlay: Overlay) -> list[str]:
    """Words of the command: `ray`, `start`, options. KubeRay 1.7, controllers/ray/common/pod.go."""
    service = overlay.rayservice()
    params: dict[str, str] = dict((pod.ray_group or {}).get("rayStartParams") or {})
    limits: Document = (ray_container(pod).get("resources") or {}).get("limits") or {}
    params.setdefault("metrics-export-port", str(METRICS_PORT))
    params.setdefault("dashboard-agent-listen-port", str(AGENT_PORT))
    params.setdefault("block", "true")
    if pod.is_head:
        if service["spec"]["rayClusterConfig"].get("enableInTreeAutoscaling"):
            # The sidecar is the monitor.
            params.setdefault("no-monitor", "true")
    else:
        params.setdefault("address", f"{name_of(service)}-head-svc:{GCS_PORT}")
    if "cpu" in limits:
        params.setdefault("num-cpus", str(int(-(-quantity(limits["cpu"]) // 1))))
    if "memory" in limits:
        params.setdefault("memory", str(int(quantity(limits["memory"]))))
    for name, amount in limits.items():
        if name.endswith("gpu"):
            params.setdefault("num-gpus", str(int(quantity(amount))))
    options = [f"--{key}" if value.lower() == "true" else f"--{key}={value}" for key, value in params.items()]
    return ["ray", "start", *(["--head"] if pod.is_head else []), *options]
