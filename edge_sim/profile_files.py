"""Profiles as data: YAML files in which every figure has a source, or says that it is assumed and within what bounds.

Knows YAML and pydantic. Knows no links, radios or devices. A wrong key or value is one line with file and field.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from split_inference.errors import ConfigError

# A thousand profiles with their sources; a larger file is something else.
MAX_PROFILE_BYTES = 2**20
# One word for command lines, tables and JSON keys.
ProfileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class ProfileData(BaseModel):
    """Text from outside: unknown keys are refused, and what was read does not change afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Figure(ProfileData):
    """A number with where it is from. One that nobody measured says `assumed: true`, and how far off it may be."""

    value: float = Field(ge=0)
    source: str | None = Field(default=None, min_length=1, max_length=500)
    """Paper, table or page; with an assumed figure, what the assumption rests on."""
    assumed: bool = False
    low: float | None = Field(default=None, ge=0)
    high: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _is_founded(self) -> Figure:
        if self.assumed and (self.low is None or self.high is None):
            raise ValueError("an assumed figure needs low and high")
        if not self.assumed and self.source is None:
            raise ValueError("a figure needs its source, or assumed: true with low and high")
        if not self.lowest <= self.value <= self.highest:
            raise ValueError(f"low, value and high ascend, got {self.low}, {self.value}, {self.high}")
        return self

    @property
    def lowest(self) -> float:
        return self.value if self.low is None else self.low

    @property
    def highest(self) -> float:
        return self.value if self.high is None else self.high


ProfilesType = TypeVar("ProfilesType", bound=BaseModel)


def read_profiles(path: Path, kind: type[ProfilesType]) -> ProfilesType:
    """What the file says, checked. Raises ConfigError with file and field, or file and line where it is no YAML."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PROFILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    if len(data) > MAX_PROFILE_BYTES:
        raise ConfigError(f"{path}: more than {MAX_PROFILE_BYTES} bytes; is this a file of profiles?")
    try:
        content = yaml.load(data, _Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first_problem(error)}") from None


def pick(profiles: Mapping[str, ProfilesType], name: str, *, what: str) -> ProfilesType:
    """The profile of that name. Raises ConfigError with the names there are."""
    if name not in profiles:
        raise ConfigError(f"no {what} profile {name!r}; there are {', '.join(sorted(profiles))}")
    return profiles[name]


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = _dotted(first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key"
    if first["type"] == "missing":
        return f"{where}: has to be set"
    reason = " ".join(str(first["msg"]).removeprefix("Value error, ").split())
    value = first.get("input")
    shown = isinstance(value, str | int | float | bool | None) and len(repr(value)) <= 80
    return f"{where}: {reason}, got {value!r}" if shown else f"{where}: {reason}"


def _dotted(steps: Iterable[int | str]) -> str:
    text = ""
    for step in steps:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text or "the file"


class _Loader(yaml.SafeLoader):
    """Refuses what YAML readers let pass: a key that stands twice, of which they silently take the last, and
    aliases, with which a few lines can stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases are not used here", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} stands twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)
