"""A YAML file with the line of every key, so that a refusal can say where.

Knows YAML. Knows no Ray and no settings. Refuses what YAML readers let pass: a key that stands twice in one mapping,
of which they silently take the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from split_inference.errors import ConfigError

Place = tuple[int | str, ...]
# What PyYAML raises for what looks like a date and is none, as 2026-13-01, and for text that does not fit its tag.
_NO_SUCH_VALUE = (ValueError, ArithmeticError, AttributeError, LookupError)


@dataclass(frozen=True, kw_only=True, slots=True)
class YamlFile:
    """What the file says, and on which line each key or list item begins (counted from 1)."""

    path: Path
    data: Any
    lines: dict[Place, int]

    def line_of(self, place: Place) -> int:
        """Line of a key or item; of the nearest one above it where the file does not mention it."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def known_part(self, place: Place) -> Place:
        """The part of a place that the file has: validators add steps of their own behind it."""
        at: Any = self.data
        for depth, step in enumerate(place):
            try:
                at = at[step]
            except (KeyError, IndexError, TypeError):
                return place[:depth]
        return place


def read_yaml(path: Path) -> YamlFile:
    """Read one YAML document. Raises ConfigError with file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    lines: dict[Place, int] = {(): 1}
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            raise ConfigError(f"{path}: the file is empty")
        _note_lines(root, (), lines, path, [])
        data = _constructed(root, path)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    return YamlFile(path=path, data=data, lines=lines)


def _constructed(root: yaml.Node, path: Path) -> Any:
    try:
        return yaml.constructor.SafeConstructor().construct_document(root)
    except _NO_SUCH_VALUE as error:
        reason = " ".join(str(error).split()) if isinstance(error, ValueError) else "it is not what its tag says"
        raise ConfigError(f"{path}:{_line_that_fails(root) or 1}: a value cannot be read: {reason}") from None


def _line_that_fails(node: yaml.Node) -> int:
    """Of the first scalar that cannot be made a value."""
    if isinstance(node, yaml.ScalarNode):
        try:
            yaml.constructor.SafeConstructor().construct_object(node)
        except _NO_SUCH_VALUE:
            return node.start_mark.line + 1
        return 0
    inner = node.value if isinstance(node, yaml.SequenceNode) else [each for pair in node.value for each in pair]
    return next((line for each in inner if (line := _line_that_fails(each))), 0)


def _note_lines(node: yaml.Node, place: Place, lines: dict[Place, int], path: Path, above: list[yaml.Node]) -> None:
    if any(node is each for each in above):
        raise ConfigError(f"{path}:{node.start_mark.line + 1}: an alias refers to what it stands in")
    above = [*above, node]
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            step, line = str(key.value), key.start_mark.line + 1
            if (*place, step) in lines and step != "<<":
                raise ConfigError(f"{path}:{line}: {step} stands twice, first on line {lines[*place, step]}")
            lines[*place, step] = line
            _note_lines(value, (*place, step), lines, path, above)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[*place, index] = item.start_mark.line + 1
            _note_lines(item, (*place, index), lines, path, above)
