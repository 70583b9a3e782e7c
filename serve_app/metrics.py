"""The server's metrics as data, and the observer that turns facts into them.

Knows names, units, labels and buckets. Knows no Ray and no Prometheus: what an instrument does with a value is its
own business. The dashboard is made from this table too (scripts/make_dashboard.py).

Every label takes few values, all of them known before the first request: one time series costs memory on the replica,
on its node and in Prometheus, and whoever may send requests must not be able to make more of them.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from serve_app.observer import BatchFacts, RequestFacts
from split_inference.errors import WireError

Kind = Literal["counter", "gauge", "histogram"]

PREFIX: Final = "split_inference_"
# Ray writes this before every metric of an application when it exports it; read off a replica's metrics page.
EXPORTED_PREFIX: Final = "ray_"
# Ray Serve puts these on every metric of a replica, and Prometheus keeps `le` for itself.
RESERVED_LABELS: Final = frozenset({"application", "deployment", "replica", "route", "le"})

OTHER: Final = "other"
NONE: Final = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One metric: what it is called, what it counts, and by what. Raises ValueError for a definition of no use."""

    name: str
    kind: Kind
    unit: str
    """SI, spelt out as at the end of the name: seconds, bytes; or what is counted: requests, samples."""
    description: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    """Upper ends of a histogram's buckets, ascending; the last bucket, without an end, is not named."""
    bounds_reason: str = ""

    def __post_init__(self) -> None:
        if re.fullmatch(rf"{PREFIX}[a-z][a-z0-9_]*", self.name) is None:
            raise ValueError(f"{self.name}: a name is {PREFIX} and lower-case words")
        if (self.kind == "counter") != self.name.endswith("_total"):
            raise ValueError(f"{self.name}: counters, and only they, end in _total")
        if self.unit in ("seconds", "bytes") and self.unit not in self.name.removesuffix("_total").split("_")[-1:]:
            raise ValueError(f"{self.name}: ends in its unit, {self.unit}")
        if reserved := RESERVED_LABELS & set(self.labels):
            raise ValueError(f"{self.name}: label {min(reserved)} is taken")
        if (self.kind == "histogram") != bool(self.bounds and self.bounds_reason):
            raise ValueError(f"{self.name}: histograms, and only they, have bounds and a reason for them")
        # Ray takes no bound of 0.
        if not all(0 < low < high for low, high in itertools.pairwise((*self.bounds, math.inf))):
            raise ValueError(f"{self.name}: bounds are positive and ascend")

    @property
    def exported_name(self) -> str:
        """Name in Prometheus; of a histogram, without `_bucket`, `_sum` or `_count`."""
        return EXPORTED_PREFIX + self.name


# The same ones as RAY_SERVE_REQUEST_LATENCY_BUCKETS_MS has in serve.py, so that both can be laid over each other; ten
# seconds more for senders on a slow link.
_REQUEST_BOUNDS_S = (
    0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
)  # fmt: skip
_REQUEST_REASON = "as Serve's own request latencies, so that both compare, and up to the time a body may take"
_BATCH_BOUNDS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_BATCH_REASON = "1-2-5 steps from a compiled tail's time to an eager one's for a whole batch on a busy machine"

