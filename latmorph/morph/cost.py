"""CostModel: what a network costs at given widths, and what a channel of each group is worth.

Every cost is a sum over items (operators, or parameter tensors) whose shapes depend on the widths; one
evaluation of shapes serves them all, for many widths at once.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from latmorph import ops
from latmorph.errors import StructureError, UsageError
from latmorph.graph.graph import Graph
from latmorph.graph.simplify import nodes_left
from latmorph.latency.profile import Profile
from latmorph.latency.roofline import Place, places, written_bytes
from latmorph.opspec import OpSpec, footprint_bytes

if TYPE_CHECKING:
    from latmorph.device.onnxruntime import Lowering

CANDIDATES = 24
"""Widths below the present one at which a group's cost is looked at for its price, at most."""


class CostModel(ABC):
    """The cost of a graph as a function of its groups' widths. Widths: int64, (variants, groups)."""

    name: str
    unit: str

    @abstractmethod
    def items(self, graph: Graph, group: int | None = None) -> Sequence[int]:
        """The items that the cost sums over: all, or those that depend on one group's width."""

    @abstractmethod
    def sum_of(self, graph: Graph, widths: np.ndarray, items: Sequence[int]) -> np.ndarray:
        """Cost of some items, in ``unit``, float64 of shape ``(variants,)``."""

    def items_left(self, graph: Graph, empty: frozenset[int]) -> Collection[int]:
        """The items that are left when some groups are at zero. Raises StructureError where they can't be."""
        return self.items(graph)

    def evaluate(self, graph: Graph, widths: np.ndarray) -> np.ndarray:
        """Cost of the whole network, in ``unit``, float64 of shape ``(variants,)``.

        Groups at zero take with them what :func:`latmorph.graph.simplify.nodes_left` says; where they cut
        the network in two, it costs infinitely much.
        """
        return self._sums(graph, widths, self.items(graph))

    def _sums(self, graph: Graph, widths: np.ndarray, items: Sequence[int]) -> np.ndarray:
        """:meth:`sum_of` those of the items that are left at each row of widths."""
        found = np.full(len(widths), np.inf)
        for empty in dict.fromkeys(map(_empty, widths)):
            rows = [k for k, row in enumerate(widths) if _empty(row) == empty]
            with contextlib.suppress(StructureError):
                left = self.items_left(graph, empty) if empty else None
                own = items if left is None else [i for i in items if i in left]
                found[rows] = self.sum_of(graph, widths[rows], own)
        return found

    def total(self, graph: Graph, widths: np.ndarray | None = None) -> float:
        """Cost of the network at one set of widths, its own by default."""
        chosen = graph.widths if widths is None else widths
        return float(self.evaluate(graph, chosen[None])[0])

    def change(self, graph: Graph, widths: np.ndarray, tried: np.ndarray) -> np.ndarray:
        """Change of the network's cost from ``widths``, of shape ``(groups,)``, to each row of ``tried``.

        Only items that depend on a group that changes are evaluated, and those that a group at zero takes
        with it.
        """
        moved = np.flatnonzero((tried != widths).any(axis=0)).tolist()
        items = {item for g in moved for item in self.items(graph, g)}
        for empty in {*map(_empty, tried)} - {_empty(widths)}:
            with contextlib.suppress(StructureError):
                items |= {*self.items(graph)} - {*self.items_left(graph, empty)}
        costs = self._sums(graph, np.vstack([tried, widths]), sorted(items))
        return np.asarray(costs[:-1] - costs[-1])

    def candidates(self, width: int) -> list[int]:
        """Widths below a group's present one at which its cost is looked at for its price."""
        return candidate_widths(width)

    def marginal(self, graph: Graph, widths: np.ndarray, least: np.ndarray | None = None) -> np.ndarray:
        """What one channel of each group is worth, in ``unit``, float64 of shape ``(groups,)``.

        ``least``, int64 of shape ``(groups,)``, is how narrow each may become, 1 by default.
        On a staircase the local slope says nothing: it is zero on a step and wild at an edge. The price
        is the slope, at the present width, of the lower convex hull of cost against width: the best
        saving a channel can still buy. Frozen groups, and those that can't be narrower, are worth nothing.
        """
        prices = np.zeros(len(graph.groups))
        for g in graph.prunable:
            width, floor = int(widths[g]), 1 if least is None else int(least[g])
            candidates = [c for c in self.candidates(width) if c >= floor] if width > 1 else []
            candidates = sorted({*candidates, floor}) if floor < width else candidates
            if not candidates:
                continue
            tried = np.repeat(widths[None], len(candidates), axis=0)
            tried[:, g] = candidates
            saved = -self.change(graph, widths, tried)
            prices[g] = max(0.0, float(np.max(saved / (width - np.asarray(candidates)))))
        return prices


