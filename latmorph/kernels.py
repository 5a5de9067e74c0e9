"""Kernels of ONNX Runtime: what its optimised graph runs, each priced by a handler as torch's operators are.

A kernel's kind is its domain and its operator: ``onnx.Gemm``, ``microsoft.FusedConv``, ``nchwc.Conv``, where
``nchwc`` stands for the layout in which channels lie in blocks. There, shapes are those that are stored
and computed, whole blocks; so FLOPs are those that are done. Operands have their names in the operator's
schema; attributes are the operator's own, and ``axes``, ``perm`` and the like also where the operator
takes them as constant operands.

Importing this module makes :func:`latmorph.ops.handler_of` know them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from latmorph import ops
from latmorph.ops import Handler, is_one, prod
from latmorph.opspec import OpSpec, Scalar

DOMAINS = {"": "onnx", "ai.onnx": "onnx", "com.microsoft": "microsoft", "com.microsoft.nchwc": "nchwc"}
"""The first part of a kind, by the domain of the operator; other domains stand for themselves."""

ACTIVATIONS = ("", "Relu", "Clip", "LeakyRelu", "HardSigmoid", "Sigmoid", "Tanh")
"""Functions that a convolution may apply to what it writes, from nothing to the dearest."""


def kind_of(domain: str, operator: str) -> str:
    """The kind of an operator of a model; of one without a handler, marked as unknown."""
    kind = f"{DOMAINS.get(domain, domain)}.{operator}"
    return kind if kind in _BY_KIND else ops.UNKNOWN + kind


def operand_names(kind: str, count: int) -> tuple[str, ...]:
    """Names of a kernel's first ``count`` operands; the ones that no formula reads are numbered."""
    handler = ops.handler_of(kind)
    named = handler.operands if isinstance(handler, KernelHandler) else ()
    return (*named, *(f"in{k}" for k in range(len(named), count)))[:count]


def is_elementwise(kind: str) -> bool:
    """Whether a kernel's output is its operands, broadcast."""
    return isinstance(ops.handler_of(kind), Elementwise)


def _kinds(*named: tuple[str, str]) -> tuple[str, ...]:
    """Kinds from pairs of a domain and names in it."""
    return tuple(f"{domain}.{name}" for domain, names in named for name in names.split())


class KernelHandler(Handler):
    """What is common to all kernels: every operand is read once, every output written once."""

    kinds: tuple[str, ...] = _kinds(
        ("onnx", "Expand Tile Pad DepthToSpace SpaceToDepth Trilu ScatterElements ScatterND OneHot"),
        ("onnx", "Upsample Col2Im GridSample ReverseSequence RotaryEmbedding"),
        ("microsoft", "RotaryEmbedding GridSample"),
        ("nchwc", "Upsample"),
    )
    """The kinds that the handler is of."""

    operands: tuple[str, ...] = ("X",)
    """Names of the operands that the formulas read, in order."""

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        return {"operands": len(spec.inputs), "numel_last": spec.inputs[-1].numel}


class Resize(KernelHandler):
    """Pictures in another size: nearest, linear and cubic have code of their own."""

    kinds = _kinds(("onnx", "Resize"))

    def family(self, spec: OpSpec) -> str:
        return f"onnx.Resize.{spec.attr('mode', 'nearest')}"


class Elementwise(KernelHandler):
    """Functions of one or several tensors, element by element, with broadcasting."""

    kinds = _kinds(
        ("onnx", "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast CastLike Ceil Celu Clip Cos Cosh Elu"),
        (
            "onnx",
            "Erf Exp Floor Gelu HardSigmoid HardSwish IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal",
        ),
        ("onnx", "Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh"),
        (
            "onnx",
            "ThresholdedRelu Add Sub Mul Div Pow Mod Max Min Sum Mean PRelu Where And Or Xor Equal Less",
        ),
        ("onnx", "Greater LessOrEqual GreaterOrEqual BitShift BitwiseAnd BitwiseOr BitwiseXor"),
        ("microsoft", "Gelu QuickGelu FastGelu BiasGelu BiasAdd"),
    )

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        return ops.broadcast_features(spec)


