"""Normalisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from latmorph.ops.base import AxisLabels, Handler, as_tuple, freeze_everything, pass_axes, weights
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

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        if not all(t.parameter for t in spec.inputs[1:]):
            freeze_everything(spec, io, f"the scale of {spec.kind} is computed, not a parameter")
            return
        x = io.axis(0, 1)
        for i, tensor in enumerate(spec.inputs[1:], start=1):
            io.tie(x, io.axis(i, 0, self.roles[tensor.name]))
        io.output([io.axis(0, a) for a in range(len(spec.out.shape))])


class ChannelNorm(Handler):
    """Norms whose statistics run over channels: removing one changes all the others, so they freeze."""

    aten = ("layer_norm", "group_norm", "rms_norm")

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
        rank = len(spec.out.shape)
        over = [1]
        if spec.kind != "group_norm":
            over = list(range(rank - len(as_tuple(spec.attr("normalized_shape"))), rank))
        pass_axes(spec, io, dict.fromkeys(over, f"{spec.kind} takes its statistics over these channels"))


class WeightNorm(Handler):
    """A weight made of a direction and a length, when the network runs."""

    aten = ("_weight_norm", "_weight_norm_interface")
    alike: Mapping[str, str] = dict.fromkeys(aten, "mean")
