"""Operators that are sums of products: convolutions, matrix products, attention, recurrent layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from latmorph.ops.base import AxisLabels, Handler, as_tuple, freeze_everything, is_one, prod, weights, where
from latmorph.opspec import OpSpec, Scalar, ceil_to

if TYPE_CHECKING:
    import torch

    from latmorph.ops.calls import Parameter


def _computed(spec: OpSpec, io: AxisLabels) -> None:
    freeze_everything(spec, io, f"the weight of {spec.kind} is computed, not a parameter")


class Convolution(Handler):
    """Convolutions of any rank and any number of groups.

    Shapes: input ``(N, C, *size)`` or ``(C, *size)``, weight ``(O, C / groups, *kernel)``, output
    ``(N, O, *size)`` or ``(O, *size)``. The number of groups is read off the shapes, so that it follows a
    depthwise layer's width.
    """

    aten: tuple[str, ...] = ("conv1d", "conv2d", "conv3d")

    def channel_axis(self, spec: OpSpec) -> int:
        """The axis of the channels in the input and in the output: 1, or 0 where there is no batch."""
        return len(spec["input"].shape) - len(spec["weight"].shape) + 1

    def groups(self, spec: OpSpec) -> Scalar:
        """Number of groups: input channels over the weight's second axis."""
        return spec["input"].shape[self.channel_axis(spec)] // spec["weight"].shape[1]

    def per_group(self, spec: OpSpec) -> tuple[Scalar, Scalar]:
        """Input and output channels of one group."""
        return spec["weight"].shape[1], spec["weight"].shape[0] // self.groups(spec)

    def pixels(self, spec: OpSpec) -> Scalar:
        """Places that the kernel is laid on, over the whole batch."""
        return spec.out.numel // spec.out.shape[self.channel_axis(spec)]

    def depthwise(self, spec: OpSpec) -> Any:
        """Whether every group has one input channel, and there are several."""
        return (self.per_group(spec)[0] == 1) & (self.groups(spec) > 1)

    def flops(self, spec: OpSpec) -> Scalar:
        return 2 * self.pixels(spec) * spec["weight"].numel

    def padded_flops(self, spec: OpSpec, in_block: int, out_block: int) -> Scalar:
        inner, outer = self.per_group(spec)
        groups = self.groups(spec)
        taps = 2 * self.pixels(spec) * prod(spec["weight"].shape[2:])
        dense = taps * groups * ceil_to(inner, in_block) * ceil_to(outer, out_block)
        # A depthwise kernel walks channels, not a matrix product: its block lies along the groups.
        walked = taps * ceil_to(groups * outer, out_block)
        return where(self.depthwise(spec), walked, dense)

    def family(self, spec: OpSpec) -> str:
        wide = spec["input"].shape[self.channel_axis(spec)]
        if is_one(spec["weight"].shape[1]) and not is_one(wide):
            return "depthwise" if spec.kind == "conv2d" else f"depthwise{spec.kind[-2:]}"
        if spec.kind != "conv2d":
            return spec.kind
        if spec.attr("groups", 1) > 1:
            return "grouped"
        return "pointwise" if prod(spec["weight"].shape[2:]) == 1 else "conv2d"

    def fitted(self, spec: OpSpec) -> OpSpec:
        return spec.with_attr("groups", self.groups(spec))

    def build(self, spec: OpSpec, parameter: Parameter) -> Callable[..., Any]:
        held, weight = weights(spec), spec["weight"]
        if spec.kind not in ("conv1d", "conv2d", "conv3d") or not held:
            return super().build(spec, parameter)
        from torch import nn

        from latmorph.ops.calls import Block, layer

        kind: type[nn.Conv2d] = getattr(nn, f"Conv{spec.kind[-2:]}")
        groups = int(self.groups(spec))
        sizes = (weight.shape[1] * groups, weight.shape[0], weight.shape[2:])
        settings = {k: v for k, v in spec.attrs if k in ("stride", "padding", "dilation")}
        made = layer(kind, held, parameter, *sizes, **settings, groups=groups, bias=len(held) > 1)
        return Block(made)

    def widths(self, spec: OpSpec) -> tuple[Scalar, Scalar]:
        depthwise, axis = self.depthwise(spec), self.channel_axis(spec)
        inner, outer = self.per_group(spec)
        return (
            where(depthwise, spec["input"].shape[axis], inner),
            where(depthwise, spec.out.shape[axis], outer),
        )

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        weight, space = spec["weight"].shape, self.channel_axis(spec) + 1
        return {
            "groups": self.groups(spec),
            "kernel": prod(weight[2:]),
            "kernel_last": weight[-1],
            "stride": prod(as_tuple(spec.attr("stride", (1,)))),
            "dilation": prod(as_tuple(spec.attr("dilation", (1,)))),
            "pixels_in": prod(spec["input"].shape[space:]),
            "pixels_out": prod(spec.out.shape[space:]),
            "row": spec.out.shape[-1],
            "bias": int(spec.operand("bias") is not None),
        }

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        if not spec["weight"].parameter:
            _computed(spec, io)
            return
        groups = int(self.groups(spec))
        axis = self.channel_axis(spec)
        x = io.axis(0, axis)
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
        io.output([*[None] * axis, out, *[None] * (len(spec.out.shape) - axis - 1)])


