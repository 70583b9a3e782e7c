"""The list of models at /v1/models, and the answer for a model that is not served.

Knows names, URIs and routes from config.yaml. Knows no Ray, no torch and no model, so that it costs nothing.
"""

from __future__ import annotations

import difflib
import logging
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import Response

from serve_app.ingress import LOG, answer_or_refuse, json_response, method_not_allowed, path_below_route
from serve_app.settings import CatalogEntry, CatalogSettings
from serve_app.tokens import TokenBook
from split_inference.errors import UnknownModelError
from split_inference.model_card import UNTRAINED


class Catalog:
    """Answers GET with all models; every path below it that no model's application has is an unknown model."""

    def __init__(
        self, settings: CatalogSettings, *, tokens: TokenBook | None = None, log: logging.Logger = LOG
    ) -> None:
        """`tokens` are those of the settings' `auth`; without them everybody may read."""
        self._tokens = tokens or TokenBook(None)
        self._log = log
        self._names = [entry.name for entry in settings.models]
        self._content = {"models": [_line(entry, settings.route_of(entry)) for entry in settings.models]}

    async def answer(self, request: Request) -> Response:
        """The answer to any request on the catalogue's route or below it."""
        return await answer_or_refuse(self._answer, request, log=self._log)

    async def _answer(self, request: Request) -> Response:
        self._tokens.client_of(request.headers.get("authorization"))
        name = path_below_route(request)
        if name:
            nearest = difflib.get_close_matches(name, self._names, n=3, cutoff=0.3) or self._names
            here = f"; served here: {', '.join(nearest)}" if nearest else ""
            raise UnknownModelError(f"no model {name[:80]!r}{here}")
        if request.method not in ("GET", "HEAD"):
            return method_not_allowed(request.method, allowed="GET, HEAD")
        return json_response(self._content)


def _line(entry: CatalogEntry, route: str) -> dict[str, object]:
    line: dict[str, object] = {"name": entry.name, "uri": entry.uri, "route": route}
    if "random" in parse_qs(entry.uri.partition("?")[2]).get("weights", []):
        line |= {"trained": False, "untrained_notice": UNTRAINED}
    return line
