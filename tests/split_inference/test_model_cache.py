"""An exported model found again is the same model: digest, split points, card and every bit of its answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from split_inference.model_cache import KEPT, cache_place, load_cached_model
from split_inference.model_catalog import EMBEDDED_URI, load_model
from tests.patience import PATIENCE_S

URI = "resnet18?weights=random&seed=3"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    load_cached_model(URI, folder)
    return folder


def place_in(folder):
    place = cache_place(URI, folder)
    assert place is not None
    return place


@pytest.fixture(scope="module")
def plain():
    return load_model(URI)


def test_found_again_it_is_the_same_model(folder, plain):
    found = load_cached_model(URI, folder)
    assert (found.name, found.card) == (plain.name, plain.card)
    assert found.model.digest == plain.model.digest
    assert found.model.split_points == plain.model.split_points


@pytest.mark.parametrize("at", ["input", "resnet.encoder.stages.2", "output"])
def test_found_again_it_answers_with_the_same_bits(folder, plain, rng, at):
    found = load_cached_model(URI, folder)
    x = torch.from_numpy(rng.standard_normal((2, 3, 224, 224), dtype=np.float32))
    with torch.inference_mode():
        expected = plain.model.tail(at)(*plain.model.head(at)(x))
        actual = found.model.tail(at)(*plain.model.head(at)(x))
        assert torch.equal(actual, expected)
        assert torch.equal(found.model.whole(x), expected)


def test_finding_needs_no_library_that_built_the_network(folder):
    code = (
        "import sys; from pathlib import Path\n"
        "from split_inference.model_cache import load_cached_model\n"
        f"load_cached_model({URI!r}, Path({str(folder)!r}))\n"
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S)


@pytest.mark.parametrize("file", ["about.json", "program.pt2"])
def test_a_broken_file_is_made_anew(folder, plain, file):
    place = place_in(folder)
    (place / file).write_bytes(b"broken")
    assert load_cached_model(URI, folder).model.digest == plain.model.digest
    assert (place / file).stat().st_size > 100


def test_a_program_of_another_digest_is_not_believed(folder, plain):
    about_file = place_in(folder) / "about.json"
    about = json.loads(about_file.read_text())
    about["digest"] = "0" * 64
    about_file.write_text(json.dumps(about))
    assert load_cached_model(URI, folder).model.digest == plain.model.digest
    assert json.loads(about_file.read_text())["digest"] == plain.model.digest


def test_other_bytes_of_a_file_are_another_place(tmp_path):
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"one")
    first = cache_place(f"resnet18?weights={weights}", tmp_path)
    weights.write_bytes(b"two")
    second = cache_place(f"resnet18?weights={weights}", tmp_path)
    assert first is not None
    assert second is not None
    assert first != second


@pytest.mark.parametrize("uri", [EMBEDDED_URI, "factory:a.b:c", "hf:some/hub-id", "resnet18?weights=/nowhere"])
def test_what_cannot_be_told_apart_has_no_place(tmp_path, uri):
    assert cache_place(uri, tmp_path) is None


def test_the_programs_used_last_are_kept(folder, plain):
    old = folder / "of-a-version-before"
    for number in range(KEPT + 2):
        place = folder / f"{old.name}-{number}"
        place.mkdir()
        (place / "about.json").write_text("{}")
        os.utime(place / "about.json", (number, number))
    (place_in(folder) / "about.json").unlink()
    load_cached_model(URI, folder)
    left = {place.name for place in folder.iterdir()}
    assert place_in(folder).name in left
    assert len(left) == KEPT
    assert f"{old.name}-0" not in left


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, plain):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert load_cached_model(URI, blocked / "models").model.digest == plain.model.digest
