"""Operators that work element by element, and those that make tensors of a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from latmorph.ops.base import AxisLabels, Handler, Labels, Shape, broadcast_features, pass_axes
from latmorph.opspec import OpSpec, Scalar

if TYPE_CHECKING:
    from latmorph.ops.calls import Parameter


class Elementwise(Handler):
    """Functions of one tensor, element by element; they keep every axis."""

    simple = (
        *("abs", "clamp_min", "clamp_max", "square", "reciprocal", "sqrt", "rsqrt", "floor", "ceil", "round"),
        *("trunc", "frac", "sign", "sgn", "positive", "bitwise_not", "logical_not", "isnan", "isinf"),
        *("isfinite", "signbit", "nan_to_num", "fix", "negative"),
    )
    curved = (
        *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos"),
        *("atan", "sinh", "cosh", "erf", "erfc", "log_sigmoid", "logit"),
    )
    bounded = ("relu6", "clamp", "hardshrink", "softshrink", "threshold")
    aten = (
        *("relu", "hardtanh", "leaky_relu", "elu", "gelu", "silu", "mish", "sigmoid", "hardsigmoid"),
        *("hardswish", "tanh", "softplus", "neg", "selu", "celu", "rrelu", *simple, *curved, *bounded),
    )
    alike: Mapping[str, str] = {
        **dict.fromkeys(simple, "neg"),
        **dict.fromkeys(curved, "tanh"),
        **dict.fromkeys(bounded, "hardtanh"),
        **dict.fromkeys(("selu", "celu"), "elu"),
        "rrelu": "leaky_relu",
    }
    moves_zero = frozenset(
        {
            *("sigmoid", "hardsigmoid", "softplus", "exp", "exp2", "log", "log2", "log10", "rsqrt", "cos"),
            *("reciprocal", "log_sigmoid", "acos", "cosh", "erfc", "logit", "isfinite", "bitwise_not"),
            *("logical_not", "threshold"),
        }
    )

    def keeps_zero(self, spec: OpSpec) -> bool:
        kind = spec.kind
        if kind in ("hardtanh", "clamp", "clamp_min", "clamp_max"):
            low = spec.attr("min_val", spec.attr("min"))
            high = spec.attr("max_val", spec.attr("max"))
            if kind == "hardtanh":
                low, high = -1.0 if low is None else low, 1.0 if high is None else high
            return len(spec.inputs) == 1 and (low is None or low <= 0) and (high is None or high >= 0)
        return kind not in self.moves_zero

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        if len(spec.inputs) > 1:  # bounds that are tensors
            broadcast_axes(spec, io)
            return
        pass_axes(spec, io)


class PRelu(Handler):
    """``x`` where positive, else ``weight * x``, with one weight a channel (axis 1) or one for all."""

    aten = ("prelu",)

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        if spec["weight"].numel > 1:
            io.tie(io.axis(0, 1), io.axis(1, 0, "slope"))
        pass_axes(spec, io)


class Glu(Handler):
    """The first half of an axis times the sigmoid of the second."""

    aten = ("glu",)

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        rank = len(spec.out.shape)
        dim = spec.attr("dim", -1) % rank
        axes = [io.axis(0, a) for a in range(rank)]
        halved = axes[dim]
        if halved is not None:
            first, second = halved.reshape(2, -1)
            io.tie(first, second)
            axes[dim] = first
        io.output(axes)


class Binary(Handler):
    """Functions of two tensors with broadcasting, or of a tensor and a number; some take three."""

    sums = ("sub", "rsub", "maximum", "minimum", "fmax", "fmin", "subtract")
    quotients = (
        *("floor_divide", "remainder", "fmod", "true_divide", "divide", "atan2", "hypot", "xlogy"),
        *("float_power", "logaddexp", "copysign"),
    )
    comparisons = (
        *("ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor", "isin"),
        *("bitwise_and", "bitwise_or", "bitwise_xor", "__and__", "__or__", "__xor__"),
        *("bitwise_left_shift", "bitwise_right_shift", "isclose"),
    )
    aten = (
        *("add", "mul", "multiply", "div", "pow", "eq", "where", "masked_fill", "addcmul", "addcdiv", "lerp"),
        *("copy_", *sums, *quotients, *comparisons),
    )
    alike: Mapping[str, str] = {
        **dict.fromkeys(sums, "add"),
        **dict.fromkeys(quotients, "div"),
        **dict.fromkeys(comparisons, "eq"),
        **dict.fromkeys(("addcdiv", "lerp"), "addcmul"),
        "multiply": "mul",
        "masked_fill": "where",
        "copy_": "copy",
    }
    divides = frozenset({"div", "true_divide", "divide", "floor_divide", "remainder", "fmod"})
    adds = frozenset({"add", *sums} - {"rsub"})

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        return broadcast_features(spec)

    def keeps_zero(self, spec: OpSpec) -> bool:
        if spec.kind in ("mul", "multiply", "copy_") or spec.kind in self.divides:
            return True
        # The sum of two activations of one shape: the other's channel is tied to this one, and zero too.
        alike = len(spec.inputs) == 2 and spec.inputs[0].shape == spec.inputs[1].shape
        return alike and spec.kind in self.adds and not any(t.parameter for t in spec.inputs)

    def silent(self, spec: OpSpec, operands: Sequence[bool]) -> bool:
        if spec.kind in ("mul", "multiply"):
            return any(operands)
        if spec.kind in self.divides:
            return operands[0]
        return super().silent(spec, operands)

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        if spec.kind in self.divides and len(spec.inputs) == 2 and io.silent(1):
            for axis in range(len(spec.inputs[1].shape)):
                io.freeze(io.axis(1, axis), "divided by these channels")
        broadcast_axes(spec, io)


def broadcast_axes(spec: OpSpec, io: AxisLabels) -> None:
    """Tie the axes that operands share; one that is stretched over many freezes."""
    rank = len(spec.out.shape)
    axes: list[Labels] = []
    for axis in range(rank):
        size, merged, seen = spec.out.shape[axis], None, False
        for i, tensor in enumerate(spec.inputs):
            own = axis - (rank - len(tensor.shape))
            if own < 0:
                continue
            if tensor.shape[own] != size:
                if not tensor.parameter:
                    io.freeze(io.axis(i, own), f"{spec.kind} broadcasts one channel over many")
                continue
            labels = None if _all_fixed(spec, axis, size, io) else io.axis(i, own)
            if seen:
                io.tie(merged, labels)
            merged = labels if merged is None else merged
            seen = True
        axes.append(merged)
    io.output(axes)


def _all_fixed(spec: OpSpec, axis: int, size: int, io: AxisLabels) -> bool:
    """Whether there are activations along an output's axis, and none has channels: no parameter needs any."""
    rank = len(spec.out.shape)
    found = False
    for i, tensor in enumerate(spec.inputs):
        own = axis - (rank - len(tensor.shape))
        if not tensor.parameter and own >= 0 and tensor.shape[own] == size:
            if io.axis(i, own) is not None:
                return False
            found = True
    return found


