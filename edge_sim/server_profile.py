"""What a simulation knows of a server: seconds of batches as measured, replicas, limits, how it grows.

Written by `python -m edge_sim calibrate-server`, or by hand. Knows pydantic and no clock; server_model.py lives by it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from split_inference.json_files import read_json_file

Seconds = Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)]
Quantiles = Annotated[tuple[Seconds, ...], Field(min_length=1, max_length=1001)]
"""Evenly spaced from the smallest to the largest; one value is a constant."""
BatchRows = Annotated[int, Field(ge=1)]


def _by_rows(given: object) -> object:
    return {1: given} if isinstance(given, list | tuple) else given


Overheads = Annotated[
    Mapping[BatchRows, Quantiles],
    Field(min_length=1),
    BeforeValidator(_by_rows, json_schema_input_type=Quantiles | Mapping[BatchRows, Quantiles]),
]
"""By samples in the batch; one list is for all of them."""


class Autoscaling(BaseModel):
    """How many replicas there are, as Ray Serve's autoscaler decides by serve_app.autoscaling_policy."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_replicas: int = Field(default=1, ge=1, le=1000)
    max_replicas: int = Field(default=1, ge=1, le=1000)
    look_every_s: float = Field(default=2.0, gt=0)
    upscale_delay_s: float = Field(default=6.0, ge=0)
    downscale_delay_s: float = Field(default=180.0, ge=0)
    start_s: float = Field(default=8.0, ge=0)
    """From the decision to a replica's first answer."""
    target_busy_share: float = Field(default=0.7, gt=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        return self


class ServerProfile(BaseModel):
    """One model's server."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    """Where the times come from: the run that measured them, or "assumed"."""
    replicas: int = Field(default=1, ge=1, le=1000)
    max_batch: int = Field(default=16, ge=1, le=1024)
    max_pending: int = Field(default=192, ge=1)
    """Requests of one replica that wait or run; more are refused."""
    overhead_s: Overheads
    """HTTP and answering of one request, beside the model's thread; by samples in its batch where given so: the answers
    of a batch go out one after another."""
    batch_s: Mapping[str, Mapping[int, Quantiles]]
    """By split point, then by samples in the batch: dequantise, tail; decoding too where `decode_s` is 0. "*" is every
    other split point."""
    decode_s: Seconds = 0.0
    """Decoding of each sample: an idle model waits for it, a busy one does not."""
    lead_s: Seconds = 0.0
    """How long before the model is free the next batch is closed, besides decoding it."""
    turnaround_s: Seconds = 0.0
    """From the end of a full batch to the beginning of the next, where requests wait: answers, threads, event loop.
    In proportion after a smaller one."""
    autoscaling: Autoscaling | None = None

    @model_validator(mode="after")
    def _has_times(self) -> Self:
        for name, by_rows in self.batch_s.items():
            if not by_rows or min(by_rows) < 1:
                raise ValueError(f"batch_s of {name!r} needs seconds for at least one positive number of samples")
        if not self.batch_s:
            raise ValueError("batch_s needs at least one split point")
        return self

    @classmethod
    def read(cls, path: Path) -> ServerProfile:
        """From a file; ConfigError names the file and the first field that is wrong."""
        return read_json_file(path, cls, what="server profile")

    def overhead(self) -> OverheadTimes:
        """Of one request, by the size of its batch."""
        return OverheadTimes(self.overhead_s)


class BatchTimes:
    """Seconds of a batch of any size: linear between two that were measured; beyond the largest, in proportion."""

    def __init__(self, by_rows: Mapping[int, Sequence[float]]) -> None:
        self._rows = sorted(by_rows)
        self._quantiles = [tuple(by_rows[rows]) for rows in self._rows]

    @property
    def sizes(self) -> int:
        """How many were measured."""
        return len(self._rows)

    def seconds(self, rows: int, u: float) -> float:
        """For `rows` samples at the quantile `u`, 0..1."""
        index = bisect_left(self._rows, rows)
        if index == len(self._rows):
            return quantile(self._quantiles[-1], u) * rows / self._rows[-1]
        above = quantile(self._quantiles[index], u)
        if self._rows[index] == rows or index == 0:
            return above
        below, low = quantile(self._quantiles[index - 1], u), self._rows[index - 1]
        return below + (above - below) * (rows - low) / (self._rows[index] - low)


class OverheadTimes(BatchTimes):
    """Seconds of a request beside its batch: beyond the largest batch that was measured, as in that one."""

    def seconds(self, rows: int, u: float) -> float:
        return super().seconds(min(rows, self._rows[-1]), u)


def quantile(values: Sequence[float], u: float) -> float:
    """The value at `u`, 0..1, of evenly spaced quantiles."""
    last = len(values) - 1
    if not last:
        return values[0]
    place = u * last
    index = min(int(place), last - 1)
    return values[index] + (values[index + 1] - values[index]) * (place - index)
