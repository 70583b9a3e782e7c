"""`python -m k8s.local_e2e` (`make k8s-local-e2e`): what overlays/local-cpu says, run pod by pod on this machine.

Nothing is written here that a manifest says: the rendered overlay gives Serve's config, environment variables, the
options of `ray start`, the commands of the fleet and of Locust, users, mounts, the read-only root. What Kubernetes and
its operators would do is done by hand, and only that: Services are names in /etc/hosts, Secrets are made up, the Serve
config is put to the dashboard, workers are asked their readiness probe and their preStop.

Not run, since it needs an API server or an image: the autoscaler's sidecar (the number of workers is an option), Redis
(the head starts without fault tolerance), NetworkPolicies, limits of cores and memory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from k8s.checks.arguments import words_of
from k8s.checks.model import Overlay, UnavailableError
from k8s.checks.pods import pods_of
from k8s.checks.ray_rules import environment
from k8s.checks.render import ROOT, render
from k8s.container_root import image_environment, raise_open_files, users_are_mapped
from k8s.local_cluster import LocalCluster
from k8s.local_pods import INSIDE, LocalContainer, LocalPod, enter, make_bridge
from split_inference.figures import Bound, report

OVERLAY = "local-cpu"
PAYLOADS_TIMEOUT_S = 180.0
# Of edge_sim and of the load tests: the generator was late. That says something of this machine, and nothing of the
# manifests; a missed objective (99) and everything else is a failure.
INVALID = 3
EXAMPLES = """examples:
  python -m k8s.local_e2e
  python -m k8s.local_e2e --workers 1 --fleet-s 15
  python -m k8s.local_e2e --keep /tmp/pods       # logs and results of every container stay there

