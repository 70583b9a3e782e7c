"""Multiply-accumulates of every node of an exported graph, for one sample.

Counted by torch's own flop counter on fake tensors: nothing is computed. Attention is counted here, because the
counter knows the fused kernels of GPUs but not every one of the CPU's. One MAC is two floating-point operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


class _Counter(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.macs: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_function":
            return super().run_node(n)
        if n.target is _ATTENTION:
            args, _ = self.fetch_args_kwargs_from_env(n)
            query, key, value = args[:3]
            self.macs[n] = query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
            return super().run_node(n)
        counter = FlopCounterMode(display=False)
        with counter:
            result = super().run_node(n)
        self.macs[n] = counter.get_total_flops() // 2
        return result


def macs_by_node(module: fx.GraphModule, one_sample: Tensor) -> dict[fx.Node, int]:
    """MACs of each node for an input like `one_sample` [1, ...]; nodes without any are 0 or absent."""
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    counter = _Counter(module)
    with fake_mode, torch.no_grad():
        counter.run(fake_mode.from_tensor(one_sample))
    return counter.macs
