"""Which waiting requests run together, and when: queues by key, earliest deadline first, and what a batch costs.

Pure: time is an argument, nothing waits, nothing runs. Knows no Ray, no torch, no threads and no event loop;
micro_batcher.py is the shell that does.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

# Where an item states no deadline it is ordered as if it had this one, so that a stream of urgent ones cannot keep it
# waiting for ever.
DEFAULT_PATIENCE_S = 1.0
# How fast estimates follow the machine: after 5 batches two thirds of a change are seen.
_LEARNING_RATE = 0.2
# A batch during which the machine stood still says nothing of the next one: it counts as one that took so many times as
# long as expected. A machine that did become slower is believed a few batches later.
_MOST_SURPRISE = 4.0


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchKey:
    """What items of one batch have in common, so that their features can be stacked."""

    split_point: str
    shapes: tuple[tuple[int, ...], ...]
    """Of each tensor, without the sample axis."""
    codec: str
    """Name of the quantizer, or of what else the features come from."""
    from_codes: bool = True
    """Whether the tail dequantises; else features arrive at it as floats."""


@dataclass(kw_only=True, slots=True, eq=False)
class Item:
    """One request that waits: `samples` rows of features."""

    key: Hashable
    samples: int
    entered_s: float
    deadline_s: float = math.inf
    """Time after which nobody wants the answer; infinity where the sender said nothing."""
    payload: Any = None
    cancelled: bool = False
    """Set by BatchQueue.cancel."""
    waits: bool = False
    """Whether it is in a queue."""
    waiter: Any = None
    """For the shell: whoever awaits the answer."""

    @property
    def urgency_s(self) -> float:
        """The time by which items are ordered."""
        return min(self.deadline_s, self.entered_s + DEFAULT_PATIENCE_S)


class CostModel:
    """Seconds that a batch takes, by key and number of samples: measured when warming up, and followed ever after.

    The first batch of a size may have been cold: the second one replaces it where it took less.
    """

    def __init__(self) -> None:
        self._seconds: dict[Hashable, dict[int, float]] = {}
        self._seen_once: set[tuple[Hashable, int]] = set()

    def learn(self, key: Hashable, samples: int, seconds: float) -> None:
        """A batch of `samples` took `seconds`."""
        known = self._seconds.setdefault(key, {})
        size = _size_class(samples)
        expected_s = self.batch_s(key, samples) if size in known else 0.0
        if expected_s > 0:
            # By how much this very size was wrong: in proportion to its rows a batch of 9 would make one of 16 look as
            # if it paid twice for what each batch pays once.
            surprise = min(seconds / expected_s, _MOST_SURPRISE)
            is_second = (key, size) in self._seen_once
            self._seen_once.discard((key, size))
            known[size] *= surprise if is_second and surprise < 1 else 1 + _LEARNING_RATE * (surprise - 1)
        else:
            known[size] = seconds * size / samples
            self._seen_once.add((key, size))

    def batch_s(self, key: Hashable, samples: int) -> float:
        """Expected seconds of a batch; 0 where nothing is known yet, so that an unknown key is let in and learnt."""
        known = self._seconds.get(key)
        if not known:
            return 0.0
        if samples in known:
            return known[samples]
        below = max((size for size in known if size < samples), default=None)
        above = min((size for size in known if size > samples), default=None)
        if below is None:
            return known[above] if above is not None else 0.0
        if above is None:
            return known[below] * samples / below
        share = (samples - below) / (above - below)
        return known[below] + share * (known[above] - known[below])


_DEADLINE = attrgetter("deadline_s")


def _size_class(samples: int) -> int:
    """The power of two at or above: 1, 2, 4, 8, ..."""
    return 1 << (samples - 1).bit_length()


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """What left the queue: a batch to run, and items that are not worth running."""

    batch: list[Item]
    expired: list[Item]

    @property
    def samples(self) -> int:
        """Rows of the batch."""
        return sum(item.samples for item in self.batch)


@dataclass(slots=True)
class _KeyQueue:
    heap: list[tuple[float, int, Item]] = field(default_factory=list)
    samples: int = 0


class BatchQueue:
    """Items by key; the batch with the most urgent item leaves first."""

    def __init__(self, cost: CostModel) -> None:
        self._cost = cost
        self._queues: dict[Hashable, _KeyQueue] = {}
        self._order = itertools.count()
        self._count = 0

    def __len__(self) -> int:
        """Items that wait, cancelled ones among them until they are taken."""
        return self._count

    def __iter__(self) -> Iterator[Item]:
        """All items, in no order."""
        return (entry[2] for queue in self._queues.values() for entry in queue.heap)

    def put(self, item: Item) -> None:
        """Let an item wait. Items of equal urgency leave in the order in which they came."""
        queue = self._queues.setdefault(item.key, _KeyQueue())
        heapq.heappush(queue.heap, (item.urgency_s, next(self._order), item))
        queue.samples += item.samples
        item.waits = True
        self._count += 1

    def cancel(self, item: Item) -> None:
        """Nobody waits for it any more; where it still waits, its rows are no part of any batch from now on."""
        if not item.cancelled:
            item.cancelled = True
            if item.waits:
                self._queues[item.key].samples -= item.samples
                # Its place in the heap may stay for long, and its features are megabytes that nobody counts any more.
                item.payload = None

    def most_urgent(self) -> Item | None:
        """The item that the next batch is made around; cancelled ones are forgotten on the way."""
        best: tuple[float, int, Item] | None = None
        for key in list(self._queues):
            queue = self._queues[key]
            while queue.heap and queue.heap[0][2].cancelled:
                self._pop(queue)
            if not queue.heap:
                # Keys come from outside; an empty queue must not stay.
                del self._queues[key]
            elif best is None or queue.heap[0][:2] < best[:2]:
                best = queue.heap[0]
        return best[2] if best else None

    def samples(self, key: Hashable) -> int:
        """Rows that wait under this key."""
        queue = self._queues.get(key)
        return queue.samples if queue else 0

    def oldest_entered_s(self) -> float | None:
        """When the item that waits longest came; None where none waits."""
        return min((item.entered_s for item in self if not item.cancelled), default=None)

    def take(self, *, starts_s: float, max_samples: int) -> Taken:
        """The next batch, which will start at `starts_s`: around the most urgent item, filled with the next urgent
        ones of its key.

        An item of more than `max_samples` rows runs alone. Items whose batch would end after their deadline are given
        back as expired: running them helps nobody and makes those behind them late too.
        """
        batch: list[Item] = []
        expired: list[Item] = []
        first = self.most_urgent()
        while first is not None:
            queue = self._queues[first.key]
            rows = 0
            while True:
                rows = self._fill(batch, rows, queue, max_samples)
                hopeless = min(batch, key=_DEADLINE, default=None)
                if hopeless is None or starts_s + self._cost.batch_s(first.key, rows) <= hopeless.deadline_s:
                    break
                # One at a time, and others in its place: without its rows the batch may end in time for the rest.
                batch.remove(hopeless)
                rows -= hopeless.samples
                expired.append(hopeless)
            # Everything that waited under this key may have expired: then another key's turn has come.
            first = None if batch else self.most_urgent()
        return Taken(batch=batch, expired=expired)

    def _fill(self, batch: list[Item], rows: int, queue: _KeyQueue, max_samples: int) -> int:
        """Move the next urgent items that fit into a batch of so many rows. Returns its rows."""
        while queue.heap:
            item = queue.heap[0][2]
            if not item.cancelled and batch and rows + item.samples > max_samples:
                break
            self._pop(queue)
            if not item.cancelled:
                batch.append(item)
                rows += item.samples
        return rows

    def work_before_s(self, item: Item, *, max_samples: int) -> float:
        """Seconds of waiting work that would run before `item`, which is not in the queue yet."""
        total_s = 0.0
        for key, queue in self._queues.items():
            ahead = (entry[2] for entry in queue.heap if entry[0] <= item.urgency_s)
            rows = sum(each.samples for each in ahead if not each.cancelled)
            if key == item.key:
                # It joins the last of these batches, or makes that one longer.
                rows += item.samples
            total_s += self._batches_s(key, rows, max_samples)
        if item.key not in self._queues:
            total_s += self._batches_s(item.key, item.samples, max_samples)
        return total_s

    def _batches_s(self, key: Hashable, rows: int, max_samples: int) -> float:
        full, rest = divmod(rows, max_samples)
        seconds = full * self._cost.batch_s(key, max_samples) if full else 0.0
        return seconds + (self._cost.batch_s(key, rest) if rest else 0.0)

    def _pop(self, queue: _KeyQueue) -> Item:
        item = heapq.heappop(queue.heap)[2]
        item.waits = False
        if not item.cancelled:
            queue.samples -= item.samples
        self._count -= 1
        return item
