"""Names of models, taken apart: the forms of a URI and its options.

Knows no torch and loads nothing, so that a configuration can be checked in no time. The forms are described in
model_catalog.py, which loads what a URI names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from split_inference.errors import ModelLoadError

EMBEDDED_URI = "embedded:resnet20-cifar10"
CLASSIC_MODELS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "vgg16", "vgg19")
# No other digits than these, of which int() takes some and not all, and fewer than it refuses.
_SEED = re.compile(r"[0-9]{1,39}")
RUNS_CODE = ("factory",)
_OPTIONS = {
    "embedded": {"name"},
    "hf": {"weights", "seed", "card", "name"},
    "pt2": {"card", "name"},
    "factory": {"weights", "seed", "card", "name"},
    "classic": {"weights", "seed", "card", "name"},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelUri:
    """A URI taken apart; see the module's text for the forms."""

    scheme: str
    """embedded, hf, pt2, factory or classic."""
    path: str
    options: Mapping[str, str]
    text: str

    @property
    def name(self) -> str:
        """The plain name a server would use: letters, digits, dot, dash and underscore."""
        given = self.options.get("name")
        if given:
            return given
        if self.scheme == "pt2":
            return Path(self.path).stem
        last = self.path.rpartition(":")[2] if self.scheme == "factory" else Path(self.path).name
        return "".join(c if c.isalnum() or c in "._-" else "-" for c in last)

    @property
    def random_weights(self) -> bool:
        return self.options.get("weights") == "random"


def parse_uri(uri: str) -> ModelUri:
    """Take a URI apart without loading anything; ModelLoadError says what is wrong and names the forms."""
    head, _, query = uri.partition("?")
    scheme, colon, path = head.partition(":")
    if not colon:
        scheme, path = "classic", head
        if path not in CLASSIC_MODELS:
            raise ModelLoadError(
                f"unknown model {uri!r}: give {EMBEDDED_URI}, hf:ID-OR-FOLDER, pt2:FILE, factory:MODULE:CALLABLE, "
                f"or one of {', '.join(CLASSIC_MODELS)}"
            )
    if scheme not in _OPTIONS or not path:
        raise ModelLoadError(f"unknown model {uri!r}: the schemes are embedded:, hf:, pt2: and factory:")
    if scheme == "embedded" and head != EMBEDDED_URI:
        raise ModelLoadError(f"no embedded model {path!r}; there is one, {EMBEDDED_URI}")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for key in options:
        if key not in _OPTIONS[scheme]:
            known = ", ".join(sorted(_OPTIONS[scheme]))
            raise ModelLoadError(f"model {uri!r}: option {key!r} is not known for {scheme}; known are {known}")
    if not _SEED.fullmatch(options.get("seed", "0")):
        raise ModelLoadError(f"model {uri!r}: seed must be a whole number below 10^39, got {options['seed'][:80]!r}")
    if scheme == "factory" and not path.rpartition(":")[0]:
        raise ModelLoadError(f"model {uri!r}: a factory is written factory:PACKAGE.MODULE:CALLABLE")
    parsed = ModelUri(scheme=scheme, path=path, options=options, text=uri)
    if not parsed.name or not all(c.isalnum() or c in "._-" for c in parsed.name):
        raise ModelLoadError(
            f"model {uri!r}: name {parsed.name!r} may hold letters, digits, dot, dash and underscore only"
        )
    return parsed