REQUESTS = Metric(
    name="split_inference_requests_total",
    kind="counter",
    unit="requests",
    description="Requests that were answered or refused.",
    labels=("protocol", "status", "split_point"),
)
REJECTS = Metric(
    name="split_inference_rejects_total",
    kind="counter",
    unit="requests",
    description="Requests that got no answer, by the class of the error.",
    labels=("reason",),
)
REQUEST_SECONDS = Metric(
    name="split_inference_request_seconds",
    kind="histogram",
    unit="seconds",
    description="From the request's headers until its answer was ready; answered requests only.",
    labels=("protocol", "split_point"),
    bounds=_REQUEST_BOUNDS_S,
    bounds_reason=_REQUEST_REASON,
)
BODY_SECONDS = Metric(
    name="split_inference_body_seconds",
    kind="histogram",
    unit="seconds",
    description="Until the request's body had arrived: the sender's link, not this server.",
    labels=("protocol",),
    bounds=_REQUEST_BOUNDS_S,
    bounds_reason=_REQUEST_REASON,
)
REQUEST_BYTES = Metric(
    name="split_inference_request_bytes",
    kind="histogram",
    unit="bytes",
    description="Size of the body that was read.",
    labels=("split_point",),
    bounds=tuple(float(2**power) for power in range(8, 25, 2)),
    bounds_reason="factors of four, from a few packed bits to 16 MiB: an earlier split point is the next one",
)
RECEIVED_BYTES = Metric(
    name="split_inference_received_bytes_total",
    kind="counter",
    unit="bytes",
    description="Bytes of the bodies that were read, by codec.",
    labels=("codec",),
)
QUEUE_DELAY_SECONDS = Metric(
    name="split_inference_queue_delay_seconds",
    kind="histogram",
    unit="seconds",
    description="How long a request waited until its batch left.",
    labels=("split_point",),
    bounds=_BATCH_BOUNDS_S,
    bounds_reason="the tail's own: a queue is short or long beside what a batch takes",
)
DECODE_SECONDS = Metric(
    name="split_inference_decode_seconds",
    kind="histogram",
    unit="seconds",
    description="Decompressing, unpacking and stacking one batch.",
    labels=("split_point",),
    bounds=_BATCH_BOUNDS_S,
    bounds_reason="the tail's own: decoding has to hide behind the batch that runs",
)
TAIL_SECONDS = Metric(
    name="split_inference_tail_seconds",
    kind="histogram",
    unit="seconds",
    description="Running the tail on one batch.",
    labels=("split_point",),
    bounds=_BATCH_BOUNDS_S,
    bounds_reason=_BATCH_REASON,
)
BATCH_SAMPLES = Metric(
    name="split_inference_batch_samples",
    kind="histogram",
    unit="samples",
    description="Samples in one batch; the sum of all batches is the samples that ran.",
    labels=("split_point",),
    bounds=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0),
    bounds_reason="powers of two, as the sizes that tails are compiled for",
)
PADDING = Metric(
    name="split_inference_padding_samples_total",
    kind="counter",
    unit="samples",
    description="Empty rows that ran beside samples, because only larger batch sizes are compiled.",
    labels=("split_point",),
)
PENDING = Metric(
    name="split_inference_pending_requests",
    kind="gauge",
    unit="requests",
    description="Requests that arrive, wait or run.",
)
MODEL_INFO = Metric(
    name="split_inference_model_info",
    kind="gauge",
    unit="1",
    description="1; its labels say which model and which version answer. 0 for weights that were replaced.",
    labels=("model", "digest", "version"),
)

CONFIG_PENDING = Metric(
    name="split_inference_user_config_pending",
    kind="gauge",
    unit="1",
    description="1 while user_config is not in force: weights that it names are being loaded, or it was refused.",
)

METRICS: Final[tuple[Metric, ...]] = (
    REQUESTS,
    REJECTS,
    REQUEST_SECONDS,
    BODY_SECONDS,
    REQUEST_BYTES,
    RECEIVED_BYTES,
    QUEUE_DELAY_SECONDS,
    DECODE_SECONDS,
    TAIL_SECONDS,
    BATCH_SAMPLES,
    PADDING,
    PENDING,
    MODEL_INFO,
    CONFIG_PENDING,
)


class Instrument(Protocol):
    """One metric where it is kept: adds to a counter, sets a gauge, or puts into a histogram's bucket."""

    def record(self, value: float, labels: dict[str, str]) -> None:
        """A value under the metric's labels, each of which is there; a counter's is positive."""
        ...

    def flush(self) -> None:
        """Hand over what was kept back; called every few seconds."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """What the model's series are told apart by."""

    model: str
    digest: str
    version: str

    def labels(self) -> dict[str, str]:
        """Of MODEL_INFO."""
        return {"model": self.model, "digest": self.digest[:12], "version": self.version}


