"""The tail that every system of the comparison serves: the same weights, precision, library and bodies.

Shape legend: N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from serve_app.compile_command import compile_for
from serve_app.settings import AppSettings, ExecutionSettings
from serve_app.tail_runner import TailRunner
from split_inference.feature_codec import CodecProfile, FeatureCodec
from split_inference.model_catalog import LoadedModel, load_model
from split_inference.predictions import top_predictions
from split_inference.wire import FeatureFrame, decode_frame, encode_frame

URI = "resnet34?weights=random&seed=0"
SPLIT_POINT = "resnet.encoder.stages.2"
CODEC = "u4+lz4"
BODIES = 32
SMOOTH_SIDE = 14


def settings(*, buckets: Sequence[int] = (1, 4, 16), cache_folder: Path | None = None) -> AppSettings:
    """bfloat16, compiled."""
    execution = ExecutionSettings(
        precision="bfloat16", compile=(SPLIT_POINT,), buckets=tuple(buckets), cache=cache_folder
    )
    return AppSettings(model=URI, execution=execution)


def serve_config(apps: dict[str, int], *, replica_cpus: float) -> dict[str, Any]:
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
        rows = top_predictions(self.logits(batch), labels=(), top_k=5)
        return [",".join(f"{each.index}:{each.score:.4f}" for each in row).encode() for row in rows]
