"""Find every split point of a model and cut it there into a head and a tail.

A model is exported once to a graph; a split point is a place in that graph where everything still to be computed
depends on the input only through the tensors that are sent. Knows torch and graphs. Knows no files, no names of
models, no codec and no wire: what crosses a cut is a tuple of tensors.

Why a graph and not a list of modules: modules nest and branch, and only a graph shows that after `add` one tensor
is alive, and before it two (docs/decisions/0002-split-by-graph.md).

Shape legend: N samples, C channels, H height, W width, K classes. s0 is the symbol that stands for N in the graph.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from split_inference.errors import ModelExportError, UnknownSplitPointError
from split_inference.graph_macs import macs_by_node
from split_inference.graph_names import name_nodes
from split_inference.split_graph import FeatureSpec, SplitGraph

__all__ = ["FeatureSpec", "SplitModel", "SplitPoint", "SplittableModel", "export_model", "first_line", "split"]

MAX_BATCH = 1024  # upper bound of the exported sample axis; above any batch that a tail is run with


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitPoint:
    """A place where the model can be cut, and what that costs on either side (per sample)."""

    name: str
    aliases: tuple[str, ...]
    features: tuple[FeatureSpec, ...]
    head_macs: int
    tail_macs: int
    head_parameters: int
    total_parameters: int

    @property
    def elements(self) -> int:
        """Values sent per sample, all tensors together."""
        return sum(spec.elements for spec in self.features)

    @property
    def head_macs_share(self) -> float:
        """Share of the model's multiply-accumulates that the device does, 0..1."""
        total = self.head_macs + self.tail_macs
        return self.head_macs / total if total else 0.0

    @property
    def head_parameters_share(self) -> float:
        """Share of the parameters that the device needs, 0..1."""
        return self.head_parameters / self.total_parameters if self.total_parameters else 0.0


class SplitModel(NamedTuple):
    """Both halves: `head(x)` gives a tuple of tensors, `tail(*features)` the model's output."""

    head: nn.Module
    tail: nn.Module


