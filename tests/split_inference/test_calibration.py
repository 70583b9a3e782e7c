"""Calibration: the search holds its floors, prefers fewer bytes, and its file is read back as it was."""

import json

import numpy as np
import pytest
import soundfile
import torch

from split_inference import cli
from split_inference.calibration import (
    EMBEDDED_CALIBRATION,
    Calibration,
    load_calibration,
    refuse_unwritable,
    save_calibration,
)
from split_inference.calibration_search import CalibrationSearch, SearchSettings, clip_range
from split_inference.errors import ConfigError, DataError, UnknownSplitPointError, UsageError
from split_inference.model_catalog import load_model
from split_inference.model_split import export_model
from tests.split_inference.models import Branches, seeded


@pytest.fixture(scope="module")
def model():
    return export_model(seeded(Branches()), torch.zeros(1, 3, 8, 8))


def search(model, rng, **settings):
    inputs = rng.standard_normal((40, 3, 8, 8)).astype(np.float32)
    with torch.inference_mode():
        labels = model.whole(torch.from_numpy(inputs)).argmax(1).numpy()
    made = CalibrationSearch(model, inputs, labels, SearchSettings(**settings), lambda text, done, total: None)
    return made.run(model_uri="test", made_by="test")


def test_the_floors_hold_on_the_inputs_that_were_searched(model, rng):
    result = search(model, rng, min_agreement=0.9, max_loss_points=10)
    assert result.seen.agreement >= 0.9 - (0.9 * 0.1 / 40) ** 0.5  # one standard error over 40 inputs
    assert result.seen.loss_points <= 10 + 100 * ((1 - result.seen.agreement) / 40) ** 0.5
    assert result.unseen.inputs == 3 * result.seen.inputs == 120
    assert [score.inputs for score in result.unseen_by_repeat] == [40, 40, 40]


def test_a_lower_floor_never_sends_more_bytes(model, rng):
    sizes = []
    for floor in (0.5, 0.8, 0.95):
        result = search(model, np.random.default_rng(1), min_agreement=floor, max_loss_points=100)
        sizes.append(result.seen.bytes_per_input)
    assert sizes == sorted(sizes)


def test_the_device_does_no_more_than_it_may(model, rng):
    result = search(model, rng, max_head_share=0.5, min_agreement=0.8, max_loss_points=100)
    assert model.split_point(result.calibration.split_point).head_macs_share <= 0.5


def test_a_split_point_can_be_given_and_must_exist(model, rng):
    assert search(model, rng, at="stem", min_agreement=0.5, max_loss_points=100).calibration.split_point == "stem"
    with pytest.raises(UnknownSplitPointError, match="nearest"):
        search(model, rng, at="stam")


def test_floors_that_nothing_holds_say_what_came_closest(model, rng):
    with pytest.raises(UsageError, match=r"the closest, \S+ u1\+lz4, agrees on"):
        search(model, rng, bits=(1,), clip_factors=(0.01,), min_agreement=1.0)


def test_too_few_inputs_are_refused(model):
    with pytest.raises(DataError, match="3 inputs are too few"):
        CalibrationSearch(model, np.zeros((3, 3, 8, 8), np.float32), None, SearchSettings(), lambda *_: None)


def test_a_label_beyond_the_models_outputs_is_refused(model):
    inputs, labels = np.zeros((4, 3, 8, 8), np.float32), np.array([0, 1, 2, 5])
    with pytest.raises(DataError, match="a label says 5, but the model has 5 outputs"):
        CalibrationSearch(model, inputs, labels, SearchSettings(), lambda *_: None)


def test_constant_inputs_and_missing_labels_can_be_calibrated_on(model):
    inputs = np.zeros((8, 3, 8, 8), np.float32)
    made = CalibrationSearch(model, inputs, None, SearchSettings(), lambda *_: None).run(model_uri="m", made_by="t")
    assert made.unseen.loss_points is None
    assert made.unseen.agreement == 1