class TransposedConvolution(Convolution):
    """Transposed convolutions: as :class:`Convolution`, but weight ``(C, O / groups, *kernel)``."""

    aten = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")

    def groups(self, spec: OpSpec) -> Scalar:
        return spec.out.shape[self.channel_axis(spec)] // spec["weight"].shape[1]

    def per_group(self, spec: OpSpec) -> tuple[Scalar, Scalar]:
        return spec["weight"].shape[0] // self.groups(spec), spec["weight"].shape[1]

    def pixels(self, spec: OpSpec) -> Scalar:
        return spec["input"].numel // spec["input"].shape[self.channel_axis(spec)]

    def family(self, spec: OpSpec) -> str:
        return spec.kind

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        if not spec["weight"].parameter:
            _computed(spec, io)
            return
        groups = int(self.groups(spec))
        axis = self.channel_axis(spec)
        x = io.axis(0, axis)
        if groups == spec["weight"].shape[0] > 1:  # depthwise: rows of the weight come and go with x
            rows = io.axis(1, 0, "output")
            assert rows is not None
            io.tie(rows, x)
            out = rows.repeat(spec["weight"].shape[1])
        else:
            rows, columns = io.axis(1, 0, "input"), io.axis(1, 1, "output")
            assert rows is not None
            assert columns is not None
            io.tie(rows, x)
            # Groups must stay equal, so the k-th channel of every group is one unit.
            for g in range(1, groups):
                io.tie(rows.reshape(groups, -1)[0], rows.reshape(groups, -1)[g])
            out = np.tile(columns, groups)
        if spec.operand("bias") is not None:
            io.tie(out, io.axis(2, 0, "bias"))
        io.output([*[None] * axis, out, *[None] * (len(spec.out.shape) - axis - 1)])


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
        bias = int(spec.operand("bias") is not None)
        return {"rows": prod(spec.out.shape[:-1]), "bias": bias, "turned": 0}

    def build(self, spec: OpSpec, parameter: Parameter) -> Callable[..., Any]:
        held, weight = weights(spec), spec["weight"]
        if spec.kind != "linear" or not held or len(weight.shape) != 2:
            return super().build(spec, parameter)
        from torch import nn

        from latmorph.ops.calls import Block, layer

        made = layer(nn.Linear, held, parameter, weight.shape[1], weight.shape[0], bias=len(held) > 1)
        return Block(made)

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        if not spec["weight"].parameter:
            _computed(spec, io)
            return
        rank = len(spec["input"].shape)
        io.tie(io.axis(1, 1, "input"), io.axis(0, rank - 1))
        out = io.axis(1, 0, "output")
        if spec.operand("bias") is not None:
            io.tie(out, io.axis(2, 0, "bias"))
        io.output([*(io.axis(0, a) for a in range(rank - 1)), out])


class AddMM(Handler):
    """``self (O) + mat1 (N, I) @ mat2 (I, O)``: a linear layer whose weight lies the other way."""

    aten = ("addmm",)

    def flops(self, spec: OpSpec) -> Scalar:
        return 2 * spec.out.numel * spec["mat1"].shape[1]

    def padded_flops(self, spec: OpSpec, in_block: int, out_block: int) -> Scalar:
        i, o = spec["mat2"].shape
        return 2 * spec.out.shape[0] * ceil_to(o, out_block) * ceil_to(i, in_block)

    def widths(self, spec: OpSpec) -> tuple[Scalar, Scalar]:
        return spec["mat2"].shape[0], spec["mat2"].shape[1]

    def family(self, spec: OpSpec) -> str:
        return "linear"

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        return {"rows": spec.out.shape[0], "bias": 1, "turned": 1}

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        bias, weight = spec.inputs[0], spec.inputs[2]
        if not weight.parameter or not bias.parameter or bias.shape != (weight.shape[1],):
            _computed(spec, io)
            return
        io.tie(io.axis(2, 0, "input"), io.axis(1, 1))
        out = io.axis(2, 1, "output")
        io.tie(out, io.axis(0, 0, "bias"))
        io.output([io.axis(1, 0), out])


