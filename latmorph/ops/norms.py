"""Normalisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from latmorph.ops.base import AxisLabels, Handler, Shape, as_tuple, weights
from latmorph.opspec import OpSpec, Scalar

if TYPE_CHECKING:
    from latmorph.ops.calls import Parameter


class BatchNorm(Handler):
    """Normalisation of each channel (axis 1) by itself: batch norm in eval mode, and instance norm."""

    aten = ("batch_norm", "instance_norm")
    roles: Mapping[str, str] = {
        "weight": "scale",
        "bias": "shift",
        "running_mean": "statistic",
        "running_var": "statistic",
    }

    def build(self, spec: OpSpec, parameter: Parameter) -> Callable[..., Any]:
        held = weights(spec)
        space = len(spec.inputs[0].shape) - 2
        if spec.kind != "batch_norm" or {t.name for t in held} != set(self.roles) or space not in (1, 2, 3):
            return super().build(spec, parameter)
        from torch import nn

        from latmorph.ops.calls import layer

        kind: type[nn.BatchNorm2d] = getattr(nn, f"BatchNorm{space}d")
        return layer(kind, held, parameter, spec.inputs[0].shape[1], spec.attr("eps"))

    def keeps_zero(self, spec: OpSpec) -> bool:
        # With a scale, scale and shift are zero together; an instance without one is zero less its mean.
        own = spec.kind == "instance_norm" and bool(spec.attr("use_input_stats"))
        return spec.operand("weight") is not None or own

    def silent(self, spec: OpSpec, operands: Sequence[bool]) -> bool:
        return spec.operand("weight") is not None or (self.keeps_zero(spec) and all(operands))

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        axes = [io.axis(0, a) for a in range(len(spec.out.shape))]
        for i, tensor in enumerate(spec.inputs[1:], start=1):
            io.tie(axes[1], io.axis(i, 0, self.roles[tensor.name]))
        if spec.attr("training") or spec.attr("use_input_stats"):
            over = range(len(axes)) if spec.kind == "batch_norm" else range(2, len(axes))
            for a in set(over) - {1}:
                io.freeze(axes[a], f"{spec.kind} takes its statistics over these channels")
        io.output(axes)


class ChannelNorm(Handler):
    """Norms whose statistics run over channels: removing one changes all the others, so they freeze.

    The groups of a group norm know nothing of each other: all channels of one can go.
    """

    aten = ("layer_norm", "group_norm", "rms_norm")
    roles: Mapping[str, str] = {"weight": "scale", "bias": "shift"}

    def resized(self, spec: OpSpec, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> OpSpec:
        new = super().resized(spec, inputs, outputs)
        if spec.kind != "group_norm":
            return new
        each = spec.out.shape[1] // spec.attr("num_groups")
        return new.with_attr("num_groups", new.out.shape[1] // each)

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        return {"parameters": len(spec.inputs) - 1}

    def build(self, spec: OpSpec, parameter: Parameter) -> Callable[..., Any]:
        held = weights(spec)
        if spec.kind != "layer_norm" or [t.name for t in held] != ["weight", "bias"]:
            return super().build(spec, parameter)
        from torch import nn

        from latmorph.ops.calls import layer

        return layer(nn.LayerNorm, held, parameter, spec.attr("normalized_shape"), spec.attr("eps", 1e-5))

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        axes = [io.axis(0, a) for a in range(len(spec.out.shape))]
        if spec.kind == "group_norm":
            over = [1]
            if axes[1] is not None and spec.attr("num_groups") > 1:
                members = axes[1].reshape(spec.attr("num_groups"), -1)
                for k in range(1, members.shape[1]):
                    io.tie(members[:, 0], members[:, k])
                over = []
        else:
            over = list(range(len(axes) - len(as_tuple(spec.attr("normalized_shape"))), len(axes)))
        for i, tensor in enumerate(spec.inputs[1:], start=1):
            for k, a in enumerate(over or [1]):
                io.tie(axes[a], io.axis(i, k, self.roles[tensor.name]))
        for a in over:
            io.freeze(axes[a], f"{spec.kind} takes its statistics over these channels")
        io.output(axes)


class WeightNorm(Handler):
    """A weight made of a direction and a length along ``dim``, when the network runs."""

    aten = ("_weight_norm", "_weight_norm_interface")
    alike: Mapping[str, str] = dict.fromkeys(aten, "mean")

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        rank = len(spec.out.shape)
        dim = spec.attr("dim", 0) % rank
        axes = [io.axis(0, a) for a in range(rank)]
        io.tie(axes[dim], io.axis(1, dim))
        for a in set(range(rank)) - {dim}:
            io.freeze(axes[a], f"{spec.kind} takes its length over these channels")
        io.output(axes)
        for i in range(1, len(spec.outputs)):
            io.output([axes[dim] if a == dim else None for a in range(rank)], i)
