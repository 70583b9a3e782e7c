"""Peer: LitServe with batches, as its documentation has them. Knows LitServe and the common tail.

Its HTTP server and its model run in two processes that share a queue; with LITSERVE_WORKERS=2 there are two models.
`python -m benchmarks.serving.peer_litserve PORT`.
"""

import os
import sys
from typing import Annotated, Any

import litserve  # type: ignore[import-not-found]
from fastapi import Body, Response


class TailAPI(litserve.LitAPI):  # type: ignore[misc]
    """Bodies in, text out."""

    def setup(self, device: str) -> None:
        from benchmarks.serving.tail import peer_tail

        self._tail = peer_tail()

    # Raw bytes pass through to the worker as they are; a Request would be parsed as JSON on the way.
    def decode_request(self, request: Annotated[bytes, Body()]) -> bytes:
        return request

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, batch: list[bytes]) -> list[tuple[bytes, int]]:
        return [(answer, len(batch)) for answer in self._tail.answers(batch)]

    def unbatch(self, output: list[tuple[bytes, int]]) -> list[tuple[bytes, int]]:
        return output

    def encode_response(self, output: tuple[bytes, int]) -> Response:
        answer, batch_samples = output
        return Response(content=answer, headers={"server-timing": f"batch;desc={batch_samples}"})


def main(port: int) -> None:
    """Serve until interrupted."""
    api: Any = TailAPI(max_batch_size=16, batch_timeout=0.005)
    # The fastest of what was tried: its ZeroMQ queue gives up to 1.2 times the requests of the default one, by machine,
    # and longer waits for a batch than 5 ms only make every request slower.
    workers = int(os.environ.get("LITSERVE_WORKERS", "1"))
    server = litserve.LitServer(
        api, accelerator="cpu", devices=1, workers_per_device=workers, timeout=30, fast_queue=True
    )
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main(int(sys.argv[1]))
