"""The thin rim: Ray Serve deployments around a replica and the catalogue.

Knows Ray. Torch and the model are imported only where a replica starts, so that building an application, which
Serve does in a process of its own, stays cheap.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import grpc
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from serve_app.settings import SLOTS, AppSettings, CatalogSettings

if TYPE_CHECKING:
    from serve_app.replica import Replica

# On a replica every other logger ends in a stderr that Serve writes out at INFO, and so not at all.
_LOG = logging.getLogger("ray.serve")


class TailReplica:
    """One replica: all the weights once, and every split point of the model."""

    _replica: Replica
    """From the first `reconfigure` on."""

    def __init__(self, settings: AppSettings) -> None:
        self._settings = settings

    async def reconfigure(self, user_config: dict[str, Any] | None, rank: object) -> None:
        """Serve calls this before the first request, since it takes a rank also where there is no `user_config`.

        So weights that `user_config` names are loaded at once, and those of `args` never.
        """
        if hasattr(self, "_replica"):
            self._replica.reconfigure(user_config)
            return
        from serve_app.ray_metrics import ray_instrument
        from serve_app.replica import Replica

        if self._settings.device == "cuda":
            from serve_app.gpu_share import cap_gpu_memory

            cap_gpu_memory(float(ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0)))
        self._replica = Replica(
            self._settings,
            live=user_config,
            make_instrument=ray_instrument,
            on_sticky_error=_end_process,
            say=_say,
            log=_LOG,
        )

    async def __call__(self, request: Request) -> Response:
        return await self._replica.ingress.answer(request)

    async def Infer(self, request: Any, grpc_context: Any) -> Any:
        outcome = await self._replica.grpc.infer(request, grpc_context.invocation_metadata())
        if outcome.code != "OK":
            grpc_context.set_code(grpc.StatusCode[outcome.code])
            grpc_context.set_details(f"{outcome.reply.error}: {outcome.reply.reason}")
        grpc_context.set_trailing_metadata(list(outcome.trailing))
        return outcome.reply

    async def Stream(self, requests: Any, grpc_context: Any) -> Any:
        async for reply in self._replica.grpc.stream(requests, grpc_context.invocation_metadata()):
            yield reply

    async def check_health(self) -> None:
        self._replica.check_health()

    def record_autoscaling_stats(self) -> dict[str, float]:
        # Serve begins to ask while the model is loaded.
        return self._replica.stats.record() if hasattr(self, "_replica") else {}

    async def __del__(self) -> None:
        # Serve awaits this when the replica leaves: what is queued is answered first.
        if hasattr(self, "_replica"):
            await self._replica.close()


class CatalogReplica:
    """One replica that lists the models; no torch."""

    def __init__(self, settings: CatalogSettings) -> None:
        from serve_app.catalog import Catalog
        from serve_app.tokens import TokenBook

        self._catalog = Catalog(settings, tokens=TokenBook.load(settings.auth, environ=os.environ), log=_LOG)

    async def __call__(self, request: Request) -> Response:
        return await self._catalog.answer(request)


def _say(line: str) -> None:
    """A line about the start, in the replica's log and where `serve run` was typed."""
    _LOG.warning("%s", line)
    for handler in _LOG.handlers:
        # In throughput mode Serve holds a thousand lines back.
        handler.flush()
    # Past Serve's own stderr, which writes at INFO.
    os.write(2, f"{line}\n".encode())


def _end_process(error: BaseException) -> None:
    # A device that fails for good fails every request at once, and the balancer prefers who answers soonest. Serve
    # starts another replica for a process that is gone; it would keep one that only says that it is unwell for longer.
    _LOG.error("ending this replica: %s", error)
    logging.shutdown()
    os._exit(70)


# Where config.yaml says nothing: more slots than `max_pending_requests` admits, so that a refusal is the ingress's own.
_DEFAULTS: dict[str, Any] = {
    "max_ongoing_requests": SLOTS,
    "max_queued_requests": 256,
    "health_check_period_s": 5,
    "health_check_timeout_s": 10,
    "graceful_shutdown_timeout_s": 45,
}

TailDeployment: Any = serve.deployment(TailReplica, name="TailDeployment", **_DEFAULTS)
CatalogDeployment: Any = serve.deployment(CatalogReplica, name="CatalogDeployment", **_DEFAULTS)
