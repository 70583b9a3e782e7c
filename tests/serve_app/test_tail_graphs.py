"""CUDA graphs without CUDA: capture, padding, order and refusal, with a device that only records what it is told.

What the stand-in shares with CUDA: capturing computes nothing, a launch reads and writes fixed addresses, and an
operation that needs the host cannot be captured. What it cannot show is speed, and CUDA's own mistakes: the last test
does that where there is a GPU.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from serve_app.batching import CostModel
from serve_app.cuda_device import CudaGraphs, OneThread
from serve_app.feature_form import CODES, FLOATS
from serve_app.settings import AppSettings, ExecutionSettings
from serve_app.staging import Staging
from serve_app.tail_graphs import GraphKey, TailGraphs
from serve_app.tail_runner import TailRunner
from split_inference.codec_profile import CodecProfile
from split_inference.errors import ConfigError
from split_inference.feature_codec import FeatureCodec
from split_inference.model_catalog import EMBEDDED_URI, load_model
from split_inference.model_split import FeatureSpec
from split_inference.wire import FeatureFrame

CPU = torch.device("cpu")


class Recorder:
    """Captures like CUDA: what it records is run by launches only."""

    def __init__(self, *, refuses=lambda captures: False):
        self.captures = 0
        self.launches = 0
        self.refuses = refuses

    def capture(self, run):
        self.captures += 1
        if self.refuses(self.captures):
            raise RuntimeError("operation not permitted when stream is capturing\nCompile with TORCH_USE_CUDA_DSA")
        output = torch.full_like(run(), float("nan"))

        def launch():
            self.launches += 1
            output.copy_(run())

        return launch, output


def graphs_of(recorder=None, **options):
    return TailGraphs(recorder or Recorder(), device=CPU, **options)


def key(bucket=4, split_point="a", form=FLOATS):
    return GraphKey(split_point=split_point, bucket=bucket, forms=(form,))


def double(values):
    return 2 * values


def test_a_graph_is_captured_once_and_launched_every_time():
    recorder = Recorder()
    graphs = graphs_of(recorder)
    for value in range(3):
        rows = torch.full((4, 2), float(value))
        assert graphs.run(key(), double, [rows], rows=4).tolist() == (2 * rows).tolist()
    assert (recorder.captures, recorder.launches, len(graphs)) == (1, 3, 1)
    graphs.run(key(bucket=1), double, [torch.ones((1, 2))], rows=1)
    graphs.run(key(form=CODES), double, [torch.ones((4, 2))], rows=4)
    assert recorder.captures == 3


def test_a_batch_smaller_than_its_graph_gets_its_own_rows_only():
    graphs = graphs_of()
    graphs.run(key(), double, [torch.full((4, 2), 9.0)], rows=4)
    # Buffers may have fewer rows than the graph: only rows that are there are copied.
    assert graphs.run(key(), double, [torch.ones((3, 2))], rows=3).tolist() == [[2.0, 2.0]] * 3


def test_answers_are_not_changed_by_the_next_launch():
    graphs = graphs_of()
    first = graphs.run(key(bucket=1), double, [torch.ones((1, 2))], rows=1)
    graphs.run(key(bucket=1), double, [torch.zeros((1, 2))], rows=1)
    assert first.tolist() == [[2.0, 2.0]]


def test_what_cannot_be_captured_is_tried_once_and_told_in_one_line(caplog):
    recorder = Recorder(refuses=lambda captures: True)
    graphs = graphs_of(recorder)
    assert graphs.run(key(), double, [torch.ones((4, 2))], rows=4) is None
    assert graphs.run(key(bucket=1), double, [torch.ones((1, 2))], rows=1) is None
    assert recorder.captures == 1
    assert graphs.refused == {"a": "operation not permitted when stream is capturing"}
    assert [record.message for record in caplog.records] == [
        "the tail behind a runs eagerly, without a CUDA graph: operation not permitted when stream is capturing"
    ]
    # Another split point is another matter.
    recorder.refuses = lambda captures: False
    assert graphs.run(key(split_point="b"), double, [torch.ones((4, 2))], rows=4) is not None


def test_forms_from_outside_cannot_fill_the_memory_with_graphs():
    recorder = Recorder()
    graphs = graphs_of(recorder, most=2)
    assert [graphs.run(key(bucket=n), double, [torch.ones((n, 2))], rows=n) is None for n in (1, 2, 3, 2)] == [
        False,
        False,
        True,
        False,
    ]
    assert recorder.captures == 2


@pytest.fixture(scope="module")
def loaded():
    return load_model(EMBEDDED_URI)


def runner_of(loaded, *, recorder=None, unpacks=True, calibrated="stage3", **execution):
    at = next(point.name for point in loaded.model.split_points if point.name.endswith(calibrated))
    return TailRunner(
        loaded.model,
        name="m",
        card=loaded.card,
        execution=ExecutionSettings(**execution),
        calibrated=at,
        unpacks=unpacks,
        graph_device=recorder,
    )


def frame_of(loaded, at, samples, *, codec="u2", seed=0):
    (spec,) = loaded.model.split_point(at).features
    features = np.random.default_rng(seed).normal(size=(samples, *spec.shape)).astype(np.float32)
    return FeatureFrame(
        model_digest=bytes.fromhex(loaded.model.digest)[:16],
        split_point=at,
        sample_count=samples,
        deadline_budget_ms=None,
        tensors=(FeatureCodec(CodecProfile.parse(codec), channel_axis=spec.channel_axis).encode(features),),
    )


@pytest.mark.parametrize("codec", ["u1", "u3c", "u4", "u8", "jpeg75", "float32"])
def test_graphs_and_unpacking_answer_as_the_reference_does(loaded, codec):
    recorder = Recorder()
    runner = runner_of(loaded, recorder=recorder, buckets=(1, 4))
    plain = runner_of(loaded, unpacks=False)
    cost = CostModel()
    runner.warm(max_samples=4, cost=cost)
    captured = runner.card["execution"]["cuda_graphs"]
    assert len(captured) >= 2
    launches = recorder.launches
    for at in captured:
        for samples in (1, 2, 3, 4, 5, 9):
            frame = frame_of(loaded, at, samples, codec=codec, seed=samples)
            np.testing.assert_allclose(runner.answer(frame), plain.answer(frame), rtol=1e-5, atol=1e-5)
            assert samples <= runner.rows_run(runner.key_of(frame), samples) <= samples + 3
            assert plain.rows_run(plain.key_of(frame), samples) == samples
    assert recorder.launches > launches
    assert cost.batch_s(runner.key_of(frame_of(loaded, captured[0], 1)), 4) > 0


@pytest.mark.parametrize("codec", ["u1", "u3c+zstd", "u8c+none"])
def test_unpacking_in_the_tail_gives_the_reference_bit_for_bit(loaded, codec):
    runner, plain = runner_of(loaded), runner_of(loaded, unpacks=False)
    for point in loaded.model.split_points[1:-1:6]:
        for samples in (1, 3):
            frame = frame_of(loaded, point.name, samples, codec=codec)
            np.testing.assert_array_equal(runner.answer(frame), plain.answer(frame))


def test_a_batch_of_planes_keeps_every_frames_samples_and_leaves_the_bad_one_out(loaded):
    runner = runner_of(loaded, recorder=Recorder(), buckets=(1, 4))
    runner.warm(max_samples=4, cost=CostModel())
    at = runner.card["execution"]["cuda_graphs"][0]
    good = [frame_of(loaded, at, samples, seed=samples) for samples in (1, 3, 2)]
    bad = frame_of(loaded, at, 2)
    object.__setattr__(bad.tensors[0], "payload", b"\0" * 7)
    prepared = runner.prepare(runner.key_of(good[0]), [good[0], bad, good[1], good[2]])
    assert list(prepared.bad) == [1]
    results = runner.run(None, prepared.staged)
    runner.discard(prepared.staged)
    plain = runner_of(loaded, unpacks=False)
    for found, frame in zip(results, good, strict=True):
        np.testing.assert_allclose(found, plain.answer(frame), rtol=1e-4, atol=1e-4)


def test_a_tail_that_cannot_be_captured_runs_eagerly_and_the_card_says_why(loaded):
    lines: list[str] = []
    runner = runner_of(loaded, recorder=Recorder(refuses=lambda captures: captures == 1), buckets=(1, 4))
    runner.warm(max_samples=4, cost=CostModel(), on_phase=lines.append)
    execution = runner.card["execution"]
    (refused,) = execution["no_cuda_graphs"]
    assert "not permitted when stream is capturing" in execution["no_cuda_graphs"][refused]
    assert execution["cuda_graphs"]
    assert refused not in execution["cuda_graphs"]
    assert "eager float32 (no CUDA graph: operation not permitted" in lines[0]
    assert "graphs float32" in lines[1]
    frame = frame_of(loaded, refused, 3)
    np.testing.assert_array_equal(runner.answer(frame), runner_of(loaded, unpacks=False).answer(frame))


def test_required_graphs_end_the_start_where_there_can_be_none(loaded):
    runner = runner_of(loaded, recorder=Recorder(refuses=lambda captures: True), cuda_graphs="required")
    with pytest.raises(ConfigError, match=r"cuda_graphs: required, but the tail behind .* cannot be captured: oper"):
        runner.warm(max_samples=4, cost=CostModel())
    with pytest.raises(ConfigError, match="none on the processor"):
        runner_of(loaded, cuda_graphs="required")
    with pytest.raises(ValueError, match=r"execution\.cuda_graphs: there are none on the processor"):
        AppSettings(model=EMBEDDED_URI, execution=ExecutionSettings(cuda_graphs="required"))
    with pytest.raises(ValueError, match="leave it out for cuda"):
        AppSettings(model=EMBEDDED_URI, device="cuda", execution=ExecutionSettings(compile=("stage3",)))


def test_switched_off_nothing_is_captured(loaded):
    recorder = Recorder()
    runner = runner_of(loaded, recorder=recorder, cuda_graphs="off")
    runner.warm(max_samples=4, cost=CostModel())
    assert recorder.captures == 0
    assert runner.card["execution"]["cuda_graphs"] == []


def test_a_second_thread_may_prepare_and_not_run(loaded):
    runner = runner_of(loaded, recorder=Recorder(), buckets=(1,))
    frame = frame_of(loaded, runner.card["split_points"][3]["name"], 1)
    runner.answer(frame)
    caught: list[BaseException] = []

    def elsewhere():
        prepared = runner.prepare(runner.key_of(frame), [frame])
        try:
            runner.run(None, prepared.staged)
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=elsewhere, name="stranger")
    thread.start()
    thread.join()
    assert "CUDA is called from thread stranger" in str(caught[0])


def test_one_thread_is_the_first_that_calls():
    owner = OneThread()
    owner.check()
    owner.check()


def test_bit_planes_are_bits_eighths_of_the_bytes_that_codes_are():
    spec = FeatureSpec(shape=(256, 14, 14), dtype="float32", channel_axis=1)
    from serve_app.feature_form import form_of

    staging = Staging()
    sizes = {}
    for name in ("u1", "u2", "u4", "u8"):
        form = form_of(name, from_codes=True, planes=True)
        sizes[name] = staging.take("a", [spec], [form], rows=4, capacity=4).row_bytes - 8
    assert {name: size / (256 * 14 * 14) for name, size in sizes.items()} == {
        "u1": 1 / 8,
        "u2": 2 / 8,
        "u4": 4 / 8,
        "u8": 1,
    }


def test_new_buffers_are_pageable_and_pinned_when_they_are_given_back(monkeypatch):
    """Pinning is a call of CUDA's, and buffers are taken by any thread."""
    pinned_in = []
    real = torch.Tensor.new_zeros

    def new_zeros(self, shape, *, pin_memory):
        assert pin_memory
        pinned_in.append(threading.current_thread().name)
        return real(self, shape)

    monkeypatch.setattr(torch.Tensor, "new_zeros", new_zeros)
    spec = FeatureSpec(shape=(2, 2), dtype="float32", channel_axis=1)
    staging = Staging(pin=True)
    first = staging.take("a", [spec], [CODES], rows=2, capacity=2)
    assert (first.pinned, pinned_in) == (False, [])
    staging.give_back(first)
    second = staging.take("a", [spec], [CODES], rows=1, capacity=2)
    assert (second.pinned, second.rows, len(pinned_in)) == (True, 1, 3)
    assert second.parts[0].values.shape == (2, 2, 2)
    staging.give_back(second)
    assert len(pinned_in) == 3


