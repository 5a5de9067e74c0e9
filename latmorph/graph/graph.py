"""Graph and ChannelGroup: the values that the model side hands on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from latmorph import ops
from latmorph.errors import StructureError, UsageError
from latmorph.ops.rearrange import BLOCK
from latmorph.opspec import OpSpec, Scalar, Step, TensorSpec, ceil_to


@dataclass(frozen=True)
class Tensor:
    """One tensor of the graph.

    ``parameter`` is the model's name of a parameter or buffer, None for an activation; ``trainable``
    tells parameters from buffers.
    """

    shape: tuple[int, ...]
    dtype: str
    parameter: str | None = None
    trainable: bool = False


@dataclass(frozen=True)
class Node:
    """One operator call: its OpSpec, the tensors it reads and writes, and the module it was called in."""

    name: str
    spec: OpSpec
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    module: str


@dataclass(frozen=True, eq=False)
class Member:
    """The indices of one parameter's axis that belong to a channel group.

    ``indices`` has shape ``(width, k)``: row ``c`` holds the indices that live and die with channel
    ``c``. ``role`` is ``output`` (rows of the weight that produces the channel), ``bias`` (its bias),
    ``input`` (the weight axis that consumes it), ``scale``, ``shift`` or ``statistic`` (of a batch
    norm), ``slope`` (of a leaky activation below zero), or ``elementwise`` (a parameter added to or
    multiplied with it).
    """

    parameter: str
    axis: int
    role: str
    indices: np.ndarray


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that live and die together, one by one: removing channel ``c`` removes it in every member.

    ``frozen`` says why no channel of the group can be removed; None if they can.
    """

    name: str
    width: int
    members: tuple[Member, ...]
    frozen: str | None = None


@dataclass(frozen=True)
class AxisSize:
    """The size of a tensor's axis as a function of the groups' widths.

    The sum over ``terms``, of groups and a count, of the count times the widths of the groups; over
    ``divisor`` and rounded up, which is exact wherever what is alive is a product along the tensor's axes.
    """

    terms: tuple[tuple[tuple[int, ...], int], ...]
    divisor: int = 1

    @cached_property
    def groups(self) -> frozenset[int]:
        """The groups that the size depends on."""
        return frozenset(g for named, _ in self.terms for g in named)

    def at(self, widths: np.ndarray) -> np.ndarray:
        """The size at widths of shape ``(variants, groups)``, int64 of shape ``(variants,)``."""
        total = np.zeros(len(widths), dtype=np.int64)
        for named, count in self.terms:
            total += count * widths[:, list(named)].prod(axis=1)
        return ceil_to(total, self.divisor) // self.divisor if self.divisor > 1 else total


@dataclass(frozen=True, eq=False)
class Block:
    """Where elements of a tensor stand along the one ``axis`` of the tensor ``root`` that it is made of.

    ``source`` holds the index there, of a shape broadcastable to the tensor's. ``names`` says for every axis
    of the tensor which of root's axes it is, or :data:`latmorph.ops.rearrange.BLOCK`.
    """

    root: int
    axis: int
    source: np.ndarray
    names: tuple[int, ...]


def is_joint(layer: np.ndarray) -> bool:
    """Whether a layer of channels varies along more than one axis."""
    return len([size for size in layer.shape if size > 1]) > 1