class Conv(KernelHandler):
    """``X (N, C, *size)``, ``W (O, C / groups, *kernel)``, ``B (O)``, ``Sum`` and output ``(N, O, *size)``.

    The kernels behind one operator differ: in blocks, the first layer reads plain channels, and 1x1 and
    depthwise ones have code of their own; otherwise a matrix product runs on patches, group by group.
    """

    kinds = _kinds(("onnx", "Conv"), ("microsoft", "FusedConv"), ("nchwc", "Conv"))
    operands = ("X", "W", "B", "Sum")

    def flops(self, spec: OpSpec) -> Scalar:
        return 2 * spec.out.numel * prod(spec["W"].shape[1:])

    def family(self, spec: OpSpec) -> str:
        layout = "nchwc" if spec.kind.startswith("nchwc.") else "onnx"
        return f"{layout}.{self._form(spec)}"

    def _form(self, spec: OpSpec) -> str:
        groups, weight = spec.attr("group", 1), spec["W"].shape
        if groups > 1:
            return "depthwise" if weight[1] == 1 else "grouped"
        if spec.attr("plain_input"):
            return "first"
        return "pointwise" if all(k == 1 for k in weight[2:]) else "conv"

    def widths(self, spec: OpSpec) -> tuple[Scalar, Scalar]:
        groups, weight = spec.attr("group", 1), spec["W"].shape
        if groups > 1 and weight[1] == 1:
            return spec["X"].shape[1], spec.out.shape[1]
        return weight[1], weight[0] // groups

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        weight = spec["W"].shape
        pads = spec.attr("pads", ())
        return {
            "groups": spec.attr("group", 1),
            "rank": len(weight) - 2,
            "kernel": prod(weight[2:]),
            "kernel_last": weight[-1],
            "stride": prod(spec.attr("strides", ())),
            "dilation": prod(spec.attr("dilations", ())),
            "padded": int(any(pads)),
            "pixels_in": prod(spec["X"].shape[2:]),
            "pixels_out": prod(spec.out.shape[2:]),
            "row": spec.out.shape[-1],
            "bias": int(spec.operand("B") is not None),
            "sum": int(spec.operand("Sum") is not None),
            "activation": _activation(spec),
        }


class ConvTranspose(KernelHandler):
    """``X (N, C, *size)``, ``W (C, O / groups, *kernel)``."""

    kinds = _kinds(("onnx", "ConvTranspose"))
    operands = ("X", "W", "B")

    def flops(self, spec: OpSpec) -> Scalar:
        return 2 * spec["X"].numel * prod(spec["W"].shape[1:])

    def widths(self, spec: OpSpec) -> tuple[Scalar, Scalar]:
        groups = spec.attr("group", 1)
        return spec["W"].shape[0] // groups, spec["W"].shape[1]

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        return {
            "groups": spec.attr("group", 1),
            "kernel": prod(spec["W"].shape[2:]),
            "stride": prod(spec.attr("strides", ())),
            "pixels_in": prod(spec["X"].shape[2:]),
            "pixels_out": prod(spec.out.shape[2:]),
        }


class Product(KernelHandler):
    """Matrix products ``A (..., M, K) @ B (..., K, N)``, either transposed where an attribute says so.

    A constant ``B`` is packed once, when the network is loaded, and shared by all of the batch.
    """

    kinds = _kinds(("onnx", "Gemm MatMul"), ("microsoft", "FusedMatMul FusedGemm TransposeMatMul"))
    operands = ("A", "B", "C")

    def flops(self, spec: OpSpec) -> Scalar:
        return 2 * spec.out.numel * self._depth(spec)

    def _depth(self, spec: OpSpec) -> Scalar:
        shape = spec["A"].shape
        if not spec.attr("transA", 0):
            return shape[-1]
        return shape[0] if spec.attr("transBatchA", 0) else shape[max(-2, -len(shape))]

    def family(self, spec: OpSpec) -> str:
        return "onnx.Gemm" if spec["B"].parameter else "onnx.MatMul"

    def widths(self, spec: OpSpec) -> tuple[Scalar, Scalar]:
        return self._depth(spec), (*spec.out.shape, 1)[-1]

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        out = spec.out.shape
        packed = spec["B"].parameter and len(spec["B"].shape) <= 2
        return {
            "rows": prod(out[:-1]) if packed else (1, *out)[-2],
            "products": 1 if packed else prod(out[:-2]),
            "trans_a": spec.attr("transA", 0),
            "trans_b": spec.attr("transB", 0),
            "bias": int(spec.operand("C") is not None),
            "activation": _activation(spec),
        }


