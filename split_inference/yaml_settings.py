"""What is wrong with a YAML file of ours, in one line: the file, the line, the field, the reason.

Joins yaml_lines.py, which knows lines, and settings.py, which knows fields.
"""

from __future__ import annotations

from pydantic import BaseModel, ValidationError

from split_inference.settings import HAS_TO_BE_SET, dotted, first_problem
from split_inference.yaml_lines import YamlFile


def first_problem_line(file: YamlFile, error: ValidationError, kind: type[BaseModel], *, root: str) -> str:
    """First of a validation's errors; `root` names the whole file, where no field is to blame."""
    place, reason = first_problem(error, kind)
    known = file.known_part(place)
    # What is missing is no part of the file, and is named all the same.
    named = (*known, place[-1]) if reason == HAS_TO_BE_SET else known
    return f"{file.path}:{file.line_of(known)}: {dotted(named) or root}: {reason}"
