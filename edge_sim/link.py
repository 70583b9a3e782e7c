"""A device's link to its server: when a message arrives, and where its time went.

Knows seconds and bytes. Never sleeps, holds no clock, and opens no socket; edge_sim.clock waits until the times that
are computed here. Chance comes from a seed: the same seed and the same questions give the same answers.

A message waits for those before it (queued), leaves at the bottleneck's rate (transmission), travels (propagation,
with jitter) and may lose packets on the way (retransmission). The four sum to its latency. Connections are kept, so
there is no handshake; congestion control is not modelled: a message leaves at the full rate.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from typing import NamedTuple

from edge_sim.rates import MarkovRate, RateProcess, TraceRate
from edge_sim.traces import BYTES_PER_OPPORTUNITY, Trace

# Head of one POST of edge_sim.client, counted on the wire: 260 bytes, and 66 more with a token.
OVERHEAD_BYTES = 300
# Ethernet's 1,500 bytes less IPv4 (20), TCP (20) and its timestamps (12).
PACKET_PAYLOAD_BYTES = 1448
PACKET_HEADER_BYTES = 52


class Sent(NamedTuple):
    """One message through a bottleneck. `transmission_s` is end - start without that subtraction's rounding."""

    start_s: float
    end_s: float
    transmission_s: float


class Delivery(NamedTuple):
    """Where one message's time went; the four parts sum to its latency."""

    queued_s: float
    transmission_s: float
    propagation_s: float
    retransmission_s: float
    arrives_at_s: float


class Bottleneck:
    """First in, first out, at a rate: megabits per second, a trace or a MarkovRate. Devices may share one, as a cell.

    Bytes are bytes on the wire. At a constant rate, half the rate doubles each transmission time exactly.
    Raises ValueError for a rate that is not positive.
    """

    __slots__ = ("_bits_per_s", "_busy_until_s", "_last_s", "_outages", "_process")

    def __init__(self, rate: float | Trace | MarkovRate) -> None:
        self._process: RateProcess | None = None
        self._bits_per_s = 0.0
        if isinstance(rate, Trace):
            self._process = TraceRate(rate)
        elif isinstance(rate, MarkovRate):
            self._process = rate
        elif 0 < rate < math.inf:
            self._bits_per_s = rate * 1e6
        else:
            raise ValueError(f"a rate is positive and finite megabits per second, got {rate}")
        self._busy_until_s = 0.0
        self._last_s = 0.0
        self._outages: list[tuple[float, float]] = []

    @property
    def busy_until_s(self) -> float:
        """When everything handed over so far has left."""
        return self._busy_until_s

    @property
    def mean_megabits_per_s(self) -> float:
        """In the long run, without outages."""
        return self._process.mean_megabits_per_s if self._process is not None else self._bits_per_s / 1e6

    def send(self, now_s: float, size_bytes: int) -> Sent:
        """Hand over a message. Raises ValueError for a time before the last one's, or no bytes."""
        if not self._last_s <= now_s < math.inf or size_bytes <= 0:
            raise ValueError(
                f"expected at least 1 byte, at {self._last_s} s or later: got {size_bytes} bytes at {now_s} s"
            )
        self._last_s = now_s
        start_s = now_s if now_s > self._busy_until_s else self._busy_until_s
        if self._outages:
            return self._send_around_outages(start_s, size_bytes)
        if self._process is None:
            transmission_s = size_bytes * 8 / self._bits_per_s
            end_s = start_s + transmission_s
        else:
            end_s = self._process.leaves_at_s(start_s, size_bytes, ())
            transmission_s = end_s - start_s
        self._busy_until_s = end_s
        return Sent(start_s, end_s, transmission_s)

    def add_outage(self, down_from_s: float, down_until_s: float) -> None:
        """Nothing leaves in this time; what was leaving goes on afterwards, and opportunities of a trace are lost.

        Messages handed over before keep the times they were told. Raises ValueError for times in the wrong order.
        """
        if not 0 <= down_from_s < down_until_s < math.inf:
            raise ValueError(f"an outage ends after it begins, got {down_from_s} to {down_until_s} s")
        merged: list[tuple[float, float]] = []
        for from_s, until_s in sorted([*self._outages, (down_from_s, down_until_s)]):
            if merged and from_s <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(until_s, merged[-1][1]))
            else:
                merged.append((from_s, until_s))
        self._outages = merged

    def is_down(self, now_s: float) -> bool:
        """Whether `now_s` lies in an outage; its end does not."""
        if not self._outages:
            return False
        at = bisect_right(self._outages, (now_s, math.inf)) - 1
        return at >= 0 and now_s < self._outages[at][1]

    def _send_around_outages(self, start_s: float, size_bytes: int) -> Sent:
        at = max(0, bisect_right(self._outages, (start_s, math.inf)) - 1)
        outages = self._outages[at:]
        if outages and outages[0][0] <= start_s:
            start_s = max(start_s, outages.pop(0)[1])
        if self._process is not None:
            end_s = self._process.leaves_at_s(start_s, size_bytes, outages)
            transmission_s = end_s - start_s
        else:
            transmission_s = size_bytes * 8 / self._bits_per_s
            end_s = start_s + transmission_s
            for from_s, until_s in outages:
                if end_s <= from_s:
                    break
                end_s += until_s - from_s
                transmission_s += until_s - from_s
        self._busy_until_s = end_s
        return Sent(start_s, end_s, transmission_s)


