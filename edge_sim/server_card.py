"""What a server says of itself: its catalogue, a model's card, an error's body; and whether a card fits this device.

Knows the JSON of those three. Knows no HTTP. Text from outside, so it is checked here, once; unknown keys
are ignored, because a newer server may say more to an older device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from split_inference import errors
from split_inference.errors import (
    DigestMismatchError,
    FeatureMismatchError,
    ServerError,
    SplitInferenceError,
    UnknownCodecError,
    UnknownSplitPointError,
    UsageError,
    WireError,
)
from split_inference.model_split import SplitPoint
from split_inference.model_uri import parse_uri
from split_inference.wire import WIRE_VERSION

_SAFE_SCHEMES = ("embedded", "hf", "classic")


class _FromServer(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


_Parsed = TypeVar("_Parsed", bound=_FromServer)


class CardFeature(_FromServer):
    """One tensor that the server's tail takes."""

    shape: tuple[int, ...]
    dtype: str


class CardSplitPoint(_FromServer):
    """One split point that the server answers for."""

    name: str
    aliases: tuple[str, ...] = ()
    features: tuple[CardFeature, ...]
    codecs: tuple[str, ...] = ()


class ServerCard(_FromServer):
    """GET on a model's route."""

    name: str
    uri: str
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    labels: tuple[str, ...] = ()
    trained: bool = True
    untrained_notice: str | None = None
    wire_versions: tuple[int, ...]
    split_points: tuple[CardSplitPoint, ...]

    @classmethod
    def parse(cls, body: bytes, *, where: str) -> ServerCard:
        """The card in a JSON body; ServerError where it is none."""
        return _parsed(cls, body, where=where)


class CatalogEntry(_FromServer):
    """One model that a server has."""

    name: str
    uri: str
    route: str = Field(pattern=r"^/[\x21-\x7e]*$")


class Catalog(_FromServer):
    """GET on the catalogue's route."""

    models: tuple[CatalogEntry, ...]

    @classmethod
    def parse(cls, body: bytes, *, where: str) -> Catalog:
        """The catalogue in a JSON body; ServerError where it is none."""
        return _parsed(cls, body, where=where)


class _ErrorBody(_FromServer):
    error: str
    reason: str


def safe_uri(entry: CatalogEntry | ServerCard) -> str:
    """The URI, when a device may load it on a server's word; UsageError otherwise.

    No code of the server's choice and no file of this device: no `factory:`, no `pt2:`, no option that names a file.
    """
    uri = parse_uri(entry.uri)
    if uri.scheme in _SAFE_SCHEMES and "card" not in uri.options and uri.options.get("weights", "random") == "random":
        return entry.uri
    raise UsageError(
        f"the server says that {entry.name} comes from {entry.uri!r}, which a device does not load on a server's word: "
        "give --model with the URI that you trust"
    )


def check_digest(card: ServerCard, digest: str, *, where: str) -> None:
    """Raise DigestMismatchError where the server has other weights or other split points than this device."""
    if card.digest != digest:
        raise DigestMismatchError(
            f"{where} has {card.name} with digest {card.digest[:12]}.., this device has {digest[:12]}..: "
            "load the same model on both sides"
        )


def check_split_point(card: ServerCard, point: SplitPoint, codec: str, *, where: str) -> None:
    """Raise a WireError where the server would refuse frames of this split point and codec."""
    if WIRE_VERSION not in card.wire_versions:
        spoken = ", ".join(map(str, card.wire_versions))
        raise ServerError(
            f"{where} speaks wire version {spoken}; this device speaks {WIRE_VERSION}: update the older side"
        )
    served = next((each for each in card.split_points if each.name == point.name), None)
    if served is None:
        names = ", ".join(each.name for each in card.split_points[:8])
        raise UnknownSplitPointError(f"{where} does not answer for split point {point.name}; it does for {names}")
    ours = [(spec.shape, spec.dtype) for spec in point.features]
    theirs = [(spec.shape, spec.dtype) for spec in served.features]
    if ours != theirs:
        raise FeatureMismatchError(
            f"at {point.name} {where} takes {theirs}, this device has {ours}: update the older side"
        )
    # The quality of a tiled JPEG is the sender's business: any jpegNN in the card stands for all of them.
    decoded = {"jpeg" if each.startswith("jpeg") else each for each in served.codecs}
    if decoded and ("jpeg" if codec.startswith("jpeg") else codec) not in decoded:
        raise UnknownCodecError(f"{where} does not decode {codec} at {point.name}; it does {_some(served.codecs)}")


def refusal(body: bytes, headers: Mapping[str, str]) -> tuple[str, str] | None:
    """Class name and reason of our own JSON error body, or None: then something else on the way answered."""
    if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return None
    try:
        parsed = _ErrorBody.model_validate_json(body)
    except ValidationError:
        return None
    # One line, whatever the server put into it: this ends on a terminal.
    return parsed.error, "".join(each if each.isprintable() else " " for each in parsed.reason)[:500]


def refusal_error(name: str, reason: str, *, status: int, retriable: bool, where: str) -> SplitInferenceError:
    """The error to raise for a refusal: the class that the server raised, where this side has it too."""
    kind = getattr(errors, name, None)
    if not retriable and isinstance(kind, type) and issubclass(kind, WireError):
        return kind(f"{where} refused it: {reason}")
    return ServerError(f"{where} answered {status} {name}: {reason}", status=status, retriable=retriable)


def _parsed(kind: type[_Parsed], body: bytes, *, where: str) -> _Parsed:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or "the body"
        raise ServerError(
            f"{where} is no {kind.__name__} that this version understands ({field}: {first['msg']})"
        ) from error


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
