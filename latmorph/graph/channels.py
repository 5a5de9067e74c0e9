"""Channel groups: which indices of which parameters live and die together.

Every index of a parameter's axis gets a label. Operators carry labels along, tie them and make some the
product of others (:meth:`latmorph.ops.Handler.channels`). What is left when all of that is worked out are
channels, and channels that stand at the same places of the network form a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from latmorph import ops
from latmorph.graph.graph import AxisSize, Block, ChannelGroup, Channels, Member, Node, Tensor, is_joint
from latmorph.graph.labels import UNLABELLED, Labels, Layers, Solved
from latmorph.ops.rearrange import BLOCK, Rearrangement

UNEVEN = "channels of two kinds do not meet everywhere alike"
READ_ALONE = "one of these channels is read by itself"
GIVEN = "made by no parameter that is trained"


@lru_cache(maxsize=2)  # a network is captured, and captured again to be shrunk
def find_channels(
    nodes: tuple[Node, ...], tensors: tuple[Tensor, ...], inputs: tuple[int, ...], outputs: tuple[int, ...]
) -> Channels:
    """Channel groups in execution order, and where in every tensor their channels stand."""
    network = _Network(tensors)
    given = frozenset(inputs)
    for node in nodes:
        handler = ops.handler_of(node.spec.kind)
        handler.channels(node.spec, _NodeLabels(network, node, given))
        silent = handler.silent(node.spec, [network.silent.get(t, True) for t in node.inputs])
        network.silent.update(dict.fromkeys(node.outputs, silent))
        if network.computed.issuperset(node.inputs):
            network.computed.update(node.outputs)
    for tensor in outputs:
        for layer in (*network.layers.get(tensor, ()), *network.singles.get(tensor, {}).values()):
            network.labels.freeze(layer.ravel(), "the network's output")
    while True:
        grouped = _Grouped(network, network.labels.solve())
        if not grouped.unfit:
            return grouped.channels()
        for labels, reason in grouped.unfit:
            network.labels.freeze(labels, reason)


class _Network:
    """Layers of labels of every tensor, as operators are gone through."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors
        self.labels = Labels()
        self.layers: dict[int, Layers] = {}
        # Labels of axes of size 1, along which no layer varies.
        self.singles: dict[int, dict[int, np.ndarray]] = {}
        self.by_axis: dict[int, list[np.ndarray | None]] = {}
        self.blocks: dict[int, Block] = {}
        self.silent: dict[int, bool] = {}
        self.computed = {i for i, t in enumerate(tensors) if t.parameter is not None}  # of parameters alone
        self.roles: dict[tuple[int, int], str] = {}
        self.starts: list[int] = []
        self.owners: list[tuple[int, int]] = []
        self._factors: dict[Any, list[np.ndarray]] = {}
        self._asked: list[np.ndarray] = []  # arrays whose keys are in use must stay in memory

    def parameter_axis(self, tensor: int, axis: int) -> np.ndarray | None:
        """Labels of a parameter's axis."""
        shape = self.tensors[tensor].shape
        axes = self.by_axis.setdefault(tensor, [None] * len(shape))
        found = axes[axis]
        if found is None and shape[axis]:
            self.starts.append(self.labels.count)
            self.owners.append((tensor, axis))
            axes[axis] = found = self.labels.fresh(shape[axis])
            self.set_axes(tensor, axes)
        return found

    def set_role(self, labels: np.ndarray, role: str) -> None:
        """Say what those axes of parameters are that the labels come from, unless it is known."""
        known = labels[labels >= 0]
        if not self.starts or not len(known):
            return
        for k in np.unique(np.searchsorted(self.starts, known, side="right") - 1):
            tensor, axis = self.owners[k]
            if k >= 0 and known.max() >= self.starts[k]:
                self.roles.setdefault((tensor, axis), role)

    def axes(self, tensor: int) -> list[np.ndarray | None]:
        """Labels of every axis of an activation; from now on, what is alive is the product along the axes."""
        found = self.by_axis.get(tensor)
        if found is None:
            rank = len(self.tensors[tensor].shape)
            parts: list[list[np.ndarray]] = [[] for _ in range(rank)]
            for layer in self.layers.get(tensor, ()):
                for axis, labels in enumerate(self._factored(layer)):
                    if labels is not None:
                        parts[axis].append(labels)
            found = [self._joint(p) if p else None for p in parts]
            for axis, label in self.singles.get(tensor, {}).items():
                found[axis] = label
            self.set_axes(tensor, found)
        return found

    def set_axes(self, tensor: int, axes: Sequence[np.ndarray | None]) -> None:
        self.by_axis[tensor] = list(axes)
        rank = len(axes)
        found = [(a, x) for a, x in enumerate(axes) if x is not None]
        self.layers[tensor] = tuple(along(x, a, rank) for a, x in found if len(x) > 1)
        self.singles[tensor] = {a: x for a, x in found if len(x) == 1}

    def _factored(self, layer: np.ndarray) -> list[np.ndarray | None]:
        """A layer as one factor for each axis that it varies along."""
        wide = [a for a, size in enumerate(layer.shape) if size > 1]
        found: list[np.ndarray | None] = [None] * layer.ndim
        if not wide:
            self.labels.freeze(layer.ravel(), READ_ALONE)
        elif len(wide) == 1:
            found[wide[0]] = layer.ravel()
        else:
            key = _key(layer.squeeze())
            if key not in self._factors:
                self._asked.append(layer)
                sizes = [layer.shape[a] for a in wide]
                factors = [self.labels.fresh(n) for n in sizes]
                grid = [np.broadcast_to(along(f, k, len(wide)), sizes).ravel() for k, f in enumerate(factors)]
                self.labels.multiply(layer.ravel(), grid)
                self._factors[key] = factors
            for axis, factor in zip(wide, self._factors[key], strict=True):
                found[axis] = factor
        return found

    def _joint(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Labels of an axis that are the product of several along it."""
        if len(parts) == 1:
            return parts[0]
        key = tuple(_key(p) for p in parts)
        if key not in self._factors:
            self._asked += parts
            whole = self.labels.fresh(len(parts[0]))
            self.labels.multiply(whole, parts)
            self._factors[key] = [whole]
        return self._factors[key][0]


def along(labels: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """Labels of one axis as a layer."""
    shape = [1] * rank
    shape[axis] = -1
    return labels.reshape(shape)


def _key(array: np.ndarray) -> tuple[Any, ...]:
    """What tells arrays apart that stay in memory."""
    return (array.__array_interface__["data"][0], array.shape, array.strides)


class _NodeLabels:
    """The :class:`latmorph.ops.AxisLabels` of one node."""

    def __init__(self, network: _Network, node: Node, inputs: frozenset[int]) -> None:
        self.network = network
        self.node = node
        self.where = node.module or node.spec.kind
        reads_input = any(t in inputs for t in node.inputs)
        self.unlabelled = f"{self.where} " + ("reads the network's input" if reads_input else UNLABELLED)

    def axis(self, operand: int, axis: int, role: str = "elementwise") -> np.ndarray | None:
        tensor = self.node.inputs[operand]
        if self.node.spec.inputs[operand].parameter:
            found = self.network.parameter_axis(tensor, axis)
        else:
            found = self.network.axes(tensor)[axis]
        if found is not None and role != "elementwise" and tensor in self.network.computed:
            self.network.set_role(found, role)
        return found

    def tie(self, a: np.ndarray | None, b: np.ndarray | None) -> None:
        if a is not None and b is not None and len(a) != len(b):
            for labels in (a, b):
                self.freeze(labels, f"{self.where} ties axes of different sizes")
        elif a is not None and b is not None:
            self.network.labels.tie(a, b, self.unlabelled)
        else:
            self.freeze(b if a is None else a, self.unlabelled)

    def freeze(self, labels: np.ndarray | None, reason: str) -> None:
        if labels is not None:
            self.network.labels.freeze(labels, reason)

    def fresh(self, size: int) -> np.ndarray:
        return self.network.labels.fresh(size)

    def product(self, whole: np.ndarray | None, factors: Sequence[np.ndarray]) -> None:
        flat = [f.ravel() for f in np.broadcast_arrays(*factors)]
        known = np.full(len(flat[0]), -1) if whole is None else whole
        self.network.labels.multiply(known, flat)

    def silent(self, operand: int) -> bool:
        return self.network.silent.get(self.node.inputs[operand], True)

    def output(self, axes: Sequence[np.ndarray | None], index: int = 0) -> None:
        shape = self.network.tensors[self.node.outputs[index]].shape
        found = list(axes)
        for a, labels in enumerate(found):
            if labels is not None and len(labels) != shape[a]:
                self.freeze(labels, f"{self.where} makes another number of these channels")
                found[a] = None
        self.network.set_axes(self.node.outputs[index], found)

    def rearranged(self, how: Rearrangement, index: int = 0) -> None:
        network, source, made = self.network, self.node.inputs[0], self.node.outputs[index]
        rank = len(network.tensors[source].shape)
        if self.node.spec.inputs[0].parameter:
            for a, size in enumerate(network.tensors[source].shape):
                if size > 1:
                    self.axis(0, a)
        block = network.blocks.get(source)
        if source in network.by_axis:  # products along axes: whatever becomes of it begins here
            block = None
        names = how.names(block.names) if block else None
        if names is None:
            network.axes(source)
            block = None
        layers = [_compact(how.apply(x)) for x in network.layers.get(source, ())]
        singles = network.singles[made] = {}
        size = len(network.tensors[made].shape)
        for axis, label in network.singles.get(source, {}).items():
            where = how.single(axis)
            if where is None:
                self.freeze(label, READ_ALONE)
            elif where[1] == 1:
                singles[where[0]] = label
            else:
                layers.append(along(np.full(where[1], label[0]), where[0], size))
        network.layers[made] = tuple(layers)
        if not any(is_joint(x) for x in layers) and all(x.size > 1 for x in layers):
            parts = [[x.ravel() for x in layers if x.shape[a] > 1] for a in range(size)]
            for axis, label in singles.items():
                parts[axis].append(label)
            if all(len(p) <= 1 for p in parts):
                network.set_axes(made, [p[0] if p else None for p in parts])
        if block is None:
            block = self._block(how, rank)
        elif names is not None:
            block = Block(block.root, block.axis, how.apply(block.source), tuple(names))
        if block is not None:
            network.blocks[made] = block
        elif any(is_joint(x) for x in network.layers[made]):
            network.axes(made)

    def _block(self, how: Rearrangement, rank: int) -> Block | None:
        """The block that begins here, if one labelled axis alone is taken apart or put in another order."""
        source = self.node.inputs[0]
        for a, labels in enumerate(self.network.axes(source)):
            if labels is None:
                continue
            names = how.names([BLOCK if k == a else k for k in range(rank)])
            if names is not None and BLOCK in names:
                places = along(np.arange(len(labels)), a, rank)
                return Block(source, a, how.apply(places), tuple(names))
        return None


def _compact(layer: np.ndarray) -> np.ndarray:
    """The layer with size 1 along axes that it does not vary along."""
    if is_joint(layer):
        for a, size in enumerate(layer.shape):
            if size > 1:
                first = layer.take([0], a)
                if bool((layer == first).all()):
                    layer = first
    return layer


class _Grouped:
    """Channels in groups: those that are at the same places, as many times, for the same reason."""

    def __init__(self, network: _Network, solved: Solved) -> None:
        self.network = network
        self.tensors = network.tensors
        self.solved = solved
        self.unfit: list[tuple[np.ndarray, str]] = []
        self._columns: dict[Any, list[np.ndarray]] = {}
        self._group()

    def columns(self, layer: np.ndarray) -> list[np.ndarray]:
        """A layer of labels as layers of channels (before they are numbered: components)."""
        key = _key(layer)
        if key not in self._columns:
            self._columns[key] = [_compact(c) for c in self.solved.columns(layer)]
        return self._columns[key]

    def _placed(self, t: int) -> list[tuple[int, np.ndarray]]:
        """Layers of a tensor, each with the first axis that it varies along, and labels of axes of size 1."""
        layers = [(max(range(x.ndim), key=x.shape.__getitem__, default=0), x) for x in self.network.layers[t]]
        return [*layers, *self.network.singles.get(t, {}).items()]

    def _group(self) -> None:
        count = len(self.solved.reasons)
        texts: list[str | None] = [None, *dict.fromkeys(r for r in self.solved.reasons if r is not None)]
        numbers = {text: i for i, text in enumerate(texts)}
        reason = np.array([numbers[r] for r in self.solved.reasons], dtype=np.int64)
        named = np.zeros(count, dtype=bool)
        trained = np.zeros(count, dtype=bool)
        made = np.zeros(count, dtype=bool)
        # Channels with the same count at the same places (and the same reason) form one group.
        signature = _mix(reason.astype(np.uint64))
        order = np.full(count, np.iinfo(np.int64).max)
        seen: set[Any] = set()
        place = 0
        for t in self.network.layers:
            tensor = self.tensors[t]
            for axis, layer in self._placed(t):
                for column in self.columns(layer):
                    key = _key(column)
                    own = column[column >= 0].ravel()
                    if tensor.parameter is not None:
                        named[own] = True
                        trained[own] |= tensor.trainable
                        reads = self.network.roles.get((t, axis)) == "input"
                        made[own] |= tensor.trainable and not reads
                    if key in seen:
                        continue
                    seen.add(key)
                    place += 1
                    present, first, counts = _counted(own)
                    signature[present] += _mix((np.uint64(place) << np.uint64(32)) + counts.astype(np.uint64))
                    order[present] = np.minimum(order[present], place * 2**32 + first)
        given = named & (reason == 0) & ~made
        if given.any():
            self.unfit.append((np.flatnonzero(given[self.solved.component]), GIVEN))
        # What no parameter has part in, and what is fixed and not trained, is no channel of anybody's.
        kept = np.flatnonzero(named & (trained | (reason == 0)))
        _, group = np.unique(signature[kept], return_inverse=True)
        group = group.ravel()
        widths = np.bincount(group) if len(kept) else np.zeros(0, dtype=np.int64)
        first = np.full(len(widths), np.iinfo(np.int64).max)
        np.minimum.at(first, group, order[kept])
        rank = np.argsort(np.argsort(first, kind="stable"), kind="stable")
        group = rank[group]
        by_group = np.lexsort((order[kept], group))
        self.widths = np.bincount(group, minlength=len(widths))
        self.offsets = np.cumsum(self.widths) - self.widths
        self.channel = np.full(count + 1, -1)  # the last stands for no channel
        self.channel[kept[by_group]] = np.arange(len(kept))
        self.group_of = np.repeat(np.arange(len(self.widths)), self.widths)
        self.texts = [texts[reason[kept[by_group[at]]]] for at in self.offsets]
        self.places = {
            t: tuple(x for layer in layers for x in self._numbered(layer))
            for t, layers in self.network.layers.items()
        }
        self.singles = {
            (t, a): tuple(self._numbered(label))
            for t, singles in self.network.singles.items()
            for a, label in singles.items()
        }
        self._sizes: dict[Any, AxisSize | None] = {}
        self.sizes = {
            (t, a): size for t in self.places for a, size in self._axis_sizes(t).items() if size.terms
        }
        for at, columns in self.singles.items():
            if columns:
                groups = tuple(sorted(int(self.group_of[c[0]]) for c in columns))
                self.sizes[at] = AxisSize(((groups, 1),))

    def _numbered(self, layer: np.ndarray) -> list[np.ndarray]:
        key = ("numbered", _key(layer))
        if key not in self._columns:
            found = []
            for column in self.columns(layer):
                numbers = self.channel[column]
                if (numbers >= 0).any():
                    found.append(numbers)
            self._columns[key] = found
        return self._columns[key]

    def _axis_sizes(self, t: int) -> dict[int, AxisSize]:
        """Sizes of the axes of a tensor as functions of the widths."""
        shape = self.tensors[t].shape
        layers = self.places[t]
        found: dict[int, AxisSize] = {}
        for axes in _entangled(layers):
            own = [x for x in layers if any(x.shape[a] > 1 for a in axes)]
            full = [shape[a] for a in axes]
            key = (tuple(_key(x) for x in own), tuple(axes))
            if key not in self._sizes:
                outside = [a for a in range(len(shape)) if a not in axes]
                flat = [np.broadcast_to(x.squeeze(tuple(outside)), full).ravel() for x in own]
                self._sizes[key] = self._size(np.stack(flat, axis=1), int(np.prod(full[:-1])))
            size = self._sizes[key]
            if size is None:
                self.unfit += [(layer.ravel(), UNEVEN) for layer in self.network.layers[t]]
            else:
                found[axes[-1]] = size
        return found

    def _size(self, rows: np.ndarray, divisor: int) -> AxisSize | None:
        """The number of rows as a sum of products of widths, over a divisor; None where it is no such sum."""
        groups = np.where(rows >= 0, self.group_of[rows], -1) if len(self.group_of) else rows
        terms: dict[tuple[int, ...], int] = {}
        _, first, kind, counts = np.unique(
            _numbers(groups), return_index=True, return_inverse=True, return_counts=True
        )
        rows = _numbers(rows)
        for k, (named, count) in enumerate(zip(groups[first].tolist(), counts.tolist(), strict=True)):
            key = tuple(sorted(g for g in named if g >= 0))
            whole = int(np.prod(self.widths[list(key)], dtype=np.int64))
            if count % whole:
                return None
            if len(key) > 1:
                met = np.unique(rows[kind == k], return_counts=True)[1]
                if len(met) != whole or met.min() != met.max():
                    return None
            terms[key] = terms.get(key, 0) + count // whole
        return AxisSize(tuple(terms.items()), divisor)

    def channels(self) -> Channels:
        """The result, once nothing is uneven."""
        members: list[list[Member]] = [[] for _ in self.widths]
        owners: list[list[tuple[bool, int, str]]] = [[] for _ in self.widths]
        for t, layers in self.places.items():
            name = self.tensors[t].parameter
            if name is None:
                continue
            module = name.rpartition(".")[0] or name
            for axis in range(len(self.tensors[t].shape)):
                own = [x.ravel() for x in layers if x.shape[axis] > 1]
                own += self.singles.get((t, axis), ())
                role = self.network.roles.get((t, axis), "elementwise")
                for g, indices in self._indices(own):
                    members[g].append(Member(name, axis, role, indices))
                    owners[g].append((role != "output", len(owners[g]), module))
        names: dict[str, int] = {}
        result = []
        for g, width in enumerate(self.widths):
            # The module that makes the channels; where none does, the first that reads them.
            reads_only, _, name = min(owners[g])
            name = f"{name}:input" if reads_only else name
            seen = names[name] = names.get(name, 0) + 1
            unique = name if seen == 1 else f"{name}:{seen}"
            result.append(ChannelGroup(unique, int(width), tuple(members[g]), self.texts[g]))
        return Channels(tuple(result), self.places, self.singles, self.sizes, self._blocks())

    def _indices(self, columns: Sequence[np.ndarray]) -> list[tuple[int, np.ndarray]]:
        """For each group along an axis, the indices of each of its channels, of shape (width, k)."""
        if not columns:
            return []
        at = np.concatenate([np.flatnonzero(c >= 0) for c in columns])
        channel = np.concatenate([c[c >= 0] for c in columns])
        if len(columns) > 1:
            once = np.unique(_numbers(np.stack([channel, at], axis=1)), return_index=True)[1]
            channel, at = channel[once], at[once]
        order = np.lexsort((at, channel))
        channel, at = channel[order], at[order]
        found = []
        for g in np.unique(self.group_of[channel]):
            own = at[self.group_of[channel] == g].reshape(int(self.widths[g]), -1)
            own.setflags(write=False)
            found.append((int(g), own))
        return found

    def _blocks(self) -> dict[int, Block]:
        """Blocks, if any matter: what is alive of some tensor is no product along its axes."""
        return self.network.blocks if any(is_joint(x) for p in self.places.values() for x in p) else {}


def _counted(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct labels in ascending order, where each comes first, and how often it is there."""
    if (np.diff(labels) > 0).all():  # as nearly always, and far faster
        return labels, np.arange(len(labels)), np.ones(len(labels), dtype=np.int64)
    return np.unique(labels, return_index=True, return_counts=True)


def _numbers(rows: np.ndarray) -> np.ndarray:
    """One number for each row of numbers from -1 on, equal where rows are: far faster to sort than rows."""
    size, columns = int(rows.max(initial=-1)) + 2, rows.shape[1]
    if size**columns < 2**63:
        return np.asarray((rows + 1) @ size ** np.arange(columns)[::-1])
    return np.unique(rows, axis=0, return_inverse=True)[1].ravel()


def _entangled(layers: Sequence[np.ndarray]) -> list[list[int]]:
    """Axes that layers vary along, those together along which one layer varies, in order."""
    sets: list[set[int]] = []
    for layer in layers:
        own = {a for a, size in enumerate(layer.shape) if size > 1}
        if own:
            meets = [s for s in sets if s & own]
            sets = [s for s in sets if not s & own] + [own.union(*meets)]
    return [sorted(s) for s in sets]


def _mix(x: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser: spreads 64-bit integers so that sums of them rarely collide."""
    with np.errstate(over="ignore"):
        x = (x + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(x ^ (x >> np.uint64(31)))
