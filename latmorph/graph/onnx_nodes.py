"""How the nodes of an .onnx file are read: one function an operator of ONNX's.

To teach latmorph to read an operator, add a function to this file. Nothing else needs to know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from latmorph import ops
from latmorph.graph.graph import Node, Tensor
from latmorph.onnx_ops import import_onnx
from latmorph.opspec import OpSpec, TensorSpec

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Product:
    """A product with a weight, whose bias is added by the next node."""

    x: str
    weight: str
    shapes: Mapping[str, Shape]


class Values:
    """The values of a file that are known so far, and the nodes and tensors made of it.

    ``types`` are those of all values; ``weights`` the file's own constants, whose data may lie elsewhere;
    ``constants`` the values of small ones, and of what the file computes from them.
    """

    def __init__(self) -> None:
        self.onnx = import_onnx()
        self.opset = 1
        self.tensors: list[Tensor] = []
        self.nodes: list[Node] = []
        self.ids: dict[str, int] = {}
        self.types: dict[str, onnx.TypeProto] = {}
        self.constants: dict[str, np.ndarray] = {}
        self.weights: dict[str, onnx.TensorProto] = {}
        self.stand_ins: dict[str, str] = {}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        self.products: dict[str, Product] = {}
        self.unknown: dict[str, list[str]] = {}

    def shape(self, name: str) -> Shape:
        """Shape of a value that is known."""
        return tuple(d.dim_value for d in self.types[name].tensor_type.shape.dim)

    def dtype(self, name: str) -> str:
        number = self.types[name].tensor_type.elem_type
        name = str(self.onnx.TensorProto.DataType.Name(number)).lower()
        return {"float": "float32", "double": "float64"}.get(name, name)

    def tensor(self, name: str, shape: Shape | None = None, trainable: bool = True) -> int:
        """Number of a value's tensor; a weight is laid out as the first operator to read it has it."""
        if name not in self.ids:
            dtype = self.dtype(name)
            weight = self.is_weight(name)
            learns = trainable and name in self.weights and "float" in dtype
            self.ids[name] = len(self.tensors)
            own = self.shape(name) if shape is None else shape
            self.tensors.append(Tensor(own, dtype, name if weight else None, learns))
        return self.ids[name]

    def is_weight(self, name: str) -> bool:
        return name in self.weights or name in self.constants

    def adds_nothing(self, name: str) -> bool:
        """Whether a value is absent or a constant zero that the file computes."""
        return not name or (name not in self.weights and not self.constants.get(name, np.ones(1)).any())

    def number(self, name: str) -> int | float | None:
        """The one element of a constant that has only one."""
        array = self.constants.get(name)
        return array.reshape(-1)[0].item() if array is not None and array.size == 1 else None

    def list_of(self, name: str) -> list[Any] | None:
        array = self.constants.get(name)
        return None if array is None else [v.item() for v in array.reshape(-1)]

    def define(self, name: str, like: str, shape: Shape) -> None:
        """A value of the reader's own, of another's dtype."""
        element = self.types[like].tensor_type.elem_type
        self.types[name] = self.onnx.helper.make_tensor_type_proto(element, shape)


