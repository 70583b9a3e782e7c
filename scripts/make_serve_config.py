"""Writes what k8s/ takes from the rest of the repository: Serve configs and Ray's flags; `--check` compares.

config.yaml is right on a developer's machine and cannot be right in a pod as well: with host 127.0.0.1 replicas bind
to it too, and no Service reaches them. So the file in k8s/base is made from it, and differs in two things: it listens
on every interface, and it asks for tokens. k8s/components/gpu has the same with every model served on GPUs too.
Flags are those of `make serve` (serve_app/serve.py), as files that kustomize makes ConfigMaps of.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from serve_app.serve import FLAGS, HAPROXY_FLAGS, MAX_CONNECTIONS

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "config.yaml"
TOKENS_FILE = "/run/secrets/split-inference/tokens.yaml"
HOST = "0.0.0.0"
AUTH = {"mode": "token", "tokens_file": TOKENS_FILE}

# Of FLAGS, what a pod must not have: KubeRay sets the address of the cluster that a pod belongs to.
NOT_IN_PODS = frozenset({"RAY_ADDRESS"})
# What `make serve` reads off the machine. Pods have few cores, and replicas need most of them.
HAPROXY_IN_PODS: Mapping[str, str] = {
    "RAY_SERVE_HAPROXY_NBTHREAD": "2",
    "RAY_SERVE_HAPROXY_MAXCONN": str(MAX_CONNECTIONS),
}

GPU_SUFFIX = "-gpu"
# Four replicas on a GPU: decoding and HTTP are work for processors, and one replica leaves the GPU idle meanwhile.
GPU_SHARE = 0.25
GPU_MAX_REPLICAS = 8


def in_cluster(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same Serve config for pods: every interface, and tokens for every application."""
    made = copy.deepcopy(dict(config))
    made["http_options"]["host"] = HOST
    for application in made["applications"]:
        application["args"]["auth"] = dict(AUTH)
    return made


def with_gpus(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` and, for every model in it, an application on fractions of GPUs; at rest it has no replica."""
    made = copy.deepcopy(dict(config))
    added = []
    for application in made["applications"]:
        if "model" not in application["args"]:
            continue
        gpu = copy.deepcopy(application)
        gpu["name"] += GPU_SUFFIX
        gpu["route_prefix"] += GPU_SUFFIX
        gpu["args"]["device"] = "cuda"
        for deployment in gpu["deployments"]:
            deployment["autoscaling_config"] |= {"min_replicas": 0, "max_replicas": GPU_MAX_REPLICAS}
            deployment["ray_actor_options"] |= {"num_gpus": GPU_SHARE}
        added.append(gpu)
    for application in made["applications"]:
        models = application["args"].get("models", [])
        served = {gpu["args"]["model"]: gpu for gpu in added}
        models += [
            {"name": entry["name"] + GPU_SUFFIX, "uri": entry["uri"]}
            for entry in list(models)
            if entry["uri"] in served
        ]
    made["applications"] += added
    return made


def flags() -> dict[str, str]:
    """Flags of every Ray pod, whichever proxy it has."""
    return {name: value for name, value in FLAGS.items() if name not in NOT_IN_PODS}


def haproxy_flags() -> dict[str, str]:
    """Flags of every Ray pod that serves through HAProxy, beside `flags`."""
    return {**HAPROXY_FLAGS, **HAPROXY_IN_PODS}


def rendered() -> dict[Path, str]:
    """Every file and its content."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    base = in_cluster(config)
    return {
        ROOT / "k8s/base/serve.yaml": _yaml(base, "config.yaml; listens on every interface and asks for tokens"),
        ROOT / "k8s/components/gpu/serve.yaml": _yaml(
            with_gpus(base), "config.yaml; as k8s/base/serve.yaml, with every model on GPUs too"
        ),
        ROOT / "k8s/base/serve-flags.env": _env(flags()),
        ROOT / "k8s/components/haproxy/haproxy-flags.env": _env(haproxy_flags()),
    }


def _yaml(config: Mapping[str, Any], what: str) -> str:
    body = yaml.safe_dump(dict(config), sort_keys=False, width=120)
    return f"# Made by `make k8s-serve-config` from {what}.\n{body}"


def _env(values: Mapping[str, str]) -> str:
    lines = [f"{name}={value}" for name, value in values.items()]
    return (
        "\n".join(["# Made by `make k8s-serve-config` from serve_app/serve.py, which has the reasons.", *lines]) + "\n"
    )


def main() -> int:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where a file differs")
    options = parser.parse_args()
    differing = [file for file, text in rendered().items() if not file.is_file() or file.read_text() != text]
    for file in differing:
        if options.check:
            print(f"{file.relative_to(ROOT)} is not what its source gives; run make k8s-serve-config", file=sys.stderr)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(rendered()[file])
    return 1 if options.check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
