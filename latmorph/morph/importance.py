"""Importance: how much each channel of a group still does, and what must be zero for it to do nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from latmorph import ops
from latmorph.graph.graph import ChannelGroup, Graph, Member


@dataclass(frozen=True)
class Path:
    """Parts of parameters that together let a channel through; with all of them zero, it carries zero.

    Where a batch norm follows the producing layer these are its scale and shift; otherwise the rows of
    the producing layer's weight and bias.
    """

    members: tuple[Member, ...]


def paths_of(graph: Graph, group: ChannelGroup) -> tuple[Path, ...]:
    """Everything that has to be zero for a channel of the group to be removed without any change."""
    normed = _normed_producers(graph)
    paths = []
    roles: dict[str, dict[str, list[Member]]] = {}
    for member in group.members:
        module = member.parameter.rpartition(".")[0]
        roles.setdefault(module, {}).setdefault(member.role, []).append(member)
    for parts in roles.values():
        if "scale" in parts:
            paths.append(Path((*parts["scale"], *parts.get("shift", ()))))
        elif "shift" in parts:
            paths.append(Path(tuple(parts["shift"])))
        produced = [m for m in parts.get("output", ()) if m.parameter not in normed]
        if produced:
            paths.append(Path((*produced, *parts.get("bias", ()))))
        if "elementwise" in parts:
            paths.append(Path(tuple(parts["elementwise"])))
    return tuple(paths)


def readers_to_silence(graph: Graph, g: int) -> tuple[Member, ...]:
    """The weights that read a group's channels, where a channel that carries zero arrives as something else.

    Behind a sigmoid, say, a dead channel is a constant: what reads it must be zero as well.
    """
    specs = (graph.nodes[n].spec for n in graph.nodes_of_group[g])
    if all(ops.handler_of(spec.kind).keeps_zero(spec) for spec in specs):
        return ()
    return tuple(m for m in graph.groups[g].members if m.role == "input")


def _normed_producers(graph: Graph) -> set[str]:
    """Weights whose output is read by batch norms with a scale, and by nothing else."""
    readers: dict[int, list[bool]] = {t: [False] for t in graph.outputs}
    for node in graph.nodes:
        scaled = node.spec.kind == "batch_norm" and node.spec.operand("weight") is not None
        for tensor in node.inputs:
            readers.setdefault(tensor, []).append(scaled)
    found: set[str] = set()
    for node in graph.nodes:
        weight = next(
            (t for t, s in zip(node.inputs, node.spec.inputs, strict=True) if s.name == "weight"), None
        )
        if weight is not None and all(readers.get(node.outputs[0], [False])):
            found.add(graph.tensors[weight].parameter or "")
    return found


class Channels:
    """The channels of one group in a live model: their importance, and how to shrink them.

    ``importance()`` is relative: each path's norm over its root mean square at the start, joined over
    the paths by their root mean square, so that a fresh channel has an importance of about 1 whatever
    its layer's scale.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        parameters: dict[str, torch.Tensor],
        width: int,
        silenced: Sequence[Member] = (),
    ) -> None:
        self.width = width
        self._silenced = [
            (parameters[m.parameter], m.axis, torch.as_tensor(m.indices.copy(), device=d))
            for m in silenced
            for d in [parameters[m.parameter].device]
        ]
        self.parts: list[list[_Part]] = [
            [_Part(parameters[m.parameter], m, width) for m in path.members] for path in paths
        ]
        with torch.no_grad():
            self.scales = [float(_sum([p.squares() for p in parts]).mean()) or 1.0 for parts in self.parts]

    def importance(self) -> torch.Tensor:
        """Importance of every channel, of shape ``(width,)``; differentiable."""
        total = _sum(
            [p.squares() / scale for parts, scale in zip(self.parts, self.scales, strict=True) for p in parts]
        )
        # The root's slope at zero is infinite; a dead channel needs none.
        mean = total / len(self.parts)
        return torch.where(mean > 0, mean.clamp_min(1e-24).sqrt(), mean)

    def multiply(self, factor: torch.Tensor) -> None:
        """Multiply everything that lets channel ``c`` through by ``factor[c]``, in place."""
        for parts in self.parts:
            for part in parts:
                part.multiply(factor)

    def silence(self, dead: torch.Tensor) -> None:
        """Make what reads dead channels zero, where they would not arrive as zeros; ``dead`` is a mask."""
        for tensor, axis, indices in self._silenced:
            tensor.index_fill_(axis, indices[dead].ravel(), 0.0)


def _sum(values: Sequence[torch.Tensor]) -> torch.Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


class _Part:
    """The slices of one parameter that belong to a group's channels."""

    def __init__(self, tensor: torch.Tensor, member: Member, width: int) -> None:
        self.tensor = tensor
        self.axis = member.axis
        per_channel = member.indices.shape[1]
        self.whole = per_channel == 1 and tensor.shape[member.axis] == width
        flat = torch.as_tensor(member.indices.ravel().copy(), device=tensor.device)
        if self.whole and not torch.equal(flat, torch.arange(width, device=tensor.device)):
            self.whole = False
        self.index = flat
        self.shape = (width, per_channel)

    def squares(self) -> torch.Tensor:
        """Sum of squares of every channel's slice, of shape ``(width,)``."""
        own = self.tensor if self.whole else self.tensor.index_select(self.axis, self.index)
        squared = own * own
        others = [a for a in range(squared.ndim) if a != self.axis]
        summed = squared.sum(dim=others) if others else squared
        return summed if self.whole else summed.reshape(self.shape).sum(dim=1)

    def multiply(self, factor: torch.Tensor) -> None:
        shape = [1] * self.tensor.ndim
        shape[self.axis] = -1
        if self.whole:
            self.tensor.mul_(factor.reshape(shape))
            return
        repeated = factor.repeat_interleave(self.shape[1]).reshape(shape)
        scaled = self.tensor.index_select(self.axis, self.index) * repeated
        self.tensor.index_copy_(self.axis, self.index, scaled)
