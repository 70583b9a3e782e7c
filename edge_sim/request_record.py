"""One request of a fleet as one line of JSON: what was done, how it ended, where its seconds, bytes and joules went.

Knows text only. A million of these are written in a simulation of a minute, so that a line is put together by hand; a
test reads each of them back as JSON.
"""

from __future__ import annotations

import json
from typing import Protocol

ANSWERED, LOCALLY, GAVE_UP, DROPPED = "answered", "answered_locally", "gave_up", "dropped"


class Request:
    """What is known of one request so far; seconds, bytes, joules."""

    __slots__ = (
        "attempts",
        "bandwidth_mbit_s",
        "compute_j",
        "correct",
        "down_bytes",
        "down_s",
        "head_s",
        "idle_j",
        "in_time",
        "intended_s",
        "late_s",
        "local_s",
        "number",
        "outcome",
        "radio_j",
        "reason",
        "server_queue_s",
        "server_s",
        "total_s",
        "up_bytes",
        "up_loss_s",
        "up_propagation_s",
        "up_queue_s",
        "up_s",
        "wait_s",
    )

    def __init__(self, number: int, intended_s: float, late_s: float) -> None:
        self.number = number
        self.intended_s = intended_s
        self.late_s = late_s
        self.outcome = DROPPED
        self.reason: str | None = None
        self.in_time = False
        self.correct: bool | None = None
        self.total_s = self.wait_s = self.head_s = 0.0
        self.up_queue_s = self.up_s = self.up_propagation_s = self.up_loss_s = 0.0
        self.server_queue_s = self.server_s = self.down_s = self.local_s = 0.0
        self.up_bytes = self.down_bytes = 0
        self.compute_j = self.radio_j = self.idle_j = 0.0
        self.attempts = 0
        self.bandwidth_mbit_s: float | None = None


class RequestWriter(Protocol):
    """Takes finished requests."""

    def write(self, who: str, how: str, request: Request) -> None:
        """`who` and `how` are the texts that `who_text` and `how_text` gave."""


def who_text(*, device: str, group: str, policy: str, model: str) -> str:
    """The part of a line that is the same for all requests of a device."""
    text = json.dumps({"device": device, "group": group, "policy": policy, "model": model}, separators=(",", ":"))
    return text[:-1]


def how_text(*, mode: str, split_point: str | None, codec: str | None) -> str:
    """The part of a line that is the same for all requests of an option."""
    text = json.dumps({"mode": mode, "split_point": split_point, "codec": codec}, separators=(",", ":"))
    return "," + text[1:-1]


_TRUTH = {True: "true", False: "false", None: "null"}


def line_of(who: str, how: str, r: Request) -> str:
    """The whole line, without its end. Seconds to the nanosecond, joules to the microjoule."""
    reason = "null" if r.reason is None else f'"{r.reason}"'
    bandwidth = "null" if r.bandwidth_mbit_s is None else f"{r.bandwidth_mbit_s:.4f}"
    return (
        f'{who}{how},"n":{r.number},"intended_s":{r.intended_s:.9f},"late_s":{r.late_s:.9f}'
        f',"outcome":"{r.outcome}","reason":{reason},"in_time":{_TRUTH[r.in_time]},"correct":{_TRUTH[r.correct]}'
        f',"total_s":{r.total_s:.9f},"wait_s":{r.wait_s:.9f},"head_s":{r.head_s:.9f},"up_queue_s":{r.up_queue_s:.9f}'
        f',"up_s":{r.up_s:.9f},"up_propagation_s":{r.up_propagation_s:.9f},"up_loss_s":{r.up_loss_s:.9f}'
        f',"server_queue_s":{r.server_queue_s:.9f},"server_s":{r.server_s:.9f},"down_s":{r.down_s:.9f}'
        f',"local_s":{r.local_s:.9f},"up_bytes":{r.up_bytes},"down_bytes":{r.down_bytes}'
        f',"compute_j":{r.compute_j:.6f},"radio_j":{r.radio_j:.6f},"idle_j":{r.idle_j:.6f}'
        f',"attempts":{r.attempts},"bandwidth_mbit_s":{bandwidth}}}'
    )
