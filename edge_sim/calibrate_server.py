"""Measures a real server for simulations: seconds of batches by size, and what a request takes beside its batch.

Asks in the closed loop first, to find the capacity and the times of full batches; then at Poisson moments at shares of
that capacity, because a server that is asked now and then is slower for each request than one that is never let go:
caches are cold and threads asleep. Reads from every answer what the server says of it: how long it waited, how long
decoding and its batch took, how many samples that batch had. Knows payload files and the transport.

What no answer says is how long the server takes from one batch to the next. It is fitted: in virtual time the model of
the server is asked at the same rates, with more and less of it, until it takes as long as the server did.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from edge_sim.arrivals import poisson_s
from edge_sim.fleet_server import Ask, Served
from edge_sim.server_model import ServerModel
from edge_sim.server_profile import ServerProfile
from edge_sim.transport import Request, Transport
from edge_sim.virtual_clock import VirtualClock
from split_inference.errors import ServerError
from split_inference.payload_file import PayloadFile
from split_inference.server_url import model_path
from split_inference.wire import REPLY_MEDIA_TYPE, decode_reply

CLOSED = (16, 32)
"""Concurrencies of the closed loop."""
OPEN = (0.15, 0.3, 0.45, 0.6, 0.75, 0.85)
"""Shares of the capacity at which requests come at Poisson moments."""
BUSY = 0.5
"""From this share of the capacity on, most requests wait for a batch, and what is between two batches shows."""
MOST_TURNAROUND_ROW_S = 0.0125
"""After a full batch at most so much for each of its rows."""
_PATIENCE_S = 30.0
# Halvings of that: to 0.2 ms with 16 rows.
_HALVINGS = 10
LEVEL_REQUESTS = 150
MOST_STRETCH = 8.0
"""A level is asked for at most so many times as long as the closed loop."""
LEAD_S = 0.002
"""How long before a batch ends serve_app closes the next one: the default of its `lead_ms`, which no answer says."""
# At each level, in virtual time.
_FIT_REQUESTS = 2000
# Fewer batches of a size say more of the moment than of the size.
MIN_BATCHES = 8
QUANTILES = 21
Level = tuple[float, float]
"""A sample's `share` and `rate_per_s`."""
_BATCH = re.compile(r"batch;desc=\"?(\d+)")


class Sample(NamedTuple):
    """One answer as the server and the client saw it; seconds."""

    share: float
    """Of the capacity that was asked, at Poisson moments; 0 for the closed loop."""
    rate_per_s: float
    """At which was asked; of the closed loop, how many asked."""
    total_s: float
    queue_s: float
    decode_s: float
    """Of the whole batch."""
    batch_s: float
    """Without decoding."""
    samples: int
    ended_s: float = 0.0
    """When it came, from the beginning of its level."""


async def measure(
    transport: Transport,
    payloads: PayloadFile,
    *,
    option: int,
    seconds: float,
    route: str | None = None,
    seed: int = 0,
    on_level: Callable[[int, int], None] = lambda done, of: None,
) -> list[Sample]:
    """Ask one option at every level for so long; at Poisson moments for twice that, and longer where it brings fewer
    than LEVEL_REQUESTS. ServerError where the server refuses or fails."""
    asker = _Asker(transport, payloads, option=option, route=route)
    levels = len(CLOSED) + len(OPEN)
    for done, concurrency in enumerate(CLOSED, start=1):
        await asker.closed_loop(concurrency, seconds=seconds / 5, level=None)
        await asker.closed_loop(concurrency, seconds=seconds, level=(0.0, concurrency))
        on_level(done, levels)
    capacity = capacity_per_s(asker.samples, seconds=seconds)
    if not capacity:
        raise ServerError(f"no answers to measure in {seconds:g} s: measure for longer")
    rng = random.Random(seed)
    for done, share in enumerate(OPEN, start=len(CLOSED) + 1):
        rate_per_s = share * capacity
        until_s = min(MOST_STRETCH * seconds, max(2 * seconds, LEVEL_REQUESTS / rate_per_s))
        arrivals = poisson_s(rng, rate_per_s=rate_per_s, until_s=until_s)
        await asker.open_loop(arrivals, level=(share, rate_per_s))
        on_level(done, levels)
    return asker.samples


