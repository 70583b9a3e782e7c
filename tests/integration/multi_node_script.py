"""A cluster of three nodes on this machine, two of which declare a GPU that is not there: what goes where, and when.

Run in a process of its own, because Ray reads its environment once. Prints one line of JSON; the test judges it.
The deployment is a stand-in without torch; placement, policy and `num_gpus: 0.25` are the real ones.
"""

from __future__ import annotations

import collections
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster

from tests.patience import PATIENCE_S

POLICY = {"policy_function": "serve_app.autoscaling_policy:queue_delay_policy"}
FAST = {"metrics_interval_s": 0.2, "look_back_period_s": 1.0, "upscale_delay_s": 0.5, "downscale_delay_s": 1.0}


@ray.remote(num_cpus=0)
class Board:
    """What the stand-ins report as their load."""

    def __init__(self) -> None:
        self._load = {"busy_share": 0.0, "queue_delay_s": 0.0}

    def write(self, busy_share: float, queue_delay_s: float) -> None:
        self._load = {"busy_share": busy_share, "queue_delay_s": queue_delay_s}

    def read(self) -> dict[str, float]:
        return self._load


class StandIn:
    """Says where it runs, and reports the load that the board says."""

    def __init__(self, board: Any) -> None:
        self._board = board

    async def __call__(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    async def record_autoscaling_stats(self) -> dict[str, float]:
        load: dict[str, float] = await self._board.read.remote()
        return load


def wait_for(what: Callable[[], Any], *, timeout_s: float = 120) -> Any:
    """Its first true value, or what it is when the time is up."""
    deadline_s = time.monotonic() + timeout_s
    while not (found := what()) and time.monotonic() < deadline_s:
        time.sleep(0.2)
    return found


def states(app: str) -> dict[str, int]:
    """Replicas by state."""
    details = serve.status().applications[app].deployments["StandIn"]
    return {str(getattr(state, "value", state)): count for state, count in details.replica_states.items()}


def nodes_of_replicas() -> list[int]:
    """Living replicas by node, most first."""
    from ray.util.state import list_actors

    actors = list_actors(filters=[("state", "=", "ALIVE")], limit=1000)
    counted = collections.Counter(
        actor.node_id for actor in actors if actor.class_name.startswith("ServeReplica:packed")
    )
    return sorted(counted.values(), reverse=True)


def deploy(app: str, board: Any, **options: Any) -> None:
    """Ask for an application, without waiting for its replicas: one of them may be meant to find no place."""
    deployment = serve.deployment(StandIn, name="StandIn").options(**options)
    target = serve.RunTarget(deployment.bind(board), name=app, route_prefix=f"/{app}")
    serve.run_many([target], wait_for_applications_running=False)


def handle_of(app: str) -> Any:
    """To call the application without HTTP."""
    return serve.get_app_handle(app)


def packed(board: Any) -> dict[str, Any]:
    """Quarters of a GPU: four to each of two, and the ninth waits."""
    quarter = {"num_cpus": 0.1, "num_gpus": 0.25}
    deploy("packed", board, num_replicas=8, ray_actor_options=quarter)
    wait_for(lambda: states("packed").get("RUNNING") == 8)
    found = {"eight": states("packed"), "by_node": nodes_of_replicas()}
    deploy("packed", board, num_replicas=9, ray_actor_options=quarter)
    wait_for(lambda: states("packed").get("STARTING") == 1)
    time.sleep(3)
    found["nine"] = states("packed")
    serve.delete("packed")
    return found


def scaled(board: Any) -> dict[str, Any]:
    """The policy through Serve's own autoscaler: up under load, down after it."""
    scaling = {"min_replicas": 1, "max_replicas": 4, "policy": POLICY, **FAST}
    deploy("scaled", board, autoscaling_config=scaling, ray_actor_options={"num_cpus": 0.1})
    wait_for(lambda: states("scaled").get("RUNNING") == 1)
    before = states("scaled")
    ray.get(board.write.remote(1.0, 0.3))
    began_s = time.monotonic()
    wait_for(lambda: states("scaled").get("RUNNING") == 4)
    up_s, under_load = time.monotonic() - began_s, states("scaled")
    ray.get(board.write.remote(0.01, 0.0))
    wait_for(lambda: states("scaled") == {"RUNNING": 1})
    after = states("scaled")
    serve.delete("scaled")
    return {"before": before, "under_load": under_load, "up_s": up_s, "after": after}


def cold(board: Any) -> dict[str, Any]:
    """A model that nobody asks for has no replica, and the first request gets one."""
    ray.get(board.write.remote(0.0, 0.0))
    scaling = {
        "min_replicas": 0,
        "initial_replicas": 0,
        "max_replicas": 2,
        "policy": POLICY,
        **FAST,
        "downscale_to_zero_delay_s": 1.0,
    }
    deploy("cold", board, autoscaling_config=scaling, ray_actor_options={"num_cpus": 0.1})
    wait_for(lambda: str(serve.status().applications["cold"].status).endswith("RUNNING"))
    before = states("cold")
    began_s = time.monotonic()
    answered = bool(handle_of("cold").remote().result(timeout_s=PATIENCE_S))
    wake_s = time.monotonic() - began_s
    wait_for(lambda: not states("cold"))
    return {"before": before, "answered": answered, "wake_s": wake_s, "after": states("cold")}


def drained(board: Any) -> dict[str, Any]:
    """A node asked to drain gives its replica up once another one answers; no request is lost meanwhile."""
    from serve_app.drain_node import raylets, replicas

    # Of the two nodes with a GPU, one has it and the other one has to take over.
    deploy("drained", board, num_replicas=1, graceful_shutdown_timeout_s=5, ray_actor_options={"num_gpus": 1})
    wait_for(lambda: states("drained") == {"RUNNING": 1})
    handle = handle_of("drained")
    before = handle.remote().result(timeout_s=PATIENCE_S)
    command = [sys.executable, "-m", "serve_app.drain_node", "--node-id", before, "--deadline", "40"]
    began_s = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    answers = []
    try:
        while process.poll() is None:
            answers.append(handle.remote().result(timeout_s=PATIENCE_S))
        error = process.communicate(timeout=PATIENCE_S)[1]
    finally:
        process.kill()
    took_s = time.monotonic() - began_s
    left = [replicas(raylet) for raylet in raylets() if raylet.node_id == before]
    after = handle.remote().result(timeout_s=PATIENCE_S)
    serve.delete("drained")
    return {
        "code": process.returncode,
        "error": error,
        "answers": len(answers),
        "nodes": len({before, *answers}),
        "moved": after != before,
        "left": left,
        "took_s": took_s,
    }


def main() -> int:
    """All of them, on one cluster that is gone afterwards."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 4,
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            "dashboard_port": int(sys.argv[1]),
        },
    )
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=2, num_gpus=1)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
        board = Board.remote()  # type: ignore[attr-defined]
        found = {"packed": packed(board), "scaled": scaled(board), "cold": cold(board), "drained": drained(board)}
        print(json.dumps(found), flush=True)
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