class MatMul(Handler):
    """Products of two activations, batched over the leading axes; ``baddbmm`` adds a third to them."""

    aten = ("matmul", "bmm", "mm", "mv", "dot", "baddbmm")
    alike: Mapping[str, str] = dict.fromkeys(("bmm", "mm", "mv", "dot", "baddbmm"), "matmul")

    def flops(self, spec: OpSpec) -> Scalar:
        return 2 * spec.out.numel * spec.inputs[-2].shape[-1]

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        return {
            "rows": spec.out.shape[-2] if len(spec.out.shape) > 1 else 1,
            "batches": prod(spec.out.shape[:-2]),
        }

    def widths(self, spec: OpSpec) -> tuple[Scalar, Scalar]:
        return spec.inputs[-2].shape[-1], (*spec.out.shape, 1)[-1]


class Einsum(Handler):
    """Einstein sums: two operands at a time, as a batched matrix product where something is summed."""

    aten = ("einsum",)
    lists = ("tensors",)

    def flops(self, spec: OpSpec) -> Scalar:
        return sum((2 * prod(list(sizes.values())) for sizes in self.products(spec)), 0)

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        return {"operands": len(spec.inputs)}

    def products(self, spec: OpSpec) -> list[dict[str, Scalar]]:
        """The matrix products that are done, each as the sizes of its indices.

        Pairs are taken along the attribute ``path``, from the left where there is none. An index that one
        operand of a pair has alone, and that nothing reads later, is summed before the product; without
        an index that is summed in the product it is an elementwise one, which has no FLOPs here.
        """
        terms, result = _indices(spec)
        sizes: list[dict[str, Scalar]] = [
            dict(zip(term, t.shape, strict=True)) for term, t in zip(terms, spec.inputs, strict=True)
        ]
        path = list(spec.attr("path") or [])
        done = []
        while len(sizes) > 1:
            first, second = (path.pop(0), path.pop(0)) if path else (0, 1)
            a, b = (sizes[k] for k in (first, second))
            sizes = [s for k, s in enumerate(sizes) if k not in (first, second)]
            later = {i for s in sizes for i in s} | set(result)
            both = {i: _larger(a.get(i, 1), b.get(i, 1)) for i in {**a, **b}}
            alone = {i for i in both if i not in later and (i not in a or i not in b)}
            product = {i: n for i, n in both.items() if i not in alone}
            if any(i not in later for i in product):
                done.append(product)
            left = {i: n for i, n in product.items() if i in later}
            sizes = [*sizes, left] if spec.attr("path") else [left, *sizes]
        return done


def _larger(a: Scalar, b: Scalar) -> Scalar:
    """The size that two sizes broadcast to."""
    return b if is_one(a) else a


def _indices(spec: OpSpec) -> tuple[list[list[str]], list[str]]:
    """Names of the axes of every operand and of the result; those of an ellipsis are numbers."""
    left, arrow, right = str(spec.attr("equation")).replace(" ", "").partition("->")
    terms = []
    widest = 0
    for term, tensor in zip(left.split(","), spec.inputs, strict=True):
        before, dots, after = term.partition("...")
        count = len(tensor.shape) - len(before) - len(after) if dots else 0
        widest = max(widest, count)
        terms.append([*before, *(str(k) for k in range(-count, 0)), *after])
    dotted = [str(k) for k in range(-widest, 0)]
    if arrow:
        before, dots, after = right.partition("...")
        return terms, [*before, *(dotted if dots else ()), *after]
    letters = [i for term in terms for i in term if i.isalpha()]
    return terms, [*dotted, *sorted(i for i in set(letters) if letters.count(i) == 1)]


