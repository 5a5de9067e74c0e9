"""Operators that are sums of products: convolutions, matrix products, attention, recurrent layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from latmorph.ops.base import (
    AxisLabels,
    Handler,
    Labels,
    Shape,
    as_tuple,
    freeze_everything,
    is_one,
    prod,
    weights,
    where,
)
from latmorph.opspec import OpSpec, Scalar, ceil_to

if TYPE_CHECKING:
    import torch

    from latmorph.ops.calls import Parameter


def contract(io: AxisLabels, a: tuple[int, int], b: tuple[int, int], spec: OpSpec) -> None:
    """Tie two axes, as (operand, axis), that are multiplied with each other and summed over.

    With a parameter's zeros what is removed adds nothing; of two activations one has to be zero there.
    """
    first, second = (io.axis(operand, axis, "input") for operand, axis in (a, b))
    operands = (a[0], b[0])
    if not any(spec.inputs[i].parameter or io.silent(i) for i in operands):
        for labels in (first, second):
            io.freeze(labels, f"{spec.kind} sums over these channels, where a removed one is not zero")
    io.tie(first, second)


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

    def resized(self, spec: OpSpec, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> OpSpec:
        new = super().resized(spec, inputs, outputs)
        return new.with_attr("groups", self.groups(new))

    def silent(self, spec: OpSpec, operands: Sequence[bool]) -> bool:
        return all(operands[1:])

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
        groups, axis = int(self.groups(spec)), self.channel_axis(spec)
        for space in range(2, len(spec["weight"].shape)):
            io.freeze(io.axis(1, space) if not spec["weight"].parameter else None, "a kernel's extent")
        for space in range(axis + 1, len(spec["input"].shape)):
            io.freeze(io.axis(0, space), f"{spec.kind} runs along these channels")
        x, out = io.axis(0, axis), io.axis(1, 0, "output")
        if groups == 1:
            contract(io, (1, 1), (0, axis), spec)
        else:
            # Whole groups can go, and what is left of each must be equally wide.
            group, (inner, outer) = io.fresh(groups), self.per_group(spec)
            _grouped(io, x, group, io.axis(1, 1, "input") if inner > 1 else None)
            _grouped(io, out, group, io.fresh(outer))
        if spec.operand("bias") is not None:
            io.tie(out, io.axis(2, 0, "bias"))
        lead = [io.axis(0, a) for a in range(axis)]
        io.output([*lead, out, *[None] * (len(spec.out.shape) - axis - 1)])


def _grouped(io: AxisLabels, whole: Labels, group: np.ndarray, each: Labels) -> None:
    """Of an axis that is divided into groups, an index is alive where its group and its place in it are."""
    places = np.full(1, -1) if each is None or len(each) == 1 else each
    io.product(whole, [group[:, None], places[None, :]])


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
        groups, axis = int(self.groups(spec)), self.channel_axis(spec)
        for space in range(axis + 1, len(spec["input"].shape)):
            io.freeze(io.axis(0, space), f"{spec.kind} runs along these channels")
        out = io.axis(1, 1, "output") if groups == 1 or spec["weight"].shape[1] > 1 else None
        contract(io, (1, 0), (0, axis), spec)
        if groups > 1:
            group, columns = io.fresh(groups), out
            _grouped(io, io.axis(1, 0), group, io.fresh(self.per_group(spec)[0]))
            out = io.fresh(spec.out.shape[axis])
            _grouped(io, out, group, columns)
        if spec.operand("bias") is not None:
            io.tie(out, io.axis(2, 0, "bias"))
        lead = [io.axis(0, a) for a in range(axis)]
        io.output([*lead, out, *[None] * (len(spec.out.shape) - axis - 1)])


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

    def silent(self, spec: OpSpec, operands: Sequence[bool]) -> bool:
        return all(operands[1:])

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
        rank = len(spec["input"].shape)
        if len(spec["weight"].shape) != 2:
            freeze_everything(spec, io, f"the weight of {spec.kind} is no matrix")
            return
        contract(io, (1, 1), (0, rank - 1), spec)
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

    def silent(self, spec: OpSpec, operands: Sequence[bool]) -> bool:
        return operands[0] and operands[2]

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        return {"rows": spec.out.shape[0], "bias": 1, "turned": 1}

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        contract(io, (2, 0), (1, 1), spec)
        out = io.axis(2, 1, "output")
        bias = spec.inputs[0].shape
        if bias and bias[-1] == spec.out.shape[1]:
            io.tie(out, io.axis(0, len(bias) - 1, "bias"))
        rows = io.axis(1, 0)
        if len(bias) == 2 and bias[0] == spec.out.shape[0]:
            io.tie(rows, io.axis(0, 0))
        io.output([rows, out])


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

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        a, b = len(spec.inputs) - 2, len(spec.inputs) - 1
        ranks = [len(spec.inputs[i].shape) for i in (a, b)]
        batch = max(0, *(rank - 2 for rank in ranks))
        contract(io, (b, max(0, ranks[1] - 2)), (a, ranks[0] - 1), spec)
        axes: list[Labels] = []
        for k in range(batch):
            own = [(i, k - batch + rank - 2) for i, rank in zip((a, b), ranks, strict=True)]
            axes.append(shared(io, spec, [(i, axis) for i, axis in own if axis >= 0]))
        if ranks[0] > 1:
            axes.append(io.axis(a, ranks[0] - 2, "output"))
        if ranks[1] > 1:
            axes.append(io.axis(b, ranks[1] - 1, "output"))
        if a:  # what is added
            rank = len(spec.inputs[0].shape)
            for k in range(rank):
                if spec.inputs[0].shape[k] == spec.out.shape[len(axes) - rank + k]:
                    io.tie(axes[len(axes) - rank + k], io.axis(0, k, "bias"))
        io.output(axes)


def shared(io: AxisLabels, spec: OpSpec, places: Sequence[tuple[int, int]]) -> Labels:
    """Labels of an axis that operands have in common, as (operand, axis); not of those of the size 1."""
    size = max(spec.inputs[i].shape[axis] for i, axis in places)
    found = [io.axis(i, axis) for i, axis in places if spec.inputs[i].shape[axis] == size]
    if size > 1:
        for i, axis in places:
            if spec.inputs[i].shape[axis] == 1 and not spec.inputs[i].parameter:
                io.freeze(io.axis(i, axis), f"{spec.kind} broadcasts one channel over many")
    for labels in found[1:]:
        io.tie(found[0], labels)
    return found[0]


class Einsum(Handler):
    """Einstein sums: two operands at a time, as a batched matrix product where something is summed."""

    aten = ("einsum",)
    lists = ("tensors",)

    def flops(self, spec: OpSpec) -> Scalar:
        return sum((2 * prod(list(sizes.values())) for sizes in self.products(spec)), 0)

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        return {"operands": len(spec.inputs)}

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        terms, result = _indices(spec)
        if any(len(set(term)) < len(term) for term in terms):
            freeze_everything(spec, io, "einsum takes a diagonal")
            return
        axes: dict[str, Labels] = {}
        for index in dict.fromkeys(i for term in terms for i in term):
            places = [(k, term.index(index)) for k, term in enumerate(terms) if index in term]
            summed = index not in result
            for k, axis in places:  # for parameters the first role that is asked for is the one they have
                io.axis(
                    k, axis, "input" if summed else "output" if spec.inputs[k].parameter else "elementwise"
                )
            axes[index] = shared(io, spec, places)
            if summed and not any(spec.inputs[k].parameter or io.silent(k) for k, _ in places):
                io.freeze(axes[index], "einsum sums over these channels, where a removed one is not zero")
        io.output([axes[index] for index in result])

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

    def silent(self, spec: OpSpec, operands: Sequence[bool]) -> bool:
        return operands[2]

    def resized(self, spec: OpSpec, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> OpSpec:
        new = super().resized(spec, inputs, outputs)
        if spec.attr("scale") is None and new["query"].shape[-1] != spec["query"].shape[-1]:
            # Where torch has it among its arguments.
            at = next((i + 1 for i, (name, _) in enumerate(new.attrs) if name == "is_causal"), 0)
            whole = ("scale", spec["query"].shape[-1] ** -0.5)  # as it was at the full width
            new = replace(new, attrs=(*new.attrs[:at], whole, *new.attrs[at:]))
        return new

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        q, k, v = (len(spec[name].shape) for name in ("query", "key", "value"))
        contract(io, (0, q - 1), (1, k - 1), spec)
        for operand, axis in ((1, k - 2), (2, v - 2)):
            io.freeze(io.axis(operand, axis), f"softmax of {spec.kind} runs over these channels")
        batch: list[Labels] = []
        for a in range(q - 2):
            sizes = [spec.inputs[i].shape[a - q + n] for i, n in ((0, q), (1, k), (2, v)) if n - q + a >= 0]
            places = [(i, n - q + a) for i, n in ((0, q), (1, k), (2, v)) if n - q + a >= 0]
            if len(set(sizes)) > 1 and 1 not in sizes:  # some heads of the query to one of key and value
                shared_heads = shared(io, spec, places[1:])
                heads = io.axis(*places[0])
                times = sizes[0] // sizes[1]
                if shared_heads is None:
                    io.freeze(heads, "shares a head that is fixed")
                else:
                    io.product(heads, [shared_heads[:, None], io.fresh(times)[None, :]])
                batch.append(heads)
            else:
                batch.append(shared(io, spec, places))
        axes = [*batch, io.axis(0, q - 2), io.axis(2, v - 1)]
        if spec.operand("attn_mask") is not None:
            mask = spec["attn_mask"].shape
            for a in range(len(mask)):
                at = a + q - len(mask)
                if mask[a] > 1 and at >= 0:
                    against = axes[at] if at < q - 1 else None
                    if against is not None or not spec["attn_mask"].parameter:
                        io.tie(against, io.axis(3, a))
        io.output(axes)


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

    def silent(self, spec: OpSpec, operands: Sequence[bool]) -> bool:
        return all(operands[1:])  # gates without weights keep a state at zero

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        places = [i for i, t in enumerate(spec.inputs) if t.name == "params"]
        directions = 2 if spec.attr("bidirectional") else 1
        cells = int(spec.attr("num_layers", 1)) * directions
        each = len(places) // cells
        lists = [places[k * each : (k + 1) * each] for k in range(cells)]
        matrices = [[i for i in own if len(spec.inputs[i].shape) == 2] for own in lists]
        if spec.kind in self.cells or any(len(m) != 2 for m in matrices):
            freeze_everything(spec, io, f"{spec.kind} of this form has no channel rule")
            return
        hidden = spec.inputs[matrices[0][1]].shape[1]
        # All layers and directions are of one width, whose k-th units are one.
        found = io.axis(matrices[0][1], 1, "input")
        unit = np.full(hidden, -1) if found is None else found
        below = io.axis(0, len(spec.inputs[0].shape) - 1)
        for cell, own in enumerate(lists):
            layer = cell // directions
            for i in own:
                role = "output" if i in matrices[cell] else "bias"
                for gate in self._gates(io.axis(i, 0, role), hidden):
                    io.tie(unit, gate)
            io.tie(unit, io.axis(matrices[cell][1], 1, "input"))
            io.tie(below if layer == 0 else np.tile(unit, directions), io.axis(matrices[cell][0], 1, "input"))
        for i, tensor in enumerate(spec.inputs):
            if tensor.name == "hx":
                for axis in range(len(tensor.shape) - 1):
                    io.freeze(io.axis(i, axis), f"{spec.kind} keeps states of these")
                io.tie(unit, io.axis(i, len(tensor.shape) - 1))
        for i, tensor_out in enumerate(spec.outputs):
            lead = [io.axis(0, a) for a in range(len(tensor_out.shape) - 1)] if i == 0 else []
            lead = lead or [None] * (len(tensor_out.shape) - 1)
            io.output([*lead, np.tile(unit, directions) if i == 0 else unit], i)

    def _gates(self, labels: Labels, hidden: int) -> list[np.ndarray]:
        return [] if labels is None else list(labels.reshape(-1, hidden))


class Lstm(Recurrent):
    """LSTM layers: two states, hidden and cell."""

    aten = ("lstm", "lstm_cell")
    alike: Mapping[str, str] = {"lstm_cell": "lstm"}
    lists = ("hx", "params")
