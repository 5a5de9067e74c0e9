"""What a handler is, and what handlers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from latmorph.ops.rearrange import Rearrangement
from latmorph.opspec import OpSpec, Scalar, TensorSpec

if TYPE_CHECKING:
    from latmorph.ops.calls import Parameter

Shape = tuple[Scalar, ...]

Labels = np.ndarray | None
"""Labels of one axis, int64 of the axis's size; None where nothing can be removed."""


class AxisLabels(Protocol):
    """What a channel rule may do with the channel labels of one operator's operands.

    A label is an integer that stands for a place of a channel; indices with tied labels live and die
    together. An axis whose indices can never be removed (time, height, ...) has no labels: None; an
    index that can't, among others that can, has the label -1.
    """

    def axis(self, operand: int, axis: int, role: str = "elementwise") -> Labels:
        """Labels of one axis of one operand; for a parameter, ``role`` says what the axis is.

        From then on, what is alive of the operand is the product of what is alive along its axes.
        """

    def tie(self, a: Labels, b: Labels) -> None:
        """Indices of ``a`` and ``b`` live and die together, one by one."""

    def freeze(self, labels: Labels, reason: str) -> None:
        """These indices can never be removed."""

    def fresh(self, size: int) -> np.ndarray:
        """New labels: of what there can be any number of, or of the factors of others."""

    def product(self, whole: Labels, factors: Sequence[np.ndarray]) -> None:
        """An index of ``whole`` is alive where all of its factors, broadcast against each other, are."""

    def silent(self, operand: int) -> bool:
        """Whether a removed channel is zero in the operand before it is removed."""

    def output(self, axes: Sequence[Labels], index: int = 0) -> None:
        """Labels of every axis of one output."""

    def rearranged(self, how: Rearrangement, index: int = 0) -> None:
        """One output is the first operand rearranged; axes need not be products of what is alive."""


def prod(sizes: Sequence[Scalar]) -> Scalar:
    """Product of ``sizes``; 1 when empty."""
    result: Scalar = 1
    for size in sizes:
        result = result * size
    return result


def broadcast_features(spec: OpSpec) -> dict[str, Scalar]:
    """What an operator on operands that are stretched to one shape may depend on, whatever their order.

    Such operators go ``run`` by run: as many elements side by side as all operands go along with, or
    ``stretched`` says, some stand still for. So a picture times a number for each channel goes by pixels.
    """
    rank = len(spec.out.shape)

    def stands(tensor: TensorSpec, axis: int) -> bool:
        own = axis - rank + len(tensor.shape)
        return own < 0 or is_one(tensor.shape[own])

    run: Scalar = 1
    standing: tuple[bool, ...] | None = None
    for axis in reversed(range(rank)):
        if is_one(spec.out.shape[axis]):
            continue
        here = tuple(stands(t, axis) for t in spec.inputs)
        if standing not in (None, here):
            break
        standing, run = here, run * spec.out.shape[axis]
    return {
        "operands": len(spec.inputs),
        "numel_least": reduce(np.minimum, [t.numel for t in spec.inputs]),
        "run": run,
        "stretched": int(any(standing or ())),
    }


def is_one(size: Scalar) -> bool:
    """Whether a size is one, and not one of many widths."""
    return isinstance(size, int) and size == 1


class Handler:
    """Defaults: no FLOPs, every operand read once and every output written once, unknown channels."""

    aten: tuple[str, ...] = ()
    """Names in torch's ``aten`` namespace, without the trailing underscore of in-place forms."""

    alike: Mapping[str, str] = {}
    """Kinds that are seldom met, and the kind that the latency model takes them for."""

    lists: tuple[str, ...] = ()
    """Operands that are lists of tensors: their names stand once for each tensor."""

    def flops(self, spec: OpSpec) -> Scalar:
        """FLOPs of the operator, two a multiply-add."""
        return 0

    def padded_flops(self, spec: OpSpec, in_block: int, out_block: int) -> Scalar:
        """FLOPs when channel counts are rounded up to the device's blocks."""
        return self.flops(spec)

    def bytes(self, spec: OpSpec) -> Scalar:
        """Bytes moved when every operand is read once and every output written once."""
        return sum((t.bytes for t in (*spec.inputs, *spec.outputs)), 0)

    def family(self, spec: OpSpec) -> str:
        """What the latency model fits together: usually the kind."""
        return self.alike.get(spec.kind, spec.kind)

    def widths(self, spec: OpSpec) -> tuple[Scalar, Scalar]:
        """Input and output channels that a kernel sees: the axes it may pad to blocks."""
        last = spec.out.shape[1] if len(spec.out.shape) in (4, 5) else (*spec.out.shape, 1)[-1]
        return last, last

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        """Sizes, beside FLOPs and bytes, that a kernel's efficiency may depend on."""
        return {}

    def resized(self, spec: OpSpec, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> OpSpec:
        """The operator at other shapes, with attributes that repeat or follow from a size made to agree."""
        return spec.with_shapes(list(inputs), list(outputs))

    def target(self, spec: OpSpec) -> str:
        """Name in torch's ``aten`` namespace that runs this operator."""
        return spec.kind + ("_" if spec.attr("inplace") else "")

    def build(self, spec: OpSpec, parameter: Parameter) -> Callable[..., Any]:
        """A call that takes the operands that are not parameters, in order, and runs the operator."""
        from latmorph.ops.calls import aten_call

        return aten_call(self.target(spec), spec, parameter, self.lists)

    def keeps_zero(self, spec: OpSpec) -> bool:
        """Whether a channel that is zero in every activation it reads is zero in what it writes."""
        return True

    def silent(self, spec: OpSpec, operands: Sequence[bool]) -> bool:
        """Whether removed channels are zero in what is written, given whether they are in each operand.

        Rows of parameters that make a removed channel count as zero.
        """
        return self.keeps_zero(spec) and all(operands)

    def rearrangements(self, spec: OpSpec) -> list[Rearrangement]:
        """For every output, where its elements stood in the first operand; empty where any is computed."""
        return []

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        """How the operator ties the channels of its operands. By default: frozen, by name."""
        freeze_everything(spec, io, f"operator {spec.kind} has no channel rule")


def freeze_everything(spec: OpSpec, io: AxisLabels, reason: str) -> None:
    """Freeze every channel that reaches the operator; its outputs have no channels."""
    for i, tensor in enumerate(spec.inputs):
        for axis in range(len(tensor.shape)):
            io.freeze(io.axis(i, axis), reason)
    for i, tensor in enumerate(spec.outputs):
        io.output([None] * len(tensor.shape), i)


def pass_axes(spec: OpSpec, io: AxisLabels, frozen: Mapping[int, str] | None = None) -> None:
    """Outputs with the axes of the first operand, some of which freeze for the reasons given."""
    axes = [io.axis(0, a) for a in range(len(spec.inputs[0].shape))]
    for axis, reason in (frozen or {}).items():
        io.freeze(axes[axis], reason)
    for i in range(len(spec.outputs)):
        io.output(axes, i)


def as_tuple(value: Any) -> tuple[Any, ...]:
    """The value, or a tuple of it alone."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def weights(spec: OpSpec) -> list[TensorSpec]:
    """The operands after the first, where they are its parameters and the first is none; else nothing."""
    first, *others = spec.inputs
    return others if others and not first.parameter and all(t.parameter for t in others) else []


def where(condition: Any, yes: Scalar, no: Scalar) -> Scalar:
    """``yes`` where the condition holds, else ``no``; works on ints and integer arrays."""
    if isinstance(condition, bool | int):
        return yes if condition else no
    return np.where(condition, yes, no)