class Einsum(KernelHandler):
    """A sum of products over the letters of ``equation``; of one operand, a sum without products."""

    kinds = _kinds(("onnx", "Einsum"))

    def flops(self, spec: OpSpec) -> Scalar:
        sizes: dict[str, Scalar] = {}
        for letters, tensor in zip(self._read(spec), spec.inputs, strict=True):
            # An ellipsis stands for the axes that have no letter.
            lead = len(tensor.shape) - len(letters.replace("...", ""))
            names = letters.replace("...", "".join(map(str, range(lead))))
            sizes.update(zip(names, tensor.shape, strict=True))
        return 2 * (len(spec.inputs) - 1) * prod(list(sizes.values()))

    def _read(self, spec: OpSpec) -> list[str]:
        return str(spec.attr("equation", "")).replace(" ", "").partition("->")[0].split(",")

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        return {"operands": len(spec.inputs), "rank": len(spec.out.shape), "row": (1, *spec.out.shape)[-1]}


class Attention(KernelHandler):
    """Scaled dot-product attention, of heads side by side ``(batch, rows, heads * size)`` or apart."""

    kinds = _kinds(("onnx", "Attention"), ("microsoft", "MultiHeadAttention"))
    operands = ("Q", "K", "V")

    def flops(self, spec: OpSpec) -> Scalar:
        q, k, v = (spec[name].shape for name in self.operands)
        return 2 * prod(q[:-1]) * k[-2] * (q[-1] + v[-1])

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        heads = spec.attr("num_heads", spec.attr("q_num_heads", 1))
        return {"rows": spec["Q"].shape[-2], "keys": spec["K"].shape[-2], "heads": heads}


