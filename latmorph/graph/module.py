"""A network as a new module, from its graph: what is left of each operator, called in the same order.

Layers are torch's own modules under their old names, what has no layer of its own is a call in ``forward``,
which can be read (``print(module.code)``), trained, exported and moved like any other.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from latmorph import ops
from latmorph.errors import LatmorphWarning, StructureError
from latmorph.graph.capture import Read, named_tensors, size_of
from latmorph.graph.cut import Cut, Gather
from latmorph.graph.graph import Node
from latmorph.graph.simplify import CONCATENATIONS, State, states
from latmorph.opspec import OpSpec

NOTES = ("inplace", "strided", "op")
"""Attributes of an OpSpec that are ours, not arguments."""


def write_module(model: nn.Module, read: Read, cut: Cut) -> nn.Module:
    """What ``cut`` leaves of ``model``, whose exported program ``read`` holds, as a module of its own.

    Weights are copies. Operators without elements are left out, and constants that this leaves are worked
    out. Parameters that ``forward`` never reads are left out. What drops at random in training without a
    trace in eval mode (stochastic depth) is left out with a LatmorphWarning. Raises StructureError where a
    group at zero cuts the network in two, and where inputs or outputs are of a kind that can't be written
    down.
    """
    writer = _Writer(model, read, cut, named_tensors(model))
    made, lost = writer.write(), writer.drops_unseen()
    if lost:
        warnings.warn(
            f"{len(lost)} modules that drop at random in training leave no trace in eval mode, nor in "
            f"the module that is written anew: {', '.join(lost[:3])}",
            LatmorphWarning,
            stacklevel=2,
        )
    return made


def write_blank(model: nn.Module, read: Read, cut: Cut) -> nn.Module:
    """The same of a model whose weights were on the meta device: shapes, and no memory. Raises the same."""
    return _Writer(model, read, cut, on_meta(named_tensors(model))).write()


def on_meta(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors without values in the place of others; those that are one under several names stay one."""
    one: dict[int, torch.Tensor] = {}
    for tensor in tensors.values():
        blank = torch.empty_like(tensor, device="meta")
        if isinstance(tensor, nn.Parameter):
            blank = nn.Parameter(blank, tensor.requires_grad)
        one.setdefault(id(tensor), blank)
    return {name: one[id(tensor)] for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Constant:
    """A tensor that does not depend on the inputs, and the same of a network with other parameters.

    What holds of the ``probe`` (zeros, numbers that agree) holds whatever the parameters are. So a structure
    gives the same module of an untrained network, and a state dict of the trained one fits it.
    """

    value: torch.Tensor
    probe: torch.Tensor


class _Writer:
    def __init__(self, model: nn.Module, read: Read, cut: Cut, given: Mapping[str, torch.Tensor]) -> None:
        self.model = model
        self.read = read
        self.cut = cut
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.values: dict[fx.Node, Any] = {}
        self.tensors: dict[int, fx.Node] = {}
        self.given = given
        self.held: dict[str, torch.Tensor] = {}
        self.states = {} if cut.is_whole else states(cut)
        self.constants: dict[int, Constant] = {}
        self.random = torch.Generator().manual_seed(0)
        self.tensor_of = {t.parameter: i for i, t in enumerate(read.graph.tensors) if t.parameter is not None}
        self.any_size = {  # axes whose sizes depend on the batch's, where the program is for any
            t: [a for a, n in enumerate(node.meta["val"].shape) if not isinstance(n, int)]
            for node, t in read.values.items()
            if isinstance(t, int) and isinstance(node.meta.get("val"), torch.Tensor)
        }
        self.readers: dict[str, set[str]] = {}
        for node in read.graph.nodes:
            for tensor in node.inputs:
                name = read.graph.tensors[tensor].parameter
                if name is not None:
                    layer = self._layer_name(node) or node.name
                    self.readers.setdefault(name, set()).add(f"{layer} {node.spec.kind} {node.spec.attrs}")

    def write(self) -> nn.Module:
        self._inputs()
        self._nodes(self.read.exported.graph.nodes, self.read.exported.graph_module)
        made = fx.GraphModule(self.root, self.graph, class_name=type(self.model).__name__)
        for node in reversed(made.graph.nodes):
            if not node.users and (not node.is_impure() or _writes_for_itself(node)):
                made.graph.erase_node(node)
        used = {node.target for node in made.graph.nodes if node.op in ("get_attr", "call_module")}
        for name in self.held:
            holder, _, last = name.rpartition(".")
            if not used & {name, holder}:
                delattr(made.get_submodule(holder), last)
        made.delete_all_unused_submodules()
        made.graph.lint()
        made.recompile()
        return made.train(self.model.training)

    def drops_unseen(self) -> list[str]:
        """Modules with a rate of dropout, or of stochastic depth, that no operator was captured of."""
        seen = {node.module for node in self.read.graph.nodes if node.spec.attr("op") == "dropout"}
        return [
            name
            for name, module in self.model.named_modules()
            if name not in seen
            and any(
                isinstance(value, float) and value > 0
                for key, value in vars(module).items()
                if "drop" in key or (key == "p" and isinstance(module, nn.modules.dropout._DropoutNd))
            )
        ]

    # Inputs and outputs

    def _inputs(self) -> None:
        signature = self.read.exported.graph_signature
        named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        constants = signature.inputs_to_lifted_tensor_constants
        given = iter(self._given())
        for node in self.read.exported.graph.nodes:
            if node.op != "placeholder":
                break
            if node.name in named:
                self.values[node] = named[node.name]
            elif node.name in constants:
                name = f"constant.{constants[node.name]}".replace(".", "_")
                self._hold(name, self.read.exported.constants[constants[node.name]].clone())
                self.values[node] = self.graph.get_attr(name)
            else:
                self.values[node] = next(given, None)
                tensor = self.read.values.get(node)
                if isinstance(tensor, int):
                    self.tensors[tensor] = self.values[node]

    def _given(self) -> Iterator[Any]:
        """The leaves of what ``forward`` is given, read out of its arguments."""
        spec: Any = self.read.exported.call_spec.in_spec
        names = [n.name for n in self.read.exported.graph.nodes if n.op == "placeholder"]
        given = set(self.read.exported.graph_signature.user_inputs)
        user = [n for n in names if n in given]
        positional, keywords = spec.children()
        at = 0
        for k, part in enumerate(positional.children()):
            leaf = part.is_leaf()
            node = self.graph.placeholder(user[at] if leaf and at < len(user) else f"input_{k}")
            yield from self._leaves(node, part)
            at += part.num_leaves
        if keywords.num_leaves:
            raise StructureError(
                f"{type(self.model).__name__} was captured with keyword arguments; give inputs by position"
            )

    def _leaves(self, value: fx.Node, spec: Any) -> Iterator[fx.Node]:
        if spec.is_leaf():
            yield value
            return
        keys = spec.context if spec.type is dict else range(spec.num_children)
        for key, part in zip(keys, spec.children(), strict=True):
            yield from self._leaves(self.graph.call_function(operator.getitem, (value, key)), part)

    def _output(self, node: fx.Node) -> None:
        given: Any = node.args[0]
        leaves = iter([self._mapped(n) for n in given])
        self.graph.output(self._assembled(leaves, self.read.exported.call_spec.out_spec))

    def _assembled(self, leaves: Iterator[Any], spec: Any) -> Any:
        if spec.is_leaf():
            return next(leaves)
        parts = [self._assembled(leaves, part) for part in spec.children()]
        if spec.type in (tuple, list):
            return spec.type(parts)
        if spec.type is dict:
            return dict(zip(spec.context, parts, strict=True))
        if isinstance(spec.context, list) and len(spec.context) == len(
            parts
        ):  # a dictionary of another class
            return self.graph.call_function(spec.type, (), dict(zip(spec.context, parts, strict=True)))
        raise StructureError(
            f"{type(self.model).__name__} returns a {spec.type.__name__}: return a tuple or a dict"
        )

    # Nodes

    def _nodes(self, nodes: Any, owner: nn.Module) -> None:
        for node in nodes:
            if node.op == "output":
                self._output(node)
            elif node.op != "placeholder":
                self._node(node, owner)

    def _node(self, node: fx.Node, owner: nn.Module) -> None:
        if node.op == "get_attr":
            value = getattr(owner, str(node.target), None)
            if isinstance(value, torch.Tensor):
                self._hold(node.name, value.detach().clone())
                self.values[node] = self.graph.get_attr(node.name)
        elif node in self.read.origins:
            self._operator(node, self.read.graph.nodes[self.read.origins[node]])
        elif node.target is operator.getitem and isinstance(node.args[0], fx.Node):
            source, at = self.values[node.args[0]], int(str(node.args[1]))
            self.values[node] = source[at] if isinstance(source, list) else source
        elif str(node.target) in ("wrap_with_autocast", "wrap_with_set_grad_enabled"):
            self._body(node, owner)
        elif node.users:  # arithmetic on sizes
            self.values[node] = self.graph.create_node(
                "call_function", node.target, self._mapped(node.args), self._mapped(node.kwargs)
            )

    def _body(self, node: fx.Node, owner: nn.Module) -> None:
        """The nodes of a graph that is run under another mode, in the node's place."""
        at, name = next(
            (i, str(a.target))
            for i, a in enumerate(node.args)
            if isinstance(a, fx.Node)
            and a.op == "get_attr"
            and isinstance(getattr(owner, str(a.target), None), nn.Module)
        )
        body = getattr(owner, name)
        given = iter(node.args[at + 1 :])
        for inner in body.graph.nodes:
            if inner.op == "placeholder":
                argument = next(given)
                self.values[inner] = self.values.get(argument) if isinstance(argument, fx.Node) else argument
            elif inner.op == "output":
                self.values[node] = [self._mapped(n) for n in pytree.tree_leaves(inner.args)]
            else:
                self._node(inner, body)

    def _operator(self, node: fx.Node, own: Node) -> None:
        found = [self.states.get(t) for t in own.outputs]
        many = isinstance(node.meta.get("val"), tuple | list)
        parts: list[Any] = []
        if State.CONSTANT in found:
            parts = self._folded(node, own)
        elif all(s is State.EMPTY for s in found):
            parts = [None] * len(found)
        else:
            parts = self._made(node, own, many)
        self.tensors.update(zip(own.outputs, parts, strict=True))
        self.values[node] = parts if many else parts[0]

    def _made(self, node: fx.Node, own: Node, many: bool) -> list[Any]:
        """The operator's outputs, where there is something left to compute."""
        gathers = [self.cut.gathers.get(t) for t in own.outputs]
        others = [self.cut.stands_for(t) for t in own.outputs]
        called: Any = None
        if any(g is None and other is None for g, other in zip(gathers, others, strict=True)):
            called = self._reduced(node, own) or self._call(node, own, self.cut.spec(own))
        parts: list[Any] = []
        for i, (tensor, gather, other) in enumerate(zip(own.outputs, gathers, others, strict=True)):
            if gather is not None:
                parts.append(self._gathered(gather, own, tensor))
            elif other is not None:
                parts.append(self.tensors[other])
            elif many:
                parts.append(self.graph.call_function(operator.getitem, (called, i)))
            else:
                parts.append(called)
        return parts

    # Groups at zero

    def _reduced(self, node: fx.Node, own: Node) -> Any:
        """The operator without empty operands, or without those that change nothing; None where it stays."""
        found = [self.states.get(t) for t in own.inputs]
        if State.EMPTY in found or (State.CONSTANT in found and own.spec.kind in CONCATENATIONS):
            left = [t for t, s in zip(own.inputs, found, strict=True) if s is not State.EMPTY]
            if len(left) == 1:
                return self._itself(left[0], node)
            dim = own.spec.attr("dim", 0)
            return self.graph.call_function(torch.cat, ([self._tensor(t, own) for t in left], dim))
        if State.CONSTANT not in found:
            return None
        live = [t for t, s in zip(own.inputs, found, strict=True) if s is not State.CONSTANT]
        constants = [self.constants[t] for t, s in zip(own.inputs, found, strict=True) if s is State.CONSTANT]
        neutral = {"add": 0.0, "sub": 0.0, "mul": 1.0, "div": 1.0}.get(own.spec.kind)
        first = found[0] is not State.CONSTANT or own.spec.kind in ("add", "mul")
        if len(live) == 1 and len(found) == 2 and neutral is not None and first:
            same = self.cut.shape(live[0]) == self.cut.shape(own.outputs[0])
            if same and all(bool((c.probe == neutral).all()) for c in constants):
                return self._itself(live[0], node)
        if not isinstance(ops.handler_of(own.spec.kind), ops.Binary):
            raise StructureError(
                f"{own.module or own.name} ({own.spec.kind}) would read a constant beside what depends on "
                "the inputs, since a group before it is at zero; keep at least one channel of it"
            )
        shapes = [self.cut.shape(t) for t in live] + [tuple(c.value.shape) for c in constants]
        if np.broadcast_shapes(*shapes) != self.cut.shape(own.outputs[0]):
            for t, s in zip(own.inputs, found, strict=True):
                if s is State.CONSTANT:
                    size = (1, *self.cut.shape(t)[1:])
                    old = self.constants[t]
                    value, probe = (x.expand(size).contiguous() for x in (old.value, old.probe))
                    self.constants[t] = Constant(value, probe)
        return None

    def _itself(self, tensor: int, node: fx.Node) -> Any:
        """A tensor in the place of what a node made of it; a copy, where it would be written to there."""
        value = self.tensors[tensor]
        schemas = (getattr(user.target, "_schema", None) for user in node.users)
        written = any(schema is not None and schema.is_mutable for schema in schemas)
        return self.graph.call_method("clone", (value,)) if written else value

    def _tensor(self, tensor: int, own: Node) -> Any:
        """The value of one of an operator's operands; a constant is stretched to its whole size."""
        if tensor not in self.constants:
            return self.tensors[tensor]
        live = next(self.tensors[t] for t in own.inputs if self.states.get(t) is State.LIVE)
        size = self.graph.call_method("size", (live, 0))
        constant = self._constant(tensor)
        return self.graph.call_method("expand", (constant, size, *self.cut.shape(tensor)[1:]))

    def _constant(self, tensor: int) -> fx.Node:
        name = f"constant_{tensor}"
        if name not in self.held:
            self._hold(name, self.constants[tensor].value)
        return self.graph.get_attr(name)

    @torch.no_grad()
    def _folded(self, node: fx.Node, own: Node) -> list[Any]:
        """Work out an operator that reads constants alone, or sums over nothing.

        What is the same everywhere along an axis is kept with a size of 1 there.
        """
        if any(self.states.get(t) is State.EMPTY for t in own.inputs):
            self.constants[own.outputs[0]] = self._bias(own)
            return [None]
        made = [self._run(node, own, probe=probe) for probe in (False, True)]
        for tensor, value, probe in zip(own.outputs, *made, strict=True):
            rank = len(self.cut.shape(tensor))
            for axis in range(rank):  # what is the same along an axis is kept once
                first = probe.narrow(axis, 0, 1)
                if axis != 1 and bool(torch.isclose(probe, first, rtol=1e-4).all()):
                    value, probe = value.narrow(axis, 0, 1).clone(), first.clone()
            if rank and value.shape[0] != 1:
                raise StructureError(f"{own.name} makes a constant that differs along the batch")
            self.constants[tensor] = Constant(value, probe)
        return [None] * len(own.outputs)

    def _run(self, node: fx.Node, own: Node, *, probe: bool) -> list[torch.Tensor]:
        """Run an operator on constants, stretched to their whole sizes if need be."""
        whole = not ops.is_pointwise(own.spec)

        def value(argument: fx.Node) -> Any:
            known = self.values.get(argument)
            if isinstance(known, str):
                return self._probe(self._value(known)) if probe else self._value(known)
            tensor = self.read.values.get(argument)
            if isinstance(tensor, int) and tensor in self.constants:
                constant = self.constants[tensor].probe if probe else self.constants[tensor].value
                return (constant.expand(self.cut.shape(tensor)) if whole else constant).clone()
            return size_of(argument.meta.get("val"))

        target, args, kwargs = self._changed(node, own, self.cut.spec(own))
        made = target(*fx.node.map_arg(args, value), **fx.node.map_arg(kwargs, value))
        return list(made) if isinstance(made, tuple | list) else [made]

    def _bias(self, own: Node) -> Constant:
        """What a sum of products over nothing is: the bias, or zero."""
        names = self._operands(own)
        shape = self.cut.shape(own.outputs[0])
        dtype = getattr(torch, own.spec.out.dtype)
        name = names.get("bias") or (names.get("self") if own.spec.kind == "addmm" else None)
        device = next((p.device for p in self.model.parameters()), None)
        axis = len(shape) - 1
        if own.spec.kind.startswith("conv"):
            axis = len(own.spec["input"].shape) - len(own.spec["weight"].shape) + 1
        ones = [-1 if a == axis else 1 for a in range(len(shape))]
        if name is None:
            zero = torch.zeros(shape[axis], dtype=dtype, device=device).reshape(ones)
            return Constant(zero, torch.zeros_like(self._probe(zero)))
        value = self._value(name).detach().reshape(ones).clone()
        return Constant(value, self._probe(value))

    def _probe(self, value: torch.Tensor) -> torch.Tensor:
        """Other numbers in a tensor's place: positive, so that no sum of them is zero by chance."""
        if value.device.type == "meta":
            value = torch.zeros_like(value, device="cpu")
        if not value.is_floating_point():
            return value
        drawn = torch.rand(value.shape, generator=self.random, dtype=torch.float64)
        return (0.5 + drawn).to(value.device, value.dtype)

    def _gathered(self, gather: Gather, own: Node, tensor: int) -> fx.Node:
        source, places = self.tensors[gather.root], gather.indices.ravel()
        if gather.axis in self.any_size.get(gather.root, ()):
            op = own.spec.attr("op", own.spec.kind)
            raise StructureError(
                f"{own.module or own.name} ({op}) would rearrange what is left of "
                "an axis that is the batch's or depends on it; keep all of the channels along it"
            )
        if np.array_equal(places, np.arange(self.cut.shape(gather.root)[gather.axis])):
            value = source
        elif len(places) and (np.diff(places) == 1).all():
            value = self.graph.call_function(torch.narrow, (source, gather.axis, int(places[0]), len(places)))
        else:
            name = f"{own.name}_indices_{tensor}"
            self._hold(name, torch.as_tensor(places.copy()))
            indices = self.graph.get_attr(name)
            value = self.graph.call_function(torch.index_select, (source, gather.axis, indices))
        if gather.indices.ndim > 1:
            value = self.graph.call_method("unflatten", (value, gather.axis, gather.indices.shape))
        if gather.order != tuple(range(len(gather.order))):
            value = self.graph.call_method("permute", (value, gather.order))
        return value

    def _call(self, node: fx.Node, own: Node, spec: OpSpec) -> fx.Node:
        layer = self._layer(own, spec)
        if layer is not None:
            read: Any = node.args[1 if own.spec.kind == "embedding" else 0]
            return self.graph.call_module(layer, (self._one(read),))
        target, args, kwargs = self._changed(node, own, spec)
        if target is torch.ops.aten.view.default:  # what is left may lie in memory in another order
            target = torch.ops.aten.reshape.default
        return self.graph.call_function(target, self._mapped(args), self._mapped(kwargs))

    def _changed(self, node: fx.Node, own: Node, spec: OpSpec) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """The call with those of its arguments changed that follow from sizes."""
        if spec.attr("op") != own.spec.attr("op"):
            sizes, dim = list(spec.attr("split_sizes")), spec.attr("dim")
            return torch.ops.aten.split_with_sizes.default, (node.args[0], sizes, dim), {}
        schema = getattr(node.target, "_schema", None)
        args, kwargs = list(node.args), dict(node.kwargs)
        arguments = schema.arguments if schema is not None else []
        names = [a.name for a in arguments]
        for name, value in spec.attrs:
            old = own.spec.attr(name)
            if name in NOTES or old == value or name not in names:
                continue
            at = names.index(name)
            if at < len(args):
                args[at] = self._sized(args[at], old, value, spec.out.shape)
            elif arguments[at].kwarg_only or at > len(args):
                kwargs[name] = value
            else:
                args.append(value)
        return node.target, tuple(args), kwargs

    def _sized(self, given: Any, old: Any, new: Any, shape: Sequence[int]) -> Any:
        """A list of sizes with the new ones in it; one that is any batch's stays, if it can."""
        if not isinstance(given, list | tuple):
            return new
        found: list[Any] = []
        for entry, before, after in zip(given, old, new, strict=True):
            free = isinstance(entry, fx.Node)
            found.append((entry if before == after else -1) if free else after)
        if found.count(-1) == list(given).count(-1):  # as many as an operator was given, it takes
            return found
        if found.count(-1) > 1 and len(found) == len(shape):  # one was left open that is no batch's
            found = [n if entry == -1 else f for entry, f, n in zip(given, found, shape, strict=True)]
        if found.count(-1) > 1:
            raise StructureError(
                f"two sizes of {list(new)} depend on the batch's; capture with another batch"
            )
        return found

    # Layers

    def _layer_name(self, own: Node) -> str | None:
        """The module that an operator's parameters are all of, and that could be a layer of torch's."""
        names = self._operands(own)
        if (
            own.spec.kind not in LAYERS
            or not names
            or own.spec.inputs[0].parameter != (own.spec.kind == "embedding")
        ):
            return None
        expected = {**{n: n for n in ("weight", "bias", "running_mean", "running_var")}}
        owners = {name.rpartition(".")[0] for name in names.values()}
        fit = all(name.rpartition(".")[2] == expected.get(operand) for operand, name in names.items())
        activations = sum(not t.parameter for t in own.spec.inputs)
        return owners.pop() if len(owners) == 1 and fit and activations == 1 and "weight" in names else None

    def _operands(self, own: Node) -> dict[str, str]:
        """Names of the parameters that an operator reads, by the operand's name."""
        return {
            operand.name: name
            for operand, tensor in zip(own.spec.inputs, own.inputs, strict=True)
            if (name := self.read.graph.tensors[tensor].parameter) is not None
        }

    def _layer(self, own: Node, spec: OpSpec) -> str | None:
        """The layer that runs an operator, made if it is not there; None where none can."""
        if own.spec.attr("op") == "dropout":
            place = own.module if isinstance(_submodule(self.model, own.module), nn.Dropout) else own.name
            if _submodule(self.root, place) is None:
                self._place(place, nn.Dropout(own.spec.attr("p")))
            return place
        name = self._layer_name(own)
        names = self._operands(own)
        if not name or any(len(self.readers[n]) > 1 for n in names.values()):
            return None
        if _submodule(self.root, name) is None or not any(
            True for _ in _submodule(self.root, name).parameters()
        ):
            made = LAYERS[spec.kind](spec, set(names))
            if made is None:
                return None
            for operand, full in names.items():
                value = self._value(full)
                if isinstance(value, nn.Parameter):
                    setattr(made, operand, value)
                else:
                    made.register_buffer(operand, value)
            counted = self.given.get(f"{name}.num_batches_tracked")
            if counted is not None and hasattr(made, "num_batches_tracked"):
                made.register_buffer("num_batches_tracked", counted.clone())
            self._place(name, made)
        return name

    # Parameters

    def _mapped(self, value: Any) -> Any:
        return fx.node.map_arg(value, self._one)

    def _one(self, node: fx.Node) -> Any:
        value = self.values[node]
        tensor = self.read.values.get(node)
        if isinstance(tensor, int) and tensor in self.constants:
            return self._constant(tensor)
        if not isinstance(value, str):
            return value
        if value not in self.held:
            self._hold(value, self._value(value))
        return self.graph.get_attr(value)

    def _value(self, name: str) -> torch.Tensor:
        """What is left of a parameter or buffer."""
        old = self.given.get(name)
        if old is None:  # a buffer that state_dict leaves out
            old = self.read.exported.constants[name]
        value = old.detach()
        tensor = self.tensor_of.get(name)
        for axis, kept in enumerate(self.cut.parameter(tensor)) if tensor is not None else ():
            if len(kept) != value.shape[axis]:
                value = value.index_select(axis, torch.as_tensor(kept, device=value.device))
        value = value.clone(memory_format=torch.contiguous_format)
        return nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value

    def _hold(self, name: str, value: torch.Tensor) -> None:
        path, _, last = name.rpartition(".")
        holder = self._container(path)
        if isinstance(value, nn.Parameter):
            holder.register_parameter(last, value)
        else:
            holder.register_buffer(last, value)
        self.held[name] = value

    def _container(self, path: str) -> nn.Module:
        holder = self.root
        for part in path.split(".") if path else ():
            if not hasattr(holder, part):
                holder.add_module(part, nn.Module())
            holder = getattr(holder, part)
        return holder

    def _place(self, path: str, layer: nn.Module) -> None:
        parent, _, last = path.rpartition(".")
        holder = self._container(parent)
        old = getattr(holder, last, None)
        if isinstance(old, nn.Module):
            for name, child in old.named_children():
                layer.add_module(name, child)
        holder.add_module(last, layer)


def _writes_for_itself(node: fx.Node) -> bool:
    """Whether a node writes to memory that nothing else reads: another node's that makes it and no view."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    source = node.args[0]
    schema = getattr(source.target, "_schema", None)
    fresh = source.op == "call_module" or (
        schema is not None and all(r.alias_info is None for r in schema.returns)
    )
    return fresh and len(source.users) == 1


def _submodule(root: nn.Module, path: str) -> Any:
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None


def _convolution(spec: OpSpec, names: set[str]) -> nn.Module | None:
    weight = spec["weight"].shape
    kind = getattr(nn, f"Conv{spec.kind[-2:]}")
    groups = spec.attr("groups")
    settings = {k: v for k, v in spec.attrs if k in ("stride", "padding", "dilation")}
    made: nn.Module = kind(
        weight[1] * groups,
        weight[0],
        weight[2:],
        **settings,
        groups=groups,
        bias="bias" in names,
        device="meta",
    )
    return made


def _linear(spec: OpSpec, names: set[str]) -> nn.Module | None:
    outputs, inputs = spec["weight"].shape
    return nn.Linear(inputs, outputs, bias="bias" in names, device="meta")


def _batch_norm(spec: OpSpec, names: set[str]) -> nn.Module | None:
    rank = len(spec.inputs[0].shape)
    if names != {"weight", "bias", "running_mean", "running_var"} or rank > 5 or spec.attr("training"):
        return None
    kind = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 2]
    return kind(spec["weight"].shape[0], spec.attr("eps"), spec.attr("momentum"), device="meta")


def _layer_norm(spec: OpSpec, names: set[str]) -> nn.Module | None:
    shape = list(spec.attr("normalized_shape"))
    return nn.LayerNorm(shape, spec.attr("eps", 1e-5), bias="bias" in names, device="meta")


def _group_norm(spec: OpSpec, names: set[str]) -> nn.Module | None:
    if names != {"weight", "bias"}:
        return None
    return nn.GroupNorm(
        spec.attr("num_groups"), spec["weight"].shape[0], spec.attr("eps", 1e-5), device="meta"
    )


def _rms_norm(spec: OpSpec, names: set[str]) -> nn.Module | None:
    return nn.RMSNorm(list(spec.attr("normalized_shape")), spec.attr("eps"), device="meta")


def _embedding(spec: OpSpec, names: set[str]) -> nn.Module | None:
    rows, width = spec["weight"].shape
    padding = spec.attr("padding_idx", -1)
    return nn.Embedding(rows, width, None if padding < 0 else padding, device="meta")


def _prelu(spec: OpSpec, names: set[str]) -> nn.Module | None:
    return nn.PReLU(spec["weight"].shape[0], device="meta")


LAYERS: Mapping[str, Callable[[OpSpec, set[str]], nn.Module | None]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    "linear": _linear,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "rms_norm": _rms_norm,
    "embedding": _embedding,
    "prelu": _prelu,
}
"""How the layer of an operator is made, by its kind, of the operator and the parameters that it has."""
