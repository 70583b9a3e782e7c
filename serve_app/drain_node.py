"""`python -m serve_app.drain_node`: have this node's replicas replaced elsewhere before it goes; Kubernetes' preStop.

A pod that is evicted gets SIGTERM, and Ray takes a node that ends for a node that failed: replicas die with what they
had, and others are started only then. Asked to drain, Serve starts the others first and stops these when they answer.
Knows the raylet that runs here and Ray's GCS. Knows no Kubernetes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from split_inference.errors import UsageError

PROC = Path("/proc")
REPLICA_TITLE = b"ray::ServeReplica"
POLL_S = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Raylet:
    """The process that is this node."""

    pid: int
    node_id: str
    """Hexadecimal, as Ray writes it."""
    gcs: str
    """HOST:PORT of the cluster's GCS."""


def raylets(proc: Path = PROC) -> list[Raylet]:
    """The raylets that run here, by what their command lines say; one in a pod, several in a cluster for tests."""
    found = []
    for pid, words in _commands(proc):
        if not words or Path(os.fsdecode(words[0])).name != "raylet":
            continue
        flags = dict(os.fsdecode(word).removeprefix("--").partition("=")[::2] for word in words[1:])
        if flags.get("node_id") and flags.get("gcs-address"):
            found.append(Raylet(pid=pid, node_id=flags["node_id"], gcs=flags["gcs-address"]))
    return found


def replicas(raylet: Raylet, proc: Path = PROC) -> int:
    """How many Serve replicas the raylet has: processes that it started and that carry the title of one."""
    titled = [pid for pid, words in _commands(proc) if words and words[0].startswith(REPLICA_TITLE)]
    return sum(_parent(proc, pid) == raylet.pid for pid in titled)


def drain(
    raylet: Raylet,
    *,
    deadline_s: float,
    request: Callable[[Raylet, float], None],
    count: Callable[[Raylet], int] = replicas,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Ask for the drain and wait, `deadline_s` at most, until no replica is left. Gives how many are."""
    until_s = now() + deadline_s
    request(raylet, deadline_s)
    while (left := count(raylet)) and now() < until_s:
        sleep(POLL_S)
    return left


def chosen(found: Sequence[Raylet], node_id: str | None) -> Raylet:
    """The raylet with this id, or the only one. Raises UsageError where there is none, or nobody says which."""
    matching = [raylet for raylet in found if node_id in (None, raylet.node_id)]
    if not matching:
        raise UsageError(f"no raylet {node_id or ''} runs here".replace("  ", " "))
    if len(matching) > 1:
        raise UsageError(
            f"{len(matching)} raylets run here: say --node-id, one of {', '.join(r.node_id for r in found)}"
        )
    return matching[0]


def _request(raylet: Raylet, deadline_s: float) -> None:
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated import autoscaler_pb2

    client = GcsClient(address=raylet.gcs)
    accepted, reason = client.drain_node(
        raylet.node_id,
        autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "the pod is about to end",
        int(1000 * (time.time() + deadline_s)),
    )
    if not accepted:
        raise UsageError(f"the cluster does not drain this node: {reason}")


def _commands(proc: Path) -> list[tuple[int, list[bytes]]]:
    found = []
    for folder in proc.iterdir():
        if folder.name.isdecimal():
            try:
                found.append((int(folder.name), (folder / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")))
            except OSError:
                # It ended meanwhile.
                continue
    return found


def _parent(proc: Path, pid: int) -> int:
    try:
        # The second field is the name, in brackets, which may itself have brackets and blanks.
        return int((proc / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return -1


def main(arguments: Sequence[str] | None = None) -> int:
    """Drain; 0 where no replica is left, 1 where some are, 2 where the node cannot be drained."""
    parser = argparse.ArgumentParser(prog="python -m serve_app.drain_node", description=__doc__)
    parser.add_argument(
        "--deadline", type=float, default=90.0, metavar="S", help="wait this long at most (%(default)s)"
    )
    parser.add_argument("--node-id", help="the node, where several run here")
    options = parser.parse_args(arguments)
    try:
        raylet = chosen(raylets(), options.node_id)
        left = drain(raylet, deadline_s=options.deadline, request=_request)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if left:
        print(f"{left} replicas are still here after {options.deadline:g} s", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