class _Asker:
    def __init__(self, transport: Transport, payloads: PayloadFile, *, option: int, route: str | None) -> None:
        header = payloads.header
        chosen = header.options[option]
        self._transport = transport
        self._bodies = [payloads.body(option, index) for index in range(len(header.inputs))]
        self._headers = {
            "content-type": chosen.media_type,
            "accept": REPLY_MEDIA_TYPE,
            **({} if chosen.mode == "split" else {"x-model-digest": header.model.digest}),
        }
        self._path = f"{route or model_path(header.model.name)}?top_k=1"
        self._turn = 0
        self.samples: list[Sample] = []

    async def closed_loop(self, concurrency: int, *, seconds: float, level: Level | None) -> None:
        began_s = time.perf_counter()

        async def again_and_again() -> None:
            while time.perf_counter() < began_s + seconds:
                await self._ask(level, level_began_s=began_s)

        await asyncio.gather(*(again_and_again() for _ in range(concurrency)))

    async def open_loop(self, arrivals_s: Iterator[float], *, level: Level) -> None:
        began_s = time.perf_counter()
        asked = []
        for at_s in arrivals_s:
            await asyncio.sleep(max(0.0, began_s + at_s - time.perf_counter()))
            asked.append(asyncio.ensure_future(self._ask(level, level_began_s=began_s)))
        await asyncio.gather(*asked)

    async def _ask(self, level: Level | None, *, level_began_s: float) -> None:
        body = self._bodies[self._turn % len(self._bodies)]
        self._turn += 1
        request = Request(method="POST", path=self._path, headers=self._headers, body=body)
        # A server closes a connection that was idle for long, maybe in the moment in which it is used again: that says
        # nothing of how long it takes. A server that is gone breaks the second one too.
        for is_last in (False, True):
            began_s = time.perf_counter()
            try:
                response = await self._transport.send(request, timeout_s=_PATIENCE_S)
                break
            except ServerError as error:
                if is_last or not error.retriable:
                    raise
        ended_s = time.perf_counter()
        if response.status != 200:
            raise ServerError(f"{self._path} answered {response.status}; a server that is measured has to answer all")
        if level is None:
            return
        timings = decode_reply(response.body).timings_s
        batch = _BATCH.search(response.headers.get("server-timing", ""))
        queue_s, decode_s, batch_s = (timings.get(stage, 0.0) for stage in ("queue", "decode", "tail"))
        samples = int(batch[1]) if batch else 1
        self.samples.append(
            Sample(*level, ended_s - began_s, queue_s, decode_s, batch_s, samples, ended_s - level_began_s)
        )


def profile_of(
    samples: Sequence[Sample], *, split_point: str, source: str, replicas: int = 1, max_batch: int = 16
) -> ServerProfile:
    """The profile that these answers say; of a batch size, those at Poisson moments, where there are enough.

    ServerError where there are too few.
    """
    spread = [each for each in samples if each.share > 0]
    seconds_of = attrgetter("batch_s")
    batch_s = {**_by_rows(samples, seconds_of), **_by_rows(spread, seconds_of)}
    if not batch_s or not spread:
        raise ServerError("too few answers of the server came in time: measure for longer (--seconds)")
    profile = ServerProfile(
        source=source,
        replicas=replicas,
        max_batch=max_batch,
        overhead_s=_by_rows(spread, _overhead_s) or {1: _quantiles([_overhead_s(each) for each in spread])},
        batch_s={split_point: dict(sorted(batch_s.items()))},
        decode_s=float(np.median([each.decode_s / each.samples for each in spread])),
        lead_s=LEAD_S,
    )
    return profile.model_copy(update={"turnaround_s": turnaround_s(profile, spread)})


def together(profiles: Sequence[ServerProfile]) -> ServerProfile:
    """One server of several profiles, each of other split points. What a request takes beside its batch is that of the
    first one; the rest between batches is the median."""
    first = profiles[0]
    batch_s = {name: by_rows for each in profiles for name, by_rows in each.batch_s.items()}
    return first.model_copy(
        update={
            "batch_s": batch_s,
            "decode_s": float(np.median([each.decode_s for each in profiles])),
            "turnaround_s": float(np.median([each.turnaround_s for each in profiles])),
        }
    )


