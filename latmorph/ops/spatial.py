"""Operators over the space that channels are spread over: pooling, resizing, padding, patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from latmorph.ops.base import AxisLabels, Handler, Labels, Shape, as_tuple, freeze_everything, pass_axes, prod
from latmorph.ops.rearrange import Rearrangement, Take
from latmorph.opspec import OpSpec, Scalar


class Pool(Handler):
    """Pooling and resizing over the trailing axes; those before them pass through."""

    pools = (
        *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
        *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d"),
        *("adaptive_max_pool2d", "adaptive_max_pool3d", "max_pool1d_with_indices"),
        *("max_pool2d_with_indices", "max_pool3d_with_indices"),
    )
    resizes = (
        *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d"),
        *("_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d"),
        *("upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bilinear2d_aa"),
        "_upsample_bicubic2d_aa",
    )
    aten = (*pools, *resizes)
    alike: Mapping[str, str] = {
        **dict.fromkeys(("max_pool1d", "max_pool1d_with_indices", "max_pool2d_with_indices"), "max_pool2d"),
        "max_pool3d_with_indices": "max_pool3d",
        "avg_pool1d": "avg_pool2d",
        "avg_pool3d": "max_pool3d",
        "adaptive_avg_pool1d": "adaptive_avg_pool2d",
        "adaptive_avg_pool3d": "adaptive_avg_pool2d",
        "adaptive_max_pool1d": "adaptive_max_pool2d",
        "adaptive_max_pool3d": "adaptive_max_pool2d",
        **dict.fromkeys((n for n in resizes if "nearest" in n), "upsample_nearest2d"),
        **dict.fromkeys(("upsample_linear1d", "upsample_trilinear3d"), "upsample_bilinear2d"),
        **dict.fromkeys(("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"), "upsample_bicubic2d"),
    }

    def space(self, spec: OpSpec) -> int:
        """Number of trailing axes that the operator works along."""
        return int(next(c for c in spec.kind if c.isdigit()))

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        return {
            "kernel": prod(as_tuple(spec.attr("kernel_size", (1,)))),
            "stride": prod(as_tuple(spec.attr("stride", (1,)) or (1,))),
            "row": spec.out.shape[-1],
        }

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        space = self.space(spec)
        kept = [io.axis(0, a) for a in range(len(spec.out.shape) - space)]
        freeze_trailing(spec, io, space)
        for i in range(len(spec.outputs)):
            io.output([*kept, *[None] * space], i)


class GridSample(Handler):
    """Images read at places that another tensor gives: input ``(N, C, *size)``, grid ``(N, *out, rank)``."""

    aten = ("grid_sampler",)
    alike: Mapping[str, str] = {"grid_sampler": "upsample_bilinear2d"}

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        for axis in range(len(spec.inputs[1].shape)):
            io.freeze(io.axis(1, axis), "grid_sampler reads these as places")
        freeze_trailing(spec, io, len(spec.out.shape) - 2)
        io.output([io.axis(0, 0), io.axis(0, 1), *[None] * (len(spec.out.shape) - 2)])


class Pad(Handler):
    """Padding of the trailing axes."""

    edges = tuple(f"{how}_pad{rank}d" for how in ("reflection", "replication") for rank in (1, 2, 3))
    aten = ("pad", "constant_pad_nd", *edges)
    alike: Mapping[str, str] = dict.fromkeys(("constant_pad_nd", *edges), "pad")

    def keeps_zero(self, spec: OpSpec) -> bool:
        return spec.attr("mode", "constant") != "constant" or not spec.attr("value")

    def resized(self, spec: OpSpec, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> OpSpec:
        new = super().resized(spec, inputs, outputs)
        name = "pad" if spec.attr("pad") is not None else "padding"
        given, found = as_tuple(spec.attr(name)), []
        rank = len(new.out.shape)
        for k, (before, after) in enumerate(zip(given[::2], given[1::2], strict=True)):
            added = new.out.shape[rank - 1 - k] - new.inputs[0].shape[rank - 1 - k]
            found += (
                [before, after] if before + after == added else [min(before, added), max(0, added - before)]
            )
        return new.with_attr(name, tuple(found))

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        axes = [io.axis(0, a) for a in range(len(spec.out.shape))]
        rank, given = len(axes), as_tuple(spec.attr("pad", spec.attr("padding")))
        for k, (before, after) in enumerate(zip(given[::2], given[1::2], strict=True)):
            own = axes[rank - 1 - k]
            if own is None or not (before or after):
                continue
            if spec.attr("mode", "constant") == "constant" and min(before, after) >= 0:
                # Of what is padded with there can be any number.
                own = np.concatenate([io.fresh(before), own, io.fresh(after)])
            else:
                io.freeze(own, f"{spec.kind} goes on along these channels")
                own = None
            axes[rank - 1 - k] = own
        io.output(axes)


class Patches(Handler):
    """Patches as columns and back: ``(N, C, H, W)`` and ``(N, C * kernel, L)``."""

    aten = ("im2col", "col2im")
    alike: Mapping[str, str] = {"col2im": "im2col"}

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        return {"kernel": prod(as_tuple(spec.attr("kernel_size"))), "row": spec.out.shape[-1]}

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        kernel = int(prod(as_tuple(spec.attr("kernel_size"))))
        rank = len(spec.inputs[0].shape)
        axis = rank - (3 if spec.kind == "im2col" else 2)
        x = io.axis(0, axis)
        if x is not None and spec.kind == "im2col":
            x = x.repeat(kernel)
        elif x is not None:
            x = _owners(io, x, kernel)
        freeze_trailing(spec, io, rank - axis - 1)
        lead = [io.axis(0, a) for a in range(axis)]
        io.output([*lead, x, *[None] * (len(spec.out.shape) - axis - 1)])


class PixelShuffle(Handler):
    """Channels to pixels and back: ``(..., C * r * r, H, W)`` and ``(..., C, H * r, W * r)``."""

    aten = ("pixel_shuffle", "pixel_unshuffle")
    alike: Mapping[str, str] = dict.fromkeys(aten, "copy")

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        factor = spec.attr("upscale_factor", spec.attr("downscale_factor")) ** 2
        axis = len(spec.out.shape) - 3
        x = io.axis(0, axis)
        if x is not None:
            x = _owners(io, x, factor) if spec.kind == "pixel_shuffle" else x.repeat(factor)
        freeze_trailing(spec, io, 2)
        io.output([*(io.axis(0, a) for a in range(axis)), x, None, None])


class ChannelShuffle(Handler):
    """Channels (axis 1) read group by group, one of each in turn."""

    aten = ("channel_shuffle", "native_channel_shuffle")
    alike: Mapping[str, str] = dict.fromkeys(aten, "copy")

    def rearrangements(self, spec: OpSpec) -> list[Rearrangement]:
        places = np.arange(spec.out.shape[1]).reshape(spec.attr("groups"), -1)
        return [Take(1, places.T.ravel())]

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        io.rearranged(self.rearrangements(spec)[0])


def freeze_trailing(spec: OpSpec, io: AxisLabels, count: int) -> None:
    """Freeze the last ``count`` axes of the first operand, which the operator works along."""
    rank = len(spec.inputs[0].shape)
    for axis in range(rank - count, rank):
        io.freeze(io.axis(0, axis), f"{spec.kind} works along these channels")


def _owners(io: AxisLabels, labels: Labels, count: int) -> Labels:
    """Labels of channels that own ``count`` indices each, which live and die together."""
    assert labels is not None
    grouped = labels.reshape(-1, count)
    for k in range(1, count):
        io.tie(grouped[:, 0], grouped[:, k])
    return grouped[:, 0]


class Roll(Handler):
    """Axes turned around or turned over; those axes freeze."""

    aten = ("roll", "flip", "fliplr", "flipud", "rot90")
    alike: Mapping[str, str] = dict.fromkeys(("flip", "fliplr", "flipud", "rot90"), "roll")

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        dims = as_tuple(spec.attr("dims", ()))
        if spec.kind not in ("roll", "flip") or not dims:
            freeze_everything(spec, io, f"{spec.kind} moves these channels")
            return
        rank = len(spec.out.shape)
        pass_axes(spec, io, {d % rank: f"{spec.kind} moves these channels" for d in dims})


class Triangle(Handler):
    """A matrix with zeros above or below a diagonal."""

    aten = ("tril", "triu")
    alike: Mapping[str, str] = dict.fromkeys(aten, "where")

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        rank = len(spec.out.shape)
        pass_axes(spec, io, dict.fromkeys((rank - 2, rank - 1), f"{spec.kind} has a diagonal over these"))
