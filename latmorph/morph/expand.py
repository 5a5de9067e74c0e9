"""Expand: the same network wider, by one multiplier for all groups, as far as a target allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from latmorph.errors import StructureError, TargetError
from latmorph.graph.capture import capture
from latmorph.graph.graph import Graph
from latmorph.graph.rebuild import grown
from latmorph.morph.cost import CostModel

LARGEST = 16.0
"""Largest width multiplier that is tried."""


def factors(graph: Graph) -> frozenset[int]:
    """Groups whose channels are what others' are divided into: heads and their widths, say, or groups."""
    terms = (term for size in graph.channels.axes.values() for term, _ in size.terms)
    return frozenset(g for term in terms if len(term) > 1 for g in term)


def outer_factors(graph: Graph) -> frozenset[int]:
    """Those factors that come first: heads, and the groups of grouped convolutions."""

    def is_run(indices: np.ndarray) -> bool:
        return indices.shape[1] > 1 and bool((np.diff(indices[0]) == 1).all())

    return frozenset(g for g in factors(graph) if any(is_run(m.indices) for m in graph.groups[g].members))


def multiplied_widths(
    graph: Graph, multipliers: np.ndarray, fixed: frozenset[int] = frozenset()
) -> np.ndarray:
    """Widths, int64 of shape ``(multipliers, groups)``; groups that are frozen or ``fixed`` keep theirs."""
    widths = np.repeat(graph.widths[None], len(multipliers), axis=0)
    free = [g for g in graph.prunable if g not in fixed]
    scaled = np.round(graph.widths[free][None] * multipliers[:, None])
    widths[:, free] = np.maximum(1, scaled.astype(np.int64))
    return widths


def widest(graph: Graph, cost: CostModel, target: float, fixed: frozenset[int] = frozenset()) -> np.ndarray:
    """Widths, of shape ``(groups,)``, at the largest multiplier whose cost is at most ``target``.

    Costs go in steps and can even fall, so multipliers are tried all over the range, not bisected.
    Raises TargetError when even the smallest one costs more.
    """
    low, high = np.log(1.0 / float(max(2, graph.widths.max()))), np.log(LARGEST)
    found: np.ndarray | None = None
    for _ in range(3):
        multipliers = np.exp(np.linspace(low, high, 96))
        tried = multiplied_widths(graph, multipliers, fixed)
        fits = np.flatnonzero(cost.evaluate(graph, tried) <= target)
        if len(fits) == 0:
            break
        best = int(fits[-1])
        found = tried[best]
        if best + 1 == len(multipliers):
            break
        low, high = np.log(multipliers[best]), np.log(multipliers[best + 1])
    if found is None:
        raise TargetError(
            f"{cost.name}: no width multiplier brings the network to {target:g} {cost.unit}; at its own "
            f"widths it costs {cost.total(graph):g} {cost.unit}"
        )
    return found


def expand(
    small: torch.nn.Module, inputs: Sequence[Any], *, cost: CostModel, target: float
) -> torch.nn.Module:
    """A copy of ``small`` whose groups are all wider (or narrower) by the largest factor that fits.

    ``target`` is a cost in the cost model's own unit (seconds for :class:`LatencyCost`), such as
    ``cost.total(lm.capture(parent, inputs))``. Old weights are kept where they were; new ones are
    initialised as their layers initialise themselves. Train the result anew. The number of heads, and of the
    groups of grouped convolutions, stays; so does what is in each where the model's code divides by them.

    Raises TargetError when no multiplier meets the target, StructureError when the model's ``forward``
    hard-codes a size that changes.
    """
    graph = capture(small, inputs)
    try:
        fixed = outer_factors(graph)
        return with_widths(small, graph, widest(graph, cost, target, fixed))
    except StructureError:
        fixed = factors(graph)
        return with_widths(small, graph, widest(graph, cost, target, fixed))


def with_widths(model: torch.nn.Module, graph: Graph, widths: np.ndarray) -> torch.nn.Module:
    """A copy of ``model`` at widths of shape ``(groups,)``: first channels kept, new ones added."""
    changes: dict[str, dict[int, np.ndarray]] = {}
    owners: dict[tuple[str, int], dict[int, np.ndarray]] = {}
    changed = {g for g, group in enumerate(graph.groups) if widths[g] != group.width}
    for g, group in enumerate(graph.groups):
        for member in group.members:
            owners.setdefault((member.parameter, member.axis), {})[g] = member.indices
    sizes = {t.parameter: t.shape for t in graph.tensors if t.parameter is not None}
    for (name, axis), groups in owners.items():
        if changed.intersection(groups):
            changes.setdefault(name, {})[axis] = _resized_axis(sizes[name][axis], groups, widths)
    return grown(model, graph, changes, widths)


def _resized_axis(size: int, groups: dict[int, np.ndarray], widths: np.ndarray) -> np.ndarray:
    """Old index, or -1, at every place of an axis after its groups got other widths.

    For one group after the other the axis is read as runs: stretches of the group whose channels do not step
    back. New channels stand at the end of their run, each a copy of the last one's places.
    """
    old = np.arange(size)
    channel = np.full((size, len(groups)), -1)
    for k, indices in enumerate(groups.values()):
        for number, row in enumerate(indices):
            channel[row, k] = number
    for k, (g, indices) in enumerate(groups.items()):
        own = channel[:, k]
        breaks = np.flatnonzero(((own[1:] < 0) != (own[:-1] < 0)) | (np.diff(own) < 0)) + 1
        olds, channels = [], []
        for run in np.split(np.arange(len(old)), breaks):
            if own[run[0]] < 0:
                olds.append(old[run])
                channels.append(channel[run])
                continue
            kept = run[own[run] < widths[g]]
            olds.append(old[kept])
            channels.append(channel[kept])
            last = run[own[run] == own[run[-1]]]
            for number in range(len(indices), int(widths[g])):
                olds.append(np.full(len(last), -1))
                added = channel[last].copy()
                added[:, k] = number
                channels.append(added)
        old, channel = np.concatenate(olds), np.concatenate(channels)
    return old
