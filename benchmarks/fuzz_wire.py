"""Hostile frames against everything that reads bytes from strangers, and the memory that one decode takes.

A target is a name and a function from bytes to the name of what came of them; whatever such a function raises has
escaped.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.fuzz_target import Target
from benchmarks.hostile_frames import HostileFrames, honest_request
from split_inference.codec_profile import CodecProfile
from split_inference.errors import MalformedFrameError, SplitInferenceError
from split_inference.feature_codec import FeatureCodec, decode_tensor, raw_bytes
from split_inference.figures import Bound, report
from split_inference.wire import MAX_RAW_BYTES, decode_frame, decode_reply

BOUNDS: dict[str, Bound] = {"escaped": ("==", 0), "resealed_share": (">=", 0.5), "peak_ratio": ("<=", 2.0)}
ESCAPES_KEPT = 20


def check_request(data: bytes) -> str:
    """Decode a request frame down to its features."""
    try:
        frame = decode_frame(data)
    except MalformedFrameError:
        return "refused by decode_frame"
    try:
        for tensor in frame.tensors:
            features = decode_tensor(tensor)
            assert features.shape == tensor.shape
            assert np.isfinite(features.min())
            assert np.isfinite(features.max())
    except SplitInferenceError as error:
        return f"decode_tensor: {type(error).__name__}"
    return "decoded"


def check_reply(data: bytes) -> str:
    """Decode a reply frame."""
    try:
        decode_reply(data)
    except MalformedFrameError:
        return "refused by decode_reply"
    return "decoded"


TARGETS = (Target(name="request", check=check_request), Target(name="reply", check=check_reply))


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What became of the frames."""

    frames: int = 0
    resealed: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By class of frame, and target with what it said."""
    escapes: list[tuple[str, bytes]] = field(default_factory=list)
    """What escaped, told in one line, with the frame; the first few are kept."""
    escaped: int = 0


def fuzz(
    *,
    frames: int,
    seed: int,
    targets: Sequence[Target] = TARGETS,
    watch: Callable[[Iterable[int]], Iterable[int]] = lambda indices: indices,
) -> Outcome:
    """Send `frames` hostile frames through every target; warnings count as escapes too."""
    hostile = HostileFrames(seed)
    outcome = Outcome()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for index in watch(range(frames)):
            kind, data, resealed = hostile.next()
            outcome.frames += 1
            outcome.resealed += resealed
            for target in targets:
                try:
                    said = target.check(data)
                except Exception as error:
                    said = "ESCAPED"
                    outcome.escaped += 1
                    if len(outcome.escapes) < ESCAPES_KEPT:
                        line = f"frame {index} ({kind}) through {target.name}: {type(error).__name__}: {error}"
                        outcome.escapes.append((line, data))
                outcome.counts[kind, f"{target.name}: {said}"] += 1
    return outcome


def peak_ratios() -> dict[str, float]:
    """Peak memory beside the frame while one is decoded, per byte of the decoded tensor, for the largest allowed.

    The larger of what Python's allocators and NumPy report (tracemalloc) and by how much the process grew at most
    (the kernel's peak resident size, where it can be reset), so that what compressors allocate counts too.
    """
    rng = np.random.default_rng(0)
    shape = (1, 256, 256, MAX_RAW_BYTES // 4 // 256 // 256)
    blocks = np.maximum(rng.normal(size=(1, 256, 16, shape[3])), 0).astype(np.float32)
    features = np.ascontiguousarray(np.broadcast_to(blocks[:, :, None], (1, 256, 16, 16, shape[3]))).reshape(shape)
    ratios = {}
    for profile in ("u8", "u8c", "u8+zstd", "u8+none", "u1", "u1c", "float16", "float16+zstd", "float32+lz4", "jpeg75"):
        data = honest_request(FeatureCodec(CodecProfile.parse(profile)).encode(features))
        resident_before = _resident_bytes(reset_peak=True)
        tracemalloc.start()
        decode_tensor(decode_frame(data).tensors[0])
        traced = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        grown = _resident_bytes(peak=True) - resident_before
        ratios[profile] = max(traced, grown) / raw_bytes(shape)
    return ratios


def _resident_bytes(*, peak: bool = False, reset_peak: bool = False) -> int:
    try:
        if reset_peak:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    values = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return int(values["VmHWM" if peak else "VmRSS"].split()[0]) * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz_wire", description=__doc__)
    parser.add_argument("--frames", type=int, default=300_000, help="how many hostile frames (default 300,000)")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds give equal frames")
    parser.add_argument("--without-ingress", action="store_true", help="decoder and codec only; needs no serve extra")
    options = parser.parse_args(arguments)
    if options.frames < 1:
        parser.error("--frames must be at least 1")
    peaks = peak_ratios()
    for profile, ratio in peaks.items():
        print(f"peak memory of one decode, {profile:12} {ratio:5.2f} of the decoded {MAX_RAW_BYTES // 2**20} MiB")
    started_s = time.perf_counter()
    with contextlib.ExitStack() as stack:
        targets = [*TARGETS]
        if not options.without_ingress:
            from benchmarks.fuzz_ingress import IngressTarget

            targets.append(stack.enter_context(contextlib.closing(IngressTarget())).target())
        outcome = fuzz(frames=options.frames, seed=options.seed, targets=targets, watch=_with_progress)
    elapsed_s = time.perf_counter() - started_s
    print(f"\n{'class of frame':18}{'frames':>9}   what came of it")
    for (kind, said), count in sorted(outcome.counts.items()):
        print(f"{kind:18}{count:9,}   {said}")
    print()
    folder = Path("runs/latest/fuzz-escapes")
    for number, (line, data) in enumerate(outcome.escapes):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.frame").write_bytes(data)
        print(f"{line}  -> {folder}/{number}.frame", file=sys.stderr)
    figures = {
        "frames": float(outcome.frames),
        "resealed_share": outcome.resealed / outcome.frames,
        "escaped": float(outcome.escaped),
        "seconds": elapsed_s,
        "peak_ratio": max(peaks.values()),
    }
    return report("fuzz-wire", figures, BOUNDS)


def _with_progress(indices: Iterable[int]) -> Iterable[int]:
    from rich.console import Console
    from rich.progress import track

    return track(indices, description="hostile frames", console=Console(stderr=True))


if __name__ == "__main__":
    sys.exit(main())
