"""An operator as a call: what PyTorch eager runs, and what it costs to get there.

A network's own code reaches an operator through Python's bindings, most of them inside a module's call.
``torch.ops`` reaches the same kernel some microseconds later, which is more than many a kernel takes; so
it serves only where no binding takes the operator's arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from latmorph.opspec import OpSpec, TensorSpec

Parameter = Callable[[TensorSpec], torch.Tensor]
"""The tensor of a parameter."""

OURS = ("inplace", "strided", "op")
"""Attributes that no operator of torch's has."""


def aten_call(name: str, spec: OpSpec, parameter: Parameter, lists: Sequence[str]) -> Callable[..., Any]:
    """A call of the operator ``name`` in ``aten``: it takes the operands that are not parameters, in order.

    Operands named in ``lists`` are lists of tensors, one name each; parameters and attributes are held.
    """
    held = [parameter(t) if t.parameter else None for t in spec.inputs]
    listed = {n: spec.attr(n) for n in lists if spec.operand(n) is not None}
    fixed: dict[str, Any] = {
        key: _attr_value(key, value, parameter)
        for key, value in spec.attrs
        if key not in OURS and key not in listed
    }
    kinds = {key: "str" if isinstance(value, str) else "" for key, value in fixed.items()}
    kinds.update((t.name, "Tensor") for t in spec.inputs)
    overload, left_out = _overload(getattr(torch.ops.aten, name), kinds)
    fixed.update(dict.fromkeys(left_out))
    places = _places(spec, listed)

    by_name = _Arguments(fixed, places, ())
    by_order = by_name.in_order_of(overload)
    binding = next((f for f in _bindings(name) if by_order.fit(f, spec)), None)
    run = by_name.filled(overload, held) if binding is None else by_order.filled(binding, held)
    # What a network has as a module is called as one; what it has as a function only is called as such.
    return _Module(run) if hasattr(torch.nn.functional, name.removesuffix("_")) else run


class _Module(torch.nn.Module):
    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.run = run

    def forward(self, *activations: torch.Tensor) -> Any:
        return self.run(*activations)


def layer(
    kind: Callable[..., torch.nn.Module],
    held: Iterable[TensorSpec],
    parameter: Parameter,
    *sizes: Any,
    **more: Any,
) -> torch.nn.Module:
    """The module that a network's own code has for an operator: what it does in Python can outlast a kernel.

    ``kind`` is called with ``sizes`` and ``more``; then it is given the parameters ``held``, by their names.
    """
    made = kind(*sizes, **more, device="meta")
    for spec in held:
        value = parameter(spec)
        setattr(made, spec.name, value if "running" in spec.name else torch.nn.Parameter(value, False))
    return made.eval()


