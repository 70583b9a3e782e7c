"""A server in virtual time: replicas, queues, batches that fill while the model is busy, refusals, scaling, faults.

Does what serve_app does (docs/decisions/0006-a-batcher-of-our-own.md) with times that were measured: a replica that
idles begins a batch with what is there, a busy one collects and closes the next batch in time to decode it; batches
have one split point; what would be too late is refused. Within a split point requests are taken in the order in which
they came, in serve_app by deadline: the same where all have one. Knows the virtual clock and a seeded generator.
"""

from __future__ import annotations

import random
from collections import deque
from operator import attrgetter
from typing import Any

from edge_sim.fleet_server import Ask, Refused, Served
from edge_sim.reported_wait import ReportedWait
from edge_sim.server_profile import BatchTimes, ServerProfile
from edge_sim.virtual_clock import Promise, VirtualClock

# As serve_app refuses: with the estimated wait, and at least so much.
MIN_RETRY_AFTER_S = 0.05
_ANY = "*"
_PENDING = attrgetter("pending")


class _Waiting:
    """One request inside: when it came, what it is for, where it is, and who waits for it."""

    __slots__ = ("arrived_s", "ask", "back_s", "deadline_s", "in_s", "luck", "promise", "replica")

    def __init__(
        self, ask: Ask, replica: _Replica, *, arrived_s: float, deadline_s: float, in_s: float, luck: float
    ) -> None:
        self.ask, self.replica, self.arrived_s, self.deadline_s = ask, replica, arrived_s, deadline_s
        self.in_s = self.back_s = in_s
        """Its way in, and from the end of its batch to its answer: the same until the size of its batch is known."""
        self.luck = luck
        """The quantile of its overhead."""
        self.promise = Promise()


class _Replica:
    """One model thread and what waits for it."""

    __slots__ = ("alive", "busy_s", "busy_until_s", "closed", "pending", "queues", "running", "turning")

    def __init__(self) -> None:
        self.alive = True
        self.queues: dict[str, deque[_Waiting]] = {}
        self.pending = 0
        self.running: list[_Waiting] = []
        self.closed: list[_Waiting] = []
        """The next batch, decoded while this one runs; nothing joins it."""
        self.turning = False
        """Between two batches, while requests wait."""
        self.busy_until_s = 0.0
        self.busy_s = 0.0
        """Model time since the autoscaler looked last."""


