"""What each codec costs and saves on one feature tensor: whole frames, beside raw LZ4, zstd and memcpy.

Every round runs each contender once, so a busy moment of the machine falls on all of them; medians and the spread
between the 10th and the 90th percentile are over rounds. A whole frame is what a request carries: quantize, pack,
compress, header and checksum one way, all of it back to float32 the other.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lz4.block
import numpy as np
import zstandard
from numpy.typing import NDArray

from split_inference.codec_profile import CodecProfile
from split_inference.feature_codec import FeatureCodec, decode_tensor
from split_inference.figures import Bound, report
from split_inference.wire import DIGEST_BYTES, FeatureFrame, decode_frame, encode_frame

SHAPE = (1, 256, 14, 14)
PROFILES = (
    "float32+none",
    "float16+none",
    "float16+lz4",
    "u8+lz4",
    "u8c+lz4",
    "u4+none",
    "u4+lz4",
    "u4c+lz4",
    "u4+lz4hc",
    "u4+zstd",
    "u4c+zstd",
    "u3+lz4",
    "u2+lz4",
    "u2c+lz4",
    "jpeg75",
)
BOUNDS: dict[str, Bound] = {
    "u4_round_trip_p50_ms": ("<=", 0.25),
    "u4c_round_trip_p50_ms": ("<=", 0.35),
}


@dataclass(kw_only=True)
class Contender:
    """One way to send the features: a function there and one back, and how long they took, in nanoseconds."""

    name: str
    encode: Callable[[], Any]
    decode: Callable[[Any], object]
    encode_ns: list[int] = field(default_factory=list)
    decode_ns: list[int] = field(default_factory=list)
    encoded_bytes: int = 0

    def run_once(self) -> None:
        started_ns = time.perf_counter_ns()
        encoded = self.encode()
        encoded_ns = time.perf_counter_ns()
        self.decode(encoded)
        decoded_ns = time.perf_counter_ns()
        self.encode_ns.append(encoded_ns - started_ns)
        self.decode_ns.append(decoded_ns - encoded_ns)
        self.encoded_bytes = len(encoded)

    def percentiles_ms(self) -> dict[str, list[float]]:
        """10th, 50th and 90th percentile of encoding, decoding and both."""
        both = np.add(self.encode_ns, self.decode_ns)
        times = {"encode": self.encode_ns, "decode": self.decode_ns, "both": both}
        return {name: [float(p) / 1e6 for p in np.percentile(ns, (10, 50, 90))] for name, ns in times.items()}


def synthetic_features(*, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> NDArray[np.float32]:
    """Features as after a ReLU: smooth maps of unequal strength, mostly zero, some channels hardly ever awake."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(*shape[:2], shape[2] + 2, shape[3] + 2)).astype(np.float32)
    smooth = noise[..., :-2, :-2] + 2 * noise[..., 1:-1, 1:-1] + noise[..., 2:, 2:]
    strength = rng.gamma(2.0, 0.4, size=(1, shape[1], 1, 1)).astype(np.float32)
    threshold = rng.normal(1.0, 1.5, size=(1, shape[1], 1, 1)).astype(np.float32)
    features: NDArray[np.float32] = np.maximum((smooth - threshold) * strength, 0)
    return features


def contenders(features: NDArray[np.float32]) -> list[Contender]:
    """Whole frames of each profile, and three ways to move the same float32 bytes without any codec."""
    raw = features.tobytes()
    compressor, decompressor = zstandard.ZstdCompressor(level=3), zstandard.ZstdDecompressor()
    baselines = [
        Contender(name="(memcpy)", encode=lambda: bytearray(raw), decode=bytearray),
        Contender(name="(raw lz4)", encode=lambda: lz4.block.compress(raw), decode=lz4.block.decompress),
        Contender(name="(raw zstd)", encode=lambda: compressor.compress(raw), decode=decompressor.decompress),
    ]
    return [*baselines, *(_whole_frame(profile, features) for profile in PROFILES)]


