"""The rules behind the checks, on small documents: policies, quantities, images, pods as the operator makes them."""

from __future__ import annotations

import json

import pytest

from k8s.checks import __main__ as command
from k8s.checks import registry
from k8s.checks.model import Finding, UnavailableError, dotted, leaves
from k8s.checks.network_policy import Peer, allows, selects
from k8s.checks.pod_security import violations
from k8s.checks.pods import Pod, pods_of, ray_pods
from k8s.checks.quantities import quantity
from k8s.checks.ray_start import ray_start_words
from k8s.checks.secrets import split_image

A = Peer(name="a", namespace="ours", labels={"app": "a"}, namespace_labels={"kubernetes.io/metadata.name": "ours"})
B = Peer(name="b", namespace="ours", labels={"app": "b"}, ports={"http": 8000})
AWAY = Peer(name="c", namespace="away", labels={"app": "a"}, namespace_labels={"kubernetes.io/metadata.name": "away"})
WORLD = Peer(name="world", namespace=None)


def policy(*rules, selector=None, namespace="ours"):
    spec = {"podSelector": selector or {}, "policyTypes": ["Ingress"], "ingress": list(rules)}
    return {"metadata": {"name": "p", "namespace": namespace}, "spec": spec}


def test_a_pod_that_no_policy_chooses_takes_everything():
    assert allows([], WORLD, B, 22)
    assert allows([policy(namespace="away")], A, B, 22)
    assert allows([policy(selector={"matchLabels": {"app": "x"}})], A, B, 22)


def test_a_policy_without_rules_keeps_everybody_out_and_others_add_to_it():
    deny = policy()
    from_a = policy({"from": [{"podSelector": {"matchLabels": {"app": "a"}}}]})
    assert not allows([deny], A, B, 8000)
    assert allows([deny, from_a], A, B, 8000)
    assert not allows([deny, from_a], AWAY, B, 8000)


def test_two_selectors_in_one_item_are_and_in_two_items_or():
    namespace = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "away"}}}
    pod = {"podSelector": {"matchLabels": {"app": "b"}}}
    assert not allows([policy({"from": [{**namespace, **pod}]})], AWAY, B, 1)
    assert allows([policy({"from": [namespace, pod]})], AWAY, B, 1)


def test_ports_by_number_by_name_and_by_range():
    assert allows([policy({"ports": [{"port": "http"}]})], WORLD, B, 8000)
    assert not allows([policy({"ports": [{"port": "http"}]})], WORLD, B, 8001)
    assert not allows([policy({"ports": [{"port": "nothing"}]})], WORLD, B, 8000)
    assert allows([policy({"ports": [{"port": 30000, "endPort": 31000}]})], WORLD, B, 30500)
    assert not allows([policy({"ports": [{"port": 8000, "protocol": "UDP"}]})], WORLD, B, 8000)


def test_the_world_matches_no_selector_and_every_rule_without_one():
    assert not allows([policy({"from": [{"namespaceSelector": {}}]})], WORLD, B, 1)
    for cidr in ("0.0.0.0/0", "10.0.0.0/8"):
        assert allows([policy({"from": [{"ipBlock": {"cidr": cidr}}]})], WORLD, B, 1)
        assert allows([policy({"from": [{"ipBlock": {"cidr": cidr}}]})], AWAY, B, 1)
    assert allows([policy({})], WORLD, B, 1)


@pytest.mark.parametrize(
    ("operator", "values", "expected"),
    [("In", ["a"], True), ("NotIn", ["a"], False), ("Exists", None, True), ("DoesNotExist", None, False)],
)
def test_expressions_of_selectors(operator, values, expected):
    selector = {"matchExpressions": [{"key": "app", "operator": operator, "values": values}]}
    assert selects(selector, {"app": "a"}) is expected


def test_an_operator_that_does_not_exist_is_no_silent_match():
    with pytest.raises(ValueError, match="Gt"):
        selects({"matchExpressions": [{"key": "app", "operator": "Gt"}]}, {})


@pytest.mark.parametrize(
    ("text", "value"), [("250m", 0.25), ("8Gi", 8 * 2**30), ("1G", 1e9), ("2", 2.0), (3, 3.0), ("0.5", 0.5)]
)
def test_quantities(text, value):
    assert quantity(text) == value


