"""Model profiles: made from payload files, kept as JSON, and the ones that ship are what a fresh run gives."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from edge_sim.model_profile import PROFILES_FOLDER, ModelProfile
from scripts.make_model_profiles import recipes
from split_inference.errors import ConfigError, DataError, UsageError
from split_inference.payload_file import PayloadWriter
from tests.patience import PATIENCE_S
from tests.split_inference.test_payload_file import MODEL, header, option, server_only, write

LABELLED = header(
    option((3, 4, 5), expected=(0, 1, 0), answer=(0, 2, 2)),
    server_only((7, 7, 7), expected=(0, 1, 0), answer=(0, 1, 0)),
)
BODIES = [[bytes(3), bytes(4), bytes(5)], [bytes(7)] * 3]


def without_a_label(content):
    first, *others = content.inputs
    return content.model_copy(update={"inputs": (first.model_copy(update={"label": None}), *others)})


def test_right_is_what_the_labels_say(tmp_path):
    write(tmp_path / "x", LABELLED, BODIES)
    profile = ModelProfile.from_payloads(tmp_path / "x", note="three")
    assert (profile.correct_means, profile.whole_correct) == ("label", (True, True, False))
    assert [each.correct for each in profile.options] == [(True, False, True), (True, True, False)]
    assert [each.sizes for each in profile.options] == [(3, 4, 5), (7, 7, 7)]
    assert (profile.inputs, profile.note, profile.macs, profile.digest) == (3, "three", MODEL.macs, MODEL.digest)


def test_without_all_labels_right_is_what_the_unsplit_model_answers():
    profile = ModelProfile.from_header(without_a_label(LABELLED))
    assert (profile.correct_means, profile.whole_correct) == ("unsplit answer", (True, True, True))
    assert profile.options[0].correct == (True, False, False)


def test_a_perfect_model_is_still_judged_by_labels():
    content = header(option((3, 4), expected=(0, 1)))
    assert ModelProfile.from_header(content).correct_means == "label"


def test_an_untrained_models_answers_are_not_judged():
    content = LABELLED.model_copy(update={"model": MODEL.model_copy(update={"trained": False})})
    profile = ModelProfile.from_header(content)
    assert (profile.trained, profile.correct_means, profile.whole_correct) == (False, None, None)
    assert [each.correct for each in profile.options] == [None, None]


def test_a_saved_profile_is_loaded_the_same(tmp_path):
    profile = ModelProfile.from_header(LABELLED, note='with "quotes"')
    profile.save(tmp_path / "new" / "p.json")
    assert ModelProfile.load(tmp_path / "new" / "p.json") == profile
    assert len((tmp_path / "new" / "p.json").read_text().splitlines()) == 15


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        ModelProfile.from_header(LABELLED).save(tmp_path / "file" / "p.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p.update(more=1), "more: Extra inputs"),
        (lambda p: p["options"][0].update(sizes=[1]), r"option 1 has 3 sizes, the first 1"),
        (lambda p: p["options"][0].update(correct=[True]), "1 flags for 3 inputs"),
        (lambda p: p["options"][0].update(correct=None), "all of correct_means"),
        (lambda p: p.update(correct_means=None), "all of correct_means"),
        (lambda p: p.update(trained=False), "untrained"),
        (lambda p: p.update(options=[]), "options"),
        (lambda p: p["options"][0].update(head_macs_share=float("nan")), "head_macs_share"),
    ],
)
def test_a_profile_that_says_something_impossible_is_refused(tmp_path, change, words):
    content = json.loads(ModelProfile.from_header(LABELLED).model_dump_json())
    change(content)
    (tmp_path / "p.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=words) as caught:
        ModelProfile.load(tmp_path / "p.json")
    assert "\n" not in str(caught.value)


def test_names_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(UsageError, match="known are mobilenet_v2, resnet20-cifar10, resnet34"):
        ModelProfile.load("resnet99")
    with pytest.raises(ConfigError, match="cannot read"):
        ModelProfile.load(tmp_path / "none.json")
    with pytest.raises(DataError):
        ModelProfile.from_payloads(tmp_path / "none")


def test_the_profiles_that_ship_are_small_and_say_what_they_are():
    trained = {}
    for path in PROFILES_FOLDER.glob("*.json"):
        assert path.stat().st_size < 200_000
        trained[path.stem] = ModelProfile.load(path.stem).trained
    assert trained == {"mobilenet_v2": True, "resnet20-cifar10": True, "resnet34": False}


def assert_like_a_fresh_run(name, recipe):
    """The first three inputs, again: same model, same options, same sizes."""
    shipped, fresh = ModelProfile.load(name), recipe.make(first=3)
    # Shipped ones have their work by name.
    unlike = {"note", "options", "whole_correct", "work"}
    assert fresh.model_dump(exclude=unlike) == shipped.model_dump(exclude=unlike)
    for ours, theirs in zip(fresh.options, shipped.options, strict=True):
        own = {"sizes", "correct", "reply_bytes"}
        assert ours.model_dump(exclude=own) == theirs.model_dump(exclude=own)
        # Equal where the profile was made; another processor rounds the last bit differently, and a code with it.
        assert list(ours.sizes) == pytest.approx(list(theirs.sizes[:3]), rel=0.005)


def test_the_embedded_models_profile_is_what_a_fresh_run_gives():
    assert_like_a_fresh_run("resnet20-cifar10", recipes(None)["resnet20-cifar10"])


@pytest.mark.parametrize("name", ["mobilenet_v2", pytest.param("resnet34", marks=pytest.mark.slow)])
def test_the_profiles_of_photographs_are_what_a_fresh_run_gives(name, data_folder):
    assert_like_a_fresh_run(name, recipes(data_folder)[name])


def test_profiles_need_no_torch():
    code = (
        "import sys; from edge_sim.model_profile import ModelProfile; import edge_sim.payloads_command; "
        "ModelProfile.load('resnet34'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    assert done.stdout.strip() == "False"


def test_a_payload_file_that_is_open_for_writing_has_no_profile_yet(tmp_path):
    with PayloadWriter(tmp_path / "x", options=1) as writer:
        writer.add(0, b"abc")
        with pytest.raises(DataError, match="no payload file"):
            ModelProfile.from_payloads(tmp_path / "x")