A run that calls itself INVALID, because this machine was too slow to keep its schedule, is said and is no failure.
Exit code 1 where a figure misses its bound, 2 where this machine gives no namespaces or something does not start."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, go into namespaces, run."""
    parser = argparse.ArgumentParser(
        prog="python -m k8s.local_e2e",
        description="Run what overlays/local-cpu says on a local Ray cluster of several nodes, without Kubernetes.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workers", type=int, default=2, help="of the group cpu, within its min and max (%(default)s)")
    parser.add_argument("--fleet-s", type=float, help="seconds of the fleet, instead of the scenario's own")
    parser.add_argument("--keep", type=Path, help="leave logs and results in this folder, which is made")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON; figures go to stderr")
    options = parser.parse_args(arguments)
    try:
        if os.environ.get(INSIDE) != "1":
            return enter("k8s.local_e2e", list(sys.argv[1:] if arguments is None else arguments))
        with _work_folder(options.keep) as folder:
            return _Run(render(OVERLAY), folder, options).run()
    except (UnavailableError, RuntimeError, ValueError) as error:
        print(f"k8s.local_e2e: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        # Every process here is below this one, and ends with it.
        return 130


@contextlib.contextmanager
def _work_folder(keep: Path | None) -> Iterator[Path]:
    # Said, because a shell that starts something in the background has it ignore the first.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    if keep is not None:
        if keep.exists():
            raise ValueError(f"{keep} exists already; --keep makes a new folder")
        keep.mkdir(parents=True)
    folder = Path(tempfile.mkdtemp(prefix="si-pods-", dir="/tmp"))
    # Pods are other users.
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        try:
            if keep is not None:
                shutil.copytree(folder, keep, dirs_exist_ok=True, ignore=_no_files, symlinks=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _no_files(folder: str, names: list[str]) -> list[str]:
    """Sockets and roots of containers cannot be copied."""
    return [name for name in names if name == "root" or Path(folder, name).is_socket()]


class _Run:
    def __init__(self, overlay: Overlay, folder: Path, options: argparse.Namespace) -> None:
        self._overlay = overlay if options.fleet_s is None else _with_shorter_fleet(overlay, options.fleet_s)
        self._folder = folder
        self._options = options
        self._payloads = folder / "payloads"
        self._cluster = LocalCluster(
            self._overlay, folder, payloads=self._payloads, open_files=raise_open_files(), say=self._note
        )
        self.figures: dict[str, float] = {}
        self.facts: dict[str, Any] = {"folder": str(folder)}

    def run(self) -> int:
        group = self._overlay.rayservice()["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
        low, high = group["minReplicas"], group["maxReplicas"]
        if not low <= self._options.workers <= high:
            raise ValueError(f"--workers {self._options.workers} is not within the group's {low}..{high}")
        make_bridge()
        self._make_payloads()
        began_s = time.monotonic()
        self._cluster.start(self._options.workers)
        self.figures["proxies"] = self._cluster.deploy()
        self.figures["ray_nodes"] = 1 + len(self._cluster.workers)
        ready = self._cluster.ready_workers()
        self.figures["ready_workers"] = len(ready)
        self.figures["ready_s"] = time.monotonic() - began_s
        self._note(f"the service is up after {self.figures['ready_s']:.0f} s; {len(ready)} workers pass their probe")
        self._look_at_containers()
        hosts = self._cluster.service_hosts(ready)
        # One after the other: generators that share two cores are late, and call their own runs INVALID.
        self._judge_fleet(*self._start_fleet(hosts))
        self._judge_locust(*self._start_locust(hosts))
        self._drain()
        return self._report()

    def _note(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    # Clients

    def _start_fleet(self, hosts: Mapping[str, Any]) -> tuple[LocalPod, LocalContainer]:
        """The first shard: the pod with index 0."""
        local, container = self._job("edge-fleet", "edge-fleet-0", "edge.Dockerfile", hosts, JOB_COMPLETION_INDEX="0")
        self._note("the fleet's shard 0 runs")
        return local, container

    def _start_locust(self, hosts: Mapping[str, Any]) -> tuple[LocalPod, LocalContainer, list[LocalContainer]]:
        image = "loadtest.Dockerfile"
        count = self._overlay.find("Job", "locust-workers")
        assert count is not None
        master, container = self._job("locust-master", "locust-master-x", image, hosts)
        hosts = {**hosts, "locust-master": master.address}
        workers = [
            self._job("locust-workers", f"locust-worker-{index}", image, hosts)[1]
            for index in range(count["spec"]["completions"])
        ]
        self._note(f"Locust's master and {len(workers)} workers run")
        return master, container, workers

    def _job(
        self, job: str, name: str, dockerfile: str, hosts: Mapping[str, Any], **more: str
    ) -> tuple[LocalPod, LocalContainer]:
        """Init containers one after the other, sidecars left out, then the container itself."""
        pod = next(each for each in pods_of(self._overlay) if each.where == f"Job/{job}")
        local = self._cluster.new_pod(name, pod)
        base = {**image_environment(dockerfile, self._payloads), "HOSTNAME": name}
        more = {"POD_NAME": name, **more}
        for container in pod.spec.get("initContainers", []):
            if container.get("restartPolicy") == "Always":
                # `upload-results` without RESULTS_URL does nothing; tests/k8s/test_images.py runs it with one.
                continue
            variables = {**base, **environment(container, self._overlay), **more}
            words = words_of(container, self._overlay, **more)
            if (code := local.container(container, words, environment=variables, hosts=hosts).wait(60)) != 0:
                raise RuntimeError(f"{name}: the init container {container['name']} ended with {code}")
        container = pod.spec["containers"][0]
        variables = {**base, **environment(container, self._overlay), **more}
        words = words_of(container, self._overlay, **more)
        return local, local.container(container, words, environment=variables, hosts=hosts)

    def _judge_fleet(self, local: LocalPod, container: LocalContainer) -> None:
        code = container.wait(240)
        self.figures["fleet_failed"] = float(code not in (0, INVALID))
        said = _json_of(container.output())
        if said is None:
            raise RuntimeError(f"the fleet ended with {code}: {container.last_words()}")
        groups = said["groups"]
        asked = sum(group["requests"] for group in groups)
        self.figures["fleet_requests"] = asked
        self.figures["fleet_goodput"] = sum(group["requests"] * group["in_time"] for group in groups) / asked
        self.figures["fleet_wrong"] = said["wrong_answers"]
        self.figures["fleet_valid"] = float(not said.get("invalid"))
        self.facts["fleet"] = said
        if said.get("invalid"):
            self._note(f"{local.name} is INVALID: {said['invalid']}")

    def _judge_locust(self, master: LocalPod, container: LocalContainer, workers: Sequence[LocalContainer]) -> None:
        from loadtests.run_result import read_result

        code = container.wait(240)
        self.figures["locust_failed"] = float(code not in (0, INVALID))
        results = self._cluster.claims.get("loadtest-results")
        folder = (results or Path("/nonexistent")) / master.name
        if not (folder / "result.json").is_file():
            raise RuntimeError(f"Locust left no result and ended with {code}: {container.last_words()}")
        result = read_result(folder)
        self.figures["locust_requests"] = result.counts.intended
        self.figures["locust_goodput"] = result.goodput_share
        self.figures["locust_wrong"] = result.counts.wrong
        self.figures["locust_valid"] = float(result.is_valid)
        for reason in result.generator.invalid:
            self._note(f"{master.name} is INVALID: {reason}")
        self.figures["locust_workers_exit_code"] = max(worker.wait(60) for worker in workers)
        self.facts["locust"] = container.output().strip().splitlines()[-20:]

    # What the manifests promise about containers

    def _look_at_containers(self) -> None:
        container = self._cluster.workers[0].container
        status = container.status()
        self.figures["uid"] = int(status["Uid"].split()[0])
        self.figures["capabilities"] = int(status["CapEff"], 16) | int(status["CapBnd"], 16)
        self.figures["no_new_privileges"] = int(status["NoNewPrivs"])
        written = container.execute(["sh", "-c", "touch /opt/x /etc/x /usr/x 2>&1; ls /opt/x /etc/x"], timeout_s=15)
        refused = written.stdout.count("Read-only file system")
        self.figures["writes_refused"] = refused
        self.figures["writes_allowed"] = container.execute(
            ["sh", "-c", "touch /tmp/x /dev/shm/x && echo ok"], timeout_s=15
        ).stdout.count("ok")

    def _drain(self) -> None:
        """preStop of a worker, as the kubelet runs it: with another worker there, no replica is left behind."""
        if len(self._cluster.workers) < 2:
            return
        began_s = time.monotonic()
        worker = self._cluster.workers[0]
        command = worker.manifest["lifecycle"]["preStop"]["exec"]["command"]
        drained = worker.container.execute(command, timeout_s=120)
        self.figures["prestop_exit_code"] = drained.returncode
        self.figures["prestop_s"] = time.monotonic() - began_s
        if drained.returncode != 0:
            self._note(f"preStop: {drained.stderr.strip()[-300:]}")

    # Around it

    def _make_payloads(self) -> None:
        """As the Dockerfile makes them, by its own words."""
        self._payloads.mkdir()
        text = (ROOT / "k8s/images/loadtest.Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
        made = re.search(r"python (-m edge_sim payloads .*--out )(/opt/split-inference/payloads/\S+)", text)
        if made is None:
            raise RuntimeError("loadtest.Dockerfile makes no payloads")
        words = [*shlex.split(made[1]), str(self._payloads / Path(made[2]).name)]
        made_s = time.monotonic()
        subprocess.run(
            [sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL, check=True, timeout=PAYLOADS_TIMEOUT_S
        )
        self._note(f"payloads are made ({time.monotonic() - made_s:.0f} s)")

    def _report(self) -> int:
        bounds: dict[str, Bound] = {
            "ray_nodes": (">=", 2),
            "ready_workers": (">=", 1),
            "fleet_goodput": (">=", 0.99),
            "fleet_wrong": ("==", 0),
            "fleet_failed": ("==", 0),
            "locust_goodput": (">=", 0.99),
            "locust_wrong": ("==", 0),
            "locust_failed": ("==", 0),
            "locust_workers_exit_code": ("==", 0),
            "capabilities": ("==", 0),
            "no_new_privileges": ("==", 1),
            "writes_refused": ("==", 3),
            "writes_allowed": ("==", 1),
        }
        if users_are_mapped():
            bounds["uid"] = ("==", 1000)
        else:
            self._note("not root: user 1000 does not exist in this user namespace, and pods run as its only user")
        if len(self._cluster.workers) > 1:
            bounds["prestop_exit_code"] = ("==", 0)
        if self._options.json:
            print(json.dumps({"figures": self.figures, **self.facts}, indent=2))
        command = ["python", "-m", "k8s.local_e2e", *sys.argv[1:]]
        return report("k8s-local-e2e", self.figures, bounds, command=command, to_stderr=self._options.json)


def _with_shorter_fleet(overlay: Overlay, seconds: float) -> Overlay:
    documents = json.loads(json.dumps(overlay.documents))
    for document in documents:
        if document["kind"] == "ConfigMap" and "scenario.yaml" in (document.get("data") or {}):
            text = document["data"]["scenario.yaml"]
            document["data"]["scenario.yaml"] = re.sub(r"(?m)^duration_s: .*$", f"duration_s: {seconds:g}", text)
    return Overlay(name=overlay.name, documents=tuple(documents))


def _json_of(text: str) -> dict[str, Any] | None:
    start = text.find("{")
    try:
        said = json.loads(text[start:]) if start >= 0 else None
    except ValueError:
        return None
    return said if isinstance(said, dict) else None


if __name__ == "__main__":
    sys.exit(main())
