"""Fold: what removed channels go on giving, as constants, to what reads them.

A channel whose weights are zero but whose bias or shift is not carries the same number whatever the inputs
are. What it adds to the sums that read it is added to their biases instead.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from latmorph.graph.capture import Read, holds_numbers, named_tensors
from latmorph.graph.cut import Cut
from latmorph.graph.graph import Graph, Node

Tensors = dict[str, torch.Tensor]


def folded(model: nn.Module, read: Read, cut: Cut) -> nn.Module:
    """A copy of ``model`` in which the constants of removed channels are in the biases of what reads them.

    The model itself where there are none. A convolution that pads a constant with zeros reads it as
    something else along the edges; there what it reads in the middle is taken, as it is where a transposed
    convolution reads it differently from place to place. A sum without a bias has it
    in the running mean of the batch norm that reads it; where there is none of that either, the constant is
    left out.
    """
    tensors = named_tensors(model)
    if not holds_numbers(model) or not _any_constant(cut, tensors):
        return model
    changes = _Constants(read, cut, {**_held(read), **tensors}).find()
    if not changes:
        return model
    made = copy.deepcopy(model)
    own = named_tensors(made)
    with torch.no_grad():
        for name, change in changes.items():
            own[name].add_(change)
    return made


def _held(read: Read) -> Tensors:
    """Buffers that a state dict leaves out, and other tensors of the program."""
    return {k: v for k, v in read.exported.constants.items() if isinstance(v, torch.Tensor)}


def _any_constant(cut: Cut, tensors: Tensors) -> bool:
    """Whether some removed channel has weights, or a norm's scale, of zeros in one place at least."""
    ends = np.cumsum(cut.graph.widths)
    for group, end in zip(cut.graph.groups, ends, strict=True):
        removed = np.flatnonzero(~cut.alive[end - group.width : end])
        for member in group.members if len(removed) else ():
            if member.role in ("output", "scale"):
                own = tensors[member.parameter].detach().movedim(member.axis, 0)
                at = torch.as_tensor(member.indices[removed].ravel(), device=own.device)
                if not bool(own[at].flatten(1).any(1).all() if own.ndim > 1 else own[at].all()):
                    return True
    return False


