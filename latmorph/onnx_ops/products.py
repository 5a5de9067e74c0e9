"""How convolutions, products, norms and recurrent layers are written as ONNX."""

from __future__ import annotations

from typing import Any

import numpy as np

from latmorph.onnx_ops.site import Site, batched, per_channel, writes


@writes("conv1d", "conv2d", "conv3d")
def _conv(at: Site) -> str:
    kernel = at.spec["weight"].shape[2:]
    rank = len(kernel)
    dilation = at.sizes("dilation", rank, 1)
    if at.attr("padding") == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pads = [t // 2 for t in total] + [t - t // 2 for t in total]
    else:
        pads = [0] * 2 * rank if at.attr("padding") == "valid" else at.sizes("padding", rank) * 2
    return batched(
        at,
        rank,
        lambda x: at(
            "Conv",
            *(x, at["weight"], at["bias"]),
            group=int(at.attr("groups", 1)),
            pads=pads,
            strides=at.sizes("stride", rank, 1),
            dilations=dilation,
            kernel_shape=list(kernel),
        ),
    )


@writes("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv_transpose(at: Site) -> str:
    kernel = at.spec["weight"].shape[2:]
    rank = len(kernel)
    return batched(
        at,
        rank,
        lambda x: at(
            "ConvTranspose",
            *(x, at["weight"], at["bias"]),
            group=int(at.attr("groups", 1)),
            pads=at.sizes("padding", rank) * 2,
            output_padding=at.sizes("output_padding", rank),
            strides=at.sizes("stride", rank, 1),
            dilations=at.sizes("dilation", rank, 1),
            kernel_shape=list(kernel),
        ),
    )


@writes("linear")
def _linear(at: Site) -> str:
    if len(at.shape) == 2:
        return at("Gemm", at.x, at["weight"], at["bias"], transB=1)
    i = at.position("weight")
    constant = at.spec.inputs[i].parameter
    weight = at.parameter(i, np.transpose) if constant else at("Transpose", at["weight"], perm=[1, 0])
    product = at("MatMul", at.x, weight)
    return at("Add", product, at["bias"]) if at.has("bias") else product


@writes("matmul", "bmm", "mm", "mv", "dot")
def _matmul(at: Site) -> str:
    return at("MatMul", *at.operands())


@writes("addmm")
def _addmm(at: Site) -> str:
    alpha, beta = float(at.attr("alpha", 1)), float(at.attr("beta", 1))
    return at("Gemm", at["mat1"], at["mat2"], at["self"], alpha=alpha, beta=beta)


@writes("baddbmm")
def _baddbmm(at: Site) -> str:
    product = at("MatMul", at["batch1"], at["batch2"])
    if at.attr("alpha", 1) != 1:
        product = at("Mul", product, at.array_of(at.attr("alpha")))
    added = at["self"]
    if at.attr("beta", 1) != 1:
        added = at("Mul", added, at.array_of(at.attr("beta")))
    return at("Add", product, added)


@writes("einsum")
def _einsum(at: Site) -> str:
    return at("Einsum", *at.operands("tensors"), equation=str(at.attr("equation")))


@writes("scaled_dot_product_attention")
def _attention(at: Site) -> str:
    query, key, value = at["query"], at["key"], at["value"]
    *lead, keys, width = at.spec["key"].shape
    if at.attr("enable_gqa"):
        lead = list(at.spec["query"].shape[:-2])
        key, value = (_repeated_heads(at, name, lead[1]) for name in ("key", "value"))
    given = at.attr("scale")
    scale = np.sqrt(np.float32(given) if given is not None else np.ones(1, np.float32) / np.sqrt(width))
    factor = at.array_of(scale)
    key = at("Transpose", at("Reshape", key, at.ints(-1, keys, width)), perm=[0, 2, 1])
    key = at("Reshape", key, at.ints(*lead, width, keys))
    scores = at("MatMul", at("Mul", query, factor), at("Mul", key, factor))
    mask = at.spec.operand("attn_mask")
    if at.attr("is_causal"):
        shape = (at.spec["query"].shape[-2], keys)
        scores = at("Add", scores, at.array_of(np.triu(np.full(shape, -np.inf), 1)))
    elif mask is not None and mask.dtype == "bool":
        hidden = at("Where", at["attn_mask"], at.array_of(0.0), at.array_of(-np.inf))
        weights = at("Softmax", at("Add", scores, hidden), axis=-1)
        weights = at("Where", at("IsNaN", weights), at.array_of(0.0), weights)
        return at("MatMul", weights, value)
    elif mask is not None:
        scores = at("Add", scores, at["attn_mask"])
    return at("MatMul", at("Softmax", scores, axis=-1), value)


def _repeated_heads(at: Site, name: str, heads: int) -> str:
    """Keys or values ``(n, few, length, width)`` with each head repeated: ``(n, heads, length, width)``."""
    n, few, length, width = at.spec[name].shape
    many = at("Expand", at("Unsqueeze", at[name], at.ints(2)), at.ints(n, few, heads // few, length, width))
    return at("Reshape", many, at.ints(n, heads, length, width))


@writes("batch_norm")
def _batch_norm(at: Site) -> str:
    if at.attr("training") or not at.has("running_mean"):
        return _batch_statistics(at)
    c = at.shape[1]
    scale = at["weight"] or at.array_of(np.ones(c))
    shift = at["bias"] or at.array_of(np.zeros(c))
    return at(
        "BatchNormalization",
        *(at.x, scale, shift, at["running_mean"], at["running_var"]),
        epsilon=float(at.attr("eps", 1e-5)),
        momentum=1 - float(at.attr("momentum", 0.1)),
    )


def _batch_statistics(at: Site) -> str:
    """Batch normalisation by the batch's own mean and variance, as of weights that are standardised."""
    axes = at.ints(*(a for a in range(len(at.shape)) if a != 1))
    channel = (at.shape[1], *[1] * (len(at.shape) - 2))
    off = at("Sub", at.x, at("ReduceMean", at.x, axes, keepdims=1))
    variance = at("ReduceMean", at("Mul", off, off), axes, keepdims=1)
    root = at("Sqrt", at("Add", variance, at.array_of(float(at.attr("eps", 1e-5)))))
    normed = at("Mul", at("Div", off, root), per_channel(at, "weight", channel, 1))
    return at("Add", normed, per_channel(at, "bias", channel, 0))


@writes("_weight_norm")
def _weight_norm(at: Site) -> str:
    axis = int(at.attr("dim", 0)) % len(at.shape)
    length = at.array(1)
    axes = tuple(a for a in range(len(at.shape)) if a != axis)

    def scaled(v: np.ndarray) -> np.ndarray:
        norm = np.sqrt(np.square(v.astype(np.float64)).sum(axis=axes, keepdims=True))
        return np.asarray(v * (length / norm)).astype(v.dtype)

    return at.parameter(0, scaled)


@writes("layer_norm")
def _layer_norm(at: Site) -> str:
    shape = at.spec.attr("normalized_shape")
    scale = at["weight"] or at.array_of(np.ones(shape))
    epsilon = float(at.attr("eps", 1e-5))
    return at("LayerNormalization", at.x, scale, at["bias"], axis=-len(shape), epsilon=epsilon)


@writes("rms_norm")
def _rms_norm(at: Site) -> str:
    rank = len(at.shape)
    axes = range(rank - len(at.attr("normalized_shape")), rank)
    epsilon = at.attr("eps")
    epsilon = float(np.finfo(np.float32).eps) if epsilon is None else float(epsilon)
    mean = at("ReduceMean", at("Pow", at.x, at.array_of(2.0)), at.ints(*axes), keepdims=1)
    root = at("Sqrt", at("Add", mean, at.array_of(epsilon)))
    normed = at("Mul", at.x, at("Reciprocal", root))
    return at("Mul", normed, at["weight"]) if at.has("weight") else normed


@writes("group_norm")
def _group_norm(at: Site) -> str:
    groups, epsilon = int(at.attr("num_groups")), float(at.attr("eps", 1e-5))
    one, zero = at.array_of(np.ones(groups)), at.array_of(np.zeros(groups))
    x = at("Reshape", at.x, at.ints(0, groups, -1))
    x = at("Reshape", at("InstanceNormalization", x, one, zero, epsilon=epsilon), at.ints(*at.shape))
    channel = (at.shape[1], *[1] * (len(at.shape) - 2))
    return at("Add", at("Mul", x, per_channel(at, "weight", channel, 1)), per_channel(at, "bias", channel, 0))


@writes("instance_norm")
def _instance_norm(at: Site) -> str | list[str]:
    if not at.attr("use_input_stats", True):
        return _batch_norm(at)
    c = at.shape[1]
    scale = at["weight"] or at.array_of(np.ones(c))
    shift = at["bias"] or at.array_of(np.zeros(c))
    return at("InstanceNormalization", at.x, scale, shift, epsilon=float(at.attr("eps", 1e-5)))


_RECURRENT: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    # The operator, and where torch has the gates that ONNX wants in its order (input, output, forget, cell;
    # update, reset, hidden).
    "lstm": ("LSTM", (0, 3, 1, 2), {}),
    "gru": ("GRU", (1, 0, 2), {"linear_before_reset": 1}),
    "rnn_tanh": ("RNN", (0,), {}),
    "rnn_relu": ("RNN", (0,), {"activations": ["Relu"]}),
}


@writes(*_RECURRENT)
def _recurrent(at: Site) -> list[str]:
    op, gates, settings = _RECURRENT[at.spec.kind]
    directions = 2 if at.attr("bidirectional") else 1
    layers, batch_first = int(at.attr("num_layers")), bool(at.attr("batch_first"))
    weights = [i for i, t in enumerate(at.spec.inputs) if t.name == "params"]
    each = 4 if at.attr("has_biases", True) else 2
    if len(weights) != each * layers * directions:
        raise at.refuse("with a projection")
    states = at.operands("hx")
    n, length = (at.shape[0], at.shape[1]) if batch_first else (at.shape[1], at.shape[0])
    hidden = at.spec.inputs[weights[1]].shape[1]
    settings = settings | {
        "hidden_size": hidden,
        "direction": "bidirectional" if directions == 2 else "forward",
    }
    if "activations" in settings:
        settings["activations"] = settings["activations"] * directions
    x = at("Transpose", at.x, perm=[1, 0, 2]) if batch_first else at.x
    ends: list[list[str]] = [[] for _ in states]
    for layer in range(layers):
        first = layer * directions
        chosen = [weights[each * (first + d) : each * (first + d + 1)] for d in range(directions)]
        arrays = [[_gates(at.array(i), gates) for i in own] for own in chosen]
        joined = [np.stack([own[0] for own in arrays]), np.stack([own[1] for own in arrays])]
        if each == 4:
            joined.append(np.stack([np.concatenate(own[2:]) for own in arrays]))
        constants = [
            at.writer.constant(array, f"p{at.index}_params_{layer}_{k}")
            for k, array in zip("wrb", joined, strict=False)
        ]
        constants += [""] * (3 - len(constants))
        span = (at.ints(first), at.ints(first + directions), at.ints(0))
        begin = [s if layers == 1 else at("Slice", s, *span) for s in states]
        made = at.several(op, [x, *constants, "", *begin], 1 + len(states), **settings)
        for found, end in zip(ends, made[1:], strict=True):
            found.append(end)
        x = at("Transpose", made[0], perm=[0, 2, 1, 3])
        x = at("Reshape", x, at.ints(length, n, directions * hidden))
    finals = [found[0] if layers == 1 else at("Concat", *found, axis=0) for found in ends]
    return [at("Transpose", x, perm=[1, 0, 2]) if batch_first else x, *finals]


def _gates(weight: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """A weight, or a bias, with its gates in another order."""
    parts = np.split(weight, len(order))
    return np.concatenate([parts[i] for i in order])
