"""A Ray cluster as an overlay's RayService says, pod by pod on this machine, and what the operator does with it.

Its pods are local_pods.py's; secrets are made up; Services are names in /etc/hosts; the Serve config is put to the
dashboard, and workers are asked their readiness probe. Knows nothing of the fleet and of Locust.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shlex
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from k8s.checks.model import Document, Overlay, name_of
from k8s.checks.pods import Pod, ray_container, ray_pods
from k8s.checks.ray_rules import environment
from k8s.checks.ray_start import GCS_PORT, ray_start_words
from k8s.container_root import image_environment
from k8s.local_pods import LocalContainer, LocalPod
from serve_app.serve import connections_within

START_TIMEOUT_S = 180.0
# Of the operator: what it asks a worker before traffic goes there.
PROBE = (
    "wget --tries 1 -T 2 -q -O- http://localhost:52365/api/local_raylet_healthz | grep success && "
    "wget --tries 1 -T 2 -q -O- http://localhost:8000/-/healthz | grep success"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """A pod of the group, its Ray container, and what the manifest says of that."""

    pod: LocalPod
    container: LocalContainer
    manifest: Document


class LocalCluster:
    """Head and workers of one overlay. Everything raises RuntimeError, in one line, for what does not start."""

    def __init__(
        self, overlay: Overlay, folder: Path, *, payloads: Path, open_files: int, say: Callable[[str], None]
    ) -> None:
        self._overlay = overlay
        self._folder = folder
        self._payloads = payloads
        self._open_files = open_files
        self._say = say
        self._name = name_of(overlay.rayservice())
        self._secrets = _made_up_secrets()
        self._numbers = iter(range(10, 250))
        self._pods: list[LocalPod] = []
        self._head: LocalPod | None = None
        self.claims: dict[str, Path] = {}
        """Volumes that outlive their pods."""
        self.workers: list[Worker] = []

    def start(self, count: int) -> None:
        """The head, then so many workers."""
        found = ray_pods(self._overlay)
        head = self._head = self.new_pod("head", next(pod for pod in found if pod.is_head))
        worker = next(pod for pod in found if pod.is_worker)
        workers = [self.new_pod(f"worker-{index}", worker) for index in range(count)]
        hosts = {f"{self._name}-head-svc": head.address}
        self._ray_container(head, next(pod for pod in found if pod.is_head), hosts)
        self._until(lambda: self._gcs_listens(head), "the head's GCS does not listen")
        for local in workers:
            container = self._ray_container(local, worker, hosts)
            self.workers.append(Worker(pod=local, container=container, manifest=ray_container(worker)))
            # One after the other: on two cores a second one is too slow for Ray, which gives up after half a minute.
            self._until(partial(_has_started, container), f"{local.name} is not up")
        self._say(f"Ray runs: a head and {len(workers)} workers")

    def _ray_container(self, local: LocalPod, pod: Pod, hosts: Mapping[str, str]) -> LocalContainer:
        container = ray_container(pod)
        head = f"{self._name}-head-svc"
        added = {
            "RAY_ADDRESS": f"127.0.0.1:{GCS_PORT}" if pod.is_head else f"{head}:{GCS_PORT}",
            "RAY_PORT": str(GCS_PORT),
            "FQ_RAY_IP": "127.0.0.1" if pod.is_head else head,
            "RAY_CLUSTER_NAME": self._name,
            "RAY_NODE_TYPE_NAME": "headgroup" if pod.is_head else pod.labels["ray.io/group"],
        }
        auth = self._overlay.rayservice()["spec"]["rayClusterConfig"].get("authOptions") or {}
        if auth.get("mode") == "token":
            added |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self._secrets[auth["secretName"]]["auth_token"]}
        variables = {**image_environment("serve.Dockerfile", self._payloads), **added}
        variables |= environment(container, self._overlay)
        wanted = int(variables.get("RAY_SERVE_HAPROXY_MAXCONN", 0))
        # HAProxy does not start where it may not open as many files as its connections need.
        if wanted > (possible := connections_within(self._open_files)):
            variables["RAY_SERVE_HAPROXY_MAXCONN"] = str(possible)
            if pod.is_head:
                self._say(f"this machine allows {self._open_files} open files: MAXCONN is {possible}, not {wanted}")
        command = f"ulimit -n 65536 2>/dev/null; exec {shlex.join(ray_start_words(pod, self._overlay))}"
        words = ["/bin/bash", "-c", "--", command]
        return local.container(container, words, environment=variables, hosts=hosts)

    def _gcs_listens(self, head: LocalPod) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((head.address, GCS_PORT), timeout=1):
            return True
        return False

    def deploy(self) -> int:
        """What the operator does with serveConfigV2; when all of it runs, how many nodes have a proxy."""
        assert self._head is not None
        config = yaml.safe_load(self._overlay.rayservice()["spec"]["serveConfigV2"])
        url = f"http://{self._head.address}:8265/api/serve/applications/"
        token = self._secrets["ray-auth"]["auth_token"]
        self._until(lambda: _call(url, token) is not None, "the dashboard does not answer")
        body = json.dumps(config).encode()
        self._until(lambda: _call(url, token, body=body) is not None, "the dashboard does not take the Serve config")
        names = {application["name"] for application in config["applications"]}

        def running() -> bool:
            said = _call(url, token) or {}
            states = {name: found["status"] for name, found in said.get("applications", {}).items()}
            failed = [name for name, state in states.items() if state == "DEPLOY_FAILED"]
            if failed:
                raise RuntimeError(f"{failed[0]} failed: {said['applications'][failed[0]]['message'][-400:]}")
            return all(states.get(name) == "RUNNING" for name in names)

        self._until(running, "not every application is RUNNING")
        nodes = {node["node_ip"] for node in (_call(url, token) or {}).get("proxies", {}).values()}
        return len(nodes)

    def ready_workers(self) -> list[LocalPod]:
        """Those that the Service would have: workers without a replica are no endpoints, by design."""
        found: list[LocalPod] = []
        said = ""

        def any_ready() -> bool:
            nonlocal said
            for worker in self.workers:
                probed = worker.container.execute(["bash", "-c", PROBE], timeout_s=15)
                said = f"{worker.pod.name} says {probed.returncode} {(probed.stdout + probed.stderr).strip()[-300:]}"
                if probed.returncode == 0:
                    found.append(worker.pod)
            return bool(found)

        self._until(any_ready, lambda: f"no worker passes its readiness probe ({said})")
        return found

    def service_hosts(self, ready: Sequence[LocalPod]) -> dict[str, Any]:
        """The Service as lines of /etc/hosts."""
        return {f"{self._name}-serve-svc": [pod.address for pod in ready]}

    def new_pod(self, name: str, pod: Pod) -> LocalPod:
        """One more pod, of this cluster or of whoever asks it, with an address of its own."""
        local = LocalPod(
            name=name,
            number=next(self._numbers),
            spec=pod.spec,
            overlay=self._overlay,
            folder=self._folder / name,
            secrets=self._secrets,
            shared=self.claims,
        )
        local.start()
        self._pods.append(local)
        return local

    def _until(self, true: Callable[[], bool], otherwise: str | Callable[[], str]) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not true():
            for worker in self.workers:
                if worker.container.process.poll() is not None:
                    raise RuntimeError(f"{worker.pod.name} ended: {worker.container.last_words()}")
            if time.monotonic() > deadline_s:
                what = otherwise if isinstance(otherwise, str) else otherwise()
                raise RuntimeError(f"{what} within {START_TIMEOUT_S:.0f} s; {self._words_of_head()}")
            time.sleep(0.5)

    def _words_of_head(self) -> str:
        log = self._folder / "head" / "container-ray-head"
        texts = [(log / name).read_text(errors="replace") for name in ("errors", "log") if (log / name).is_file()]
        lines = [line for line in "\n".join(texts).splitlines() if line.strip()]
        return " / ".join(lines[-4:])[-600:]


def _has_started(container: LocalContainer) -> bool:
    return "Ray runtime started" in container.output()


def _made_up_secrets() -> dict[str, dict[str, str]]:
    """As the README makes them by hand."""
    from serve_app.tokens import entry_line, new_token

    token = new_token()
    return {
        "ray-auth": {"auth_token": secrets.token_hex(32)},
        "client-tokens": {"tokens.yaml": entry_line("load", token)},
        "load-token": {"token": token},
    }


def _call(url: str, token: str, *, body: bytes | None = None) -> dict[str, Any] | None:
    """GET or PUT with Ray's token; None where nobody answers yet."""
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    request = urllib.request.Request(url, data=body, headers=headers, method="PUT" if body else "GET")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            text = answer.read()
    except urllib.error.HTTPError as error:
        if error.code < 500:
            raise RuntimeError(f"the dashboard says {error.code}: {error.read()[:300]!r}") from None
        return None
    except OSError:
        return None
    try:
        said = json.loads(text or b"{}")
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
