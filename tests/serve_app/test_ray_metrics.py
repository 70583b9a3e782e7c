"""Ray's instruments outside of a cluster: they can be made and take values; nobody collects them."""

from __future__ import annotations

from ray.serve import metrics

from serve_app.metrics import METRICS, MetricsObserver, ModelInfo
from serve_app.ray_metrics import ray_instrument
from tests.serve_app.facts import batch, refused, request


def test_every_metric_of_the_table_has_rays_instrument_and_ray_takes_its_values():
    info = ModelInfo(model="tiny", digest="ab" * 32, version="0.1.0")
    observer = MetricsObserver(ray_instrument, split_points=["middle"], info=info, pending=lambda: 1)
    for _ in range(3):
        observer.batch_done(batch())
        observer.request_done(request())
        observer.request_done(refused())
        observer.sample()


def recorded(monkeypatch):
    """Every instrument of Ray's that is made, and what it was given."""
    made, values = [], []
    for kind in ("Counter", "Gauge", "Histogram"):

        class Instrument:
            def __init__(self, name, description, labels=(), *, kind=kind):
                made.append((name, kind))
                self.name, self.labels = name, labels

            def set(self, value, tags):
                assert set(tags) == set(self.labels)
                values.append((self.name, tags.get("le"), value))

            inc = set

        monkeypatch.setattr(metrics, kind, Instrument)
    return made, values


def test_histograms_are_gauges_under_the_names_that_prometheus_gives_their_series(monkeypatch):
    made, _ = recorded(monkeypatch)
    for metric in METRICS:
        ray_instrument(metric)
    expected = []
    for metric in METRICS:
        if metric.kind == "histogram":
            expected += [(f"{metric.name}_{part}", "Gauge") for part in ("bucket", "sum", "count")]
        else:
            expected.append((metric.name, metric.kind.capitalize()))
    assert made == expected


def test_a_histogram_is_handed_over_when_it_is_flushed_and_costs_ray_nothing_before(monkeypatch):
    _, values = recorded(monkeypatch)
    [metric] = [each for each in METRICS if each.name == "split_inference_tail_seconds"]
    histogram = ray_instrument(metric)
    seconds = [0.0004, 0.001, 0.0011, 7.0]
    for value in seconds:
        histogram.record(value, {"split_point": "middle"})
    assert values == []
    histogram.flush()
    buckets = {end: count for name, end, count in values if name == f"{metric.name}_bucket"}
    # Not above its end: a value that is the end belongs to it.
    assert buckets == {
        **{str(bound): sum(value <= bound for value in seconds) for bound in metric.bounds},
        "+Inf": 4,
    }
    assert (f"{metric.name}_count", None, 4) in values
    assert [value for name, _, value in values if name == f"{metric.name}_sum"] == [sum(seconds)]
    # Again, though nothing was added: Ray forgets a gauge that nobody sets.
    values.clear()
    histogram.flush()
    assert len(values) == len(metric.bounds) + 3