class Bilinear(Handler):
    """``input1 (..., I) x weight (O, I, J) x input2 (..., J) + bias (O)``."""

    aten = ("bilinear",)
    alike: Mapping[str, str] = {"bilinear": "matmul"}

    def flops(self, spec: OpSpec) -> Scalar:
        return 2 * prod(spec.out.shape[:-1]) * spec["weight"].numel

    def widths(self, spec: OpSpec) -> tuple[Scalar, Scalar]:
        return spec["weight"].shape[1], spec["weight"].shape[0]


class GroupedMatMul(Handler):
    """Rows ``(N, I)`` times one of several matrices ``(G, I, O)``, a run of rows each: experts.

    ``offs`` says where each matrix's rows end.
    """

    aten = ("_grouped_mm", "transformers.grouped_mm_fallback")

    def flops(self, spec: OpSpec) -> Scalar:
        return 2 * spec.out.numel * spec.inputs[0].shape[-1]

    def family(self, spec: OpSpec) -> str:
        return "matmul"

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        return {"rows": spec.out.shape[-2], "batches": spec.inputs[1].shape[0]}

    def widths(self, spec: OpSpec) -> tuple[Scalar, Scalar]:
        return spec.inputs[0].shape[-1], spec.out.shape[-1]

    def build(self, spec: OpSpec, parameter: Parameter) -> Callable[..., Any]:
        import torch

        weight = spec.inputs[1]
        held = parameter(weight) if weight.parameter else None
        rows = spec.inputs[0].shape[0]

        def run(x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
            matrices = others[0] if held is None else held
            # Equal runs: where rows go depends on values, which a lone operator does not have.
            shares = x.tensor_split(len(matrices))
            made = [share @ matrix for share, matrix in zip(shares, matrices, strict=True)]
            return torch.cat(made).view(rows, -1)

        return run


class Attention(Handler):
    """Scaled dot-product attention: ``query (..., L, E)``, ``key (..., S, E)``, ``value (..., S, V)``.

    With ``enable_gqa`` several heads of the query share one of key and value. FLOPs are those of the whole
    products, with or without a mask.
    """

    aten = ("scaled_dot_product_attention",)

    def flops(self, spec: OpSpec) -> Scalar:
        rows = prod(spec.out.shape[:-1])
        return 2 * rows * spec["key"].shape[-2] * (spec["query"].shape[-1] + spec["value"].shape[-1])

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        return {
            "heads": prod(spec.out.shape[:-2]),
            "rows": spec["query"].shape[-2],
            "keys": spec["key"].shape[-2],
            "embed": spec["query"].shape[-1],
            "shared": prod(spec.out.shape[:-2]) // prod(spec["key"].shape[:-2]),
            "causal": int(bool(spec.attr("is_causal"))),
            "masked": int(spec.operand("attn_mask") is not None),
        }


class Recurrent(Handler):
    """LSTM, GRU and plain recurrent layers, all of their steps, layers and directions at once.

    Shapes: input ``(T, N, I)`` or ``(N, T, I)``, and in ``params`` for every layer and direction the
    weights ``(gates * H, I)`` and ``(gates * H, H)`` and their biases. FLOPs are those of the matrix
    products: every weight is applied once a step and sequence. Cells are one step of one layer.
    """

    cells = ("gru_cell", "rnn_tanh_cell", "rnn_relu_cell", "lstm_cell")
    aten: tuple[str, ...] = ("gru", "rnn_tanh", "rnn_relu", *cells[:3])
    alike: Mapping[str, str] = dict.fromkeys(("rnn_tanh", "rnn_relu", *cells[:3]), "gru")
    lists: tuple[str, ...] = ("params",)

    def flops(self, spec: OpSpec) -> Scalar:
        matrices = (t for t in spec.inputs if t.name in ("params", "w_ih", "w_hh") and len(t.shape) == 2)
        weights = sum((t.numel for t in matrices), 0)
        return 2 * prod(spec.inputs[0].shape[:-1]) * weights

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        along = 1 if spec.attr("batch_first") else 0
        return {
            "steps": 1 if spec.kind in self.cells else spec.inputs[0].shape[along],
            "layers": int(spec.attr("num_layers", 1)),
            "directions": 2 if spec.attr("bidirectional") else 1,
        }

    def widths(self, spec: OpSpec) -> tuple[Scalar, Scalar]:
        return spec.inputs[0].shape[-1], spec.out.shape[-1]


class Lstm(Recurrent):
    """LSTM layers: two states, hidden and cell."""

    aten = ("lstm", "lstm_cell")
    alike: Mapping[str, str] = {"lstm_cell": "lstm"}
    lists = ("hx", "params")