def _empty(widths: np.ndarray) -> frozenset[int]:
    """The groups at zero."""
    return frozenset(np.flatnonzero(widths == 0).tolist())


def candidate_widths(width: int, most: int = CANDIDATES) -> list[int]:
    """Widths from 1 to ``width - 1``: all if few, else the nearest below, block edges, and a spread."""
    if width - 1 <= most:
        return list(range(1, width))
    near = {width - 1, width - 2}
    edges = {width - width % block for block in (8, 16, 32, 64) if width % block}
    spread = {int(w) for w in np.linspace(1, width - 1, most - len(near) - len(edges))}
    rounded = {max(1, w - w % 8) for w in spread}
    return sorted((near | edges | rounded | {1}) - {0})


class _OperatorCost(CostModel):
    def items_left(self, graph: Graph, empty: frozenset[int]) -> Collection[int]:
        return nodes_left(graph, empty)

    def items(self, graph: Graph, group: int | None = None) -> Sequence[int]:
        return range(len(graph.nodes)) if group is None else graph.nodes_of_group[group]


class FlopCost(_OperatorCost):
    """FLOPs of one forward pass, two a multiply-add."""

    name = "FLOPs"
    unit = "FLOPs"

    def sum_of(self, graph: Graph, widths: np.ndarray, items: Sequence[int]) -> np.ndarray:
        total = np.zeros(len(widths))
        for spec in graph.specs_at(widths, items):
            total = total + ops.flops(spec)
        return total


class ParameterCost(CostModel):
    """Number of parameters; a tensor that several operators share counts once."""

    name = "parameters"
    unit = "parameters"

    def items(self, graph: Graph, group: int | None = None) -> Sequence[int]:
        if group is None:
            return graph.trainable
        touched = {t for (t, _), size in graph.channels.axes.items() if group in size.groups}
        return [t for t in graph.trainable if t in touched]

    def items_left(self, graph: Graph, empty: frozenset[int]) -> Collection[int]:
        return {t for i in nodes_left(graph, empty) for t in graph.nodes[i].inputs}

    def sum_of(self, graph: Graph, widths: np.ndarray, items: Sequence[int]) -> np.ndarray:
        total = np.zeros(len(widths))
        for tensor in items:
            total = total + ops.prod(graph.shape_at(tensor, widths))
        return total


