"""Frames as a hostile or broken sender would make them, reproducible by seed.

Each is an honest frame with a lie in one or more places, and most are sealed again with a valid checksum, or nothing
would get past it. The layout is written out here once more, so that a mistake in wire.py cannot hide itself.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import lz4.block
import numpy as np
import zstandard
from PIL import Image

from split_inference.codec_profile import CodecProfile
from split_inference.feature_codec import EncodedTensor, FeatureCodec
from split_inference.wire import (
    MAX_RAW_BYTES,
    FeatureFrame,
    Prediction,
    ReplyFrame,
    encode_frame,
    encode_reply,
)

# What honest frames name: a target that looks further than the wire has to serve a model like this to be reached.
SEED_DIGEST = bytes.fromhex("ab" * 16)
SEED_SPLIT_POINT = "middle"
SEED_SHAPES = ((1, 2, 2, 2), (3, 2, 2, 2), (2, 16, 9, 7), (1, 5, 33), (4, 10))
SEED_PROFILES = ("float32+none", "float32+lz4", "float16+zstd", "u1", "u2", "u3c", "u4+zstd", "u8c+lz4hc", "jpeg50")

_INTERESTING = (
    0,
    1,
    2,
    3,
    7,
    8,
    9,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x7FFF,
    0xFFFF,
    0x10000,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 3.4028235e38, -3.4028235e38, float("inf"), float("-inf"), float("nan"))
_U32 = 0xFFFF_FFFF


@dataclass(kw_only=True, slots=True)
class RawTensor:
    """A tensor record whose counts may differ from what they count."""

    dtype: int = 0
    dims: int
    channel_axis: int
    quantizer_id: int
    bits: int
    compressor_id: int
    range_count: int
    payload_bytes: int
    shape: list[int]
    ranges: list[float]
    payload: bytes

    @classmethod
    def of(cls, tensor: EncodedTensor) -> RawTensor:
        return cls(
            dims=len(tensor.shape),
            channel_axis=tensor.channel_axis,
            quantizer_id=tensor.quantizer_id,
            bits=tensor.bits,
            compressor_id=tensor.compressor_id,
            range_count=len(tensor.ranges),
            payload_bytes=len(tensor.payload),
            shape=list(tensor.shape),
            ranges=tensor.ranges.ravel().tolist(),
            payload=bytes(tensor.payload),
        )

    def to_bytes(self) -> bytes:
        bytes_of_header = (self.dtype, self.dims, self.channel_axis, self.quantizer_id, self.bits, self.compressor_id)
        header = struct.pack(
            "<6BII", *(value & 0xFF for value in bytes_of_header), self.range_count & _U32, self.payload_bytes & _U32
        )
        shape = struct.pack(f"<{len(self.shape)}I", *(length & _U32 for length in self.shape))
        return header + shape + np.array(self.ranges, "<f4").tobytes() + self.payload


@dataclass(kw_only=True, slots=True)
class RawFrame:
    """A request frame whose counts may differ from what they count."""

    samples: int
    tensor_count: int
    split_point_bytes: int
    deadline: int = 2**32 - 1
    split_point: bytes = SEED_SPLIT_POINT.encode()
    tensors: list[RawTensor] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        counts = (self.samples & 0xFFFF, self.tensor_count & 0xFF, self.split_point_bytes & 0xFF, self.deadline & _U32)
        header = struct.pack("<4sBBHBBI16s", b"SPLT", 1, 1, *counts, SEED_DIGEST)
        return sealed(b"".join([header, self.split_point, *(tensor.to_bytes() for tensor in self.tensors), bytes(4)]))


def sealed(data: bytes) -> bytes:
    """`data` with its last four bytes replaced by the checksum of the others."""
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))


class HostileFrames:
    """An endless supply, each made by one method chosen by weight; all chance comes from `seed`."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        rng = np.random.default_rng(seed)
        tensors = [
            FeatureCodec(CodecProfile.parse(profile)).encode(np.maximum(rng.normal(size=shape), 0).astype(np.float32))
            for profile in SEED_PROFILES
            for shape in SEED_SHAPES
        ]
        self._tensors = [RawTensor.of(tensor) for tensor in tensors]
        self.requests = [honest_request(tensor) for tensor in tensors]
        self.replies = [honest_reply(samples, columns) for samples in (1, 3) for columns in (1, 5)]
        self._bombs = _bombs()
        self._methods: dict[str, tuple[Callable[[], bytes], float]] = {
            "random bytes": (self._noise, 0.05),
            "random body": (self._noise_behind_prefix, 0.05),
            "truncated": (self._truncated, 0.1),
            "extended": (self._extended, 0.05),
            "flipped bits": (self._flipped_bits, 0.15),
            "flipped bytes": (self._flipped_bytes, 0.1),
            "planted numbers": (self._planted, 0.15),
            "spliced": (self._spliced, 0.05),
            "lying fields": (self._lying, 0.2),
            "lying ranges": (self._lying_ranges, 0.04),
            "huge dimensions": (self._huge, 0.03),
            "bombs": (self._bomb, 0.03),
        }

    def next(self) -> tuple[str, bytes, bool]:
        """The next frame: its class, its bytes, and whether its checksum is valid."""
        names = list(self._methods)
        (name,) = self._random.choices(names, [self._methods[name][1] for name in names])
        data = self._methods[name][0]()
        if len(data) >= 4 and self._random.random() < 0.8:
            data = sealed(data)
        return name, data, len(data) >= 4 and data == sealed(data)

    def _any(self) -> bytes:
        return self._random.choice(self.requests if self._random.random() < 0.75 else self.replies)

    def _noise(self) -> bytes:
        return self._random.randbytes(self._random.randrange(300))

    def _noise_behind_prefix(self) -> bytes:
        kept = self._random.randrange(6, 34)
        return self._any()[:kept] + self._random.randbytes(self._random.randrange(200))

    def _truncated(self) -> bytes:
        data = self._any()
        return data[: self._random.randrange(len(data))]

    def _extended(self) -> bytes:
        return self._any() + self._random.randbytes(self._random.randint(1, 9))

    def _flipped_bits(self) -> bytes:
        data = bytearray(self._any())
        for _ in range(self._random.choice((1, 1, 1, 2, 5, 20))):
            data[self._place(data)] ^= 1 << self._random.randrange(8)
        return bytes(data)

    def _flipped_bytes(self) -> bytes:
        data = bytearray(self._any())
        for _ in range(self._random.choice((1, 1, 2, 8))):
            data[self._place(data)] = self._random.randrange(256)
        return bytes(data)

    def _planted(self) -> bytes:
        data = bytearray(self._any())
        layout = self._random.choice(("<B", "<H", "<I"))
        value = self._random.choice(_INTERESTING) & (256 ** struct.calcsize(layout) - 1)
        struct.pack_into(layout, data, min(self._place(data), len(data) - 4), value)
        return bytes(data)

    def _place(self, data: bytes | bytearray) -> int:
        # Half of the changes hit the headers, which are a small part of a frame.
        return self._random.randrange(min(90, len(data)) if self._random.random() < 0.5 else len(data))

    def _spliced(self) -> bytes:
        first, second = self._any(), self._any()
        return first[: self._random.randrange(len(first))] + second[self._random.randrange(len(second)) :]

    def _honest_copy(self, count: int) -> RawFrame:
        first = self._random.choice(self._tensors)
        alike = [tensor for tensor in self._tensors if tensor.shape[0] == first.shape[0]]
        tensors = [first, *(self._random.choice(alike) for _ in range(count - 1))]
        tensors = [replace(tensor, shape=[*tensor.shape], ranges=[*tensor.ranges]) for tensor in tensors]
        return RawFrame(samples=first.shape[0], tensor_count=count, split_point_bytes=6, tensors=tensors)

    def _lying(self) -> bytes:
        frame = self._honest_copy(self._random.choice((1, 1, 2, 16)))
        for _ in range(self._random.choice((1, 1, 1, 2, 3))):
            tensor = self._random.choice(frame.tensors)
            value = self._random.choice((*_INTERESTING, self._random.randrange(300)))
            if self._random.random() < 0.25:
                setattr(frame, self._random.choice(("samples", "tensor_count", "split_point_bytes", "deadline")), value)
            elif self._random.random() < 0.3:
                tensor.shape[self._random.randrange(len(tensor.shape))] = value
            elif self._random.random() < 0.1:
                tensor.payload = self._random.randbytes(len(tensor.payload))
            else:
                lie = self._random.choice(
                    (
                        "dtype",
                        "dims",
                        "channel_axis",
                        "quantizer_id",
                        "bits",
                        "compressor_id",
                        "range_count",
                        "payload_bytes",
                    )
                )
                setattr(tensor, lie, value if self._random.random() < 0.4 else self._random.randrange(10))
        return frame.to_bytes()

    def _lying_ranges(self) -> bytes:
        frame = self._honest_copy(1)
        tensor = frame.tensors[0]
        for _ in range(self._random.choice((1, 2, 4))):
            tensor.ranges.insert(self._random.randint(0, len(tensor.ranges)), self._random.choice(_FLOATS))
            if self._random.random() < 0.7:
                del tensor.ranges[self._random.randrange(len(tensor.ranges))]
        tensor.range_count = len(tensor.ranges) // 2
        return frame.to_bytes()

    def _huge(self) -> bytes:
        frame = self._honest_copy(1)
        tensor = frame.tensors[0]
        # Products that wrap around 2**32 or 2**64 to something small, and such that do not.
        tensor.shape = [
            frame.samples,
            *self._random.choices((2**16, 2**31, 2**32 - 1, 2**8, 1, 3), k=self._random.randint(1, 9)),
        ]
        tensor.dims = len(tensor.shape)
        tensor.channel_axis = min(tensor.channel_axis, 1)
        return frame.to_bytes()

    def _bomb(self) -> bytes:
        compressor_id, quantizer_id, payload = self._random.choice(self._bombs)
        elements = self._random.choice((8, 1024, 2**20)) if self._random.random() < 0.98 else MAX_RAW_BYTES // 4
        bits = {0: 32, 1: 16}.get(quantizer_id, self._random.choice((1, 4, 8)))
        tensor = RawTensor(
            dims=2,
            channel_axis=int(quantizer_id > 2),
            quantizer_id=quantizer_id,
            bits=8 if quantizer_id == 4 else bits,
            compressor_id=compressor_id,
            range_count=int(quantizer_id >= 2),
            payload_bytes=len(payload),
            shape=[1, elements],
            ranges=[0.0, 1.0] if quantizer_id >= 2 else [],
            payload=payload,
        )
        return RawFrame(samples=1, tensor_count=1, split_point_bytes=6, tensors=[tensor]).to_bytes()