class Call:
    """One node of the file, and how to add the operators that it stands for."""

    def __init__(self, values: Values, proto: onnx.NodeProto, name: str) -> None:
        self.values = values
        self.proto = proto
        self.name = name
        self.op = proto.op_type
        self.x = proto.input[0] if proto.input else ""
        self.out = proto.output[0] if proto.output else ""
        self.attributes = {a.name: values.onnx.helper.get_attribute_value(a) for a in proto.attribute}

    def input(self, i: int) -> str:
        """The i-th operand's name; "" where there is none."""
        return str(self.proto.input[i]) if i < len(self.proto.input) else ""

    def attr(self, name: str, default: Any = None) -> Any:
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def shape(self, i: int = 0) -> Shape:
        return self.values.shape(self.input(i))

    @property
    def out_shape(self) -> Shape:
        return self.values.shape(self.out)

    def ints(self, name: str, i: int) -> list[int] | None:
        """A list that newer opsets read as an operand and older ones as an attribute; None if absent."""
        if self.input(i):
            return self.values.list_of(self.input(i))
        value = self.attr(name)
        return None if value is None else [int(v) for v in np.atleast_1d(value)]

    def add(
        self,
        kind: str,
        operands: Sequence[tuple[str, str]],
        outputs: Sequence[str] | None = None,
        shapes: Mapping[str, Shape] | None = None,
        **attrs: Any,
    ) -> bool:
        """Add an operator that reads ``operands``, pairs of the schema's name and the value's; always true.

        ``shapes`` lays weights out otherwise than the file does.
        """
        values = self.values
        read = [(name, values.tensor(value, (shapes or {}).get(value))) for name, value in operands if value]
        made = [values.tensor(o) for o in (self.proto.output if outputs is None else outputs) if o]
        tensors = values.tensors
        spec = OpSpec(
            kind,
            tuple(
                TensorSpec(name, tensors[t].shape, tensors[t].dtype, tensors[t].parameter is not None)
                for name, t in read
            ),
            tuple(TensorSpec("out", tensors[t].shape, tensors[t].dtype) for t in made),
            tuple((key, _plain(value)) for key, value in attrs.items()),
        )
        values.nodes.append(Node(self.name, spec, tuple(t for _, t in read), tuple(made), self.module))
        return True

    def view(self, op: str, copies: bool = False, **attrs: Any) -> bool:
        return self.add("copy" if copies else "view", [("self", self.x)], op=op, **attrs)

    def unknown(self) -> None:
        """Add the node as an operator that has no handler, under its own name."""
        name = f"{self.proto.domain}.{self.op}" if self.proto.domain not in ("", "ai.onnx") else self.op
        self.values.unknown.setdefault(name, []).append(self.module or self.name)
        read = [("input", n) for n in _names_read(self.proto) if n in self.values.types]
        for output in self.proto.output:  # a shape that nobody knows is none, and what reads it unknown too
            if output and output not in self.values.types:
                self.values.tensors.append(Tensor((), "float32"))
                self.values.ids[output] = len(self.values.tensors) - 1
        self.add(ops.UNKNOWN + name, read)

    @property
    def module(self) -> str:
        """The module that the node was exported from, where the file says it."""
        said = {p.key: p.value for p in self.proto.metadata_props}
        scopes = re.findall(r"'([^']*)'", said.get("pkg.torch.onnx.name_scopes", ""))
        if len(scopes) > 1:
            return str(scopes[-2])
        return self.name.strip("/").rpartition("/")[0].replace("/", ".") if "/" in self.name else ""


def _names_read(proto: onnx.NodeProto) -> list[str]:
    """The values that a node reads, those that the graphs inside it read included."""
    inner = [a.g for a in proto.attribute if a.HasField("g")]
    names = [*proto.input, *(n for graph in inner for node in graph.node for n in _names_read(node))]
    return list(dict.fromkeys(name for name in names if name))


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_plain(v) for v in value)
    return value.item() if isinstance(value, np.generic) else value


Write = Callable[[Call], bool]
TABLE: dict[str, Write] = {}


def reads(*names: str) -> Callable[[Write], Write]:
    """Enters a function in the table, under ONNX's names. False says that the node has no equivalent."""

    def enter(function: Write) -> Write:
        TABLE.update(dict.fromkeys(names, function))
        return function

    return enter


# Convolutions, products, norms.


def _weighted(at: Call) -> list[tuple[str, str]]:
    """The operands of a convolution; a bias of zeros is none."""
    bias = "" if at.values.adds_nothing(at.input(2)) else at.input(2)
    return [("input", at.x), ("weight", at.input(1)), ("bias", bias)]