@dataclass(frozen=True, eq=False)
class Channels:
    """Channel groups of a network, and where their channels stand.

    Channels are numbered through all groups in order. ``places`` holds for every tensor with channels layers
    of these numbers: arrays broadcastable to its shape, -1 for none; an element is alive where all of its
    channels are. ``singles`` holds by (tensor, axis) the channels of axes of size 1, along which no layer
    varies. ``axes`` maps (tensor, axis) to the axis's size. ``blocks`` is empty unless what is alive of
    some tensor is no product along its axes; such tensors are never computed on, only rearranged, and
    ``blocks`` says of what.
    """

    groups: tuple[ChannelGroup, ...] = ()
    places: dict[int, tuple[np.ndarray, ...]] = field(default_factory=dict)
    singles: dict[tuple[int, int], tuple[np.ndarray, ...]] = field(default_factory=dict)
    axes: dict[tuple[int, int], AxisSize] = field(default_factory=dict)
    blocks: dict[int, Block] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Graph:
    """A captured network: operators in execution order, tensors, and channels.

    Every shape is a function of the widths. ``onnx`` is the file that the network was read from, if it was.
    """

    nodes: tuple[Node, ...]
    tensors: tuple[Tensor, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    channels: Channels = field(default_factory=Channels)
    onnx: Path | None = None

    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """The channel groups, in execution order."""
        return self.channels.groups

    @property
    def specs(self) -> tuple[OpSpec, ...]:
        """The operators, in execution order."""
        return tuple(node.spec for node in self.nodes)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Names of the operators that have no handler, and so no price."""
        kinds = {n.spec.kind for n in self.nodes if not ops.is_known(n.spec)}
        return tuple(sorted(kind.removeprefix(ops.UNKNOWN) for kind in kinds))

    @cached_property
    def flops(self) -> int:
        """FLOPs of one forward pass, two a multiply-add; equal to ``torch.utils.flop_counter``'s."""
        return int(sum(ops.flops(spec) for spec in self.specs))

    @cached_property
    def bytes(self) -> int:
        """Bytes that one forward pass moves when every operator reads and writes its operands once."""
        return int(sum(ops.byte_count(spec) for spec in self.specs))

    @cached_property
    def parameters(self) -> int:
        """Number of parameters (buffers not counted) of the model, those that no operator reads included."""
        return sum(int(np.prod(self.tensors[t].shape)) for t in self.trainable)

    @cached_property
    def widths(self) -> np.ndarray:
        """Width of every group, int64 of shape ``(groups,)``."""
        return np.array([g.width for g in self.groups], dtype=np.int64)

    @property
    def prunable(self) -> tuple[int, ...]:
        """Indices of the groups that are not frozen."""
        return tuple(i for i, g in enumerate(self.groups) if g.frozen is None)

    def group(self, name: str) -> int:
        """Index of the group called ``name``. Raises StructureError if there is none."""
        if name not in self._group_index:
            known = ", ".join(list(self._group_index)[:6])
            raise StructureError(f"no channel group {name!r} in this network; groups are {known}, ...")
        return self._group_index[name]

    @cached_property
    def _group_index(self) -> dict[str, int]:
        return {g.name: i for i, g in enumerate(self.groups)}

    @cached_property
    def nodes_of_group(self) -> tuple[tuple[int, ...], ...]:
        """For every group, the nodes whose shapes depend on its width."""
        touched: list[list[int]] = [[] for _ in self.groups]
        of_tensor: dict[int, set[int]] = {}
        for (tensor, _), size in self.channels.axes.items():
            of_tensor.setdefault(tensor, set()).update(size.groups)
        for i, node in enumerate(self.nodes):
            found: set[int] = set()
            for tensor in (*node.inputs, *node.outputs):
                found |= of_tensor.get(tensor, set())
            for g in found:
                touched[g].append(i)
        return tuple(tuple(t) for t in touched)

    def shape_at(self, tensor: int, widths: np.ndarray) -> tuple[Scalar, ...]:
        """Shape of one tensor at the given widths, int64 of shape ``(variants, groups)``."""
        shape: list[Scalar] = list(self.tensors[tensor].shape)
        for axis in range(len(shape)):
            size = self.channels.axes.get((tensor, axis))
            if size and any(self.groups[g].frozen is None for g in size.groups):
                shape[axis] = size.at(widths)
        return tuple(shape)

    def specs_at(self, widths: np.ndarray, nodes: Iterable[int] | None = None) -> list[OpSpec]:
        """The operators at other widths: one OpSpec a node, whose sizes are arrays over variants."""
        chosen = range(len(self.nodes)) if nodes is None else nodes
        cache: dict[int, tuple[Scalar, ...]] = {}

        def shape(tensor: int) -> tuple[Scalar, ...]:
            if tensor not in cache:
                cache[tensor] = self.shape_at(tensor, widths)
            return cache[tensor]

        return [
            node.spec.with_shapes([shape(t) for t in node.inputs], [shape(t) for t in node.outputs])
            for node in (self.nodes[i] for i in chosen)
        ]

    def resized(self, widths: np.ndarray, nodes: Iterable[int] | None = None) -> list[OpSpec]:
        """The operators at widths of shape ``(groups,)``, with the attributes that follow from sizes."""
        chosen = range(len(self.nodes)) if nodes is None else list(nodes)
        found = []
        for i, spec in zip(chosen, self.specs_at(widths[None], chosen), strict=True):
            inputs = [tuple(int(np.ravel(s)[0]) for s in t.shape) for t in spec.inputs]
            outputs = [tuple(int(np.ravel(s)[0]) for s in t.shape) for t in spec.outputs]
            found.append(ops.resized(self.nodes[i].spec, inputs, outputs))
        return found

    def steps_at(self, widths: np.ndarray, nodes: Sequence[int] | None = None) -> tuple[Step, ...]:
        """The network at other widths, of shape ``(groups,)``, as steps that a backend can time.

        A constant that an operator reads is to a backend what a parameter is. Of ``nodes`` alone, what other
        nodes make is an input, and what they read is handed out.

        Raises UsageError for a network that a backend cannot run from its operators alone: one with
        operators that have no handler.
        """
        if self.unknown:
            raise UsageError(f"operators without a handler cannot be timed: {', '.join(self.unknown)}")
        chosen = range(len(self.nodes)) if nodes is None else nodes
        given, wanted = (self.inputs, self.outputs) if nodes is None else self._boundary(chosen)
        crooked = frozenset() if np.array_equal(widths, self.widths) else self.crooked
        made = {tensor: (-1, k) for k, tensor in enumerate(given)}
        steps: list[Step] = []

        def add(spec: OpSpec, inputs: Sequence[int], outputs: Sequence[int]) -> None:
            operands = (
                replace(operand, parameter=tensor not in made)
                for operand, tensor in zip(spec.inputs, inputs, strict=True)
            )
            sources = tuple(made[t] for t in inputs if t in made)
            returned = tuple(k for k, t in enumerate(outputs) if t in wanted)
            made.update({t: (len(steps), k) for k, t in enumerate(outputs)})
            steps.append(Step(replace(spec, inputs=tuple(operands)), sources, returned))

        for i, fitted in zip(chosen, self.resized(widths, chosen), strict=True):
            node = self.nodes[i]
            if crooked.isdisjoint((*node.inputs[:1], *node.outputs)):
                add(fitted, node.inputs, node.outputs)
            elif crooked.isdisjoint(node.outputs):
                for tensor in node.outputs:
                    # Numbers of tensors that the network does not have: what lies on the way.
                    way = [self.channels.blocks[tensor].root, -2 - 2 * tensor, -3 - 2 * tensor]
                    specs = self._gathered(tensor, widths)
                    for k, spec in enumerate(specs):
                        last = tensor if k + 1 == len(specs) else way[k + 1]
                        add(spec, (way[k], -1)[: len(spec.inputs)], (last,))
        return tuple(steps)

    @cached_property
    def crooked(self) -> frozenset[int]:
        """Tensors of which what is alive need be no product along their axes: they are only rearranged."""
        free = np.repeat([g.frozen is None for g in self.groups], self.widths)
        free = np.append(free, False)  # the last stands for no channel
        places = self.channels.places.items()
        return frozenset(t for t, layers in places if any(is_joint(x) and free[x].any() for x in layers))

    def _gathered(self, tensor: int, widths: np.ndarray) -> list[OpSpec]:
        """The operators that read a tensor straight out of the one that its block begins at."""
        block = self.channels.blocks[tensor]
        root, made = (
            tuple(int(np.ravel(n)[0]) for n in self.shape_at(t, widths[None])) for t in (block.root, tensor)
        )
        spread = tuple(n for n, name in zip(made, block.names, strict=True) if name == BLOCK)
        picked = (*root[: block.axis], prod(spread), *root[block.axis + 1 :])
        unfolded = (*root[: block.axis], *spread, *root[block.axis + 1 :])
        kept = [*range(block.axis), *[BLOCK] * len(spread), *range(block.axis + 1, len(root))]
        where = iter(range(block.axis, block.axis + len(spread)))
        order = tuple(next(where) if name == BLOCK else kept.index(name) for name in block.names)
        dtype = self.tensors[tensor].dtype
        indices = TensorSpec("index", (prod(spread),), "int64", True)

        def call(
            kind: str, before: tuple[int, ...], after: tuple[int, ...], *more: TensorSpec, **attrs: Any
        ) -> OpSpec:
            inputs = (TensorSpec("self", before, dtype), *more)
            return OpSpec(kind, inputs, (TensorSpec("out", after, dtype),), tuple(attrs.items()))

        if (np.diff(block.source.ravel()) == 1).all():  # as whatever is left of it will be: a run
            found = [call("view", root, picked, dim=block.axis, start=0, length=prod(spread), op="narrow")]
        else:
            found = [call("index_select", root, picked, indices, dim=block.axis)]
        if len(spread) > 1:
            found.append(call("view", picked, unfolded, dim=block.axis, sizes=spread, op="unflatten"))
        if order != tuple(range(len(order))):
            found.append(call("view", unfolded, made, dims=order, op="permute"))
        return found

    def _boundary(self, nodes: Sequence[int]) -> tuple[list[int], set[int]]:
        """Tensors that the nodes read and others make, and those that they make and others read."""
        own = {t for i in nodes for t in self.nodes[i].outputs}
        made = {t for node in self.nodes for t in node.outputs} | set(self.inputs)
        read = dict.fromkeys(t for i in nodes for t in self.nodes[i].inputs if t in made - own)
        others = set(range(len(self.nodes))).difference(nodes)
        return list(read), own & {*self.outputs, *(t for i in others for t in self.nodes[i].inputs)}

    @cached_property
    def trainable(self) -> tuple[int, ...]:
        """Tensors that are parameters, not buffers and not activations."""
        return tuple(i for i, t in enumerate(self.tensors) if t.trainable)

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of the groups and parameter shapes: what a structure must match to fit."""
        shapes = sorted((t.parameter, t.shape) for t in self.tensors if t.parameter)
        groups = [(g.name, g.width, bool(g.frozen)) for g in self.groups]
        text = json.dumps([shapes, groups], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]
