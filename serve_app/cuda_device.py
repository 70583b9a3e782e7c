"""What is asked of CUDA itself: graphs, float32 that is float32, and one thread that does it all.

Knows torch.cuda. Knows no model, no batch and no Ray.

All CUDA calls of a replica come from one thread, the micro-batcher's model thread: while a graph is captured, calls of
other threads (allocating, pinning, waiting) can spoil it; and one stream then keeps copies, replays and reads in order
without an event. How it is kept: served_model.py warms up in that thread; the micro-batcher runs and discards batches
in it; `Staging` lends other threads pageable memory only; and `OneThread` refuses whoever calls from elsewhere.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

# The first run loads kernels and chooses algorithms, the second may still allocate workspaces.
_WARM_RUNS = 3


class GraphDevice(Protocol):
    """What captures: `CudaGraphs`, or a stand-in for it."""

    def capture(self, run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """Record what `run` launches: a function that launches it again, and the tensor that each launch fills.

        What `run` reads has to stay where it is. Nothing is in the tensor before the first launch. Raises RuntimeError
        where an operation cannot be captured.
        """
        ...


class CudaGraphs:
    """Captures on a side stream, into one pool of memory.

    One pool for all graphs, because no two of them run at the same time, and nothing that one leaves in the pool is
    read by another: inputs lie outside of it, and outputs are kept alive, so that their memory is not given away.
    """

    def __init__(self, *, cuda: Any = torch.cuda) -> None:
        self._cuda = cuda
        self._stream: Any = None
        self._pool: Any = None

    def capture(self, run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """See GraphDevice."""
        cuda = self._cuda
        if self._stream is None:
            # Not the default stream: that one cannot be captured.
            self._stream, self._pool = cuda.Stream(), cuda.graph_pool_handle()
        self._stream.wait_stream(cuda.current_stream())
        with cuda.stream(self._stream):
            for _ in range(_WARM_RUNS):
                run()
        cuda.current_stream().wait_stream(self._stream)
        graph = cuda.CUDAGraph()
        # thread_local: what a library does in a thread of its own does not fail because of us.
        with cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            output = run()
        return graph.replay, output


class OneThread:
    """Refuses calls from any thread but that of the first call."""

    def __init__(self) -> None:
        self._owner: int | None = None

    def check(self) -> None:
        """Raises RuntimeError in a second thread."""
        here = threading.get_ident()
        if self._owner is None:
            self._owner = here
        elif self._owner != here:
            raise RuntimeError(
                f"CUDA is called from thread {threading.current_thread().name}; all its calls have to come from one"
            )


def use_whole_float32() -> None:
    """Multiply float32 as float32: by default cuDNN's convolutions round their factors to TF32's 10 bits.

    For `precision: float32`, which is the reference; the others round on purpose.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