def _window(at: Call, kernel: Sequence[int]) -> dict[str, Any]:
    """Stride, dilation and padding; of padding that differs from side to side, the side before."""
    rank = len(kernel)
    stride = at.attr("strides") or [1] * rank
    dilation = at.attr("dilations") or [1] * rank
    pads = list(at.attr("pads") or [0] * 2 * rank)[:rank]
    if str(at.attr("auto_pad", "NOTSET")).startswith("SAME"):
        sizes = zip(at.shape()[2:], at.out_shape[2:], kernel, stride, dilation, strict=True)
        pads = [max(0, (o - 1) * s + d * (k - 1) + 1 - i) // 2 for i, o, k, s, d in sizes]
    return {"stride": stride, "padding": pads, "dilation": dilation}


@reads("Conv")
def _conv(at: Call) -> bool:
    kernel = at.shape(1)[2:]
    if not 1 <= len(kernel) <= 3:
        return False
    groups = int(at.attr("group", 1))
    return at.add(f"conv{len(kernel)}d", _weighted(at), **_window(at, kernel), groups=groups)


@reads("ConvTranspose")
def _conv_transpose(at: Call) -> bool:
    kernel = at.shape(1)[2:]
    if not 1 <= len(kernel) <= 3:
        return False
    window = _window(at, kernel)
    dilation = window.pop("dilation")
    extra = at.attr("output_padding") or [0] * len(kernel)
    settings = {**window, "output_padding": extra, "groups": int(at.attr("group", 1)), "dilation": dilation}
    return at.add(f"conv_transpose{len(kernel)}d", _weighted(at), **settings)


def _turned(at: Call, name: str) -> dict[str, Shape]:
    """The layout of a weight ``(I, O)`` as torch holds it, ``(O, I)``."""
    i, o = at.values.shape(name)
    return {name: (o, i)}


@reads("Gemm")
def _gemm(at: Call) -> bool:
    a, b, c = at.x, at.input(1), at.input(2)
    plain = at.attr("alpha", 1.0) == at.attr("beta", 1.0) == 1.0 and not at.attr("transA", 0)
    bias = not c or (at.values.is_weight(c) and at.values.shape(c) == at.out_shape[-1:])
    if plain and bias and at.values.is_weight(b):
        shapes = {} if at.attr("transB", 0) else _turned(at, b)
        return at.add("linear", [("input", a), ("weight", b), ("bias", c)], shapes=shapes)
    if plain and bias and at.attr("transB", 0):
        return at.add("linear", [("input", a), ("weight", b), ("bias", c)])
    if at.attr("transA", 0) or at.attr("transB", 0):
        return False
    if not c:
        return at.add("mm", [("self", a), ("mat2", b)])
    factors: dict[str, Any] = {"beta": float(at.attr("beta", 1.0)), "alpha": float(at.attr("alpha", 1.0))}
    return at.add("addmm", [("self", c), ("mat1", a), ("mat2", b)], **factors)


@reads("MatMul")
def _matmul(at: Call) -> bool:
    values, weight = at.values, at.input(1)
    source = values.stand_ins.get(weight)
    shapes: dict[str, Shape] = {}
    if source is None and values.is_weight(weight) and len(at.shape(1)) == 2:
        source, shapes = weight, _turned(at, weight)
    if source is None or len(at.shape()) < 2:
        return at.add("matmul", [("self", at.x), ("other", weight)])
    product = Product(at.x, source, shapes)
    readers = values.readers.get(at.out, [])
    if len(readers) == 1 and readers[0].op_type == "Add":
        (other,) = [name for name in readers[0].input if name != at.out] or [""]
        if values.is_weight(other) and values.shape(other) == at.out_shape[-1:]:
            values.products[at.out] = product  # it waits for its bias
            return True
    return at.add("linear", [("input", at.x), ("weight", source)], shapes=shapes)


@reads("Einsum")
def _einsum(at: Call) -> bool:
    return at.add("einsum", [("tensors", n) for n in at.proto.input], equation=at.attr("equation"))


@reads("Attention")
def _attention(at: Call) -> bool:
    if len(at.proto.input) > 4 or len(at.shape()) != 4 or len(at.proto.output) > 1:
        return False
    operands = [*zip(("query", "key", "value", "attn_mask"), at.proto.input, strict=False)]
    said: dict[str, Any] = {"is_causal": True} if at.attr("is_causal", 0) else {}
    if at.shape()[1] != at.shape(1)[1]:
        said["enable_gqa"] = True
    return at.add("scaled_dot_product_attention", operands, **said)


@reads("BatchNormalization")
def _batch_norm(at: Call) -> bool:
    names = ("input", "weight", "bias", "running_mean", "running_var")
    for name in at.proto.input[3:5]:  # statistics are not learned
        at.values.tensor(name, trainable=False)
    operands = list(zip(names, at.proto.input, strict=True))
    training, eps = bool(at.attr("training_mode", 0)), float(at.attr("epsilon", 1e-5))
    return at.add("batch_norm", operands, [at.out], training=training, momentum=0.1, eps=eps)


def _normed(at: Call, kind: str, **attrs: Any) -> bool:
    operands = [("input", at.x), ("weight", at.input(1)), ("bias", at.input(2))]
    return at.add(kind, operands, [at.out], **attrs, eps=float(at.attr("epsilon", 1e-5)))


@reads("LayerNormalization")
def _layer_norm(at: Call) -> bool:
    return _normed(at, "layer_norm", normalized_shape=at.shape()[int(at.attr("axis", -1)) :])


@reads("RMSNormalization")
def _rms_norm(at: Call) -> bool:
    return _normed(at, "rms_norm", normalized_shape=at.shape()[int(at.attr("axis", -1)) :])


@reads("InstanceNormalization")
def _instance_norm(at: Call) -> bool:
    return _normed(at, "instance_norm", use_input_stats=True, momentum=0.1)


@reads("GroupNormalization")
def _group_norm(at: Call) -> bool:
    if at.shape(1) != at.shape()[1:2]:
        return False  # one scale a group, as no operator of torch's has it
    return _normed(at, "group_norm", num_groups=int(at.attr("num_groups")))


@reads("LSTM", "GRU")
def _recurrent(at: Call) -> bool:
    gates = 4 if at.op == "LSTM" else 3
    if at.attr("layout", 0) or not all(at.values.is_weight(at.input(i)) for i in (1, 2)):
        return False
    if any(at.input(i) for i in (4, 7)):  # lengths and peepholes
        return False
    both, hidden = at.shape(1)[0], at.shape(2)[2]
    states = [("hx", at.input(i)) for i in (5, 6)[: 2 if gates == 4 else 1]]
    weights = [("params", at.input(i)) for i in (1, 2, 3)]
    # Directions are laid one after the other: torch has a weight for each.
    shapes = {
        at.input(1): (both * gates * hidden, at.shape(1)[2]),
        at.input(2): (both * gates * hidden, hidden),
    }
    return at.add(
        at.op.lower(),
        [("input", at.x), *states, *weights],
        shapes=shapes,
        has_biases=bool(at.input(3)),
        num_layers=1,
        bidirectional=both == 2,
        batch_first=False,
    )


# Functions of one tensor.

_SAME = {
    **{n: n.lower() for n in ("Relu", "Sigmoid", "Tanh", "Exp", "Log", "Sqrt", "Neg", "Abs", "Sin", "Cos")},
    **{n: n.lower() for n in ("Tan", "Erf", "Ceil", "Floor", "Round", "Sign", "Reciprocal", "Mish", "Selu")},
    **{n: n.lower() for n in ("HardSwish", "IsNaN", "IsInf", "Atan", "Asin", "Acos", "Sinh", "Cosh")},
    "Not": "logical_not",
    "BitwiseNot": "bitwise_not",
    "Swish": "silu",
}


@reads(*_SAME)
def _same(at: Call) -> bool:
    return at.add(_SAME[at.op], [("self", at.x)])


_WITH_ATTRIBUTES: dict[str, tuple[str, dict[str, tuple[str, Any]]]] = {
    "Gelu": ("gelu", {"approximate": ("approximate", "none")}),
    "LeakyRelu": ("leaky_relu", {"negative_slope": ("alpha", 0.01)}),
    "Elu": ("elu", {"alpha": ("alpha", 1.0)}),
    "Celu": ("celu", {"alpha": ("alpha", 1.0)}),
    "Softplus": ("softplus", {}),
}


@reads(*_WITH_ATTRIBUTES)
def _with_attributes(at: Call) -> bool:
    kind, named = _WITH_ATTRIBUTES[at.op]
    return at.add(kind, [("self", at.x)], **{key: at.attr(*given) for key, given in named.items()})


@reads("HardSigmoid")
def _hard_sigmoid(at: Call) -> bool:
    usual = abs(at.attr("alpha", 0.2) - 1 / 6) < 1e-4 and at.attr("beta", 0.5) == 0.5
    return usual and at.add("hardsigmoid", [("self", at.x)])


@reads("Clip")
def _clip(at: Call) -> bool:
    bounds: dict[str, Any] = {}
    for i, name in ((1, "min"), (2, "max")):
        value = at.attr(name) if not at.input(i) else at.values.number(at.input(i))
        if at.input(i) and value is None:
            return False
        if value is not None:
            bounds[name] = value
    return at.add("clamp", [("self", at.x)], **bounds)


@reads("PRelu")
def _prelu(at: Call) -> bool:
    slope = at.values.stand_ins.get(at.input(1), at.input(1))
    if not at.values.is_weight(slope):
        return False
    return at.add("prelu", [("self", at.x), ("weight", slope)], shapes={slope: (int(np.prod(at.shape(1))),)})


@reads("Identity", "Dropout")
def _nothing(at: Call) -> bool:
    return at.add("view", [("self", at.x)], [at.out], op="alias")


@reads("Cast", "CastLike")
def _cast(at: Call) -> bool:
    same = at.values.dtype(at.x) == at.values.dtype(at.out)
    return at.add("view" if same else "copy", [("self", at.x)], op="to", dtype=at.values.dtype(at.out))


@reads("Trilu")
def _triangle(at: Call) -> bool:
    diagonal = at.values.number(at.input(1)) if at.input(1) else 0
    return diagonal is not None and at.add(
        "triu" if at.attr("upper", 1) else "tril", [("self", at.x)], diagonal=diagonal
    )


# Functions of two tensors.

_BINARY = {
    "Add": "add",
    "Sub": "sub",
    "Mul": "mul",
    "Div": "div",
    "Max": "maximum",
    "Min": "minimum",
    "And": "logical_and",
    "Or": "logical_or",
    "Xor": "logical_xor",
    "Equal": "eq",
    "Less": "lt",
    "Greater": "gt",
    "LessOrEqual": "le",
    "GreaterOrEqual": "ge",
    "BitwiseAnd": "bitwise_and",
    "BitwiseOr": "bitwise_or",
    "BitwiseXor": "bitwise_xor",
    "Mod": "remainder",
    "Pow": "pow",
}


@reads(*_BINARY)
def _binary(at: Call) -> bool:
    kind, values = _BINARY[at.op], at.values
    if len(at.proto.input) == 1:
        return at.view("alias")
    if len(at.proto.input) != 2:
        return False
    if kind == "remainder" and at.attr("fmod", 0):
        kind = "fmod"
    a, b = at.proto.input
    for product, bias in ((a, b), (b, a)):
        waiting = values.products.get(product)
        if waiting is not None:
            operands = [("input", waiting.x), ("weight", waiting.weight), ("bias", bias)]
            return at.add("linear", operands, shapes=waiting.shapes)
    name = "exponent" if kind == "pow" else "other"
    number = values.number(b)
    if number is not None:
        return at.add(kind, [("self", a)], **dict[str, Any]({name: number}))
    number = values.number(a)
    if number is not None and kind in ("add", "mul", "maximum", "minimum", "eq"):
        return at.add(kind, [("self", b)], other=number)
    if number is not None and kind == "sub":
        return at.add("rsub", [("self", b)], other=number)
    if number is not None and kind == "pow":
        return at.add("pow", [("exponent", b)], self=number)
    return at.add(kind, [("self", a), (name, b)])


@reads("Sum")
def _sum(at: Call) -> bool:
    total, *rest = at.proto.input
    if not rest:
        return at.view("alias")
    for n, operand in enumerate(rest):  # torch adds two at a time
        made = at.out if n == len(rest) - 1 else f"{at.out}:{n}"
        shape = np.broadcast_shapes(at.values.shape(total), at.values.shape(operand))
        at.values.define(made, at.x, shape)
        at.add("add", [("self", total), ("other", operand)], [made])
        total = made
    return True


@reads("Where")
def _where(at: Call) -> bool:
    numbers = {n: at.values.number(at.input(i)) for i, n in ((1, "self"), (2, "other"))}
    operands = [("condition", at.x)]
    operands += [(n, at.input(i)) for i, n in ((1, "self"), (2, "other")) if numbers[n] is None]
    fixed: dict[str, Any] = {n: v for n, v in numbers.items() if v is not None}
    return at.add("where", operands, **fixed)


# Pooling and resizing.


@reads("MaxPool", "AveragePool")
def _pool(at: Call) -> bool:
    kernel = at.attr("kernel_shape")
    if not 1 <= len(kernel) <= 3 or (len(at.proto.output) > 1 and at.proto.output[1]):
        return False
    window = _window(at, kernel)
    dilation = window.pop("dilation")
    settings = {"kernel_size": kernel, **window}
    ceil = bool(at.attr("ceil_mode", 0))
    if at.op == "MaxPool":
        return at.add(
            f"max_pool{len(kernel)}d", [("self", at.x)], **settings, dilation=dilation, ceil_mode=ceil
        )
    counted = bool(at.attr("count_include_pad", 0))
    operands = [("self", at.x)]
    return at.add(f"avg_pool{len(kernel)}d", operands, **settings, ceil_mode=ceil, count_include_pad=counted)


@reads("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(at: Call) -> bool:
    rank = len(at.shape()) - 2
    kind = "avg" if at.op == "GlobalAveragePool" else "max"
    return 1 <= rank <= 3 and at.add(
        f"adaptive_{kind}_pool{rank}d", [("self", at.x)], output_size=(1,) * rank
    )


@reads("Resize", "Upsample")
def _resize(at: Call) -> bool:
    rank = len(at.shape()) - 2
    mode = {
        **{("nearest", r): f"upsample_nearest{r}d" for r in (1, 2, 3)},
        ("linear", 1): "upsample_linear1d",
        ("linear", 2): "upsample_bilinear2d",
        ("linear", 3): "upsample_trilinear3d",
        ("cubic", 2): "upsample_bicubic2d",
    }
    kind = mode.get((str(at.attr("mode", "nearest")), rank))
    if kind is None or at.out_shape[:2] != at.shape()[:2]:
        return False
    corners = at.attr("coordinate_transformation_mode") == "align_corners"
    settings = {} if "nearest" in kind else {"align_corners": corners}
    return at.add(kind, [("input", at.x)], output_size=at.out_shape[2:], **settings)


@reads("Pad")
def _pad(at: Call) -> bool:
    pads, rank = at.ints("pads", 1), len(at.shape())
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    if pads is None or at.input(3):
        return False
    value = at.attr("value") if not at.input(2) else at.values.number(at.input(2))
    widths = [pads[side * rank + axis] for axis in reversed(range(rank)) for side in (0, 1)]
    while len(widths) > 2 and widths[-2:] == [0, 0]:
        widths = widths[:-2]
    return at.add(
        "pad", [("self", at.x)], pad=widths, mode=mode[str(at.attr("mode", "constant"))], value=value
    )


@reads("DepthToSpace")
def _pixel_shuffle(at: Call) -> bool:
    same = at.attr("mode", "DCR") == "CRD"  # in the other order torch has no operator
    return same and at.add("pixel_shuffle", [("self", at.x)], upscale_factor=int(at.attr("blocksize")))


@reads("GridSample")
def _grid_sampler(at: Call) -> bool:
    return len(at.shape()) == 4 and at.add("grid_sampler", [("input", at.x), ("grid", at.input(1))])


# Reductions.

_REDUCES = {
    "ReduceMean": "mean",
    "ReduceSum": "sum",
    "ReduceMax": "amax",
    "ReduceMin": "amin",
    "ReduceProd": "prod",
    "ReduceLogSumExp": "logsumexp",
    "ReduceL1": "linalg_vector_norm",
    "ReduceL2": "linalg_vector_norm",
}


@reads(*_REDUCES)
def _reduce(at: Call) -> bool:
    axes = at.ints("axes", 1)
    if axes is None and at.input(1):
        return False
    if not axes and at.attr("noop_with_empty_axes", 0):
        return at.view("alias")
    dims = axes or list(range(len(at.shape())))
    order: dict[str, Any] = {"ReduceL1": {"ord": 1.0}, "ReduceL2": {"ord": 2.0}}.get(at.op, {})
    keep = bool(at.attr("keepdims", 1))
    return at.add(_REDUCES[at.op], [("self", at.x)], **order, dim=tuple(dims), keepdim=keep)


@reads("ArgMax", "ArgMin")
def _arg_extreme(at: Call) -> bool:
    axis, keep = int(at.attr("axis", 0)), bool(at.attr("keepdims", 1))
    return at.add(at.op.lower(), [("self", at.x)], dim=axis, keepdim=keep)


@reads("Softmax", "LogSoftmax")
def _softmax(at: Call) -> bool:
    newer = at.values.opset >= 13
    axis = int(at.attr("axis", -1 if newer else 1)) % len(at.shape())
    if not newer and int(np.prod(at.shape()[axis + 1 :])) > 1:
        return False  # older ones ran over all axes from this one on
    return at.add("softmax" if at.op == "Softmax" else "log_softmax", [("self", at.x)], dim=axis)


@reads("CumSum")
def _cumsum(at: Call) -> bool:
    axis = at.values.number(at.input(1))
    return axis is not None and at.add("cumsum", [("self", at.x)], dim=axis)


@reads("TopK")
def _topk(at: Call) -> bool:
    axis = int(at.attr("axis", -1))
    return at.add(
        "topk", [("self", at.x)], k=at.out_shape[axis], dim=axis, largest=bool(at.attr("largest", 1))
    )


# Layouts and pieces.


@reads("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(at: Call) -> bool:
    if _stands_for_a_weight(at, "PRelu"):
        return True
    return at.view("reshape", shape=at.out_shape)


def _stands_for_a_weight(at: Call, op: str) -> bool:
    """Whether the node's value is only a weight in another layout, read as one by operators ``op``."""
    readers = at.values.readers.get(at.out, [])
    only = bool(readers) and all(r.op_type == op and at.out in r.input[1:2] for r in readers)
    if at.values.is_weight(at.x) and only:
        at.values.stand_ins[at.out] = at.x
        return True
    return False


@reads("Transpose")
def _transpose(at: Call) -> bool:
    order = [int(a) for a in at.attr("perm") or reversed(range(len(at.shape())))]
    if order == [1, 0] and _stands_for_a_weight(at, "MatMul"):
        return True
    return at.view("permute", dims=order)


@reads("Expand")
def _expand(at: Call) -> bool:
    return at.view("expand", size=at.out_shape)


@reads("Tile")
def _tile(at: Call) -> bool:
    repeats = at.values.list_of(at.input(1))
    return repeats is not None and at.add("repeat", [("self", at.x)], repeats=repeats)


@reads("Concat")
def _concat(at: Call) -> bool:
    return at.add("cat", [("tensors", n) for n in at.proto.input], dim=int(at.attr("axis")))


@reads("Split")
def _split(at: Call) -> bool:
    axis = int(at.attr("axis", 0)) % len(at.shape())
    sizes = [at.values.shape(n)[axis] for n in at.proto.output]
    return at.view("split_with_sizes", split_sizes=sizes, dim=axis)


@reads("Slice")
def _slice(at: Call) -> bool:
    rank = len(at.shape())
    starts, ends = at.ints("starts", 1), at.ints("ends", 2)
    if starts is None or ends is None:
        return False
    axes = at.ints("axes", 3) or list(range(len(starts)))
    steps = at.ints("steps", 4) or [1] * len(starts)
    axes = [a % rank for a in axes]
    if any(s < 0 for s in steps):
        whole = all(at.shape()[a] == at.out_shape[a] and s == -1 for a, s in zip(axes, steps, strict=True))
        return whole and at.add("flip", [("self", at.x)], dims=axes)
    cuts = [
        (a, start, step)
        for a, start, step in zip(axes, starts, steps, strict=True)
        if at.shape()[a] != at.out_shape[a]
    ]
    if not cuts:
        return at.view("alias")
    # Torch cuts one axis at a time.
    source, shape = at.x, list(at.shape())
    for n, (axis, start, step) in enumerate(cuts):
        first = max(0, start + shape[axis] if start < 0 else start)
        length = at.out_shape[axis]
        shape[axis] = length
        last = n == len(cuts) - 1
        made = at.out if last else f"{at.out}:{n}"
        if not last:
            at.values.define(made, at.x, tuple(shape))
        end = first + (length - 1) * step + 1
        at.add("view", [("self", source)], [made], op="slice", dim=axis, start=first, end=end, step=step)
        source = made
    return True


@reads("Gather")
def _gather(at: Call) -> bool:
    axis, index = int(at.attr("axis", 0)) % len(at.shape()), at.input(1)
    number = at.values.number(index)
    if number is not None and at.shape(1) == ():
        return at.view("select", dim=axis, index=number)
    if at.values.is_weight(at.x) and len(at.shape()) == 2 and axis == 0:
        return at.add("embedding", [("weight", at.x), ("indices", index)])
    if len(at.shape(1)) == 1:
        return at.add("index_select", [("self", at.x), ("index", index)], dim=axis)
    places: dict[str, Any] = {"indices": (False,) * axis + (True,)} if axis else {}
    return at.add("index", [("self", at.x), ("indices", index)], **places)


@reads("GatherElements")
def _gather_elements(at: Call) -> bool:
    axis = int(at.attr("axis", 0)) % len(at.shape())
    return at.add("gather", [("self", at.x), ("index", at.input(1))], dim=axis)


@reads("GatherND")
def _gather_nd(at: Call) -> bool:
    # Whatever the indices pick, it is read and written once.
    return at.add("take", [("self", at.x), ("index", at.input(1))])


@reads("ScatterElements")
def _scatter(at: Call) -> bool:
    axis = int(at.attr("axis", 0)) % len(at.shape())
    operands = [("self", at.x), ("index", at.input(1)), ("src", at.input(2))]
    return at.add("scatter", operands, dim=axis)


@reads("ScatterND")
def _scatter_nd(at: Call) -> bool:
    return at.add("index_put", [("self", at.x), ("indices", at.input(1)), ("values", at.input(2))])


@reads("ConstantOfShape")
def _filled(at: Call) -> bool:
    return at.add("full", [], size=at.out_shape)


@reads("Range")
def _range(at: Call) -> bool:
    return at.add("arange", [])
