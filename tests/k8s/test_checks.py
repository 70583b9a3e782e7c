"""Every check of every overlay finds nothing; every seeded mistake is found by the check that is meant to find it."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from k8s.checks.alerts import check_alerts
from k8s.checks.autoscaler import plan_of
from k8s.checks.dockerfiles import check_dockerfiles
from k8s.checks.registry import OVERLAY_CHECKS, REPOSITORY_CHECKS
from k8s.checks.render import ROOT, check_no_dead_file, overlay_names, render
from k8s.checks.schemas import NEWEST, OLDEST, mutants, problems_of
from k8s.checks.versions import check_pins
from tests.k8s.conftest import tools_or_skip
from tests.k8s.mistakes import MISTAKES, spoiled

OVERLAYS = overlay_names()
# Processes of Locust, promtool and hadolint, and hundreds of validations: seconds each, left to `make test`.
SLOW_CHECKS = {"alerts", "arguments", "dockerfiles", "negative-controls"}


def with_marks(values, slow):
    """Parameters, the slow ones marked."""
    return [pytest.param(value, marks=pytest.mark.slow if slow(value) else ()) for value in values]


def starts_locust(mistake):
    return mistake.check == "arguments" and mistake.overlay == "local-cpu"


def test_the_overlays_are_those_that_the_readme_names():
    assert OVERLAYS == ["loadtest-gpu", "local-cpu", "prod-gpu"]


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("check", with_marks(OVERLAY_CHECKS, SLOW_CHECKS.__contains__))
def test_a_check_finds_nothing_in_an_overlay(check, overlay, overlays):
    with tools_or_skip():
        found = OVERLAY_CHECKS[check][1](overlays[overlay])
    assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize("check", with_marks(REPOSITORY_CHECKS, SLOW_CHECKS.__contains__))
def test_a_check_finds_nothing_in_the_files(check):
    with tools_or_skip():
        found = REPOSITORY_CHECKS[check][1]()
    assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize(
    "mistake", with_marks(MISTAKES, starts_locust), ids=lambda mistake: f"{mistake.check}:{mistake.name}"
)
def test_a_seeded_mistake_is_found(mistake, overlays):
    check = OVERLAY_CHECKS[mistake.check][1]
    with tools_or_skip():
        found = [str(finding) for finding in check(spoiled(overlays[mistake.overlay], mistake.spoil))]
    assert any(mistake.says in finding for finding in found), found


def test_there_are_mistakes_for_every_check_of_overlays():
    counted = Counter(mistake.check for mistake in MISTAKES)
    # What a schema lets through is looked for by `negative-controls` itself.
    assert counted.keys() == OVERLAY_CHECKS.keys() - {"negative-controls"}
    assert len({mistake.name for mistake in MISTAKES}) == len(MISTAKES) >= 25


def test_every_kind_of_manifest_has_mutants_that_both_versions_refuse(overlays):
    documents = {each["kind"]: each for overlay in overlays.values() for each in overlay.documents}
    assert {"RayService", "Job", "NetworkPolicy", "PodMonitor", "PrometheusRule", "Gateway"} <= documents.keys()
    with tools_or_skip():
        for kind, document in documents.items():
            first = next(mutants(document))[1]
            assert problems_of(first, OLDEST), kind
            assert problems_of(first, NEWEST), kind


def test_a_schema_that_refuses_nothing_is_itself_found(overlays, monkeypatch):
    import jsonschema

    from k8s.checks import schemas

    monkeypatch.setattr(schemas, "_validator", lambda *_: jsonschema.Draft202012Validator({}))
    monkeypatch.setattr(schemas, "_metadata", lambda _: jsonschema.Draft202012Validator({}))
    assert len(schemas.check_negative_controls(overlays["local-cpu"])) > 100


@pytest.mark.parametrize("overlay", ["prod-gpu", "loadtest-gpu"])
def test_gpu_pods_start_from_zero_and_eight_quarters_need_two(overlay, overlays):
    plan = plan_of(overlays[overlay].rayservice())
    assert plan.rest.pods == {"cpu": 2, "gpu": 0}
    assert plan.full.pods["gpu"] == 2 == plan.gpus
    assert (plan.rest.infeasible, plan.full.infeasible) == (0, 0)


def test_a_cluster_on_one_machine_grows_from_one_worker_to_four(overlays):
    plan = plan_of(overlays["local-cpu"].rayservice())
    assert (plan.rest.pods, plan.full.pods) == ({"cpu": 1}, {"cpu": 4})
    assert plan.full.infeasible == 0


@pytest.fixture
def copy_of_the_files(tmp_path):
    """What the checks of files read, to be spoiled."""
    for name in ("pyproject.toml", "constraints.txt", "Makefile"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s", ignore=shutil.ignore_patterns("__pycache__", "checks"))
    (tmp_path / "tests/k8s").mkdir(parents=True)
    shutil.copy(ROOT / "tests/k8s/alerts.test.yaml", tmp_path / "tests/k8s")
    return tmp_path


def replaced(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text, old
    file.write_text(text.replace(old, new, 1))


def found_by(check, root) -> str:
    with tools_or_skip():
        return "\n".join(str(finding) for finding in check(root))


def test_a_file_that_no_overlay_uses_is_found(copy_of_the_files):
    assert found_by(check_no_dead_file, copy_of_the_files) == ""
    (copy_of_the_files / "k8s/components/gpu/old-group.yaml").write_text("{}")
    assert "old-group.yaml" in found_by(check_no_dead_file, copy_of_the_files)


def test_a_component_that_no_overlay_uses_is_found(copy_of_the_files):
    replaced(copy_of_the_files / "k8s/overlays/prod-gpu/kustomization.yaml", "  - ../../components/tls-gateway\n", "")
    assert "components/tls-gateway/gateway.yaml" in found_by(check_no_dead_file, copy_of_the_files)


def test_a_patch_whose_test_does_not_hold_stops_the_rendering(copy_of_the_files):
    replaced(copy_of_the_files / "k8s/base/rayservice.yaml", "groupName: cpu", "groupName: processors")
    with tools_or_skip(), pytest.raises(ValueError, match="test"):
        render("local-cpu", copy_of_the_files)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("USER 1000:1000", "USER split-inference", "the last USER is no number"),
        ("FROM python:3.11.14-slim-bookworm AS build", "FROM python:3.11 AS build", "not pinned"),
        ("--no-install-recommends bash", "bash", "DL3015"),
        ("COPY split_inference split_inference", "COPY . .", "copies the whole folder"),
        ("ca-certificates grep wget", "ca-certificates grep wget g++", "the last stage has a compiler"),
        ("COPY loadtests loadtests\n", "", "installs the project without loadtests"),
        (
            "COPY loadtests loadtests\nRUN pip install --no-deps .\n",
            "RUN pip install --no-deps .\nCOPY loadtests loadtests\n",
            "installs the project without loadtests",
        ),
    ],
)
def test_a_mistake_in_a_dockerfile_is_found(copy_of_the_files, old, new, says):
    images = copy_of_the_files / "k8s/images"
    for other in ("edge", "loadtest"):
        (images / f"{other}.Dockerfile").unlink()
    replaced(images / "serve.Dockerfile", old, new)
    assert says in found_by(check_dockerfiles, copy_of_the_files)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("ray_serve_application_status) < 5", "ray_serve_application_status) < 2", "promtool test rules"),
        ("ray_serve_application_status) < 5", "ray_serve_application_status)) < 5", "promtool check rules"),
        ("- alert: ProxyBehind", "- alert: ProxyFarBehind", "ProxyFarBehind: no test"),
    ],
    ids=["another bound", "no expression", "no test"],
)
def test_a_mistake_in_an_alert_is_found(copy_of_the_files, old, new, says):
    replaced(copy_of_the_files / "k8s/components/monitoring/alerts.yaml", old, new)
    assert says in found_by(check_alerts, copy_of_the_files)


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("constraints.txt", "\nray==2.60.0", "\nray==2.59.0", "does not say ray==2.60.0"),
        ("pyproject.toml", "ray[serve]==2.60.0", "ray[serve]==2.61.0", "installed Ray"),
        ("k8s/images/serve.Dockerfile", "0.1.0-ray2.60.0", "0.1.0-ray2.58.0", "serve:0.1.0-ray2.58.0"),
        ("pyproject.toml", 'version = "0.1.0"', 'version = "0.2.0"', "it is 0.2.0"),
    ],
)
def test_a_version_that_drifted_is_found(copy_of_the_files, file, old, new, says):
    replaced(copy_of_the_files / file, old, new)
    assert says in found_by(check_pins, copy_of_the_files)
