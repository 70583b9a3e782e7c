"""Stable, human names for the nodes of an exported graph.

A node is named after the outermost module whose last node it is ("stage2", not "stage2.2.relu2"; the inner names
are its aliases). A node in the middle of a module is named module/operation ("stage2.0/add"), and numbered from the
second of its kind on ("stage2.0/add:2"). Knows the metadata that torch.export leaves on nodes, and nothing of cuts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from torch import fx

_CALL_NUMBER = re.compile(r"@\d+$")  # torch marks the second call of one module as path@1


def module_paths(node: fx.Node) -> list[str]:
    """Paths of the modules that the node runs in, outermost first, the root left out."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [_CALL_NUMBER.sub("", str(entry[0])) for entry in stack.values()]
    return [path for path in dict.fromkeys(paths) if path and not path.startswith("_empty_nn_module_stack")]


def _operation(node: fx.Node) -> str:
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        return str(schema.name).rpartition("::")[2]
    return str(getattr(node.target, "__name__", node.target))


def name_nodes(nodes: Sequence[fx.Node]) -> dict[fx.Node, list[str]]:
    """Name first, then aliases, for every node; all names are distinct. `nodes` come in graph order."""
    last_of_module = {path: node for node in nodes for path in module_paths(node)}
    ends: dict[fx.Node, list[str]] = {}
    for path, node in last_of_module.items():
        ends.setdefault(node, []).append(path)
    used: Counter[str] = Counter()
    names: dict[fx.Node, list[str]] = {}
    for node in nodes:
        # Outer paths are prefixes of inner ones, so the shortest is the outermost.
        own = sorted(ends.get(node, []), key=len)
        if not own:
            paths = module_paths(node)
            inner = max(paths, key=len) if paths else ""
            label = f"{inner}/{_operation(node)}" if inner else _operation(node)
            used[label] += 1
            own = [label if used[label] == 1 else f"{label}:{used[label]}"]
        names[node] = own
    return names
