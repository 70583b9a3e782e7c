"""The functional graph of an exported program: what in it depends on the input, and how to cut it.

Knows fx graphs and nothing of names, costs or files. model_split.py makes split points of what is found here.

Shape legend: N samples. s0 is the symbol that stands for N in the graph.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from split_inference.errors import ModelExportError

SENDABLE = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
_ATEN = torch.ops.aten
# Nodes that are the identity in evaluation: a cut behind one would send the same tensor as the cut before it.
_IDENTITIES = {_ATEN.dropout.default, _ATEN.feature_dropout.default, _ATEN.alias.default, _ATEN.detach.default}


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureSpec:
    """One tensor that crosses a split point."""

    shape: tuple[int, ...]
    """Of one sample, without the sample axis."""
    dtype: str
    """As the head gives it and the tail takes it: float32, float16 or bfloat16."""
    channel_axis: int
    """In the array *with* the sample axis: 1 for [N, C, H, W], the last for [N, tokens, hidden]."""

    @property
    def elements(self) -> int:
        """Values per sample."""
        count = 1
        for size in self.shape:
            count *= size
        return count


class SplitGraph:
    """The functional graph of a program, what in it depends on the input's values, and how to cut it."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        graph = module.graph
        for node in list(graph.nodes):
            if node.target in _IDENTITIES or (node.target is _ATEN.clone.default and not node.kwargs):
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        if len(inputs) != 1:
            raise ModelExportError(f"the model takes {len(inputs)} inputs; a model with one input tensor is needed")
        self.input: fx.Node = inputs[0]
        (result,) = (node for node in graph.nodes if node.op == "output")
        outputs = [leaf for leaf in pytree.tree_leaves(result.args) if isinstance(leaf, fx.Node)]
        if len(outputs) != 1:
            raise ModelExportError(f"the model gives {len(outputs)} outputs; a model with one output tensor is needed")
        self.output: fx.Node = outputs[0]
        shape = self.input.meta["val"].shape
        if not shape or not isinstance(shape[0], torch.SymInt):
            raise ModelExportError(
                "the model's first axis is fixed; export it with an example of two samples and a dynamic first axis"
            )
        self._s0 = shape[0].node.expr
        self._refuse_unsendable("takes", self.input)
        self._refuse_unsendable("gives", self.output)
        self.dependent = self._find_dependent()
        """Nodes whose values depend on the input's values, in graph order; the input itself is left out."""

    def _refuse_unsendable(self, verb: str, node: fx.Node) -> None:
        """What the model takes and gives travels too, where all is on the server, and where all is on the device."""
        if self.feature_spec(node) is None:
            value = node.meta.get("val")
            what = type(value).__name__
            if isinstance(value, Tensor):
                shape = ", ".join("N" if _is_symbolic(size) else str(size) for size in value.shape)
                what = f"{str(value.dtype).removeprefix('torch.')} [{shape}]"
            raise ModelExportError(
                f"the model {verb} {what}; one tensor of {', '.join(SENDABLE.values())} is needed, "
                "samples first and all other axes fixed"
            )

    def _find_dependent(self) -> list[fx.Node]:
        needed = self.needed(())
        dependent: dict[fx.Node, None] = {self.input: None}
        for node in self.module.graph.nodes:
            if node.op == "output" or node not in needed or _is_size(node):
                continue
            if any(parent in dependent for parent in node.all_input_nodes):
                dependent[node] = None
        return [node for node in dependent if node is not self.input]

    def example_input(self) -> Tensor:
        """A fake sample: shape [1, ...] and dtype of the input; its values are never looked at."""
        value = self.input.meta["val"]
        return torch.zeros((1, *(int(size) for size in value.shape[1:])), dtype=value.dtype)

    def needed(self, sent: Iterable[fx.Node]) -> set[fx.Node]:
        """What the output needs when the values of `sent` are given."""
        return self._reach([self.output], stop=set(sent))

    def ancestors(self, nodes: Iterable[fx.Node]) -> set[fx.Node]:
        """The nodes themselves and all that they are computed from."""
        return self._reach(list(nodes), stop=set())

    def _reach(self, start: list[fx.Node], *, stop: set[fx.Node]) -> set[fx.Node]:
        seen: set[fx.Node] = set()
        stack = start
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if node not in stop and not _is_size(node):
                stack.extend(node.all_input_nodes)
        return seen

    def live_sets(self, max_tensors: int) -> list[tuple[fx.Node, ...]]:
        """The distinct sets of at most `max_tensors` values that are alive somewhere, in graph order."""
        values = [self.input, *self.dependent]
        place = {node: i for i, node in enumerate(values)}
        last_use = {
            node: max((place[user] for user in node.users if user in place), default=place[node]) for node in values
        }
        last_use[self.output] = len(values)  # the output itself is alive at the end
        found: dict[tuple[fx.Node, ...], None] = {}
        alive: list[fx.Node] = []
        for i, node in enumerate(values):
            alive = [other for other in alive if last_use[other] > i]
            if last_use[node] > i:
                alive.append(node)
            if 1 <= len(alive) <= max_tensors:
                found.setdefault(tuple(alive))
        return list(found)

    def parameters(self, nodes: Iterable[fx.Node]) -> int:
        """Parameter elements among the attributes that the nodes read, each counted once."""
        seen: dict[int, int] = {}
        for node in nodes:
            if node.op == "get_attr":
                value = operator.attrgetter(cast(str, node.target))(self.module)
                if isinstance(value, nn.Parameter):
                    seen[id(value)] = value.numel()
        return sum(seen.values())

    def _rows_per_sample(self, node: fx.Node) -> int | None:
        """How many rows of the first axis belong to one sample; None where the axis is not a multiple of N."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or value.ndim == 0 or not _is_symbolic(value.shape[0]):
            return None
        rows = cast(Any, value.shape[0]).node.expr / self._s0
        return int(rows) if rows.is_Integer and int(rows) >= 1 else None

    def feature_spec(self, node: fx.Node) -> FeatureSpec | None:
        """What is sent for a node's value, or None where it can't be sent (no float tensor, no sample axis)."""
        value = node.meta.get("val")
        rows = self._rows_per_sample(node)
        if (
            rows is None
            or value is None
            or value.dtype not in SENDABLE
            or any(_is_symbolic(size) for size in value.shape[1:])
        ):
            return None
        inner = tuple(int(size) for size in value.shape[1:])
        shape = inner if rows == 1 else (rows, *inner)
        # Convolutional features have their channels first; tokens and vectors have them last.
        channel_axis = 1 if len(inner) == 3 and rows == 1 else len(shape)
        return FeatureSpec(shape=shape, dtype=SENDABLE[value.dtype], channel_axis=channel_axis)

    def head(self, nodes: tuple[fx.Node, ...]) -> nn.Module:
        """A module that computes the values of `nodes` from the input, as a tuple."""
        copy = _Copy(self, self.ancestors(nodes))
        copied = {self.input: copy.graph.placeholder(self.input.name)}
        copy.fill(copied, samples_of=copied[self.input])
        results = []
        for node in nodes:
            spec = self.feature_spec(node)
            assert spec is not None
            result = copied[node]
            if self._rows_per_sample(node) != 1:
                result = copy.graph.call_function(_ATEN.reshape.default, (result, [-1, *spec.shape]))
            results.append(result)
        copy.graph.output(tuple(results))
        return _finish(self.module, copy.graph, "Head")

    def tail(self, nodes: tuple[fx.Node, ...]) -> nn.Module:
        """A module that computes the output from the values of `nodes`, given in that order."""
        copy = _Copy(self, self.needed(nodes) - set(nodes))
        placeholders = [copy.graph.placeholder(f"features_{i}") for i in range(len(nodes))]
        copied = {
            node: self._restored(copy.graph, node, placeholder)
            for node, placeholder in zip(nodes, placeholders, strict=True)
        }
        copy.fill(copied, samples_of=placeholders[0])
        copy.graph.output(copied[self.output])
        return _finish(self.module, copy.graph, "Tail")

    def size_over_samples(self, node: fx.Node) -> int | None:
        """How many times the number of samples a size is; None where it is no multiple, as in 2 * N + 1."""
        multiple = node.meta["val"].node.expr / self._s0
        return int(multiple) if multiple.is_Integer else None

    def _restored(self, graph: fx.Graph, node: fx.Node, placeholder: fx.Node) -> fx.Node:
        """The value as the graph had it: its rows, and the order in which its axes lie in memory.

        Bytes arrive in logical order. Kernels may add up in another order for another memory layout, so the
        original layout is put back; without it the last bit of a channels-last or transposed value could differ.
        """
        value = node.meta["val"]
        result = placeholder
        if self._rows_per_sample(node) != 1:
            result = graph.call_function(_ATEN.reshape.default, (result, [-1, *(int(s) for s in value.shape[1:])]))
        axes = list(range(value.ndim))
        in_memory = sorted(axes, key=lambda axis: (-_hint(value.stride(axis)), axis))
        if in_memory == axes:
            return result
        inverse = [in_memory.index(axis) for axis in axes]
        result = graph.call_function(_ATEN.permute.default, (result, in_memory))
        result = graph.call_function(_ATEN.contiguous.default, (result,))
        return graph.call_function(_ATEN.permute.default, (result, inverse))


class _Copy:
    """A new graph with some nodes of another one. Sizes are taken from the new graph's own input.

    So a half serves any number of samples, and needs nothing of what the other half computed them from.
    """

    def __init__(self, source: SplitGraph, wanted: set[fx.Node]) -> None:
        self.graph = fx.Graph()
        self._source = source
        self._wanted = wanted

    def fill(self, copied: dict[fx.Node, fx.Node], *, samples_of: fx.Node) -> None:
        """Copy the wanted nodes that are not in `copied` yet, in order, and note them there."""
        samples: list[fx.Node] = []

        def size(node: fx.Node) -> fx.Node:
            if node in copied:
                return copied[node]
            multiple = self._source.size_over_samples(node)
            if multiple is None:
                if not all(_is_size(parent) for parent in node.all_input_nodes):
                    raise ModelExportError(f"size {node.meta['val']} does not follow from the number of samples alone")
                return copied.setdefault(node, self.graph.node_copy(node, size))
            if not samples:
                samples.append(self.graph.call_function(_ATEN.sym_size.int, (samples_of, 0)))
            if multiple == 1:
                return samples[0]
            return copied.setdefault(node, self.graph.call_function(operator.mul, (samples[0], multiple)))

        for node in self._source.module.graph.nodes:
            if node not in self._wanted or node in copied or node.op in ("placeholder", "output"):
                continue
            copied[node] = size(node) if _is_size(node) else self.graph.node_copy(node, copied.__getitem__)


def _is_symbolic(size: Any) -> bool:
    return isinstance(size, torch.SymInt)


def _hint(size: Any) -> int:
    """A size as a number: its own, or for a symbol the one that the export saw."""
    symbol = getattr(size, "node", None)
    if symbol is None:
        return int(size)
    return 2 if symbol.hint is None else int(symbol.hint)


def _is_size(node: fx.Node) -> bool:
    """Whether the node gives a number that follows from the number of samples, not a tensor."""
    return node.op == "call_function" and isinstance(node.meta.get("val"), torch.SymInt) and _is_backed(node)


def _is_backed(node: fx.Node) -> bool:
    # An unbacked symbol is a number read out of a tensor's values (`item()`): it depends on the input.
    symbols: Any = node.meta["val"].node.expr.free_symbols
    return all(not str(symbol).startswith("u") for symbol in symbols)


def _finish(root: fx.GraphModule, graph: fx.Graph, name: str) -> nn.Module:
    graph.lint()
    # A GraphModule takes over references to the attributes that its graph reads: weights are shared.
    module: nn.Module = fx.GraphModule(root, graph, class_name=name)
    module.training = False
    return module
