"""Tails in every mode against the reference, with the small embedded network; compiling needs a C++ compiler."""

from __future__ import annotations

import os
import shutil
import sys

import numpy as np
import pytest
import torch

from serve_app.batching import CostModel
from serve_app.compile_command import compile_for, keys_for, measure_agreement
from serve_app.compiled_tail import CompiledTail
from serve_app.machine import has_bfloat16, instruction_set, refuse_what_is_impossible
from serve_app.settings import AppSettings, ExecutionSettings
from serve_app.tail_cache import TailCache, TailKey
from serve_app.tail_points import points_to_compile, stage_ends
from serve_app.tail_runner import TailRunner
from split_inference.codec_profile import CodecProfile
from split_inference.errors import ConfigError, ModelLoadError
from split_inference.feature_codec import FeatureCodec, decode_tensor
from split_inference.model_catalog import EMBEDDED_URI, load_model
from split_inference.wire import FeatureFrame

LATE, EARLY = "stage2", "stage1"
# Little is left behind it, and so little to compile.
SHORT = "stage3.1"


@pytest.fixture(scope="module")
def loaded():
    return load_model(EMBEDDED_URI)


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory):
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        if os.environ.get("REQUIRE_DATA") == "1":
            pytest.fail("compiling tails needs a C++ compiler: install g++")
        pytest.skip("compiling tails needs a C++ compiler, and there is none here")
    return tmp_path_factory.mktemp("tails")


def runner_of(loaded, execution=None, calibrated=None):
    return TailRunner(loaded.model, name="m", card=loaded.card, execution=execution, calibrated=calibrated)


def names(loaded, *wanted):
    return tuple(
        loaded.model.split_point(next(p.name for p in loaded.model.split_points if p.name.endswith(w))).name
        for w in wanted
    )


def frame_of(loaded, at, samples, *, codec="u4+lz4", seed=0):
    with torch.inference_mode():
        images = torch.from_numpy(np.random.default_rng(seed).standard_normal((samples, 3, 32, 32), dtype=np.float32))
        features = loaded.model.head(at)(images)
    (spec,) = loaded.model.split_point(at).features
    encoded = FeatureCodec(CodecProfile.parse(codec), channel_axis=spec.channel_axis).encode(features[0].numpy())
    return FeatureFrame(
        model_digest=bytes.fromhex(loaded.model.digest)[:16],
        split_point=at,
        sample_count=samples,
        deadline_budget_ms=None,
        tensors=(encoded,),
    )


def reference(loaded, frame):
    with torch.inference_mode():
        features = torch.from_numpy(decode_tensor(frame.tensors[0]))
        return loaded.model.tail(frame.split_point)(features).numpy()


@pytest.mark.parametrize("codec", ["u1+lz4", "u4+lz4", "u8c+zstd", "jpeg75", "float32", "float16+lz4"])
@pytest.mark.parametrize("samples", [1, 3])
def test_float32_answers_are_the_reference_bit_for_bit_whatever_the_codec(loaded, codec, samples):
    runner = runner_of(loaded)
    for point in loaded.model.split_points[1:-1:4]:
        frame = frame_of(loaded, point.name, samples, codec=codec)
        np.testing.assert_array_equal(runner.answer(frame), reference(loaded, frame))


def test_batching_changes_float32_answers_by_rounding_only(loaded):
    runner = runner_of(loaded)
    (at,) = names(loaded, LATE)
    frames = [frame_of(loaded, at, 1, seed=seed) for seed in range(7)]
    key = runner.key_of(frames[0])
    prepared = runner.prepare(key, frames)
    together = runner.run(key, prepared.staged)
    for each, frame in zip(together, frames, strict=True):
        alone = runner.answer(frame)
        np.testing.assert_allclose(each, alone, rtol=1e-5, atol=1e-5 * np.abs(alone).max())


