"""G. One version of everything: pyproject.toml's pins, rayVersion, images' tags, the installed Ray, the operator."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

from k8s.checks.model import Finding, Overlay, title
from k8s.checks.pods import pods_of, ray_container, ray_pods
from k8s.checks.render import ROOT
from k8s.checks.secrets import split_image

_RAY_PIN = re.compile(r"ray\[serve\]==([0-9][\w.]*)")
_OURS = re.compile(r"(?:^|/)split-inference-(serve|edge|loadtest)$")


def pinned(root: Path = ROOT) -> tuple[str, str]:
    """Version of the project, and the pin of Ray. Raises ValueError where Ray is not pinned."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = [found[1] for line in project["optional-dependencies"]["serve"] if (found := _RAY_PIN.fullmatch(line))]
    if len(pins) != 1:
        raise ValueError("pyproject.toml does not pin ray[serve] to one version")
    return project["version"], pins[0]


def check_versions(overlay: Overlay) -> list[Finding]:
    """An overlay's versions against the pins."""
    version, ray = pinned()
    service = overlay.rayservice()
    said = service["spec"]["rayClusterConfig"].get("rayVersion")
    found = []
    if said != ray:
        found.append(Finding(where=title(service), problem=f"rayVersion is {said}; pyproject.toml pins {ray}"))
    for pod in pods_of(overlay):
        for container in pod.containers():
            name, tag, _ = split_image(str(container.get("image", "")))
            ours = _OURS.search(name)
            if ours is None:
                continue
            allowed = [f"{version}-ray{ray}", f"{version}-ray{ray}-cuda"] if ours[1] == "serve" else [version]
            if tag not in allowed:
                problem = f"the image's tag is {tag}; {' or '.join(allowed)} is what `make images` builds"
                found.append(Finding(where=f"{pod.where} container {container['name']}", problem=problem))
    for pod in ray_pods(overlay):
        name, tag, _ = split_image(ray_container(pod)["image"])
        if not name.endswith("split-inference-serve"):
            found.append(Finding(where=pod.where, problem=f"runs {name}, not split-inference-serve"))
        elif tag.endswith("-cuda") != _has_gpu(ray_container(pod)):
            found.append(Finding(where=pod.where, problem=f"image {tag} and the pod's GPUs do not go together"))
    return found


def _has_gpu(container: dict[str, object]) -> bool:
    return "nvidia.com/" in str(container.get("resources") or {})


def check_pins(root: Path = ROOT) -> list[Finding]:
    """constraints.txt, the installed Ray, the Dockerfiles' examples and the operator's version say the same."""
    version, ray = pinned(root)
    found = []
    constraints = (root / "constraints.txt").read_text(encoding="utf-8")
    if f"\nray=={ray}\n" not in f"\n{constraints}\n":
        found.append(Finding(where="constraints.txt", problem=f"does not say ray=={ray}"))
    if metadata.version("ray") != ray:
        found.append(Finding(where="installed Ray", problem=f"is {metadata.version('ray')}; pyproject.toml pins {ray}"))
    files = [*sorted((root / "k8s" / "images").glob("*.Dockerfile")), root / "k8s" / "README.md"]
    for file in (each for each in files if each.is_file()):
        text = file.read_text(encoding="utf-8")
        for name, tag in re.findall(r"split-inference-(serve|edge|loadtest):([\w.-]+)", text):
            right = f"{version}-ray{ray}" if name == "serve" else version
            if tag.removesuffix("-cuda").removesuffix("-arm64") != right:
                problem = f"names split-inference-{name}:{tag}; it is {right}"
                found.append(Finding(where=str(file.relative_to(root)), problem=problem))
    found += _of_operator(root)
    return found


def _of_operator(root: Path) -> list[Finding]:
    """The operator is one version in the README's commands and in the chart's values."""
    files = [root / "k8s" / "README.md", root / "k8s" / "values" / "kuberay-operator.yaml"]
    said = {
        found
        for file in files
        if file.is_file()
        for found in re.findall(
            r"(?:kuberay-operator (?:--version )?|KubeRay operator \| )(\d+\.\d+\.\d+)", file.read_text()
        )
    }
    if len(said) > 1:
        return [
            Finding(where="k8s/README.md and values", problem=f"the operator has versions {', '.join(sorted(said))}")
        ]
    return []