class _Whole(nn.Module):
    """The unsplit exported program, giving its one output tensor."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, x: Tensor) -> Tensor:
        (output,) = (leaf for leaf in pytree.tree_leaves(self.program(x)) if isinstance(leaf, Tensor))
        return output


@dataclass(frozen=True, slots=True)
class _Cut:
    """The nodes whose values are sent; `point` is what the world sees of it."""

    nodes: tuple[fx.Node, ...]
    point: SplitPoint


class SplittableModel:
    """An exported model with all its split points; heads and tails share its weights, nothing is copied.

    `max_tensors` > 1 adds the cuts that send several tensors at once. The digest does not depend on it.
    Raises ModelExportError for a program with several inputs or outputs, or a fixed sample axis.
    """

    def __init__(self, program: torch.export.ExportedProgram, *, max_tensors: int = 1) -> None:
        self.program = program
        self.whole: nn.Module = _Whole(_module_of(program))
        functional = program
        if any(_mutates(node) for node in program.graph.nodes):
            # An in-place operation changes a tensor that a cut may already have sent; the same program without
            # them calls the same kernels, and `verify` proves that it gives the same bits.
            with _without_torch_noise():
                functional = program.run_decompositions({})
        self.functional = functional
        module = _module_of(functional)
        if not isinstance(module, fx.GraphModule):  # pragma: no cover - torch.export always gives one
            raise ModelExportError("the exported program is no graph module")
        self._graph = SplitGraph(module)
        self._macs = macs_by_node(module, self._graph.example_input())
        self._cuts = self._find_cuts(max_tensors)
        self._by_name = {cut.point.name: cut for cut in self._cuts}
        for cut in self._cuts:
            for alias in cut.point.aliases:
                self._by_name.setdefault(alias, cut)

    @property
    def split_points(self) -> tuple[SplitPoint, ...]:
        """From "input" (everything on the server) to "output" (everything on the device), in graph order."""
        return tuple(cut.point for cut in self._cuts)

    @property
    def input(self) -> FeatureSpec:
        """What the model takes, as the features of split point "input"."""
        return self._cuts[0].point.features[0]

    @property
    def output(self) -> FeatureSpec:
        """What the model gives, as the features of split point "output"."""
        return self._cuts[-1].point.features[0]

    def split_point(self, name: str) -> SplitPoint:
        """The split point of that name or alias; UnknownSplitPointError names the nearest three."""
        return self._cut(name).point

    def head(self, at: str) -> nn.Module:
        """The part before the cut: head(x [N, ...]) -> tuple of tensors, samples first in each."""
        return self._graph.head(self._cut(at).nodes)

    def tail(self, at: str) -> nn.Module:
        """The part behind the cut: tail(*features) -> output [N, ...]."""
        return self._graph.tail(self._cut(at).nodes)

    def heads(self, names: Sequence[str]) -> nn.Module:
        """One module that gives the features of many single-tensor split points in one pass, in that order."""
        return self._graph.head(tuple(self._cut(name).nodes[0] for name in names))

    def head_nodes(self, at: str) -> list[fx.Node]:
        """The graph's nodes that the head computes, in order; at "output" all that the model computes."""
        wanted = self._graph.ancestors(self._cut(at).nodes)
        return [node for node in self._graph.module.graph.nodes if node in wanted]

    def macs_of(self, node: fx.Node) -> int:
        """Multiply-accumulates of one node of the graph, for one sample."""
        return self._macs.get(node, 0)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over sorted weight names, dtypes, shapes and bytes, and the table of split points; 64 hex digits.

        Not over serialised graphs, so that it is equal on every processor and across torch versions.
        """
        sha = hashlib.sha256()
        for name, tensor in sorted(self.program.state_dict.items()):
            value = tensor.detach().contiguous().cpu()
            sha.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
            sha.update(memoryview(value.reshape(-1).view(torch.uint8).numpy()))
        table = [
            [point.name, [[list(spec.shape), spec.dtype] for spec in point.features]]
            for point in self.split_points
            if len(point.features) == 1
        ]
        sha.update(json.dumps(table).encode())
        return sha.hexdigest()

    def _cut(self, name: str) -> _Cut:
        try:
            return self._by_name[name]
        except KeyError:
            close = difflib.get_close_matches(name, self._by_name, n=len(self._by_name), cutoff=0.0)
            # An alias that is close stands for its split point, under the name that is listed.
            nearest = list(dict.fromkeys(self._by_name[each].point.name for each in close))[:3]
            raise UnknownSplitPointError(f"no split point {name!r}; the nearest are {', '.join(nearest)}") from None

    def _find_cuts(self, max_tensors: int) -> tuple[_Cut, ...]:
        graph = self._graph
        names = name_nodes(graph.dependent)
        total_macs = sum(self._macs.get(node, 0) for node in graph.module.graph.nodes)
        total_parameters = graph.parameters(graph.needed(()))
        cuts: list[_Cut] = []
        for nodes in graph.live_sets(max_tensors):
            specs = tuple(graph.feature_spec(node) for node in nodes)
            if any(spec is None for spec in specs):
                continue
            head_nodes = graph.ancestors(nodes)
            head_macs = sum(self._macs.get(node, 0) for node in head_nodes)
            aliases: tuple[str, ...] = ()
            if nodes == (graph.input,):
                name = "input"
                if graph.output is graph.input:
                    aliases = ("output",)
            elif nodes == (graph.output,):
                name, aliases = "output", tuple(dict.fromkeys(n for n in names[nodes[0]] if n != "output"))
            elif len(nodes) == 1:
                name, *rest = names[nodes[0]]
                aliases = tuple(rest)
            else:
                name = "+".join("input" if n is graph.input else names[n][0] for n in nodes)
            cuts.append(
                _Cut(
                    nodes=nodes,
                    point=SplitPoint(
                        name=name,
                        aliases=aliases,
                        features=cast(tuple[FeatureSpec, ...], specs),
                        head_macs=head_macs,
                        tail_macs=total_macs - head_macs,
                        head_parameters=graph.parameters(head_nodes),
                        total_parameters=total_parameters,
                    ),
                )
            )
        return tuple(cuts)


def export_model(model: nn.Module, example_input: Tensor, *, max_tensors: int = 1) -> SplittableModel:
    """Export a model for any number of samples and find its split points.

    `example_input` is one sample or more, samples first; the export itself runs with two, because an example of
    one would fix the sample axis at one. Raises ModelExportError, with torch's reason in one line.
    """
    example = torch.cat([example_input[:1]] * 2)
    try:
        with _without_torch_noise():
            program = torch.export.export(
                model.eval(),
                (example,),
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=MAX_BATCH)},),
                strict=False,
            )
    except Exception as error:  # torch.export raises whatever the model's own code raises, and a dozen types of its own
        raise ModelExportError(
            f"torch.export refuses {type(model).__name__} for an input {tuple(example.shape)}: {first_line(error)}"
        ) from error
    return SplittableModel(program, max_tensors=max_tensors)


def split(
    model: SplittableModel | torch.export.ExportedProgram | nn.Module, *, at: str, example_input: Tensor | None = None
) -> SplitModel:
    """Cut a model in two: `tail(*head(x))` equals the unsplit exported model bit for bit.

    A plain module needs `example_input` ([N, ...]) to be exported. Raises UnknownSplitPointError or ModelExportError.
    """
    if isinstance(model, torch.export.ExportedProgram):
        model = SplittableModel(model)
    elif isinstance(model, nn.Module):
        if example_input is None:
            raise ValueError("split() needs example_input to export a module")
        model = export_model(model, example_input)
    return SplitModel(model.head(at), model.tail(at))


def first_line(error: BaseException) -> str:
    """The first line of an error's text that says something, without trailing white space."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextmanager
def _without_torch_noise() -> Iterator[None]:
    # torch 2.13 copies its own tree specifications by a way that it has deprecated; users can't act on that.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        # torch's own recurrent layers assign a list of their weights to themselves while they run.
        warnings.filterwarnings("ignore", message="The tensor attributes .*_flat_weights", category=UserWarning)
        yield


def _module_of(program: torch.export.ExportedProgram) -> nn.Module:
    # Guards repeat for every call what the codec and the server have checked already.
    return program.module(check_guards=False)


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and bool(schema.is_mutable)