class Cuda:
    """torch.cuda's names, telling in which order they were used."""

    def __init__(self):
        self.log = []

    def Stream(self):
        return self._Stream(self, "side")

    def current_stream(self):
        return self._Stream(self, "current")

    def graph_pool_handle(self):
        self.log.append("pool")
        return "pool"

    def CUDAGraph(self):
        return type("Graph", (), {"replay": lambda _: self.log.append("replay")})()

    @contextmanager
    def stream(self, stream):
        self.log.append(f"on {stream}")
        yield
        self.log.append("off")

    @contextmanager
    def graph(self, graph, *, pool, stream, capture_error_mode):
        self.log.append(f"capture on {stream} into {pool}, {capture_error_mode}")
        yield
        self.log.append("captured")

    class _Stream:
        def __init__(self, cuda, name):
            self.cuda, self.name = cuda, name

        def __str__(self):
            return self.name

        def wait_stream(self, other):
            self.cuda.log.append(f"{self} waits for {other}")


def test_capturing_warms_up_on_a_side_stream_first_and_shares_one_pool():
    cuda = Cuda()
    graphs = CudaGraphs(cuda=cuda)

    def run():
        cuda.log.append("run")
        return torch.ones(1)

    launch, output = graphs.capture(run)
    assert output.item() == 1
    one = [
        "side waits for current",
        "on side",
        "run",
        "run",
        "run",
        "off",
        "current waits for side",
        "capture on side into pool, thread_local",
        "run",
        "captured",
    ]
    assert cuda.log == ["pool", *one]
    launch()
    assert cuda.log[-1] == "replay"
    graphs.capture(run)
    assert cuda.log.count("pool") == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none here")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("codec", ["u1", "u4c", "u8", "jpeg75", "float32"])
def test_on_a_gpu_eager_tails_and_graphs_agree_with_the_processors_float32(loaded, precision, codec):
    at = next(point.name for point in loaded.model.split_points if point.name.endswith("stage2"))

    def on_gpu(cuda_graphs):
        runner = TailRunner(
            loaded.model,
            name="m",
            card=loaded.card,
            execution=ExecutionSettings(precision=precision, cuda_graphs=cuda_graphs),
            device="cuda",
            calibrated=at,
        )
        runner.warm(max_samples=16, cost=CostModel())
        return runner

    eager, graphs = on_gpu("off"), on_gpu("required")
    reference = TailRunner(loaded.model, name="m", card=loaded.card)
    assert at in graphs.card["execution"]["cuda_graphs"]
    tolerance = 1e-4 if precision == "float32" else 0.05
    for samples in (1, 3, 4, 5, 16, 21):
        frame = frame_of(loaded, at, samples, codec=codec, seed=samples)
        expected = reference.answer(frame)
        for runner in (eager, graphs):
            assert np.abs(runner.answer(frame) - expected).max() <= tolerance * np.abs(expected).max()
