"""Rebuild: the same model with other sizes along the channel axes of its parameters."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from latmorph.errors import CaptureError, LatmorphWarning, StructureError
from latmorph.graph.capture import Read, export, named_tensors, operators, untouched
from latmorph.graph.capture import read as read_exported
from latmorph.graph.cut import Cut
from latmorph.graph.graph import Graph, Node
from latmorph.graph.module import write_blank, write_module
from latmorph.graph.trace import same_calls
from latmorph.opspec import OpSpec

Resize = Mapping[str, Mapping[int, np.ndarray]]
"""For each parameter's name and axis: the old index at every new place, -1 for a new one."""


def shrunk(model: nn.Module, read: Read, cut: Cut) -> nn.Module:
    """What ``cut`` leaves of ``model``, whose graph and exported program ``read`` holds.

    The same classes with smaller parameters where the model's own code runs the operators that are left, all
    of them and no others, which is tried; otherwise a module written from the graph. Raises StructureError
    where neither can be done.
    """
    if cut.is_plain:
        try:
            small = resize(model, _changes(read.graph, cut), _by_module(read.graph, cut.specs))
            examples = _examples(small, read.graph)
            if same_calls(small, write_blank(model, read, cut), examples):  # far faster than what follows
                return small
            found = export(small, examples)
            if differs(operators(found), cut) is None and _same_constants(found, read.exported):
                return small
        except (StructureError, CaptureError):
            pass
    any_batch = _for_any_batch(model, read)
    return write_module(model, any_batch, cut if any_batch is read else _same_cut(cut, any_batch.graph))


def _same_cut(cut: Cut, graph: Graph) -> Cut:
    """The same channels left of another graph of the model; its frozen ones may be grouped in another way."""
    alive = np.split(cut.alive[:-1], np.cumsum(cut.graph.widths)[:-1])
    kept = {g.name: mask for g, mask in zip(cut.graph.groups, alive, strict=True) if g.frozen is None}
    masks = [np.ones(g.width, dtype=bool) if g.frozen else kept[g.name] for g in graph.groups]
    return Cut(graph, np.concatenate(masks))


def follow(
    optimizer: torch.optim.Optimizer, model: nn.Module, small: nn.Module, graph: Graph, cut: Cut
) -> None:
    """Make the optimizer of ``model`` that of ``small``: its groups, settings and what is left of its state.

    What a parameter's state holds in the parameter's shape (momentum, second moments) is cut as the parameter
    is; scalars stay; anything else is left out, with a warning that says whose state starts anew.
    """
    numbers = {t.parameter: i for i, t in enumerate(graph.tensors) if t.parameter is not None}
    names = {id(p): name for name, p in model.named_parameters(remove_duplicate=False) if name in numbers}
    held = dict(small.named_parameters(remove_duplicate=False))
    anew: list[str] = []
    states: dict[torch.Tensor, dict[str, Any]] = {}
    for group in optimizer.param_groups:
        kept = []
        for old in group["params"]:
            new = held.get(names.get(id(old), ""))
            if new is None:
                continue
            kept.append(new)
            if old in optimizer.state:
                name = names[id(old)]
                states[new], whole = _cut_state(optimizer.state[old], old, cut.parameter(numbers[name]))
                anew += [] if whole else [name]
        group["params"] = kept
    optimizer.state.clear()
    optimizer.state.update(states)
    if anew:
        warnings.warn(
            f"the optimizer keeps state of other shapes than its parameters' for {anew[0]} and "
            f"{len(anew) - 1} others: that starts anew",
            LatmorphWarning,
            stacklevel=3,
        )


def _cut_state(
    state: Mapping[str, Any], parameter: torch.Tensor, kept: Sequence[np.ndarray]
) -> tuple[dict[str, Any], bool]:
    """What is left of a parameter's state, and whether that is all there was."""
    found: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, torch.Tensor) and value.ndim:
            if value.shape != parameter.shape:
                return {}, False
            for axis, index in enumerate(kept):
                value = _take(value, axis, index)
        found[key] = value
    return found, True


def _same_constants(one: ExportedProgram, two: ExportedProgram) -> bool:
    """Whether two programs hold the same tensors beside parameters: numbers that code worked out, say."""
    first, second = (list(program.constants.values()) for program in (one, two))
    return len(first) == len(second) and all(
        not isinstance(a, torch.Tensor)
        or (a.shape == b.shape and (a.device.type == "meta" or bool((a == b).all())))
        for a, b in zip(first, second, strict=True)
    )


