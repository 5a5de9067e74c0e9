"""Rebuild: the same model with other sizes along the channel axes of its parameters."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from latmorph.errors import StructureError
from latmorph.graph.capture import untouched

Resize = Mapping[str, Mapping[int, np.ndarray]]
"""For each parameter's name and axis: the old index at every new place, -1 for a new one."""

Inputs = Sequence[tuple[tuple[int, ...], str]]
"""Shape and dtype of every positional argument of ``forward``."""


def resize(model: nn.Module, changes: Resize, inputs: Inputs) -> nn.Module:
    """A copy of ``model`` whose parameters are indexed along their axes as ``changes`` says.

    Classes, other attributes, mode and shared modules stay. Places with no old index hold zeros.
    Raises StructureError when a name or a size does not fit the model, or when its ``forward`` does
    not accept the new sizes, which is tried without computing on ``inputs``.
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
    for module in rebuilt.modules():
        _update_attributes(module)
    _try_forward(rebuilt, inputs)
    return rebuilt


def grow(model: nn.Module, changes: Resize, inputs: Inputs) -> nn.Module:
    """As :func:`resize`, with new places initialised as their modules initialise themselves."""
    rebuilt = resize(model, changes, inputs)
    fresh = copy.deepcopy(rebuilt)
    for module in fresh.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    old, new = _tensors(rebuilt), _tensors(fresh)
    with torch.no_grad():
        for name, axes in changes.items():
            for axis, index in axes.items():
                at = torch.as_tensor(np.flatnonzero(index < 0), device=old[name].device)
                if len(at):
                    old[name].index_copy_(axis, at, new[name].index_select(axis, at))
    return rebuilt


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by every name that they have."""
    held: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    held.update(model.named_buffers(remove_duplicate=False))
    return held


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
    for name, tensor in _tensors(model).items():
        names.setdefault(name, id(tensor))
    return {name: places[key] for name, key in names.items()}


def _check(model: nn.Module, changes: Resize) -> None:
    held = _tensors(model)
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


def _update_attributes(module: Any) -> None:
    """Sizes that a module remembers, made to agree with its weight."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        return
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        depthwise = module.groups > 1 and module.groups == module.in_channels
        multiplier = module.out_channels // module.in_channels if depthwise else 1
        module.out_channels = weight.shape[0]
        if depthwise:
            module.groups = module.in_channels = weight.shape[0] // multiplier
        else:
            module.in_channels = weight.shape[1] * module.groups
    elif isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        if module.groups > 1 and module.groups == module.in_channels:
            module.groups = weight.shape[0]
        module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = weight.shape[0]
    elif hasattr(module, "nf") and weight.ndim == 2:  # the linear layer of GPT-2 in transformers
        module.nf = weight.shape[1]


def _try_forward(model: nn.Module, inputs: Inputs) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        with untouched(model), FakeTensorMode(allow_non_fake_inputs=True):
            model(*(example(shape, dtype, device) for shape, dtype in inputs))
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise StructureError(
            f"{type(model).__name__}.forward does not accept the new sizes: {first}; it may hard-code "
            "a size: write x.flatten(1) or -1 instead of a number"
        ) from error


def example(shape: Sequence[int], dtype: str, device: Any = "cpu") -> torch.Tensor:
    """Zeros of a shape and of a dtype's name: an input that only its shape matters of."""
    return torch.zeros(tuple(shape), dtype=getattr(torch, dtype), device=device)
