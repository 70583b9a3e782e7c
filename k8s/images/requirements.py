"""Prints what pip has to install for some extras of pyproject.toml, so that an image has the project's own pins.

`python requirements.py serve edge --without torch`: the dependencies of the project and of these extras, but torch,
which comes from an index of its own, or not at all. The standard library only: nothing is installed yet.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path


def requirements(project: dict[str, object], extras: Sequence[str], *, without: Sequence[str] = ()) -> list[str]:
    """Requirement lines of the project table. Raises KeyError for an extra that is not there."""
    optional = project.get("optional-dependencies", {})
    lines = list(project.get("dependencies", []))  # type: ignore[call-overload]
    for extra in extras:
        lines += optional[extra]  # type: ignore[index]
    return [line for line in lines if _name(line) not in without]


def _name(line: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0].lower()


def main() -> None:
    """Print them, one a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("extras", nargs="*")
    parser.add_argument("--without", action="append", default=[], metavar="NAME")
    parser.add_argument("--only", metavar="NAME", help="print this requirement of the project and nothing else")
    parser.add_argument("--project", type=Path, default=Path("pyproject.toml"))
    options = parser.parse_args()
    project = tomllib.loads(options.project.read_text(encoding="utf-8"))["project"]
    lines = requirements(project, options.extras, without=options.without)
    print("\n".join(line for line in lines if options.only in (None, _name(line))))


if __name__ == "__main__":
    main()