class LatencyCost(_OperatorCost):
    """Predicted seconds on a profile's device.

    Where the runtime makes kernels of its own of a network, it is asked for them at every set of widths: of
    the whole network, or, where only some operators matter, of those and what they may be fused with.

    Raises UsageError for a network with operators that have no handler: their latency is unknown, and
    leaving them out would misprice every channel.
    """

    name = "latency"
    unit = "s"

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._prices: dict[tuple[Place, OpSpec], float] = {}
        self._places: WeakKeyDictionary[Graph, list[Place]] = WeakKeyDictionary()

    def candidates(self, width: int) -> list[int]:
        if self.profile.lowering is None:
            return candidate_widths(width)
        # Every one of them is asked of the runtime, so only the best are: whole blocks.
        block = self.profile.lowering.block
        blocks = list(range(block, width, block))
        return blocks[:: -(-len(blocks) // 8)] if len(blocks) > 1 else candidate_widths(width, 6)

    def evaluate(self, graph: Graph, widths: np.ndarray) -> np.ndarray:
        return super().evaluate(graph, widths) + self.profile.model.overhead_s

    def sum_of(self, graph: Graph, widths: np.ndarray, items: Sequence[int]) -> np.ndarray:
        _refuse_unknown(graph.unknown)
        if not len(items):
            return np.zeros(len(widths))
        if self.profile.lowering is not None:
            return self._sum_of_kernels(self.profile.lowering, graph, widths, items)
        # Where they stand in the network as it is, at all widths: so costs stay sums over operators.
        if graph not in self._places:
            self._places[graph] = places(self.profile.model.roofs, graph.specs)
        where = [self._places[graph][i] for i in items]
        prediction = self.profile.predictor(graph.specs_at(widths, items), where, len(widths))
        return np.asarray(prediction.total_s.sum(axis=0))

    def _sum_of_kernels(
        self, lowering: Lowering, graph: Graph, widths: np.ndarray, items: Sequence[int]
    ) -> np.ndarray:
        whole = len(items) == len(graph.nodes)
        nodes = None if whole else neighbourhood(graph, items)
        networks = [graph.steps_at(row, nodes) for row in widths]
        own = [operator.spec for operator in self.profile.operators(graph)]
        footprint, roofs = footprint_bytes(own), self.profile.model.roofs
        start = 0 if nodes is None else min(nodes)
        before = {"written": written_bytes(graph.specs[:start]), "ran": start * len(own) // len(graph.nodes)}
        found = []
        for kernels in lowering.networks(networks):
            specs = [kernel.spec for kernel in kernels]
            where = places(roofs, specs, footprint=footprint, operators=len(own), **before)
            found.append(list(zip(where, specs, strict=True)))
        new = list(dict.fromkeys(k for keys in found for k in keys if k not in self._prices))
        if new:
            _refuse_unknown(s.kind.removeprefix(ops.UNKNOWN) for _, s in new if not ops.is_known(s))
            totals = self.profile.predictor([s for _, s in new], [p for p, _ in new]).total_s[:, 0]
            self._prices.update(zip(new, totals.tolist(), strict=True))
        return np.array([sum(self._prices[k] for k in keys) for keys in found])


def _refuse_unknown(names: Iterable[str]) -> None:
    unknown = sorted(set(names))
    if unknown:
        raise UsageError(
            f"latency cannot be the cost of a network with unknown operators: {', '.join(unknown)}"
        )


REACH = 4
"""How many light operators in a row a runtime is taken to fuse with a product."""


def neighbourhood(graph: Graph, nodes: Iterable[int]) -> list[int]:
    """These nodes, and the others that a runtime may lay out or fuse differently when their widths change.

    Those are light ones, and beyond them the first that multiplies matrices, either way. Images may lie in
    blocks of channels all along a chain of light operators, so such a chain is followed to its ends: a
    stage of a residual network. Anything else is followed for :data:`REACH` operators.
    """
    readers: dict[int, list[int]] = {}
    writer: dict[int, int] = {}
    for i, node in enumerate(graph.nodes):
        writer.update(dict.fromkeys(node.outputs, i))
        for tensor in node.inputs:
            readers.setdefault(tensor, []).append(i)
    found = dict.fromkeys(nodes, 0)
    front = list(found)
    for i in front:
        node = graph.nodes[i]
        if found[i] and (found[i] > REACH or np.any(ops.flops(node.spec))):
            continue
        for tensor in (*node.inputs, *node.outputs):
            near = readers.get(tensor, []) + ([writer[tensor]] if tensor in writer else [])
            image = len(graph.tensors[tensor].shape) == 4
            for j in near if graph.tensors[tensor].parameter is None else ():
                if j not in found:
                    found[j] = max(1, found[i]) if image else found[i] + 1
                    front.append(j)
    return sorted(found)