def test_a_mixed_batch_keeps_every_frames_own_samples_and_leaves_the_bad_one_out(loaded):
    runner = runner_of(loaded)
    (at,) = names(loaded, LATE)
    good = [frame_of(loaded, at, samples, seed=samples) for samples in (1, 3, 2)]
    bad = frame_of(loaded, at, 2)
    object.__setattr__(bad.tensors[0], "payload", b"\0" * 7)
    frames = [good[0], bad, good[1], good[2]]
    key = runner.key_of(good[0])
    prepared = runner.prepare(key, frames)
    assert list(prepared.bad) == [1]
    results = runner.run(key, prepared.staged)
    assert [len(each) for each in results] == [1, 3, 2]
    for each, frame in zip(results, good, strict=True):
        np.testing.assert_allclose(each, reference(loaded, frame), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "buckets"), [("float32", (1,)), ("bfloat16", (1, 4))])
def test_compiled_tails_answer_any_number_of_samples_like_the_reference(loaded, cache_folder, precision, buckets):
    try:
        refuse_what_is_impossible(device="cpu", precision=precision)
    except ConfigError as error:
        pytest.skip(str(error))
    (at,) = names(loaded, SHORT)
    execution = ExecutionSettings(precision=precision, compile=(at,), buckets=buckets, cache=cache_folder)
    settings = AppSettings(model=EMBEDDED_URI, execution=execution)
    lines: list[str] = []
    assert [each.key.bucket for each in compile_for(settings, loaded=loaded, say=lines.append)] == list(buckets)
    assert sum("s, " in line and "MB" in line for line in lines) == len(buckets)
    # A second time there is nothing to do.
    assert compile_for(settings, loaded=loaded) == []
    runner = runner_of(loaded, execution)
    phases: list[str] = []
    cost = CostModel()
    runner.warm(max_samples=8, cost=cost, on_phase=phases.append)
    assert "compiled" in phases[0]
    assert "MB" in phases[0]
    assert cost.batch_s(runner.key_of(frame_of(loaded, at, 1)), 8) > 0
    tolerance = 1e-5 if precision == "float32" else 0.05
    for samples in (1, 2, 3, 4, 5, 9):
        frame = frame_of(loaded, at, samples, codec="u4c+lz4", seed=samples)
        expected = reference(loaded, frame)
        answer = runner.answer(frame)
        assert answer.shape == expected.shape
        assert np.abs(answer - expected).max() <= tolerance * np.abs(expected).max()
    # Floats do not come as codes, and run eagerly in the same precision.
    frame = frame_of(loaded, at, 3, codec="float32")
    assert (
        np.abs(runner.answer(frame) - reference(loaded, frame)).max() <= 0.05 * np.abs(reference(loaded, frame)).max()
    )
    agreement = measure_agreement(settings)[at]
    assert (agreement.samples, agreement.inputs) == (100, "the package's samples")
    assert agreement.top1 >= 0.97
    assert runner_of(loaded, execution).card["execution"]["top1_agreement"][at]["top1"] == agreement.top1


def test_a_tail_that_is_not_compiled_is_refused_with_what_to_do(loaded, tmp_path):
    (at,) = names(loaded, LATE)
    execution = ExecutionSettings(compile=(at,), cache=tmp_path)
    with pytest.raises(ConfigError, match=r"not compiled for 1 rows .* run `split-inference compile"):
        runner_of(loaded, execution)