class Direction:
    """One direction of a link: headers, a bottleneck, and what happens to packets behind it.

    Jitter is exponential with the mean `jitter_s`, on top of `propagation_s`. It never reorders: an early message waits
    for the one before, as it would in one TCP connection.
    Loss: each packet is lost with probability `loss`, on each try; each lost packet costs `retransmission_s`, one after
    the other, as TCP without selective acknowledgements repairs one packet per round trip (RFC 6582). Lost packets
    take no capacity twice. Behind a message that waits for a retransmission those after it wait too.
    """

    __slots__ = (
        "_before_loss",
        "_in_order_s",
        "_jitter",
        "_jitter_s",
        "_last_arrival_s",
        "_log_kept",
        "_loss",
        "_overhead_bytes",
        "_propagation_s",
        "_retransmission_s",
        "bottleneck",
    )

    def __init__(
        self,
        bottleneck: Bottleneck,
        *,
        propagation_s: float,
        jitter_s: float,
        loss: float,
        retransmission_s: float,
        overhead_bytes: int,
        seed: str,
    ) -> None:
        for name, value in (
            ("propagation_s", propagation_s),
            ("jitter_s", jitter_s),
            ("retransmission_s", retransmission_s),
            ("overhead_bytes", overhead_bytes),
        ):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be 0 or more and finite, got {value}")
        if not 0 <= loss < 1:
            raise ValueError(f"loss is a probability below 1, got {loss}")
        self.bottleneck = bottleneck
        self._propagation_s = propagation_s
        self._jitter_s = jitter_s
        self._retransmission_s = retransmission_s
        self._overhead_bytes = overhead_bytes
        self._in_order_s = 0.0
        self._last_arrival_s = 0.0
        # A generator for each, so that switching one on leaves the other's draws as they were; none where none is
        # needed, because each holds 2.5 kB and a fleet has thousands.
        self._jitter = random.Random(f"{seed}/jitter") if jitter_s > 0 else None
        self._loss = random.Random(f"{seed}/loss") if loss > 0 else None
        self._log_kept = math.log1p(-loss)
        self._before_loss = self._draw_before_loss() if self._loss is not None else 0

    def deliver(self, now_s: float, size_bytes: int) -> Delivery:
        """Hand over a message whose size does not count headers. Raises ValueError as Bottleneck.send does."""
        if self._overhead_bytes:
            size_bytes += self._overhead_bytes
            packets = -(-size_bytes // PACKET_PAYLOAD_BYTES)
            size_bytes += packets * PACKET_HEADER_BYTES
        else:
            packets = -(-size_bytes // BYTES_PER_OPPORTUNITY)
        start_s, end_s, transmission_s = self.bottleneck.send(now_s, size_bytes)
        propagation_s = self._propagation_s
        if self._jitter is not None:
            propagation_s += self._jitter.expovariate(1 / self._jitter_s)
            if end_s + propagation_s < self._in_order_s:
                propagation_s = self._in_order_s - end_s
        arrives_at_s = end_s + propagation_s
        if arrives_at_s < self._in_order_s:
            # The sum above is a rounding error early.
            arrives_at_s = self._in_order_s
        self._in_order_s = arrives_at_s
        if self._loss is None:
            return Delivery(start_s - now_s, transmission_s, propagation_s, 0.0, arrives_at_s)
        losses = self._draw_losses(packets)
        lossless_s = arrives_at_s
        arrives_at_s = max(lossless_s + losses * self._retransmission_s, self._last_arrival_s)
        self._last_arrival_s = arrives_at_s
        return Delivery(start_s - now_s, transmission_s, propagation_s, arrives_at_s - lossless_s, arrives_at_s)

    def _draw_losses(self, packets: int) -> int:
        """How many tries of these packets are lost. Counts down to the next loss, so most messages draw nothing."""
        losses = 0
        while self._before_loss < packets:
            packets -= self._before_loss
            losses += 1
            self._before_loss = self._draw_before_loss()
        self._before_loss -= packets
        return losses

    def _draw_before_loss(self) -> int:
        assert self._loss is not None
        return int(math.log(1.0 - self._loss.random()) / self._log_kept)


class Link:
    """Up and down between one device and its server.

    `overhead_bytes` is HTTP's head for each message, up and down alike; with it each packet also has its TCP and IP
    headers. 0 means that sizes are what is on the wire. TLS would add about 22 bytes for each 16 kB, and is left out.
    `retransmission_s` is by default a round trip; Linux's least timeout, 0.2 s, is closer for messages of fewer than
    four packets, whose loss no duplicate acknowledgements report.
    Raises ValueError for settings that make no sense.
    """

    __slots__ = ("down", "up")

    def __init__(
        self,
        up: Bottleneck,
        down: Bottleneck,
        *,
        propagation_s: float = 0.0,
        jitter_s: float = 0.0,
        loss: float = 0.0,
        retransmission_s: float | None = None,
        overhead_bytes: int = OVERHEAD_BYTES,
        seed: int | str = 0,
    ) -> None:
        def direction(bottleneck: Bottleneck, name: str) -> Direction:
            return Direction(
                bottleneck,
                propagation_s=propagation_s,
                jitter_s=jitter_s,
                loss=loss,
                retransmission_s=2 * (propagation_s + jitter_s) if retransmission_s is None else retransmission_s,
                overhead_bytes=overhead_bytes,
                seed=f"{seed}/{name}",
            )

        self.up = direction(up, "up")
        self.down = direction(down, "down")

    def deliver_up(self, now_s: float, size_bytes: int) -> Delivery:
        """A message from the device; times handed over never go back, for all who share the bottleneck."""
        return self.up.deliver(now_s, size_bytes)

    def deliver_down(self, now_s: float, size_bytes: int) -> Delivery:
        """A message to the device; times handed over never go back, for all who share the bottleneck."""
        return self.down.deliver(now_s, size_bytes)

    def add_outage(self, down_from_s: float, down_until_s: float) -> None:
        """Both ways are down in this time; for a shared bottleneck that is the cell, with everybody in it."""
        self.up.bottleneck.add_outage(down_from_s, down_until_s)
        if self.down.bottleneck is not self.up.bottleneck:
            self.down.bottleneck.add_outage(down_from_s, down_until_s)

    def is_down(self, now_s: float) -> bool:
        """Whether either way is down."""
        return self.up.bottleneck.is_down(now_s) or self.down.bottleneck.is_down(now_s)
