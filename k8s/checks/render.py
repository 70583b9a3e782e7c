"""A. Overlays rendered by kubectl's own kustomize, and the files they are made of. The rim to kubectl and the disk."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from k8s.checks.model import Finding, Overlay, UnavailableError

ROOT = Path(__file__).resolve().parents[2]
_RENDER_TIMEOUT_S = 60


def overlay_names(root: Path = ROOT) -> list[str]:
    """Folders in k8s/overlays."""
    return sorted(folder.name for folder in (root / "k8s" / "overlays").iterdir() if folder.is_dir())


@cache
def kubectl() -> str:
    """Path of a kubectl with kustomize 5. Raises UnavailableError."""
    program = shutil.which("kubectl")
    hint = "components and replacements need kustomize 5, which kubectl has from 1.27 on"
    if program is None:
        raise UnavailableError(f"no kubectl on the PATH; {hint}")
    said = subprocess.run([program, "version", "--client"], capture_output=True, text=True, timeout=30, check=False)
    version = re.search(r"Kustomize Version: v(\d+)", said.stdout)
    if version is None or int(version[1]) < 5:
        raise UnavailableError(f"{program} has kustomize {version[1] if version else 'of before 5'}; {hint}")
    return program


def render(name: str, root: Path = ROOT) -> Overlay:
    """What `kubectl kustomize` makes of an overlay. Raises ValueError with kustomize's own words where it refuses."""
    folder = root / "k8s" / "overlays" / name
    command = [kubectl(), "kustomize", str(folder)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=_RENDER_TIMEOUT_S, check=False)
    if made.returncode != 0:
        raise ValueError(" ".join(made.stderr.split())[:400] or "kubectl kustomize failed")
    # libyaml where it is there: dashboards are most of the text.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return Overlay(name=name, documents=tuple(each for each in yaml.load_all(made.stdout, Loader=loader) if each))


def check_no_dead_file(root: Path = ROOT) -> list[Finding]:
    """Every file under k8s/ is used by an overlay, by an image, or named by the README; checks/ is code."""
    used = {file for name in overlay_names(root) for file in files_of(root / "k8s" / "overlays" / name)}
    used |= _of_images(root)
    used |= _of_readme(root)
    return [
        Finding(where=str(file.relative_to(root)), problem="no overlay, image or README uses it")
        for file in sorted((root / "k8s").rglob("*"))
        if file.is_file() and file not in used and file.suffix != ".py" and "__pycache__" not in file.parts
    ]


def files_of(folder: Path) -> set[Path]:
    """The files that a kustomization is made of, those of its bases and components with it."""
    file = folder / "kustomization.yaml"
    found, seen = {file}, yaml.safe_load(file.read_text(encoding="utf-8"))
    for name in _named(seen):
        path = (folder / name).resolve()
        if path.is_dir():
            found |= files_of(path)
        elif path.is_file():
            found.add(path)
    return found


def _named(kustomization: dict[str, Any]) -> list[str]:
    named = [*kustomization.get("resources", []), *kustomization.get("components", [])]
    named += kustomization.get("configurations", [])
    named += [patch["path"] for patch in kustomization.get("patches", []) if "path" in patch]
    named += [entry["path"] for entry in kustomization.get("replacements", []) if "path" in entry]
    for generator in [*kustomization.get("configMapGenerator", []), *kustomization.get("secretGenerator", [])]:
        named += [each.rpartition("=")[2] for key in ("files", "envs") for each in generator.get(key, [])]
    return named


def _of_images(root: Path) -> set[Path]:
    """Dockerfiles that `make images` builds, and what they copy."""
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    built = {root / name for name in re.findall(r"-f (k8s/images/\S+\.Dockerfile)", makefile)}
    copied = {
        root / name
        for file in built
        for name in re.findall(r"\b(k8s/images/[\w.-]+)", file.read_text(encoding="utf-8"))
    }
    return built | copied


def _of_readme(root: Path) -> set[Path]:
    """Itself, and files that are for people's hands: values of charts, and which Secrets are expected."""
    readme = root / "k8s" / "README.md"
    if not readme.is_file():
        return set()
    named = re.findall(r"(?:values|base)/[\w.-]+\.yaml|secrets\.example\.yaml", readme.read_text(encoding="utf-8"))
    by_hand = {root / "k8s" / name for name in named if name.startswith("values/")}
    if any(name.endswith("secrets.example.yaml") for name in named):
        by_hand.add(root / "k8s" / "base" / "secrets.example.yaml")
    return {readme, *by_hand}
