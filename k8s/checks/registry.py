"""The checks by name and letter, and how one is run: findings, or why it could not be run here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from k8s.checks.alerts import check_alerts
from k8s.checks.arguments import check_arguments
from k8s.checks.autoscaler import check_autoscaler
from k8s.checks.dockerfiles import check_dockerfiles
from k8s.checks.model import Finding, Overlay, UnavailableError
from k8s.checks.network_policy import check_network_policies
from k8s.checks.operator_rules import check_operator_rules
from k8s.checks.pod_security import check_pod_security
from k8s.checks.ray_rules import check_flags, check_ray_rules
from k8s.checks.references import check_references
from k8s.checks.render import check_no_dead_file
from k8s.checks.schemas import check_negative_controls, check_schemas
from k8s.checks.secrets import check_images_are_pinned, check_no_secret_in_clear
from k8s.checks.serve_config import check_serve_config
from k8s.checks.versions import check_pins, check_versions

OverlayCheck = Callable[[Overlay], list[Finding]]
RepositoryCheck = Callable[[], list[Finding]]

OVERLAY_CHECKS: dict[str, tuple[str, OverlayCheck]] = {
    "images-are-pinned": ("A", check_images_are_pinned),
    "no-secret-in-clear": ("A", check_no_secret_in_clear),
    "schemas": ("B", check_schemas),
    "negative-controls": ("B", check_negative_controls),
    "pod-security": ("C", check_pod_security),
    "operator-rules": ("D", check_operator_rules),
    "ray-rules": ("D", check_ray_rules),
    "flags": ("D", check_flags),
    "serve-config": ("E", check_serve_config),
    "autoscaler": ("F", check_autoscaler),
    "versions": ("G", check_versions),
    "references": ("H", check_references),
    "network-policies": ("I", check_network_policies),
    "arguments": ("J", check_arguments),
}
"""Name -> letter of the design's list and function, for what an overlay renders to."""

REPOSITORY_CHECKS: dict[str, tuple[str, RepositoryCheck]] = {
    "no-dead-file": ("A", check_no_dead_file),
    "pins": ("G", check_pins),
    "alerts": ("J", check_alerts),
    "dockerfiles": ("J", check_dockerfiles),
}
"""The same for files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One check of one overlay, or of the files."""

    letter: str
    check: str
    of: str
    findings: tuple[Finding, ...] = ()
    not_run: str | None = None
    """Why it could not be run."""
    took_s: float = 0.0


def run_check(letter: str, name: str, of: str, call: Callable[[], list[Finding]]) -> Result:
    """Call it; a missing tool is a result, everything else that is raised is a mistake of ours and goes up."""
    began_s = time.perf_counter()
    findings: tuple[Finding, ...] = ()
    not_run = None
    try:
        findings = tuple(call())
    except UnavailableError as error:
        not_run = str(error)
    took_s = time.perf_counter() - began_s
    return Result(letter=letter, check=name, of=of, findings=findings, not_run=not_run, took_s=took_s)
