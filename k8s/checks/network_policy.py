"""I. Who may reach whom: NetworkPolicies evaluated for every pair of pods and every port, against a table.

The table lists what has to be allowed; everything else has to be refused, so that a rule that is too wide is a finding
as well. Restates the semantics of networking.k8s.io/v1 for ingress; egress is not limited by the manifests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from k8s.checks.model import Document, Finding, Overlay, name_of
from k8s.checks.pods import pods_of

# What an attacker tries: every port that something of ours, Ray's or Redis' listens on, some of Ray's dynamic ones,
# and two that nobody has.
PORTS = (22, 80, 443, 5557, 6379, 8000, 8080, 8265, 9101, 10001, 30000, 44217, 44227, 52365)
_EVERY_PORT = frozenset(PORTS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """A pod somewhere, or with no namespace, an address outside the cluster."""

    name: str
    namespace: str | None
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    """Named ports of its containers."""


def check_network_policies(overlay: Overlay) -> list[Finding]:
    """Every pair and port that the table allows passes, and no other does."""
    policies = overlay.of_kind("NetworkPolicy")
    inside, outside = peers_of(overlay), strangers(overlay)
    found = []
    for source in [*inside, *outside]:
        for destination in inside:
            wanted = allowed_ports(source, destination, overlay)
            for port in PORTS:
                is_allowed = allows(policies, source, destination, port)
                if is_allowed != (port in wanted):
                    verdict = "is let in" if is_allowed else "is kept out"
                    found.append(Finding(where=f"{source.name} -> {destination.name}:{port}", problem=verdict))
    return found


def peers_of(overlay: Overlay) -> list[Peer]:
    """Our pods, and where the operator or Istio makes a gateway's pod in the namespace, that."""
    namespace = _namespace(overlay)
    found = []
    for pod in pods_of(overlay):
        ports = {
            port["name"]: port["containerPort"]
            for container in pod.containers()
            for port in container.get("ports", [])
            if "name" in port
        }
        found.append(_peer(pod.where, namespace, pod.labels, ports))
    gateways = [name_of(gateway) for gateway in overlay.of_kind("Gateway")]
    gateways += [f"{name_of(service)}-gateway" for service in overlay.of_kind("RayService") if _is_incremental(service)]
    for name in gateways:
        found.append(_peer(f"gateway {name}", namespace, {"gateway.networking.k8s.io/gateway-name": name}, {}))
    return found


def strangers(overlay: Overlay) -> list[Peer]:
    """Everybody else who might call."""
    namespace = _namespace(overlay)
    operator = {"app.kubernetes.io/name": "kuberay-operator"}
    prometheus = {"app.kubernetes.io/name": "prometheus"}
    client = {"split-inference/client": "true"}
    return [
        _peer("the operator", "kuberay-system", operator),
        _peer("another pod beside the operator", "kuberay-system", {"app.kubernetes.io/name": "other"}),
        _peer("a pod that calls itself the operator", "default", operator),
        _peer("Prometheus", "monitoring", prometheus),
        _peer("Grafana", "monitoring", {"app.kubernetes.io/name": "grafana"}),
        _peer("a pod that calls itself Prometheus", "default", prometheus),
        _peer("a client in our namespace", namespace, client),
        _peer("a pod in our namespace", namespace, {"app": "something"}),
        _peer("a client in a namespace of clients", "phones", {}, more={"split-inference/clients": "true"}),
        _peer("a pod that calls itself a client elsewhere", "default", client),
        _peer("a pod that calls itself a Ray node elsewhere", "default", {"ray.io/is-ray-node": "yes"}),
        Peer(name="the world", namespace=None),
    ]


def _peer(
    name: str,
    namespace: str,
    labels: Mapping[str, str],
    ports: Mapping[str, int] | None = None,
    more: Mapping[str, str] | None = None,
) -> Peer:
    namespace_labels = {"kubernetes.io/metadata.name": namespace, **(more or {})}
    return Peer(name=name, namespace=namespace, labels=labels, namespace_labels=namespace_labels, ports=ports or {})