def _whole_frame(profile: str, features: NDArray[np.float32]) -> Contender:
    codec = FeatureCodec(CodecProfile.parse(profile))

    def encode() -> bytes:
        frame = FeatureFrame(
            model_digest=bytes(DIGEST_BYTES),
            split_point="layer3",
            sample_count=len(features),
            deadline_budget_ms=None,
            tensors=(codec.encode(features),),
        )
        return encode_frame(frame)

    def decode(data: bytes) -> object:
        return [decode_tensor(tensor) for tensor in decode_frame(data).tensors]

    return Contender(name=profile, encode=encode, decode=decode)


def table(rows: Sequence[Contender], features: NDArray[np.float32]) -> str:
    """Plain text, a line per contender; MB/s count float32 bytes, in while encoding and out while decoding."""
    lines = [
        f"{'codec':14}{'bytes':>9}{'bits/el':>9}{'encode p50':>12}{'decode p50':>12}{'both p50 [p10..p90]':>26}"
        f"{'MB/s in':>10}{'MB/s out':>10}",
    ]
    for row in rows:
        times = row.percentiles_ms()
        encode, decode, both = times["encode"][1], times["decode"][1], times["both"]
        lines.append(
            f"{row.name:14}{row.encoded_bytes:9,}{8 * row.encoded_bytes / features.size:9.2f}"
            f"{encode:9.3f} ms{decode:9.3f} ms{both[1]:10.3f} [{both[0]:.3f}..{both[2]:.3f}]"
            f"{features.nbytes / encode / 1e3:10,.0f}{features.nbytes / decode / 1e3:10,.0f}"
        )
    return "\n".join(lines)


def figures_of(rows: Sequence[Contender], features: NDArray[np.float32]) -> dict[str, float]:
    """Each contender's size and median round trip; the default compressor is left out of a name, as in "u4c"."""
    figures = {"elements": float(features.size), "nonzero_share": float(np.count_nonzero(features) / features.size)}
    for row in rows:
        name = row.name.strip("()").replace(" ", "_").removesuffix("+lz4").replace("+", "_")
        figures[f"{name}_bits_per_element"] = 8 * row.encoded_bytes / features.size
        figures[f"{name}_round_trip_p50_ms"] = row.percentiles_ms()["both"][1]
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_codec", description=__doc__)
    parser.add_argument("--rounds", type=int, default=500, help="times that every codec runs (default 500)")
    parser.add_argument("--features", type=Path, help="float32 features [N, C, H, W] as .npy; default: synthetic")
    parser.add_argument("--seed", type=int, default=0, help="of the synthetic features")
    parser.add_argument("--json", action="store_true", help="figures as JSON on standard output, the rest on error")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if options.features is None:
        features = synthetic_features(seed=options.seed)
    else:
        try:
            features = np.ascontiguousarray(np.load(options.features, allow_pickle=False))
            FeatureCodec(CodecProfile(per_channel=True)).encode(features)
        except (OSError, ValueError) as error:
            parser.error(f"--features {options.features}: {error}")
        features = features.astype(np.float32)
    rows = contenders(features)
    for row in rows:
        row.run_once()
        row.encode_ns.clear()
        row.decode_ns.clear()
    for _ in range(options.rounds):
        for row in rows:
            row.run_once()
    stream = sys.stderr if options.json else sys.stdout
    source = options.features or f"synthetic, seed {options.seed}"
    print(f"features {features.shape} ({source}), {options.rounds} interleaved rounds, one core\n", file=stream)
    print(table(rows, features), end="\n\n", file=stream)
    figures = figures_of(rows, features)
    if options.json:
        print(json.dumps(figures, indent=2))
    return report("bench-codec", figures, BOUNDS, to_stderr=options.json)


if __name__ == "__main__":
    sys.exit(main())
