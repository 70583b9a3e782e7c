"""A real HTTP server on the loopback interface whose answers are a function, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator

from aiohttp import web

from edge_sim.transport import Request, Response
from tests.patience import PATIENCE_S

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.contextmanager
def http_server(handler: Handler, *, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve with an aiohttp handler, for as long as the block lasts; gives the base URL."""
    started: list[str] = []
    ready, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        application = web.Application(client_max_size=2**26)
        application.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
            await site.start()
            started.append(f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}")
            ready.set()
            await stop.wait()
        finally:
            await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(PATIENCE_S)
        yield started[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def handler_of(answer: Callable[[Request], Response | Exception]) -> Handler:
    """An aiohttp handler around a function of our own requests."""

    async def handle(request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        ours = Request(method=request.method, path=request.path_qs, headers=headers, body=await request.read())
        response = answer(ours)
        assert isinstance(response, Response)
        return web.Response(status=response.status, headers=dict(response.headers), body=response.body)

    return handle
