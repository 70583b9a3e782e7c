"""Grafana gets every dashboard that is made, and they are what their sources make."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

from scripts.make_dashboard import FOLDER
from tests.patience import PATIENCE_S

ROOT = FOLDER.parents[1]


def test_every_dashboard_is_one_and_is_applied():
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    applied = sorted(file for each in kustomization["configMapGenerator"] for file in each["files"])
    assert applied == sorted(file.name for file in FOLDER.glob("*.json"))
    uids = []
    for name in applied:
        content = json.loads((FOLDER / name).read_text())
        assert content["panels"], name
        uids.append(content["uid"])
        # A ConfigMap holds a mebibyte.
        assert (FOLDER / name).stat().st_size < 2**20
    assert len(set(uids)) == len(uids)


@pytest.mark.slow
def test_dashboards_are_what_the_metrics_and_the_installed_ray_make():
    command = [sys.executable, "-m", "scripts.make_dashboard", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert result.returncode == 0, result.stderr