def honest_request(*tensors: EncodedTensor) -> bytes:
    return encode_frame(
        FeatureFrame(
            model_digest=SEED_DIGEST,
            split_point=SEED_SPLIT_POINT,
            sample_count=tensors[0].shape[0],
            deadline_budget_ms=250,
            tensors=tensors,
        )
    )


def honest_reply(samples: int, columns: int) -> bytes:
    row = tuple(Prediction(index=index, label="größe " * index, score=1 / (index + 1)) for index in range(columns))
    with_logits = samples == columns
    return encode_reply(
        ReplyFrame(
            model_digest=SEED_DIGEST,
            sample_count=samples,
            timings_s={"queue": 0.001, "tail": 0.02},
            predictions=None if with_logits else (row,) * samples,
            logits=np.ones((samples, columns), np.float32) if with_logits else None,
        )
    )


def _bombs() -> list[tuple[int, int, bytes]]:
    """Payloads that inflate to far more than they are, or lie of it, as (compressor id, quantizer id, payload)."""
    zeros = bytes(2**24)
    zstd = zstandard.ZstdCompressor(level=1)
    honest = bytearray(zstd.compress(zeros[: 2**20]))
    payloads = [(1, lz4.block.compress(zeros, store_size=False)), (3, zstd.compress(zeros)), (3, bytes(honest))]
    # The claimed size of a one-segment frame lies behind magic and descriptor, in four bytes from 64 KiB upwards.
    for claim in (8, 1024, 2**17, 2**20 + 1, 2**24, 2**32 - 1):
        struct.pack_into("<I", honest, 5, claim)
        payloads.append((3, bytes(honest)))
    payloads.append((3, zstandard.ZstdCompressor(level=1, write_content_size=False).compress(zeros[:1024])))
    payloads.append((3, zstd.compress(zeros[:1024]) * 2))
    payloads.append((3, b"\x50\x2a\x4d\x18" + struct.pack("<I", 1024) + bytes(1024)))
    wide = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
    payloads.append((3, zstandard.ZstdCompressor(compression_params=wide).compress(zeros)))
    for progressive in (False, True):
        file = io.BytesIO()
        Image.new("L", (4096, 4096)).save(file, "JPEG", progressive=progressive)
        payloads.append((0, struct.pack("<I", file.tell()) + file.getvalue()))
    return [(compressor_id, quantizer_id, payload) for compressor_id, payload in payloads for quantizer_id in range(5)]
