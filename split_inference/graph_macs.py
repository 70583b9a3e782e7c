"""Multiply-accumulates of every node of an exported graph, for one sample.

Counted by torch's own formulas on fake tensors: nothing is computed. Attention is counted here, because they know the
fused kernels of GPUs but not every one of the CPU's. One MAC is two floating-point operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


class _Flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the operations of what is called in this thread.

    torch's FlopCounterMode does, too, but hangs hooks on every module of the process meanwhile, and a server counts
    while another model runs.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            return func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result


class _Counter(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, flops: _Flops) -> None:
        super().__init__(module)
        self.macs: dict[fx.Node, int] = {}
        self._flops = flops

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_function":
            return super().run_node(n)
        if n.target is _ATTENTION:
            args, _ = self.fetch_args_kwargs_from_env(n)
            query, key, value = args[:3]
            self.macs[n] = query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
            return super().run_node(n)
        before = self._flops.total
        result = super().run_node(n)
        self.macs[n] = (self._flops.total - before) // 2
        return result


def macs_by_node(module: fx.GraphModule, one_sample: Tensor) -> dict[fx.Node, int]:
    """MACs of each node for an input like `one_sample` [1, ...]; nodes without any are 0 or absent."""
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    flops = _Flops()
    counter = _Counter(module, flops)
    with fake_mode, torch.no_grad(), flops:
        counter.run(fake_mode.from_tensor(one_sample))
    return counter.macs
