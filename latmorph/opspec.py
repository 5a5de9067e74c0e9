"""OpSpec: what one operator is, on its own, without a device and without a network.

An OpSpec's shapes are plain integers for one concrete operator. The cost code also fills them with
integer arrays of one common length, so that one evaluation of a formula prices many widths at once;
every formula in :mod:`latmorph.ops` is therefore written in arithmetic that both understand.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import msgspec
import numpy as np

ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
    "complex64": 8,
}

Scalar = Any
"""An int, or an integer array that stands for many variants of one operator."""


@dataclass(frozen=True)
class TensorSpec:
    """One operand: its name in the operator's schema, shape, dtype, and whether it is a parameter."""

    name: str
    shape: tuple[Scalar, ...]
    dtype: str = "float32"
    parameter: bool = False

    @cached_property
    def numel(self) -> Scalar:
        """Number of elements."""
        n: Scalar = 1
        for size in self.shape:
            n = n * size
        return n

    @cached_property
    def bytes(self) -> Scalar:
        """Size in bytes when dense."""
        return self.numel * ITEM_BYTES.get(self.dtype, 4)


@dataclass(frozen=True)
class OpSpec:
    """One operator: kind, operands in schema order, outputs, and the attributes that are not tensors.

    Attributes are torch's, and two of ours: ``inplace``, and ``strided`` where an activation that is read
    does not lie in memory in the order of its axes.
    """

    kind: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    attrs: tuple[tuple[str, Any], ...] = ()

    def operand(self, name: str) -> TensorSpec | None:
        """The first operand called ``name``, or None."""
        for tensor in self.inputs:
            if tensor.name == name:
                return tensor
        return None

    def __getitem__(self, name: str) -> TensorSpec:
        found = self.operand(name)
        if found is None:
            raise KeyError(f"{self.kind} has no operand {name!r}")
        return found

    def attr(self, name: str, default: Any = None) -> Any:
        """The attribute ``name``, or ``default``."""
        for key, value in self.attrs:
            if key == name:
                return value
        return default

    def with_attr(self, name: str, value: Any) -> OpSpec:
        """The same operator with the attribute ``name`` at this value, added at the end if it had none."""
        if self.attr(name) is None:
            return replace(self, attrs=(*self.attrs, (name, value)))
        return replace(self, attrs=tuple((k, value if k == name else v) for k, v in self.attrs))

    @property
    def out(self) -> TensorSpec:
        """The first output."""
        return self.outputs[0]

    @cached_property
    def parameter_bytes(self) -> Scalar:
        """Bytes of the operands that are parameters."""
        return sum((t.bytes for t in self.inputs if t.parameter), 0)

    def with_shapes(self, inputs: list[tuple[Scalar, ...]], outputs: list[tuple[Scalar, ...]]) -> OpSpec:
        """The same operator at other shapes."""
        return replace(
            self,
            inputs=tuple(replace(t, shape=s) for t, s in zip(self.inputs, inputs, strict=True)),
            outputs=tuple(replace(t, shape=s) for t, s in zip(self.outputs, outputs, strict=True)),
        )

    def to_json(self) -> str:
        """A canonical one-line JSON form; :meth:`from_json` reads it back."""

        def tensor(t: TensorSpec) -> list[Any]:
            return [t.name, list(t.shape), t.dtype, int(t.parameter)]

        return json.dumps(
            [
                self.kind,
                [tensor(t) for t in self.inputs],
                [tensor(t) for t in self.outputs],
                [[key, value] for key, value in self.attrs],
            ],
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> OpSpec:
        """Read what :meth:`to_json` wrote. Raises ValueError on anything else."""
        try:
            # Python's reader, because an attribute may be infinite, which JSON proper cannot say.
            kind, inputs, outputs, attrs = msgspec.convert(json.loads(text), _FORM)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ValueError(f"not an operator: {text[:80]!r} ({error})") from None

        def tensors(items: list[_Tensor]) -> tuple[TensorSpec, ...]:
            return tuple(TensorSpec(name, shape, dtype, bool(p)) for name, shape, dtype, p in items)

        return cls(
            kind, tensors(inputs), tensors(outputs), tuple((key, _freeze(value)) for key, value in attrs)
        )


_Tensor = tuple[str, tuple[int, ...], str, int]
_FORM = tuple[str, list[_Tensor], list[_Tensor], list[tuple[str, Any]]]


def _freeze(value: Any) -> Any:
    return tuple(_freeze(v) for v in value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Step:
    """One operator of a network to be timed, and where it reads each operand that is no parameter.

    A source is a step's index and which of that step's outputs is read; index -1 stands for the network,
    of whose inputs one is read. ``returned`` are those of the outputs that the network hands out; where no
    step says so, they are the outputs of the steps of which nothing is read.
    """

    spec: OpSpec
    sources: tuple[tuple[int, int], ...]
    returned: tuple[int, ...] = ()


def network_inputs(steps: Iterable[Step]) -> dict[int, TensorSpec]:
    """Type of each input of the network that a step reads, by its number."""
    found: dict[int, TensorSpec] = {}
    for step in steps:
        activations = (t for t in step.spec.inputs if not t.parameter)
        for tensor, (source, k) in zip(activations, step.sources, strict=True):
            if source < 0:
                found.setdefault(k, tensor)
    return found


def network_outputs(steps: Sequence[Step]) -> list[tuple[int, int]]:
    """Step and number of each output that the network hands out (see :class:`Step`)."""
    returned = [(i, k) for i, step in enumerate(steps) for k in step.returned]
    if returned:
        return returned
    read = {i for step in steps for i, _ in step.sources}
    return [(i, k) for i, step in enumerate(steps) if i not in read for k in range(len(step.spec.outputs))]


def footprint_bytes(specs: Iterable[OpSpec]) -> int:
    """Memory that one pass of a network touches: all its parameters, and its largest operator's activations.

    It decides which cache the weights are read from when the network runs again.
    """
    parameters, largest = 0, 0
    for spec in specs:
        own = int(spec.parameter_bytes)
        moved = sum(int(t.bytes) for t in (*spec.inputs, *spec.outputs)) - own
        parameters, largest = parameters + own, max(largest, moved)
    return parameters + largest


def ceil_to(value: Scalar, block: int) -> Scalar:
    """``value`` rounded up to a multiple of ``block``; works on ints and integer arrays."""
    return -(-value // block) * block


def as_array(value: Scalar, length: int) -> np.ndarray:
    """``value`` as a float64 array of shape ``(length,)``."""
    if isinstance(value, (int, float)):  # as most are, and broadcasting takes five times as long
        return np.full(length, value, dtype=np.float64)
    return np.broadcast_to(np.asarray(value, dtype=np.float64), (length,))
