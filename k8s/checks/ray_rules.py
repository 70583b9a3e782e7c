"""D. What neither a schema nor the operator refuses, and what fails on the day: traps of Ray on Kubernetes, one by one.

The reason stands beside each rule. Flags are those of `make serve` (serve_app/serve.py), in every pod of Ray the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

import yaml

from k8s.checks.model import Document, Finding, Overlay, title
from k8s.checks.pods import Pod, ray_container, ray_pods
from k8s.checks.quantities import quantity
from scripts.make_serve_config import flags, haproxy_flags

DRAIN = ["python", "-m", "serve_app.drain_node"]
_HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
# What the head's pod has to name as soon as it names any port (KubeRay adds only `metrics`).
HEAD_PORTS = {"serve": 8000, "metrics": 8080, "as-metrics": 44217, "dash-metrics": 44227}
WORKER_PORTS = {"serve": 8000, "metrics": 8080}
HAPROXY_PORTS = {"haproxy-metrics": 9101}


def check_flags(overlay: Overlay) -> list[Finding]:
    """Head and every group have all flags of `make serve`, with its values, and no two pods differ."""
    found = []
    expected = flags()
    environments = {pod.where: environment(ray_container(pod), overlay) for pod in ray_pods(overlay)}
    if any(_HAPROXY in each for each in environments.values()):
        expected |= haproxy_flags()
    for where, has in environments.items():
        for name, value in expected.items():
            if has.get(name) != value:
                found.append(Finding(where=where, problem=f"{name} is {has.get(name)!r}; make serve has {value!r}"))
        for name in sorted(has):
            if name.startswith("RAY_") and name not in expected:
                found.append(Finding(where=where, problem=f"{name} is no flag of make serve (serve_app/serve.py)"))
    return found


def environment(container: Document, overlay: Overlay) -> dict[str, str]:
    """Its variables with literal values: those of ConfigMaps first, its own after them, as Kubernetes has it."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        config_map = overlay.find("ConfigMap", (source.get("configMapRef") or {}).get("name", ""))
        prefix = source.get("prefix", "")
        found |= {prefix + name: value for name, value in ((config_map or {}).get("data") or {}).items()}
    found |= {entry["name"]: entry["value"] for entry in container.get("env", []) if "value" in entry}
    return found


def check_ray_rules(overlay: Overlay) -> list[Finding]:
    """All traps."""
    service = overlay.rayservice()
    found = [Finding(where=title(service), problem=each) for each in _of_service(service)]
    for pod in ray_pods(overlay):
        haproxy = _HAPROXY in environment(ray_container(pod), overlay)
        problems = [*_of_pod(pod, haproxy=haproxy), *(_of_head(pod) if pod.is_head else _of_worker(pod))]
        found += [Finding(where=pod.where, problem=each) for each in problems]
    for budget in overlay.of_kind("PodDisruptionBudget"):
        found += [Finding(where=title(budget), problem=each) for each in _of_budget(budget)]
    for job in overlay.of_kind("Job"):
        found += [Finding(where=title(job), problem=each) for each in _of_job(job)]
    return found


def _of_service(service: Document) -> Iterator[str]:
    spec = service["spec"]
    config = spec["rayClusterConfig"]
    options = config.get("autoscalerOptions") or {}
    serve = yaml.safe_load(spec.get("serveConfigV2") or "") or {}
    if config.get("enableInTreeAutoscaling") and options.get("version") != "v2":
        yield "autoscalerOptions.version is not v2; the default depends on the operator's version"
    if config.get("authOptions", {}).get("mode") != "token":
        yield "authOptions.mode is not token: whoever reaches Ray's ports runs code"
    if not config.get("gcsFaultToleranceOptions"):
        yield "no gcsFaultToleranceOptions: a head that restarts forgets its cluster, and every worker with it"
    if serve.get("proxy_location", "EveryNode") != "EveryNode":
        yield "proxy_location is not EveryNode: readiness of workers asks their own proxy, and none would be ready"
    if (serve.get("http_options") or {}).get("host") != "0.0.0.0":
        yield "http_options.host is not 0.0.0.0: no Service reaches what listens on the pod's own loopback"
    if spec.get("excludeHeadPodFromServeSvc") and not _somebody_is_up(serve):
        yield "every deployment may have 0 replicas and the head is excluded: nobody is there to wake them"
    resources = options.get("resources") or {}
    for kind, least in (("cpu", 0.2), ("memory", 2.0**30)):
        if quantity((resources.get("requests") or {}).get(kind, 0)) < least:
            yield f"the autoscaler's sidecar requests less {kind} than it needs"
    for application in serve.get("applications", []):
        auth = (application.get("args") or {}).get("auth") or {}
        if auth.get("mode") != "token":
            yield f"application {application.get('name')} asks nobody for a token"


def _somebody_is_up(serve: Document) -> bool:
    return any(
        (deployment.get("autoscaling_config") or {}).get("min_replicas", deployment.get("num_replicas", 1)) > 0
        for application in serve.get("applications", [])
        for deployment in application.get("deployments", [])
    )


