"""Draining a node, with a /proc of files and a clock of numbers; integration/test_multi_node.py has a real cluster."""

from __future__ import annotations

import pytest

from serve_app.drain_node import Raylet, chosen, drain, raylets, replicas
from split_inference.errors import UsageError

RAYLET = Raylet(pid=10, node_id="ab" * 28, gcs="10.0.0.1:6379")
OTHER = Raylet(pid=20, node_id="cd" * 28, gcs="10.0.0.1:6379")


def process(proc, pid, *words, parent=1, name="python"):
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "cmdline").write_bytes(b"\0".join(word.encode() for word in words) + b"\0")
    (proc / str(pid) / "stat").write_text(f"{pid} ({name}) S {parent} 0 0 0")


@pytest.fixture
def proc(tmp_path):
    for raylet in (RAYLET, OTHER):
        flags = ("--store_socket_name=/tmp/s", f"--node_id={raylet.node_id}", f"--gcs-address={raylet.gcs}")
        process(tmp_path, raylet.pid, "/opt/ray/core/src/ray/raylet/raylet", *flags)
    process(tmp_path, 30, "python", "raylet", "--node_id=ff")
    process(tmp_path, 31, "ray::ServeReplica:m:TailDeployment", parent=10, name="ray::Serve) x (")
    process(tmp_path, 32, "ray::ServeReplica:catalog:CatalogDeployment", parent=10)
    process(tmp_path, 33, "ray::ServeReplica:m:TailDeployment", parent=20)
    process(tmp_path, 34, "ray::ProxyActor", parent=10)
    (tmp_path / "self").mkdir()
    (tmp_path / "35").mkdir()
    return tmp_path


def test_raylets_say_on_their_command_line_who_they_are(proc):
    assert sorted(raylets(proc), key=lambda raylet: raylet.pid) == [RAYLET, OTHER]


def test_replicas_belong_to_the_raylet_that_started_them(proc):
    assert (replicas(RAYLET, proc), replicas(OTHER, proc)) == (2, 1)


def test_without_a_choice_a_node_has_to_be_named():
    assert chosen([RAYLET], None) == RAYLET
    assert chosen([RAYLET, OTHER], OTHER.node_id) == OTHER
    with pytest.raises(UsageError, match="2 raylets run here: say --node-id"):
        chosen([RAYLET, OTHER], None)
    for found, node_id in (([], None), ([RAYLET], OTHER.node_id)):
        with pytest.raises(UsageError, match="no raylet"):
            chosen(found, node_id)


@pytest.mark.parametrize(("leave_at_s", "left", "took_s"), [(3.0, 0, 3.0), (0.0, 0, 0.0), (99.0, 2, 5.0)])
def test_a_drain_ends_with_the_last_replica_or_with_the_deadline(leave_at_s, left, took_s):
    clock = [100.0]
    asked = []

    def sleep(seconds):
        clock[0] += seconds

    found = drain(
        RAYLET,
        deadline_s=5.0,
        request=lambda raylet, deadline_s: asked.append((raylet, deadline_s)),
        count=lambda raylet: 0 if clock[0] >= 100.0 + leave_at_s else 2,
        now=lambda: clock[0],
        sleep=sleep,
    )
    assert asked == [(RAYLET, 5.0)]
    assert (found, clock[0] - 100.0) == (left, took_s)
