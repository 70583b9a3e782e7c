"""JSON files of ours, read into pydantic models: one line where a file is wrong, with the file and the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from split_inference.errors import ConfigError

_Model = TypeVar("_Model", bound=BaseModel)


def read_json_file(path: Path, kind: type[_Model], *, what: str) -> _Model:
    """The file as a `kind`; ConfigError says "<what> <path>: <field>: <problem>" in one line."""
    try:
        return kind.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error.strerror}") from error
    except ValidationError as error:
        raise ConfigError(f"{what} {path}: {first_problem(error)}") from error
    except (ValueError, RecursionError) as error:  # also of numbers of thousands of digits, and of lists in lists
        raise ConfigError(f"{what} {path} is not JSON: {error}") from error


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong, as "<field>: <problem>, got <value>" in one line."""
    detail = error.errors(include_url=False)[0]
    where = ".".join(_shown(part) for part in detail["loc"])
    # Of an object or a list the message says what is missing in it or unknown.
    nothing_to_show = detail["type"] == "missing" or isinstance(detail["input"], dict | list)
    got = "" if nothing_to_show else f", got {str(detail['input'])[:80]!r}"
    return f"{where + ': ' if where else ''}{detail['msg']}{got}"


def _shown(part: str | int) -> str:
    # An unknown key may be anything that somebody wrote.
    text = str(part)[:80]
    return text if text.isprintable() else repr(text)