def _of_pod(pod: Pod, *, haproxy: bool) -> Iterator[str]:
    container = ray_container(pod)
    ports = {port.get("name"): port.get("containerPort") for port in container.get("ports", [])}
    wanted = {**(HEAD_PORTS if pod.is_head else WORKER_PORTS), **(HAPROXY_PORTS if haproxy else {})}
    for name, number in wanted.items():
        if ports.get(name) != number:
            yield f"port {name} is {ports.get(name)}; {number} is what listens, and what monitors look for"
    if (container.get("securityContext") or {}).get("readOnlyRootFilesystem"):
        mounts = {mount["mountPath"] for mount in container.get("volumeMounts", []) if not mount.get("readOnly")}
        home = {entry["name"]: entry.get("value") for entry in container.get("env", [])}.get("HOME", "/")
        for path in ("/tmp", "/dev/shm", home):
            if not any(PurePosixPath(path).is_relative_to(mount) for mount in mounts):
                yield f"the root is read-only and {path} is on no volume that can be written"
    else:
        yield "readOnlyRootFilesystem is not true"
    volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
    shared = next((m["name"] for m in container.get("volumeMounts", []) if m["mountPath"] == "/dev/shm"), None)
    shm = (volumes.get(shared or "") or {}).get("emptyDir") or {}
    store = (pod.ray_group or {}).get("rayStartParams", {}).get("object-store-memory")
    if store is None:
        yield "no object-store-memory: Ray takes a share of the node's memory, not of the pod's"
    elif "sizeLimit" in shm and quantity(store) > quantity(shm["sizeLimit"]):
        yield f"object-store-memory {store} does not fit into /dev/shm, {shm['sizeLimit']}"
    resources = container.get("resources") or {}
    if (resources.get("requests") or {}).get("memory") != (resources.get("limits") or {}).get("memory"):
        yield "memory that is requested and its limit differ: the node may have less than the limit"
    if "memory" not in (resources.get("limits") or {}):
        yield "no limit of memory"
    if pod.spec.get("terminationGracePeriodSeconds", 30) < 120:
        yield "terminationGracePeriodSeconds is below 120: replicas are killed while they answer"


def _of_head(pod: Pod) -> Iterator[str]:
    params = (pod.ray_group or {}).get("rayStartParams") or {}
    for key in ("num-cpus", "num-gpus"):
        if params.get(key) != "0":
            yield f'rayStartParams.{key} is {params.get(key)!r}, not "0": replicas on the node that must not die'


def _of_worker(pod: Pod) -> Iterator[str]:
    params, container = (pod.ray_group or {}).get("rayStartParams") or {}, ray_container(pod)
    resources = container.get("resources") or {}
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    command = (((container.get("lifecycle") or {}).get("preStop") or {}).get("exec") or {}).get("command", [])
    if command[:3] != DRAIN:
        yield "no preStop that drains the node: Ray takes a pod that ends for a node that failed"
    elif _deadline(command) >= pod.spec.get("terminationGracePeriodSeconds", 30):
        yield "the drain's deadline is not below terminationGracePeriodSeconds"
    if quantity(params.get("num-cpus", 0)) > quantity(requests.get("cpu", 0)):
        yield f"num-cpus {params.get('num-cpus')} is more than the {requests.get('cpu')} cores that are requested"
    devices = {key: value for key, value in limits.items() if key.startswith("nvidia.com/")}
    if devices and params.get("num-gpus") is None:
        yield "no num-gpus in rayStartParams: for other names than gpu the autoscaler would see none, and start none"
    if quantity(params.get("num-gpus", 0)) > sum(map(quantity, devices.values())):
        yield f"num-gpus {params.get('num-gpus')} and no device of that number in limits"
    if devices != {key: value for key, value in requests.items() if key.startswith("nvidia.com/")}:
        yield "GPUs that are requested and their limit differ"
    if devices and not pod.spec.get("tolerations"):
        yield "no toleration: GPU nodes are tainted"
    if devices and not pod.spec.get("nodeSelector"):
        yield "no nodeSelector: a node without GPUs would be asked for one"
    if not devices and not pod.spec.get("topologySpreadConstraints"):
        yield "no topologySpreadConstraints: one node that fails may take every replica"


def _deadline(command: list[str]) -> float:
    return float(command[command.index("--deadline") + 1]) if "--deadline" in command else 90.0


def _of_budget(budget: Document) -> Iterator[str]:
    spec = budget["spec"]
    if not isinstance(spec.get("minAvailable"), int):
        yield "minAvailable is no integer; RayCluster has no scale subresource to take a share of"
    if spec.get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
        yield "unhealthyPodEvictionPolicy is not AlwaysAllow: a worker without a replica is NotReady and stops drains"
    if (spec.get("selector", {}).get("matchLabels") or {}).get("ray.io/node-type") == "head":
        yield "a budget for the head stops every drain of its node"


def _of_job(job: Document) -> Iterator[str]:
    spec = job["spec"]
    if "activeDeadlineSeconds" not in spec:
        yield "no activeDeadlineSeconds: a Job that hangs hangs for ever"
    if "ttlSecondsAfterFinished" not in spec:
        yield "no ttlSecondsAfterFinished: finished pods stay"
    if spec["template"]["spec"].get("restartPolicy") != "Never":
        yield "restartPolicy is not Never: a run would begin again in the same pod"
    if spec.get("completionMode") == "Indexed" and spec.get("completions") != spec.get("parallelism"):
        yield "completions and parallelism differ: shards of one fleet run at different times"
