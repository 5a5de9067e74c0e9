"""How pooling, resizing, padding and patches are written as ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from latmorph import ops
from latmorph.onnx_ops.site import Site, batched, writes


def _pool_attributes(at: Site, rank: int) -> dict[str, Any]:
    stride = at.attr("stride")
    return {
        "kernel_shape": at.sizes("kernel_size", rank),
        "strides": at.sizes("stride" if stride not in (None, ()) else "kernel_size", rank),
        "pads": at.sizes("padding", rank) * 2,
        "ceil_mode": int(bool(at.attr("ceil_mode", False))),
    }


@writes(*(f"max_pool{rank}d{how}" for rank in (1, 2, 3) for how in ("", "_with_indices")))
def _max_pool(at: Site) -> str | list[str]:
    rank = int(at.spec.kind[len("max_pool")])
    settings = _pool_attributes(at, rank) | {"dilations": at.sizes("dilation", rank, 1)}
    if len(at.spec.outputs) == 1:
        return batched(at, rank, lambda x: at("MaxPool", x, **settings))
    return at.several("MaxPool", [at.x], 2, **settings)


@writes("avg_pool1d", "avg_pool2d", "avg_pool3d")
def _avg_pool(at: Site) -> str:
    if at.attr("divisor_override") is not None:
        raise at.refuse("with a divisor")
    rank = int(at.spec.kind[-2])
    counted = int(bool(at.attr("count_include_pad", True)))
    settings = _pool_attributes(at, rank) | {"count_include_pad": counted}
    return batched(at, rank, lambda x: at("AveragePool", x, **settings))


@writes(*(f"adaptive_{kind}_pool{rank}d" for kind in ("avg", "max") for rank in (1, 2, 3)))
def _adaptive_pool(at: Site) -> str | list[str]:
    average = "avg" in at.spec.kind
    rank = int(at.spec.kind[-2])
    sizes, wanted = list(at.shape[-rank:]), list(at.out[-rank:])
    x = at.x
    if rank == 1:  # the exporter writes it as the two-dimensional one
        x, sizes, wanted = at("Unsqueeze", x, at.ints(-2)), [1, *sizes], [1, *wanted]
    if all(w == 1 for w in wanted):
        axes = [-1 - a for a in range(len(sizes))]
        ordered = axes if average else axes[::-1]
        x = at("ReduceMean" if average else "ReduceMax", x, at.ints(*ordered), keepdims=1)
        if average and rank == 2 and at.attr("strided"):
            # Torch keeps the channels last in memory, and the exporter writes even that.
            x = at("Gather", at("Reshape", x, at.ints(-1)), at.array_of(_counting(at.out), "int64"))
    elif all(s % w == 0 for s, w in zip(sizes, wanted, strict=True)):
        kernel = [s // w for s, w in zip(sizes, wanted, strict=True)]
        settings = {"count_include_pad": 1} if average else {}
        op = "AveragePool" if average else "MaxPool"
        x = at(op, x, kernel_shape=kernel, strides=kernel, pads=[0] * 2 * len(kernel), **settings)
    elif average and len(sizes) == 2:
        x = _uneven_mean(at, x, sizes, wanted)
    else:
        raise at.refuse(f"from {tuple(sizes)} to {tuple(wanted)}")
    pooled = at("Squeeze", x, at.ints(-2)) if rank == 1 else x
    return [pooled] * len(at.spec.outputs)


def _counting(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(ops.prod(shape)).reshape(shape)


def _uneven_mean(at: Site, x: str, sizes: Sequence[int], wanted: Sequence[int]) -> str:
    """Windows of unequal size: gathered, what is beyond a window masked, added up, divided."""
    places, counts = [], []
    for size, out in zip(sizes, wanted, strict=True):
        start = np.arange(out) * size // out
        end = -(-(np.arange(out) + 1) * size // out)
        places.append(start[:, None] + np.arange((end - start).max()))
        counts.append(end - start)
    masks = [p - p[:, :1] >= c[:, None] for p, c in zip(places, counts, strict=True)]
    clipped = [np.minimum(p, s - 1) for p, s in zip(places, sizes, strict=True)]
    lead = len(at.out) - 2 if at.spec.kind[-2] == "2" else len(at.out) - 1
    grid = np.stack(np.broadcast_arrays(clipped[0][:, :, None, None], clipped[1]), axis=-1)
    order = [lead, lead + 1, *range(lead)]
    back = [4 + a for a in range(lead)] + [0, 1, 2, 3]
    windows = at("GatherND", at("Transpose", x, perm=order), at.array_of(grid, "int64"))
    windows = at("Transpose", windows, perm=back)
    for mask, axes in zip(masks, ((2, 3), ()), strict=True):
        if mask.any():
            shape = (*mask.shape, *[1] * len(axes))
            windows = at("Where", at.array_of(mask.reshape(shape), "bool"), at.array_of(0.0), windows)
    total = ""
    for i in range(places[0].shape[1]):
        row = at("Gather", windows, at.array_of(i, "int64"), axis=lead + 1)
        for j in range(places[1].shape[1]):
            one = at("Gather", row, at.array_of(j, "int64"), axis=lead + 2)
            total = at("Add", total, one) if total else one
    return at("Div", total, at.array_of(np.outer(*counts)))


_RESIZES = {"nearest": "nearest", "bilinear": "linear", "trilinear": "linear"} | {"bicubic": "cubic"}


@writes(
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
    *("upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d"),
    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
)
def _resize(at: Site) -> str:
    _, method, *smooth = at.spec.kind.strip("_").split("_")
    mode = _RESIZES[method[:-2]]
    settings: dict[str, Any] = {"mode": mode, "cubic_coeff_a": -0.75, "nearest_mode": "floor"}
    if mode == "nearest":
        settings["coordinate_transformation_mode"] = "asymmetric"
    elif at.attr("align_corners"):
        settings["coordinate_transformation_mode"] = "align_corners"
    else:
        settings["coordinate_transformation_mode"] = "half_pixel"
    if smooth:
        settings |= {"antialias": 1, "exclude_outside": 1}
    factors = at.attr("scale_factors")
    if factors:
        scales = at.array_of([1.0, 1.0, *factors], "float32")
        return at("Resize", at.x, "", scales, **settings)
    return at("Resize", at.x, "", "", at.ints(*at.out), **settings)


@writes("grid_sampler")
def _grid_sampler(at: Site) -> str:
    mode = ("linear", "nearest", "cubic")[int(at.attr("interpolation_mode", 0))]
    padding = ("zeros", "border", "reflection")[int(at.attr("padding_mode", 0))]
    corners = int(bool(at.attr("align_corners")))
    return at("GridSample", at["input"], at["grid"], mode=mode, padding_mode=padding, align_corners=corners)


@writes(*(f"_upsample_nearest_exact{rank}d" for rank in (1, 2, 3)))
def _nearest_exact(at: Site) -> str:
    rank = int(at.spec.kind[-2])
    sizes = zip(at.shape[2:], at.out[2:], strict=True)
    places = [np.minimum((np.arange(out) + 0.5) * size / out, size - 1) for size, out in sizes]
    grid = np.stack(np.meshgrid(*(p.astype(np.int64) for p in places), indexing="ij"), axis=-1)
    x = at("Transpose", at.x, perm=[*range(2, 2 + rank), 0, 1])
    return at("Transpose", at("GatherND", x, at.array_of(grid, "int64")), perm=[rank, rank + 1, *range(rank)])


@writes("upsample_linear1d")
def _resize_line(at: Site) -> str:
    """Two neighbours, gathered, and the weighted way from one to the other."""
    size, out = at.shape[-1], at.out[-1]
    if at.attr("align_corners"):
        at_x = np.arange(out) * ((size - 1) / max(out - 1, 1))
    else:
        factors = at.attr("scale_factors")
        scale = 1 / factors[0] if factors else size / out
        at_x = np.maximum((np.arange(out) + 0.5) * scale - 0.5, 0)
    first = np.floor(at_x)
    x = at("Transpose", at.x, perm=[2, 0, 1])
    ends = [
        at("Transpose", at("GatherND", x, at.array_of(places[:, None], "int64")), perm=[1, 2, 0])
        for places in (first, np.minimum(first + 1, size - 1))
    ]
    weight = at.array_of(np.clip(at_x - first, 0, 1))
    return at("Add", ends[0], at("Mul", at("Sub", ends[1], ends[0]), weight))