def differs(nodes: Sequence[Node], cut: Cut) -> str | None:
    """The first of a network's operators that is not what is left of another; None where there is none."""
    if len(nodes) != len(cut.graph.nodes):
        return f"{len(nodes)} operators, not {len(cut.graph.nodes)}"
    for own, old, spec in zip(nodes, cut.graph.nodes, cut.specs, strict=True):
        attrs = {k: v for k, v in spec.attrs if k not in LAID_OUT}
        found = {k: v for k, v in own.spec.attrs if k not in LAID_OUT}
        if own.spec.kind != spec.kind or own.inputs != old.inputs or own.outputs != old.outputs:
            return f"{own.name} ({own.spec.kind}) stands where {old.name} ({spec.kind}) did"
        shapes = [[t.shape for t in (*s.inputs, *s.outputs)] for s in (own.spec, spec)]
        if shapes[0] != shapes[1] or not same_attrs(found, attrs, own):
            return f"{own.name} ({own.spec.kind}) has {shapes[0]} and {found}, not {shapes[1]} and {attrs}"
    return None


LAID_OUT = ("strided", "size", "shape", "op", "chunks", "split_size", "split_sizes", "sections", "indices")
"""Attributes that say nothing about what is computed that kind and shapes don't."""


def same_attrs(found: dict[str, Any], wanted: dict[str, Any], node: Node) -> bool:
    """Whether an operator does what is wanted: attributes agree, an end beyond an axis being the axis's."""
    if node.spec.attr("op") == "slice":
        size = node.spec.inputs[0].shape[node.spec.attr("dim", 0)]
        found, wanted = ({**a, "end": min(a.get("end", size), size)} for a in (found, wanted))
        return all(found.get(k) == wanted.get(k) for k in ("end", "step")) and (
            (found.get("start") or 0) == (wanted.get("start") or 0)
        )
    return found == wanted


def _changes(graph: Graph, cut: Cut) -> Resize:
    found: dict[str, dict[int, np.ndarray]] = {}
    for t, tensor in enumerate(graph.tensors):
        if tensor.parameter is not None and t in graph.channels.places:
            for axis, kept in enumerate(cut.parameter(t)):
                if len(kept) != tensor.shape[axis]:
                    found.setdefault(tensor.parameter, {})[axis] = kept
    return found


def _by_module(graph: Graph, specs: Sequence[OpSpec]) -> dict[str, OpSpec]:
    """The operator with parameters that each module calls."""
    found: dict[str, OpSpec] = {}
    for node, spec in zip(graph.nodes, specs, strict=True):
        if any(t.parameter for t in spec.inputs):
            found.setdefault(node.module, spec)
    return found


def _examples(model: nn.Module, graph: Graph, least: int = 0) -> tuple[torch.Tensor, ...]:
    """Zeros for every input of a graph, the first axis at least so long."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    given = [graph.tensors[t] for t in graph.inputs]
    shapes = [(max(least, t.shape[0]), *t.shape[1:]) if t.shape else () for t in given]
    return tuple(example(shape, t.dtype, device) for shape, t in zip(shapes, given, strict=True))


def _for_any_batch(model: nn.Module, read: Read) -> Read:
    """The model exported for any size of its inputs' first axis, or else as it was."""
    try:
        found = read_exported(export(model, _examples(model, read.graph, 2), any_batch=True), True)
    except CaptureError:
        return read
    free, own = ({(g.name, g.width) for g in r.graph.groups if g.frozen is None} for r in (found, read))
    return found if free == own else read


def resize(model: nn.Module, changes: Resize, specs: Mapping[str, OpSpec]) -> nn.Module:
    """A copy of ``model`` whose parameters are indexed along their axes as ``changes`` says.

    Classes, other attributes, mode and shared modules stay. Places with no old index hold zeros. ``specs``
    holds for modules the operators that they are to call. Raises StructureError when a name or a size does
    not fit the model.
    """
    _check(model, changes)
    rebuilt = copy.deepcopy(model)
    owners = _owners(rebuilt)
    for name, axes in changes.items():
        holder, attribute = owners[name][0]
        old: torch.Tensor = getattr(holder, attribute)
        value = old.detach()
        for axis, index in axes.items():
            value = _take(value, axis, index)
        new: torch.Tensor = value.clone()
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        for module, attribute in owners[name]:
            setattr(module, attribute, new)
    for name, module in rebuilt.named_modules():
        _update_attributes(module, specs.get(name))
    return rebuilt


