"""How reductions, layouts, copies, indexing and constants are written as ONNX."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from latmorph import ops
from latmorph.onnx_ops.pointwise import pair
from latmorph.onnx_ops.site import Site, name_of, writes


def _axes(at: Site) -> tuple[int, ...]:
    """The axes in ``dim``; none means all."""
    dims = at.attr("dim")
    return () if dims is None else tuple(dims) if isinstance(dims, tuple | list) else (int(dims),)


def _reduce(at: Site, op: str, x: str, keep: bool | None = None) -> str:
    axes = _axes(at)
    keepdims = int(bool(at.attr("keepdim", False)) if keep is None else keep)
    return at(op, x, at.ints(*axes) if axes else "", keepdims=keepdims)


@writes("mean")
def _mean(at: Site) -> str:
    x = at.cast(at.x, at.spec.inputs[0].dtype, at.spec.out.dtype)
    if not _axes(at):  # as the exporter has it
        return at("Squeeze", at("ReduceMean", x, keepdims=1))
    return _reduce(at, "ReduceMean", x)


_REDUCES = {"sum": "ReduceSum", "amax": "ReduceMax", "amin": "ReduceMin", "prod": "ReduceProd"} | {
    "logsumexp": "ReduceLogSumExp"
}


@writes(*_REDUCES)
def _reduction(at: Site) -> str:
    x = at.cast(at.x, at.spec.inputs[0].dtype, at.spec.out.dtype)
    return _reduce(at, _REDUCES[at.spec.kind], x)


@writes("max", "min")
def _extreme(at: Site) -> str | list[str]:
    op = at.spec.kind.title()
    if len(at.spec.inputs) == 2:
        return at(op, *pair(at, at.spec.out.dtype))
    value = _reduce(at, f"Reduce{op}", at.x)
    if len(at.spec.outputs) == 1:
        return value
    keep = int(bool(at.attr("keepdim", False)))
    return [value, at(f"Arg{op}", at.x, axis=at.axis(), keepdims=keep)]


@writes("argmax", "argmin")
def _arg_extreme(at: Site) -> str:
    op = f"Arg{at.spec.kind[3:].title()}"
    if at.attr("dim") is None:
        return at(op, at("Reshape", at.x, at.ints(-1)), axis=0, keepdims=0)
    return at(op, at.x, axis=at.axis(), keepdims=int(bool(at.attr("keepdim", False))))


@writes("aminmax")
def _both_extremes(at: Site) -> list[str]:
    return [_reduce(at, "ReduceMin", at.x), _reduce(at, "ReduceMax", at.x)]


@writes("count_nonzero")
def _count_nonzero(at: Site) -> str:
    there = at.cast(at.cast(at.x, at.spec.inputs[0].dtype, "bool"), "bool", "int64")
    return _reduce(at, "ReduceSum", there, keep=False)


@writes("any", "all")
def _any(at: Site) -> str:
    whole = at.cast(at.cast(at.x, at.spec.inputs[0].dtype, "bool"), "bool", "int64")
    return at.cast(_reduce(at, "ReduceMax" if at.spec.kind == "any" else "ReduceMin", whole), "int64", "bool")


@writes("var", "std", "var_mean", "std_mean")
def _variance(at: Site) -> str | list[str]:
    rank = len(at.shape)
    axes = [a % rank for a in _axes(at)] or list(range(rank))
    count = int(ops.prod([at.shape[a] for a in axes]))
    given = at.attr("correction", 1 if at.attr("unbiased", True) else 0)
    correction = float(1 if given is None else given)
    keep = int(bool(at.attr("keepdim", False)))
    mean = at("ReduceMean", at.x, at.ints(*axes), keepdims=1)
    off = at("Sub", at.x, mean)
    variance = at("ReduceMean", at("Mul", off, off), at.ints(*axes), keepdims=keep)
    if correction:
        scaled = at("Mul", variance, at.array_of(float(count)))
        variance = at("Div", scaled, at.array_of(count - correction))
    spread = at("Sqrt", variance) if at.spec.kind.startswith("std") else variance
    if not at.spec.kind.endswith("_mean"):
        return spread
    total = at("ReduceSum", at.x, at.ints(*axes), keepdims=keep)
    return [spread, at("Div", total, at.array_of(float(count)))]


@writes("norm", "linalg_vector_norm")
def _vector_norm(at: Site) -> str:
    order = at.attr("p" if at.spec.kind == "norm" else "ord", 2)
    order = 2.0 if order is None else float(order)
    whole = not _axes(at) and not at.attr("keepdim")
    x = at("Reshape", at.x, at.ints(-1)) if whole else at.x
    if order in (1.0, 2.0):
        return _reduce(at, f"ReduceL{int(order)}", x)
    if math.isinf(order):
        return _reduce(at, "ReduceMax" if order > 0 else "ReduceMin", at("Abs", x))
    total = _reduce(at, "ReduceSum", at("Pow", at("Abs", x), at.array_of(order)))
    return at("Pow", total, at.array_of(1 / order))


@writes("cosine_similarity")
def _cosine(at: Site) -> str:
    axis, eps = at.ints(at.axis(1)), at.array_of(float(at.attr("eps", 1e-8)))
    lengths = [at("ReduceL2", x, axis, keepdims=1) for x in at.operands()]
    a, b = (at("Div", x, at("Clip", n, eps)) for x, n in zip(at.operands(), lengths, strict=True))
    return at("ReduceSum", at("Mul", a, b), axis, keepdims=0)


@writes("softmax", "log_softmax", "_softmax", "_log_softmax")
def _softmax(at: Site) -> str:
    x = at.cast(at.x, at.spec.inputs[0].dtype, at.spec.out.dtype)
    return at("LogSoftmax" if "log" in at.spec.kind else "Softmax", x, axis=int(at.attr("dim")))


@writes("diff")
def _difference(at: Site) -> str:
    axis = int(at.attr("dim", -1)) % len(at.shape)
    parts = [x for x in (at["prepend"], at["self"], at["append"]) if x]
    x = parts[0] if len(parts) == 1 else at("Concat", *parts, axis=axis)
    size = at.out[axis] + int(at.attr("n", 1))
    for left in range(size, at.out[axis], -1):
        ends = at("Slice", x, at.ints(1), at.ints(left), at.ints(axis), at.ints(1))
        starts = at("Slice", x, at.ints(0), at.ints(left - 1), at.ints(axis), at.ints(1))
        x = at("Sub", ends, starts)
    return x


@writes("cumsum")
def _cumsum(at: Site) -> str:
    x = at.cast(at.x, at.spec.inputs[0].dtype, at.spec.out.dtype)
    return at("CumSum", x, at.array_of(int(at.attr("dim")), "int64"))


@writes("topk", "sort", "argsort")
def _topk(at: Site) -> list[str]:
    dim = int(at.attr("dim", -1))
    sorts = at.spec.kind != "topk"
    k = at.shape[dim] if sorts else int(at.attr("k"))
    largest = bool(at.attr("descending", False)) if sorts else bool(at.attr("largest", True))
    made = at.several("TopK", [at.x, at.ints(k)], 2, axis=dim, largest=int(largest), sorted=1)
    return made[1:] if at.spec.kind == "argsort" else made


# Layouts, copies, pieces.


@writes(
    *(
        "flatten",
        "view",
        "reshape",
        "unflatten",
        "view_as",
        "reshape_as",
        "_unsafe_view",
        "_reshape_alias",
        "ravel",
    )
)
def _reshape(at: Site) -> str:
    # The exporter leaves out a reshape to the same shape, unless a size is left to be found.
    if at.shape == at.out and -1 not in (at.attr("size") or ()):
        return at.x
    return at("Reshape", at.x, at.ints(*at.out), allowzero=1)


@writes(
    *("dropout", "feature_dropout", "alpha_dropout", "contiguous", "clone", "detach", "alias"),
    *(
        "lift_fresh_copy",
        "positive",
        "feature_alpha_dropout",
        "resolve_conj",
        "resolve_neg",
    ),
)
def _nothing(at: Site) -> str:
    return at.x


@writes("to", "_to_copy", "type_as")
def _to(at: Site) -> str:
    return at.cast(at.x, at.spec.inputs[0].dtype, at.spec.out.dtype)


@writes(
    *("permute", "transpose", "t", "swapaxes", "swapdims", "movedim", "moveaxis", "numpy_T", "mT", "mH"),
    *("adjoint", "matrix_H"),
)
def _transpose(at: Site) -> str:
    name, rank = name_of(at.spec), len(at.shape)
    order = list(range(rank))
    if name == "permute":
        order = [int(d) % rank for d in at.attr("dims")]
    elif name in ("movedim", "moveaxis"):
        source = [d % rank for d in np.atleast_1d(at.attr("source"))]
        target = [d % rank for d in np.atleast_1d(at.attr("destination"))]
        order = [a for a in range(rank) if a not in source]
        for where, axis in sorted(zip(target, source, strict=True)):
            order.insert(where, axis)
    elif name == "numpy_T":
        order = order[::-1]
    elif rank > 1:
        names = ("axis0", "axis1") if name == "swapaxes" else ("dim0", "dim1")
        default = (0, 1) if name == "t" else (-2, -1)
        a, b = (int(at.attr(n, d)) % rank for n, d in zip(names, default, strict=True))
        order[a], order[b] = order[b], order[a]
    return at.transposed(at.x, order)


@writes("unsqueeze")
def _unsqueeze(at: Site) -> str:
    return at("Unsqueeze", at.x, at.ints(int(at.attr("dim"))))


@writes("squeeze")
def _squeeze(at: Site) -> str:
    if at.shape == at.out:
        return at.x
    axes = [a % len(at.shape) for a in _axes(at)] or list(range(len(at.shape)))
    return at("Squeeze", at.x, at.ints(*(a for a in axes if at.shape[a] == 1)))


@writes("expand", "expand_as", "broadcast_to")
def _expand(at: Site) -> str:
    return at.x if at.shape == at.out else at("Expand", at.x, at.ints(*at.out))


@writes("repeat", "tile")
def _tile(at: Site) -> str:
    name = "repeats" if name_of(at.spec) == "repeat" else "dims"
    times = [int(t) for t in at.attr(name)]
    times = [1] * (len(at.shape) - len(times)) + times
    # The exporter adds the axes that are missing by a copy, even if none are.
    return at("Tile", at("Expand", at.x, at.ints(*[1] * len(times))), at.ints(*times))


@writes("repeat_interleave")
def _repeat_interleave(at: Site) -> str:
    times = at.attr("repeats")
    if not isinstance(times, int) or at.attr("dim") is None:
        raise at.refuse("with a number of repeats for each index")
    axis = at.axis()
    grown = [1] * (len(at.shape) + 1)
    grown[axis + 1] = times
    many = at("Expand", at("Unsqueeze", at.x, at.ints(axis + 1)), at.ints(*grown))
    return at("Reshape", many, at.ints(*at.out))


@writes("select")
def _select(at: Site) -> str:
    return at("Gather", at.x, at.array_of(int(at.attr("index")), "int64"), axis=at.axis())


@writes("slice", "narrow")
def _slice(at: Site) -> str:
    if at.shape == at.out:
        return at.x
    axis = at.axis()
    size, step = at.shape[axis], int(at.attr("step", 1) or 1)
    start = int(at.attr("start") or 0)
    start = max(0, start + size if start < 0 else start)
    end = start + (at.out[axis] - 1) * step + 1
    return at("Slice", at.x, *(at.ints(v) for v in (start, min(end, size), axis, step)))


@writes("unbind")
def _unbind(at: Site) -> list[str]:
    axis = at.axis()
    made = []
    for i in range(at.shape[axis]):
        piece = at("Slice", at.x, at.ints(i), at.ints(i + 1), at.ints(axis))
        made.append(at("Squeeze", piece, at.ints(axis)))
    return made


@writes(
    "chunk",
    "split",
    "split_with_sizes",
    "unsafe_chunk",
    "unsafe_split",
    "tensor_split",
    "unsafe_split_with_sizes",
)
def _split(at: Site) -> list[str]:
    axis = at.axis()
    sizes = [t.shape[axis] for t in at.spec.outputs]
    if len(sizes) == 1:
        return [at.x]
    if name_of(at.spec) == "tensor_split":
        edges = [int(e) for e in np.cumsum([0, *sizes])]
        cuts = itertools.pairwise(edges)
        return [at("Slice", at.x, at.ints(a), at.ints(b), at.ints(axis), at.ints(1)) for a, b in cuts]
    if len(set(sizes)) == 1:
        return at.several("Split", [at.x], len(sizes), axis=axis, num_outputs=len(sizes))
    return at.several("Split", [at.x, at.ints(*sizes)], len(sizes), axis=axis)


@writes("cat", "concat", "concatenate")
def _concat(at: Site) -> str:
    kept = [
        at.cast(x, t.dtype, at.spec.out.dtype)
        for x, t in zip(at.operands("tensors"), at.spec.inputs, strict=True)
        if tuple(t.shape) != (0,)  # which torch allows beside any shape
    ]
    return kept[0] if len(kept) == 1 else at("Concat", *kept, axis=int(at.attr("dim", 0)) % len(at.out))


@writes("hstack", "vstack", "dstack", "column_stack")
def _stack_along(at: Site) -> str:
    rank = len(at.shape)
    lead, trail, axis = {
        "hstack": (0, 0, min(1, rank - 1)),
        "vstack": (int(rank == 1), 0, 0),
        "dstack": (int(rank == 1), int(rank <= 2), 2),
        "column_stack": (0, int(rank == 1), 1),
    }[at.spec.kind]
    axes = [*range(lead), *range(rank + lead, rank + lead + trail)]
    made = [at("Unsqueeze", x, at.ints(*axes)) if axes else x for x in at.operands("tensors")]
    return made[0] if len(made) == 1 else at("Concat", *made, axis=axis)


@writes("atleast_1d", "atleast_2d", "atleast_3d")
def _at_least(at: Site) -> list[str]:
    shapes = [(t.shape, o.shape) for t, o in zip(at.spec.inputs, at.spec.outputs, strict=True)]
    return [
        x if before == after else at("Reshape", x, at.ints(*after), allowzero=1)
        for x, (before, after) in zip(at.operands(), shapes, strict=True)
    ]


@writes("stack")
def _stack(at: Site) -> str:
    axis = int(at.attr("dim", 0)) % len(at.out)
    return at("Concat", *(at("Unsqueeze", x, at.ints(axis)) for x in at.operands("tensors")), axis=axis)


@writes("roll")
def _roll(at: Site) -> str:
    shifts, dims = np.atleast_1d(at.attr("shifts")), _as_ints(at.attr("dims", ()))
    x = at.x
    if not dims:
        x, dims = at("Reshape", x, at.ints(-1)), [0]
    whole = [int(np.prod(at.shape))] if not at.attr("dims", ()) else at.shape
    for shift, axis in zip(shifts, dims, strict=True):
        size = whole[axis]
        cut = (size - int(shift)) % size
        if not cut:
            continue
        first = at("Slice", x, at.ints(0), at.ints(cut), at.ints(axis))
        last = at("Slice", x, at.ints(cut), at.ints(size), at.ints(axis))
        x = at("Concat", last, first, axis=axis)
    return x if at.attr("dims", ()) else at("Reshape", x, at.ints(*at.shape))


def _as_ints(value: Any) -> list[int]:
    return [int(v) for v in np.atleast_1d(np.asarray(value, dtype=np.int64))] if value != () else []


@writes("flip")
def _flip(at: Site) -> str:
    dims = [int(d) for d in at.attr("dims")]
    n, end = len(dims), -(2**63)
    return at("Slice", at.x, at.ints(*[-1] * n), at.ints(*[end] * n), at.ints(*dims), at.ints(*[-1] * n))


@writes("fliplr", "flipud")
def _flip_picture(at: Site) -> str:
    axis = at.ints(int(at.spec.kind == "fliplr"))
    return at("Slice", at.x, at.ints(-1), at.ints(-(2**63)), axis, at.ints(-1))


@writes("tril_indices", "triu_indices")
def _triangle_indices(at: Site) -> str:
    make = np.tril_indices if at.spec.kind == "tril_indices" else np.triu_indices
    found = make(int(at.attr("row")), int(at.attr("offset", 0)), int(at.attr("col")))
    return at.array_of(np.stack(found), at.spec.out.dtype)


@writes("tril", "triu")
def _triangle(at: Site) -> str:
    diagonal = at.array_of(int(at.attr("diagonal", 0)), "int64")
    return at("Trilu", at.x, diagonal, upper=int(at.spec.kind == "triu"))


_PADS = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@writes(
    *("pad", "constant_pad_nd"),
    *(f"{kind}_pad{rank}d" for kind in ("reflection", "replication") for rank in (1, 2, 3)),
)
def _pad(at: Site) -> str:
    kind = at.spec.kind
    named = {"ref": "reflect", "rep": "replicate"}.get(kind[:3], at.attr("mode", "constant"))
    given = [int(p) for p in at.attr("pad", at.attr("padding"))]
    rank = len(at.shape)
    before, after = [0] * rank, [0] * rank
    for i in range(len(given) // 2):  # torch counts from the last axis
        before[-1 - i], after[-1 - i] = given[2 * i], given[2 * i + 1]
    value = at.attr("value")
    fill = at.array_of(value) if value else ""
    return at("Pad", at.x, at.ints(*before, *after), fill, mode=_PADS[str(named)])


@writes("pixel_shuffle")
def _pixel_shuffle(at: Site) -> str:
    return at("DepthToSpace", at.x, blocksize=int(at.attr("upscale_factor")), mode="CRD")


@writes("pixel_unshuffle")
def _pixel_unshuffle(at: Site) -> str:
    n, c, h, w = at.shape
    f = int(at.attr("downscale_factor"))
    x = at("Reshape", at.x, at.ints(n, c, h // f, f, w // f, f), allowzero=1)
    x = at("Transpose", x, perm=[0, 1, 3, 5, 2, 4])
    return at("Reshape", x, at.ints(-1, c * f * f, h // f, w // f))


@writes("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(at: Site) -> str:
    n, c, *rest = at.shape
    groups = int(at.attr("groups"))
    x = at("Reshape", at.x, at.ints(n, groups, c // groups, *rest), allowzero=1)
    x = at("Transpose", x, perm=[0, 2, 1, *range(3, 3 + len(rest))])
    return at("Reshape", x, at.ints(*at.shape), allowzero=1)


@writes("im2col")
def _im2col(at: Site) -> str:
    padding, stride = at.sizes("padding", 2), at.sizes("stride", 2, 1)
    dilation, kernel = at.sizes("dilation", 2, 1), at.sizes("kernel_size", 2)
    x = at("Pad", at.x, at.ints(0, 0, *padding, 0, 0, *padding), mode="constant")
    for i, axis in ((0, 2), (1, 4)):
        span = at.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1)
        places = np.arange(kernel[i])[:, None] * dilation[i] + np.arange(0, span, stride[i])
        x = at("Gather", x, at.array_of(places, "int64"), axis=axis)
    x = at("Transpose", x, perm=[0, 1, 2, 4, 3, 5])
    return at("Reshape", x, at.ints(at.shape[0], at.out[1], -1))


@writes("col2im")
def _col2im(at: Site) -> str:
    return at(
        "Col2Im",
        *(at.x, at.ints(*at.sizes("output_size", 2)), at.ints(*at.sizes("kernel_size", 2))),
        strides=at.sizes("stride", 2, 1),
        pads=at.sizes("padding", 2) * 2,
        dilations=at.sizes("dilation", 2, 1),
    )


@writes("unfold")
def _unfold(at: Site) -> str:
    axis, size, step = int(at.attr("dimension")) % len(at.shape), at.out[-1], int(at.attr("step"))
    starts = np.arange(0, at.shape[axis] - size + 1, step)
    x = at("Gather", at.x, at.array_of(starts[:, None] + np.arange(size), "int64"), axis=axis)
    order = [a for a in range(len(at.shape) + 1) if a != axis + 1]
    return at("Transpose", x, perm=[*order, axis + 1])


# Reading by index.


@writes("embedding")
def _embedding(at: Site) -> str:
    return at("Gather", at["weight"], at["indices"], axis=0)


@writes("index_select")
def _index_select(at: Site) -> str:
    return at("Gather", at["self"], at["index"], axis=at.axis())


@writes("take_along_dim")
def _take_along(at: Site) -> str:
    return at("GatherElements", at["self"], at["indices"], axis=at.axis())


@writes("gather")
def _gather(at: Site) -> str:
    return at("GatherElements", at["self"], at["index"], axis=at.axis())


def _index_rows(at: Site) -> tuple[str, list[int], int]:
    """Indices as rows of coordinates, the axes that they run along, and the rank of the indices."""
    given = [t for t in at.spec.inputs if t.name == "indices"]
    if any(t.dtype in ("bool", "uint8") for t in given):
        raise at.refuse("with a mask as index")
    there = at.attr("indices") or (True,) * len(given)
    axes = [a for a, present in enumerate(there) if present]
    shape = np.broadcast_shapes(*(t.shape for t in given))
    columns = []
    for value, tensor in zip(at.operands("indices"), given, strict=True):
        wide = value if tensor.shape == shape else at("Expand", value, at.ints(*shape))
        columns.append(at("Unsqueeze", wide, at.ints(-1)))
    return columns[0] if len(columns) == 1 else at("Concat", *columns, axis=-1), axes, len(shape)


@writes("index", "_unsafe_index")
def _index(at: Site) -> str:
    rows, axes, depth = _index_rows(at)
    rank = len(at.shape)
    order = [*axes, *(a for a in range(rank) if a not in axes)]
    picked = at("GatherND", at.transposed(at["self"], order), rows)
    if axes[-1] - axes[0] + 1 > len(axes):
        return picked
    front = depth + axes[0]
    return at.transposed(picked, [*range(depth, front), *range(depth), *range(front, len(at.out))])


@writes("index_put")
def _index_put(at: Site) -> str:
    rows, axes, depth = _index_rows(at)
    rank = len(at.shape)
    order = [*axes, *(a for a in range(rank) if a not in axes)]
    target = [*at.spec["indices"].shape, *(at.shape[a] for a in order[len(axes) :])]
    values, given = at["values"], len(at.spec["values"].shape)
    if axes[-1] - axes[0] + 1 == len(axes):
        if given < len(target):
            values = at("Unsqueeze", values, at.ints(*range(len(target) - given)))
        middle, end = range(axes[0], axes[0] + depth), range(axes[0] + depth, len(target))
        values = at.transposed(values, [*middle, *range(axes[0]), *end])
    added = {"reduction": "add"} if at.attr("accumulate") else {}
    values = at("Expand", values, at.ints(*target))
    written = at("ScatterND", at.transposed(at["self"], order), rows, values, **added)
    return at.transposed(written, np.argsort(order))


@writes("index_add")
def _index_add(at: Site) -> str:
    axis, rank = at.axis(), len(at.shape)
    order = [axis, *(a for a in range(rank) if a != axis)]
    source = at["source"]
    if at.attr("alpha", 1) != 1:
        source = at("Mul", source, at.array_of(at.attr("alpha")))
    rows = at("Unsqueeze", at["index"], at.ints(-1))
    x, source = at.transposed(at["self"], order), at.transposed(source, order)
    written = at("ScatterND", x, rows, source, reduction="add")
    return at.transposed(written, np.argsort(order))


@writes("select_scatter")
def _select_scatter(at: Site) -> str:
    axis = at.axis()
    shape = tuple(1 if a == axis else size for a, size in enumerate(at.shape))
    places = at.array_of(np.full(shape, int(at.attr("index"))), "int64")
    source = at("Unsqueeze", at["src"], at.ints(axis))
    return at("ScatterElements", at["self"], places, source, axis=axis, reduction="none")


@writes("slice_scatter")
def _slice_scatter(at: Site) -> str:
    axis, rank = at.axis(), len(at.shape)
    size, step = at.shape[axis], int(at.attr("step", 1) or 1)
    start = int(at.attr("start") or 0)
    start = max(0, start + size if start < 0 else start)
    places = start + step * np.arange(at.spec["src"].shape[axis])
    if len(places) == size:
        return at["src"]
    order = [axis, *(a for a in range(rank) if a != axis)]
    rows = at.array_of(places[:, None], "int64")
    x, source = at.transposed(at["self"], order), at.transposed(at["src"], order)
    return at.transposed(at("ScatterND", x, rows, source), np.argsort(order))


@writes("one_hot")
def _one_hot(at: Site) -> str:
    wide = at("Unsqueeze", at.x, at.ints(-1))
    return at("Cast", at("Equal", wide, at.array_of(np.arange(at.out[-1]), "int64")), to=7)


@writes("diagonal")
def _diagonal(at: Site) -> str:
    a, b = (int(at.attr(n, d)) % len(at.shape) for n, d in (("dim1", 0), ("dim2", 1)))
    offset, rank = int(at.attr("offset", 0)), len(at.shape)
    order = [*(x for x in range(rank) if x not in (a, b)), a, b]
    x = at.transposed(at.x, order)
    eye = np.eye(at.shape[a], at.shape[b], offset)
    kept = at("ReduceSum", at("Mul", x, at.array_of(eye)), at.ints(rank - 2), keepdims=0)
    start = max(offset, 0)
    return at("Slice", kept, at.ints(start), at.ints(start + at.out[-1]), at.ints(rank - 2))


@writes("as_strided")
def _as_strided(at: Site) -> str:
    places = np.full(at.out, int(at.attr("storage_offset") or 0))
    for axis, stride in enumerate(at.attr("stride")):
        steps = np.arange(at.out[axis]) * int(stride)
        places = places + steps.reshape([-1 if a == axis else 1 for a in range(len(at.out))])
    return at("Gather", at("Reshape", at.x, at.ints(-1)), at.array_of(places, "int64"))


@writes("meshgrid", "broadcast_tensors")
def _broadcast(at: Site) -> list[str]:
    made = []
    for i, (value, tensor) in enumerate(zip(at.operands(), at.spec.inputs, strict=True)):
        axis = i
        if name_of(at.spec) == "meshgrid":
            if at.attr("indexing") == "xy" and i < 2:
                axis = 1 - i
            shape = [tensor.shape[0] if a == axis else 1 for a in range(len(at.out))]
            value = at("Reshape", value, at.ints(*shape), allowzero=1)
        made.append(at("Expand", value, at.ints(*at.out)))
    return made


@writes("scatter", "scatter_add")
def _scatter(at: Site) -> str:
    if at.attr("reduce") is not None:
        raise at.refuse("with a reduction")
    index = at.spec["index"]
    source = at["src"] or at.array_of(np.full(index.shape, at.attr("value")))
    how = "add" if at.spec.kind == "scatter_add" else "none"
    return at("ScatterElements", at["self"], at["index"], source, axis=at.axis(), reduction=how)


# Constants, which the exporter folds.


_VALUES = {"zeros": 0, "zero": 0, "ones": 1, "empty": 0}


@writes(
    *("zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "empty"),
    *(
        "new_full",
        "scalar_tensor",
        "empty_like",
        "new_empty",
        "empty_strided",
        "empty_permuted",
        "zero",
        "fill",
    ),
)
def _filled(at: Site) -> str:
    if at.has("value"):
        return at("Expand", at.operand_as("value", at.spec.out.dtype), at.ints(*at.out))
    name = at.spec.kind.removeprefix("new_").removesuffix("_like")
    value = _VALUES.get(name.partition("_")[0], at.attr("fill_value", at.attr("s", at.attr("value"))))
    return at.array_of(np.full(at.out, value), at.spec.out.dtype)


@writes("linspace")
def _linspace(at: Site) -> str:
    return at.array_of(np.linspace(at.attr("start"), at.attr("end"), at.out[0]), at.spec.out.dtype)


@writes("arange")
def _arange(at: Site) -> str:
    start, step = at.attr("start", 0) or 0, at.attr("step", 1) or 1
    return at.array_of(start + step * np.arange(at.out[0]), at.spec.out.dtype)


@writes("eye")
def _eye(at: Site) -> str:
    return at.array_of(np.eye(at.out[0], at.out[1]), at.spec.out.dtype)
