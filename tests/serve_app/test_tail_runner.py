"""TailRunner with a tiny torch model, and with the real split of one.

Shape legend: N samples, K classes.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from serve_app.batching import CostModel
from serve_app.settings import Limits
from serve_app.tail_runner import TailRunner
from split_inference.codec_profile import CodecProfile
from split_inference.errors import (
    FeatureMismatchError,
    MalformedFrameError,
    ModelLoadError,
    TooLargeError,
    UnknownCodecError,
    UnknownSplitPointError,
    UnsupportedMediaError,
)
from split_inference.feature_codec import EncodedTensor
from split_inference.model_card import ModelCard
from split_inference.model_split import FeatureSpec, SplitPoint
from split_inference.preprocessing import ImagePreprocessing
from split_inference.wire import decode_frame
from tests.serve_app.helpers import DIGEST, LABELS, frame_of, png

CARD = ModelCard(
    name="tiny",
    uri="factory:tests:tiny",
    digest=DIGEST,
    labels=LABELS,
    preprocessing=ImagePreprocessing(height=4, width=4),
)


def point(name, *shapes, aliases=()):
    features = tuple(FeatureSpec(shape=shape, dtype="float32", channel_axis=1) for shape in shapes)
    return SplitPoint(
        name=name, aliases=aliases, features=features, head_macs=5, tail_macs=7, head_parameters=1, total_parameters=2
    )


class TinyModel:
    """Three split points; every tail is linear with fixed weights."""

    digest = DIGEST
    input = FeatureSpec(shape=(3, 4, 4), dtype="float32", channel_axis=1)
    split_points = (point("input", (3, 4, 4)), point("middle", (2, 2, 2), aliases=("relu",)), point("output", (3,)))

    def __init__(self):
        self.tails_made = []

    def split_point(self, name):
        for each in self.split_points:
            if name == each.name or name in each.aliases:
                return each
        raise UnknownSplitPointError(f"no split point {name!r}; the nearest are middle")

    def tail(self, at):
        self.tails_made.append(at)
        if at == "output":
            return torch.nn.Identity()
        elements = self.split_point(at).elements
        linear = torch.nn.Linear(elements, 3)
        with torch.no_grad():
            linear.weight.copy_(torch.linspace(-1, 1, 3 * elements).reshape(3, elements))
            linear.bias.zero_()
        return torch.nn.Sequential(torch.nn.Flatten(), linear).eval()


def runner_of(model=None, **options):
    return TailRunner(model or TinyModel(), name="tiny", card=options.pop("card", CARD), **options)


def features_of(samples, seed=0):
    return np.random.default_rng(seed).normal(size=(samples, 2, 2, 2)).astype(np.float32)


def run(features, runner=None, **options):
    return (runner or runner_of()).answer(decode_frame(frame_of(features, **options)))


@pytest.mark.parametrize("codec", ["float32", "float16", "u4", "u8c+zstd"])
def test_a_batch_gives_the_same_answers_as_one_at_a_time_in_order(codec):
    runner, features = runner_of(), features_of(7)
    together = run(features, runner, codec=codec)
    alone = [run(features[n : n + 1], runner, codec=codec)[0] for n in range(7)]
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
    assert together.shape == (7, 3)


def test_a_float32_frame_gives_exactly_what_the_tail_gives():
    model, features = TinyModel(), features_of(3)
    with torch.inference_mode():
        expected = model.tail("middle")(torch.from_numpy(features)).numpy()
    np.testing.assert_array_equal(run(features), expected)


def test_a_tail_is_cut_once_and_an_alias_shares_it():
    model = TinyModel()
    runner = runner_of(model)
    for name in ("middle", "relu", "middle"):
        run(features_of(1), runner, split_point=name)
    assert model.tails_made.count("middle") == 1


def test_at_the_output_the_logits_come_back():
    logits = np.array([[1, 2, 3]], np.float32)
    np.testing.assert_array_equal(run(logits, split_point="output"), logits)


def test_an_answer_stays_what_it_is_when_its_batchs_buffers_are_used_again():
    runner = runner_of()
    first, second = (np.array([[1, 2, 3 + at]], np.float32) for at in range(2))
    frames = [decode_frame(frame_of(each, split_point="output", codec="float32")) for each in (first, second)]
    answer = runner.answer(frames[0])
    runner.answer(frames[1])
    np.testing.assert_array_equal(answer, first)


def test_an_image_runs_through_the_whole_model():
    runner = runner_of()
    inputs = runner.preprocess(png(9, 7))
    assert inputs.shape == (1, 3, 4, 4)
    assert runner.answer(inputs).shape == (1, 3)


@pytest.mark.parametrize(
    ("features", "split_point"),
    [
        (np.zeros((1, 2, 2, 3), np.float32), "middle"),
        (np.zeros((1, 8), np.float32), "middle"),
        (np.zeros((1, 2, 2, 2, 1), np.float32), "middle"),
        (np.zeros((1, 2, 2, 2), np.float32), "output"),
    ],
)
def test_a_wrong_shape_is_refused_before_anything_is_decoded(features, split_point):
    frame = decode_frame(frame_of(features, split_point=split_point))
    with pytest.raises(FeatureMismatchError, match="takes"):
        runner_of().check(frame)


def test_more_tensors_than_the_split_point_has_are_refused():
    frame = decode_frame(frame_of(features_of(1)))
    with pytest.raises(FeatureMismatchError, match="takes 1 tensors, the frame has 2"):
        runner_of().check(replaced(frame, tensors=frame.tensors * 2))


def test_a_wrong_frame_fails_alone():
    runner = runner_of()
    with pytest.raises(FeatureMismatchError):
        run(np.zeros((1, 8), np.float32), runner)
    assert run(features_of(1), runner).shape == (1, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused(value):
    features = features_of(2)
    features[1, 0, 0, 0] = value
    tensor = EncodedTensor(
        shape=features.shape,
        dtype="float32",
        quantizer_id=0,
        bits=32,
        compressor_id=0,
        channel_axis=0,
        ranges=np.empty((0, 2), np.float32),
        payload=features.tobytes(),
    )
    frame = decode_frame(frame_of(features_of(2)))
    with pytest.raises(FeatureMismatchError):
        runner_of().answer(replaced(frame, tensors=(tensor,)))


def test_finite_features_that_overflow_the_model_are_refused():
    with pytest.raises(FeatureMismatchError, match="answer"):
        run(np.full((1, 2, 2, 2), 3e38, np.float32))


def test_a_codec_of_the_future_is_unknown():
    frame = decode_frame(frame_of(features_of(1)))
    tensor = replaced(frame.tensors[0], quantizer_id=200)
    with pytest.raises(UnknownCodecError):
        runner_of().answer(replaced(frame, tensors=(tensor,)))


def test_a_payload_that_does_not_unpack_is_malformed():
    frame = decode_frame(frame_of(features_of(1)))
    tensor = replaced(frame.tensors[0], payload=b"\0" * 5)
    with pytest.raises(MalformedFrameError):
        runner_of().answer(replaced(frame, tensors=(tensor,)))


def test_samples_and_bytes_beyond_the_limits_are_refused():
    frame = decode_frame(frame_of(np.zeros((40, 2, 2, 2), np.float32)))
    with pytest.raises(TooLargeError, match="40 samples"):
        runner_of(limits=Limits(max_samples=39)).check(frame)
    with pytest.raises(TooLargeError, match="1280 bytes"):
        runner_of(limits=Limits(max_raw_bytes=1279)).check(frame)


def test_only_the_listed_split_points_are_served():
    runner = runner_of(split_points=("relu",))
    assert [each["name"] for each in runner.card["split_points"]] == ["middle"]
    run(features_of(1), runner)
    with pytest.raises(UnknownSplitPointError, match="not served here; served: middle"):
        run(np.zeros((1, 3), np.float32), runner, split_point="output")
    with pytest.raises(UnknownSplitPointError):
        runner.check_input("image/png")


def test_a_listed_split_point_that_the_model_lacks_is_refused_at_the_start():
    with pytest.raises(UnknownSplitPointError):
        runner_of(split_points=("nowhere",))


def test_a_model_that_is_no_classifier_is_refused_at_the_start():
    class Images(TinyModel):
        def tail(self, at):
            return torch.nn.Identity()

    with pytest.raises(ModelLoadError, match="a classifier gives"):
        runner_of(Images()).warm(max_samples=4, cost=CostModel())


def test_kinds_of_input_that_the_model_does_not_take_are_refused():
    with pytest.raises(UnsupportedMediaError, match="takes image inputs, not audio/wav"):
        runner_of().check_input("audio/wav")
    without = runner_of(card=CARD.model_copy(update={"preprocessing": None}))
    with pytest.raises(UnsupportedMediaError, match="takes frames only"):
        without.check_input("image/png")


def test_the_card_says_what_a_client_has_to_know():
    card = runner_of(limits=Limits(max_samples=9)).card
    assert (card["name"], card["digest"], card["labels"], card["wire_versions"]) == ("tiny", DIGEST, list(LABELS), [1])
    assert card["limits"]["max_samples"] == 9
    middle = card["split_points"][1]
    assert middle["features"] == [{"shape": [2, 2, 2], "dtype": "float32", "channel_axis": 1}]
    assert (middle["name"], middle["aliases"], middle["head_macs"], middle["tail_macs"]) == ("middle", ["relu"], 5, 7)
    assert {"float32+none", "float16+lz4", "u2+lz4", "u4c+zstd", "jpeg50"} <= set(middle["codecs"])
    assert all(CodecProfile.parse(name).name == name for name in middle["codecs"])
    assert "untrained_notice" not in card


def test_random_weights_are_called_untrained_on_the_card():
    card = runner_of(card=CARD.model_copy(update={"trained": False})).card
    assert card["untrained_notice"].startswith("UNTRAINED")


def replaced(value, **changes):
    import dataclasses

    return dataclasses.replace(value, **changes)
