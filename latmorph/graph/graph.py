"""Graph and ChannelGroup: the values that the model side hands on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from latmorph import ops
from latmorph.errors import StructureError, UsageError
from latmorph.opspec import OpSpec, Scalar, Step


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


@dataclass(frozen=True, eq=False)
class Graph:
    """A captured network: operators in execution order, tensors, and channel groups.

    ``axes`` maps (tensor, axis) to the groups along that axis, as pairs of a group's index and the
    number of indices that each of its channels has there. Every shape is a function of the widths.
    ``onnx`` is the file that the network was read from, if it was.
    """

    nodes: tuple[Node, ...]
    tensors: tuple[Tensor, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    groups: tuple[ChannelGroup, ...] = ()
    axes: dict[tuple[int, int], tuple[tuple[int, int], ...]] = field(default_factory=dict)
    onnx: Path | None = None

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
        for (tensor, _), parts in self.axes.items():
            of_tensor.setdefault(tensor, set()).update(g for g, _ in parts)
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
            parts = self.axes.get((tensor, axis))
            if parts and any(self.groups[g].frozen is None for g, _ in parts):
                shape[axis] = sum(count * widths[:, g] for g, count in parts)
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
        made = {tensor: (-1, k) for k, tensor in enumerate(given)}
        steps = []
        for i, spec in enumerate(self.specs_at(widths[None], chosen)):
            node = self.nodes[chosen[i]]
            inputs = [tuple(int(np.ravel(s)[0]) for s in t.shape) for t in spec.inputs]
            outputs = [tuple(int(np.ravel(s)[0]) for s in t.shape) for t in spec.outputs]
            fitted = ops.fitted(spec.with_shapes(inputs, outputs))
            operands = (
                replace(operand, parameter=tensor not in made)
                for operand, tensor in zip(fitted.inputs, node.inputs, strict=True)
            )
            sources = tuple(made[t] for t in node.inputs if t in made)
            returned = tuple(k for k, t in enumerate(node.outputs) if t in wanted)
            steps.append(Step(replace(fitted, inputs=tuple(operands)), sources, returned))
            made.update({t: (i, k) for k, t in enumerate(node.outputs)})
        return tuple(steps)

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