def grown(model: nn.Module, graph: Graph, changes: Resize, widths: np.ndarray) -> nn.Module:
    """As :func:`resize`, at other widths, with new places initialised as their modules initialise themselves.

    Raises StructureError where the model's ``forward`` does not accept the new sizes, which is tried without
    computing.
    """
    rebuilt = resize(model, changes, _by_module(graph, graph.resized(widths)))
    _try_forward(rebuilt, _examples(rebuilt, graph))
    fresh = copy.deepcopy(rebuilt)
    reset(fresh)
    old, new = named_tensors(rebuilt), named_tensors(fresh)
    with torch.no_grad():
        for name, axes in changes.items():
            for axis, index in axes.items():
                at = torch.as_tensor(np.flatnonzero(index < 0), device=old[name].device)
                if len(at):
                    old[name].index_copy_(axis, at, new[name].index_select(axis, at))
    return rebuilt


def reset(model: nn.Module) -> None:
    """Initialise every layer as layers of its class initialise themselves."""
    for module in model.modules():
        own = getattr(module, "reset_parameters", None)
        if callable(own):
            own()


def _take(value: torch.Tensor, axis: int, index: np.ndarray) -> torch.Tensor:
    at = torch.as_tensor(np.maximum(index, 0), device=value.device)
    taken = value.index_select(axis, at)
    missing = torch.as_tensor(np.flatnonzero(index < 0), device=value.device)
    return taken.index_fill(axis, missing, 0) if len(missing) else taken


def _owners(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """Every place that holds the parameter or buffer of a name; shared ones are held in several."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    names: dict[str, int] = {}
    for prefix, module in model.named_modules():
        held = {**module._parameters, **module._buffers}
        for attribute, tensor in held.items():
            if tensor is not None:
                places.setdefault(id(tensor), []).append((module, attribute))
                names[f"{prefix}.{attribute}" if prefix else attribute] = id(tensor)
    # Names under which a shared module is reached again.
    for name, tensor in named_tensors(model).items():
        names.setdefault(name, id(tensor))
    return {name: places[key] for name, key in names.items()}


def _check(model: nn.Module, changes: Resize) -> None:
    held = named_tensors(model)
    for name, axes in changes.items():
        if name not in held:
            raise StructureError(
                f"{type(model).__name__} has no parameter {name!r}: the structure is another model's"
            )
        for axis, index in axes.items():
            shape = tuple(held[name].shape)
            if axis >= len(shape) or (len(index) and int(index.max()) >= shape[axis]):
                raise StructureError(
                    f"the structure keeps index {int(index.max())} of {name!r} along axis {axis}, "
                    f"whose shape is {shape}: it is another model's, or this one is shrunk already"
                )


def _update_attributes(module: Any, spec: OpSpec | None) -> None:
    """Sizes that a module remembers, made to agree with its weights and with the operator it is to call."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.RNNBase):
        inner, outer = (getattr(module, f"weight_{which}_l0") for which in ("hh", "ih"))
        module.hidden_size, module.input_size = inner.shape[1], outer.shape[1]
    if not isinstance(weight, torch.Tensor):
        return
    groups = spec.attr("groups") if spec is not None and spec.kind.startswith("conv") else None
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        module.groups = module.groups if groups is None else groups
        module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        module.groups = module.groups if groups is None else groups
        module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = weight.shape[1]
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = weight.shape[0]
    elif isinstance(module, nn.GroupNorm):
        module.num_groups = module.num_groups * weight.shape[0] // module.num_channels
        module.num_channels = weight.shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = weight.shape[0]
    elif hasattr(module, "nf") and weight.ndim == 2:  # the linear layer of GPT-2 in transformers
        module.nf = weight.shape[1]


def _try_forward(model: nn.Module, inputs: Sequence[torch.Tensor]) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with untouched(model), FakeTensorMode(allow_non_fake_inputs=True):
            model(*inputs)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise StructureError(
            f"{type(model).__name__}.forward does not accept the new sizes: {first}; it may hard-code "
            "a size: write x.flatten(1) or -1 instead of a number"
        ) from error


def example(shape: Sequence[int], dtype: str, device: Any = "cpu") -> torch.Tensor:
    """Zeros of a shape and of a dtype's name: an input that only its shape matters of."""
    return torch.zeros(tuple(shape), dtype=getattr(torch, dtype), device=device)