def test_without_a_compiler_there_is_one_line(loaded, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    settings = AppSettings(
        model=EMBEDDED_URI, execution=ExecutionSettings(compile=names(loaded, LATE), cache=tmp_path / "new")
    )
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler here"):
        compile_for(settings, loaded=loaded)


def test_precision_and_device_that_the_machine_lacks_are_refused():
    options = {"has_cuda": lambda: False, "has_bfloat16": lambda: False, "has_float16": lambda: False}
    refuse_what_is_impossible(device="cpu", precision="float32", **options)
    with pytest.raises(ConfigError, match="no CUDA device"):
        refuse_what_is_impossible(device="cuda", precision="float32", **options)
    with pytest.raises(ConfigError, match=r"no instructions for bfloat16 \(AVX512-BF16 or AMX-BF16\); write float32$"):
        refuse_what_is_impossible(device="cpu", precision="bfloat16", **options)
    with pytest.raises(ConfigError, match=r"write float32 or bfloat16$"):
        refuse_what_is_impossible(device="cpu", precision="float16", **{**options, "has_bfloat16": lambda: True})


@pytest.mark.parametrize(
    ("capabilities", "has"),
    [
        ({"architecture": "x86_64", "avx512_f": True, "avx512_vnni": True, "avx512_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": True}, True),
        ({"architecture": "x86_64", "amx_bf16": True}, True),
        ({"architecture": "aarch64"}, True),
    ],
)
def test_emulated_bfloat16_is_none(monkeypatch, capabilities, has):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert has_bfloat16() is has
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert not has_bfloat16()


def test_what_is_compiled_by_default(loaded):
    model, served = loaded.model, loaded.model.split_points
    assert points_to_compile(model, ExecutionSettings(), served=served, calibrated=None) == ()
    fast = ExecutionSettings(precision="bfloat16")
    calibrated = names(loaded, LATE)[0]
    chosen = points_to_compile(model, fast, served=served, calibrated=calibrated)
    assert chosen[0] == calibrated
    assert 1 <= len(chosen) <= 4
    assert set(chosen[1:]) <= set(stage_ends(served))
    assert points_to_compile(model, fast.model_copy(update={"compile": "none"}), served=served, calibrated=None) == ()


def test_stage_ends_are_the_last_of_each_shape(loaded):
    ends = stage_ends(loaded.model.split_points)
    shapes = [loaded.model.split_point(name).features[0].shape for name in ends]
    assert len(set(shapes)) == len(shapes)
    order = [point.name for point in loaded.model.split_points]
    assert [order.index(name) for name in ends] == sorted((order.index(name) for name in ends), reverse=True)


def key(**changes):
    values = {
        "digest": "ab" * 32,
        "split_point": "a/b",
        "precision": "bfloat16",
        "channels_last": True,
        "bucket": 4,
        "threads": 1,
        "torch": "2.13.0",
        "instruction_set": "x",
    }
    return TailKey(**{**values, **changes})


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "cd" * 32},
        {"split_point": "a.b"},
        {"precision": "float32"},
        {"channels_last": False},
        {"bucket": 1},
        {"threads": 2},
        {"torch": "2.14.0"},
        {"instruction_set": "y"},
    ],
)
def test_each_part_of_the_key_makes_another_folder(change):
    assert key(**change).folder != key().folder


def test_the_cache_gives_back_what_was_stored_and_trusts_no_folder_of_others(tmp_path):
    cache = TailCache(tmp_path / "cache")
    library = tmp_path / "x.so"
    library.write_bytes(b"not code")
    assert cache.library(key()) is None
    stored = cache.store(key(), library, {"compile_s": 1.0})
    assert cache.library(key()) == stored
    assert stored.read_bytes() == b"not code"
    cache.root.chmod(0o777)
    with pytest.raises(ConfigError, match="can be written by others"):
        cache.library(key())


def test_a_file_that_is_no_library_is_refused(tmp_path):
    (tmp_path / "tail.so").write_bytes(b"not code")
    with pytest.raises(ModelLoadError, match="no compiled tail"):
        CompiledTail(tmp_path / "tail.so")


def test_the_instruction_set_is_a_name_that_changes_with_the_flags(tmp_path):
    (tmp_path / "a").write_text("flags : sse avx\n")
    (tmp_path / "b").write_text("flags : sse avx amx\n")
    assert instruction_set(tmp_path / "a") != instruction_set(tmp_path / "b")
    assert instruction_set(tmp_path / "a") == instruction_set(tmp_path / "a")


def test_keys_cover_every_bucket_of_every_compiled_split_point(loaded):
    at = names(loaded, LATE, EARLY)
    settings = AppSettings(model=EMBEDDED_URI, execution=ExecutionSettings(compile=at, buckets=(1, 2)))
    assert {(each.split_point, each.bucket) for each in keys_for(settings, loaded)} == {
        (name, bucket) for name in at for bucket in (1, 2)
    }


def test_the_compiler_is_not_imported_by_a_replica_that_compiles_nothing():
    code = "import serve_app.tail_runner, sys; assert 'torch._inductor.compile_fx' not in sys.modules"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