class _Constants(fx.Interpreter):
    """Runs a program on inputs that are no numbers: what is a number still does not depend on them."""

    def __init__(self, read: Read, cut: Cut, tensors: Tensors) -> None:
        super().__init__(read.exported.graph_module, garbage_collect_values=True)
        self.read = read
        self.cut = cut
        self.tensors = tensors
        self.changes: Tensors = {}
        self.hidden: set[fx.Node] = set()
        self.readers: dict[int, list[Node]] = {}
        for node in read.graph.nodes:
            for t in node.inputs:
                self.readers.setdefault(t, []).append(node)

    @torch.no_grad()
    def find(self) -> Tensors:
        """What is to be added to biases and running means, by their names."""
        self.run(*self._arguments())
        return self.changes

    def _arguments(self) -> Iterator[Any]:
        signature = self.read.exported.graph_signature
        names = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        device = next(iter(self.tensors.values())).device
        for node in self.read.exported.graph.nodes:
            if node.op != "placeholder":
                continue
            value = node.meta.get("val")
            if node.name in names:
                own = self.tensors[names[node.name]].detach()
                yield own.clone() if node.name not in signature.inputs_to_parameters else own
            elif isinstance(value, torch.Tensor):
                yield _unknown(torch.zeros(value.shape, dtype=value.dtype, device=device))
                if not value.is_floating_point():
                    self.hidden.add(node)
            else:
                yield value

    def run_node(self, n: fx.Node) -> Any:
        """The node's value, with no numbers where it depends on the network's inputs."""
        if n.op in ("placeholder", "output"):
            return super().run_node(n)
        given = [self.env.get(i) for i in n.all_input_nodes]
        depends = bool(self.hidden.intersection(n.all_input_nodes)) or any(_has_unknown(v) for v in given)
        product = self._product(n)
        value = super().run_node(n) if product is None else product
        if depends and not _floating(value):
            self.hidden.add(n)
        elif self.hidden.intersection(n.all_input_nodes):
            value = _mapped(_unknown, value)
        return value

    def _product(self, n: fx.Node) -> torch.Tensor | None:
        """The value of a convolution, a linear layer or a batch norm; None of anything else.

        Zero times no number is no number to torch; here it is zero.
        """
        index = self.read.origins.get(n)
        target: Any = n.target
        if index is None or not isinstance(target, torch._ops.OpOverload):
            return None
        own = self.read.graph.nodes[index]
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        given = dict(zip((a.name for a in target._schema.arguments), args, strict=False)) | kwargs
        x, weight = given.get("input"), given.get("weight")
        if not isinstance(x, torch.Tensor) or not isinstance(weight, torch.Tensor) or _has_unknown(weight):
            return None
        unknown = x.isnan()
        known = torch.where(unknown, 0.0, x)
        if own.spec.kind == "batch_norm" and not given.get("training"):
            shape = [-1 if a == 1 else 1 for a in range(x.ndim)]
            live = unknown & (weight != 0).reshape(shape)
            return torch.where(live, torch.nan, target(**{**given, "input": known}))
        if own.spec.kind != "linear" and not own.spec.kind.startswith("conv"):
            return None

        def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(target(**{**given, "input": x, "weight": weight, "bias": None}))

        axis = x.ndim - 1 if own.spec.kind == "linear" else x.ndim - weight.ndim + 1
        self._fold(own, known, product, weight, axis)
        live = product(unknown.to(x.dtype), weight.abs()) != 0
        return torch.where(live, torch.nan, target(**{**given, "input": known}))

    def _fold(
        self,
        own: Node,
        known: torch.Tensor,
        product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        weight: torch.Tensor,
        axis: int,
    ) -> None:
        """Take in what the removed constants in ``known`` add to a sum of products, if it has a place."""
        kept = self.cut.kept(own.inputs[0])
        if kept is None or all(len(k) == n for k, n in zip(kept, known.shape, strict=True)):
            return
        removed = torch.ones(known.shape, dtype=torch.bool)
        removed[np.ix_(*kept)] = False
        gone = torch.where(removed.to(known.device), known, 0.0)
        place = self._place(own)
        if place is None or not bool(gone.any()):
            return
        name, sign = place
        added = product(gone, weight).movedim(axis, 0)
        # In the middle, where no padding is; away from edges it is the same everywhere.
        where: Any = (slice(None), *(n // 2 for n in added.shape[1:]))
        self.changes[name] = sign * added[where]

    def _place(self, own: Node) -> tuple[str, float] | None:
        """The name of what a number can be added to for every output channel, and the sign it has there."""
        graph = self.read.graph
        bias = _alone(graph, own, "bias", self.readers)
        if bias is not None:
            return bias, 1.0
        readers = self.readers.get(own.outputs[0], [])
        if own.spec.operand("bias") is None and len(readers) == 1 and own.outputs[0] not in graph.outputs:
            mean = _alone(graph, readers[0], "running_mean", self.readers)
            if mean is not None and readers[0].spec.kind == "batch_norm":
                return mean, -1.0
        return None


def _alone(graph: Graph, node: Node, operand: str, readers: dict[int, list[Node]]) -> str | None:
    """The name of a parameter or buffer that a node has as an operand, and no other node has."""
    for spec, t in zip(node.spec.inputs, node.inputs, strict=True):
        if spec.name == operand and len(readers[t]) == 1:
            return graph.tensors[t].parameter
    return None


def _unknown(value: torch.Tensor) -> torch.Tensor:
    return torch.full_like(value, torch.nan) if value.is_floating_point() else value


def _mapped(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, function, value)


def _tensors(value: Any) -> list[torch.Tensor]:
    return [x for x in pytree.tree_leaves(value) if isinstance(x, torch.Tensor)]


def _has_unknown(value: Any) -> bool:
    return any(x.is_floating_point() and bool(x.isnan().any()) for x in _tensors(value))


def _floating(value: Any) -> bool:
    return all(x.is_floating_point() for x in _tensors(value))