def allowed_ports(source: Peer, destination: Peer, overlay: Overlay) -> frozenset[int]:
    """The table: on which ports of `destination` the source has business."""
    return frozenset(port for ports in _rows(source, destination, overlay) for port in ports)


def _rows(source: Peer, to: Peer, overlay: Overlay) -> Iterator[frozenset[int]]:
    here = source.namespace == _namespace(overlay)
    gateway = here and "gateway.networking.k8s.io/gateway-name" in source.labels
    client = (here and source.labels.get("split-inference/client") == "true") or (
        source.namespace_labels.get("split-inference/clients") == "true"
    )
    monitored = bool(overlay.of_kind("PodMonitor"))
    if _is_ray(to):
        if here and _is_ray(source):
            yield _EVERY_PORT
        if source.name == "the operator" and to.labels["ray.io/node-type"] == "head":
            yield frozenset({8000, 8265})
        if client or gateway:
            yield frozenset({8000})
        if source.name == "Prometheus" and monitored:
            yield frozenset({8080, 9101, 44217, 44227})
    redis = here and to.labels.get("app.kubernetes.io/name") == "redis"
    if redis and source.labels.get("ray.io/node-type") in ("head", "redis-cleanup"):
        yield frozenset({6379})
    master = here and to.labels.get("app.kubernetes.io/component") == "master"
    if master and source.labels.get("app.kubernetes.io/component") == "worker":
        yield frozenset({5557})
    name = to.labels.get("gateway.networking.k8s.io/gateway-name")
    if name is not None and overlay.find("Gateway", name):
        yield frozenset({443})
    elif name is not None and client:
        yield frozenset({80})


def allows(policies: Sequence[Document], source: Peer, destination: Peer, port: int) -> bool:
    """Whether TCP from `source` reaches this port. A pod that no policy chooses takes everything."""
    chosen = [
        policy["spec"]
        for policy in policies
        if policy["metadata"].get("namespace") == destination.namespace
        and "Ingress" in policy["spec"].get("policyTypes", ["Ingress"])
        and selects(policy["spec"].get("podSelector") or {}, destination.labels)
    ]
    if not chosen:
        return True
    return any(
        _from(rule, source, destination) and _port(rule, destination, port)
        for spec in chosen
        for rule in spec.get("ingress") or []
    )


def _from(rule: Document, source: Peer, destination: Peer) -> bool:
    peers = rule.get("from")
    if not peers:
        return True
    for peer in peers:
        if "ipBlock" in peer:
            # Addresses of pods are nobody's to know beforehand: any block may be theirs.
            return True
        if source.namespace is None:
            continue
        if "namespaceSelector" in peer:
            in_namespace = selects(peer["namespaceSelector"] or {}, source.namespace_labels)
        else:
            in_namespace = source.namespace == destination.namespace
        if in_namespace and selects(peer.get("podSelector") or {}, source.labels):
            return True
    return False


def _port(rule: Document, destination: Peer, port: int) -> bool:
    ports = rule.get("ports")
    if not ports:
        return True
    for entry in ports:
        if entry.get("protocol", "TCP") != "TCP":
            continue
        first = entry.get("port")
        first = destination.ports.get(first) if isinstance(first, str) else first
        if "port" not in entry or (first is not None and first <= port <= entry.get("endPort", first)):
            return True
    return False


def selects(selector: Document, labels: Mapping[str, str]) -> bool:
    """A label selector; an empty one chooses everything."""
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_matches(expression, labels) for expression in selector.get("matchExpressions") or [])


def _matches(expression: Document, labels: Mapping[str, str]) -> bool:
    value, values = labels.get(expression["key"]), expression.get("values") or []
    match expression["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case other:
            raise ValueError(f"a label selector has no operator {other}")


def _namespace(overlay: Overlay) -> str:
    return name_of(overlay.of_kind("Namespace")[0]) if overlay.of_kind("Namespace") else "default"


def _is_ray(peer: Peer) -> bool:
    return peer.labels.get("ray.io/is-ray-node") == "yes"


def _is_incremental(service: Document) -> bool:
    return (service["spec"].get("upgradeStrategy") or {}).get("type") == "NewClusterWithIncrementalUpgrade"
