"""A replica whose tail takes stated times, whatever the machine is doing: what simulations of servers are tested on.

One uvicorn process with our ingress, admission and micro-batcher, as peer_uvicorn has them; the real tail runs, and its
thread then sleeps until the stated seconds of a batch of so many rows have passed. Machine noise shorter than that
leaves batches as they are, so that what differs from a simulation is the simulation.

    python -m benchmarks.serving.paced_server PORT --base-ms 80 --row-ms 16
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import uvicorn
from numpy.typing import NDArray
from starlette.requests import Request

from serve_app.batching import BatchKey
from serve_app.ingress import Ingress
from serve_app.service import InferenceService
from serve_app.settings import AppSettings
from serve_app.tail_runner import StagedItems, TailRunner
from split_inference.errors import WireError

URI = "embedded:resnet20-cifar10"
ROUTE = "/v1/models/resnet20-cifar10"


class PacedRunner(TailRunner):
    """A runner whose batches end when `base_s + rows * row_s` have passed."""

    base_s = 0.0
    row_s = 0.0

    def run(self, key: BatchKey, staged: StagedItems) -> list[NDArray[np.float32] | WireError]:
        """The real answers, not before their time."""
        until_s = time.perf_counter() + self.base_s + sum(staged.rows) * self.row_s
        results = super().run(key, staged)
        time.sleep(max(0.0, until_s - time.perf_counter()))
        return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--base-ms", type=float, default=80.0, help="of every batch")
    parser.add_argument("--row-ms", type=float, default=16.0, help="more for each of its rows")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    runner = PacedRunner.load(AppSettings(model=URI))
    assert isinstance(runner, PacedRunner)
    runner.base_s, runner.row_s = options.base_ms / 1000, options.row_ms / 1000
    service = InferenceService(runner, thread_start=lambda: torch.set_num_threads(1))
    ingress = Ingress(service)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        # As Serve does: the application's own route is its root.
        request = Request({**scope, "root_path": ROUTE}, receive, send)
        response = await ingress.answer(request)
        await response(scope, receive, send)

    # Idle connections are kept for as long as HAProxy keeps them: a client must not find one closed under its hands.
    uvicorn.run(
        application,
        host="127.0.0.1",
        port=options.port,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_keep_alive=65,
    )


if __name__ == "__main__":
    main()
