"""What `split-inference compile` does, and a replica before it starts: compile tails that the cache lacks, and measure
how often each faster way agrees with float32 run eagerly.

Knows models, the cache and the compiler. Knows no Ray and no terminal: it says what it does through a function.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from serve_app.calibrated import calibrated_split_point
from serve_app.settings import AppSettings
from serve_app.tail_cache import Agreement, TailCache, TailKey
from serve_app.tail_compiler import Compiled, compile_missing
from serve_app.tail_executor import tail_key
from serve_app.tail_points import points_to_compile
from serve_app.tail_runner import TailRunner
from split_inference.codec_profile import CodecProfile
from split_inference.feature_codec import FeatureCodec
from split_inference.inputs import EncodedInput, read_inputs
from split_inference.model_cache import load_cached_model
from split_inference.model_catalog import EMBEDDED_FOLDER, EMBEDDED_URI, LoadedModel, load_model
from split_inference.wire import FeatureFrame

NOISE_SAMPLES = 64
FRAME_SAMPLES = 16
# Enough for a per cent; every sample runs twice, once at float32.
MAX_SAMPLES = 256


def keys_for(settings: AppSettings, loaded: LoadedModel) -> list[TailKey]:
    """Keys of all tails that the settings want compiled."""
    execution = settings.execution
    model = loaded.model
    served = (
        [model.split_point(each) for each in settings.split_points] if settings.split_points else model.split_points
    )
    layout = execution.channels_last
    return [
        tail_key(
            model.digest,
            name,
            bucket,
            precision=execution.precision,
            channels_last=execution.precision != "float32" if layout is None else layout,
            threads=settings.threads,
        )
        for name in points_to_compile(
            model,
            execution,
            served=served,
            calibrated=calibrated_split_point(settings, digest=model.digest),
            device=settings.device,
        )
        for bucket in execution.buckets
    ]


def missing_keys(settings: AppSettings, loaded: LoadedModel) -> list[TailKey]:
    """Those of them that the cache lacks."""
    if not settings.compiles:
        return []
    cache = TailCache(settings.execution.cache)
    return [key for key in keys_for(settings, loaded) if cache.library(key) is None]


def compile_for(
    settings: AppSettings,
    *,
    loaded: LoadedModel | None = None,
    say: Callable[[str], None] = lambda line: None,
    on_start: Callable[[TailKey, int, int], None] = lambda key, index, count: None,
    on_done: Callable[[Compiled], None] = lambda compiled: None,
) -> list[Compiled]:
    """Compile what the cache lacks for one application, one process at a time. Raises UsageError in one line.

    `loaded` is the settings' model where the caller has it already.
    """
    if not settings.compiles:
        return []
    cache = TailCache(settings.execution.cache)
    loaded = loaded or load_cached_model(settings.model, cache.models())
    keys = missing_keys(settings, loaded)
    if not keys:
        return []
    say(f"{loaded.name}: compiling tails into {cache.root}")
    with _alone(cache.root):
        done = compile_missing(settings.model, keys, cache, on_start=on_start, on_done=on_done)
    for each in done:
        say(
            f"compiled {each.key.split_point} at {each.key.precision} for {each.key.bucket} rows: "
            f"{each.seconds:.1f} s, {each.library_bytes / 1e6:.0f} MB"
        )
    return done


def measure_agreement(
    settings: AppSettings, *, inputs: Sequence[EncodedInput] | None = None, what: str = ""
) -> dict[str, Agreement]:
    """Top-1 agreement with float32 run eagerly, by compiled split point, for the same 8-bit frames; kept in the cache.

    `what` says in words what `inputs` are. Without inputs: the embedded model's own samples, and seeded noise for any
    other model, which says little of how it does on real inputs.
    """
    loaded = load_model(settings.model)
    calibrated = calibrated_split_point(settings, digest=loaded.model.digest)
    if inputs is None and settings.model == EMBEDDED_URI:
        inputs, what = read_inputs(EMBEDDED_FOLDER / "samples"), "the package's samples"
    reference = TailRunner(loaded.model, name=loaded.name, card=loaded.card, threads=settings.threads)
    if inputs is not None:
        tensors = np.concatenate([reference.preprocess(each.data) for each in inputs[:MAX_SAMPLES]])
    else:
        spec = loaded.model.input
        tensors = np.random.default_rng(0).standard_normal((NOISE_SAMPLES, *spec.shape), dtype=np.float32)
        what = "seeded noise"
    faster = TailRunner(
        loaded.model,
        name=loaded.name,
        card=loaded.card,
        threads=settings.threads,
        execution=settings.execution,
        device=settings.device,
        calibrated=calibrated,
    )
    cache = TailCache(settings.execution.cache)
    found = {}
    for name in faster.compiled or ((calibrated,) if calibrated else ()):
        faster.warm_up(name)
        frames = list(_frames(loaded, name, tensors))
        slow_NK = np.concatenate([reference.answer(frame) for frame in frames])
        fast_NK = np.concatenate([faster.answer(frame) for frame in frames])
        scale_N = np.abs(slow_NK).max(axis=1)
        found[name] = agreement = Agreement(
            top1=float((slow_NK.argmax(axis=1) == fast_NK.argmax(axis=1)).mean()),
            samples=len(slow_NK),
            largest_difference=float((np.abs(slow_NK - fast_NK).max(axis=1) / scale_N).max()),
            inputs=what,
        )
        cache.store_agreement(faster.tail_key(name), agreement)
    return found


def _frames(loaded: LoadedModel, at: str, tensors: NDArray[np.float32]) -> Iterator[FeatureFrame]:
    head = loaded.model.head(at)
    specs = loaded.model.split_point(at).features
    profile = CodecProfile(bits=8)
    for start in range(0, len(tensors), FRAME_SAMPLES):
        with torch.inference_mode():
            features = head(torch.from_numpy(tensors[start : start + FRAME_SAMPLES]))
        codecs = [FeatureCodec(profile, channel_axis=spec.channel_axis) for spec in specs]
        encoded = tuple(
            codec.encode(np.ascontiguousarray(each.float().numpy()))
            for codec, each in zip(codecs, features, strict=True)
        )
        yield FeatureFrame(
            model_digest=bytes.fromhex(loaded.model.digest)[:16],
            split_point=loaded.model.split_point(at).name,
            sample_count=len(features[0]),
            deadline_budget_ms=None,
            tensors=encoded,
        )


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One process of this machine compiles at a time: a second replica waits for what the first one makes."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (root / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