class ServerModel:
    """A `FleetServer` on a VirtualClock."""

    def __init__(self, profile: ServerProfile, clock: VirtualClock, *, seed: str, reply_bytes: int) -> None:
        self._profile = profile
        self._clock = clock
        self._rng = random.Random(seed)
        self._reply_bytes = reply_bytes
        self._overhead = profile.overhead()
        self._is_overhead_by_rows = self._overhead.sizes > 1
        self._ahead_s = profile.lead_s + profile.max_batch * profile.decode_s
        self._times = {name: BatchTimes(by_rows) for name, by_rows in profile.batch_s.items()}
        self._any = self._times.get(_ANY, next(iter(self._times.values())))
        self._medians_s: dict[tuple[str, int], float] = {}
        scaling = profile.autoscaling
        count = scaling.min_replicas if scaling else profile.replicas
        self._replicas = [_Replica() for _ in range(count)]
        self._starting = 0
        self._down_until_s = 0.0
        self._reported_wait = ReportedWait()
        self.most_replicas = count
        if scaling:
            clock.start(self._scale())

    @property
    def replicas(self) -> int:
        """Replicas that answer."""
        return len(self._replicas)

    def reported_wait_s(self) -> float:
        return self._reported_wait.seconds(self._clock.now_s())

    async def infer(self, ask: Ask, *, until_s: float) -> Served | Refused | None:
        clock = self._clock
        now_s = clock.now_s()
        if now_s < self._down_until_s or not self._replicas:
            return Refused("server_down", MIN_RETRY_AFTER_S)
        if ask.bad:
            return Refused("bad_frame", None)
        luck = self._rng.random()
        overhead_s = self._overhead.seconds(1, luck)
        replica = self._least_pending()
        wait_s = self._expected_wait_s(replica, ask.split_point, now_s)
        if replica.pending >= self._profile.max_pending or now_s + wait_s + overhead_s > until_s:
            self._reported_wait.learn(now_s, wait_s)
            return Refused("server_rejected", max(MIN_RETRY_AFTER_S, wait_s))
        replica.pending += 1
        # Half before the model, for reading and decoding, half behind it. Whoever asks sleeps until there is an answer:
        # waking it for each step would be half of what a simulated request costs.
        half_s = overhead_s / 2
        waiting = _Waiting(ask, replica, arrived_s=now_s, deadline_s=until_s, in_s=half_s, luck=luck)
        clock.at(now_s + half_s, self._enter, waiting)
        if not await clock.wait(waiting.promise):
            return None
        outcome: Served | Refused = waiting.promise.value
        return outcome

    def _least_pending(self) -> _Replica:
        """The first one with the least inside."""
        for replica in self._replicas:
            if not replica.pending:
                return replica
        return min(self._replicas, key=_PENDING)

    def go_down(self, *, for_s: float) -> None:
        """Nobody answers for a while; what was inside is lost."""
        self._down_until_s = max(self._down_until_s, self._clock.now_s() + for_s)
        for replica in self._replicas:
            self._lose(replica)
        self._replicas = [_Replica() for _ in self._replicas]

    def kill_replica(self, *, back_after_s: float) -> None:
        """One replica is gone with what was inside, and another one answers after a while."""
        if self._replicas:
            self._lose(self._replicas.pop(0))
            # It counts as one that is starting, so that the autoscaler needs no other one for it.
            self._starting += 1
            self._clock.at(self._clock.now_s() + back_after_s, self._started)

    def _lose(self, replica: _Replica) -> None:
        replica.alive = False
        lost = [*replica.running, *replica.closed, *(each for queue in replica.queues.values() for each in queue)]
        replica.running, replica.closed, replica.queues, replica.pending, replica.turning = [], [], {}, 0, False
        for each in lost:
            self._clock.keep(each.promise, Refused("server_down", MIN_RETRY_AFTER_S))

    def _enter(self, waiting: _Waiting) -> None:
        """It has been read, and waits for its batch."""
        replica = waiting.replica
        if not replica.alive:
            self._clock.keep(waiting.promise, Refused("server_down", MIN_RETRY_AFTER_S))
            return
        replica.queues.setdefault(waiting.ask.split_point, deque()).append(waiting)
        if replica.running or replica.turning:
            # It may have to wait for too long; whoever is in a batch already has its end from `_begin`.
            self._clock.give_up(waiting.promise, at_s=waiting.deadline_s)
            if self._ahead_s and replica.running and not replica.closed:
                self._close_if_due(replica)
        else:
            self._begin(replica)

    def _expected_wait_s(self, replica: _Replica, split_point: str, now_s: float) -> float:
        most = self._profile.max_batch
        batches = replica.pending // most
        if not replica.running and not batches:
            return 0.0
        each_s = self._median_s(split_point, most) + self._profile.turnaround_s
        return max(0.0, replica.busy_until_s - now_s) + batches * each_s

    def _median_s(self, split_point: str, rows: int) -> float:
        """What a batch usually takes."""
        seconds = self._medians_s.get((split_point, rows))
        if seconds is None:
            seconds = self._times.get(split_point, self._any).seconds(rows, 0.5)
            self._medians_s[split_point, rows] = seconds
        return seconds

    def _begin(self, replica: _Replica) -> None:
        """Begin the batch that is closed already, or else the one whose first request has the earliest deadline."""
        now_s = self._clock.now_s()
        decode_s = 0.0
        batch, replica.closed = replica.closed, []
        if not batch:
            batch = self._take(replica, now_s)
            if not batch:
                return
            decode_s = len(batch) * self._profile.decode_s
        times = self._times.get(batch[0].ask.split_point, self._any)
        took_s = decode_s + times.seconds(len(batch), self._rng.random())
        replica.running = batch
        replica.busy_until_s = ends_s = now_s + took_s
        for each in batch:
            each.back_s = self._back_s(each, len(batch))
            if ends_s + each.back_s > each.deadline_s:
                self._clock.give_up(each.promise, at_s=each.deadline_s)
        replica.busy_s += took_s
        self._clock.at(ends_s, self._end, (replica, batch, now_s))
        if self._ahead_s:
            self._clock.at(max(now_s, ends_s - self._ahead_s), self._close, (replica, batch))

    def _back_s(self, waiting: _Waiting, rows: int) -> float:
        """From the end of a batch of so many to the answer of this one of them."""
        if not self._is_overhead_by_rows:
            # What the line below gives too, without looking it up twice for each of a million requests.
            return waiting.back_s
        return max(0.0, self._overhead.seconds(rows, waiting.luck) - waiting.in_s)

    def _take(self, replica: _Replica, starts_s: float) -> list[_Waiting]:
        """The batch whose first request has the earliest deadline, out of its queue; empty where nobody waits.

        As serve_app does, what would be answered after its deadline is refused now: computing it helps nobody, and
        makes those behind it late too.
        """
        batch: list[_Waiting] = []
        while not batch:
            queue = None
            for each in replica.queues.values():
                if each and (queue is None or each[0].deadline_s < queue[0].deadline_s):
                    queue = each
            if queue is None:
                break
            split_point = queue[0].ask.split_point
            while True:
                while queue and len(batch) < self._profile.max_batch:
                    batch.append(queue.popleft())
                if not batch:
                    break
                rows = len(batch)
                slack_s = [each.deadline_s - self._back_s(each, rows) for each in batch]
                least_s = min(slack_s)
                if least_s >= starts_s + self._median_s(split_point, rows):
                    break
                # One at a time, and others in its place: with fewer rows the batch may end in time for the rest.
                hopeless = batch.pop(slack_s.index(least_s))
                replica.pending -= 1
                self._clock.keep(hopeless.promise, Refused("server_rejected", MIN_RETRY_AFTER_S))
        return batch

    def _close(self, what: tuple[_Replica, list[_Waiting]]) -> None:
        """Close the next batch while `during` runs, or look again when that will be due for what waits now."""
        replica, during = what
        if replica.running is during and not replica.closed:
            due_s = self._close_if_due(replica)
            if due_s > self._clock.now_s():
                self._clock.at(due_s, self._close, what)

    def _close_if_due(self, replica: _Replica) -> float:
        """Close the next batch where it is time to decode it. Returns when it is, or was: for one row where nobody
        waits."""
        waiting = max(map(len, replica.queues.values()), default=0)
        rows = max(1, min(waiting, self._profile.max_batch))
        due_s = replica.busy_until_s - self._profile.lead_s - rows * self._profile.decode_s
        if waiting and due_s <= self._clock.now_s():
            replica.closed = self._take(replica, replica.busy_until_s + self._turnaround_s(replica.running))
        return due_s

    def _end(self, what: tuple[_Replica, list[_Waiting], float]) -> None:
        replica, batch, began_s = what
        if replica.running is not batch:
            return
        clock = self._clock
        took_s = clock.now_s() - began_s
        replica.pending -= len(batch)
        replica.running = []
        for each in batch:
            if not clock.is_waited_for(each.promise) or clock.now_s() + each.back_s > each.deadline_s:
                # Whoever asked gave up, or will before the answer is back.
                continue
            queue_s = began_s - each.arrived_s
            self._reported_wait.learn(clock.now_s(), queue_s)
            # Replies of one kind have one size: five classes, or the logits.
            served = Served(queue_s, took_s + each.back_s, len(batch), self._reply_bytes, None)
            clock.keep(each.promise, served, after_s=each.back_s)
        turnaround_s = self._turnaround_s(batch)
        if turnaround_s and (replica.closed or any(replica.queues.values())):
            replica.turning = True
            clock.at(clock.now_s() + turnaround_s, self._turned, replica)
        else:
            self._begin(replica)

    def _turnaround_s(self, batch: list[_Waiting]) -> float:
        return self._profile.turnaround_s * len(batch) / self._profile.max_batch

    def _turned(self, replica: _Replica) -> None:
        if replica.turning:
            replica.turning = False
            self._begin(replica)

    def _started(self, argument: Any) -> None:
        self._starting -= 1
        self._replicas.append(_Replica())
        self.most_replicas = max(self.most_replicas, len(self._replicas))

    async def _scale(self) -> None:
        scaling = self._profile.autoscaling
        assert scaling is not None
        clock = self._clock
        over_s = under_s = 0.0
        while True:
            await clock.sleep_until(clock.now_s() + scaling.look_every_s)
            count = len(self._replicas)
            busy = sum(min(1.0, each.busy_s / scaling.look_every_s) for each in self._replicas)
            for each in self._replicas:
                each.busy_s = 0.0
            wanted = max(1, -int(-busy / scaling.target_busy_share // 1))
            wanted = min(scaling.max_replicas, max(scaling.min_replicas, min(wanted, 2 * max(1, count))))
            have = count + self._starting
            over_s = over_s + scaling.look_every_s if wanted > have else 0.0
            under_s = under_s + scaling.look_every_s if wanted < have else 0.0
            if wanted > have and over_s >= scaling.upscale_delay_s:
                for _ in range(wanted - have):
                    self._starting += 1
                    clock.at(clock.now_s() + scaling.start_s, self._started)
                over_s = 0.0
            elif wanted < count and under_s >= scaling.downscale_delay_s:
                # Only idle ones leave: what a replica holds is answered first, as serve_app drains.
                idle = [each for each in self._replicas if not each.pending]
                for replica in idle[: count - wanted]:
                    self._replicas.remove(replica)
                under_s = 0.0
