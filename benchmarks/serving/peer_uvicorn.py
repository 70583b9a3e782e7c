"""Peer: the same replica without Ray: one uvicorn process, our ingress and our micro-batcher.

The most that one Python process serves over HTTP; what Ray and HAProxy cost is the difference.
`python -m benchmarks.serving.peer_uvicorn PORT`.
"""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from starlette.requests import Request

from benchmarks.serving.tail import settings
from serve_app.replica import Replica


def main(port: int) -> None:
    """Serve until interrupted."""
    replica = Replica(settings())

    async def application(scope: Any, receive: Any, send: Any) -> None:
        response = await replica.ingress.answer(Request(scope, receive, send))
        await response(scope, receive, send)

    uvicorn.run(application, host="127.0.0.1", port=port, log_level="warning", access_log=False, lifespan="off")


if __name__ == "__main__":
    main(int(sys.argv[1]))