def turnaround_s(profile: ServerProfile, samples: Sequence[Sample]) -> float:
    """Seconds after a full batch with which the model of this server is as slow as the server was, at busy levels.

    Compared are medians, level by level, as the mean of their ratios' logarithms; 0 where the model is slower without
    any, or no level was busy.
    """
    busy = [each for each in samples if each.share >= BUSY]
    by_rate: dict[float, list[float]] = defaultdict(list)
    for each in busy:
        by_rate[each.rate_per_s].append(each.total_s)
    if not by_rate:
        return 0.0
    measured = {rate_per_s: float(np.median(took_s)) for rate_per_s, took_s in sorted(by_rate.items())}

    def is_too_fast(seconds: float) -> bool:
        made = profile.model_copy(update={"turnaround_s": seconds})
        ratios = [_median_in_virtual_time(made, rate_per_s) / took_s for rate_per_s, took_s in measured.items()]
        return float(np.mean(np.log(ratios))) < 0

    low_s, high_s = 0.0, MOST_TURNAROUND_ROW_S * profile.max_batch
    if not is_too_fast(low_s):
        return 0.0
    for _ in range(_HALVINGS):
        middle_s = (low_s + high_s) / 2
        low_s, high_s = (middle_s, high_s) if is_too_fast(middle_s) else (low_s, middle_s)
    return (low_s + high_s) / 2


def _median_in_virtual_time(profile: ServerProfile, rate_per_s: float) -> float:
    clock = VirtualClock()
    server = ServerModel(profile, clock, seed="calibration", reply_bytes=1)
    took_s: list[float] = []
    split_point = next(iter(profile.batch_s))

    async def ask(at_s: float) -> None:
        await clock.sleep_until(at_s)
        if isinstance(await server.infer(Ask(0, split_point, 0, 1, 0, False), until_s=math.inf), Served):
            took_s.append(clock.now_s() - at_s)

    for at_s in poisson_s(random.Random(0), rate_per_s=rate_per_s, until_s=_FIT_REQUESTS / rate_per_s):
        clock.start(ask(at_s))
    clock.run()
    return float(np.median(took_s)) if took_s else math.inf


def _overhead_s(sample: Sample) -> float:
    return max(0.0, sample.total_s - sample.queue_s - sample.decode_s - sample.batch_s)


def _by_rows(samples: Sequence[Sample], seconds_of: Callable[[Sample], float]) -> dict[int, tuple[float, ...]]:
    by_rows: dict[int, list[float]] = defaultdict(list)
    for sample in samples:
        by_rows[sample.samples].append(seconds_of(sample))
    # Every answer of a batch says its time: count batches, not answers.
    return {rows: _quantiles(times) for rows, times in by_rows.items() if len(times) >= MIN_BATCHES * rows}


def capacity_per_s(samples: Sequence[Sample], *, seconds: float) -> float:
    """Answers a second in the closed loop, at the concurrency that gave most; 0 where there are too few to say.

    Counted from the last answer of the first batch to the last one within `seconds`: what was under way then came
    later, and counting it would give a slow server half as much again.
    """
    in_time: dict[float, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.share == 0 and sample.ended_s <= seconds:
            in_time[sample.rate_per_s].append(sample)
    return max((_rate_per_s(each) for each in in_time.values()), default=0.0)


def _rate_per_s(samples: Sequence[Sample]) -> float:
    ordered = sorted(samples, key=attrgetter("ended_s"))
    # The answers of a batch come one after another, and several replicas begin together: their first batches are where
    # the time begins, and count for nothing.
    first = ordered[0]
    together = sum(each.ended_s < first.ended_s + first.batch_s / 2 for each in ordered)
    began = min(max(first.samples, together), len(ordered))
    took_s = ordered[-1].ended_s - ordered[began - 1].ended_s
    return (len(ordered) - began) / took_s if took_s > 0 else 0.0


def _quantiles(values: Sequence[float]) -> tuple[float, ...]:
    places = np.linspace(0, 1, QUANTILES)
    # The very largest of a noisy machine says nothing that comes again.
    return tuple(float(each) for each in np.quantile(values, np.minimum(places, 0.995)))
