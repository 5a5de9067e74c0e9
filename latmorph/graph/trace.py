"""Traces: what modules dispatch in one pass on tensors without values, to be held against each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from latmorph.graph.capture import named_tensors, untouched
from latmorph.graph.module import on_meta

SHAPED = frozenset(f"aten.{name}.default" for name in ("view", "_unsafe_view", "expand"))
"""Operators whose arguments say nothing that the shapes they read and make don't."""


def same_calls(one: nn.Module, two: nn.Module, inputs: Sequence[torch.Tensor]) -> bool:
    """Whether two modules that name their weights alike compute the same, call by call, in eval mode.

    ``inputs`` are examples. False also where it cannot be told: nothing is computed, so that a module that
    reads values fails, and a tensor that is neither a weight nor made by an operator is like no other.
    """
    blank = [torch.empty_like(x, device="meta") for x in inputs]
    names = named_tensors(one).keys() & named_tensors(two).keys()
    made: dict[Any, Any] = {}
    try:
        return _calls(one, blank, names, made) == _calls(two, blank, names, made)
    except Exception:  # of whatever kind the modules' code raises on tensors without values
        return False


def _calls(
    model: nn.Module, inputs: Sequence[torch.Tensor], names: Iterable[str], made: dict[Any, Any]
) -> list[Any]:
    held = on_meta(named_tensors(model))
    recorder = _Recorder(inputs, {name: held[name] for name in names}, made)
    with untouched(model), torch.device("meta"), recorder:
        given = torch.func.functional_call(model, held, tuple(inputs))
    leaves, nested = pytree.tree_flatten(given)
    return [*recorder.calls, [recorder.told(x) for x in leaves], str(nested)]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps every call that reaches the dispatcher and makes a tensor, as values that can be compared."""

    def __init__(
        self, inputs: Sequence[torch.Tensor], named: Mapping[str, torch.Tensor], made: dict[Any, Any]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Any] = []
        self.made = made  # what calls made before, as the same once more makes the same
        self.known: dict[int, Any] = {}
        for name in sorted(named):
            self.known.setdefault(id(named[name]), name)
        self.alive: list[Any] = []  # so that no other tensor gets the number of one that is gone
        for x in inputs:
            self._number(x)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, read = str(func), list(_leaves((args, kwargs)))
        # Before the call, which may write to one of them.
        told = [self.told(x) for x in read if name not in SHAPED or isinstance(x, torch.Tensor)]
        made = self._call(func, read, args, kwargs or {})
        tensors = [x for x in _leaves(made) if isinstance(x, torch.Tensor)]
        for x in tensors:
            if id(x) not in self.known:
                self._number(x)
        if tensors:
            self.calls.append((name, told, [self.told(x) for x in tensors]))
        return made

    def _call(self, func: Any, read: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        schema = func._schema
        if schema.is_mutable or any(r.alias_info is not None for r in schema.returns):
            return func(*args, **kwargs)
        layout = [(x.shape, x.stride(), x.dtype) if isinstance(x, torch.Tensor) else repr(x) for x in read]
        key = (str(func), *layout)
        if key not in self.made:
            self.made[key] = func(*args, **kwargs)
            return self.made[key]
        return pytree.tree_map_only(torch.Tensor, torch.empty_like, self.made[key])

    def told(self, value: Any) -> Any:
        """An argument, or a tensor that was made, as a value that can be compared."""
        if not isinstance(value, torch.Tensor):
            return repr(value)
        name = self.known.get(id(value), object())  # which equals nothing else
        return (name, tuple(value.shape), value.dtype)

    def _number(self, tensor: torch.Tensor) -> None:
        self.known[id(tensor)] = len(self.alive)
        self.alive.append(tensor)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, dict):
        yield from _leaves(tuple(value.items()))
    else:
        yield value