@pytest.mark.parametrize("text", ["", "eight", "1Gb", "-1"])
def test_what_is_no_quantity_is_refused(text):
    with pytest.raises(ValueError, match="no quantity"):
        quantity(text)


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("redis:7.2.4", ("redis", "7.2.4", "")),
        ("localhost:5000/serve", ("localhost:5000/serve", "", "")),
        ("ghcr.io/a/b:1@sha256:00", ("ghcr.io/a/b", "1", "sha256:00")),
    ],
)
def test_images_are_taken_apart(image, parts):
    assert split_image(image) == parts


def test_paths_of_leaves():
    document = {"a": [{"b": 1}], "c": None}
    assert [(dotted(path), value) for path, value in leaves(document)] == [("a[0].b", 1), ("c", None)]


def test_the_operators_own_containers_are_judged_too(overlays):
    found = {pod.where: [each["name"] for each in pod.containers()] for pod in pods_of(overlays["prod-gpu"])}
    name = "RayService/split-inference"
    assert found[f"{name} head (headgroup)"] == ["ray-head", "autoscaler"]
    assert found[f"{name} redis-cleanup (headgroup)"] == ["ray-head"]
    assert found[f"{name} worker (gpu)"] == ["wait-gcs-ready", "ray-worker"]


def test_ray_start_is_what_the_operator_writes(overlays):
    head, cpu, gpu = ray_pods(overlays["prod-gpu"])
    assert ray_start_words(head, overlays["prod-gpu"])[:3] == ["ray", "start", "--head"]
    assert {"--num-cpus=0", "--no-monitor", "--block"} <= set(ray_start_words(head, overlays["prod-gpu"]))
    words = set(ray_start_words(cpu, overlays["prod-gpu"]))
    assert {"--address=split-inference-head-svc:6379", f"--memory={10 * 2**30}"} <= words
    assert "--no-monitor" not in words
    assert "--num-gpus=1" in ray_start_words(gpu, overlays["prod-gpu"])


def test_a_pod_that_says_nothing_is_refused_for_each_rule():
    pod = Pod(where="x", labels={}, spec={"containers": [{"name": "c", "image": "x"}]})
    said = " ".join(violations(pod))
    for word in ("allowPrivilegeEscalation", "capabilities.drop", "runAsNonRoot", "seccompProfile"):
        assert word in said


def test_a_tool_that_is_missing_is_no_pass():
    def missing() -> list[Finding]:
        raise UnavailableError("no promtool on the PATH")

    result = registry.run_check("J", "alerts", "files", missing)
    assert (result.not_run, result.findings) == ("no promtool on the PATH", ())


@pytest.mark.parametrize(("required", "code"), [("1", 1), ("0", 0)])
def test_what_was_not_run_fails_where_ci_promised_the_tools(required, code, monkeypatch, tmp_path, capsys):
    def missing() -> list[Finding]:
        raise UnavailableError("no promtool on the PATH")

    monkeypatch.setenv("REQUIRE_DATA", required)
    monkeypatch.setitem(registry.REPOSITORY_CHECKS, "alerts", ("J", missing))
    monkeypatch.chdir(tmp_path)
    assert command.main(["--check", "alerts", "--overlay", "local-cpu"]) == code
    output = capsys.readouterr().out
    assert "NOT RUN" in output
    assert "no promtool on the PATH" in output


def test_findings_are_an_exit_code_and_json(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(
        registry.REPOSITORY_CHECKS, "pins", ("G", lambda: [Finding(where="constraints.txt", problem="is old")])
    )
    monkeypatch.chdir(tmp_path)
    assert command.main(["--check", "pins", "--overlay", "local-cpu", "--json"]) == 1
    results = json.loads(capsys.readouterr().out)
    assert results[-1]["findings"] == [{"where": "constraints.txt", "problem": "is old"}]


def test_a_check_that_does_not_exist_is_refused_with_those_that_do(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--check", "everything"])
    assert ended.value.code == 2
    assert "pod-security" in capsys.readouterr().err
