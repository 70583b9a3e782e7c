"""H. Every name that a manifest says is the name of something: objects, keys, ports, selectors, files, variables.

A name that resolves to nothing is accepted by every API server: pods wait for ever, monitors scrape nothing, policies
choose nobody. What the operators make (Services of a RayService, a Gateway's Service) is known by their rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from k8s.checks.model import Document, Finding, Overlay, leaves, name_of, title
from k8s.checks.network_policy import Peer, peers_of, selects
from k8s.checks.pods import Pod, pods_of, ray_pods
from k8s.checks.render import ROOT
from k8s.checks.secrets import split_image

_CLUSTER_WIDE = frozenset({"Namespace", "ClusterRole", "ClusterRoleBinding", "GatewayClass", "PersistentVolume"})
_URL = re.compile(r"https?://([a-z][a-z0-9-]*)(?:\.[a-z0-9.-]*)?(?::(\d+))?(?=/|$)")
_VARIABLE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")
# Set by the Job's controller.
_OF_JOBS = frozenset({"JOB_COMPLETION_INDEX"})


def expected_secrets(root: Path = ROOT) -> dict[str, set[str]]:
    """Names and keys of the Secrets that are made by hand (k8s/base/secrets.example.yaml)."""
    text = (root / "k8s" / "base" / "secrets.example.yaml").read_text(encoding="utf-8")
    return {name_of(each): set(each.get("stringData") or {}) for each in yaml.safe_load_all(text) if each}


def check_references(overlay: Overlay) -> list[Finding]:
    """All of them."""
    return _References(overlay).findings()


class _References:
    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self._pods = pods_of(overlay)
        self._peers = peers_of(overlay)
        self._config_maps = {name_of(each): set(each.get("data") or {}) for each in overlay.of_kind("ConfigMap")}
        self._secrets = expected_secrets()
        self._services = dict(self._all_services())

    def findings(self) -> list[Finding]:
        found = [*self._names()]
        for pod in self._pods:
            found += [Finding(where=pod.where, problem=each) for each in self._of_pod(pod)]
        by_kind = {
            "Service": self._of_service,
            "StatefulSet": self._of_stateful_set,
            "NetworkPolicy": self._of_policy,
            "PodDisruptionBudget": self._of_budget,
            "PodMonitor": self._of_monitor,
            "HTTPRoute": self._of_route,
            "Gateway": self._of_gateway,
            "RayService": self._of_rayservice,
            "ConfigMap": self._of_config_map,
        }
        for document in self._overlay.documents:
            check = by_kind.get(str(document.get("kind")))
            found += [Finding(where=title(document), problem=each) for each in (check(document) if check else ())]
        return list(dict.fromkeys(found))

    def _names(self) -> Iterator[Finding]:
        namespaces = {name_of(each) for each in self._overlay.of_kind("Namespace")}
        seen = set()
        for document in self._overlay.documents:
            where = title(document)
            if where in seen:
                yield Finding(where=where, problem="is there twice")
            seen.add(where)
            namespace = document["metadata"].get("namespace")
            if document["kind"] not in _CLUSTER_WIDE and namespace not in namespaces:
                yield Finding(where=where, problem=f"is in the namespace {namespace or 'default'}, which is not ours")

    def _all_services(self) -> Iterator[tuple[str, set[int]]]:
        for service in self._overlay.of_kind("Service"):
            yield name_of(service), {port["port"] for port in service["spec"].get("ports", [])}
        for service in self._overlay.of_kind("RayService"):
            head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
            ports = {port["containerPort"] for port in head.get("ports", [])}
            yield f"{name_of(service)}-head-svc", ports
            if _upgrade(service) == "NewClusterWithIncrementalUpgrade":
                # `<name>-serve-svc` does not exist then; Istio names a gateway's Service after it and its class.
                yield f"{name_of(service)}-gateway-istio", {80}
            else:
                yield f"{name_of(service)}-serve-svc", {8000}
        for gateway in self._overlay.of_kind("Gateway"):
            ports = {listener["port"] for listener in gateway["spec"].get("listeners", [])}
            yield f"{name_of(gateway)}-istio", ports

    def _of_pod(self, pod: Pod) -> Iterator[str]:
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        mounted = {mount["name"] for container in pod.containers() for mount in container.get("volumeMounts", [])}
        for name in mounted - volumes.keys() - set(pod.claims):
            yield f"a mount names the volume {name}, which is not there"
        for name in volumes.keys() - mounted:
            yield f"no container mounts the volume {name}"
        for volume in volumes.values():
            yield from self._of_volume(volume)
        for container in pod.containers():
            yield from (f"container {container['name']}: {each}" for each in self._of_container(container, volumes))
        for constraint in pod.spec.get("topologySpreadConstraints", []):
            if not selects(constraint.get("labelSelector") or {}, pod.labels):
                yield f"topologySpreadConstraints over {constraint.get('topologyKey')} do not choose the pod itself"

    def _of_volume(self, volume: Document) -> Iterator[str]:
        if "configMap" in volume:
            source = volume["configMap"]
            keys = [item["key"] for item in source.get("items", [])]
            yield from self._config_map(source["name"], keys)
        if "secret" in volume:
            source = volume["secret"]
            keys = [item["key"] for item in source.get("items", [])]
            if not source.get("optional"):
                yield from self._secret(source["secretName"], keys)
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]["claimName"]
            if self._overlay.find("PersistentVolumeClaim", claim) is None:
                yield f"there is no PersistentVolumeClaim {claim}"

    def _of_container(self, container: Document, volumes: Mapping[str, Document]) -> Iterator[str]:
        variables = set(_OF_JOBS)
        for source in container.get("envFrom", []):
            if "configMapRef" in source:
                name = source["configMapRef"]["name"]
                variables |= self._config_maps.get(name, set())
                yield from self._config_map(name, [])
            if "secretRef" in source:
                yield from self._secret(source["secretRef"]["name"], [])
        for entry in container.get("env", []):
            variables.add(entry["name"])
            origin = entry.get("valueFrom") or {}
            if "configMapKeyRef" in origin:
                yield from self._config_map(origin["configMapKeyRef"]["name"], [origin["configMapKeyRef"]["key"]])
            if "secretKeyRef" in origin:
                yield from self._secret(origin["secretKeyRef"]["name"], [origin["secretKeyRef"]["key"]])
        words = [*container.get("command", []), *container.get("args", [])]
        if container["name"] != "autoscaler":
            for name in {name for word in words for name in _VARIABLE.findall(word)} - variables:
                yield f"$({name}) is no variable of it"
        for word in words:
            yield from self._file(word, container, volumes)
        ports = {port.get("name") for port in container.get("ports", [])}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            for how in ("httpGet", "tcpSocket"):
                port = ((container.get(probe) or {}).get(how) or {}).get("port")
                if isinstance(port, str) and port not in ports:
                    yield f"{probe} asks the port {port}, which is not there"

    def _file(self, word: str, container: Document, volumes: Mapping[str, Document]) -> Iterator[str]:
        """A path below a mounted ConfigMap or Secret is one of its keys; our folder in an image is made there."""
        for mount in container.get("volumeMounts", []):
            if word.startswith(f"{mount['mountPath']}/"):
                volume, key = volumes.get(mount["name"]) or {}, word.removeprefix(f"{mount['mountPath']}/")
                if "configMap" in volume and not volume["configMap"].get("items"):
                    yield from self._config_map(volume["configMap"]["name"], [key])
                if "secret" in volume and not volume["secret"].get("items"):
                    yield from self._secret(volume["secret"]["secretName"], [key])
        if word.startswith("/opt/split-inference/") and word not in _dockerfile(container["image"]):
            yield f"no Dockerfile makes {word}"

    def _config_map(self, name: str, keys: list[str]) -> Iterator[str]:
        if name not in self._config_maps:
            yield f"there is no ConfigMap {name}"
            return
        for key in keys:
            if key not in self._config_maps[name]:
                yield f"the ConfigMap {name} has no {key}"

    def _secret(self, name: str, keys: list[str]) -> Iterator[str]:
        if name not in self._secrets:
            yield f"base/secrets.example.yaml has no Secret {name}"
            return
        for key in keys:
            if key not in self._secrets[name]:
                yield f"base/secrets.example.yaml: the Secret {name} has no {key}"

    def _chosen(self, selector: Document) -> list[Peer]:
        return [peer for peer in self._peers if selects(selector, peer.labels)]

    def _of_service(self, service: Document) -> Iterator[str]:
        chosen = self._chosen({"matchLabels": service["spec"].get("selector") or {}})
        if not service["spec"].get("selector") or not chosen:
            yield "its selector chooses no pod"
        for port in service["spec"].get("ports", []):
            target = port.get("targetPort", port["port"])
            for pod in chosen:
                if target not in pod.ports and target not in pod.ports.values():
                    yield f"{pod.name} has no port {target}"

    def _of_stateful_set(self, document: Document) -> Iterator[str]:
        if document["spec"].get("serviceName") not in self._services:
            yield f"there is no Service {document['spec'].get('serviceName')}"

    def _of_policy(self, policy: Document) -> Iterator[str]:
        selector = policy["spec"].get("podSelector") or {}
        if selector and not self._chosen(selector):
            yield "its podSelector chooses no pod"

    def _of_budget(self, budget: Document) -> Iterator[str]:
        if not self._chosen(budget["spec"].get("selector") or {"matchLabels": {"": ""}}):
            yield "its selector chooses no pod"

    def _of_monitor(self, monitor: Document) -> Iterator[str]:
        spec = monitor["spec"]
        chosen = self._chosen(spec.get("selector") or {})
        if not chosen:
            yield "its selector chooses no pod"
        for pod in chosen:
            for endpoint in spec.get("podMetricsEndpoints", []):
                if endpoint.get("port") not in pod.ports:
                    yield f"{pod.name} has no port {endpoint.get('port')}"
            for label in spec.get("podTargetLabels", []):
                if label not in pod.labels:
                    yield f"{pod.name} has no label {label}"

    def _of_route(self, route: Document) -> Iterator[str]:
        for parent in route["spec"].get("parentRefs", []):
            gateway = self._overlay.find("Gateway", parent["name"])
            if gateway is None:
                yield f"there is no Gateway {parent['name']}"
                continue
            listeners = {listener["name"]: listener for listener in gateway["spec"].get("listeners", [])}
            section = parent.get("sectionName")
            if section is not None and section not in listeners:
                yield f"the Gateway {parent['name']} has no listener {section}"
            names = {each.get("hostname") for each in listeners.values()}
            for host in route["spec"].get("hostnames", []):
                if host not in names:
                    yield f"the Gateway {parent['name']} does not listen for {host}"
        for rule in route["spec"].get("rules", []):
            for backend in rule.get("backendRefs", []):
                yield from self._address(backend["name"], backend.get("port"))

    def _of_gateway(self, gateway: Document) -> Iterator[str]:
        for listener in gateway["spec"].get("listeners", []):
            for certificate in (listener.get("tls") or {}).get("certificateRefs", []):
                yield from self._secret(certificate["name"], ["tls.crt", "tls.key"])

    def _of_rayservice(self, service: Document) -> Iterator[str]:
        config = service["spec"]["rayClusterConfig"]
        auth = config.get("authOptions") or {}
        if "secretName" in auth:
            yield from self._secret(auth["secretName"], ["auth_token"])
        redis = config.get("gcsFaultToleranceOptions") or {}
        if redis:
            host, _, port = str(redis.get("redisAddress", "")).removeprefix("redis://").partition(":")
            yield from self._address(host, int(port or 6379))
            origin = ((redis.get("redisPassword") or {}).get("valueFrom") or {}).get("secretKeyRef")
            if origin:
                yield from self._secret(origin["name"], [origin["key"]])
        yield from self._tokens_files(yaml.safe_load(service["spec"].get("serveConfigV2") or "") or {})

    def _tokens_files(self, serve: Document) -> Iterator[str]:
        """A replica may run in any worker, so that each has the file of tokens."""
        files = {str(value) for path, value in leaves(serve) if path and path[-1] == "tokens_file"}
        for file in sorted(files):
            for pod in (each for each in ray_pods(self._overlay) if each.is_worker):
                container = pod.spec["containers"][0]
                volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
                if not any(file.startswith(f"{m['mountPath']}/") for m in container.get("volumeMounts", [])):
                    yield f"{pod.where} has nothing mounted at {file}"
                yield from self._file(file, container, volumes)

    def _of_config_map(self, document: Document) -> Iterator[str]:
        for key, value in (document.get("data") or {}).items():
            if key.endswith("_URL") and value:
                yield from self._url(key, value)

    def _url(self, key: str, value: str) -> Iterator[str]:
        found = _URL.match(value)
        if found is None:
            yield f"{key} {value} is no URL"
        elif "." not in value.split("//")[1].split("/")[0]:
            yield from self._address(found[1], int(found[2] or 80))

    def _address(self, host: str, port: Any) -> Iterator[str]:
        if host not in self._services:
            yield f"there is no Service {host}"
        elif port not in self._services[host]:
            yield f"the Service {host} has no port {port}"


def _upgrade(service: Document) -> str:
    return str((service["spec"].get("upgradeStrategy") or {}).get("type", "NewCluster"))


def _dockerfile(image: str) -> str:
    name = split_image(image)[0].rpartition("/")[2].removeprefix("split-inference-").removesuffix("-gpu")
    file = ROOT / "k8s" / "images" / f"{name}.Dockerfile"
    return file.read_text(encoding="utf-8") if file.is_file() else ""
