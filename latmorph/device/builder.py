"""The builder of networks: operators appended one by one, with shapes worked out on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from latmorph import ops
from latmorph.opspec import OpSpec, Step, TensorSpec

Shape = tuple[int, ...]

Source = int | tuple[int, int]
"""What an operator reads: a step's first output by the step's index, another one as (step, output)."""


class NetworkBuilder:
    """Appends operators with the shapes and attributes that torch's ``aten`` operators have.

    Methods return the index of the step that they added, to be passed on as a source; -1 is the
    network's input, of shape ``input_shape`` and of ``input_dtype``, which is ``dtype`` if not given.
    """

    def __init__(self, input_shape: Shape, dtype: str = "float32", input_dtype: str | None = None) -> None:
        self.dtype = dtype
        self.steps: list[Step] = []
        self.input = TensorSpec("input", input_shape, input_dtype or dtype)
        self.flops = 0

    def read(self, source: Source) -> TensorSpec:
        """The tensor that a source is."""
        step, output = source if isinstance(source, tuple) else (source, 0)
        return self.input if step < 0 else self.steps[step].spec.outputs[output]

    def shape(self, source: Source) -> Shape:
        """Shape of a source."""
        return self.read(source).shape

    def _add(
        self,
        kind: str,
        sources: Sequence[Source],
        out: Sequence[int] | Sequence[TensorSpec],
        parameters: Sequence[tuple[str, Shape]] = (),
        names: Sequence[str] = ("self",),
        **attrs: Any,
    ) -> int:
        """``out`` is the output's shape, in the dtype of what is read if that is floating, or all outputs."""
        activations = [replace(self.read(s), name=name) for name, s in zip(names, sources, strict=True)]
        weights = [TensorSpec(name, shape, self.dtype, True) for name, shape in parameters]
        floating = next((t.dtype for t in activations if "float" in t.dtype), self.dtype)
        outputs = [o for o in out if isinstance(o, TensorSpec)] or [self._made(out, floating)]
        spec = OpSpec(kind, (*activations, *weights), tuple(outputs), tuple(attrs.items()))
        return self._append(spec, sources)

    def _made(self, shape: Any, dtype: str | None = None) -> TensorSpec:
        return TensorSpec("out", tuple(shape), dtype or self.dtype)

    def _append(self, spec: OpSpec, sources: Sequence[Source]) -> int:
        self.steps.append(Step(spec, tuple(s if isinstance(s, tuple) else (s, 0) for s in sources)))
        self.flops += int(ops.flops(spec))
        return len(self.steps) - 1

    def _outputs(self, step: int) -> list[Source]:
        return [(step, k) for k in range(len(self.steps[step].spec.outputs))]

    def conv(
        self,
        x: Source,
        out: int,
        kernel: int | Shape = 3,
        stride: int | Shape = 1,
        groups: int = 1,
        bias: bool = False,
        padding: int | None = None,
        dilation: int = 1,
    ) -> int:
        """A convolution over the axes after the second, at stride 1 of the same size unless padded else."""
        n, c, *space = self.shape(x)
        rank = len(space)
        kernel, stride = _spread(kernel, rank), _spread(stride, rank)
        pads = tuple(k // 2 * dilation for k in kernel) if padding is None else (padding,) * rank
        size = [
            (s + 2 * p - dilation * (k - 1) - 1) // t + 1
            for s, p, k, t in zip(space, pads, kernel, stride, strict=True)
        ]
        return self._add(
            f"conv{rank}d",
            [x],
            (n, out, *size),
            [("weight", (out, c // groups, *kernel)), *([("bias", (out,))] if bias else [])],
            ["input"],
            stride=stride,
            padding=pads,
            dilation=(dilation,) * rank,
            groups=groups,
        )

    def conv_transpose(
        self,
        x: Source,
        out: int,
        kernel: int,
        stride: int,
        padding: int = 0,
        groups: int = 1,
        bias: bool = True,
    ) -> int:
        """A transposed convolution, as deep as the input is."""
        n, c, *space = self.shape(x)
        rank = len(space)
        return self._add(
            f"conv_transpose{rank}d",
            [x],
            (n, out, *((s - 1) * stride - 2 * padding + kernel for s in space)),
            [("weight", (c, out // groups, *[kernel] * rank)), *([("bias", (out,))] if bias else [])],
            ["input"],
            stride=(stride,) * rank,
            padding=(padding,) * rank,
            output_padding=(0,) * rank,
            groups=groups,
            dilation=(1,) * rank,
        )

    def batch_norm(self, x: Source) -> int:
        """Batch normalisation in eval mode."""
        c = self.shape(x)[1]
        names = ("weight", "bias", "running_mean", "running_var")
        return self._add(
            "batch_norm",
            [x],
            self.shape(x),
            [(name, (c,)) for name in names],
            ["input"],
            training=False,
            momentum=0.1,
            eps=1e-5,
            cudnn_enabled=True,
        )

    def group_norm(self, x: Source, groups: int) -> int:
        """Normalisation over groups of channels."""
        c = self.shape(x)[1]
        attrs = {"num_groups": groups, "eps": 1e-5, "cudnn_enabled": True}
        return self._add("group_norm", [x], self.shape(x), _affine(c), ["input"], **attrs)

    def instance_norm(self, x: Source) -> int:
        """Normalisation of every channel of every image by itself, then scale and shift."""
        attrs = {"use_input_stats": True, "momentum": 0.1, "eps": 1e-5, "cudnn_enabled": True}
        return self._add("instance_norm", [x], self.shape(x), _affine(self.shape(x)[1]), ["input"], **attrs)

    def layer_norm(self, x: Source) -> int:
        """Layer normalisation over the last axis."""
        c = self.shape(x)[-1]
        attrs = {"normalized_shape": (c,), "eps": 1e-6, "cudnn_enable": False}
        return self._add("layer_norm", [x], self.shape(x), _affine(c), ["input"], **attrs)

    def rms_norm(self, x: Source) -> int:
        """Division by the root mean square over the last axis, then a scale."""
        c = self.shape(x)[-1]
        attrs = {"normalized_shape": (c,), "eps": 1e-6}
        return self._add("rms_norm", [x], self.shape(x), [("weight", (c,))], ["input"], **attrs)

    def activation(self, x: Source, name: str, inplace: bool = True) -> int:
        """An elementwise function, by its name in aten."""
        attrs: dict[str, Any] = {}
        if name == "hardtanh":
            attrs = {"min_val": 0.0, "max_val": 6.0}
        elif name == "gelu":
            attrs = {"approximate": "none"}
        if inplace and name not in ("gelu", "neg", "softplus"):
            attrs["inplace"] = True
        return self._add(name, [x], self.shape(x), **attrs)

    def prelu(self, x: Source) -> int:
        """A slope of its own for every channel below zero."""
        return self._add("prelu", [x], self.shape(x), [("weight", (self.shape(x)[1],))])

    def glu(self, x: Source, dim: int = 1) -> int:
        """One half of an axis times the sigmoid of the other."""
        out = list(self.shape(x))
        out[dim] //= 2
        return self._add("glu", [x], out, dim=dim)

    def scalar(self, name: str, x: Source, value: float) -> int:
        """``add``, ``mul``, ``pow``, a comparison, ... of a tensor and a number."""
        made = self._made(self.shape(x), "bool" if name in COMPARISONS else self.read(x).dtype)
        attrs: dict[str, Any] = {"exponent" if name == "pow" else "other": value}
        return self._add(name, [x], [made], **attrs)

    def binary(self, name: str, a: Source, b: Source, inplace: bool = False) -> int:
        """``add``, ``mul``, a comparison, ... with broadcasting."""
        made = self._made(
            np.broadcast_shapes(self.shape(a), self.shape(b)),
            "bool" if name in COMPARISONS else self.read(a).dtype,
        )
        attrs: dict[str, Any] = {"inplace": True} if inplace else {}
        return self._add(name, [a, b], [made], (), ["self", "other"], **attrs)

    def parameter_binary(self, name: str, x: Source, shape: Shape) -> int:
        """``add`` or ``mul`` of an activation and a parameter of the given shape."""
        return self._add(name, [x], self.shape(x), [("other", shape)], ["self"])

    def masked_fill(self, x: Source, mask: Source, value: float) -> int:
        """A value wherever a mask says so."""
        return self._add("masked_fill", [x, mask], self.shape(x), (), ["self", "mask"], value=value)

    def addcmul(self, x: Source, a: Source, b: Source) -> int:
        """``x + a * b``, where ``x`` has the largest shape."""
        return self._add("addcmul", [x, a, b], self.shape(x), (), ["self", "tensor1", "tensor2"], value=1)

    def pool(self, x: Source, kind: str, kernel: int | Shape, stride: int | Shape, padding: int = 0) -> int:
        """Max or average pooling over the axes after the second."""
        n, c, *space = self.shape(x)
        rank = len(space)
        kernel, stride = _spread(kernel, rank), _spread(stride, rank)
        size = [(s + 2 * padding - k) // t + 1 for s, k, t in zip(space, kernel, stride, strict=True)]
        attrs: dict[str, Any] = {"kernel_size": kernel, "stride": stride, "padding": (padding,) * rank}
        return self._add(kind, [x], (n, c, *size), **attrs)

    def global_pool(self, x: Source, size: int = 1, kind: str = "adaptive_avg_pool2d") -> int:
        """Adaptive pooling to one size along every axis after the second."""
        n, c, *space = self.shape(x)
        sizes = (size,) * len(space)
        outputs = [self._made((n, c, *sizes))]
        if kind.startswith("adaptive_max"):
            outputs.append(self._made((n, c, *sizes), "int64"))
        return self._add(kind, [x], outputs, output_size=sizes)

    def resize(self, x: Source, kind: str, size: Shape) -> int:
        """Resizing of the axes after the second."""
        attrs: dict[str, Any] = {} if "nearest" in kind else {"align_corners": False}
        return self._add(kind, [x], (*self.shape(x)[:2], *size), (), ["input"], output_size=size, **attrs)

    def pad(self, x: Source, pads: Shape, mode: str = "constant") -> int:
        """Padding, before and after, of the last axis, of the one before it, and so on."""
        out = list(self.shape(x))
        for k, (before, after) in enumerate(zip(pads[::2], pads[1::2], strict=True)):
            out[-1 - k] += before + after
        return self._add("pad", [x], out, pad=pads, mode=mode)

    def reduce(self, x: Source, kind: str, dims: Shape, keepdim: bool = False) -> int:
        """A reduction over some axes, which go unless kept at size one."""
        shape = self.shape(x)
        dims = tuple(d % len(shape) for d in dims)
        out = [1 if a in dims else s for a, s in enumerate(shape) if keepdim or a not in dims]
        return self._add(kind, [x], out, dim=dims, keepdim=keepdim)

    def mean(self, x: Source, dims: Shape) -> int:
        """Mean over some axes, which go."""
        return self.reduce(x, "mean", dims)

    def softmax(self, x: Source) -> int:
        """Softmax over the last axis."""
        return self._add("softmax", [x], self.shape(x), dim=-1)

    def cumsum(self, x: Source, dim: int) -> int:
        """Sums of all up to each."""
        return self._add("cumsum", [x], [self._made(self.shape(x), self.read(x).dtype)], dim=dim)

    def topk(self, x: Source, count: int) -> list[Source]:
        """The largest along the last axis, and where they are."""
        out = (*self.shape(x)[:-1], count)
        outputs = [self._made(out), self._made(out, "int64")]
        step = self._add("topk", [x], outputs, k=count, dim=-1, largest=True, sorted=True)
        return self._outputs(step)

    def cat(self, sources: Sequence[Source], dim: int = 1) -> int:
        """Concatenation."""
        out = list(self.shape(sources[0]))
        out[dim] = sum(self.shape(s)[dim] for s in sources)
        return self._add("cat", sources, out, (), ["tensors"] * len(sources), dim=dim)

    def linear(self, x: Source, out: int, bias: bool = True) -> int:
        """A fully connected layer over the last axis."""
        shape = self.shape(x)
        return self._add(
            "linear",
            [x],
            (*shape[:-1], out),
            [("weight", (out, shape[-1])), *([("bias", (out,))] if bias else [])],
            ["input"],
        )

    def addmm(self, x: Source, out: int) -> int:
        """A fully connected layer over the last axis of two, whose weight lies the other way."""
        rows, width = self.shape(x)
        bias, made = TensorSpec("self", (out,), self.dtype, True), self._made((rows, out))
        weight = TensorSpec("mat2", (width, out), self.dtype, True)
        spec = OpSpec("addmm", (bias, replace(self.read(x), name="mat1"), weight), (made,))
        return self._append(spec, [x])

    def matmul(self, a: Source, b: Source) -> int:
        """A product of activations, batched over the leading axes."""
        out = (*self.shape(a)[:-1], self.shape(b)[-1])
        return self._add("matmul", [a, b], out, (), ["self", "other"])

    def einsum(self, equation: str, a: Source, b: Source) -> int:
        """An Einstein sum of two activations, without an ellipsis."""
        left, _, right = equation.partition("->")
        sizes = dict(zip(left.replace(",", ""), (*self.shape(a), *self.shape(b)), strict=True))
        out = [sizes[i] for i in right]
        return self._add("einsum", [a, b], out, (), ["tensors", "tensors"], equation=equation)

    def attention(
        self, q: Source, k: Source, v: Source, mask: Source | None = None, causal: bool = False
    ) -> int:
        """Scaled dot-product attention; with fewer heads in ``k`` and ``v``, those are shared."""
        out = (*self.shape(q)[:-1], self.shape(v)[-1])
        attrs: dict[str, Any] = {"is_causal": True} if causal else {}
        if self.shape(k)[:-2] != self.shape(q)[:-2]:
            attrs["enable_gqa"] = True
        sources, names = [q, k, v], ["query", "key", "value"]
        if mask is not None:
            sources, names = [*sources, mask], [*names, "attn_mask"]
        return self._add("scaled_dot_product_attention", sources, out, (), names, **attrs)

    def query_key_value(self, x: Source, heads: int, copied: bool = False) -> list[int]:
        """What a fused layer says, ``(n, length, 3 * width)``, as three of ``(n, heads, length, head)``."""
        n, length, width = self.shape(x)
        y = self.reshape(x, (n, length, 3, heads, width // (3 * heads)))
        y = self.permute(y, (2, 0, 3, 1, 4))
        if copied:
            y = self.contiguous(y)
        return [self.select(y, 0, i) for i in range(3)]

    def recurrent(
        self, x: Source, kind: str, hidden: int, layers: int = 1, bidirectional: bool = False
    ) -> int:
        """LSTM or GRU layers over ``(batch, time, features)``, from a state of zeros."""
        n, t, features = self.shape(x)
        ways = 2 if bidirectional else 1
        gates = 4 if kind == "lstm" else 3
        state = (ways * layers, n, hidden)
        states = [self.create("zeros", state) for _ in range(2 if kind == "lstm" else 1)]
        params: list[tuple[str, Shape]] = []
        for layer in range(layers):
            width = features if layer == 0 else ways * hidden
            one = [(gates * hidden, width), (gates * hidden, hidden), (gates * hidden,), (gates * hidden,)]
            params += [("params", shape) for shape in one * ways]
        return self._add(
            kind,
            [x, *states],
            [self._made((n, t, ways * hidden)), *[self._made(state)] * len(states)],
            params,
            ["input", *["hx"] * len(states)],
            has_biases=True,
            num_layers=layers,
            dropout=0.0,
            train=False,
            bidirectional=bidirectional,
            batch_first=True,
        )

    def embedding(self, x: Source, rows: int, width: int) -> int:
        """Rows of a table by index."""
        made = self._made((*self.shape(x), width))
        table, indices = (
            TensorSpec("weight", (rows, width), self.dtype, True),
            replace(self.read(x), name="indices"),
        )
        return self._append(OpSpec("embedding", (table, indices), (made,)), [x])

    def table_rows(self, rows: int, width: int, count: int) -> int:
        """Rows of a learned table at fixed places: a bias that depends on the distance, say."""
        table = TensorSpec("self", (rows, width), self.dtype, True)
        places = TensorSpec("indices", (count,), "int64", True)
        return self._append(OpSpec("index", (table, places), (self._made((count, width)),)), [])

    def distance_bias(self, rows: int, heads: int, tokens: int) -> int:
        """What every head adds for every two tokens, ``(heads, tokens, tokens)``, out of a learned table."""
        bias = self.table_rows(rows, heads, tokens**2)
        return self.permute(self.reshape(bias, (tokens, tokens, heads)), (2, 0, 1))

    def create(self, kind: str, shape: Shape, dtype: str | None = None, **attrs: Any) -> int:
        """A tensor made of a value or of a range."""
        made = self._made(shape, dtype)
        if kind in ("zeros", "ones", "full"):
            attrs = {"size": shape, **attrs}
        return self._append(OpSpec(kind, (), (made,), (*attrs.items(), ("dtype", made.dtype))), [])

    def layout(self, x: Source, op: str, out: Shape, copies: bool = False, **attrs: Any) -> int:
        """A view, or a copy in another layout."""
        name = "input" if op == "dropout" else "self"
        made = self._made(out, self.read(x).dtype)
        return self._add("copy" if copies else "view", [x], [made], (), [name], **attrs, op=op)

    def cast(self, x: Source, dtype: str) -> int:
        """The same values in another dtype; nothing where it has that already."""
        copies = self.read(x).dtype != dtype
        made = self._made(self.shape(x), dtype)
        return self._add("copy" if copies else "view", [x], [made], dtype=dtype, op="to")

    def reshape(self, x: Source, shape: Shape, copies: bool = False) -> int:
        """The same elements in other axes."""
        return self.layout(x, "reshape", shape, copies, shape=shape)

    def contiguous(self, x: Source) -> int:
        """A copy in the order of the axes."""
        return self.layout(x, "contiguous", self.shape(x), copies=True)

    def slice(self, x: Source, dim: int, start: int, end: int, step: int = 1) -> int:
        """A part of an axis."""
        out = list(self.shape(x))
        out[dim] = len(range(start, min(end, out[dim]), step))
        return self.layout(x, "slice", tuple(out), dim=dim, start=start, end=end, step=step)

    def chunk(self, x: Source, count: int, dim: int) -> list[Source]:
        """Equal parts of an axis."""
        out = list(self.shape(x))
        out[dim] //= count
        made = [self._made(out, self.read(x).dtype)] * count
        return self._outputs(self._add("view", [x], made, chunks=count, dim=dim, op="chunk"))

    def split(self, x: Source, sizes: Shape, dim: int) -> list[Source]:
        """Parts of an axis, of such sizes."""
        shape = self.shape(x)
        made = [self._made((*shape[:dim], s, *shape[dim + 1 :]), self.read(x).dtype) for s in sizes]
        step = self._add("view", [x], made, split_sizes=sizes, dim=dim, op="split_with_sizes")
        return self._outputs(step)

    def roll(self, x: Source, shifts: Shape, dims: Shape) -> int:
        """Axes turned around."""
        return self._add("roll", [x], self.shape(x), shifts=shifts, dims=dims)

    def repeat(self, x: Source, repeats: Shape) -> int:
        """A tensor written several times over along every axis."""
        made = self._made([s * r for s, r in zip(self.shape(x), repeats, strict=True)], self.read(x).dtype)
        return self._add("repeat", [x], [made], repeats=repeats)

    def pixel_shuffle(self, x: Source, factor: int) -> int:
        """Channels to pixels."""
        n, c, h, w = self.shape(x)
        out = (n, c // factor**2, h * factor, w * factor)
        return self._add("pixel_shuffle", [x], out, upscale_factor=factor)

    def im2col(self, x: Source, kernel: int, stride: int, padding: int) -> int:
        """Patches of images as columns."""
        n, c, h, w = self.shape(x)
        columns = [(s + 2 * padding - kernel) // stride + 1 for s in (h, w)]
        attrs: dict[str, Any] = {"kernel_size": (kernel,) * 2, "dilation": (1, 1), "padding": (padding,) * 2}
        out = (n, c * kernel**2, columns[0] * columns[1])
        return self._add("im2col", [x], out, **attrs, stride=(stride,) * 2)

    def flatten(self, x: Source) -> int:
        """All axes but the first, merged."""
        n, *rest = self.shape(x)
        return self.layout(x, "flatten", (n, int(np.prod(rest))), start_dim=1, end_dim=-1)

    def permute(self, x: Source, dims: tuple[int, ...]) -> int:
        """Axes in another order."""
        return self.layout(x, "permute", tuple(self.shape(x)[d] for d in dims), dims=dims)

    def transpose(self, x: Source, a: int, b: int) -> int:
        """Two axes exchanged."""
        order = list(range(len(self.shape(x))))
        order[a], order[b] = order[b], order[a]
        out = tuple(self.shape(x)[d] for d in order)
        return self.layout(x, "transpose", out, dim0=a, dim1=b)

    def select(self, x: Source, dim: int, index: int) -> int:
        """One index of an axis."""
        shape = self.shape(x)
        return self.layout(x, "select", shape[:dim] + shape[dim + 1 :], dim=dim, index=index)


COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})


def _spread(size: int | Shape, rank: int) -> Shape:
    """One size an axis."""
    return (size,) * rank if isinstance(size, int) else size


def _affine(width: int) -> list[tuple[str, Shape]]:
    return [("weight", (width,)), ("bias", (width,))]
