from __future__ import annotations

import dataclasses

import pytest

from serve_app.metrics import (
    METRICS,
    NONE,
    OTHER,
    PREFIX,
    Metric,
    MetricsObserver,
    ModelInfo,
    card_names,
    codec_family,
    refusal_names,
)
from serve_app.serve import FLAGS
from split_inference import errors
from tests.serve_app.facts import batch, refused, request

CARD = {"split_points": [{"name": "middle", "codecs": ["u4+lz4", "jpeg75", "jpeg90"]}, {"name": "late", "codecs": []}]}


class Kept:
    """All values by metric, as (value, labels)."""

    def __init__(self):
        self.values = {}
        self.flush = lambda: None

    def make(self, metric):
        values = self.values.setdefault(metric.name.removeprefix(PREFIX), [])

        class Instrument:
            def record(self, value, labels):
                assert set(labels) == set(metric.labels), metric.name
                assert all(isinstance(each, str) and each for each in labels.values())
                assert metric.kind != "counter" or value > 0
                values.append((value, labels))

            def flush(self):
                pass

        return Instrument()

    def __getitem__(self, name):
        self.flush()
        return self.values[name]


@pytest.fixture
def kept():
    return Kept()


@pytest.fixture
def observer(kept):
    split_points, codecs = card_names(CARD)
    made = MetricsObserver(
        kept.make,
        split_points=split_points,
        codecs=codecs,
        info=ModelInfo(model="tiny", digest="ab" * 32, version="0.1.0"),
        pending=lambda: 7,
        config_pending=lambda: True,
    )
    kept.flush = made.flush
    return made


def test_names_are_unique_and_every_metric_can_be_seen(kept, observer):
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    observer.batch_done(batch())
    observer.request_done(request())
    observer.request_done(refused())
    observer.sample()
    assert all(values for values in kept.values.values())


def test_a_batch(kept, observer):
    observer.batch_done(batch())
    middle = {"split_point": "middle"}
    assert kept["queue_delay_seconds"] == [(0.002, middle), (0.001, middle)]
    assert kept["decode_seconds"] == [(0.0005, middle)]
    assert kept["tail_seconds"] == [(0.004, middle)]
    assert kept["batch_samples"] == [(3, middle)]
    assert kept["padding_samples_total"] == [(1, middle)]


def test_a_full_batch_has_no_padding(kept, observer):
    observer.batch_done(batch(samples=4))
    assert kept["padding_samples_total"] == []


def test_an_answered_request(kept, observer):
    observer.request_done(request())
    assert kept["requests_total"] == [(1, {"protocol": "http", "status": "200", "split_point": "middle"})]
    assert kept["received_bytes_total"] == [(1000, {"codec": "u4+lz4"})]
    assert kept["request_bytes"] == [(1000, {"split_point": "middle"})]
    assert kept["body_seconds"] == [(0.003, {"protocol": "http"})]
    assert kept["request_seconds"] == [(0.010, {"protocol": "http", "split_point": "middle"})]
    assert kept["rejects_total"] == []


def test_a_refusal_counts_by_reason_and_not_as_a_latency(kept, observer):
    observer.request_done(refused("OverloadedError", status=503, protocol="grpc"))
    assert kept["requests_total"] == [(1, {"protocol": "grpc", "status": "503", "split_point": NONE})]
    assert kept["rejects_total"] == [(1, {"reason": "OverloadedError"})]
    assert kept["request_seconds"] == kept["received_bytes_total"] == kept["body_seconds"] == []


def test_nobody_outside_can_make_a_series(kept, observer):
    for index in range(50):
        name = f"made-up-{index}"
        observer.request_done(refused(name, status=400, split_point=name, codec=name, bytes_in=1))
        observer.batch_done(batch(split_point=name))
    assert {labels["reason"] for _, labels in kept["rejects_total"]} == {OTHER}
    assert {labels["codec"] for _, labels in kept["received_bytes_total"]} == {OTHER}
    assert {labels["split_point"] for _, labels in kept["requests_total"]} == {OTHER}
    assert {labels["split_point"] for _, labels in kept["tail_seconds"]} == {OTHER}


def test_every_quality_of_jpeg_is_one_codec(kept, observer):
    observer.request_done(request(codec="jpeg75"))
    observer.request_done(request(codec="jpeg90"))
    observer.request_done(request(codec=None, split_point="input"))
    assert [labels["codec"] for _, labels in kept["received_bytes_total"]] == ["jpeg", NONE]
    assert kept["request_bytes"][-1] == (1000, {"split_point": "input"})
    assert codec_family("u4c+zstd") == "u4c+zstd"


def test_gauges_are_set_when_sampled(kept, observer):
    assert kept["pending_requests"] == []
    observer.sample()
    assert kept["pending_requests"] == [(7, {})]
    assert kept["user_config_pending"] == [(1, {})]
    assert kept["model_info"] == [(1, {"model": "tiny", "digest": "abababababab", "version": "0.1.0"})]


def test_without_a_model_there_is_nothing_to_sample(kept):
    MetricsObserver(kept.make).sample()
    assert not any(kept.values.values())


def test_every_refusal_of_the_error_tree_is_a_reason():
    tree = {
        name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.WireError)
    }
    assert tree <= refusal_names()


def test_latencies_have_the_buckets_of_serves_own():
    bounds_s = next(metric.bounds for metric in METRICS if metric.name.endswith("request_seconds"))
    serves_ms = [float(bound) for bound in FLAGS["RAY_SERVE_REQUEST_LATENCY_BUCKETS_MS"].split(",")]
    assert [1000 * bound for bound in bounds_s[: len(serves_ms)]] == pytest.approx(serves_ms)


GOOD = Metric(
    name="split_inference_x_seconds",
    kind="histogram",
    unit="seconds",
    description="X.",
    labels=("a",),
    bounds=(1.0, 2.0),
    bounds_reason="because",
)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": "x_seconds"}, "a name is"),
        ({"name": "split_inference_X_seconds"}, "a name is"),
        ({"name": "split_inference_x_seconds_total"}, "counters"),
        ({"kind": "counter"}, "counters"),
        ({"unit": "bytes"}, "ends in its unit"),
        ({"labels": ("deployment",)}, "label deployment is taken"),
        ({"bounds_reason": ""}, "reason"),
        ({"kind": "gauge"}, "reason"),
        ({"bounds": (2.0, 1.0)}, "ascend"),
        ({"bounds": (0.0, 1.0)}, "positive"),
    ],
)
def test_a_definition_of_no_use_is_refused(changed, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(GOOD, **changed)
