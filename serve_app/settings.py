"""All that `args` in config.yaml may say, checked before anything starts.

Knows names, ranges and reasons. Knows no Ray, no torch and no HTTP. A wrong key or value is one line that names
the field, because Serve itself prints a traceback and runs on.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from split_inference.errors import ConfigError
from split_inference.wire import MAX_FRAME_BYTES, MAX_RAW_BYTES, MAX_SAMPLES

DEFAULT_ROUTE = "/v1/models"

# Served names are one path segment that needs no escaping in a URL, a log line or a metric label.
ServedName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class Settings(BaseModel):
    """Text from outside: unknown keys are refused, and what was read does not change afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Limits(Settings):
    """What one request, and all waiting requests together, may cost. Serve itself has no limit on a body."""

    max_frame_bytes: int = Field(default=MAX_FRAME_BYTES, ge=1024, le=MAX_FRAME_BYTES)
    """Bytes of one frame; the wire format's own limit is the most. Checked against Content-Length before reading."""
    max_raw_bytes: int = Field(default=MAX_RAW_BYTES, ge=1024, le=MAX_RAW_BYTES)
    """Bytes of one frame's tensors after decoding; without it a few packed bytes could ask for any amount of memory."""
    max_samples: int = Field(default=MAX_SAMPLES, ge=1, le=MAX_SAMPLES)
    """Samples in one frame: one frame holds the model for as long as all of its samples take."""
    max_pixels: int = Field(default=50_000_000, ge=1, le=200_000_000)
    """Pixels of an encoded image by its header: 50 million are 150 MB decoded, and few phones take more."""
    max_input_bytes: int = Field(default=16 * 2**20, ge=1, le=MAX_FRAME_BYTES)
    """Bytes of an encoded image or sound: a 50-megapixel JPEG at a high quality has about this many."""
    body_timeout_s: float = Field(default=10.0, gt=0, le=600)
    """A body has to arrive within this time: a request has its slot before, and half-sent ones would starve others."""
    max_unread_requests: int = Field(default=64, ge=1, le=100_000)
    """Requests whose body is arriving; fewer than `max_ongoing_requests`, so that slow senders leave slots free."""
    max_pending_requests: int = Field(default=192, ge=1, le=100_000)
    """Requests that arrive, wait or run; fewer than `max_ongoing_requests`, so that a refusal says when to retry."""
    max_pending_bytes: int = Field(default=256 * 2**20, ge=MAX_FRAME_BYTES, le=64 * 2**30)
    """Body bytes held at one time by all of them: bounds memory where few requests are large."""
    max_request_age_s: float = Field(default=60.0, gt=0, le=3600)
    """A replica whose oldest request is older than this says that it is unhealthy and is replaced."""


class AppSettings(Settings):
    """`args` of `serve_app.app:build_app`: one model, all of its split points, one route."""

    model: str = Field(min_length=1, max_length=4096)
    """URI of the model: `embedded:`, `hf:`, `pt2:`, `factory:` or a name such as `resnet34?weights=random&seed=0`."""
    name: ServedName | None = None
    """Name in the card; by default the model's own."""
    split_points: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Names of the split points to answer for; by default all of them."""
    threads: int = Field(default=1, ge=1, le=256)
    """Torch threads of a replica. One, and more replicas, is faster than several that fight for a busy machine."""
    device: Literal["cpu"] = "cpu"
    """Where the tail runs."""
    limits: Limits = Limits()

    @field_validator("model")
    @classmethod
    def _is_a_uri(cls, value: str) -> str:
        if value != value.strip() or not value.isprintable():
            raise ValueError("a model URI has no surrounding blanks and no control characters")
        return value


class CatalogEntry(Settings):
    """One line of the catalogue."""

    name: ServedName
    uri: str = Field(min_length=1, max_length=4096)
    route: str | None = Field(default=None, pattern=r"^/[A-Za-z0-9._~/-]*[A-Za-z0-9._~-]$")
    """Path of the model's application; by default the catalogue's route and the name."""


class CatalogSettings(Settings):
    """`args` of `serve_app.app:build_catalog`: what GET on the catalogue lists."""

    models: tuple[CatalogEntry, ...] = ()
    route: str = Field(default=DEFAULT_ROUTE, pattern=r"^/[A-Za-z0-9._~/-]*[A-Za-z0-9._~-]$")
    """The catalogue's own path, from which the models' default paths are made."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> CatalogSettings:
        names = [entry.name for entry in self.models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"models: {', '.join(twice)} listed twice")
        return self

    def route_of(self, entry: CatalogEntry) -> str:
        """Path under which the entry's model answers."""
        return entry.route or f"{self.route}/{entry.name}"


SettingsType = TypeVar("SettingsType", bound=BaseModel)


def read_settings(kind: type[SettingsType], args: SettingsType | Mapping[str, Any]) -> SettingsType:
    """The settings that `args` says, or ConfigError with one line that names the field."""
    if isinstance(args, kind):
        return args
    try:
        return kind.model_validate(args)
    except ValidationError as error:
        path, reason = first_problem(error, kind)
        raise ConfigError(f"{dotted(('args', *path))}: {reason}") from None


def first_problem(error: ValidationError, kind: type[BaseModel]) -> tuple[tuple[int | str, ...], str]:
    """First of a validation's errors: where it is, and what is wrong; an unknown key with the nearest known one."""
    first = error.errors(include_url=False)[0]
    path = tuple(first["loc"])
    if first["type"] == "extra_forbidden":
        return path, unknown_key(str(path[-1]), known_keys(kind, path[:-1]))
    if first["type"] == "missing":
        return path, "has to be set"
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
