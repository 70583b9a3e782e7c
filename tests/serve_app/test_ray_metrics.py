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


def test_each_kind_is_rays_own(monkeypatch):
    made = []
    for kind in ("Counter", "Gauge", "Histogram"):
        real = getattr(metrics, kind)

        def recorded(name, *options, real=real, kind=kind):
            made.append((name, kind.lower()))
            return real(name, *options)

        monkeypatch.setattr(metrics, kind, recorded)
    for metric in METRICS:
        ray_instrument(metric)
    assert made == [(metric.name, metric.kind) for metric in METRICS]
