"""What this machine's processor can do, as far as compiled and low-precision tails depend on it.

Knows torch's questions to the processor and /proc/cpuinfo. Runs nothing.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from split_inference.errors import ConfigError

# Any of these multiplies bfloat16; oneDNN says that it supports it on every AVX-512 processor, and emulates it there
# (a ResNet-34 tail took 19 times as long as float32 on a Xeon without them).
_X86_BFLOAT16: Final = ("avx512_bf16", "amx_bf16", "avx_ne_convert", "avx10_2")


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


def has_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16, and torch uses them."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    can = torch.cpu.get_capabilities()
    return can.get("architecture") != "x86_64" or any(can.get(name, False) for name in _X86_BFLOAT16)


def refuse_what_is_impossible(
    *,
    device: str,
    precision: str,
    has_cuda: Callable[[], bool] = torch.cuda.is_available,
    has_bfloat16: Callable[[], bool] = has_bfloat16,
    has_float16: Callable[[], bool] = torch.ops.mkldnn._is_mkldnn_fp16_supported,
) -> None:
    """Raise ConfigError where this machine has no such device, or no instructions for the precision."""
    if device == "cuda":
        if not has_cuda():
            raise ConfigError(
                "device: torch sees no CUDA device here; write device: cpu, or serve on a node with a GPU"
            )
        return
    lacks = {
        "bfloat16": ("bfloat16 (AVX512-BF16 or AMX-BF16)", has_bfloat16),
        "float16": ("float16 (AVX512-FP16 or AMX-FP16)", has_float16),
    }
    if precision in lacks:
        name, has = lacks[precision]
        if not has():
            raise ConfigError(
                f"execution.precision: this processor has no instructions for {name}; write float32"
                f"{' or bfloat16' if precision == 'float16' and has_bfloat16() else ''}"
            )
