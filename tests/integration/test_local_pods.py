"""Pods without Kubernetes: users, mounts, privileges and addresses are as the manifest says; real namespaces."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.patience import RUN_PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = [sys.executable, "-m", "tests.integration.local_pod_script"]


def not_here(reason):
    if os.environ.get("REQUIRE_DATA") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def run(before=()):
    """What the pods saw; in a folder that other users may enter, as pytest's own may not be."""
    folder = tempfile.mkdtemp(prefix="si-test-pods-", dir="/tmp")
    os.chmod(folder, 0o755)
    try:
        process = subprocess.run(
            [*before, *SCRIPT, folder], cwd=ROOT, capture_output=True, text=True, timeout=RUN_PATIENCE_S, check=False
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if "UnavailableError" in process.stderr:
        not_here(process.stderr.strip().splitlines()[-1])
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def check(said, user, group):
    lines = said["first"].splitlines()
    assert lines[:2] == [user, user]
    # Secrets and ConfigMaps are read-only mounts, and so is everything that is no volume.
    assert [line for line in lines if line.startswith("can write")] == ["can write /tmp/x", "can write /dev/shm/x"]
    assert lines[lines.index("secret") + 1 :][:2] == ["a: 1", f"440 {group}"]
    assert "shm is full" in lines
    status = dict(line.split(":\t") for line in lines if ":\t" in line)
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert lines[-1] == "imports"
    # Itself, grep's shell and grep: no process of the machine, and none of another container.
    assert int(lines[-2]) <= 4
    assert said["client"] == "a: 1", "a pod reaches another one by the name of a Service"
    assert said["executed"].splitlines() == [user, "a.yaml", "python"]
    assert said["server"]


def test_pods_are_as_the_manifest_says():
    said = run()
    if said["mapped"]:
        check(said, "1000", "1000")
    else:
        check(said, "0", "0")


def test_somebody_who_is_not_root_has_them_too_as_the_only_user_there_is():
    before = ["unshare", "--user", "--map-root-user"]
    if subprocess.run([*before, "true"], capture_output=True, check=False).returncode != 0:
        not_here("this machine gives no user namespaces")
    said = run(before)
    assert not said["mapped"]
    check(said, "0", "0")
