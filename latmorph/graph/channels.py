"""Channel groups: which indices of which parameters live and die together.

Every index of a parameter's channel axis is an atom. Operators carry atoms along and tie them
(:meth:`latmorph.ops.Handler.channels`); connected components of tied atoms are channels, and channels
that stand at the same places of the network form a group.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from latmorph import ops
from latmorph.graph.graph import ChannelGroup, Member, Node, Tensor

Axes = dict[tuple[int, int], tuple[tuple[int, int], ...]]


def find_groups(
    nodes: Sequence[Node], tensors: Sequence[Tensor], inputs: Sequence[int], outputs: Sequence[int]
) -> tuple[tuple[ChannelGroup, ...], Axes]:
    """Channel groups in execution order, and the groups along every labelled (tensor, axis)."""
    atoms = _Atoms(tensors)
    given = frozenset(inputs)
    for node in nodes:
        ops.handler_of(node.spec.kind).channels(node.spec, _NodeAxes(atoms, node, given))
    for tensor in outputs:
        for axis in range(len(tensors[tensor].shape)):
            atoms.freeze(atoms.labels.get((tensor, axis)), "the network's output")
    return atoms.groups(_modules(tensors))


def _modules(tensors: Sequence[Tensor]) -> dict[int, str]:
    """Module that owns each parameter, by the parameter's own name."""
    return {
        i: (t.parameter.rpartition(".")[0] or t.parameter)
        for i, t in enumerate(tensors)
        if t.parameter is not None
    }


class _Atoms:
    """Atoms, the ties between them, and the reasons why some are frozen."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors
        self.labels: dict[tuple[int, int], np.ndarray | None] = {}
        self.roles: dict[tuple[int, int], str] = {}
        self.count = 0
        self.ties: list[tuple[np.ndarray, np.ndarray]] = []
        self.frozen: list[tuple[np.ndarray, str]] = []

    def parameter_axis(self, tensor: int, axis: int, role: str) -> np.ndarray:
        key = (tensor, axis)
        found = self.labels.get(key)
        if found is None:
            size = self.tensors[tensor].shape[axis]
            found = np.arange(self.count, self.count + size)
            self.count += size
            self.labels[key] = found
            self.roles[key] = role
        return found

    def tie(self, a: np.ndarray | None, b: np.ndarray | None, where: str, unlabelled: str) -> None:
        if a is None or b is None:
            self.freeze(b if a is None else a, f"{where} {unlabelled}")
        elif len(a) != len(b):
            self.freeze(a, f"{where} ties axes of different sizes")
            self.freeze(b, f"{where} ties axes of different sizes")
        else:
            self.ties.append((a, b))

    def freeze(self, labels: np.ndarray | None, reason: str) -> None:
        if labels is not None and len(labels):
            self.frozen.append((labels, reason))

    def components(self) -> np.ndarray:
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        if not self.ties:
            return np.arange(self.count)
        a = np.concatenate([t[0] for t in self.ties])
        b = np.concatenate([t[1] for t in self.ties])
        edges = coo_matrix((np.ones(len(a), dtype=np.int8), (a, b)), shape=(self.count, self.count))
        return np.asarray(connected_components(edges, directed=False)[1])

    def groups(self, modules: dict[int, str]) -> tuple[tuple[ChannelGroup, ...], Axes]:
        if not self.count:
            return (), {}
        component = self.components()
        channels = int(component.max()) + 1
        reason = np.zeros(channels, dtype=np.int64)
        reasons: list[str | None] = [None]
        for labels, text in self.frozen:
            if text not in reasons:
                reasons.append(text)
            touched = component[labels]
            touched = touched[reason[touched] == 0]
            reason[touched] = reasons.index(text)

        places = {key: component[x] for key, x in self.labels.items() if x is not None and len(x)}
        # Channels with the same count at the same places (and the same reason) form one group.
        signature = _mix(reason.astype(np.uint64))
        for place, member in enumerate(places.values(), start=1):
            present, counts = np.unique(member, return_counts=True)
            signature[present] += _mix((np.uint64(place) << np.uint64(32)) + counts.astype(np.uint64))
        order = np.full(channels, self.count, dtype=np.int64)
        np.minimum.at(order, component, np.arange(self.count))
        _, group = np.unique(signature, return_inverse=True)
        first = np.full(int(group.max()) + 1, self.count, dtype=np.int64)
        np.minimum.at(first, group, order)
        rank = np.argsort(np.argsort(first))
        group = rank[group]
        by_group = np.lexsort((order, group))
        widths = np.bincount(group)
        unit = np.empty(channels, dtype=np.int64)
        unit[by_group] = np.arange(channels) - np.repeat(np.cumsum(widths) - widths, widths)

        members: list[list[Member]] = [[] for _ in widths]
        owners: list[list[tuple[bool, int, str]]] = [[] for _ in widths]
        axes: Axes = {}
        for (tensor, axis), member in places.items():
            groups_here = group[member]
            parts = []
            for g in np.unique(groups_here):
                here = np.flatnonzero(groups_here == g)
                per_unit = len(here) // int(widths[g])
                parts.append((int(g), per_unit))
                name = self.tensors[tensor].parameter
                if name is not None:
                    role = self.roles[(tensor, axis)]
                    indices = here[np.argsort(unit[member[here]], kind="stable")]
                    indices = indices.reshape(int(widths[g]), per_unit)
                    indices.setflags(write=False)
                    members[g].append(Member(name, axis, role, indices))
                    owners[g].append((role != "output", len(owners[g]), modules[tensor]))
            axes[(tensor, axis)] = tuple(parts)

        names: dict[str, int] = {}
        result = []
        for g, width in enumerate(widths):
            # The module that makes the channels; where none does, the first that reads them.
            reads_only, _, name = min(owners[g])
            name = f"{name}:input" if reads_only else name
            seen = names[name] = names.get(name, 0) + 1
            text = reasons[reason[by_group[int(np.sum(widths[:g]))]]]
            unique = name if seen == 1 else f"{name}:{seen}"
            result.append(ChannelGroup(unique, int(width), tuple(members[g]), text))
        return tuple(result), axes


def _mix(x: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser: spreads 64-bit integers so that sums of them rarely collide."""
    with np.errstate(over="ignore"):
        x = (x + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(x ^ (x >> np.uint64(31)))


class _NodeAxes:
    """The :class:`latmorph.ops.AxisLabels` of one node."""

    def __init__(self, atoms: _Atoms, node: Node, inputs: frozenset[int]) -> None:
        self.atoms = atoms
        self.node = node
        reads_input = any(t in inputs for t in node.inputs)
        self.unlabelled = "reads the network's input" if reads_input else "meets an axis without channels"

    def axis(self, operand: int, axis: int, role: str = "elementwise") -> np.ndarray | None:
        tensor = self.node.inputs[operand]
        if self.node.spec.inputs[operand].parameter:
            return self.atoms.parameter_axis(tensor, axis, role)
        return self.atoms.labels.get((tensor, axis))

    def tie(self, a: np.ndarray | None, b: np.ndarray | None) -> None:
        if a is not None or b is not None:
            self.atoms.tie(a, b, self.node.module or self.node.spec.kind, self.unlabelled)

    def freeze(self, labels: np.ndarray | None, reason: str) -> None:
        self.atoms.freeze(labels, reason)

    def output(self, axes: Sequence[np.ndarray | None], index: int = 0) -> None:
        for axis, labels in enumerate(axes):
            self.atoms.labels[(self.node.outputs[index], axis)] = labels
