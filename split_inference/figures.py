"""Figures beside their bounds: what every bench, demo and check prints and leaves in runs/latest.

Knows nothing of what is measured. A bound is a pair of an operator and a number, as in ("<=", 0.35).
"""

from __future__ import annotations

import json
import operator
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

Bound = tuple[str, float]

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
    "==": operator.eq,
}
_VERSIONED = ("split-inference", "torch", "ray", "locust", "numpy", "lz4", "zstandard", "transformers")


def made_by(command: str) -> dict[str, object]:
    """Machine, versions, commit and command: what someone needs to make the figure again."""
    versions = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "command": command,
        "commit": _commit(),
        "machine": {"cpu": _cpu_name(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": versions,
    }


def _commit() -> str | None:
    """None outside of a checkout, and where there is no git, as in our images."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.strip() or None


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return models[0] if models else platform.machine()


def missed(figures: Mapping[str, float], bounds: Mapping[str, Bound]) -> list[str]:
    """Names of the bounds that do not hold; a bounded figure that was not measured is missed too."""
    return [
        name
        for name, (comparison, limit) in bounds.items()
        if name not in figures or not _COMPARISONS[comparison](figures[name], limit)
    ]


def report(
    target: str,
    figures: Mapping[str, float],
    bounds: Mapping[str, Bound],
    *,
    command: Sequence[str] | None = None,
    folder: Path = Path("runs/latest"),
    to_stderr: bool = False,
) -> int:
    """Print each figure beside its bound, write runs/latest/<target>.json, return the exit code (0 or 1)."""
    failed = missed(figures, bounds)
    stream = sys.stderr if to_stderr else sys.stdout
    width = max((len(name) for name in [*figures, *bounds]), default=0)
    for name in dict.fromkeys([*figures, *bounds]):
        value = f"{figures[name]:12.4g}" if name in figures else "not measured"
        bound = f"  {bounds[name][0]} {bounds[name][1]:g}" if name in bounds else ""
        verdict = "" if name not in bounds else ("  MISSED" if name in failed else "  ok")
        print(f"{name:{width}} {value}{bound}{verdict}", file=stream)
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "figures": dict(figures),
        "bounds": {name: list(bound) for name, bound in bounds.items()},
        "made_by": made_by(" ".join(command or sys.argv)),
    }
    partial = folder / f".{target}.json.partial"
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(folder / f"{target}.json")
    return 1 if failed else 0