def test_a_place_that_cannot_be_written_is_refused_before_the_search(model, rng, tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file" / "c.json"):
        with pytest.raises(UsageError, match="cannot write"):
            refuse_unwritable(path)
        with pytest.raises(UsageError, match="cannot write"):
            save_calibration(search(model, rng, min_agreement=0.5, repeats=1).calibration, path)
    refuse_unwritable(tmp_path / "new" / "deep" / "c.json")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_search_is_deterministic(model):
    one, two = (search(model, np.random.default_rng(4), min_agreement=0.8).calibration for _ in range(2))
    assert one == two


def test_a_clip_range_is_a_part_of_the_quantile_range():
    values = np.linspace(-1, 3, 100_001, dtype=np.float32).reshape(1, 1, -1, 1)
    full = clip_range(values, factor=1.0, channel_axis=None)
    half = clip_range(values, factor=0.5, channel_axis=None)
    assert (full.low[0], full.high[0]) == pytest.approx((-0.998, 2.998), abs=1e-3)
    assert (half.low[0], half.high[0]) == pytest.approx((-0.499, 1.499), abs=1e-3)


def test_a_clip_range_per_channel_and_of_a_constant():
    values = np.zeros((2, 3, 4, 4), np.float32)
    values[:, 1] = 5
    ranges = clip_range(values, factor=0.5, channel_axis=1)
    assert len(ranges.low) == len(ranges.high) == 3
    assert all(low < high for low, high in zip(ranges.low, ranges.high, strict=True))


def test_the_file_is_read_back_as_it_was(model, rng, tmp_path):
    made = search(model, rng, min_agreement=0.8).calibration
    save_calibration(made, tmp_path / "deep" / "c.json")
    assert load_calibration(tmp_path / "deep" / "c.json") == made
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["c.json"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"codec": "u9"}, "u9"), ({"model_digest": "12"}, "model_digest"), ({"splitpoint": 1}, "splitpoint"),
     ({"channel_axes": [1, 1]}, "clip ranges")],
)  # fmt: skip
def test_a_wrong_file_names_its_field(tmp_path, change, reason):
    content = {"model": "m", "model_digest": "0" * 64, "split_point": "x", "codec": "u2+lz4",
               "clip": [{"low": [0], "high": [1]}], "channel_axes": [1]}  # fmt: skip
    path = tmp_path / "c.json"
    path.write_text(json.dumps(content))
    assert isinstance(load_calibration(path), Calibration)
    path.write_text(json.dumps(content | change))
    with pytest.raises(ConfigError, match=reason):
        load_calibration(path)


def test_the_embedded_calibration_fits_the_embedded_model():
    made = load_calibration(EMBEDDED_CALIBRATION)
    loaded = load_model(made.model)
    assert made.model_digest == loaded.model.digest
    point = loaded.model.split_point(made.split_point)
    assert len(made.codecs()) == len(point.features)


@pytest.mark.parametrize(("lengths", "said"), [((1600, 800), "2.wav becomes 800"), ((800, 800), "1.wav becomes 800")])
def test_sounds_that_the_model_does_not_take_are_refused_in_one_line(lengths, said, tmp_path, monkeypatch, capsys):
    extractor = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1, "do_normalize": True}
    steps = {"kind": "audio", "sampling_rate": 16000, "extractor": extractor}
    program = torch.export.export(
        torch.nn.Linear(1600, 4), (torch.zeros(2, 1600),), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=16)},)
    )
    torch.export.save(program, tmp_path / "ear.pt2")
    (tmp_path / "ear.card.json").write_text(json.dumps({"task": "audio-classification", "preprocessing": steps}))
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    for name, length in enumerate(lengths, start=1):
        soundfile.write(sounds / f"{name}.wav", np.linspace(-0.5, 0.5, length), 16000)
    words = ["calibrate", f"pt2:{tmp_path / 'ear.pt2'}", "--data", str(sounds), "-o", str(tmp_path / "out.json")]
    monkeypatch.setattr("sys.argv", ["split-inference", *words])
    with pytest.raises(SystemExit) as ended:
        cli.run(cli.app, "split-inference")
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"split-inference: {said}, and the model takes 1600: cut it to that, or pad it"
