"""Keeps a replica inside its part of a GPU's memory.

Ray's `num_gpus: 0.25` is bookkeeping: it places four replicas on a GPU and limits none of them. Knows torch's setting
for that. Knows no Ray.
"""

from __future__ import annotations

from typing import Any

import torch

from split_inference.errors import ConfigError


def cap_gpu_memory(num_gpus: float, *, cuda: Any = torch.cuda) -> float | None:
    """Let this process allocate at most `num_gpus` of its GPU's memory; the share, or None where it has whole GPUs.

    Raises ConfigError where there is no GPU, or none was asked for.
    """
    if not cuda.is_available():
        raise ConfigError("device: torch sees no CUDA device here; write device: cpu, or serve on a node with a GPU")
    if num_gpus <= 0:
        raise ConfigError("device: cuda needs ray_actor_options: {num_gpus: ...} above 0, so that Ray reserves a GPU")
    if num_gpus >= 1:
        return None
    cuda.set_per_process_memory_fraction(num_gpus)
    return num_gpus
