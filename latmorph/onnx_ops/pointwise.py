"""How functions of one element, or of a pair of elements, are written as ONNX."""

from __future__ import annotations

import math

import numpy as np

from latmorph.onnx_ops.site import Site, numpy_dtype, per_channel, writes

_SAME = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "neg": "Neg",
    "abs": "Abs",
    "sin": "Sin",
    "cos": "Cos",
    "tan": "Tan",
    "erf": "Erf",
    "ceil": "Ceil",
    "reciprocal": "Reciprocal",
    "floor": "Floor",
    "round": "Round",
    "sign": "Sign",
    "mish": "Mish",
    "hardswish": "HardSwish",
    "selu": "Selu",
    "isnan": "IsNaN",
    "isinf": "IsInf",
    "atan": "Atan",
    "asin": "Asin",
    "acos": "Acos",
    "sinh": "Sinh",
    "cosh": "Cosh",
}


@writes(*_SAME)
def _same(at: Site) -> str:
    return at(_SAME[at.spec.kind], at.x)


_ALPHA = {"leaky_relu": ("LeakyRelu", "negative_slope", 0.01), "celu": ("Celu", "alpha", 1.0)}


@writes(*_ALPHA)
def _with_alpha(at: Site) -> str:
    op, name, default = _ALPHA[at.spec.kind]
    return at(op, at.x, alpha=float(at.attr(name, default)))


@writes("elu")
def _elu(at: Site) -> str:
    if at.attr("input_scale", 1) != 1 or at.attr("scale", 1) != 1:
        raise at.refuse("with a scale")
    return at("Elu", at.x, alpha=float(at.attr("alpha", 1.0)))


@writes("gelu")
def _gelu(at: Site) -> str:
    return at("Gelu", at.x, approximate=str(at.attr("approximate", "none")))


@writes("silu")
def _silu(at: Site) -> str:
    return at("Mul", at.x, at("Sigmoid", at.x))


@writes("hardsigmoid")
def _hard_sigmoid(at: Site) -> str:
    return at("HardSigmoid", at.x, alpha=1 / 6, beta=0.5)


@writes("hardtanh", "relu6", "clamp", "clamp_min", "clamp_max")
def _clip(at: Site) -> str:
    low, high = {"hardtanh": (-1.0, 1.0), "relu6": (0.0, 6.0)}.get(at.spec.kind, (None, None))
    dtype = at.spec.out.dtype
    bounds = []
    for names, default in ((("min_val", "min"), low), (("max_val", "max"), high)):
        value = next((at.attr(n) for n in names if at.attr(n) is not None), default)
        tensor = next((n for n in names if at.has(n)), None)
        known = at.array_of(value, dtype) if value is not None else ""
        bounds.append(at.operand_as(tensor, dtype) if tensor is not None else known)
    x = at.cast(at.x, at.spec.inputs[0].dtype, dtype)
    if at.has("min") or at.has("max"):
        x = at("Max", x, bounds[0]) if bounds[0] else x
        return at("Min", x, bounds[1]) if bounds[1] else x
    return at("Clip", x, *bounds)


@writes("softplus")
def _softplus(at: Site) -> str:
    beta, threshold = float(at.attr("beta", 1)), float(at.attr("threshold", 20))
    x = at.x if beta == 1 else at("Mul", at.x, at.array_of(beta))
    soft = at("Softplus", x)
    soft = soft if beta == 1 else at("Div", soft, at.array_of(beta))
    return at("Where", at("Greater", x, at.array_of(threshold)), at.x, soft)


@writes("log_sigmoid")
def _log_sigmoid(at: Site) -> str:
    return at("Log", at("Sigmoid", at.x))


@writes("hardshrink")
def _hard_shrink(at: Site) -> str:
    small = at("LessOrEqual", at("Abs", at.x), at.array_of(at.attr("lambd", 0.5)))
    return at("Where", small, at.array_of(0.0), at.x)


@writes("softshrink")
def _soft_shrink(at: Site) -> str:
    edge = at.array_of(at.attr("lambd", 0.5))
    large = at("Greater", at("Abs", at.x), edge)
    moved = at("Sub", at.x, at("Mul", at("Sign", at.x), edge))
    return at("Where", large, moved, at("Mul", at.x, at.array_of(0.0)))


@writes("threshold")
def _threshold(at: Site) -> str:
    small = at("LessOrEqual", at.x, at.array_of(at.attr("threshold")))
    return at("Where", small, at.array_of(at.attr("value")), at.x)


@writes("prelu")
def _prelu(at: Site) -> str:
    count = at.spec["weight"].numel
    shape = (count, *[1] * (len(at.shape) - 2)) if count > 1 else (1,) * len(at.shape)
    if count > 1 and len(at.shape) > 1:
        shape = (1, *shape)
    return at("PRelu", at.x, per_channel(at, "weight", shape, 0.25))