class Block(torch.nn.Module):
    """A module inside another, as networks have one for about every layer with weights."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> Any:
        return self.inner(x)


def _places(spec: OpSpec, listed: Mapping[str, Any]) -> dict[str, Any]:
    """For each operand's name the index of its tensor, or where it is a list those of all its tensors.

    ``listed`` says for each list which of its places are filled; None: all.
    """
    places: dict[str, Any] = {t.name: i for i, t in enumerate(spec.inputs) if t.name not in listed}
    for name, present in listed.items():
        own = iter([i for i, t in enumerate(spec.inputs) if t.name == name])
        places[name] = list(own) if present is None else [next(own) if there else None for there in present]
    return places


@dataclass(frozen=True)
class _Arguments:
    """What an operator is called with: values and places of tensors by name, and what goes by position."""

    fixed: Mapping[str, Any]
    places: Mapping[str, Any]
    order: tuple[str, ...]

    def in_order_of(self, overload: Any) -> _Arguments:
        """The same by position, as far as the overload's schema allows: names differ between bindings."""
        schema = getattr(overload, "_schema", None)
        if schema is None:  # torch shall choose among several
            return self
        ordered = [a for a in schema.arguments if not a.kwarg_only]
        # The last ones are left out where they are as by default, as networks do.
        defaults = {a.name: a.default_value for a in ordered if a.has_default_value()}
        fixed = {k: v for k, v in self.fixed.items() if k not in defaults or v != defaults[k]}
        given = [i for i, a in enumerate(ordered) if a.name in fixed or a.name in self.places]
        ordered = ordered[: max(given, default=-1) + 1]
        left_out = {a.name: a.default_value for a in ordered if a.name not in self.places}
        return _Arguments({**left_out, **fixed}, self.places, tuple(a.name for a in ordered))

    def arranged(self, tensors: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """Arguments by position and by name, for these tensors of the operands."""
        given = dict(self.fixed)
        for name, place in self.places.items():
            if isinstance(place, int):
                given[name] = tensors[place]
            else:
                given[name] = [None if i is None else tensors[i] for i in place]
        return [given.pop(name) for name in self.order], given

    def fit(self, function: Callable[..., Any], spec: OpSpec) -> bool:
        """Whether a function takes these arguments, tried on tensors that have shapes and no memory."""
        if not self.order:
            return False
        tensors = [torch.empty(t.shape, dtype=getattr(torch, t.dtype), device="meta") for t in spec.inputs]
        args, keywords = self.arranged(tensors)
        try:
            function(*args, **keywords)
        except Exception:  # of any kind: the operator's own overload is called, and says what is wrong
            return False
        return True

    def filled(self, function: Callable[..., Any], held: Sequence[torch.Tensor | None]) -> Callable[..., Any]:
        """A call of ``function`` that holds these tensors and takes those in the places of None."""
        missing = [i for i, tensor in enumerate(held) if tensor is None]
        args, keywords = self.arranged(held)
        first = self.places.get(self.order[0]) if self.order else None
        leading = [self.places.get(name) for name in self.order[: len(missing)]]
        if leading == missing:
            rest = args[len(missing) :]
            return lambda *arriving: function(*arriving, *rest, **keywords)
        if first == missing:
            rest = args[1:]
            return lambda *arriving: function(arriving, *rest, **keywords)

        def run(*arriving: torch.Tensor) -> Any:
            tensors = list(held)
            for i, tensor in zip(missing, arriving, strict=True):
                tensors[i] = tensor
            args, keywords = self.arranged(tensors)
            return function(*args, **keywords)

        return run


def _bindings(name: str) -> list[Callable[..., Any]]:
    """Python's own ways to an operator of ``aten``, where there are such."""
    homes = (torch._C._VariableFunctions, torch._C._nn, torch.Tensor)
    return [getattr(home, name) for home in homes if hasattr(home, name)]


def _overload(packet: Any, given: Mapping[str, str]) -> tuple[Any, list[str]]:
    """The overload for these arguments, and those of its own that are None because nothing was given.

    ``given`` says of each argument whether it is a ``Tensor``, a ``str`` or anything else. Found once, here:
    torch, asked at every call, tries one after the other, and a try that fails takes longer than many
    an operator. Where none fits by its schema, torch shall choose.
    """
    found: list[tuple[Any, list[str]]] = []
    for name in packet.overloads():
        overload = getattr(packet, name)
        arguments = overload._schema.arguments
        left = [a for a in arguments if a.name not in given and not a.has_default_value()]
        taken = [a for a in arguments if a.name in given]
        fits = len(taken) == len(given) and all(
            (kind in str(a.type)) == (kind == given[a.name]) for a in taken for kind in ("Tensor", "str")
        )
        if fits and all(isinstance(a.type, torch.OptionalType) for a in left):
            found.append((overload, [a.name for a in left]))
    return min(found, key=lambda x: len(x[1]), default=(packet, []))


def _attr_value(key: str, value: Any, parameter: Parameter) -> Any:
    if key == "device":  # where the parameters are, wherever the network was captured
        return parameter(TensorSpec("device", ())).device
    if key in ("dtype", "out_dtype", "memory_format", "layout") and isinstance(value, str):
        return getattr(torch, value)
    return list(value) if isinstance(value, tuple) else value
