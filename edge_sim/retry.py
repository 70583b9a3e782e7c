"""When a request may be sent again, and how long to wait before: decisions only, no sockets and no sleeping.

Inference is a pure function of the frame, so sending one again is always safe; what has to be bounded is the load that
retries add. Hence at most `attempts` sends, full jitter (many devices that fail together do not return together), and
never past the request's own time budget.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

# Ours that promise a better answer later; every other 4xx of ours says that the request itself is wrong.
RETRIABLE_STATUSES = frozenset({408, 429, 503})


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How often, and how long between."""

    attempts: int = 4
    """Sends in all, the first one included."""
    base_s: float = 0.1
    """Upper end of the first wait; doubles with each attempt."""
    cap_s: float = 2.0
    """No jittered wait is longer; a server's Retry-After may be."""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {self.attempts}")
        if not 0 < self.base_s <= self.cap_s:
            raise ValueError(f"expected 0 < base_s <= cap_s, got {self.base_s} and {self.cap_s}")

    def wait_s(
        self, *, failed_attempts: int, retry_after_s: float | None, remaining_s: float, rng: random.Random
    ) -> float | None:
        """Seconds to wait before the next attempt, or None to give up.

        A stated Retry-After is a floor; the jitter comes on top of it, so that its readers do not return as one.
        A wait that leaves nothing of `remaining_s` is not worth starting.
        """
        if failed_attempts >= self.attempts:
            return None
        jitter_s = rng.uniform(0.0, min(self.cap_s, self.base_s * 2 ** (failed_attempts - 1)))
        wait_s = jitter_s + (retry_after_s or 0.0)
        return wait_s if wait_s < remaining_s else None


def may_retry(status: int, *, has_our_body: bool) -> bool:
    """Whether an answer with this status is worth another attempt.

    An error without our JSON body comes from a proxy on the way, whatever its status says: a restarted HAProxy answers
    404 for half a second, and reports a lost replica as 500.
    """
    return not has_our_body or status in RETRIABLE_STATUSES
