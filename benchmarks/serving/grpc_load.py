"""The closed loop over gRPC: so many unary calls in flight on a few channels.

gRPC's own client, which costs several times the processor time of http_load.py; on cores that are shared with the
server that is part of the figure.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Sequence

import grpc

from benchmarks.serving.http_load import LoadResult, Outcome
from split_inference.grpc.inference_pb2 import FrameRequest
from split_inference.grpc.inference_pb2_grpc import InferenceStub

_CHANNELS = 4
_TIMEOUT_S = 30.0


def grpc_closed_loop(
    address: tuple[str, int], frames: Sequence[bytes], *, application: str, concurrency: int, seconds: float
) -> LoadResult:
    """As http_load.closed_loop; a call that fails has status 500."""
    return asyncio.run(_run(address, frames, application, concurrency, seconds))


async def _run(
    address: tuple[str, int], frames: Sequence[bytes], application: str, concurrency: int, seconds: float
) -> LoadResult:
    result = LoadResult()
    metadata = (("application", application),)
    requests = [FrameRequest(frame=frame) for frame in frames]
    # Channels with equal options share a connection, unless told otherwise.
    channels = [
        grpc.aio.insecure_channel(f"{address[0]}:{address[1]}", options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(min(_CHANNELS, concurrency))
    ]
    stubs = [InferenceStub(channel) for channel in channels]  # type: ignore[no-untyped-call]
    began_s = time.perf_counter()
    turn = 0

    async def sender(stub: InferenceStub) -> None:
        nonlocal turn
        while (sent_s := time.perf_counter() - began_s) < seconds:
            request = requests[turn % len(requests)]
            turn += 1
            try:
                reply = await stub.Infer(request, metadata=metadata, timeout=_TIMEOUT_S)
                status = reply.status
            except grpc.RpcError:
                status = 500
            ended_s = time.perf_counter() - began_s
            if ended_s <= seconds:
                result.outcomes.append(Outcome(intended_s=sent_s, sent_s=sent_s, ended_s=ended_s, status=status))

    before = resource.getrusage(resource.RUSAGE_SELF)
    await asyncio.gather(*[sender(stubs[index % len(stubs)]) for index in range(concurrency)])
    after = resource.getrusage(resource.RUSAGE_SELF)
    result.wall_s = seconds
    result.own_cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    for channel in channels:
        await channel.close()
    return result
