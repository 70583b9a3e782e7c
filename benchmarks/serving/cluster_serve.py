"""A Ray cluster of four nodes on this machine that serves one config: what `serve run` does, with nodes to take away.

    python -m benchmarks.serving.cluster_serve CONFIG

The head runs Serve's controller and the only proxy; each of three workers has one place for a replica (resource
`place`). SIGUSR1 takes away a worker that holds a replica, without a word to anybody, as a power cut does. Ends by
SIGINT or SIGTERM. Run in a process of its own, because Ray reads its environment once.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path
from typing import Any

import ray
import yaml
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema
from ray.util.state import list_actors

from benchmarks.serving.systems import PLACE
from edge_sim.server_process import HOST, free_port

WORKERS = 3
_SIGNALS = (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM)


def main() -> int:
    """Serve until told to end."""
    config = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))
    # Held back before threads begin, so that they come to sigwait and to nobody else.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    dashboard = free_port()
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2,
            "include_dashboard": True,
            "dashboard_host": HOST,
            "dashboard_port": dashboard,
        },
    )
    try:
        workers = [cluster.add_node(num_cpus=1, resources={PLACE: 1}) for _ in range(WORKERS)]
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        print(f"dashboard http://{HOST}:{dashboard}", flush=True)
        serve.start(proxy_location="HeadOnly", http_options=config["http_options"])
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config))
        while (number := signal.sigwait(_SIGNALS)) == signal.SIGUSR1:
            _take_one_away(cluster, workers)
        print(f"ending by {signal.Signals(number).name}", flush=True)
    finally:
        with contextlib.suppress(Exception):
            serve.shutdown()
        ray.shutdown()
        cluster.shutdown()
    return 0


def _take_one_away(cluster: Cluster, workers: list[Any]) -> None:
    replicas = [each for each in list_actors(filters=[("state", "=", "ALIVE")], limit=1000) if each.class_name]
    holding = {each.node_id for each in replicas if each.class_name.startswith("ServeReplica:")}
    for worker in workers:
        if worker.node_id in holding:
            workers.remove(worker)
            cluster.remove_node(worker, allow_graceful=False)
            print(f"took {worker.node_id} away", flush=True)
            return


if __name__ == "__main__":
    sys.exit(main())
