"""Keeps a replica inside its part of a GPU's memory.

Ray's `num_gpus: 0.25` is bookkeeping: it places four replicas on a GPU and limits none of them. torch can limit what
its allocator takes, but a process takes more than that: the driver's context, and the kernels that it loads, lie
outside. Knows torch's setting and that arithmetic. Knows no Ray.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from split_inference.errors import ConfigError

# What one process holds beside torch's allocator: published figures for torch with lazily loaded kernels (the default
# since CUDA 11.7) are 300 MB (pytorch issue 107667), 400 MB (109888), 426 MiB (unsloth-zoo 1053, torch 2.10) and
# 616 MiB (LMCache 4019); the largest of them and a quarter more, for kernels that are loaded later and for graphs.
# With CUDA_MODULE_LOADING=EAGER it is more than 1,000 MB, and this reserve too small. Not measured here: no GPU yet.
CONTEXT_BYTES = 768 * 2**20


def allocator_fraction(num_gpus: float, *, total_bytes: int) -> float:
    """The part of a GPU of `total_bytes` that torch's allocator may take in a replica with `num_gpus` of it.

    Its share less CONTEXT_BYTES, so that replicas whose shares are one GPU together never need more than it has.
    Raises ConfigError where less than half of the share is left: then most of the GPU would hold contexts.
    """
    share_bytes = num_gpus * total_bytes
    if share_bytes < 2 * CONTEXT_BYTES:
        enough = math.ceil(200 * CONTEXT_BYTES / total_bytes) / 100
        raise ConfigError(
            f"ray_actor_options: num_gpus {num_gpus:g} of this GPU is {share_bytes / 2**20:.0f} MiB, and a CUDA "
            f"context takes up to {CONTEXT_BYTES / 2**20:.0f}; "
            + (f"write {enough:g} or more" if enough < 1 else "this GPU is too small to be shared")
        )
    return (share_bytes - CONTEXT_BYTES) / total_bytes


def cap_gpu_memory(num_gpus: float, *, cuda: Any = torch.cuda) -> float | None:
    """Let this process stay within `num_gpus` of its GPU's memory; what its allocator may take, or None for whole GPUs.

    Raises ConfigError where there is no GPU, none was asked for, or the share is too small for a process.
    """
    if not cuda.is_available():
        raise ConfigError("device: torch sees no CUDA device here; write device: cpu, or serve on a node with a GPU")
    if num_gpus <= 0:
        raise ConfigError("device: cuda needs ray_actor_options: {num_gpus: ...} above 0, so that Ray reserves a GPU")
    if num_gpus >= 1:
        return None
    # Not mem_get_info: that one makes a context.
    fraction = allocator_fraction(num_gpus, total_bytes=cuda.get_device_properties(0).total_memory)
    cuda.set_per_process_memory_fraction(fraction)
    return fraction
