"""Sampled networks: random relatives of real families, to be timed operator by operator.

Operators are timed inside networks because that is where they run: with the caches as the
neighbouring operators leave them, weights that were last read a pass ago, and fresh outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from latmorph import ops
from latmorph.opspec import OpSpec, Step, TensorSpec

Shape = tuple[int, ...]


class NetworkBuilder:
    """Appends operators with the shapes and attributes that torch's ``aten`` operators have.

    Methods return the index of the step that they added, to be passed on as a source; -1 is the
    network's input, of shape ``input_shape``.
    """

    def __init__(self, input_shape: Shape, dtype: str = "float32") -> None:
        self.dtype = dtype
        self.steps: list[Step] = []
        self.input_shape = input_shape
        self.flops = 0

    def shape(self, source: int) -> Shape:
        """Shape of a step's output."""
        return self.input_shape if source < 0 else self.steps[source].spec.out.shape

    def _add(
        self,
        kind: str,
        sources: Sequence[int],
        out: Shape,
        parameters: Sequence[tuple[str, Shape]] = (),
        names: Sequence[str] = ("self",),
        **attrs: Any,
    ) -> int:
        activations = [
            TensorSpec(name, self.shape(s), self.dtype) for name, s in zip(names, sources, strict=True)
        ]
        weights = [TensorSpec(name, shape, self.dtype, True) for name, shape in parameters]
        spec = OpSpec(
            kind,
            (*activations, *weights),
            (TensorSpec("out", out, self.dtype),),
            tuple(attrs.items()),
        )
        self.steps.append(Step(spec, tuple((s, 0) for s in sources)))
        self.flops += int(ops.flops(spec))
        return len(self.steps) - 1

    def conv(
        self,
        x: int,
        out: int,
        kernel: int | tuple[int, int] = 3,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        padding: int | None = None,
    ) -> int:
        """A 2-d convolution that keeps the size at stride 1, unless ``padding`` is given."""
        kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
        n, c, h, w = self.shape(x)
        ph, pw = (kh // 2, kw // 2) if padding is None else (padding, padding)
        size = ((h + 2 * ph - kh) // stride + 1, (w + 2 * pw - kw) // stride + 1)
        return self._add(
            "conv2d",
            [x],
            (n, out, *size),
            [("weight", (out, c // groups, kh, kw)), *([("bias", (out,))] if bias else [])],
            ["input"],
            stride=(stride, stride),
            padding=(ph, pw),
            dilation=(1, 1),
            groups=groups,
        )

    def batch_norm(self, x: int) -> int:
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

    def activation(self, x: int, name: str, inplace: bool = True) -> int:
        """An elementwise function, by its name in aten."""
        attrs: dict[str, Any] = {}
        if name == "hardtanh":
            attrs = {"min_val": 0.0, "max_val": 6.0}
        elif name == "gelu":
            attrs = {"approximate": "none"}
            inplace = False
        if inplace:
            attrs["inplace"] = True
        return self._add(name, [x], self.shape(x), **attrs)

    def binary(self, name: str, a: int, b: int, inplace: bool = False) -> int:
        """``add`` or ``mul`` with broadcasting."""
        out = np.broadcast_shapes(self.shape(a), self.shape(b))
        attrs: dict[str, Any] = {"inplace": True} if inplace else {}
        return self._add(name, [a, b], tuple(int(s) for s in out), (), ["self", "other"], **attrs)

    def parameter_binary(self, name: str, x: int, shape: Shape) -> int:
        """``add`` or ``mul`` of an activation and a parameter of the given shape."""
        return self._add(name, [x], self.shape(x), [("other", shape)], ["self"])

    def pool(self, x: int, kind: str, kernel: int, stride: int, padding: int = 0) -> int:
        """Max or average pooling."""
        n, c, h, w = self.shape(x)
        size = tuple((s + 2 * padding - kernel) // stride + 1 for s in (h, w))
        attrs: dict[str, Any] = {
            "kernel_size": (kernel, kernel),
            "stride": (stride, stride),
            "padding": (padding, padding),
        }
        return self._add(kind, [x], (n, c, *size), **attrs)

    def global_pool(self, x: int, size: int = 1) -> int:
        """Adaptive average pooling."""
        n, c = self.shape(x)[:2]
        return self._add("adaptive_avg_pool2d", [x], (n, c, size, size), output_size=(size, size))

    def mean(self, x: int, dims: tuple[int, ...]) -> int:
        """Mean over some axes, which go."""
        out = tuple(s for a, s in enumerate(self.shape(x)) if a not in dims)
        return self._add("mean", [x], out, dim=dims, keepdim=False)

    def cat(self, sources: Sequence[int], dim: int = 1) -> int:
        """Concatenation."""
        out = list(self.shape(sources[0]))
        out[dim] = sum(self.shape(s)[dim] for s in sources)
        return self._add("cat", sources, tuple(out), (), ["tensors"] * len(sources), dim=dim)

    def linear(self, x: int, out: int, bias: bool = True) -> int:
        """A fully connected layer over the last axis."""
        shape = self.shape(x)
        return self._add(
            "linear",
            [x],
            (*shape[:-1], out),
            [("weight", (out, shape[-1])), *([("bias", (out,))] if bias else [])],
            ["input"],
        )

    def layer_norm(self, x: int) -> int:
        """Layer normalisation over the last axis."""
        c = self.shape(x)[-1]
        return self._add(
            "layer_norm",
            [x],
            self.shape(x),
            [("weight", (c,)), ("bias", (c,))],
            ["input"],
            normalized_shape=(c,),
            eps=1e-6,
            cudnn_enable=False,
        )

    def attention(self, q: int, k: int, v: int) -> int:
        """Scaled dot-product attention."""
        out = (*self.shape(q)[:-1], self.shape(v)[-1])
        names = ["query", "key", "value"]
        return self._add("scaled_dot_product_attention", [q, k, v], out, (), names)

    def layout(self, x: int, op: str, out: Shape, copies: bool = False, **attrs: Any) -> int:
        """A view, or a copy in another layout."""
        name = "input" if op == "dropout" else "self"
        return self._add("copy" if copies else "view", [x], out, (), [name], **attrs, op=op)

    def flatten(self, x: int) -> int:
        """All axes but the first, merged."""
        n, *rest = self.shape(x)
        return self.layout(x, "flatten", (n, int(np.prod(rest))), start_dim=1, end_dim=-1)

    def permute(self, x: int, dims: tuple[int, ...]) -> int:
        """Axes in another order."""
        return self.layout(x, "permute", tuple(self.shape(x)[d] for d in dims), dims=dims)

    def transpose(self, x: int, a: int, b: int) -> int:
        """Two axes exchanged."""
        order = list(range(len(self.shape(x))))
        order[a], order[b] = order[b], order[a]
        out = tuple(self.shape(x)[d] for d in order)
        return self.layout(x, "transpose", out, dim0=a, dim1=b)

    def select(self, x: int, dim: int, index: int) -> int:
        """One index of an axis."""
        shape = self.shape(x)
        return self.layout(x, "select", shape[:dim] + shape[dim + 1 :], dim=dim, index=index)


class _Draw:
    """Random choices that resemble designed networks, half of them off the beaten track.

    ``reach`` is 1 on a slow device; on a fast one it is the factor by which batches may be larger.
    """

    def __init__(self, seed: int, reach: float = 1.0) -> None:
        self.random = np.random.default_rng(seed)
        self.reach = reach

    def one(self, choices: Sequence[int]) -> int:
        return int(choices[int(self.random.integers(len(choices)))])

    def name(self, choices: Sequence[str]) -> str:
        return choices[int(self.random.integers(len(choices)))]

    def chance(self, probability: float) -> bool:
        return bool(self.random.random() < probability)

    def width(self, low: int, high: int) -> int:
        """A log-uniform width; two thirds are multiples of 8 or more, as designers choose them."""
        value = float(np.exp(self.random.uniform(np.log(low), np.log(high))))
        step = 1
        if self.chance(0.67):
            step = self.one((8, 16, 32, 64)) if value >= 64 else self.one((8, 16))
        return max(step, round(value / step) * step, 1)

    def log_uniform(self, low: float, high: float) -> float:
        return float(np.exp(self.random.uniform(np.log(low), np.log(high))))

    def stage(self) -> tuple[int, int, int]:
        """Batch, resolution and input width of a place in a network."""
        size = self.one((112, 56, 56, 28, 28, 28, 14, 14, 14, 7, 7, 32, 16, 8, 35, 17, 20, 10, 40, 80))
        widest = {112: 96, 80: 128, 56: 256, 40: 256}.get(size, 512 if size > 20 else 1280)
        batch = 1 if self.chance(0.75) else self.one((2, 4, 8, 16, 32, 64))
        if batch > 1:
            size = min(size, max(7, int(112 * np.sqrt(self.reach / batch))))
        width = self.width(12 if size > 40 else 24, widest)
        # One 3x3 convolution of the place's own width stays below the limit of a whole network.
        while batch > 1 and 18 * batch * (size * width) ** 2 > self.reach * SLOW_FLOPS:
            batch //= 2
        return batch, size, width


def _norm_act(net: NetworkBuilder, x: int, act: str) -> int:
    return net.activation(net.batch_norm(x), act)


def _residual(draw: _Draw, limit: float, dtype: str) -> NetworkBuilder:
    """ResNet, ResNeXt: basic and bottleneck blocks, sometimes with the stem before them."""
    if draw.chance(0.25):
        batch, size = 1, draw.one((224, 160, 128))
        if draw.chance(0.2):
            batch, size = (8, 64) if draw.reach < 16 else (32, 224)
        net = NetworkBuilder((batch, 3, size, size), dtype)
        x = _norm_act(net, net.conv(-1, draw.width(16, 96), draw.one((7, 7, 3)), 2), "relu")
        x = net.pool(x, "max_pool2d", 3, 2, 1)
    else:
        batch, size, width = draw.stage()
        net = NetworkBuilder((batch, width, size, size), dtype)
        x = net.activation(-1, "relu", inplace=False)
    bottleneck = draw.chance(0.5)
    grouped = bottleneck and draw.chance(0.25)
    for block in range(6):
        if block and net.flops > limit:
            break
        width = net.shape(x)[1]
        changes = draw.chance(0.4) or (bottleneck and block == 0)
        stride = 2 if changes and net.shape(x)[2] >= 14 and draw.chance(0.6) else 1
        out = draw.width(max(16, width), min(2048, 2 * width + 16)) if changes else width
        y = x
        if bottleneck:
            inner = draw.width(max(8, out // 6), max(16, out // 2))
            groups = 1
            if grouped:
                groups = draw.one((2, 4, 8, 16, 32))
                inner = max(1, inner // groups) * groups
            y = _norm_act(net, net.conv(y, inner, 1), "relu")
            y = _norm_act(net, net.conv(y, inner, 3, stride, groups), "relu")
            y = net.batch_norm(net.conv(y, out, 1))
        else:
            y = _norm_act(net, net.conv(y, draw.width(max(8, out // 2), out + 8), 3, stride), "relu")
            y = net.batch_norm(net.conv(y, out, 3))
        if changes or stride > 1:
            x = net.batch_norm(net.conv(x, out, 1, stride))
        x = net.activation(net.binary("add", y, x, inplace=True), "relu")
    return _head(net, draw, x)


def _head(net: NetworkBuilder, draw: _Draw, x: int) -> NetworkBuilder:
    if draw.chance(0.5):
        classes = draw.one((10, 100, 1000, 1000))
        pooled = net.mean(x, (2, 3)) if draw.chance(0.4) else net.flatten(net.global_pool(x))
        net.linear(pooled, classes)
    return net


def _mobile(draw: _Draw, limit: float, dtype: str) -> NetworkBuilder:
    """MobileNetV2 and V3, EfficientNet: inverted residuals, sometimes with squeeze and excite."""
    act = draw.name(("hardtanh", "hardtanh", "hardswish", "silu", "relu"))
    if draw.chance(0.3):
        net = NetworkBuilder((1, 3, *[draw.one((224, 160, 96))] * 2), dtype)
        x = _norm_act(net, net.conv(-1, draw.width(8, 48), 3, 2), act)
        if draw.chance(0.5):
            x = _norm_act(net, net.conv(x, net.shape(x)[1], 3, 1, net.shape(x)[1]), act)
            x = net.batch_norm(net.conv(x, draw.width(8, 32), 1))
    else:
        batch, size, width = draw.stage()
        net = NetworkBuilder((batch, max(8, width // 3), size, size), dtype)
        x = net.activation(-1, "relu", inplace=False)
    excite = draw.chance(0.3)
    for block in range(8):
        if block and net.flops > limit / 2:
            break
        width = net.shape(x)[1]
        inner = width * draw.one((3, 4, 6, 6)) if draw.chance(0.6) else draw.width(2 * width, 7 * width)
        changes = draw.chance(0.4)
        stride = 2 if changes and net.shape(x)[2] >= 14 and draw.chance(0.6) else 1
        out = draw.width(max(8, width), 2 * width + 8) if changes else width
        y = _norm_act(net, net.conv(x, inner, 1), act)
        y = _norm_act(net, net.conv(y, inner, draw.one((3, 3, 5, 7)), stride, inner), act)
        if excite:
            s = net.global_pool(y)
            s = net.activation(net.conv(s, max(4, inner // draw.one((4, 16, 24))), 1, bias=True), act)
            s = net.conv(s, inner, 1, bias=True)
            gate = "hardsigmoid" if act == "hardswish" else "sigmoid"
            y = net.binary("mul", y, net.activation(s, gate, inplace=False))
        y = net.batch_norm(net.conv(y, out, 1))
        x = y if changes else net.binary("add", x, y)
    if draw.chance(0.3):
        x = _norm_act(net, net.conv(x, draw.width(320, 1536), 1), act)
    return _head(net, draw, x)


def _plain(draw: _Draw, limit: float, dtype: str) -> NetworkBuilder:
    """VGG, AlexNet: plain wide convolutions with bias, large resolutions, large linear layers."""
    limit *= 4
    if draw.chance(0.35):
        net = NetworkBuilder((1, 3, *[draw.one((224, 224, 160, 112, 64))] * 2), dtype)
        x = -1
        width = draw.width(24, 72)
    else:
        size = draw.one((224, 112, 112, 56, 56, 28, 28, 14, 14, 32, 16))
        width = draw.width(32, {224: 72, 112: 144, 56: 288}.get(size, 544))
        batch = draw.one((1, 1, 1, 1, 4)) if size <= 32 else 1
        net = NetworkBuilder((batch, width, size, size), dtype)
        x = net.activation(-1, "relu", inplace=False)
    normed, bias = draw.chance(0.2), draw.chance(0.85)
    for layer in range(6):
        if layer and net.flops > limit:
            break
        x = net.conv(x, width, draw.one((3, 3, 3, 3, 5)) if net.shape(x)[1] < 128 else 3, bias=bias)
        x = net.activation(net.batch_norm(x) if normed else x, "relu")
        if draw.chance(0.35) and net.shape(x)[2] >= 14:
            x = net.pool(x, "max_pool2d", 2, 2)
            width = min(544, draw.width(width, 2 * width + 8))
    if draw.chance(0.4):
        hidden = draw.width(256, 4352)
        x = net.flatten(net.global_pool(x, draw.one((1, 2, 4, 7))))
        x = net.activation(net.linear(x, hidden), "relu")
        x = net.layout(x, "dropout", net.shape(x), p=0.5, train=False)
        x = net.activation(net.linear(x, draw.width(256, 4352)), "relu")
        net.linear(x, draw.one((10, 1000)))
    return net


def _branches(draw: _Draw, limit: float, dtype: str) -> NetworkBuilder:
    """Inception: parallel branches, long and flat kernels, concatenation; now and then DenseNet."""
    batch, size, width = draw.stage()
    net = NetworkBuilder((batch, width, size, size), dtype)
    x = net.activation(-1, "relu", inplace=False)
    dense = draw.chance(0.25)
    wide = draw.one((5, 7))
    for block in range(5):
        if block and net.flops > limit:
            break
        width = net.shape(x)[1]

        def unit(source: int, out: int, kernel: int | tuple[int, int] = 1) -> int:
            return _norm_act(net, net.conv(source, out, kernel), "relu")

        if dense:
            y = net.activation(net.batch_norm(x), "relu")
            y = unit(y, draw.width(64, 160))
            x = net.cat([x, net.conv(y, draw.width(12, 64), 3)])
            continue
        narrow = max(8, width // 8)
        branches = [unit(x, draw.width(narrow, 384)), unit(x, draw.width(narrow, 256))]
        branches[1] = unit(branches[1], draw.width(narrow, 384), 3)
        if draw.chance(0.7):
            y = unit(x, draw.width(narrow, 192))
            for kernel in ((1, wide), (wide, 1)) if draw.chance(0.6) else ((3, 3), (3, 3)):
                y = unit(y, draw.width(narrow, 224), kernel)
            branches.append(y)
        if draw.chance(0.8):
            y = net.pool(x, draw.name(("avg_pool2d", "max_pool2d")), 3, 1, 1)
            branches.append(unit(y, draw.width(narrow, 192)))
        x = net.cat(branches)
        if draw.chance(0.3) and net.shape(x)[2] >= 14:
            y = net.conv(x, draw.width(narrow, 384), 3, 2, padding=0)
            x = net.cat([_norm_act(net, y, "relu"), net.pool(x, "max_pool2d", 3, 2)])
    return _head(net, draw, x)


def _transformer(draw: _Draw, limit: float, dtype: str) -> NetworkBuilder:
    """ViT: patches, attention, MLP; the fused and the split way of writing query, key and value."""
    heads, head = draw.one((2, 3, 4, 6, 8, 12)), draw.one((32, 64, 64, 64, 48))
    width = heads * head
    patch = draw.one((16, 16, 14, 32))
    side = draw.one((7, 8, 14, 14, 14, 16))
    batch = 1 if draw.chance(0.8) else draw.one((2, 4, 8)) * (1 if draw.reach < 16 else 4)
    net = NetworkBuilder((batch, 3, side * patch, side * patch), dtype)
    x = net.conv(-1, width, patch, patch, bias=True, padding=0)
    x = net.layout(x, "flatten", (batch, width, side * side), start_dim=2, end_dim=-1)
    x = net.transpose(x, 1, 2)
    x = net.cat([net.layout(x, "slice", (batch, 1, width), dim=1, start=0, end=1, step=1), x], 1)
    tokens = net.shape(x)[1]
    x = net.parameter_binary("add", x, (1, tokens, width))
    for block in range(4):
        if block and net.flops > limit:
            break
        y = net.linear(net.layer_norm(x), 3 * width)
        y = net.layout(y, "view", (batch, tokens, 3, heads, head), size=(batch, tokens, 3, heads, head))
        y = net.permute(y, (2, 0, 3, 1, 4))
        if draw.chance(0.4):
            y = net.layout(y, "contiguous", net.shape(y), copies=True)
        q, k, v = (net.select(y, 0, i) for i in range(3))
        y = net.transpose(net.attention(q, k, v), 1, 2)
        shape = (batch, tokens, width)
        # Attention on the CPU returns tokens before heads in memory, so that merging heads is a view.
        y = net.layout(y, "reshape", shape, shape=shape)
        y = net.layout(net.linear(y, width), "dropout", shape, p=0.0, train=False)
        x = net.binary("add", x, y)
        y = net.linear(net.layer_norm(x), draw.width(width, 4 * width + 8))
        y = net.activation(y, draw.name(("gelu", "gelu", "gelu", "silu")), inplace=False)
        y = net.layout(net.linear(y, width), "dropout", shape, p=0.0, train=False)
        x = net.binary("add", x, y)
    x = net.select(net.layer_norm(x), 1, 0)
    net.linear(x, draw.one((10, 1000)))
    return net


def _pointwise(draw: _Draw, limit: float, dtype: str) -> NetworkBuilder:
    """ConvNeXt: large depthwise kernels, channels last for norm and MLP, a learned scale."""
    batch, size, width = draw.stage()
    net = NetworkBuilder((batch, width, size, size), dtype)
    x = net.activation(-1, "relu", inplace=False)
    for block in range(4):
        if block and net.flops > limit:
            break
        y = net.conv(x, width, 7, 1, width, bias=True)
        y = net.layer_norm(net.permute(y, (0, 2, 3, 1)))
        y = net.activation(net.linear(y, draw.width(2 * width, 4 * width + 8)), "gelu")
        y = net.parameter_binary("mul", net.linear(y, width), (width,))
        x = net.binary("add", net.permute(y, (0, 3, 1, 2)), x)
    return net


FAMILIES: tuple[tuple[Callable[[_Draw, float, str], NetworkBuilder], float], ...] = (
    (_residual, 0.25),
    (_mobile, 0.23),
    (_plain, 0.18),
    (_branches, 0.17),
    (_transformer, 0.12),
    (_pointwise, 0.05),
)


SLOW_FLOPS = 1.5e9
"""Up to this bound on their FLOPs, sampled networks are those of a slow device."""


def sample_network(
    seed: int, *, largest_flops: float = SLOW_FLOPS, dtype: str = "float32"
) -> tuple[Step, ...]:
    """The random network of a seed: 5 to some 100 operators of one family.

    Its FLOPs are at most a few times ``largest_flops``, which bounds the time of one pass.
    """
    draw = _Draw(seed, max(1.0, largest_flops / SLOW_FLOPS))
    weights = np.array([weight for _, weight in FAMILIES])
    family = FAMILIES[int(draw.random.choice(len(FAMILIES), p=weights / weights.sum()))][0]
    return tuple(family(draw, draw.log_uniform(largest_flops / 30, largest_flops), dtype).steps)


def width_sweep(
    kind: str, axis: str, widths: Sequence[int], dtype: str = "float32"
) -> list[tuple[Step, ...]]:
    """One-operator networks whose input or output width runs over ``widths``: to find blocks.

    ``kind`` is ``conv2d``, ``depthwise`` or ``linear``; ``axis`` is ``in`` or ``out``.
    """
    networks = []
    for width in widths:
        if kind == "linear":
            net = NetworkBuilder((96, width if axis == "in" else 256), dtype)
            net.linear(-1, width if axis == "out" else 256)
        elif kind == "depthwise":
            net = NetworkBuilder((1, width, 28, 28), dtype)
            net.conv(-1, width, 3, groups=width)
        else:
            net = NetworkBuilder((1, width if axis == "in" else 64, 14, 14), dtype)
            net.conv(-1, width if axis == "out" else 64, 3)
        networks.append(tuple(net.steps))
    return networks
