"""Measures a real server for simulations: seconds of batches by size, and what a request takes beside its batch.

Asks at rising concurrency and reads from every answer what the server says of it: how long it waited, how long decoding
and its batch took, how many samples that batch had. Knows payload files and the transport; batches of a size that never
came are left out, and the model draws a line between those that did.
"""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edge_sim.clock import SystemClock
from edge_sim.routes import model_path
from edge_sim.server_profile import ServerProfile
from edge_sim.transport import Request, Transport
from split_inference.errors import ServerError
from split_inference.payload_file import PayloadFile
from split_inference.wire import REPLY_MEDIA_TYPE, decode_reply

CONCURRENCIES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
# Fewer batches of a size say more of the moment than of the size.
MIN_BATCHES = 8
QUANTILES = 21
FEW = 2
_BATCH = re.compile(r"batch;desc=\"?(\d+)")


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer as the server and the client saw it; seconds."""

    concurrency: int
    total_s: float
    queue_s: float
    batch_s: float
    samples: int


async def measure(
    transport: Transport,
    payloads: PayloadFile,
    *,
    option: int,
    seconds: float,
    route: str | None = None,
    on_level: Callable[[int, int], None] = lambda done, of: None,
) -> list[Sample]:
    """Ask one option at every concurrency for so long. ServerError where the server refuses or fails."""
    header = payloads.header
    chosen = header.options[option]
    bodies = [payloads.body(option, index) for index in range(len(header.inputs))]
    headers = {
        "content-type": chosen.media_type,
        "accept": REPLY_MEDIA_TYPE,
        **({} if chosen.mode == "split" else {"x-model-digest": header.model.digest}),
    }
    path = f"{route or model_path(header.model.name)}?top_k=1"
    clock = SystemClock()
    found: list[Sample] = []

    async def ask_until(end_s: float, index: int, concurrency: int, *, counts: bool) -> None:
        turn = index
        while clock.now_s() < end_s:
            request = Request(method="POST", path=path, headers=headers, body=bodies[turn % len(bodies)])
            turn += concurrency
            began_s = clock.now_s()
            response = await transport.send(request, timeout_s=30)
            total_s = clock.now_s() - began_s
            if response.status != 200:
                raise ServerError(f"{path} answered {response.status}; a server that is measured has to answer all")
            if not counts:
                continue
            timings = decode_reply(response.body).timings_s
            batch = _BATCH.search(response.headers.get("server-timing", ""))
            found.append(
                Sample(
                    concurrency,
                    total_s,
                    timings.get("queue", 0.0),
                    timings.get("decode", 0.0) + timings.get("tail", 0.0),
                    int(batch[1]) if batch else 1,
                )
            )

    for done, concurrency in enumerate(CONCURRENCIES):
        for counts, span_s in ((False, seconds / 5), (True, seconds)):
            end_s = clock.now_s() + span_s
            await asyncio.gather(*(ask_until(end_s, i, concurrency, counts=counts) for i in range(concurrency)))
        on_level(done + 1, len(CONCURRENCIES))
    return found


def profile_of(
    samples: Sequence[Sample], *, split_point: str, source: str, replicas: int = 1, max_batch: int = 16
) -> ServerProfile:
    """The profile that these answers say. ValueError where there are none."""
    by_rows: dict[int, list[float]] = defaultdict(list)
    for sample in samples:
        by_rows[sample.samples].append(sample.batch_s)
    batch_s = {
        rows: _quantiles(times)
        for rows, times in sorted(by_rows.items())
        # Every answer of a batch says its time: count batches, not answers.
        if len(times) >= MIN_BATCHES * rows
    }
    if not batch_s:
        raise ValueError("too few answers: measure for longer")
    # Of few requests at once: of many, most of what surrounds a batch is waiting for one another.
    around = [each.total_s - each.queue_s - each.batch_s for each in samples if each.concurrency <= FEW]
    return ServerProfile(
        source=source,
        replicas=replicas,
        max_batch=max_batch,
        overhead_s=_quantiles([max(0.0, each) for each in around]),
        batch_s={split_point: batch_s},
    )


def capacity_per_s(samples: Sequence[Sample], *, seconds: float) -> float:
    """Answers a second at the concurrency that gave most."""
    counts: dict[int, int] = defaultdict(int)
    for sample in samples:
        counts[sample.concurrency] += 1
    return max(counts.values()) / seconds


def _quantiles(values: Sequence[float]) -> tuple[float, ...]:
    places = np.linspace(0, 1, QUANTILES)
    # The very largest of a noisy machine says nothing that comes again.
    return tuple(float(each) for each in np.quantile(values, np.minimum(places, 0.995)))
