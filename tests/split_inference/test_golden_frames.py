"""Frames written by this and older versions decode for ever, to what they decoded to when they were written.

`REGENERATE_GOLDEN=1 pytest tests/split_inference/test_golden_frames.py` writes files that are missing and never
touches one that is there: a changed layout needs a new wire version, and the old files stay.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from split_inference.codec_profile import ClipRange, CodecProfile
from split_inference.feature_codec import FeatureCodec, decode_tensor
from split_inference.wire import (
    FeatureFrame,
    Prediction,
    ReplyFrame,
    decode_frame,
    decode_reply,
    encode_frame,
    encode_reply,
)


def f32(values):
    return np.array(values, np.float32)


GOLDEN = Path(__file__).parent.parent / "golden"
DIGEST = bytes(range(100, 116))

# JPEG decoders may differ by a few grey levels, so those values are compared within this many steps of 255.
JPEG_TOLERANCE_STEPS = 4


def features(*shape):
    values = np.random.default_rng(list(shape)).normal(size=shape)
    return np.repeat(np.maximum(np.round(values, 3), 0), 2, axis=-1).astype(np.float32)


def request(profile, *shapes, clip=None, channel_axis=1, split_point="layer3.2", deadline_budget_ms=None):
    codec = FeatureCodec(CodecProfile.parse(profile), clip=clip, channel_axis=channel_axis)
    tensors = tuple(codec.encode(features(*shape)) for shape in shapes)
    return encode_frame(
        FeatureFrame(
            model_digest=DIGEST,
            split_point=split_point,
            sample_count=shapes[0][0],
            deadline_budget_ms=deadline_budget_ms,
            tensors=tensors,
        )
    )


def reply(**changes):
    fields: dict[str, Any] = {"model_digest": DIGEST, "sample_count": 2, "predictions": None, "logits": None}
    return encode_reply(ReplyFrame(**(fields | {"timings_s": {"decode": 0.25, "tail": 0.5, "total": 1.0}} | changes)))


ROWS = (
    (Prediction(index=3, label="cat", score=0.75), Prediction(index=5, label="dog", score=0.125)),
    (Prediction(index=999, label="größte Brücke", score=-2.5), Prediction(index=0, label="", score=0.0)),
)
WRITERS = {
    "v1-request-float32-none": lambda: request("float32+none", (1, 3, 2, 2)),
    "v1-request-float32-lz4": lambda: request("float32+lz4", (1, 4, 3, 3)),
    "v1-request-float16-zstd": lambda: request("float16+zstd", (2, 4, 3, 3)),
    "v1-request-u1-lz4": lambda: request("u1", (1, 16, 5, 4), deadline_budget_ms=250),
    "v1-request-u2-lz4-three-samples": lambda: request("u2", (3, 8, 5, 3)),
    "v1-request-u3c-lz4hc": lambda: request("u3c+lz4hc", (1, 6, 7, 4)),
    "v1-request-u4c-zstd-channels-last": lambda: request("u4c+zstd", (2, 7, 5), channel_axis=2),
    "v1-request-u8-none": lambda: request("u8+none", (1, 3, 3, 3), split_point="input"),
    "v1-request-u4-clip": lambda: request("u4", (2, 8, 4, 4), clip=ClipRange(low=(0.0,), high=(1.25,))),
    "v1-request-jpeg75": lambda: request("jpeg75", (2, 5, 8, 4)),
    "v1-request-two-tensors": lambda: request("u5", (1, 4, 4, 2), (1, 8, 2, 1), split_point="größe"),
    "v1-reply-predictions": lambda: reply(predictions=ROWS),
    "v1-reply-logits": lambda: reply(logits=f32([[1.5, -2, 0], [0.1, 1e-3, 3e38]])),
}


def described(name, data):
    """What a frame says, as JSON; float32 values are exact as JSON's numbers."""
    if "-reply-" in name:
        answer = decode_reply(data)
        rows = answer.predictions and [[[p.index, p.label, p.score] for p in row] for row in answer.predictions]
        return {
            "model_digest": answer.model_digest.hex(),
            "sample_count": answer.sample_count,
            "timings_s": dict(answer.timings_s),
            "predictions": rows,
            "logits": None if answer.logits is None else answer.logits.tolist(),
        }
    frame = decode_frame(data)
    return {
        "model_digest": frame.model_digest.hex(),
        "split_point": frame.split_point,
        "sample_count": frame.sample_count,
        "deadline_budget_ms": frame.deadline_budget_ms,
        "tensors": [
            {
                "shape": list(tensor.shape),
                "dtype": tensor.dtype,
                "quantizer_id": tensor.quantizer_id,
                "bits": tensor.bits,
                "compressor_id": tensor.compressor_id,
                "channel_axis": tensor.channel_axis,
                "ranges": tensor.ranges.tolist(),
                "values": decode_tensor(tensor).ravel().tolist(),
            }
            for tensor in frame.tensors
        ],
    }


@pytest.fixture(scope="module", autouse=True)
def _missing_files_are_written_when_asked():
    if os.environ.get("REGENERATE_GOLDEN") != "1":
        return
    for name, write in WRITERS.items():
        frame_file, json_file = GOLDEN / f"{name}.frame", GOLDEN / f"{name}.json"
        if not frame_file.exists():
            frame_file.write_bytes(write())
        if not json_file.exists():
            text = json.dumps(described(name, frame_file.read_bytes()), ensure_ascii=False)
            json_file.write_text(text.replace(', "', ',\n "') + "\n", encoding="utf-8")


def expected(name):
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", [name for name in WRITERS if "jpeg" not in name])
def test_a_golden_frame_decodes_to_what_it_always_did(name):
    assert described(name, (GOLDEN / f"{name}.frame").read_bytes()) == expected(name)


def test_a_golden_jpeg_decodes_to_nearly_what_it_always_did():
    decoded = described("v1-request-jpeg75", (GOLDEN / "v1-request-jpeg75.frame").read_bytes())
    golden = expected("v1-request-jpeg75")
    (tensor,), (golden_tensor,) = decoded.pop("tensors"), golden.pop("tensors")
    step = max(high - low for low, high in golden_tensor["ranges"]) / 255
    difference = np.subtract(tensor.pop("values"), golden_tensor.pop("values"))
    assert np.abs(difference).max() <= JPEG_TOLERANCE_STEPS * step
    assert tensor == golden_tensor
    assert decoded == golden


@pytest.mark.parametrize(
    "name", ["v1-request-float32-none", "v1-request-u8-none", "v1-reply-predictions", "v1-reply-logits"]
)
def test_uncompressed_frames_are_still_written_the_same(name):
    assert WRITERS[name]() == (GOLDEN / f"{name}.frame").read_bytes()


def test_every_golden_file_is_tested_and_small():
    files = {path.stem: path for path in GOLDEN.glob("*.frame")}
    assert set(files) == set(WRITERS)
    assert all(path.stat().st_size < 4096 for path in files.values())