class MetricsObserver:
    """Turns facts into the table's metrics; names that the model's card does not have become "other"."""

    def __init__(
        self,
        make: Callable[[Metric], Instrument],
        *,
        split_points: Iterable[str] = (),
        codecs: Iterable[str] = (),
        info: ModelInfo | None = None,
        pending: Callable[[], float] | None = None,
        config_pending: Callable[[], bool] | None = None,
    ) -> None:
        """`split_points` and `codecs` are the card's, see `card_names`; `sample` sets the last three."""
        self._instruments = {metric.name: make(metric) for metric in METRICS}
        self._info: ModelInfo | None = None
        self.serve(split_points=split_points, codecs=codecs, info=info)
        self._reasons = refusal_names()
        self._pending = pending
        self._config_pending = config_pending
        # Counters wait here for `sample`: a refusal has to cost next to nothing, and nobody scrapes more often.
        self._counted: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def serve(
        self, *, split_points: Iterable[str] = (), codecs: Iterable[str] = (), info: ModelInfo | None = None
    ) -> None:
        """From now on the model has these names; one that served before is set to 0 in MODEL_INFO."""
        if self._info is not None and self._info != info:
            self._record(MODEL_INFO, 0, self._info.labels())
        self._split_points = frozenset(split_points) | {"input"}
        self._codecs = {name: codec_family(name) for name in codecs}
        self._info = info

    def batch_done(self, facts: BatchFacts) -> None:
        """One batch: its sizes and times."""
        labels = {"split_point": self._split_point(facts.split_point)}
        for delay_s in facts.queue_delays_s:
            self._record(QUEUE_DELAY_SECONDS, delay_s, labels)
        self._record(DECODE_SECONDS, facts.decode_s, labels)
        self._record(TAIL_SECONDS, facts.tail_s, labels)
        self._record(BATCH_SAMPLES, facts.samples, labels)
        if facts.bucket > facts.samples:
            self._record(PADDING, facts.bucket - facts.samples, labels)

    def request_done(self, facts: RequestFacts) -> None:
        """One request: its answer or refusal, its size, and where an answer was given its times."""
        split_point = self._split_point(facts.split_point)
        by_status = {"protocol": facts.protocol, "status": str(facts.status), "split_point": split_point}
        self._record(REQUESTS, 1, by_status)
        if facts.bytes_in > 0:
            codec = NONE if facts.codec is None else self._codecs.get(facts.codec, OTHER)
            self._record(RECEIVED_BYTES, facts.bytes_in, {"codec": codec})
        if facts.status < 400:
            if facts.bytes_in > 0:
                self._record(REQUEST_BYTES, facts.bytes_in, {"split_point": split_point})
            if "read" in facts.timings_s:
                self._record(BODY_SECONDS, facts.timings_s["read"], {"protocol": facts.protocol})
            self._record(REQUEST_SECONDS, facts.total_s, {"protocol": facts.protocol, "split_point": split_point})
        else:
            self._record(REJECTS, 1, {"reason": facts.error if facts.error in self._reasons else OTHER})

    def flush(self) -> None:
        """Hand over what was counted."""
        counted, self._counted = self._counted, {}
        for (name, labels), value in counted.items():
            self._instruments[name].record(value, dict(labels))
        for instrument in self._instruments.values():
            instrument.flush()

    def sample(self) -> None:
        """Hand counters and histograms over and set the gauges; to be called every few seconds, like health checks."""
        self.flush()
        if self._pending is not None:
            self._record(PENDING, self._pending(), {})
        if self._info is not None:
            self._record(MODEL_INFO, 1, self._info.labels())
        if self._config_pending is not None:
            self._record(CONFIG_PENDING, float(self._config_pending()), {})

    def _record(self, metric: Metric, value: float, labels: dict[str, str]) -> None:
        if metric.kind == "counter":
            key = (metric.name, tuple(labels.items()))
            self._counted[key] = self._counted.get(key, 0.0) + value
            return
        self._instruments[metric.name].record(value, labels)

    def _split_point(self, name: str | None) -> str:
        if name is None:
            return NONE
        return name if name in self._split_points else OTHER


def card_names(card: Mapping[str, Any]) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the split points, and of the codecs, that a model's card lists."""
    points = card.get("split_points", ())
    return (
        frozenset(point["name"] for point in points),
        frozenset(codec for point in points for codec in point["codecs"]),
    )


def codec_family(name: str) -> str:
    """A codec's label: its name, without the hundred qualities that JPEG has."""
    return "jpeg" if re.fullmatch(r"jpeg\d+", name) else name


def refusal_names() -> frozenset[str]:
    """Every error class that a refusal can name, and what is refused without one of ours."""

    def below(kind: type[WireError]) -> Iterable[str]:
        yield kind.__name__
        for child in kind.__subclasses__():
            yield from below(child)

    return frozenset(below(WireError)) | {"ClientDisconnect", "InternalError", "MethodNotAllowed"}
