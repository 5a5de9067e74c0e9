"""One handler an operator kind: its FLOPs, its bytes, its shape features, how to build it, its channels.

A multiply-add is two FLOPs, and FLOPs are those of matrix and convolution arithmetic, as counted by
``torch.utils.flop_counter``; elementwise work is priced by the bytes that it moves.

To teach latmorph an operator, add a handler here. Nothing else needs to know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from latmorph.opspec import OpSpec, Scalar, TensorSpec, ceil_to

if TYPE_CHECKING:
    import numpy as np
    import torch

    Labels = np.ndarray | None


class AxisLabels(Protocol):
    """What a channel rule may do with the channel labels of one operator's operands.

    A label is an integer for one index of one tensor axis; indices whose labels are tied live and
    die together. An axis whose indices can never be removed (time, height, ...) has no labels: None.
    """

    def axis(self, operand: int, axis: int, role: str = "elementwise") -> Labels:
        """Labels of one axis of one operand; for a parameter, ``role`` says what the axis is."""

    def tie(self, a: Labels, b: Labels) -> None:
        """Indices of ``a`` and ``b`` live and die together, one by one."""

    def freeze(self, labels: Labels, reason: str) -> None:
        """These indices can never be removed."""

    def output(self, axes: Sequence[Labels], index: int = 0) -> None:
        """Labels of every axis of one output."""


def prod(sizes: Sequence[Scalar]) -> Scalar:
    """Product of ``sizes``; 1 when empty."""
    result: Scalar = 1
    for size in sizes:
        result = result * size
    return result


class Handler:
    """Defaults: no FLOPs, every operand read once and every output written once, unknown channels."""

    aten: tuple[str, ...] = ()
    """Names in torch's ``aten`` namespace, without the trailing underscore of in-place forms."""

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
        return spec.kind

    def widths(self, spec: OpSpec) -> tuple[Scalar, Scalar]:
        """Input and output channels that a kernel sees: the axes it may pad to blocks."""
        last = spec.out.shape[1] if len(spec.out.shape) == 4 else (*spec.out.shape, 1)[-1]
        return last, last

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        """Sizes, beside FLOPs and bytes, that a kernel's efficiency may depend on."""
        return {}

    def fitted(self, spec: OpSpec) -> OpSpec:
        """The operator with those attributes that repeat a size made to agree with its shapes."""
        return spec

    def target(self, spec: OpSpec) -> str:
        """Name in torch's ``aten`` namespace that runs this operator."""
        return spec.kind + ("_" if spec.attr("inplace") else "")

    def build(self, spec: OpSpec, parameter: Callable[[TensorSpec], torch.Tensor]) -> torch.nn.Module:
        """A module that takes the operands that are not parameters, in order, and runs the operator."""
        return _aten_call(self.target(spec), spec, parameter)

    def keeps_zero(self, spec: OpSpec) -> bool:
        """Whether a channel that is zero in every activation it reads is zero in what it writes."""
        return True

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


def _aten_call(name: str, spec: OpSpec, parameter: Callable[[TensorSpec], torch.Tensor]) -> torch.nn.Module:
    import torch

    function = getattr(torch.ops.aten, name)
    given = {t.name: parameter(t) for t in spec.inputs if t.parameter}
    names = [t.name for t in spec.inputs if not t.parameter]
    keywords = {k: _attr_value(k, v) for k, v in spec.attrs if k not in ("inplace", "strided", "op")}
    keywords.update(given)

    # A module, because the operators of a real network are called through modules as well.
    class Call(torch.nn.Module):
        def forward(self, *activations: torch.Tensor) -> torch.Tensor:
            return function(**dict(zip(names, activations, strict=True)), **keywords)  # type: ignore[no-any-return]

    listed = [None if not t.parameter else parameter(t) for t in spec.inputs if t.name == "tensors"]
    if not listed:
        return Call()
    keywords.pop("tensors", None)

    class CallList(torch.nn.Module):
        def forward(self, *activations: torch.Tensor) -> torch.Tensor:
            given = iter(activations)
            return function([next(given) if t is None else t for t in listed], **keywords)  # type: ignore[no-any-return]

    return CallList()


