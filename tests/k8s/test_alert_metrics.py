"""Alerts ask for metrics that exist: ours are in the table, Serve's in the Ray that is installed."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import yaml

from serve_app.metrics import METRICS

ROOT = Path(__file__).resolve().parents[2]
RULES = [
    rule
    for group in yaml.safe_load((ROOT / "k8s/components/monitoring/alerts.yaml").read_text())["spec"]["groups"]
    for rule in group["rules"]
]
# Of Prometheus itself, kube-state-metrics and the kubelet; the chart brings all of them.
OF_KUBERNETES = {
    "up",
    "container_memory_working_set_bytes",
    "kube_pod_container_resource_limits",
    "kube_pod_container_status_restarts_total",
    "kube_pod_status_phase",
    "kube_statefulset_status_replicas_ready",
}


def asked_for():
    """Names of all series in all expressions."""
    names = set()
    for rule in RULES:
        bare = re.sub(r'"[^"]*"', "", rule["expr"])
        names |= set(re.findall(r"\b(?:ray|kube|container)_\w+|\bup\b", re.sub(r"\{[^}]*\}", "", bare)))
    return names


def test_every_metric_that_an_alert_asks_for_exists():
    # Read and not imported: importing it takes seconds.
    found = importlib.util.find_spec("ray")
    assert found is not None
    assert found.origin is not None
    source = "\n".join(file.read_text() for file in (Path(found.origin).parent / "serve/_private").glob("*.py"))
    ours = {metric.exported_name + suffix for metric in METRICS for suffix in ("", "_bucket", "_count", "_sum")}
    asked = asked_for()
    assert len(asked) > 12
    for name in asked - ours - OF_KUBERNETES:
        assert name.startswith("ray_serve_"), name
        assert f'"{name.removeprefix("ray_")}"' in source, f"{name} is no metric of the installed Ray"


def test_labels_of_our_metrics_are_those_that_they_have():
    by_name = {
        metric.exported_name: {*metric.labels, "application", "deployment", "replica", "le"} for metric in METRICS
    }
    for rule in RULES:
        for name, selector in re.findall(r"(ray_split_inference_\w+?)(?:_bucket)?\{([^}]*)\}", rule["expr"]):
            assert set(re.findall(r"(\w+)\s*[=!]", selector)) <= by_name[name], rule["alert"]


def test_every_alert_has_a_test_a_severity_and_words_for_whoever_is_woken():
    tested = (ROOT / "tests/k8s/alerts.test.yaml").read_text()
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]
        assert {"summary", "description"} <= rule["annotations"].keys(), rule["alert"]
        named = re.findall(r'alertname(?:: |=~?\\?")([\w.*|]+)', tested)
        assert any(re.fullmatch(pattern, rule["alert"]) for pattern in named), f"{rule['alert']} has no test"