class Creation(Handler):
    """Tensors made of a value, a range or chance: nothing is read, whatever shape they are made like."""

    of_nothing = ("zeros", "ones", "full", "empty", "rand", "randn")
    of_size = (*of_nothing, "new_zeros", "new_ones", "new_full", "new_empty")
    like = (
        *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "fill", "zero"),
        *("bernoulli", "normal", "uniform"),
    )
    others = (
        *("arange", "linspace", "eye", "scalar_tensor", "tril_indices", "triu_indices"),
        *("randint", "randperm", "hann_window", "empty_permuted", "empty_strided"),
    )
    aten = (*of_size, *like, *others)
    alike: Mapping[str, str] = dict.fromkeys(aten, "zeros")

    def bytes(self, spec: OpSpec) -> Scalar:
        return sum((t.bytes for t in spec.outputs), 0)

    def resized(self, spec: OpSpec, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> OpSpec:
        new = super().resized(spec, inputs, outputs)
        return new.with_attr("size", new.out.shape) if spec.kind in self.of_size else new

    def build(self, spec: OpSpec, parameter: Parameter) -> Callable[..., Any]:
        # No operand says where: it is where the parameters are (see latmorph.ops.calls).
        placeless = spec.kind in (*self.of_nothing, *self.others)
        return super().build(spec.with_attr("device", "") if placeless else spec, parameter)

    def keeps_zero(self, spec: OpSpec) -> bool:
        return spec.kind in ("zeros", "new_zeros", "zeros_like", "zero")

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        if spec.kind in self.like:
            pass_axes(spec, io)
            return
        alike = spec.kind in ("zeros", "ones", "full", "new_zeros", "new_ones", "new_full")
        io.output([io.fresh(size) if alike and size > 1 else None for size in spec.out.shape])