@writes("glu")
def _glu(at: Site) -> str:
    first, second = at.several("Split", [at.x], 2, axis=int(at.attr("dim", -1)), num_outputs=2)
    return at("Mul", first, at("Sigmoid", second))


@writes("rsqrt")
def _rsqrt(at: Site) -> str:
    return at("Reciprocal", at("Sqrt", at.x))


@writes("negative")
def _negative(at: Site) -> str:
    return at("Neg", at.x)


@writes("isfinite")
def _is_finite(at: Site) -> str:
    return at("Not", at("Or", at("IsInf", at.x), at("IsNaN", at.x)))


@writes("rrelu")
def _random_relu(at: Site) -> str:
    if at.attr("training"):
        raise at.refuse("with random slopes")
    slope = (float(at.attr("lower", 0.125)) + float(at.attr("upper", 1 / 3))) / 2
    return at("LeakyRelu", at.x, alpha=slope)


@writes("square")
def _square(at: Site) -> str:
    return at("Pow", at.x, at.array_of(2.0))


@writes("exp2")
def _exp2(at: Site) -> str:
    return at("Pow", at.array_of(2.0), at.x)


@writes("expm1")
def _expm1(at: Site) -> str:
    return at("Sub", at("Exp", at.x), at.array_of(1.0))


@writes("log1p")
def _log1p(at: Site) -> str:
    return at("Log", at("Add", at.x, at.array_of(1.0)))


@writes("log2", "log10")
def _log_to_base(at: Site) -> str:
    return at("Div", at("Log", at.x), at.array_of(math.log(2 if at.spec.kind == "log2" else 10)))


@writes("erfc")
def _erfc(at: Site) -> str:
    return at("Sub", at.array_of(1.0), at("Erf", at.x))


@writes("trunc", "fix")
def _trunc(at: Site) -> str:
    return _towards_zero(at, at.x)


@writes("frac")
def _frac(at: Site) -> str:
    return at("Sub", at.x, _towards_zero(at, at.x))


def _towards_zero(at: Site, x: str) -> str:
    whole = at("Floor", at("Abs", x))
    return at("Mul", whole, at("Sign", x))


@writes("logical_not", "bitwise_not")
def _not(at: Site) -> str:
    before = at.spec.inputs[0].dtype
    if at.spec.kind == "bitwise_not" and before != "bool":
        return at("BitwiseNot", at.x)
    return at("Not", at.cast(at.x, before, "bool"))


# Functions of two tensors, or of a tensor and a number.


def _promoted(at: Site) -> str:
    """The dtype in which torch compares: the tensors' own, a float's where a float meets integers."""
    dtypes = [t.dtype for t in at.spec.inputs]
    floats = [d for d in dtypes if "float" in d]
    number = any(isinstance(at.attr(n), float) for n in ("self", "other", "exponent"))
    if not floats and number:
        return "float32"
    return (floats or [max(dtypes, key=lambda d: numpy_dtype(d).itemsize)])[0]


def pair(at: Site, dtype: str, second: str = "other") -> tuple[str, str]:
    """Both operands in one dtype; two operands may share a name."""
    if len(at.spec.inputs) == 2:
        a, b = (at.cast(x, t.dtype, dtype) for x, t in zip(at.operands(), at.spec.inputs, strict=True))
        return a, b
    return at.operand_as("self", dtype), at.operand_as(second, dtype)


_PLAIN = {"mul": "Mul", "multiply": "Mul", "fmax": "Max", "fmin": "Min", "maximum": "Max", "minimum": "Min"}


@writes(*_PLAIN)
def _plain(at: Site) -> str:
    return at(_PLAIN[at.spec.kind], *pair(at, at.spec.out.dtype))


@writes("add", "sub", "subtract", "rsub")
def _sum(at: Site) -> str:
    a, b = pair(at, at.spec.out.dtype)
    if at.spec.kind == "rsub":
        a, b = b, a
    if at.attr("alpha", 1) != 1:
        b = at("Mul", b, at.array_of(at.attr("alpha"), at.spec.out.dtype))
    return at("Add" if at.spec.kind == "add" else "Sub", a, b)


@writes("div", "divide", "true_divide", "floor_divide")
def _div(at: Site) -> str:
    dtype = at.spec.out.dtype
    quotient = at("Div", *pair(at, dtype))
    mode = "floor" if at.spec.kind == "floor_divide" else at.attr("rounding_mode")
    if mode is None or "float" not in dtype:
        return quotient
    return at("Floor", quotient) if mode == "floor" else _towards_zero(at, quotient)


