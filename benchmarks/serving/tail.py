"""The tail that every system of the comparison serves: the same weights, precision and bodies.

Ours is compiled ahead of time and called without Python's lock. Peers run it too, to compare the servers alone, and run
the tail as their users have it: `torch.compile` in the process that serves.

Shape legend: N samples, K classes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from serve_app.compile_command import compile_for
from serve_app.machine import has_bfloat16
from serve_app.settings import AppSettings, ExecutionSettings
from serve_app.tail_module import DTYPES, WeightCaster
from serve_app.tail_runner import TailRunner
from split_inference.codec_profile import CodecProfile
from split_inference.feature_codec import FeatureCodec, decode_tensor
from split_inference.model_catalog import LoadedModel, load_model
from split_inference.predictions import top_predictions
from split_inference.wire import FeatureFrame, decode_frame, encode_frame

URI = "resnet34?weights=random&seed=0"
SPLIT_POINT = "resnet.encoder.stages.2"
CODEC = "u4+lz4"
BODIES = 32
SMOOTH_SIDE = 14
# Environment variable that tells a peer which tail to run, and its values.
TAIL = "TAIL"
# The same for everything that is compared: bfloat16 is the question; float32 where the processor would emulate it.
PRECISION: Final = "bfloat16" if has_bfloat16() else "float32"
OURS, JUST_IN_TIME = "ours", "torch.compile"


def settings(*, buckets: Sequence[int] = (1, 4, 16), cache_folder: Path | None = None) -> AppSettings:
    """At the best precision of this machine, compiled."""
    execution = ExecutionSettings(
        precision=PRECISION, compile=(SPLIT_POINT,), buckets=tuple(buckets), cache=cache_folder
    )
    return AppSettings(model=URI, execution=execution)


def serve_config(apps: dict[str, int], *, replica_cpus: float, max_batch_samples: int = 16) -> dict[str, Any]:
    """A Serve config with one application of our own for each name and number of replicas."""
    return {
        "http_options": {"host": "127.0.0.1", "port": 8000},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": [
            {
                "name": name,
                "route_prefix": f"/v1/models/{name}",
                "import_path": "serve_app.app:build_app",
                "args": settings().model_dump(mode="json", exclude_defaults=True),
                "deployments": [
                    {
                        "name": "TailDeployment",
                        "num_replicas": replicas,
                        "max_ongoing_requests": 256,
                        "max_queued_requests": 256,
                        "ray_actor_options": {"num_cpus": replica_cpus},
                        "user_config": {"batching": {"max_batch_samples": max_batch_samples}},
                    }
                ],
            }
            for name, replicas in apps.items()
        ],
    }


@cache
def loaded_model() -> LoadedModel:
    """The model, once in a process."""
    torch.set_num_threads(1)
    return load_model(URI)


def bodies(*, deadline_budget_ms: int | None = None) -> list[bytes]:
    """Different frames of one sample each: heads of smooth random images, coded as a phone would."""
    model = loaded_model().model
    head = model.head(SPLIT_POINT)
    codec = FeatureCodec(CodecProfile.parse(CODEC), channel_axis=1)
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(BODIES):
        coarse = torch.from_numpy(rng.standard_normal((1, 3, SMOOTH_SIDE, SMOOTH_SIDE), dtype=np.float32))
        image = torch.nn.functional.interpolate(coarse, size=(224, 224), mode="bilinear")
        with torch.inference_mode():
            (features,) = head(image)
        frames.append(
            encode_frame(
                FeatureFrame(
                    model_digest=bytes.fromhex(model.digest)[:16],
                    split_point=SPLIT_POINT,
                    sample_count=1,
                    deadline_budget_ms=deadline_budget_ms,
                    tensors=(codec.encode(np.ascontiguousarray(features.numpy())),),
                )
            )
        )
    return frames


class Answers(Protocol):
    """What peers need of a tail."""

    def answers(self, batch: Sequence[bytes]) -> list[bytes]: ...


def peer_tail() -> Answers:
    """The tail that TAIL names: ours, or torch.compile's."""
    kinds: dict[str, type[Tail] | type[JustInTimeTail]] = {OURS: Tail, JUST_IN_TIME: JustInTimeTail}
    return kinds[os.environ[TAIL]]()


class Tail:
    """Decode, dequantise and run a list of bodies as one batch, in the thread that calls."""

    def __init__(self, *, buckets: Sequence[int] = (1, 4, 16)) -> None:
        torch.set_num_threads(1)
        chosen = settings(buckets=buckets)
        loaded = loaded_model()
        compile_for(chosen, loaded=loaded)
        self._runner = TailRunner(loaded.model, name=loaded.name, card=loaded.card, execution=chosen.execution)
        self._runner.warm_up(SPLIT_POINT)

    def logits(self, batch: Sequence[bytes]) -> NDArray[np.float32]:
        """[N, K]."""
        frames = [decode_frame(each) for each in batch]
        for frame in frames:
            self._runner.check(frame)
        key = self._runner.key_of(frames[0])
        prepared = self._runner.prepare(key, frames)
        results = self._runner.run(key, prepared.staged)
        self._runner.discard(prepared.staged)
        return np.concatenate([result for result in results if isinstance(result, np.ndarray)])

    def answers(self, batch: Sequence[bytes]) -> list[bytes]:
        """What peers answer: the five likeliest classes as text."""
        # In whatever thread a peer calls from; OpenMP counts threads for each apart.
        torch.set_num_threads(1)
        return _as_text(self.logits(batch))


class JustInTimeTail:
    """The same precision, channels_last, by `torch.compile` with a dynamic batch, warm for 1 to 16 rows."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        tail = loaded_model().model.tail(SPLIT_POINT)
        caster = WeightCaster(precision=PRECISION, channels_last=True, device=torch.device("cpu"))
        # Frozen weights are folded and laid out for the processor: it is half of the gain, and no user would miss it.
        torch._inductor.config.freezing = True
        self._tail = torch.compile(caster.apply(tail), dynamic=True)
        for count in (1, 2, 16):
            self._run(np.zeros((count, *loaded_model().model.split_point(SPLIT_POINT).features[0].shape), np.float32))

    def answers(self, batch: Sequence[bytes]) -> list[bytes]:
        """The five likeliest classes as text."""
        torch.set_num_threads(1)
        features = [decode_tensor(decode_frame(each).tensors[0]) for each in batch]
        return _as_text(self._run(np.concatenate(features)))

    def _run(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            value = torch.from_numpy(features).to(DTYPES[PRECISION], memory_format=torch.channels_last)
            logits_NK: NDArray[np.float32] = self._tail(value).float().numpy()
        return logits_NK


def _as_text(logits_NK: NDArray[np.float32]) -> list[bytes]:
    rows = top_predictions(logits_NK, labels=(), top_k=5)
    return [",".join(f"{each.index}:{each.score:.4f}" for each in row).encode() for row in rows]
