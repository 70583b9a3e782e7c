"""Counts a model's work by family of operations, before every split point. Knows torch's graphs; computes nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from edge_sim.work import ModelWork, Work
from split_inference.model_split import SplittableModel

_ATEN = torch.ops.aten
_CONV = {_ATEN.conv2d.default, _ATEN.convolution.default, _ATEN.conv1d.default}
_LINEAR = {
    _ATEN.linear.default,
    _ATEN.addmm.default,
    _ATEN.mm.default,
    _ATEN.bmm.default,
    _ATEN.matmul.default,
    _ATEN.scaled_dot_product_attention.default,
}
_ELEMENTWISE = {
    _ATEN.add.Tensor,
    _ATEN.mul.Tensor,
    _ATEN.cat.default,
    _ATEN.max_pool2d.default,
    _ATEN.avg_pool2d.default,
    _ATEN.adaptive_avg_pool2d.default,
    _ATEN.mean.dim,
    _ATEN.layer_norm.default,
    _ATEN.softmax.int,
    _ATEN.gelu.default,
}


def work_of(model: SplittableModel) -> ModelWork:
    """The model's work, and that of each head, for one sample."""
    by_node = {node: _work_of_node(model, node) for node in model.head_nodes("output")}
    heads = {}
    for point in model.split_points:
        total = Work()
        for node in model.head_nodes(point.name):
            total = total.plus(by_node.get(node, Work()))
        heads[point.name] = total
    return ModelWork(heads["output"], heads)


def _work_of_node(model: SplittableModel, node: fx.Node) -> Work:
    if node.op != "call_function":
        return Work()
    target: Any = node.target
    macs = model.macs_of(node)
    if target in _CONV:
        return _convolution(node, macs)
    if target in _LINEAR:
        return Work(linear_macs=macs, elements=_traffic(node), layers=1)
    if target in _ELEMENTWISE:
        return Work(elements=_traffic(node), layers=1)
    return Work()


def _convolution(node: fx.Node, macs: int) -> Work:
    weight = _shape(node.args[1])
    traffic = _traffic(node)
    # Weights are [out, in / groups, kernel...]: one input channel for each filter is depthwise.
    kernel = tuple(weight[2:])
    stride = node.args[3] if len(node.args) > 3 else node.kwargs.get("stride", 1)
    unit_stride = all(each == 1 for each in (stride if isinstance(stride, (list, tuple)) else [stride]))
    if weight[1] == 1 and _shape(node.args[0])[1] == weight[0] > 1:
        return Work(depthwise_macs=macs, elements=traffic, layers=1)
    if all(each == 1 for each in kernel):
        return Work(pointwise_macs=macs, elements=traffic, layers=1)
    if all(each == 3 for each in kernel) and unit_stride:
        return Work(conv3x3_macs=macs, elements=traffic, layers=1)
    return Work(other_conv_macs=macs, elements=traffic, layers=1)


def _traffic(node: fx.Node) -> int:
    """Values of one sample that the node reads and writes; weights are counted by their MACs."""
    reads = [each for each in node.all_input_nodes if each.op != "get_attr"]
    return sum(_elements(each) for each in [*reads, node])


def _elements(node: fx.Node) -> int:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.ndim == 0:
        return 0
    count = 1
    for size in value.shape[1:]:
        count *= size if isinstance(size, int) else 1
    return count


def _shape(argument: Any) -> tuple[int, ...]:
    return tuple(argument.meta["val"].shape)
