"""Shape legend: C channels, H height, W width, T tokens, D their features."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
from importlib import resources

import numpy as np
import pytest
from PIL import Image

from serve_app.monitor import (
    HISTORY_S,
    MAX_KEPT,
    MAX_PREDICTIONS,
    MAX_REASONS,
    MAX_TEXT,
    Monitor,
    is_page,
    monitor_response,
    tiles,
)
from split_inference.wire import Prediction
from tests.serve_app.facts import Clock, batch, refused, request

BEST = (Prediction(index=1, label="dog", score=0.75), Prediction(index=0, label="cat", score=0.25))


@pytest.fixture
def clock():
    return Clock(1000.0)


@pytest.fixture
def monitor(clock):
    return Monitor(model="tiny", digest="ab" * 32, versions={"torch": "2"}, replica="r1", now_s=clock)


def picture_of(png):
    return Image.open(io.BytesIO(png))


def test_before_anything_happened(monitor):
    shown = monitor.snapshot()
    assert shown["rates_per_s"] == {"answered": 0, "refused": 0, "samples": 0, "bytes_in": 0}
    assert shown["latency_s"] == {"p50": None, "p95": None, "p99": None}
    assert shown["batch_sizes"] == shown["rejects"] == shown["predictions"] == []
    assert shown["features"] is None
    assert monitor.feature_tiles() is None
    assert (shown["model"], shown["replica"], shown["versions"]) == ("tiny", "r1", {"torch": "2"})


def test_rates_are_of_the_seconds_that_are_over(monitor, clock):
    for _ in range(20):
        for _ in range(30):
            monitor.request_done(request(samples=2, bytes_in=1000))
        monitor.request_done(refused())
        clock.now_s += 1
    monitor.request_done(request())
    assert monitor.snapshot()["rates_per_s"] == {"answered": 30, "refused": 1, "samples": 60, "bytes_in": 30_000}
    history = monitor.snapshot()["history"]
    assert len(history["answered"]) == HISTORY_S
    assert history["answered"][-20:] == [30] * 20
    assert history["refused"][-21:] == [0] + [1] * 20


def test_rates_of_a_young_replica_are_not_diluted(monitor, clock):
    for _ in range(2):
        for _ in range(30):
            monitor.request_done(request())
        clock.now_s += 1
    assert monitor.snapshot()["rates_per_s"]["answered"] == 30


def test_what_is_old_is_forgotten(monitor, clock):
    monitor.request_done(request(total_s=5.0))
    monitor.batch_done(batch())
    clock.now_s += 11
    monitor.request_done(request(total_s=0.5))
    shown = monitor.snapshot()
    assert shown["latency_s"]["p99"] == 0.5
    assert shown["batch_sizes"] == []
    assert sum(shown["history"]["answered"]) == 1
    clock.now_s += HISTORY_S + 1
    assert sum(monitor.snapshot()["history"]["answered"]) == 0


def test_percentiles_are_of_answered_requests(monitor):
    for latency_ms in range(101):
        monitor.request_done(request(total_s=latency_ms / 1000))
    monitor.request_done(refused(total_s=100.0))
    assert monitor.snapshot()["latency_s"] == pytest.approx({"p50": 0.050, "p95": 0.095, "p99": 0.099})


def test_batches(monitor):
    for samples, split_point in ((1, "middle"), (16, "middle"), (16, "late")):
        monitor.batch_done(batch(samples=samples, split_point=split_point))
    shown = monitor.snapshot()
    assert shown["batch_sizes"] == [(1, 1), (16, 2)]
    assert shown["split_points"] == [("middle", 2), ("late", 1)]
    assert shown["stages_s"] == pytest.approx({"queue": 0.0015, "decode": 0.0005, "tail": 0.004})


def test_memory_is_bounded_whatever_is_sent(monitor, clock):
    for index in range(2 * MAX_KEPT):
        clock.now_s += 0.5
        name = f"{index}" * 100
        monitor.request_done(refused(name) if index % 2 else request())
        monitor.batch_done(batch(split_point=name))
        monitor.saw_predictions(name, BEST * 50, client=name)
    shown = monitor.snapshot()
    assert len(shown["rejects"]) == MAX_REASONS + 1
    assert len(shown["predictions"]) == MAX_PREDICTIONS
    assert len(monitor._seconds) <= HISTORY_S + 2
    assert max(len(each["split_point"]) for each in shown["predictions"]) == MAX_TEXT
    assert len(json.dumps(shown)) < 20_000


def test_refusals_count_by_reason(monitor):
    for facts in (refused(), refused(), refused("TooLargeError", status=413), refused(None, status=500)):
        monitor.request_done(facts)
    assert monitor.snapshot()["rejects"] == [("OverloadedError", 2), ("TooLargeError", 1), ("500", 1)]


def test_predictions_are_a_sample_of_what_was_answered(monitor, clock):
    for _ in range(10):
        monitor.saw_predictions("middle", BEST, client="phone")
    clock.now_s += 1
    monitor.saw_predictions("late", [Prediction(index=0, label="cat", score=0.5)])
    late, middle = monitor.snapshot()["predictions"]
    assert middle == {
        "age_s": 1,
        "split_point": "middle",
        "client": "phone",
        "best": [{"label": "dog", "score": 0.75}, {"label": "cat", "score": 0.25}],
    }
    assert late["best"] == [{"label": "cat", "score": 0.5}]


def test_features_are_copied_and_only_twice_a_second(monitor, clock):
    codes_CHW = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    assert monitor.wants_features
    monitor.saw_features("middle", codes_CHW)
    assert not monitor.wants_features
    before = monitor.feature_tiles()
    codes_CHW[:] = 7
    monitor.saw_features("late", codes_CHW)
    assert monitor.feature_tiles() is before
    assert monitor.snapshot()["features"] == {"split_point": "middle", "shape": [2, 4, 4], "age_s": 0}
    clock.now_s += 0.5
    monitor.saw_features("late", codes_CHW)
    assert monitor.snapshot()["features"]["split_point"] == "late"
    assert monitor.feature_tiles() != before


def test_a_large_tensor_is_thinned_before_it_is_copied(monitor):
    monitor.saw_features("early", np.zeros((512, 112, 112), np.uint8))
    assert monitor._features is not None
    assert monitor._features.values.shape == (64, 56, 56)
    assert monitor.snapshot()["features"]["shape"] == [512, 112, 112]


def test_the_picture_is_an_indexed_png_with_see_through_gaps(monitor):
    monitor.saw_features("middle", np.arange(64, dtype=np.uint8).reshape(4, 4, 4))
    image = picture_of(monitor.feature_tiles())
    assert (image.format, image.mode, image.size) == ("PNG", "P", (9, 9))
    colours = np.asarray(image.convert("RGBA"))
    assert (colours[4, :, 3] == 0).all()
    assert (colours[:, 4, 3] == 0).all()
    assert colours[0, 0].tolist() == [68, 1, 84, 255]
    assert colours[8, 8].tolist() == [253, 231, 37, 255]


def test_each_channel_is_a_tile_stretched_over_its_own_range():
    small_HW = np.array([[0.0, 1.0], [0.5, 0.25]])
    picture = tiles(np.stack([small_HW, 1000 * small_HW - 5, np.zeros((2, 2))]))
    assert picture.shape == (5, 5)
    expected = [[1, 255], [128, 65]]
    assert np.abs(picture[:2, :2].astype(int) - expected).max() <= 1
    assert (picture[:2, 3:] == picture[:2, :2]).all()
    assert (picture[3:, :2] == 1).all()
    assert (picture[2] == 0).all()
    assert (picture[:, 2] == 0).all()
    assert (picture[3:, 3:] == 0).all()


def test_tokens_are_rows_of_one_picture():
    assert tiles(np.arange(12.0).reshape(3, 4)).tolist()[0][0] == 1
    assert tiles(np.arange(12.0).reshape(3, 4)).shape == (3, 4)
    assert tiles(np.zeros((197, 768))).shape == (197, 384)


@pytest.mark.parametrize(
    "shape", [(), (5,), (1, 1), (1, 1, 1), (65, 7, 7), (3, 224, 224), (2, 3, 4, 5), (1, 500, 3), (2048, 1, 1)]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.bool_])
def test_any_shape_and_type_makes_a_picture_of_bounded_size(shape, dtype, monitor):
    monitor.saw_features("x", np.ones(shape, dtype))
    image = picture_of(monitor.feature_tiles())
    assert max(image.size) <= 64 * 65
    assert image.size[0] * image.size[1] <= 600_000


def test_values_that_are_no_numbers_do_not_spoil_the_picture():
    picture = tiles(np.array([[[math.nan, math.inf], [-math.inf, 2.0]]]))
    assert picture.tolist() == [[1, 1], [1, 255]]


def test_no_values_are_no_picture(monitor):
    monitor.saw_features("x", np.zeros((0, 3, 3)))
    assert monitor.feature_tiles() is None


def test_the_answers_by_path(monitor):
    status, content_type, headers, body = monitor_response("monitor/data", monitor)
    assert (status, content_type, headers["cache-control"]) == (200, "application/json", "no-store")
    assert json.loads(body)["model"] == "tiny"
    assert monitor_response("/monitor/features.png", monitor).status == 204
    monitor.saw_features("middle", np.zeros((1, 2, 2)))
    assert monitor_response("monitor/features.png", monitor).body.startswith(b"\x89PNG")
    assert monitor_response("monitor/../secret", monitor).status == 404
    page = monitor_response("monitor", monitor)
    assert page.content_type.startswith("text/html")
    assert is_page("/monitor/")
    assert not is_page("monitor/data")


def test_the_page_may_run_its_own_script_and_nothing_else(monitor):
    page = monitor_response("monitor", monitor)
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    for tag in ("script", "style"):
        inner = re.search(rf"<{tag}>(.*)</{tag}>".encode(), page.body, re.DOTALL)
        assert inner is not None
        digest = base64.b64encode(hashlib.sha256(inner[1]).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"


def test_the_page_is_self_contained_and_puts_text_in_as_text(monitor):
    text = resources.files("serve_app").joinpath("monitor_page.html").read_text()
    addresses = set(re.findall(r"https?://[^\s\"']+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}
    for unsafe in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "style=", "onclick"):
        assert unsafe not in text
    assert "tiny" not in text