class PackedAttention(KernelHandler):
    """Attention with its projection: ``X (batch, rows, width)``, ``W (width, 3 * heads * size)``."""

    kinds = _kinds(("microsoft", "Attention"))
    operands = ("X", "W", "B")

    def flops(self, spec: OpSpec) -> Scalar:
        batch, rows, width = spec["X"].shape
        projected = spec["W"].shape[1]
        return 2 * batch * rows * (width * projected + 2 * rows * projected // 3)

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        return {"rows": spec["X"].shape[1], "heads": spec.attr("num_heads", 1)}


class Recurrent(KernelHandler):
    """``X (time, batch, in)``, ``W (directions, gates * out, in)``, ``R (directions, gates * out, out)``."""

    kinds = _kinds(("onnx", "LSTM GRU RNN"))
    operands = ("X", "W", "R", "B")

    def flops(self, spec: OpSpec) -> Scalar:
        return 2 * prod(spec["X"].shape[:2]) * (spec["W"].numel + spec["R"].numel)

    def widths(self, spec: OpSpec) -> tuple[Scalar, Scalar]:
        return spec["W"].shape[2], spec["R"].shape[2]

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        return {"time": spec["X"].shape[0], "batch_rows": spec["X"].shape[1]}


class Pool(KernelHandler):
    """Pooling, in blocks or not."""

    kinds = _kinds(
        ("onnx", "MaxPool AveragePool LpPool GlobalMaxPool GlobalAveragePool GlobalLpPool"),
        ("nchwc", "MaxPool AveragePool GlobalMaxPool GlobalAveragePool"),
    )

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        return {
            "kernel": prod(spec.attr("kernel_shape", ())),
            "stride": prod(spec.attr("strides", ())),
            "pixels_in": prod(spec["X"].shape[2:]),
            "pixels_out": prod(spec.out.shape[2:]),
            "row": spec["X"].shape[-1],
        }


class Reorder(KernelHandler):
    """From plain channels to blocks of them, or back."""

    kinds = _kinds(("nchwc", "ReorderInput ReorderOutput"))

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        return {"pixels": prod(spec.out.shape[2:]), "channels_last": spec.attr("channels_last", 0)}


class Rows(KernelHandler):
    """Norms and softmax: one row after another along ``axis``."""

    kinds = _kinds(
        (
            "onnx",
            "Softmax LogSoftmax Hardmax LayerNormalization RMSNormalization SimplifiedLayerNormalization",
        ),
        ("onnx", "LpNormalization"),
        ("microsoft", "SkipLayerNormalization SkipSimplifiedLayerNormalization BiasSoftmax"),
    )
    axis = -1

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        shape = spec["X"].shape
        axis = spec.attr("axis", self.axis) % max(len(shape), 1)
        return {"row": shape[axis], "inner": prod(shape[axis + 1 :]), "operands": len(spec.inputs)}


class ChannelNorm(Rows):
    """Norms whose scale and shift are one a channel."""

    kinds = _kinds(
        ("onnx", "BatchNormalization InstanceNormalization GroupNormalization LRN MeanVarianceNormalization"),
    )
    axis = 1


class Reduce(KernelHandler):
    """Reductions over ``axes``, or over ``axis``."""

    kinds = _kinds(
        ("onnx", "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum"),
        ("onnx", "ReduceLogSumExp ReduceSumSquare ArgMax ArgMin CumSum TopK"),
    )

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        shape = spec["X"].shape
        axes = sorted(a % max(len(shape), 1) for a in _tuple(spec.attr("axes", spec.attr("axis", -1))))
        return {
            "row": prod([shape[a] for a in axes] if shape else ()),
            "inner": prod(shape[axes[-1] + 1 :] if axes else ()),
        }


class View(KernelHandler):
    """Other names for the axes of the same memory: no work, a dispatch."""

    kinds = _kinds(("onnx", "Reshape Squeeze Unsqueeze Flatten Identity Shape Size"))

    def bytes(self, spec: OpSpec) -> Scalar:
        return 0

    def family(self, spec: OpSpec) -> str:
        return "onnx.view"


class Transpose(KernelHandler):
    """A copy in another order of axes; what lies together in both is copied in one run."""

    kinds = _kinds(("onnx", "Transpose"))

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        shape = spec["X"].shape
        perm = spec.attr("perm", tuple(range(len(shape)))[::-1])
        # Axes of size one move nothing.
        perm = [a for a in perm if not is_one(shape[a])]
        kept = [a for a, b in zip(reversed(perm), sorted(perm, reverse=True), strict=True)]
        moved = [a != b for a, b in zip(reversed(perm), sorted(perm, reverse=True), strict=True)]
        run = kept[: moved.index(True)] if True in moved else kept
        return {"run": prod([shape[a] for a in run]), "moved": sum(moved), "row": (1, *shape)[-1]}


class Pieces(KernelHandler):
    """Concatenation, splitting, slicing, gathering along ``axis``: runs of what lies behind the axis."""

    kinds = _kinds(("onnx", "Concat Split Slice Gather GatherElements GatherND"))

    def bytes(self, spec: OpSpec) -> Scalar:
        return 2 * sum((t.bytes for t in spec.outputs), 0)

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        out = spec.out.shape
        axis = min(a % max(len(out), 1) for a in _tuple(spec.attr("axis", spec.attr("axes", 0))) or (0,))
        return {
            "pieces": len(spec.inputs) + len(spec.outputs),
            "run": prod(out[axis:]),
            "inner": prod(out[axis + 1 :]),
        }


def _activation(spec: OpSpec) -> int:
    name = spec.attr("activation", "")
    return ACTIVATIONS.index(name) if name in ACTIVATIONS else len(ACTIVATIONS)


def _tuple(value: Any) -> Sequence[Any]:
    return value if isinstance(value, tuple | list) else (value,)


_ALL: tuple[KernelHandler, ...] = (
    *(
        Conv(),
        ConvTranspose(),
        Product(),
        Einsum(),
        Attention(),
        PackedAttention(),
        Recurrent(),
        Pool(),
        Reorder(),
    ),
    *(
        Rows(),
        ChannelNorm(),
        Reduce(),
        View(),
        Transpose(),
        Pieces(),
        Resize(),
        Elementwise(),
        KernelHandler(),
    ),
)
_BY_KIND: dict[str, Handler] = {kind: handler for handler in _ALL for kind in handler.kinds}
ops.register(_BY_KIND)
