"""The thin rim: Ray Serve deployments around the ingress and the catalogue.

Knows Ray. Torch and the model are imported only where a replica starts, so that building an application, which
Serve does in a process of its own, stays cheap.
"""

from __future__ import annotations

import logging
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from serve_app.settings import AppSettings, CatalogSettings

# On a replica every other logger ends in a stderr that Serve writes out at INFO, and so not at all.
_LOG = logging.getLogger("ray.serve")


class TailReplica:
    """One replica: all the weights once, and every split point of the model."""

    def __init__(self, settings: AppSettings) -> None:
        from serve_app.ingress import Ingress
        from serve_app.tail_runner import TailRunner

        self._ingress = Ingress(TailRunner.load(settings), limits=settings.limits, log=_LOG)

    async def __call__(self, request: Request) -> Response:
        return await self._ingress.answer(request)

    async def check_health(self) -> None:
        self._ingress.check_health()


class CatalogReplica:
    """One replica that lists the models; no torch."""

    def __init__(self, settings: CatalogSettings) -> None:
        from serve_app.catalog import Catalog

        self._catalog = Catalog(settings, log=_LOG)

    async def __call__(self, request: Request) -> Response:
        return await self._catalog.answer(request)


# Where config.yaml says nothing: more slots than `max_pending_requests` admits, so that a refusal is the ingress's own.
_DEFAULTS: dict[str, Any] = {"max_ongoing_requests": 256, "health_check_period_s": 5, "health_check_timeout_s": 10}

TailDeployment: Any = serve.deployment(TailReplica, name="TailDeployment", **_DEFAULTS)
CatalogDeployment: Any = serve.deployment(CatalogReplica, name="CatalogDeployment", **_DEFAULTS)
