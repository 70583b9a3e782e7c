"""D. The rules by which KubeRay's operator refuses a RayService, restated: offline there is no operator to ask.

From KubeRay 1.7, controllers/ray/utils/validation.go and the API's own enumerations. A refused RayService is
accepted by the API server and then only an event says why nothing starts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from k8s.checks.model import Document, Finding, Overlay, name_of, title
from k8s.checks.quantities import quantity

# The operator adds suffixes to the name, and the whole has to be a label of DNS, 63 characters.
MAX_NAME = 47
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_UPGRADES = ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")
_RESOURCE_PARAMS = ("num-cpus", "num-gpus", "memory", "resources")
TOKEN_AUTH_SINCE = (2, 52)


def check_operator_rules(overlay: Overlay) -> list[Finding]:
    """What the operator would refuse each RayService for."""
    return [
        Finding(where=title(service), problem=problem)
        for service in overlay.of_kind("RayService")
        for problem in refusals(service)
    ]


def refusals(service: Document) -> Iterator[str]:
    """One line for each rule that is broken."""
    name, spec = name_of(service), service["spec"]
    if len(name) > MAX_NAME:
        yield f"the name has {len(name)} characters; {MAX_NAME} at most"
    if not _DNS_1035.fullmatch(name):
        yield f"the name {name!r} begins with a small letter and has small letters, digits and hyphens"
    yield from _of_upgrades(spec)
    if spec.get("rayClusterDeletionDelaySeconds", 0) < 0:
        yield "rayClusterDeletionDelaySeconds is negative"
    config = spec["rayClusterConfig"]
    if ((config["headGroupSpec"].get("headService") or {}).get("metadata") or {}).get("name"):
        yield "headService.metadata.name must not be set"
    for what, group in _groups(config):
        yield from _of_group(what, group)
    yield from _of_worker_counts(config)
    yield from _of_fault_tolerance(config, (service["metadata"].get("annotations") or {}))
    yield from _of_autoscaling(config)
    yield from _of_auth(config)


def _groups(config: Document) -> Iterator[tuple[str, Document]]:
    yield "the head", config["headGroupSpec"]
    for group in config.get("workerGroupSpecs", []):
        yield f"group {group.get('groupName')}", group


def _of_upgrades(spec: Document) -> Iterator[str]:
    strategy = spec.get("upgradeStrategy") or {}
    kind = strategy.get("type", "NewCluster")
    if kind not in _UPGRADES:
        yield f"upgradeStrategy.type {kind} is none of {', '.join(_UPGRADES)}"
    if kind != "NewClusterWithIncrementalUpgrade":
        return
    if not spec["rayClusterConfig"].get("enableInTreeAutoscaling"):
        yield "an incremental upgrade needs enableInTreeAutoscaling"
    options = strategy.get("clusterUpgradeOptions")
    if not options:
        yield "an incremental upgrade needs clusterUpgradeOptions"
        return
    if not 0 <= options.get("maxSurgePercent", 100) <= 100:
        yield "maxSurgePercent is not within 0..100"
    if not 0 <= options.get("stepSizePercent", -1) <= 100:
        yield "stepSizePercent is not within 0..100"
    if options.get("intervalSeconds", 0) <= 0:
        yield "intervalSeconds is not above 0"
    if not options.get("gatewayClassName"):
        yield "gatewayClassName is missing"


def _of_group(what: str, group: Document) -> Iterator[str]:
    params, containers = group.get("rayStartParams") or {}, group["template"]["spec"].get("containers") or []
    if not containers:
        yield f"{what} has no container"
        return
    if group.get("resources") and any(params.get(key) for key in _RESOURCE_PARAMS):
        yield f"{what} sets resources both in rayStartParams and in resources"
    if "labels" in params:
        yield f"{what} has labels in rayStartParams; they belong into labels of the group"
    for key, value in params.items():
        if not isinstance(value, str):
            yield f"{what}: rayStartParams.{key} is {value!r}; text is needed"
        if key.startswith("-"):
            yield f"{what}: rayStartParams.{key} has hyphens in front, which the operator adds"
    requests = (containers[0].get("resources") or {}).get("requests") or {}
    store = params.get("object-store-memory")
    if store and "memory" in requests and quantity(store) > quantity(requests["memory"]):
        yield f"{what}: object-store-memory {store} is more than the memory that is requested"


def _of_worker_counts(config: Document) -> Iterator[str]:
    names = [group.get("groupName") for group in config.get("workerGroupSpecs", [])]
    for name in {each for each in names if names.count(each) > 1}:
        yield f"{names.count(name)} groups are called {name}"
    for group in config.get("workerGroupSpecs", []):
        low, high = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
        now = group.get("replicas", low)
        if not 0 <= low <= now <= high:
            yield f"group {group.get('groupName')}: minReplicas {low} <= replicas {now} <= maxReplicas {high} is not so"
        if group.get("suspend") and config.get("enableInTreeAutoscaling"):
            yield f"group {group.get('groupName')} is suspended, which excludes autoscaling"


def _of_fault_tolerance(config: Document, annotations: Document) -> Iterator[str]:
    head = config["headGroupSpec"]
    params, names = head.get("rayStartParams") or {}, _variables(head)
    if "redis-username" in params or "REDIS_USERNAME" in names:
        yield "the name of Redis' user belongs into gcsFaultToleranceOptions.redisUsername"
    if not config.get("gcsFaultToleranceOptions"):
        if "RAY_REDIS_ADDRESS" in names:
            yield "RAY_REDIS_ADDRESS without gcsFaultToleranceOptions"
        return
    if annotations.get("ray.io/ft-enabled"):
        yield "gcsFaultToleranceOptions and the annotation ray.io/ft-enabled exclude each other"
    if annotations.get("ray.io/external-storage-namespace"):
        yield "the annotation ray.io/external-storage-namespace belongs into gcsFaultToleranceOptions"
    for name in ("REDIS_PASSWORD", "RAY_REDIS_ADDRESS"):
        if name in names:
            yield f"{name} in the head's env; it belongs into gcsFaultToleranceOptions"
    if "redis-password" in params:
        yield "redis-password in rayStartParams; it belongs into gcsFaultToleranceOptions"


def _of_autoscaling(config: Document) -> Iterator[str]:
    names = _variables(config["headGroupSpec"])
    if not config.get("enableInTreeAutoscaling"):
        if "RAY_enable_autoscaler_v2" in names:
            yield "RAY_enable_autoscaler_v2 without enableInTreeAutoscaling"
        return
    options = config.get("autoscalerOptions") or {}
    if "version" in options and "RAY_enable_autoscaler_v2" in names:
        yield "autoscalerOptions.version and RAY_enable_autoscaler_v2 exclude each other"
    for what, group in _groups(config):
        policy = group["template"]["spec"].get("restartPolicy")
        if options.get("version") == "v2" and policy not in (None, "Never"):
            yield f"restartPolicy of {what} is {policy}; autoscaler v2 needs Never"
        if group.get("idleTimeoutSeconds") is not None and options.get("version") != "v2":
            yield f"idleTimeoutSeconds of {what} needs autoscaler v2"


def _of_auth(config: Document) -> Iterator[str]:
    auth = config.get("authOptions") or {}
    if auth.get("mode") != "token":
        return
    version = re.match(r"(\d+)\.(\d+)", str(config.get("rayVersion", "")))
    if version is None:
        yield "authOptions.mode is token and rayVersion says no version"
    elif (int(version[1]), int(version[2])) < TOKEN_AUTH_SINCE:
        yield f"authOptions.mode is token, which Ray {config['rayVersion']} does not have"


def _variables(group: Document) -> set[str]:
    containers = group["template"]["spec"].get("containers") or [{}]
    return {entry.get("name", "") for entry in containers[0].get("env") or []}
