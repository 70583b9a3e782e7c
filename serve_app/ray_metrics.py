"""The thin rim: the table's metrics as Ray Serve's own, which Ray exports to Prometheus.

Knows Ray. Gauges and counters are recorded when they come: a call takes 2-4 us (measured on a replica). Histograms are
counted here and handed over every few seconds as gauges that only grow, under the names that Prometheus gives a
histogram's series (histogram_counts.py says what Ray's own histograms cost). Serve adds the labels application,
deployment and replica.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, assert_never

from ray.serve import metrics

from serve_app.histogram_counts import HistogramCounts
from serve_app.metrics import Instrument, Metric


class RayInstrument:
    """One Ray metric behind the call that its kind has."""

    def __init__(self, record: Callable[..., Any]) -> None:
        self._record = record

    def record(self, value: float, labels: dict[str, str]) -> None:
        """Add or set the value."""
        self._record(value, labels)

    def flush(self) -> None:
        """Nothing: Ray has it already."""


class CountedHistogram:
    """A histogram as three gauges: its buckets, their sum and their number."""

    def __init__(self, metric: Metric) -> None:
        self._counts = HistogramCounts(metric.bounds)
        self._bucket = metrics.Gauge(f"{metric.name}_bucket", metric.description, (*metric.labels, "le"))
        self._sum = metrics.Gauge(f"{metric.name}_sum", metric.description, metric.labels)
        self._count = metrics.Gauge(f"{metric.name}_count", metric.description, metric.labels)

    def record(self, value: float, labels: dict[str, str]) -> None:
        """Count the value."""
        self._counts.observe(value, labels)

    def flush(self) -> None:
        """Hand the counts over, also those that have not changed: Ray forgets a gauge that nobody sets."""
        for labels, end, count in self._counts.buckets():
            self._bucket.set(count, {**labels, "le": end})
        for labels, total, count in self._counts.totals():
            self._sum.set(total, labels)
            self._count.set(count, labels)


def ray_instrument(metric: Metric) -> Instrument:
    """Ray's instrument for a metric; on a replica, where Serve's labels are known."""
    if metric.kind == "counter":
        return RayInstrument(metrics.Counter(metric.name, metric.description, metric.labels).inc)
    if metric.kind == "gauge":
        return RayInstrument(metrics.Gauge(metric.name, metric.description, metric.labels).set)
    if metric.kind == "histogram":
        return CountedHistogram(metric)
    assert_never(metric.kind)