def _attr_value(key: str, value: Any) -> Any:
    import torch

    if key == "dtype" and isinstance(value, str):
        return getattr(torch, value)
    return list(value) if isinstance(value, tuple) else value


class Convolution(Handler):
    """Convolutions of any rank and any number of groups.

    Shapes: input ``(N, C, *size)``, weight ``(O, C / groups, *kernel)``, output ``(N, O, *size)``.
    The number of groups is read off the shapes, so that it follows a depthwise layer's width.
    """

    aten = ("conv1d", "conv2d", "conv3d")

    def flops(self, spec: OpSpec) -> Scalar:
        return 2 * spec.out.numel * prod(spec["weight"].shape[1:])

    def padded_flops(self, spec: OpSpec, in_block: int, out_block: int) -> Scalar:
        weight, out = spec["weight"].shape, spec.out.shape
        groups = self.groups(spec)
        o = ceil_to(weight[0] // groups, out_block) * groups
        i = ceil_to(weight[1], in_block)
        dense = 2 * out[0] * o * prod(out[2:]) * i * prod(weight[2:])
        # A depthwise kernel walks channels, not a matrix product: its block lies along the groups.
        depthwise = 2 * out[0] * ceil_to(out[1], out_block) * prod(out[2:]) * prod(weight[1:])
        return _where((weight[1] == 1) & (groups > 1), depthwise, dense)

    def family(self, spec: OpSpec) -> str:
        one = isinstance(spec["weight"].shape[1], int) and spec["weight"].shape[1] == 1
        grouped = not isinstance(spec["input"].shape[1], int) or spec["input"].shape[1] > 1
        return "depthwise" if one and grouped else spec.kind

    def fitted(self, spec: OpSpec) -> OpSpec:
        return spec.with_attr("groups", self.groups(spec))

    def groups(self, spec: OpSpec) -> Scalar:
        """Number of groups: input channels over the weight's second axis."""
        return spec["input"].shape[1] // spec["weight"].shape[1]

    def widths(self, spec: OpSpec) -> tuple[Scalar, Scalar]:
        groups = self.groups(spec)
        depthwise = (spec["weight"].shape[1] == 1) & (groups > 1)
        return (
            _where(depthwise, spec["input"].shape[1], spec["weight"].shape[1]),
            _where(depthwise, spec.out.shape[1], spec["weight"].shape[0] // groups),
        )

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        weight = spec["weight"].shape
        return {
            "groups": self.groups(spec),
            "kernel": prod(weight[2:]),
            "kernel_last": weight[-1],
            "stride": prod(_tuple(spec.attr("stride", (1,)))),
            "pixels_in": prod(spec["input"].shape[2:]),
            "pixels_out": prod(spec.out.shape[2:]),
            "row": spec.out.shape[-1],
            "bias": int(spec.operand("bias") is not None),
        }

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        if not spec["weight"].parameter:
            freeze_everything(spec, io, f"the weight of {spec.kind} is computed, not a parameter")
            return
        groups = int(self.groups(spec))
        x = io.axis(0, 1)
        out = io.axis(1, 0, "output")
        assert out is not None  # a parameter's axis always has labels
        if spec.operand("bias") is not None:
            io.tie(out, io.axis(2, 0, "bias"))
        if groups == 1:
            io.tie(io.axis(1, 1, "input"), x)
        elif spec["weight"].shape[1] == 1:
            io.tie(out, None if x is None else x.repeat(len(out) // groups))
        else:
            # Groups must stay equal, so the k-th channel of every group is one unit.
            inner = io.axis(1, 1, "input")
            for g in range(groups):
                io.tie(inner, None if x is None else x.reshape(groups, -1)[g])
                io.tie(out.reshape(groups, -1)[0], out.reshape(groups, -1)[g])
        io.output([None, out, *[None] * (len(spec.out.shape) - 2)])


class Linear(Handler):
    """``input (..., I) @ weight (O, I)^T + bias (O)``."""

    aten = ("linear",)

    def flops(self, spec: OpSpec) -> Scalar:
        return 2 * spec.out.numel * spec["weight"].shape[1]

    def padded_flops(self, spec: OpSpec, in_block: int, out_block: int) -> Scalar:
        o, i = spec["weight"].shape
        return 2 * prod(spec.out.shape[:-1]) * ceil_to(o, out_block) * ceil_to(i, in_block)

    def widths(self, spec: OpSpec) -> tuple[Scalar, Scalar]:
        return spec["weight"].shape[1], spec["weight"].shape[0]

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        return {"rows": prod(spec.out.shape[:-1]), "bias": int(spec.operand("bias") is not None)}

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        if not spec["weight"].parameter:
            freeze_everything(spec, io, f"the weight of {spec.kind} is computed, not a parameter")
            return
        rank = len(spec["input"].shape)
        io.tie(io.axis(1, 1, "input"), io.axis(0, rank - 1))
        out = io.axis(1, 0, "output")
        if spec.operand("bias") is not None:
            io.tie(out, io.axis(2, 0, "bias"))
        io.output([*(io.axis(0, a) for a in range(rank - 1)), out])


class MatMul(Handler):
    """Products of two activations, batched over the leading axes."""

    aten = ("matmul", "bmm", "mm")

    def flops(self, spec: OpSpec) -> Scalar:
        return 2 * spec.out.numel * spec.inputs[0].shape[-1]

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        return {"rows": spec.out.shape[-2] if len(spec.out.shape) > 1 else 1}

    def widths(self, spec: OpSpec) -> tuple[Scalar, Scalar]:
        return spec.inputs[0].shape[-1], (*spec.out.shape, 1)[-1]


class Attention(Handler):
    """Scaled dot-product attention: ``query (..., L, E)``, ``key (..., S, E)``, ``value (..., S, V)``."""

    aten = ("scaled_dot_product_attention",)

    def flops(self, spec: OpSpec) -> Scalar:
        *batch, length, embed = spec["query"].shape
        keys, values = spec["value"].shape[-2:]
        return 2 * prod(batch) * length * keys * (embed + values)

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        return {
            "heads": prod(spec["query"].shape[:-2]),
            "rows": spec["query"].shape[-2],
            "keys": spec["key"].shape[-2],
            "embed": spec["query"].shape[-1],
        }


class Elementwise(Handler):
    """Functions of one tensor, element by element; they keep every axis."""

    aten = (
        *("relu", "relu6", "hardtanh", "leaky_relu", "elu", "gelu", "silu", "mish", "sigmoid"),
        *("hardsigmoid", "hardswish", "tanh", "softplus", "exp", "log", "sqrt", "rsqrt", "neg"),
        *("abs", "clamp", "clamp_min", "square", "reciprocal", "sin", "cos", "erf", "log_sigmoid"),
    )
    moves_zero = frozenset(
        {"sigmoid", "hardsigmoid", "softplus", "exp", "log", "rsqrt", "reciprocal", "cos", "log_sigmoid"}
    )

    def keeps_zero(self, spec: OpSpec) -> bool:
        kind = spec.kind
        if kind in ("hardtanh", "clamp", "clamp_min"):
            low = spec.attr("min_val", spec.attr("min", -1.0))
            high = spec.attr("max_val", spec.attr("max", 1.0))
            return all(isinstance(v, int | float) for v in (low, high)) and low <= 0 <= high
        return kind not in self.moves_zero

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        io.output([io.axis(0, a) for a in range(len(spec.out.shape))])


class Binary(Handler):
    """Functions of two tensors with broadcasting, or of a tensor and a number."""

    aten = ("add", "sub", "mul", "div", "maximum", "minimum", "pow", "rsub")

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        smallest = spec.inputs[-1].numel
        return {"operands": len(spec.inputs), "numel_last": smallest}

    def keeps_zero(self, spec: OpSpec) -> bool:
        if spec.kind in ("mul", "div"):
            return True
        # The sum of two activations of one shape: the other's channel is tied to this one, and zero too.
        alike = len(spec.inputs) == 2 and spec.inputs[0].shape == spec.inputs[1].shape
        return alike and spec.kind not in ("pow", "rsub") and not any(t.parameter for t in spec.inputs)

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        rank = len(spec.out.shape)
        if spec.kind == "div" and len(spec.inputs) == 2 and not spec.inputs[1].parameter:
            for axis in range(len(spec.inputs[1].shape)):
                io.freeze(io.axis(1, axis), "divided by these channels")
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
    """Whether no activation has channels along an output's axis, so that a parameter's need none."""
    rank = len(spec.out.shape)
    for i, tensor in enumerate(spec.inputs):
        own = axis - (rank - len(tensor.shape))
        sized = not tensor.parameter and own >= 0 and tensor.shape[own] == size
        if sized and io.axis(i, own) is not None:
            return False
    return True


class BatchNorm(Handler):
    """Batch normalisation in eval mode over axis 1."""

    aten = ("batch_norm",)
    roles: Mapping[str, str] = {
        "weight": "scale",
        "bias": "shift",
        "running_mean": "statistic",
        "running_var": "statistic",
    }

    def keeps_zero(self, spec: OpSpec) -> bool:
        return spec.operand("weight") is not None  # scale and shift are zero together

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        x = io.axis(0, 1)
        for i, tensor in enumerate(spec.inputs[1:], start=1):
            io.tie(x, io.axis(i, 0, self.roles[tensor.name]))
        io.output([io.axis(0, a) for a in range(len(spec.out.shape))])


class ChannelNorm(Handler):
    """Norms whose statistics run over channels: removing one changes all the others, so they freeze."""

    aten = ("layer_norm", "group_norm", "rms_norm")

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        reason = f"{spec.kind} takes its statistics over these channels"
        rank = len(spec.out.shape)
        over = {1} if spec.kind == "group_norm" else set(range(rank))
        if spec.kind != "group_norm":
            over = set(range(rank - len(_tuple(spec.attr("normalized_shape"))), rank))
        axes = [io.axis(0, a) for a in range(rank)]
        for a in over:
            io.freeze(axes[a], reason)
        io.output(axes)


class Pool(Handler):
    """Pooling over the trailing axes; batch and channel axes pass through."""

    aten = (
        *("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d"),
        *("adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d"),
    )

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        return {
            "kernel": prod(_tuple(spec.attr("kernel_size", (1,)))),
            "stride": prod(_tuple(spec.attr("stride", (1,)) or (1,))),
            "row": spec.out.shape[-1],
        }

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        io.output([io.axis(0, 0), io.axis(0, 1), *[None] * (len(spec.out.shape) - 2)])


class Reduce(Handler):
    """Reductions over ``dim``. Other axes pass through; a reduced channel axis freezes."""

    aten = ("mean", "sum", "amax", "amin", "softmax", "log_softmax")

    def keeps_zero(self, spec: OpSpec) -> bool:
        return not spec.kind.endswith("softmax")

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        rank = len(spec.inputs[0].shape)
        dims = spec.attr("dim")
        reduced = {d % rank for d in (_tuple(dims) if dims is not None else range(rank))}
        axes = [io.axis(0, a) for a in range(rank)]
        for a in reduced:
            io.freeze(axes[a], f"{spec.kind} runs over these channels")
        keeps = spec.kind.endswith("softmax")
        if keeps or spec.attr("keepdim"):
            io.output([axes[a] if keeps or a not in reduced else None for a in range(rank)])
        else:
            io.output([axes[a] for a in range(rank) if a not in reduced])


class Concat(Handler):
    """Concatenation along ``dim``."""

    aten = ("cat",)

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        return {"operands": len(spec.inputs)}

    def target(self, spec: OpSpec) -> str:
        return "cat"

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        import numpy as np

        rank = len(spec.out.shape)
        dim = spec.attr("dim", 0) % rank
        axes: list[Labels] = []
        for axis in range(rank):
            parts = [io.axis(i, axis) for i in range(len(spec.inputs))]
            if axis != dim:
                for part in parts[1:]:
                    io.tie(parts[0], part)
                axes.append(parts[0])
            elif any(p is None for p in parts):
                for part in parts:
                    io.freeze(part, "concatenated with an axis that has no channels")
                axes.append(None)
            else:
                axes.append(np.concatenate([p for p in parts if p is not None]))
        io.output(axes)


class Pad(Handler):
    """Padding of the trailing axes."""

    aten = ("pad", "constant_pad_nd")

    def keeps_zero(self, spec: OpSpec) -> bool:
        return spec.attr("mode", "constant") != "constant" or not spec.attr("value")

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        axes = [io.axis(0, a) for a in range(len(spec.out.shape))]
        for a, (before, after) in enumerate(zip(spec.inputs[0].shape, spec.out.shape, strict=True)):
            if before != after:
                io.freeze(axes[a], "padded along the channels")
                axes[a] = None
        io.output(axes)


class Layout(Handler):
    """Operators that only rename axes (``view``) or rewrite memory in another order (``copy``).

    The name in ``aten`` stands in the attribute ``op``; the kind says whether bytes move.
    """

    aten = (
        *("flatten", "view", "reshape", "unflatten", "permute", "transpose", "t", "unsqueeze"),
        *("squeeze", "expand", "expand_as", "select", "slice", "unbind", "chunk", "split"),
        *("split_with_sizes", "dropout", "feature_dropout", "contiguous", "clone", "detach", "alias"),
        *("to", "_to_copy", "view_as", "stochastic_depth", "lift_fresh_copy"),
    )

    def bytes(self, spec: OpSpec) -> Scalar:
        if spec.kind == "view":
            return 0
        return super().bytes(spec)

    def fitted(self, spec: OpSpec) -> OpSpec:
        for name in ("size", "shape"):
            if spec.attr(name) is not None:
                spec = spec.with_attr(name, spec.out.shape)
        return spec

    def target(self, spec: OpSpec) -> str:
        return str(spec.attr("op"))

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        import numpy as np

        name = self.target(spec)
        before, after = spec.inputs[0].shape, spec.out.shape
        rank = len(before)
        axes = [io.axis(0, a) for a in range(rank)]
        if name in ("flatten", "view", "reshape", "unflatten", "unsqueeze", "squeeze", "view_as"):
            result, broken = reshape_labels(before, after, axes)
            for labels in broken:
                io.freeze(labels, f"{name} takes these channels apart")
            io.output(result)
        elif name == "permute":
            io.output([axes[d] for d in spec.attr("dims")])
        elif name in ("transpose", "t"):
            a, b = (spec.attr("dim0", 0), spec.attr("dim1", 1)) if name == "transpose" else (0, 1)
            order = list(range(rank))
            order[a], order[b] = order[b], order[a]
            io.output([axes[d] for d in order])
        elif name in ("expand", "expand_as"):
            lead = len(after) - rank
            for a in range(rank):
                if before[a] != after[a + lead]:
                    io.freeze(axes[a], "expanded from one channel to many")
                    axes[a] = None
            io.output([*[None] * lead, *axes])
        elif name in ("select", "slice", "unbind", "chunk", "split", "split_with_sizes"):
            dim = spec.attr("dim", 0) % rank
            if name == "slice" and tuple(before) == tuple(after):
                io.output(axes)
                return
            io.freeze(axes[dim], f"{name} cuts these channels at fixed places")
            gone = name in ("select", "unbind")
            for i in range(len(spec.outputs)):
                io.output([None if a == dim else x for a, x in enumerate(axes) if not (gone and a == dim)], i)
        else:
            io.output([np.asarray(x) if x is not None else None for x in axes])


class Embedding(Handler):
    """Rows of ``weight (V, E)`` by index."""

    aten = ("embedding",)

    def bytes(self, spec: OpSpec) -> Scalar:
        return 2 * spec.out.bytes + spec.inputs[-1].bytes


class Unknown(Handler):
    """An operator without a handler: its channels freeze; it has no price, and estimates name it."""

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        freeze_everything(spec, io, f"unknown operator {spec.kind.removeprefix(UNKNOWN)}")


UNKNOWN = "unknown:"
"""Prefix of the kind of an operator that has no handler."""


def reshape_labels(
    before: Sequence[int], after: Sequence[int], axes: Sequence[Labels]
) -> tuple[list[Labels], list[Labels]]:
    """Labels after a reshape, and the labels that the reshape takes apart (to be frozen).

    Axes are matched in runs of equal product. A run that merges one labelled axis with unlabelled
    ones repeats its labels over the merged axis; a run that splits a labelled axis breaks it.
    """
    import numpy as np

    result: list[Labels] = []
    broken: list[Labels] = []
    i = j = 0
    while i < len(before) or j < len(after):
        i0, j0 = i, j
        left, right = 1, 1
        if i < len(before):
            left, i = before[i], i + 1
        if j < len(after):
            right, j = after[j], j + 1
        while left != right:
            if left < right:
                left, i = left * before[i], i + 1
            else:
                right, j = right * after[j], j + 1
        # Sizes of one belong to the run that they follow, so that no run is cut short by them.
        if i == len(before):
            j = len(after)
        if j == len(after):
            i = len(before)
        labelled = [a for a in range(i0, i) if axes[a] is not None]
        wide = [b for b in range(j0, j) if after[b] != 1]
        if not labelled:
            result += [None] * (j - j0)
        elif len(labelled) == 1 and len(wide) <= 1 and j > j0:
            a = labelled[0]
            shape = [before[k] if k == a else 1 for k in range(i0, i)]
            full = np.broadcast_to(np.asarray(axes[a]).reshape(shape), before[i0:i]).ravel()
            keep = wide[0] if wide else j0
            result += [full if b == keep else None for b in range(j0, j)]
        elif [before[k] for k in range(i0, i) if before[k] != 1] == [after[b] for b in wide]:
            sized = iter([axes[k] for k in range(i0, i) if before[k] != 1])
            result += [next(sized) if b in wide else None for b in range(j0, j)]
        else:
            broken += [axes[a] for a in labelled]
            result += [None] * (j - j0)
    return result, broken


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _where(condition: Any, yes: Scalar, no: Scalar) -> Scalar:
    if isinstance(condition, bool | int):
        return yes if condition else no
    import numpy as np

    return np.where(condition, yes, no)


_ALL: tuple[Handler, ...] = (
    *(Convolution(), Linear(), MatMul(), Attention(), Elementwise(), Binary(), BatchNorm()),
    *(ChannelNorm(), Pool(), Reduce(), Concat(), Pad(), Layout(), Embedding()),
)
_BY_ATEN: dict[str, Handler] = {name: handler for handler in _ALL for name in handler.aten}
_LAYOUT = _BY_ATEN["view"]
_UNKNOWN = Unknown()


def by_aten(name: str) -> Handler | None:
    """The handler of an operator's name in ``aten`` (with or without the in-place underscore)."""
    return _BY_ATEN.get(name) or _BY_ATEN.get(name.rstrip("_"))


def is_layout(handler: Handler) -> bool:
    """Whether the operator only renames axes or copies."""
    return handler is _LAYOUT


def handler_of(kind: str) -> Handler:
    """The handler of an OpSpec's kind; of an unknown one, :class:`Unknown`."""
    if kind in ("view", "copy"):
        return _LAYOUT
    return _BY_ATEN.get(kind, _UNKNOWN)


def flops(spec: OpSpec) -> Scalar:
    """FLOPs of one operator (see the handlers for the formulas)."""
    return handler_of(spec.kind).flops(spec)


def byte_count(spec: OpSpec) -> Scalar:
    """Bytes that one operator moves at least."""
    return handler_of(spec.kind).bytes(spec)


def fitted(spec: OpSpec) -> OpSpec:
    """The operator with those attributes that repeat a size made to agree with its shapes."""
    return handler_of(spec.kind).fitted(spec)


def laid_out(spec: OpSpec, dense: bool) -> OpSpec:
    """The operator marked as ``strided`` unless the activations it reads are dense; a view does not care."""
    return spec if dense or spec.kind == "view" else spec.with_attr("strided", True)


def is_known(spec: OpSpec) -> bool:
    """Whether the operator has a handler."""
    return not spec.kind.startswith(UNKNOWN)
