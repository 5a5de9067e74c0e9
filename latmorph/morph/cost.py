"""CostModel: what a network costs at given widths, and what a channel of each group is worth.

Every cost is a sum over items (operators, or parameter tensors) whose shapes depend on the widths; one
evaluation of shapes serves them all, for many widths at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from latmorph import ops
from latmorph.errors import UsageError
from latmorph.graph.graph import Graph
from latmorph.latency.profile import Profile

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

    def evaluate(self, graph: Graph, widths: np.ndarray) -> np.ndarray:
        """Cost of the whole network, in ``unit``, float64 of shape ``(variants,)``."""
        return self.sum_of(graph, widths, self.items(graph))

    def total(self, graph: Graph, widths: np.ndarray | None = None) -> float:
        """Cost of the network at one set of widths, its own by default."""
        chosen = graph.widths if widths is None else widths
        return float(self.evaluate(graph, chosen[None])[0])

    def change(self, graph: Graph, widths: np.ndarray, tried: np.ndarray) -> np.ndarray:
        """Change of the network's cost from ``widths``, of shape ``(groups,)``, to each row of ``tried``.

        Only items that depend on a group that changes are evaluated.
        """
        moved = np.flatnonzero((tried != widths).any(axis=0)).tolist()
        items = sorted({item for g in moved for item in self.items(graph, g)})
        costs = self.sum_of(graph, np.vstack([tried, widths]), items)
        return np.asarray(costs[:-1] - costs[-1])

    def marginal(self, graph: Graph, widths: np.ndarray) -> np.ndarray:
        """What one channel of each group is worth, in ``unit``, float64 of shape ``(groups,)``.

        On a staircase the local slope says nothing: it is zero on a step and wild at an edge. The price
        is the slope, at the present width, of the lower convex hull of cost against width: the best
        saving a channel can still buy. Frozen groups, and groups of one channel, are worth nothing.
        """
        prices = np.zeros(len(graph.groups))
        for g in graph.prunable:
            width = int(widths[g])
            if width < 2:
                continue
            candidates = candidate_widths(width)
            tried = np.repeat(widths[None], len(candidates), axis=0)
            tried[:, g] = candidates
            saved = -self.change(graph, widths, tried)
            prices[g] = max(0.0, float(np.max(saved / (width - np.asarray(candidates)))))
        return prices


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
        touched = {t for (t, _), parts in graph.axes.items() for g, _ in parts if g == group}
        return [t for t in graph.trainable if t in touched]

    def sum_of(self, graph: Graph, widths: np.ndarray, items: Sequence[int]) -> np.ndarray:
        total = np.zeros(len(widths))
        for tensor in items:
            total = total + ops.prod(graph.shape_at(tensor, widths))
        return total


class LatencyCost(_OperatorCost):
    """Predicted seconds on a profile's device.

    Raises UsageError for a network with operators that have no handler: their latency is unknown, and
    leaving them out would misprice every channel.
    """

    name = "latency"
    unit = "s"

    def __init__(self, profile: Profile) -> None:
        self.profile = profile

    def sum_of(self, graph: Graph, widths: np.ndarray, items: Sequence[int]) -> np.ndarray:
        if graph.unknown:
            raise UsageError(
                f"latency cannot be the cost of a network with unknown operators: {', '.join(graph.unknown)}"
            )
        specs = graph.specs_at(widths, items)
        if not specs:
            return np.zeros(len(widths))
        # The network's own footprint at all widths: so costs stay sums over operators.
        prediction = self.profile.predictor(specs, graph.footprint_bytes, len(widths))
        return np.asarray(prediction.total_s.sum(axis=0))
