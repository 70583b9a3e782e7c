"""How busy a replica is, for the autoscaler: queue delay and busy share of the last seconds.

Knows facts of batches and a clock. Knows no Ray.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from serve_app.autoscaling_policy import BUSY_SHARE, QUEUE_DELAY
from serve_app.observer import BatchFacts, RequestFacts

WINDOW_S = 2.0
"""Short enough to follow a burst, long enough to hold many batches."""
# The best time of a sample is forgotten by a thousandth with each batch, so that a slower machine is noticed.
_FORGETTING = 1.001


class ReplicaStats:
    """An observer that keeps two seconds of batches."""

    def __init__(self, *, window_s: float = WINDOW_S, now_s: Callable[[], float] = time.monotonic) -> None:
        self._window_s = window_s
        self._now_s = now_s
        self._started_s = now_s()
        self._lock = threading.Lock()
        self._batches: deque[tuple[float, BatchFacts]] = deque()
        self._best_s: dict[str, float] = {}
        self._inputs: deque[tuple[float, float, float]] = deque()
        """When one was read, how long it had waited, how long reading took."""

    def batch_done(self, facts: BatchFacts) -> None:
        """A batch ran until now."""
        with self._lock:
            now_s = self._now_s()
            self._batches.append((now_s, facts))
            per_sample_s = facts.tail_s / max(1, facts.samples)
            best_s = self._best_s.get(facts.split_point, per_sample_s)
            self._best_s[facts.split_point] = min(best_s * _FORGETTING, per_sample_s)
            self._forget(now_s)

    def other_weights(self) -> None:
        """Forget what was seen of others, which may have been faster."""
        with self._lock:
            self._batches.clear()
            self._best_s.clear()
            self._inputs.clear()

    def request_done(self, facts: RequestFacts) -> None:
        """Of one whose input was read beside the event loop, that work. Refusals are none."""
        if facts.input_s:
            with self._lock:
                now_s = self._now_s()
                self._inputs.append((now_s, facts.input_wait_s, facts.input_s))
                self._forget(now_s)

    def record(self) -> dict[str, float]:
        """`queue_delay_s`: mean wait of the requests that ran. `busy_share`: 0..1, of the model's time that their
        samples need in full batches.

        In full batches, because a single client that always waits for its answer keeps the model busy with batches of
        one, which is no reason for a second replica. Where images are decoded here, that thread may be the busier one:
        the larger of both is said.
        """
        with self._lock:
            now_s = self._now_s()
            self._forget(now_s)
            window_s = min(self._window_s, now_s - self._started_s)
            delays_s = [delay_s for _, facts in self._batches for delay_s in facts.queue_delays_s]
            needed_s = sum(facts.samples * self._best_s[facts.split_point] for _, facts in self._batches)
            waits_s = [wait_s for _, wait_s, _ in self._inputs]
            read_s = sum(took_s for _, _, took_s in self._inputs)
        return {
            QUEUE_DELAY: max(_mean(delays_s), _mean(waits_s)),
            BUSY_SHARE: min(1.0, max(needed_s, read_s) / window_s) if window_s > 0 else 0.0,
        }

    def _forget(self, now_s: float) -> None:
        while self._batches and self._batches[0][0] < now_s - self._window_s:
            self._batches.popleft()
        while self._inputs and self._inputs[0][0] < now_s - self._window_s:
            self._inputs.popleft()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
