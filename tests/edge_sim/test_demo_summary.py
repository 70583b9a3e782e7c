"""From outcomes to numbers, by hand."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from edge_sim.demo_summary import (
    DEVICE_ONLY,
    MODES,
    SERVER_ONLY,
    SHARED,
    Outcome,
    changed_answers,
    figures_and_bounds,
    shared_jpeg_header_bytes,
    summarize,
)
from split_inference.figures import missed


def outcome(mode: str, image: str = "a", *, label: int | None = 1, predicted: int = 1, **facts) -> Outcome:
    facts = {"sent_bytes": 100, "received_bytes": 20, "total_s": 0.010, "stages_s": {"other": 0.010}, **facts}
    return Outcome(mode=mode, image=image, label=label, predicted=predicted, **facts)


def one_of_each(image: str, *, shared: int = 1, device: int = 1, server: int = 1) -> list[Outcome]:
    return [
        outcome(SERVER_ONLY, image, predicted=server, sent_bytes=900),
        outcome(SHARED, image, predicted=shared, sent_bytes=500),
        outcome(DEVICE_ONLY, image, predicted=device, sent_bytes=0),
    ]


def judge(outcomes: list[Outcome], *, leftover: int = 0, total_s: float = 20.0) -> list[str]:
    figures, bounds = figures_and_bounds(
        outcomes, jpeg_header_bytes=600, seconds={"total": total_s}, leftover_processes=leftover
    )
    return missed(figures, bounds)


def test_accuracy_counts_labelled_images_only():
    summary = summarize(
        [outcome(SHARED, predicted=1), outcome(SHARED, predicted=2), outcome(SHARED, label=None, predicted=5)]
    )
    assert (summary.requests, summary.labelled, summary.top1) == (3, 2, 0.5)


def test_percentiles_and_means_are_of_all_requests():
    summary = summarize([outcome(SHARED, total_s=n / 100, sent_bytes=n) for n in range(101)])
    assert (summary.p50_s, summary.p99_s, summary.sent_bytes) == pytest.approx((0.5, 0.99, 50.0))


def test_stages_of_device_http_and_server_sum_to_the_total():
    each = outcome(
        SHARED,
        total_s=0.010,
        stages_s={"head": 0.003, "round_trip": 0.006, "other": 0.001},
        server_stages_s={"queue": 0.0005, "tail": 0.002, "total": 0.004},
    )
    stages = summarize([each]).stages_s
    assert sum(stages.values()) == pytest.approx(0.010)
    assert stages["http"] == pytest.approx(0.002)
    assert stages["server tail"] == pytest.approx(0.002)


def test_changed_answers_are_counted_on_the_same_images():
    outcomes = [*one_of_each("a"), *one_of_each("b", shared=3), outcome(SHARED, "c", predicted=9)]
    assert changed_answers(outcomes, SHARED, DEVICE_ONLY) == 1


def test_a_good_demo_misses_nothing():
    outcomes = [each for n in range(100) for each in one_of_each(str(n))]
    assert judge(outcomes) == []


def test_two_lost_images_of_a_hundred_pass_and_three_do_not():
    def with_lost(count: int):
        return [each for n in range(100) for each in one_of_each(str(n), shared=2 if n < count else 1)]

    assert judge(with_lost(2)) == []
    assert judge(with_lost(3)) == ["shared_right_answers_lost"]


def test_what_a_demo_has_to_hold_is_bounded():
    outcomes = [each for n in range(10) for each in one_of_each(str(n))]
    assert judge(outcomes, leftover=1) == ["leftover_processes"]
    assert judge(outcomes, total_s=91) == ["total_s"]
    large = [outcome(mode, sent_bytes=900) for mode in MODES]
    assert judge(large) == ["shared_bytes_per_request"]
    strange = [each for n in range(100) for each in one_of_each(str(n), server=2 if n < 2 else 1)]
    assert judge(strange) == ["server_only_answers_changed"]


def jpeg(colour: tuple[int, int, int], size: int = 8, quality: int = 75) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def test_equally_made_jpegs_share_their_header():
    images = [jpeg((200, 0, 0)), jpeg((0, 90, 10))]
    header = shared_jpeg_header_bytes(images)
    assert 600 <= header < min(map(len, images))
    assert images[0][:header] == images[1][:header]
    assert images[0][header:] != images[1][header:]


@pytest.mark.parametrize(
    "other", [jpeg((1, 2, 3), size=16), jpeg((1, 2, 3), quality=30), b"", b"\xff\xd8\xff\xda\x00", b"\x89PNG\r\n"]
)
def test_differently_made_images_share_none(other):
    assert shared_jpeg_header_bytes([jpeg((200, 0, 0)), other]) == 0
