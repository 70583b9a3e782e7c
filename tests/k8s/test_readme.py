"""k8s/README.md says what is there: targets of make, folders, what each overlay is made of, alerts and Secrets."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
README = (K8S / "README.md").read_text()


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for line in re.findall(r"`?make ([a-z0-9 -]+)", README) for target in line.split()[:1]}
    assert {"images", "k8s-check", "k8s-serve-config"} <= named
    assert named <= targets


def test_overlays_are_made_of_what_is_written():
    for overlay in (K8S / "overlays").iterdir():
        components = yaml.safe_load((overlay / "kustomization.yaml").read_text())["components"]
        line = re.search(rf"^\S*\s+{overlay.name}\s+(.+)$", README, re.MULTILINE)
        assert line is not None, overlay.name
        written = line[1].removeprefix("one machine: ").split(", ")
        assert sorted(written) == sorted(Path(component).name for component in components)
    assert set(re.findall(r"[\w-]+", re.search(r"^components/ +(.+)$", README, re.MULTILINE)[1])) == {  # type: ignore[index]
        folder.name for folder in (K8S / "components").iterdir()
    }


def test_files_that_are_named_exist():
    for name in re.findall(r"\b(?:components|overlays|base|values|scripts|tests)/[\w./-]+\w", README):
        assert any((place / name).exists() for place in (K8S, ROOT)), name


def test_alerts_that_are_named_exist():
    rules = yaml.safe_load((K8S / "components/monitoring/alerts.yaml").read_text())["spec"]["groups"]
    alerts = {rule["alert"] for group in rules for rule in group["rules"]}
    for line in re.findall(r"alerts? ((?:[A-Z]\w+(?:, )?)+)", README):
        assert set(line.split(", ")) <= alerts


def test_every_secret_that_is_expected_is_explained():
    for secret in yaml.safe_load_all((K8S / "base/secrets.example.yaml").read_text()):
        assert secret["metadata"]["name"] in README
