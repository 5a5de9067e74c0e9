"""Simplify: what follows when groups are at zero, and which operators are then needed no more.

A tensor without elements is empty. What sums over an empty tensor makes a constant; what is computed of
constants alone is one; a concatenation loses its empty parts. Everything else stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from weakref import WeakKeyDictionary

import numpy as np

from latmorph import ops
from latmorph.errors import StructureError
from latmorph.graph.cut import Cut
from latmorph.graph.graph import Graph, Node

CONCATENATIONS = ("cat", "concat", "concatenate")
SUMS = ("sum", "nansum")


class State(Enum):
    """What a tensor is in a network with groups at zero."""

    LIVE = "depends on the network's inputs"
    STATIC = "depends on parameters alone"
    CONSTANT = "is the same whatever the inputs are, since something before it is empty"
    EMPTY = "has no elements"


def states(cut: Cut) -> dict[int, State]:
    """The state of every tensor. Raises StructureError where a group at zero cannot be.

    That is where an operator would go on without what it reads, and where an output of the network would not
    depend on its inputs any more: the network would be cut in two.
    """
    graph = cut.graph
    found = {t: State.STATIC for t, tensor in enumerate(graph.tensors) if tensor.parameter is not None}
    found.update(dict.fromkeys(graph.inputs, State.LIVE))
    before = dict(found)
    blame: dict[int, str] = {}
    for node in graph.nodes:
        for t in node.outputs:
            reads = [found.get(i, State.STATIC) for i in node.inputs]
            found[t] = State.EMPTY if cut.is_empty(t) else _state(node, reads, cut)
            was = [before.get(i, State.STATIC) for i in node.inputs]
            before[t] = State.LIVE if State.LIVE in was else State.STATIC
            if found[t] is State.CONSTANT:
                named = (blame.get(i) or _zero_group(cut, i) for i in node.inputs)
                blame[t] = next((name for name in named if name), "")
    for t in graph.outputs:
        if before.get(t) is State.LIVE and found.get(t) is not State.LIVE:
            raise StructureError(
                f"group {blame.get(t, '')!r} at zero cuts the network in two: an output would not depend on "
                "the inputs any more; keep at least one channel of it"
            )
    return found


_LEFT: WeakKeyDictionary[Graph, dict[frozenset[int], frozenset[int]]] = WeakKeyDictionary()


def nodes_left(graph: Graph, empty: frozenset[int]) -> frozenset[int]:
    """The operators that are still run when these groups are at zero.

    Those without elements are not, nor those that make constants, nor those that only lead to such. Raises
    StructureError as :func:`states` does.
    """
    known = _LEFT.setdefault(graph, {})
    if empty not in known:
        ends = np.cumsum(graph.widths)
        alive = np.ones(int(graph.widths.sum()), dtype=bool)
        for g in empty:
            alive[ends[g] - graph.widths[g] : ends[g]] = False
        found = states(Cut(graph, alive))
        run = {t for t, state in found.items() if state in (State.LIVE, State.STATIC)}
        # What nothing reads may write to memory that something else reads: it stays.
        unread = {*range(len(graph.nodes))} - _needed(graph, {*found})
        known[empty] = frozenset(
            _needed(graph, run) | {i for i in unread if run.issuperset(graph.nodes[i].outputs)}
        )
    return known[empty]


def _needed(graph: Graph, run: Collection[int]) -> set[int]:
    """The operators that the outputs need, where only the tensors ``run`` are computed."""
    needed, found = set(graph.outputs), set()
    for i in reversed(range(len(graph.nodes))):
        node = graph.nodes[i]
        if any(t in needed and t in run for t in node.outputs):
            found.add(i)
            needed.update(node.inputs)
    return found


def _state(node: Node, reads: list[State], cut: Cut) -> State:
    activations = [s for s, t in zip(reads, node.spec.inputs, strict=True) if not t.parameter]
    if State.EMPTY in reads:
        if node.spec.kind in CONCATENATIONS:
            activations = [s for s in activations if s is not State.EMPTY]
        elif sums_over(node):
            return State.CONSTANT
        else:
            empty = next(t for s, t in zip(reads, node.inputs, strict=True) if s is State.EMPTY)
            raise StructureError(
                f"group {_zero_group(cut, empty)!r} can't be at zero: {node.module or node.name} "
                f"({node.spec.kind}) needs at least one channel of it"
            )
    if State.LIVE in activations:
        return State.LIVE
    if activations and all(s is State.CONSTANT for s in activations):
        return State.CONSTANT
    return State.STATIC


def sums_over(node: Node) -> bool:
    """Whether the operator is a sum of products, or a sum, which is zero over nothing (bias aside)."""
    if node.spec.kind in SUMS:
        return True
    # Recurrent layers, which have several outputs, and attention go on from what they sum.
    single = len(node.outputs) == 1 and node.spec.kind != "scaled_dot_product_attention"
    return single and bool(np.any(ops.flops(node.spec) > 0))


def _zero_group(cut: Cut, tensor: int) -> str:
    """Name of a group at zero that a tensor has channels of."""
    rank = len(cut.graph.tensors[tensor].shape)
    sizes = (cut.graph.channels.axes.get((tensor, a)) for a in range(rank))
    groups = sorted({g for size in sizes if size for g in size.groups})
    return next((cut.graph.groups[g].name for g in groups if cut.widths[g] == 0), "")
