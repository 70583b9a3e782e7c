"""Settings from outside, and what is wrong with them in one line: the field, the reason, the key that was meant.

Knows pydantic. Used for every file of ours, on the server and on the edge.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from split_inference.errors import ConfigError

HAS_TO_BE_SET: Final = "has to be set"


class Settings(BaseModel):
    """Text from outside: unknown keys are refused, and what was read does not change afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


SettingsType = TypeVar("SettingsType", bound=BaseModel)


def read_settings(
    kind: type[SettingsType], args: SettingsType | Mapping[str, Any], *, root: str = "args"
) -> SettingsType:
    """The settings that `args` says, or ConfigError with one line that names the field, below `root`."""
    if isinstance(args, kind):
        return args
    try:
        return kind.model_validate(args)
    except ValidationError as error:
        path, reason = first_problem(error, kind)
        raise ConfigError(f"{dotted((root, *path))}: {reason}") from None


def first_problem(error: ValidationError, kind: type[BaseModel]) -> tuple[tuple[int | str, ...], str]:
    """First of a validation's errors: where it is, and what is wrong; an unknown key with the nearest known one."""
    first = error.errors(include_url=False)[0]
    path = tuple(first["loc"])
    if first["type"] == "extra_forbidden":
        return path, unknown_key(str(path[-1]), known_keys(kind, path[:-1]))
    if first["type"] == "missing":
        return path, HAS_TO_BE_SET
    reason = " ".join(str(first["msg"]).removeprefix("Value error, ").split())
    value = first.get("input")
    shown = isinstance(value, str | int | float | bool | None) and len(repr(value)) <= 80
    return path, f"{reason}, got {value!r}" if shown else reason


def unknown_key(key: str, known: list[str]) -> str:
    """Says that a key is unknown, and which known one is nearest."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if near:
        return f"unknown key; did you mean {near[0]}?"
    return f"unknown key; known here: {', '.join(sorted(known))}" if known else "unknown key; none is known here"


def known_keys(kind: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Keys that the mapping at `path` inside `kind` may have; none where the path leads to no settings."""
    model: type[BaseModel] | None = kind
    for step in path:
        if isinstance(step, int) or model is None:
            continue
        field = model.model_fields.get(step)
        model = settings_model(field.annotation) if field else None
    return list(model.model_fields) if model else []


def settings_model(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model inside an annotation such as `X`, `X | None`, `list[X]` or `Union[dict, X]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType, list, tuple, Annotated):
        found = (settings_model(part) for part in get_args(annotation))
        return next((model for model in found if model), None)
    return None


def dotted(path: tuple[int | str, ...]) -> str:
    """`("applications", 0, "args")` as `applications[0].args`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text
