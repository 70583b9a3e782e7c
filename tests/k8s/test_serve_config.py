"""What k8s/ takes from the rest: Serve configs differ from config.yaml in what is meant to differ and nothing else."""

from __future__ import annotations

import yaml

from scripts.make_serve_config import AUTH, CONFIG, HAPROXY_IN_PODS, ROOT, flags, haproxy_flags, rendered
from serve_app.serve import FLAGS, HAPROXY_FLAGS, environment_of

BASE = ROOT / "k8s/base/serve.yaml"
GPU = ROOT / "k8s/components/gpu/serve.yaml"


def read(file):
    return yaml.safe_load(file.read_text())


def differences(left, right, path=()):
    """Paths at which two documents differ, with what is on the right side."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in {**left, **right}:
            yield from differences(left.get(key), right.get(key), (*path, key))
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for index, pair in enumerate(zip(left, right, strict=True)):
            yield from differences(*pair, (*path, index))
    elif left != right:
        yield ".".join(map(str, path)), right


def read_env(file):
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_the_files_are_what_their_sources_give():
    for file, text in rendered().items():
        assert file.read_text() == text, f"{file.relative_to(ROOT)}: run make k8s-serve-config"


def test_the_cluster_serves_config_yaml_on_every_interface_to_whoever_has_a_token():
    applications = range(len(read(CONFIG)["applications"]))
    assert dict(differences(read(CONFIG), read(BASE))) == {
        "http_options.host": "0.0.0.0",
        **{f"applications.{index}.args.auth": AUTH for index in applications},
    }


def test_with_gpus_everything_else_stays_and_every_model_is_served_once_more():
    base, gpu = read(BASE), read(GPU)
    count = len(base["applications"])
    models = [app for app in base["applications"] if "model" in app["args"]]
    added = gpu["applications"][count:]
    assert len(added) == len(models) > 0
    gpu["applications"] = gpu["applications"][:count]
    # The catalogue is the only application that changes: a line for each.
    changed = dict(differences(base, gpu))
    assert list(changed) == ["applications.0.args.models"]
    names = [entry["name"] for entry in changed["applications.0.args.models"]]
    assert names == [*(entry["name"] for entry in base["applications"][0]["args"]["models"]), "resnet20-cifar10-gpu"]
    for model, copy in zip(models, added, strict=True):
        assert dict(differences(model, copy)) == {
            "name": f"{model['name']}-gpu",
            "route_prefix": f"{model['route_prefix']}-gpu",
            "args.device": "cuda",
            "deployments.0.autoscaling_config.min_replicas": 0,
            "deployments.0.ray_actor_options.num_gpus": 0.25,
        }


def test_pods_have_the_flags_of_make_serve(tmp_path):
    plain = read_env(ROOT / "k8s/base/serve-flags.env")
    haproxy = read_env(ROOT / "k8s/components/haproxy/haproxy-flags.env")
    assert plain == flags() == {name: value for name, value in FLAGS.items() if name != "RAY_ADDRESS"}
    assert haproxy == haproxy_flags()
    assert {name: haproxy[name] for name in HAPROXY_FLAGS} == HAPROXY_FLAGS
    assert haproxy.keys() - HAPROXY_FLAGS.keys() == HAPROXY_IN_PODS.keys()
    # What make serve sets and pods do not: the cluster's address, and files whose defaults are in a pod's own /tmp.
    local = environment_of({}, haproxy_folder=tmp_path, cores=2, open_files=2**20)
    missing = local.keys() - plain.keys() - haproxy.keys()
    assert missing == {"RAY_ADDRESS"} | {name for name, value in local.items() if value.startswith(str(tmp_path))}
