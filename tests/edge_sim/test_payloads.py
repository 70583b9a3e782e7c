"""Prepared requests: what a device would send, with the answers that a server gives to exactly that."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from edge_sim.head_runner import HeadRunner
from edge_sim.payloads import SERVER_ONLY, Choice, default_options, make_payloads, parse_choice, stage_ends
from edge_sim.payloads_command import INTERRUPTED, payloads
from serve_app.ingress import DEFAULT_TOP_K
from serve_app.tail_runner import TailRunner
from split_inference.calibration import EMBEDDED_CALIBRATION, Calibration, load_calibration, save_calibration
from split_inference.codec_profile import CodecProfile
from split_inference.errors import (
    ConfigError,
    DataError,
    FeatureMismatchError,
    MalformedInputError,
    UnknownCodecError,
    UnknownSplitPointError,
    UsageError,
)
from split_inference.feature_codec import FeatureCodec
from split_inference.inputs import EncodedInput, read_inputs
from split_inference.model_catalog import EMBEDDED_FOLDER, EMBEDDED_URI, load_model
from split_inference.payload_file import PayloadFile, PayloadTraffic, PayloadWriter
from split_inference.predictions import top_predictions
from split_inference.wire import FRAME_MEDIA_TYPE, ReplyFrame, decode_frame, encode_frame, encode_reply
from tests.edge_sim.helpers import picture, tiny_model

SAMPLES = EMBEDDED_FOLDER / "samples"


@pytest.fixture(scope="module")
def embedded():
    return load_model(EMBEDDED_URI)


@pytest.fixture(scope="module")
def made(embedded, tmp_path_factory):
    """The default options of the embedded model, on all its samples."""
    path = tmp_path_factory.mktemp("payloads") / "embedded.payloads"
    seen: list[tuple[str, int, int]] = []
    header = make_payloads(embedded, SAMPLES, path, on_progress=lambda *each: seen.append(each))
    assert seen[-1] == ("writing", 100, 100)
    with PayloadFile.open(path) as file:
        assert file.header == header
        yield file


@pytest.fixture
def tiny():
    return tiny_model()


def inputs_of(count=3, kind="png"):
    """Small pictures, all different."""
    return [
        EncodedInput(name=f"{i}.{kind}", data=picture((60 * i, 200 - 50 * i, 90)), media_type=f"image/{kind}", label=i)
        for i in range(count)
    ]


def test_replaying_each_body_gives_exactly_the_files_answer(embedded, made):
    runner = TailRunner(embedded.model, name="embedded", card=embedded.card)
    for number, option in enumerate(made.header.options):
        answers = []
        for i in range(len(made.header.inputs)):
            body = made.body(number, i)
            payload = runner.preprocess(body) if option.mode == "server_only" else decode_frame(body)
            answers.append(int(runner.answer(payload).argmax()))
        assert tuple(answers) == option.answer, option.title


def test_the_expected_answers_are_the_unsplit_models(embedded, made):
    codec = FeatureCodec(CodecProfile())
    device = HeadRunner(embedded, at=embedded.model.split_point("stage1"), codecs=[codec])
    whole_NK = device.run_whole([each.data for each in read_inputs(SAMPLES)]).logits_NK
    for option in made.header.options:
        assert option.expected == tuple(whole_NK.argmax(axis=1))
    assert [each.label for each in made.header.inputs] == [each.label for each in read_inputs(SAMPLES)]


def test_bodies_are_the_frames_that_a_device_sends(embedded, made):
    calibration = load_calibration(EMBEDDED_CALIBRATION)
    files = read_inputs(SAMPLES)
    for number, option in enumerate(made.header.options):
        if option.split_point is None:
            assert made.body(number, 5) == files[5].data
            continue
        assert option.codec is not None
        codecs = calibration.codecs() if option.calibrated else [FeatureCodec(CodecProfile.parse(option.codec))]
        device = HeadRunner(embedded, at=embedded.model.split_point(option.split_point), codecs=codecs)
        for i in (0, 57):
            sent = replace(decode_frame(made.body(number, i)), tensors=device.run([files[i].data]).tensors)
            assert encode_frame(sent) == made.body(number, i)


def test_the_defaults_are_the_input_every_stage_end_and_the_calibration(embedded, made):
    titles = [option.title for option in made.header.options]
    ends = ["stage1", "stage2", "stage3.1"]
    codecs = ["u8+lz4", "u4+lz4", "u2+lz4"]
    assert [point.name for point in stage_ends(embedded.model)] == ends
    assert titles == [
        SERVER_ONLY,
        *(f"{end}, {codec}" for end in ends for codec in codecs),
        "stage3, u2+lz4, calibrated",
    ]
    for option in made.header.options:
        assert option.media_type == (FRAME_MEDIA_TYPE if option.split_point else "image/jpeg")
        if option.split_point:
            point = embedded.model.split_point(option.split_point)
            assert (option.elements, option.head_macs_share) == (point.elements, point.head_macs_share)
    assert made.header.model.macs == embedded.model.split_points[-1].head_macs


def test_another_model_gets_no_calibration_by_default(tiny):
    first, *others = default_options(tiny)
    assert first == SERVER_ONLY
    assert {option[1] for option in others} == {"u8+lz4", "u4+lz4", "u2+lz4"}


def test_many_stage_ends_become_those_that_send_less_than_all_before(data_folder):
    model = load_model(f"pt2:{data_folder}/models/mobilenet_v2_imagenet.pt2").model
    ends = [point.name for point in stage_ends(model)]
    assert ends == ["ops.op01_dw", "ops.op02_conv", "add", "add:3", "add:6", "add:10"]


def test_reply_bytes_are_those_of_a_real_reply(embedded, made):
    runner = TailRunner(embedded.model, name="embedded", card=embedded.card)
    logits_NK = runner.answer(decode_frame(made.body(1, 0)))
    reply = ReplyFrame(
        model_digest=bytes.fromhex(embedded.model.digest)[:16],
        sample_count=1,
        timings_s=dict.fromkeys(("read", "parse", "queue", "decode", "tail", "total"), 0.001),
        predictions=top_predictions(logits_NK, labels=embedded.card.labels, top_k=DEFAULT_TOP_K),
        logits=None,
    )
    body = encode_reply(reply)
    # Labels differ in length.
    assert made.header.options[1].reply_bytes == pytest.approx(len(body), abs=20)


def test_bodies_do_not_depend_on_what_is_prepared_beside_them(tiny, tmp_path):
    many, one = tmp_path / "many", tmp_path / "one"
    make_payloads(tiny, inputs_of(30), many, options=[("stem", "u8+lz4"), ("relu", "u2+lz4")])
    make_payloads(tiny, inputs_of(30)[28:29], one, options=[("relu", "u2+lz4")])
    with PayloadFile.open(many) as all_of_them, PayloadFile.open(one) as alone:
        assert all_of_them.body(1, 28) == alone.body(0, 0)


def test_traffic_is_kept(tiny, tmp_path):
    traffic = [PayloadTraffic(option=0, share=0.25), PayloadTraffic(option=1, share=0.75, rate_per_s=30.0)]
    options: list[Choice] = [SERVER_ONLY, ("stem", "float16")]
    header = make_payloads(tiny, inputs_of(), tmp_path / "x", options=options, traffic=traffic)
    assert header.traffic == tuple(traffic)
    assert header.options[1].codec == "float16+lz4"


def test_a_calibration_for_another_model_is_refused(tiny, tmp_path):
    with pytest.raises(UsageError, match="calibrate again"):
        make_payloads(tiny, inputs_of(), tmp_path / "x", options=[("stem", load_calibration(EMBEDDED_CALIBRATION))])


def test_a_calibration_without_clip_ranges_is_not_called_calibrated(tiny, tmp_path):
    found = Calibration(
        model="tiny", model_digest=tiny.model.digest, split_point="stem", codec="u3+lz4", clip=(), channel_axes=(1,)
    )
    header = make_payloads(tiny, inputs_of(), tmp_path / "x", options=[("stem", found)])
    assert header.options[0].title == "stem, u3+lz4"
    with pytest.raises(UsageError, match="for split point stem, not for relu"):
        make_payloads(tiny, inputs_of(), tmp_path / "x", options=[("relu", found)])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ([("nowhere", "u4+lz4")], UnknownSplitPointError, "nowhere"),
        ([("stem", "u9+lz4")], UnknownCodecError, "u9"),
        (["device_only"], UsageError, "device_only"),
        ([], UsageError, "no option"),
    ],
)
def test_options_that_do_not_exist_are_refused_and_leave_nothing(tiny, tmp_path, options, error, words):
    with pytest.raises(error, match=words):
        make_payloads(tiny, inputs_of(), tmp_path / "x", options=options)
    assert os.listdir(tmp_path) == []


def test_inputs_that_cannot_be_read_or_do_not_go_together_are_refused(tiny, tmp_path):
    bad = EncodedInput(name="bad.png", data=b"no picture", media_type="image/png", label=None)
    with pytest.raises(MalformedInputError, match=r"bad\.png: "):
        make_payloads(tiny, [*inputs_of(), bad], tmp_path / "x")
    with pytest.raises(DataError, match=r"image/jpeg and image/png"):
        make_payloads(tiny, [*inputs_of(), *inputs_of(kind="jpeg")], tmp_path / "x")
    with pytest.raises(DataError, match="no inputs"):
        make_payloads(tiny, [], tmp_path / "x")
    no_preprocessing = replace(tiny, card=tiny.card.model_copy(update={"preprocessing": None}))
    with pytest.raises(UsageError, match="preprocessed"):
        make_payloads(no_preprocessing, inputs_of(), tmp_path / "x")
    assert os.listdir(tmp_path) == []


def test_what_answers_with_no_classes_is_refused(tmp_path):
    dense = tiny_model(module=torch.nn.Conv2d(3, 4, 3))
    with pytest.raises(UsageError, match="a classifier gives"):
        make_payloads(dense, inputs_of(), tmp_path / "x", options=[SERVER_ONLY])


def test_features_that_a_codec_cannot_hold_are_refused(tmp_path):
    class Huge(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return (self.conv(x) * 1e30).mean((2, 3))

    loaded = tiny_model(module=Huge())
    with pytest.raises(FeatureMismatchError, match="mul cannot be encoded"):
        make_payloads(loaded, inputs_of(), tmp_path / "x", options=[("mul", "float16+lz4")])


def test_options_as_typed(tmp_path):
    path = tmp_path / "c.json"
    save_calibration(load_calibration(EMBEDDED_CALIBRATION), path)
    assert parse_choice("server_only") == SERVER_ONLY
    assert parse_choice("stage2,u4+lz4") == ("stage2", "u4+lz4")
    assert parse_choice(str(path)) == ("stage3", load_calibration(EMBEDDED_CALIBRATION))
    for text in ("", "stage2", "stage2,", ",u4"):
        with pytest.raises(UsageError, match="SPLIT_POINT,CODEC"):
            parse_choice(text)
    with pytest.raises(ConfigError, match="cannot read"):
        parse_choice(str(tmp_path / "none.json"))


@pytest.fixture
def command():
    """Run the command as typed; gives click's result."""
    app = typer.Typer()
    app.command()(payloads)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def test_the_command_writes_the_file_and_the_profile_and_prints_json(command, tmp_path):
    out, profile = tmp_path / "x.payloads", tmp_path / "x.json"
    words = (EMBEDDED_URI, "--inputs", SAMPLES, "--limit", 4, "--out", out, "--profile", profile)
    result = command(*words, "--option", "stage2,u4+lz4", "--option", "server_only", "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    with PayloadFile.open(out) as file:
        assert summary["inputs"] == len(file.header.inputs) == 4
        assert [each["bytes_mean"] for each in summary["options"]] == [np.mean(file.sizes(i)) for i in range(2)]
    assert summary["options"][0]["split_point"] == "stage2"
    assert summary["file_bytes"] == out.stat().st_size
    assert json.loads(profile.read_text())["digest"] == summary["digest"]


def test_the_command_prints_a_table(command, tmp_path):
    result = command(EMBEDDED_URI, "--inputs", SAMPLES, "--limit", 2, "-o", tmp_path / "x", "--option", "stage2,u4")
    assert result.exit_code == 0, result.output
    assert "stage2, u4+lz4" in result.stdout
    assert "2 inputs with 1 options" in result.stdout


def test_ctrl_c_leaves_no_half_file(command, tmp_path, monkeypatch):
    def interrupted(self, header):
        raise KeyboardInterrupt

    monkeypatch.setattr(PayloadWriter, "finish", interrupted)
    out = tmp_path / "x.payloads"
    result = command(EMBEDDED_URI, "--inputs", SAMPLES, "--limit", 2, "--out", out, "--option", "server_only")
    assert result.exit_code == INTERRUPTED
    assert "no half file is left" in result.stderr
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_loaded(command, tmp_path):
    result = command("nonsense:", "--inputs", SAMPLES, "--out", tmp_path)
    assert isinstance(result.exception, UsageError)
    assert "it is a folder" in str(result.exception)


def test_help_has_examples(command):
    assert "stage2,u4+lz4" in command("--help").stdout
