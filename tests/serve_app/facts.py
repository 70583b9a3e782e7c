"""Facts of requests and batches for the tests of those who watch them."""

from __future__ import annotations

from typing import Any

from serve_app.observer import BatchFacts, RequestFacts

TRACE_PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def batch(**changed: Any) -> BatchFacts:
    """A batch of three samples in two requests that ran as four rows."""
    facts: dict[str, Any] = {
        "split_point": "middle",
        "codec": "u4+lz4",
        "samples": 3,
        "items": 2,
        "bucket": 4,
        "queue_delays_s": (0.002, 0.001),
        "decode_s": 0.0005,
        "tail_s": 0.004,
    }
    return BatchFacts(**facts | changed)


def request(**changed: Any) -> RequestFacts:
    """An answered request of two samples."""
    facts: dict[str, Any] = {
        "request_id": "r-1",
        "trace_parent": None,
        "client": "phone",
        "protocol": "http",
        "split_point": "middle",
        "codec": "u4+lz4",
        "samples": 2,
        "bytes_in": 1000,
        "status": 200,
        "error": None,
        "total_s": 0.010,
        "timings_s": {"read": 0.003, "queue": 0.002, "tail": 0.004},
    }
    return RequestFacts(**facts | changed)


def refused(error: str | None = "OverloadedError", *, status: int = 503, **changed: Any) -> RequestFacts:
    """A request that got no answer, before it named a split point."""
    nothing: dict[str, Any] = {"split_point": None, "codec": None, "samples": 0, "bytes_in": 0, "timings_s": {}}
    return request(**nothing | {"error": error, "status": status} | changed)


class Clock:
    """A clock that goes on when told to."""

    def __init__(self, now_s: float = 100.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s
