"""What this machine's processor can do, as far as compiled and low-precision tails depend on it.

Knows torch's questions to the processor and /proc/cpuinfo. Runs nothing.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from pathlib import Path

import torch

from split_inference.errors import ConfigError


def instruction_set(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name of everything that native code may use here: architecture, torch's vector level and a digest of all flags.

    Code compiled on a machine runs on another one of the same name.
    """
    flags = ""
    try:
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                flags = " ".join(sorted(value.split()))
                break
    except OSError:
        flags = platform.processor()
    level = torch.backends.cpu.get_cpu_capability().lower().replace(" ", "-")
    return f"{platform.machine()}-{level}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"


def refuse_what_is_impossible(
    *,
    device: str,
    precision: str,
    has_cuda: Callable[[], bool] = torch.cuda.is_available,
    has_bfloat16: Callable[[], bool] = torch.ops.mkldnn._is_mkldnn_bf16_supported,
    has_float16: Callable[[], bool] = torch.ops.mkldnn._is_mkldnn_fp16_supported,
) -> None:
    """Raise ConfigError where this machine has no such device, or no instructions for the precision."""
    if device == "cuda":
        if not has_cuda():
            raise ConfigError(
                "device: torch sees no CUDA device here; write device: cpu, or serve on a node with a GPU"
            )
        return
    lacks = {"bfloat16": ("bfloat16", has_bfloat16), "float16": ("float16 (AVX512-FP16 or AMX-FP16)", has_float16)}
    if precision in lacks:
        name, has = lacks[precision]
        if not has():
            raise ConfigError(
                f"execution.precision: this processor has no instructions for {name}; write float32"
                f"{' or bfloat16' if precision == 'float16' and has_bfloat16() else ''}"
            )
