"""Cliffs: the widths of a network at which a channel more or less changes its cost by a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latmorph.graph.graph import Graph
from latmorph.morph.cost import CostModel

REACH = 32
"""Channels below the present width within which cliffs are looked for, unless said."""

STEEPEST = 4
"""A cliff is at most this many channels wide."""

LEAST_SHARE = 0.005
"""A change of less than this share of the network's cost is no cliff."""


@dataclass(frozen=True)
class Cliff:
    """A step in the network's cost as one group narrows from ``above`` to ``below`` channels.

    ``share`` is the step's change of the cost and ``from_present`` the change from the group's present
    ``width`` to ``below``, both as fractions of the network's present cost: below zero where narrowing saves,
    above zero where fewer channels cost more.
    """

    group: str
    width: int
    above: int
    below: int
    share: float
    from_present: float

    @property
    def saves(self) -> bool:
        """Whether narrowing over the cliff saves, and is no trap."""
        return self.share < 0


def find_cliffs(
    graph: Graph, cost: CostModel, widths: np.ndarray | None = None, *, reach: int = REACH
) -> tuple[Cliff, ...]:
    """The cliffs at and below the present widths, of shape ``(groups,)``, the largest first.

    For every group that can be pruned, at most two: the nearest of the large savings within ``reach``
    channels, and the nearest of the large traps. A step counts where it is far steeper than the cost is on
    average; a saving, where it ends below the present cost.
    """
    present = graph.widths if widths is None else widths
    total = cost.total(graph, present)
    found: list[Cliff] = []
    for g in graph.prunable:
        width = int(present[g])
        reached = np.arange(width, max(0, width - reach - 1), -1)
        if len(reached) < 2 or total <= 0:
            continue
        tried = np.repeat(present[None], len(reached), axis=0)
        tried[:, g] = reached
        change = cost.change(graph, present, tried) / total
        for sign in (-1, 1):
            steps = _steps(sign * change)
            if sign < 0:
                steps = [(start, end) for start, end in steps if change[end] <= -LEAST_SHARE]
            if steps:
                start, end = _nearest(steps, sign * change)
                step, so_far = float(change[end] - change[start]), float(change[end])
                name = graph.groups[g].name
                found.append(Cliff(name, width, int(reached[start]), int(reached[end]), step, so_far))
    return tuple(sorted(found, key=lambda cliff: -abs(cliff.share)))


def _steps(cost: np.ndarray) -> list[tuple[int, int]]:
    """Where ``cost`` jumps up by a step: pairs of positions that do not overlap, in order.

    A step begins with a channel at least twice as steep as the average, and ends where it holds three
    quarters of what lies above the average slope.
    """
    slope = max(0.0, float(cost[-1] - cost[0]) / (len(cost) - 1))
    steps: list[tuple[int, int]] = []
    start = 0
    while start < len(cost) - 1:
        ends = np.arange(start + 1, min(start + STEEPEST, len(cost) - 1) + 1)
        rise = cost[ends] - cost[start]
        excess = rise - slope * (ends - start)
        k = int(np.argmax(excess >= 0.75 * excess.max()))
        if rise[0] > 0 and rise[0] >= 2 * slope and rise[k] >= LEAST_SHARE:
            steps.append((start, int(ends[k])))
            start = int(ends[k])
        else:
            start += 1
    return steps


def _nearest(steps: list[tuple[int, int]], cost: np.ndarray) -> tuple[int, int]:
    """The first step that is at least half as large as the largest."""
    sizes = [cost[end] - cost[start] for start, end in steps]
    return next(step for step, size in zip(steps, sizes, strict=True) if size >= max(sizes) / 2)
