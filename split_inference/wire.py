"""Bytes on the wire: feature frames and reply frames, and nothing else.

Knows the layout in docs/wire-format.md. Knows no sockets, no HTTP, no torch and no model: a payload is opaque bytes
that only feature_codec can read. Everything is little-endian; decoding parses or raises MalformedFrameError.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from split_inference.errors import MalformedFrameError, TooLargeError
from split_inference.feature_codec import DTYPES, EncodedTensor, raw_bytes

WIRE_VERSION: Final = 1
# A server accepts the version before its own too, so that devices in the field may be updated after it.
ACCEPTED_WIRE_VERSIONS: Final[tuple[int, ...]] = (1,)

FRAME_MEDIA_TYPE: Final = "application/vnd.split-inference.frame"
REPLY_MEDIA_TYPE: Final = "application/vnd.split-inference.reply"

# What a frame may become in memory, as float32: 20 samples of the widest common features (64x112x112).
MAX_RAW_BYTES: Final = 64 * 2**20
# Half of that: features that coding does not even halve are better sent as the input they come from.
MAX_FRAME_BYTES: Final = 32 * 2**20
# A tail gains little from larger batches, and one sender must not hold a replica for seconds.
MAX_SAMPLES: Final = 256
# Live tensors across a cut: one nearly always, a handful in networks with many scales.
MAX_TENSORS: Final = 16
# Images have four axes, video five, windowed attention six.
MAX_DIMS: Final = 8
# 256 samples of 2,048 channels. Decoding needs several arrays of this length; without a limit of their own they could
# take more memory than the tensor they belong to.
MAX_RANGES: Final = 2**19
# A reply of 256 samples with 1,000 answers each is already 5 MB.
MAX_PREDICTIONS: Final = 1000
MAX_TIMINGS: Final = 32

# 128 bits of the SHA-256 rule out accident; the frame is no proof against someone who forges weights.
DIGEST_BYTES: Final = 16

_MAGIC: Final = b"SPLT"
_KIND_FEATURES: Final = 1
_KIND_REPLY: Final = 2
_CONTENT_PREDICTIONS: Final = 1
_CONTENT_LOGITS: Final = 2
_NO_DEADLINE: Final = 0xFFFF_FFFF

_LARGEST_SCORE: Final = float(np.finfo(np.float32).max)

_PREFIX: Final = struct.Struct("<4sBB")  # magic, version, kind
_FRAME_HEADER: Final = struct.Struct("<HBBI16s")  # samples, tensors, split point's bytes, deadline, digest
_TENSOR_HEADER: Final = struct.Struct("<BBBBBBII")  # dtype, dims, axis, quantizer, bits, compressor, R, payload's bytes
_REPLY_HEADER: Final = struct.Struct("<HBBI16s")  # samples, content, timings, columns, digest
_PREDICTION: Final = struct.Struct("<IfH")  # index, score, label's bytes
_TIMING_NAME: Final = struct.Struct("<B")
_SECONDS: Final = struct.Struct("<d")
_CRC: Final = struct.Struct("<I")


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureFrame:
    """One request: the features of some samples at one split point of one model."""

    model_digest: bytes
    """First 16 bytes of the model's SHA-256."""
    split_point: str
    """1..255 bytes of UTF-8."""
    sample_count: int
    deadline_budget_ms: int | None
    """What is left of the sender's patience, never a wall-clock time: clocks of devices differ."""
    tensors: tuple[EncodedTensor, ...]

    def __post_init__(self) -> None:
        _require_digest(self.model_digest)
        if not 1 <= len(self.split_point.encode()) <= 255:
            raise ValueError(f"split point must be 1..255 bytes of UTF-8, got {self.split_point[:40]!r}")
        if self.sample_count < 1 or not self.tensors:
            raise ValueError(f"a frame needs samples and tensors, got {self.sample_count} and {len(self.tensors)}")
        if self.deadline_budget_ms is not None and not 0 <= self.deadline_budget_ms < _NO_DEADLINE:
            raise ValueError(f"deadline budget must be 0..{_NO_DEADLINE - 1} ms, got {self.deadline_budget_ms}")
        for tensor in self.tensors:
            if tensor.shape[0] != self.sample_count:
                raise ValueError(f"a tensor of {tensor.shape[0]} samples in a frame of {self.sample_count}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """One class that the model thinks likely; `score` travels as float32, `label` as at most 65,535 bytes."""

    index: int
    label: str
    score: float

    def __post_init__(self) -> None:
        if not 0 <= self.index < 2**32:
            raise ValueError(f"index must be 0..2**32 - 1, got {self.index}")
        if not abs(self.score) <= _LARGEST_SCORE:
            raise ValueError(f"score must be finite in float32, got {self.score}")
        if len(self.label.encode()) > 0xFFFF:
            raise ValueError(f"label must be at most 65,535 bytes of UTF-8, got {self.label[:40]!r}...")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ReplyFrame:
    """One answer: the best predictions of each sample, or all logits, and where the server's time went."""

    model_digest: bytes
    sample_count: int
    timings_s: Mapping[str, float]
    """Stage, as in "queue" or "tail", to seconds."""
    predictions: tuple[tuple[Prediction, ...], ...] | None
    """Equally many for each sample, best first; None where there are logits."""
    logits: NDArray[np.float32] | None
    """[N, K], or None where there are predictions."""

    def __post_init__(self) -> None:
        _require_digest(self.model_digest)
        if (self.predictions is None) == (self.logits is None):
            raise ValueError("a reply holds either predictions or logits")
        if self.predictions is not None:
            widths = {len(row) for row in self.predictions}
            if len(self.predictions) != self.sample_count or len(widths) != 1 or widths == {0}:
                raise ValueError(f"a reply to {self.sample_count} samples needs equally many predictions for each")
        if self.logits is not None and (
            self.logits.ndim != 2 or len(self.logits) != self.sample_count or self.logits.size == 0
        ):
            raise ValueError(f"logits of {self.sample_count} samples must be [N, K], got {self.logits.shape}")
        for stage, seconds in self.timings_s.items():
            if not (1 <= len(stage.encode()) <= 255 and math.isfinite(seconds) and seconds >= 0):
                raise ValueError(f"a timing needs a name and finite seconds, got {stage[:40]!r}: {seconds}")


def encode_frame(frame: FeatureFrame) -> bytes:
    """Bytes of a feature frame; raises TooLargeError where a stated limit is exceeded."""
    broken = _broken_limit(frame)
    if broken:
        raise TooLargeError(broken)
    split_point = frame.split_point.encode()
    deadline = _NO_DEADLINE if frame.deadline_budget_ms is None else frame.deadline_budget_ms
    parts: list[bytes | memoryview] = [
        _PREFIX.pack(_MAGIC, WIRE_VERSION, _KIND_FEATURES),
        _FRAME_HEADER.pack(frame.sample_count, len(frame.tensors), len(split_point), deadline, frame.model_digest),
        split_point,
    ]
    for tensor in frame.tensors:
        header = _TENSOR_HEADER.pack(
            DTYPES.index(tensor.dtype),
            len(tensor.shape),
            tensor.channel_axis,
            tensor.quantizer_id,
            tensor.bits,
            tensor.compressor_id,
            len(tensor.ranges),
            len(tensor.payload),
        )
        shape = struct.pack(f"<{len(tensor.shape)}I", *tensor.shape)
        parts += [header, shape, tensor.ranges.astype("<f4", copy=False).tobytes(), tensor.payload]
    return _sealed(parts)


def decode_frame(data: bytes | memoryview) -> FeatureFrame:
    """The feature frame that `data` holds; raises MalformedFrameError, and nothing else, where it holds none.

    Payloads are views into `data`, which must live and stay unchanged while they are used. Ids of quantizers and
    compressors are left for `decode_tensor` to judge.
    """
    reader = _Reader(data, kind=_KIND_FEATURES)
    sample_count, tensor_count, split_point_bytes, deadline, digest = reader.unpack(_FRAME_HEADER, "the frame header")
    _require(1 <= tensor_count <= MAX_TENSORS, f"{tensor_count} tensors; expected 1..{MAX_TENSORS}")
    split_point = reader.text(split_point_bytes, "the split point")
    try:
        frame = FeatureFrame(
            model_digest=digest,
            split_point=split_point,
            sample_count=sample_count,
            deadline_budget_ms=None if deadline == _NO_DEADLINE else deadline,
            tensors=tuple([_read_tensor(reader) for _ in range(tensor_count)]),
        )
    except ValueError as error:
        raise MalformedFrameError(str(error)) from None
    reader.finish()
    broken = _broken_limit(frame)
    _require(broken is None, str(broken))
    return frame


def encode_reply(reply: ReplyFrame) -> bytes:
    """Bytes of a reply frame; raises TooLargeError where a stated limit is exceeded."""
    table = reply.logits if reply.predictions is None else reply.predictions
    assert table is not None
    columns = len(table[0])
    if reply.sample_count > MAX_SAMPLES or len(reply.timings_s) > MAX_TIMINGS:
        raise TooLargeError(f"a reply of {reply.sample_count} samples and {len(reply.timings_s)} timings")
    if reply.predictions is not None and columns > MAX_PREDICTIONS:
        raise TooLargeError(f"{columns} predictions a sample; at most {MAX_PREDICTIONS}")
    content = _CONTENT_LOGITS if reply.predictions is None else _CONTENT_PREDICTIONS
    parts: list[bytes | memoryview] = [
        _PREFIX.pack(_MAGIC, WIRE_VERSION, _KIND_REPLY),
        _REPLY_HEADER.pack(reply.sample_count, content, len(reply.timings_s), columns, reply.model_digest),
    ]
    for stage, seconds in reply.timings_s.items():
        name = stage.encode()
        parts += [_TIMING_NAME.pack(len(name)), name, _SECONDS.pack(seconds)]
    if reply.logits is not None:
        parts.append(reply.logits.astype("<f4", copy=False).tobytes())
    for row in reply.predictions or ():
        for answer in row:
            label = answer.label.encode()
            parts += [_PREDICTION.pack(answer.index, answer.score, len(label)), label]
    return _sealed(parts)


def decode_reply(data: bytes | memoryview) -> ReplyFrame:
    """The reply frame that `data` holds, sharing no memory with it; raises MalformedFrameError, and nothing else."""
    reader = _Reader(data, kind=_KIND_REPLY)
    sample_count, content, timing_count, columns, digest = reader.unpack(_REPLY_HEADER, "the reply header")
    _require(1 <= sample_count <= MAX_SAMPLES, f"{sample_count} samples; expected 1..{MAX_SAMPLES}")
    _require(content in (_CONTENT_PREDICTIONS, _CONTENT_LOGITS), f"unknown content {content}")
    _require(timing_count <= MAX_TIMINGS, f"{timing_count} timings; at most {MAX_TIMINGS}")
    _require(columns >= 1, "a reply without columns")
    timings_s = {}
    for _ in range(timing_count):
        (name_bytes,) = reader.unpack(_TIMING_NAME, "a timing")
        name = reader.text(name_bytes, "a timing's name")
        (timings_s[name],) = reader.unpack(_SECONDS, "a timing")
    _require(len(timings_s) == timing_count, "two timings have the same name")
    predictions = logits = None
    if content == _CONTENT_LOGITS:
        logits = reader.floats(sample_count * columns, "logits").reshape(sample_count, columns)
    else:
        _require(columns <= MAX_PREDICTIONS, f"{columns} predictions a sample; at most {MAX_PREDICTIONS}")
        predictions = tuple(
            [tuple([_read_prediction(reader) for _ in range(columns)]) for _ in range(sample_count)],
        )
    reader.finish()
    try:
        return ReplyFrame(
            model_digest=digest,
            sample_count=sample_count,
            timings_s=timings_s,
            predictions=predictions,
            logits=logits,
        )
    except ValueError as error:
        raise MalformedFrameError(str(error)) from None


def best_class(data: bytes | memoryview) -> tuple[int, dict[str, float]]:
    """The first sample's best class in a reply, and the timings, in half of `decode_reply`'s time.

    For whoever reads thousands of replies a second. The checksum vouches for what is not looked at; raises
    MalformedFrameError, and nothing else, for what is no reply.
    """
    reader = _Reader(data, kind=_KIND_REPLY)
    sample_count, content, timing_count, columns, _ = reader.unpack(_REPLY_HEADER, "the reply header")
    if content != _CONTENT_PREDICTIONS or sample_count != 1:
        reply = decode_reply(data)
        if reply.predictions is not None:
            return reply.predictions[0][0].index, dict(reply.timings_s)
        assert reply.logits is not None
        return int(reply.logits[0].argmax()), dict(reply.timings_s)
    _require(columns >= 1, "a reply without columns")
    _require(timing_count <= MAX_TIMINGS, f"{timing_count} timings; at most {MAX_TIMINGS}")
    timings_s = {}
    for _ in range(timing_count):
        (name_bytes,) = reader.unpack(_TIMING_NAME, "a timing")
        name = reader.text(name_bytes, "a timing's name")
        (seconds,) = reader.unpack(_SECONDS, "a timing")
        _require(math.isfinite(seconds) and seconds >= 0, "a timing is no time")
        timings_s[name] = seconds
    index, _, _ = reader.unpack(_PREDICTION, "a prediction")
    return index, timings_s


def _read_tensor(reader: _Reader) -> EncodedTensor:
    header = reader.unpack(_TENSOR_HEADER, "a tensor header")
    dtype, dims, channel_axis, quantizer_id, bits, compressor_id, range_count, payload_bytes = header
    _require(dtype < len(DTYPES), f"unknown dtype {dtype}")
    _require(1 <= dims <= MAX_DIMS, f"{dims} dimensions; expected 1..{MAX_DIMS}")
    _require(range_count <= MAX_RANGES, f"{range_count} ranges; at most {MAX_RANGES}")
    return EncodedTensor(
        shape=struct.unpack(f"<{dims}I", reader.take(4 * dims, "a shape")),
        dtype=DTYPES[dtype],
        quantizer_id=quantizer_id,
        bits=bits,
        compressor_id=compressor_id,
        channel_axis=channel_axis,
        ranges=reader.floats(2 * range_count, "ranges").reshape(range_count, 2),
        payload=reader.take(payload_bytes, "a payload"),
    )


def _read_prediction(reader: _Reader) -> Prediction:
    index, score, label_bytes = reader.unpack(_PREDICTION, "a prediction")
    _require(math.isfinite(score), "a score is not finite")
    return Prediction(index=index, label=reader.text(label_bytes, "a label"), score=score)


def _broken_limit(frame: FeatureFrame) -> str | None:
    if frame.sample_count > MAX_SAMPLES:
        return f"{frame.sample_count} samples; at most {MAX_SAMPLES}"
    if len(frame.tensors) > MAX_TENSORS:
        return f"{len(frame.tensors)} tensors; at most {MAX_TENSORS}"
    dims = max(len(tensor.shape) for tensor in frame.tensors)
    if dims > MAX_DIMS:
        return f"{dims} dimensions; at most {MAX_DIMS}"
    ranges = max(len(tensor.ranges) for tensor in frame.tensors)
    if ranges > MAX_RANGES:
        return f"{ranges} ranges; at most {MAX_RANGES}"
    raw = sum(raw_bytes(tensor.shape) for tensor in frame.tensors)
    if raw > MAX_RAW_BYTES:
        return f"tensors are {raw} bytes as float32; at most {MAX_RAW_BYTES}"
    return None


def _sealed(parts: list[bytes | memoryview]) -> bytes:
    size = sum(map(len, parts)) + _CRC.size
    if size > MAX_FRAME_BYTES:
        raise TooLargeError(f"frame is {size} bytes; at most {MAX_FRAME_BYTES}")
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return b"".join([*parts, _CRC.pack(crc)])


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise MalformedFrameError(otherwise)


def _require_digest(digest: bytes) -> None:
    if len(digest) != DIGEST_BYTES:
        raise ValueError(f"model digest must be {DIGEST_BYTES} bytes, got {len(digest)}")


class _Reader:
    """Walks over a frame whose size, magic, version, kind and checksum it has checked; never beyond its end."""

    def __init__(self, data: bytes | memoryview, *, kind: int) -> None:
        view = memoryview(data)
        smallest = _PREFIX.size + _CRC.size
        _require(
            smallest <= view.nbytes <= MAX_FRAME_BYTES,
            f"frame is {view.nbytes} bytes; expected {smallest}..{MAX_FRAME_BYTES}",
        )
        view = view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
        magic, version, frame_kind = _PREFIX.unpack_from(view)
        _require(magic == _MAGIC, f"not a frame: starts with {magic!r}")
        _require(version in ACCEPTED_WIRE_VERSIONS, f"wire version {version}; accepted are {ACCEPTED_WIRE_VERSIONS}")
        _require(frame_kind == kind, f"frame of kind {frame_kind}; expected {kind}")
        (crc,) = _CRC.unpack_from(view, len(view) - _CRC.size)
        self._view = view[: -_CRC.size]
        _require(crc == zlib.crc32(self._view), "checksum differs: the frame was damaged on its way")
        self._position = _PREFIX.size

    def take(self, count: int, what: str) -> memoryview:
        start, end = self._position, self._position + count
        _require(end <= len(self._view), f"frame ends inside {what}")
        self._position = end
        return self._view[start:end]

    def unpack(self, layout: struct.Struct, what: str) -> tuple[Any, ...]:
        return layout.unpack(self.take(layout.size, what))

    def text(self, count: int, what: str) -> str:
        try:
            return str(self.take(count, what), "utf-8")
        except UnicodeDecodeError:
            raise MalformedFrameError(f"{what} is not UTF-8") from None

    def floats(self, count: int, what: str) -> NDArray[np.float32]:
        """A copy: where floats lie in a frame they need not be aligned."""
        return np.frombuffer(self.take(4 * count, what), "<f4").astype(np.float32)

    def finish(self) -> None:
        left = len(self._view) - self._position
        _require(left == 0, f"{left} bytes follow the last field")
