"""Inspection: the channel groups of a network, who is in them, what is frozen and why, where cost sits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latmorph import ops
from latmorph.graph.graph import Graph
from latmorph.latency.profile import Profile
from latmorph.morph.cost import LatencyCost


@dataclass(frozen=True)
class MemberRow:
    """A parameter's axis in a group: what it is there, and how many of its indices each channel has."""

    parameter: str
    axis: int
    role: str
    indices_per_channel: int


@dataclass(frozen=True)
class GroupRow:
    """A channel group, and what the operators that its width matters to cost together.

    ``parameters`` counts those that would go with all of its channels. ``time_s`` is None without a profile,
    and where a runtime makes kernels of its own of the operators; ``channel_s`` is what a channel is worth.
    """

    name: str
    width: int
    frozen: str | None
    flops: int
    parameters: int
    time_s: float | None
    channel_s: float | None
    members: tuple[MemberRow, ...]


@dataclass(frozen=True)
class Inspection:
    """Groups of a network in execution order, and the shares of it that can shrink.

    An operator, or a parameter, can shrink when the width of a group that is not frozen matters to it.
    """

    groups: tuple[GroupRow, ...]
    flops: int
    parameters: int
    total_s: float | None
    prunable_flops: float
    prunable_parameters: float


def inspect(graph: Graph, profile: Profile | None = None) -> Inspection:
    """Look at a graph's groups, with times if there is a profile to predict them by.

    Raises UsageError with a profile and operators that have no handler: their time is unknown.
    """
    flops = np.array([int(ops.flops(spec)) for spec in graph.specs], dtype=np.int64)
    shapes = {t.parameter: t.shape for t in graph.tensors if t.parameter is not None}
    sizes = {graph.tensors[t].parameter: int(np.prod(graph.tensors[t].shape)) for t in graph.trainable}
    cost = None if profile is None else LatencyCost(profile)
    prices = None if cost is None else cost.marginal(graph, graph.widths)
    times = None
    if profile is not None and profile.lowering is None:
        times = np.array([op.total_s for op in profile.predict(graph).ops])
    rows = []
    for g, group in enumerate(graph.groups):
        nodes = list(graph.nodes_of_group[g])
        shares: dict[str, float] = {}
        for member in group.members:
            left = 1 - member.indices.size / shapes[member.parameter][member.axis]
            shares[member.parameter] = shares.get(member.parameter, 1.0) * left
        rows.append(
            GroupRow(
                group.name,
                group.width,
                group.frozen,
                int(flops[nodes].sum()),
                round(sum(sizes.get(name, 0) * (1 - left) for name, left in shares.items())),
                None if times is None else float(times[nodes].sum()),
                None if prices is None else float(prices[g]),
                tuple(MemberRow(m.parameter, m.axis, m.role, m.indices.shape[1]) for m in group.members),
            )
        )
    free = sorted({n for g in graph.prunable for n in graph.nodes_of_group[g]})
    touched = {m.parameter for g in graph.prunable for m in graph.groups[g].members}
    return Inspection(
        tuple(rows),
        graph.flops,
        graph.parameters,
        None if cost is None else cost.total(graph),
        float(flops[free].sum() / max(1, graph.flops)),
        sum(n for name, n in sizes.items() if name in touched) / max(1, graph.parameters),
    )
