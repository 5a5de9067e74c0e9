"""Expand: the same network wider, by one multiplier for all groups, as far as a target allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from latmorph.errors import TargetError
from latmorph.graph.capture import capture
from latmorph.graph.graph import Graph
from latmorph.graph.rebuild import grow
from latmorph.morph.cost import CostModel

LARGEST = 16.0
"""Largest width multiplier that is tried."""


def multiplied_widths(graph: Graph, multipliers: np.ndarray) -> np.ndarray:
    """Widths of all groups, int64 of shape ``(multipliers, groups)``; frozen groups keep theirs."""
    widths = np.repeat(graph.widths[None], len(multipliers), axis=0)
    free = list(graph.prunable)
    scaled = np.round(graph.widths[free][None] * multipliers[:, None])
    widths[:, free] = np.maximum(1, scaled.astype(np.int64))
    return widths


def widest(graph: Graph, cost: CostModel, target: float) -> np.ndarray:
    """Widths, of shape ``(groups,)``, at the largest multiplier whose cost is at most ``target``.

    Costs go in steps and can even fall, so multipliers are tried all over the range, not bisected.
    Raises TargetError when even the smallest one costs more.
    """
    low, high = np.log(1.0 / float(max(2, graph.widths.max()))), np.log(LARGEST)
    found: np.ndarray | None = None
    for _ in range(3):
        multipliers = np.exp(np.linspace(low, high, 96))
        tried = multiplied_widths(graph, multipliers)
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
    initialised as their layers initialise themselves. Train the result anew.

    Raises TargetError when no multiplier meets the target.
    """
    graph = capture(small, inputs)
    return with_widths(small, graph, widest(graph, cost, target))


def with_widths(model: torch.nn.Module, graph: Graph, widths: np.ndarray) -> torch.nn.Module:
    """A copy of ``model`` at widths of shape ``(groups,)``: first channels kept, new ones added."""
    changes: dict[str, dict[int, np.ndarray]] = {}
    owners: dict[tuple[str, int], dict[int, np.ndarray]] = {}
    for g, group in enumerate(graph.groups):
        if widths[g] != group.width:
            for member in group.members:
                owners.setdefault((member.parameter, member.axis), {})[g] = member.indices
    sizes = {t.parameter: t.shape for t in graph.tensors if t.parameter is not None}
    for (name, axis), groups in owners.items():
        changes.setdefault(name, {})[axis] = _resized_axis(sizes[name][axis], groups, widths)
    inputs = [(graph.tensors[t].shape, graph.tensors[t].dtype) for t in graph.inputs]
    return grow(model, changes, inputs)


def _resized_axis(size: int, groups: dict[int, np.ndarray], widths: np.ndarray) -> np.ndarray:
    """Old index, or -1, at every place of an axis after its groups got other widths.

    The axis is read as runs: stretches of one group whose channels do not step back. New channels
    stand at the end of their run, as many places each as its last channel has there.
    """
    group_at = np.full(size, -1)
    channel_at = np.full(size, -1)
    for g, indices in groups.items():
        for channel, row in enumerate(indices):
            group_at[row] = g
            channel_at[row] = channel
    breaks = np.flatnonzero((np.diff(group_at) != 0) | (np.diff(channel_at) < 0)) + 1
    parts = []
    for run in np.split(np.arange(size), breaks):
        g = int(group_at[run[0]])
        if g < 0:
            parts.append(run)
            continue
        channels = channel_at[run]
        parts.append(run[channels < widths[g]])
        added = int(widths[g]) - len(groups[g])
        if added > 0:
            parts.append(np.full(added * int(np.sum(channels == channels[-1])), -1))
    return np.concatenate(parts)
