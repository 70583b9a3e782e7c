"""The byte layout of docs/wire-format.md, both ways, and that nothing but a frame is taken for one."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.fuzz_wire import fuzz
from split_inference import wire
from split_inference.codec_profile import CodecProfile
from split_inference.errors import MalformedFrameError, TooLargeError
from split_inference.feature_codec import EncodedTensor, FeatureCodec, decode_tensor
from split_inference.wire import (
    FeatureFrame,
    Prediction,
    ReplyFrame,
    best_class,
    decode_frame,
    decode_reply,
    encode_frame,
    encode_reply,
)


def f32(values):
    return np.array(values, np.float32)


DIGEST = bytes(range(16))
NO_RANGES = np.empty((0, 2), np.float32)


def sealed(body):
    return body + struct.pack("<I", zlib.crc32(body))


def resealed(data):
    return sealed(bytes(data[:-4]))


def tensor(**changes):
    fields: dict[str, Any] = {
        "shape": (1, 2),
        "dtype": "float32",
        "quantizer_id": 0,
        "bits": 32,
        "compressor_id": 0,
        "channel_axis": 0,
        "ranges": NO_RANGES,
        "payload": bytes.fromhex("0000803f00000040"),
    }
    return EncodedTensor(**(fields | changes))


def frame(*tensors, **changes):
    tensors = tensors or (tensor(),)
    fields: dict[str, Any] = {
        "model_digest": DIGEST,
        "split_point": "a",
        "sample_count": tensors[0].shape[0],
        "deadline_budget_ms": None,
        "tensors": tensors,
    }
    return FeatureFrame(**(fields | changes))


def reply(**changes):
    fields: dict[str, Any] = {
        "model_digest": DIGEST,
        "sample_count": 1,
        "timings_s": {},
        "predictions": ((Prediction(index=7, label="cat", score=0.5),),),
        "logits": None,
    }
    return ReplyFrame(**(fields | changes))


def same_tensor(one, other):
    return (
        (one.shape, one.dtype, one.quantizer_id, one.bits, one.compressor_id, one.channel_axis)
        == (other.shape, other.dtype, other.quantizer_id, other.bits, other.compressor_id, other.channel_axis)
        and one.ranges.tobytes() == other.ranges.tobytes()
        and one.ranges.shape == other.ranges.shape
        and bytes(one.payload) == bytes(other.payload)
    )


def same_frame(one, other):
    return (one.model_digest, one.split_point, one.sample_count, one.deadline_budget_ms) == (
        other.model_digest,
        other.split_point,
        other.sample_count,
        other.deadline_budget_ms,
    ) and all(same_tensor(*pair) for pair in zip(one.tensors, other.tensors, strict=True))


def same_reply(one, other):
    return (one.model_digest, one.sample_count, dict(one.timings_s), one.predictions) == (
        other.model_digest,
        other.sample_count,
        dict(other.timings_s),
        other.predictions,
    ) and (one.logits is other.logits is None or one.logits.tobytes() == other.logits.tobytes())


REQUESTS = {
    "one float32 tensor": (
        frame(),
        "53504c54 01 01"  # SPLT, version 1, a request
        "0100 01 01 ffffffff 000102030405060708090a0b0c0d0e0f"  # 1 sample, 1 tensor, 1 byte of name, no deadline
        "61"  # "a"
        "00 02 00 00 20 00 00000000 08000000"  # float32, 2 axes, stored, no ranges, 8 bytes
        "01000000 02000000"
        "0000803f 00000040",  # 1.0 and 2.0
    ),
    "two samples, per channel, with a deadline": (
        frame(
            tensor(
                shape=(2, 3, 1),
                dtype="float16",
                quantizer_id=3,
                bits=4,
                compressor_id=1,
                channel_axis=1,
                ranges=f32([[0, 1], [-2, 2], [0.5, 0.75]]),
                payload=b"\xaa\xbb",
            ),
            split_point="größe",
            deadline_budget_ms=250,
        ),
        "53504c54 01 01"
        "0200 01 07 fa000000 000102030405060708090a0b0c0d0e0f"
        "6772c3b6c39f65"
        "01 03 01 03 04 01 03000000 02000000"
        "02000000 03000000 01000000"
        "00000000 0000803f 000000c0 00000040 0000003f 0000403f"
        "aabb",
    ),
    "two tensors": (
        frame(tensor(payload=b"x"), tensor(shape=(1, 1), quantizer_id=200, bits=255, compressor_id=99, payload=b"")),
        "53504c54 01 01"
        "0100 02 01 ffffffff 000102030405060708090a0b0c0d0e0f"
        "61"
        "00 02 00 00 20 00 00000000 01000000 01000000 02000000 78"
        "00 02 00 c8 ff 63 00000000 00000000 01000000 01000000",
    ),
}
REPLIES = {
    "one prediction": (
        reply(),
        "53504c54 01 02"  # SPLT, version 1, a reply
        "0100 01 00 01000000 000102030405060708090a0b0c0d0e0f"  # 1 sample, predictions, no timings, 1 a sample
        "07000000 0000003f 0300 636174",  # index 7, score 0.5, "cat"
    ),
    "logits and timings": (
        reply(predictions=None, logits=f32([[1, -2], [0, 0.5]]), sample_count=2, timings_s={"tail": 0.5, "é": 0}),
        "53504c54 01 02"
        "0200 02 02 02000000 000102030405060708090a0b0c0d0e0f"
        "04 7461696c 000000000000e03f"
        "02 c3a9 0000000000000000"
        "0000803f 000000c0 00000000 0000003f",
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_and_its_bytes_are_each_others_image(name):
    value, body = REQUESTS[name]
    data = sealed(bytes.fromhex(body))
    assert encode_frame(value) == data
    assert same_frame(decode_frame(data), value)


@pytest.mark.parametrize("name", REPLIES)
def test_a_reply_and_its_bytes_are_each_others_image(name):
    value, body = REPLIES[name]
    data = sealed(bytes.fromhex(body))
    assert encode_reply(value) == data
    assert same_reply(decode_reply(data), value)


EVERY_FRAME = [
    *(pytest.param(decode_frame, sealed(bytes.fromhex(body)), id=name) for name, (_, body) in REQUESTS.items()),
    *(pytest.param(decode_reply, sealed(bytes.fromhex(body)), id=name) for name, (_, body) in REPLIES.items()),
]


@pytest.mark.parametrize(("decode", "data"), EVERY_FRAME)
def test_every_prefix_is_refused_sealed_or_not(decode, data):
    for end in range(len(data)):
        with pytest.raises(MalformedFrameError):
            decode(data[:end])
        with pytest.raises(MalformedFrameError):
            decode(sealed(data[: min(end, len(data) - 5)]))


@pytest.mark.parametrize(("decode", "data"), EVERY_FRAME)
def test_one_trailing_byte_is_refused_sealed_or_not(decode, data):
    with pytest.raises(MalformedFrameError):
        decode(data + b"\0")
    with pytest.raises(MalformedFrameError, match="1 bytes follow"):
        decode(sealed(data[:-4] + b"\0"))


@pytest.mark.parametrize(("decode", "data"), EVERY_FRAME)
def test_any_flipped_bit_is_noticed(decode, data):
    for position in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(MalformedFrameError):
            decode(bytes(damaged))


@pytest.mark.parametrize(
    ("offset", "patch", "reason"),
    [
        (0, b"SPLX", "not a frame"),
        (4, b"\x00", "wire version 0; accepted are"),
        (4, b"\x02", "wire version 2; accepted are"),
        (5, b"\x02", "kind 2"),
        (6, b"\x00\x00", "needs samples"),
        (6, b"\x02\x00", "a tensor of 1 samples in a frame of 2"),
        (6, b"\x01\x01", "a tensor of 1 samples in a frame of 257"),
        (8, b"\x00", "0 tensors"),
        (8, b"\x11", "17 tensors"),
        (30, b"\xff", "not UTF-8"),
        (31, b"\x02", "unknown dtype 2"),
        (32, b"\x00", "0 dimensions"),
        (32, b"\x09", "9 dimensions"),
        (33, b"\x02", "channel axis 2 of 2"),
        (37, b"\x01", "ends inside"),
        (37, b"\xff\xff\xff\xff", "4294967295 ranges"),
        (41, b"\xff\xff\xff\xff", "ends inside a payload"),
        (41, b"\x07", "1 bytes follow"),
        (49, b"\x00\x00\x00\x00", "at least one element"),
        (49, b"\xff\xff\xff\xff", "bytes as float32"),
    ],
)
def test_a_sealed_lie_is_refused_with_its_reason(offset, patch, reason):
    data = bytearray(encode_frame(frame()))
    data[offset : offset + len(patch)] = patch
    with pytest.raises(MalformedFrameError, match=reason):
        decode_frame(resealed(data))


def test_an_empty_split_point_is_refused():
    data = encode_frame(frame())
    with pytest.raises(MalformedFrameError, match="split point must be"):
        decode_frame(resealed(data[:9] + b"\0" + data[10:30] + data[31:]))


@pytest.mark.parametrize(
    ("offset", "patch", "reason"),
    [
        (5, b"\x01", "kind 1"),
        (6, b"\x00\x00", "0 samples"),
        (6, b"\x01\x01", "257 samples"),
        (8, b"\x03", "unknown content 3"),
        (9, b"\x21", "33 timings"),
        (9, b"\x01", "ends inside a timing"),
        (10, b"\x00", "without columns"),
        (10, b"\xe9\x03", "1001 predictions"),
        (34, b"\x00\x00\xc0\x7f", "not finite"),
        (38, b"\x04", "ends inside a label"),
        (40, b"\xff", "not UTF-8"),
    ],
)
def test_a_sealed_lie_in_a_reply_is_refused_with_its_reason(offset, patch, reason):
    data = bytearray(encode_reply(reply()))
    data[offset : offset + len(patch)] = patch
    with pytest.raises(MalformedFrameError, match=reason):
        decode_reply(resealed(data))


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0])
def test_impossible_timings_are_refused_both_ways(seconds):
    with pytest.raises(ValueError, match="finite seconds"):
        reply(timings_s={"tail": seconds})
    data = encode_reply(reply(timings_s={"tail": 0.0}))
    with pytest.raises(MalformedFrameError, match="finite seconds"):
        decode_reply(sealed(data[:35] + struct.pack("<d", seconds) + data[43:-4]))


def test_two_timings_of_one_name_are_refused():
    data = encode_reply(reply(timings_s={"a": 1.0, "b": 2.0}))
    with pytest.raises(MalformedFrameError, match="same name"):
        decode_reply(resealed(data.replace(b"\x01b", b"\x01a")))


@pytest.mark.parametrize(
    ("low", "high"),
    [(1, 1), (1, 0), (np.nan, 1), (0, np.nan), (0, np.inf), (-np.inf, 0), (-np.inf, np.inf), (-3e38, 3e38)],
)
def test_ranges_must_be_finite_and_rising_with_a_finite_width(low, high):
    data = encode_frame(frame(tensor(ranges=f32([[0.25, 4.0]]))))
    assert data.count(f32([0.25, 4.0]).tobytes()) == 1
    lying = data.replace(f32([0.25, 4.0]).tobytes(), f32([low, high]).tobytes())
    with pytest.raises(MalformedFrameError, match="ranges must be finite"):
        decode_frame(resealed(lying))


LABELS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


@st.composite
def frames(draw):
    samples = draw(st.integers(1, 4))
    tensors = []
    for _ in range(draw(st.integers(1, 4))):
        shape = (samples, *draw(st.lists(st.integers(1, 5), max_size=7)))
        lows = draw(st.lists(st.floats(-1e6, 1e6), max_size=5))
        tensors.append(
            tensor(
                shape=shape,
                dtype=draw(st.sampled_from(["float32", "float16"])),
                quantizer_id=draw(st.integers(0, 255)),
                bits=draw(st.integers(0, 255)),
                compressor_id=draw(st.integers(0, 255)),
                channel_axis=draw(st.integers(0, len(shape) - 1)),
                ranges=np.array([(low, low + 1) for low in lows], np.float32).reshape(-1, 2),
                payload=draw(st.binary(max_size=50)),
            )
        )
    deadline = draw(st.none() | st.integers(0, 2**32 - 2))
    return frame(
        *tensors,
        split_point=draw(NAMES),
        model_digest=draw(st.binary(min_size=16, max_size=16)),
        deadline_budget_ms=deadline,
    )


@given(frames())
def test_decoding_inverts_encoding(value):
    data = encode_frame(value)
    assert same_frame(decode_frame(data), value)
    assert encode_frame(decode_frame(data)) == data


@st.composite
def replies(draw):
    samples, columns = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    timings_s = draw(st.dictionaries(NAMES, st.floats(0, 1e9), max_size=5))
    digest = draw(st.binary(min_size=16, max_size=16))
    if draw(st.booleans()):
        numbers = st.lists(st.floats(width=32), min_size=samples * columns, max_size=samples * columns)
        logits = np.array(draw(numbers), np.float32).reshape(samples, columns)
        return reply(model_digest=digest, sample_count=samples, timings_s=timings_s, predictions=None, logits=logits)
    scores = st.floats(allow_nan=False, allow_infinity=False, width=32)
    answers = st.builds(Prediction, index=st.integers(0, 2**32 - 1), label=LABELS, score=scores)
    rows = tuple(tuple(draw(answers) for _ in range(columns)) for _ in range(samples))
    return reply(model_digest=digest, sample_count=samples, timings_s=timings_s, predictions=rows)


@given(replies())
def test_decoding_a_reply_inverts_encoding_it(value):
    data = encode_reply(value)
    assert same_reply(decode_reply(data), value)
    assert encode_reply(decode_reply(data)) == data


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data))])
def test_any_bytes_like_object_is_decoded(wrap):
    data = encode_frame(frame())
    assert same_frame(decode_frame(wrap(data)), frame())
    assert same_reply(decode_reply(wrap(encode_reply(reply()))), reply())


@pytest.mark.parametrize("data", [b"", memoryview(b""), memoryview(b"SPLT"), np.zeros((4, 4)).data])
def test_what_is_no_row_of_bytes_is_refused_too(data):
    with pytest.raises(MalformedFrameError):
        decode_frame(data)


def test_a_view_with_gaps_is_decoded_like_the_bytes_it_shows():
    data = encode_frame(frame())
    spread = bytearray(2 * len(data))
    spread[::2] = data
    assert same_frame(decode_frame(memoryview(spread)[::2]), frame())


def test_payloads_are_views_into_the_frame_and_ranges_are_copies():
    buffer = bytearray(encode_frame(frame(tensor(ranges=f32([[0, 1]])))))
    (decoded,) = decode_frame(memoryview(buffer)).tensors
    buffer[:] = bytes(len(buffer))
    assert bytes(decoded.payload) == bytes(8)
    assert decoded.ranges.tolist() == [[0, 1]]


def test_logits_of_a_reply_outlive_its_bytes():
    buffer = bytearray(encode_reply(reply(predictions=None, logits=f32([[1, 2]]))))
    decoded = decode_reply(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert decoded.logits is not None
    assert decoded.logits.tolist() == [[1, 2]]


def test_unknown_ids_are_left_for_the_codec_to_judge():
    decoded = decode_frame(encode_frame(frame(tensor(quantizer_id=250, bits=77, compressor_id=251))))
    assert (decoded.tensors[0].quantizer_id, decoded.tensors[0].bits, decoded.tensors[0].compressor_id) == (
        250,
        77,
        251,
    )


def huge_frame(**changes):
    big = tensor(shape=(1, wire.MAX_RAW_BYTES // 4), payload=b"")
    return frame(*changes.pop("tensors", (big,)), **changes)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (frame(tensor(shape=(257, 1))), "257 samples"),
        (frame(*[tensor()] * 17), "17 tensors"),
        (frame(tensor(shape=(1,) * 9)), "9 dimensions"),
        (frame(tensor(ranges=f32([[0, 1]] * (wire.MAX_RANGES + 1)))), "524289 ranges"),
        (frame(tensor(shape=(1, wire.MAX_RAW_BYTES // 4 + 1))), "67108868"),
        (frame(*[tensor(shape=(1, wire.MAX_RAW_BYTES // 16))] * 5), "tensors are"),
        (frame(tensor(payload=bytes(wire.MAX_FRAME_BYTES))), "frame is"),
    ],
)
def test_a_frame_beyond_a_limit_is_not_sent(value, reason):
    with pytest.raises(TooLargeError, match=reason):
        encode_frame(value)


def test_a_frame_at_its_limits_is_sent_and_taken():
    shape = (wire.MAX_SAMPLES, 1, 1, 1, 1, 1, 1, wire.MAX_RAW_BYTES // 4 // wire.MAX_SAMPLES // wire.MAX_TENSORS)
    ranges = f32([[0, 1]] * (wire.MAX_RANGES // 4))
    value = frame(*[tensor(shape=shape, ranges=ranges)] * wire.MAX_TENSORS, split_point="s" * 255)
    assert same_frame(decode_frame(encode_frame(value)), value)


def test_more_bytes_than_any_frame_has_are_refused_before_they_are_read():
    data = bytes(wire.MAX_FRAME_BYTES + 1)
    with pytest.raises(MalformedFrameError, match=r"expected 10\.\.33554432"):
        decode_frame(data)


@pytest.mark.parametrize("shape", [(1, 2**31, 2**31), (1, 2**16, 2**16), (1, *[2**32 - 1] * 7), (1, 2**24 + 1)])
def test_huge_dimensions_are_refused_without_taking_memory(shape):
    data = bytearray(encode_frame(frame(tensor(shape=(1,) * len(shape)))))
    struct.pack_into(f"<{len(shape)}I", data, 45, *shape)
    data = resealed(data)
    tracemalloc.start()
    with pytest.raises(MalformedFrameError, match="bytes as float32"):
        decode_frame(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**10


@pytest.mark.parametrize(
    "changes",
    [
        {"model_digest": bytes(15)},
        {"model_digest": bytes(32)},
        {"split_point": ""},
        {"split_point": "s" * 256},
        {"split_point": "ß" * 128},
        {"sample_count": 0},
        {"sample_count": 2},
        {"deadline_budget_ms": -1},
        {"deadline_budget_ms": 2**32 - 1},
        {"tensors": ()},
        {"tensors": (tensor(), tensor(shape=(2, 1)))},
    ],
)
def test_a_frame_refuses_nonsense(changes):
    with pytest.raises(ValueError, match=r"digest|split point|samples|deadline"):
        frame(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_digest": b""},
        {"predictions": None},
        {"logits": f32([[1]])},
        {"sample_count": 2},
        {"predictions": ((),)},
        {"predictions": None, "logits": f32([1])},
        {"predictions": None, "logits": np.empty((1, 0), np.float32)},
        {"timings_s": {"": 1.0}},
        {"timings_s": {"s" * 256: 1.0}},
    ],
)
def test_a_reply_refuses_nonsense(changes):
    with pytest.raises(ValueError, match=r"digest|reply|logits|timing"):
        reply(**changes)


@pytest.mark.parametrize(
    "changes", [{"index": -1}, {"index": 2**32}, {"score": float("nan")}, {"score": 1e39}, {"label": "s" * 65_536}]
)
def test_a_prediction_refuses_nonsense(changes):
    with pytest.raises(ValueError, match=r"index|score|label"):
        Prediction(**({"index": 1, "label": "cat", "score": 0.5} | changes))


@pytest.mark.parametrize(
    "value",
    [
        reply(sample_count=257, predictions=reply().predictions * 257),
        reply(predictions=(reply().predictions[0] * 1001,)),
        reply(timings_s={str(stage): 0.0 for stage in range(33)}),
        reply(predictions=None, logits=np.zeros((1, wire.MAX_FRAME_BYTES // 4), np.float32)),
    ],
)
def test_a_reply_beyond_a_limit_is_not_sent(value):
    with pytest.raises(TooLargeError):
        encode_reply(value)


@given(st.binary(max_size=300), st.booleans())
def test_random_bytes_are_frames_or_malformed(body, with_prefix):
    data = sealed((b"SPLT\x01\x01" if with_prefix else b"") + body)
    for decode in (decode_frame, decode_reply):
        with contextlib.suppress(MalformedFrameError):
            decode(data)


@pytest.mark.parametrize("profile", ["float32", "float16", "u2", "u4c", "u8+zstd", "jpeg75"])
def test_features_travel_in_a_frame(profile, rng):
    features = np.maximum(rng.normal(size=(3, 4, 6, 5)), 0).astype(np.float32)
    encoded = FeatureCodec(CodecProfile.parse(profile)).encode(features)
    decoded = decode_frame(encode_frame(frame(encoded, encoded)))
    for travelled in decoded.tensors:
        assert decode_tensor(travelled).tobytes() == decode_tensor(encoded).tobytes()


def test_a_frame_says_less_than_a_hundred_bytes_beside_ranges_and_payload(rng):
    features = np.maximum(rng.normal(size=(1, 64, 8, 8)), 0).astype(np.float32)
    encoded = FeatureCodec(CodecProfile.parse("u2")).encode(features)
    assert len(encode_frame(frame(encoded, split_point="layer3.2"))) - len(encoded.payload) < 100


def test_three_thousand_hostile_frames_raise_nothing_but_our_errors():
    outcome = fuzz(frames=3000, seed=20)
    assert outcome.escapes == []
    assert outcome.escaped == 0
    assert outcome.frames == 3000
    assert outcome.resealed >= 1500


def test_equal_seeds_make_equal_hostile_frames():
    assert fuzz(frames=300, seed=5).counts == fuzz(frames=300, seed=5).counts


def test_versions_and_limits_are_what_clients_were_told():
    assert wire.WIRE_VERSION == 1
    assert wire.ACCEPTED_WIRE_VERSIONS == (1,)
    assert wire.FRAME_MEDIA_TYPE == "application/vnd.split-inference.frame"
    assert wire.REPLY_MEDIA_TYPE == "application/vnd.split-inference.reply"
    assert (wire.MAX_FRAME_BYTES, wire.MAX_RAW_BYTES, wire.MAX_SAMPLES) == (32 * 2**20, 64 * 2**20, 256)
    assert (wire.MAX_TENSORS, wire.MAX_DIMS, wire.MAX_RANGES, wire.DIGEST_BYTES) == (16, 8, 2**19, 16)


def test_the_best_class_alone_is_what_the_whole_reply_says():
    row = (Prediction(index=7, label="seven", score=0.5), Prediction(index=3, label="three", score=0.25))
    timings_s = {"queue": 0.001, "tail": 0.002}
    for predictions, logits in (
        ((row,), None),
        ((row[::-1], row), None),
        (None, np.array([[0.0, 2.0, 1.0]], np.float32)),
    ):
        count = 1 if predictions is None else len(predictions)
        reply = encode_reply(
            ReplyFrame(
                model_digest=bytes(16),
                sample_count=count,
                timings_s=timings_s,
                predictions=predictions,
                logits=logits,
            )
        )
        whole = decode_reply(reply)
        expected = 1 if whole.predictions is None else whole.predictions[0][0].index
        assert best_class(reply) == (expected, timings_s)
        for position in range(len(reply)):
            damaged = bytearray(reply)
            damaged[position] ^= 0x10
            with pytest.raises(MalformedFrameError):
                best_class(bytes(damaged))
            with pytest.raises(MalformedFrameError):
                best_class(reply[:position])