@writes("remainder")
def _remainder(at: Site) -> str:
    dtype = at.spec.out.dtype
    a, b = pair(at, dtype)
    if "float" not in dtype:
        return at("Mod", a, b)
    return at("Sub", a, at("Mul", at("Floor", at("Div", a, b)), b))


@writes("fmod")
def _fmod(at: Site) -> str:
    return at("Mod", *pair(at, at.spec.out.dtype), fmod=1)


@writes("pow", "float_power")
def _pow(at: Site) -> str:
    return at("Pow", *pair(at, at.spec.out.dtype, "exponent"))


@writes("atan2")
def _atan2(at: Site) -> str:
    y, x = pair(at, at.spec.out.dtype)
    angle, pi, zero = at("Atan", at("Div", y, x)), at.array_of(math.pi), at.array_of(0.0)
    turned = at("Where", at("Greater", y, zero), at("Add", angle, pi), at("Sub", angle, pi))
    angle = at("Where", at("Less", x, zero), turned, angle)
    return at("Where", at("IsNaN", angle), zero, angle)


_COMPARES = {
    "eq": "Equal",
    "ne": "Equal",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
}


@writes(*_COMPARES)
def _compare(at: Site) -> str:
    result = at(_COMPARES[at.spec.kind], *pair(at, _promoted(at)))
    return at("Not", result) if at.spec.kind == "ne" else result


_LOGIC = {
    "logical_and": "And",
    "logical_or": "Or",
    "logical_xor": "Xor",
    "bitwise_and": "And",
    "bitwise_or": "Or",
    "bitwise_xor": "Xor",
    "__and__": "And",
    "__or__": "Or",
    "__xor__": "Xor",
}


@writes(*_LOGIC)
def _logic(at: Site) -> str:
    op, integers = _LOGIC[at.spec.kind], at.spec.out.dtype != "bool"
    return at(f"Bitwise{op}" if integers else op, *pair(at, at.spec.out.dtype))


@writes("where")
def _where(at: Site) -> str:
    dtype = at.spec.out.dtype
    if len(at.spec.inputs) == 3:
        chosen, *pair = at.operands()
        a, b = (at.cast(x, t.dtype, dtype) for x, t in zip(pair, at.spec.inputs[1:], strict=True))
        return at("Where", chosen, a, b)
    return at("Where", at["condition"], at.operand_as("self", dtype), at.operand_as("other", dtype))


@writes("masked_fill")
def _masked_fill(at: Site) -> str:
    return at("Where", at["mask"], at.operand_as("value", at.spec.out.dtype), at["self"])


@writes("addcmul", "addcdiv")
def _add_product(at: Site) -> str:
    value, first = at.attr("value", 1), at["tensor1"]
    if at.spec.kind == "addcmul":
        first = first if value == 1 else at("Mul", at.array_of(value), first)
        return at("Add", at["self"], at("Mul", first, at["tensor2"]))
    quotient = at("Div", first, at["tensor2"])
    return at("Add", at["self"], quotient if value == 1 else at("Mul", at.array_of(value), quotient))


@writes("lerp")
def _lerp(at: Site) -> str:
    start, end, dtype = at["self"], at["end"], at.spec.out.dtype
    weight = at.operand_as("weight", dtype)
    apart = at("Sub", end, start)
    near = at("Add", start, at("Mul", weight, apart))
    if at.has("weight"):
        rest, first = at("Sub", at.array_of(1.0), weight), at("Less", at("Abs", weight), at.array_of(0.5))
    else:
        value = float(at.attr("weight"))
        rest, first = at.array_of(1.0 - value), at.array_of(abs(value) < 0.5, "bool")
    return at("Where", first, near, at("Sub", end, at("Mul", apart, rest)))


@writes("copy_")
def _copy(at: Site) -> str:
    source = at.cast(at["src"], at.spec["src"].dtype, at.spec.out.dtype)
    return source if at.spec["src"].shape == at.out else at("Expand", source, at.ints(*at.out))


@writes("sgn")
def _sign(at: Site) -> str:
    return at("Sign", at.x)


@writes("logit")
def _logit(at: Site) -> str:
    x, eps = at.x, at.attr("eps")
    if eps is not None:
        x = at("Clip", x, at.array_of(eps), at.array_of(1 - eps))
    return at("Log", at("Div", x, at("Sub", at.array_of(1.0), x)))


@writes("nan_to_num")
def _nan_to_number(at: Site) -> str:
    limit = float(np.finfo(at.spec.inputs[0].dtype).max)
    x = at("Where", at("IsNaN", at.x), at.array_of(at.attr("nan") or 0.0), at.x)
    for name, sign in (("posinf", {"detect_negative": 0}), ("neginf", {"detect_positive": 0})):
        given = at.attr(name)
        value = given if given is not None else limit if name == "posinf" else -limit
        x = at("Where", at("IsInf", at.x, **sign), at.array_of(value), x)
    return x
