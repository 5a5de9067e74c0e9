"""Operators that rename axes, move data about, or reduce it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from latmorph.ops.base import AxisLabels, Handler, Labels, Shape, as_tuple, freeze_everything, prod
from latmorph.ops.pointwise import broadcast_axes
from latmorph.ops.rearrange import Permute, Rearrangement, Reshape, Take
from latmorph.opspec import OpSpec, Scalar, TensorSpec


class Layout(Handler):
    """Operators that only rename axes (``view``) or rewrite memory in another order (``copy``).

    The name in ``aten`` stands in the attribute ``op``; the kind says whether bytes move.
    """

    shapes = (
        *("flatten", "view", "reshape", "unflatten", "unsqueeze", "squeeze", "view_as", "reshape_as"),
        *("ravel", "_unsafe_view", "_reshape_alias", "atleast_1d", "atleast_2d", "atleast_3d"),
    )
    orders = (
        *("permute", "transpose", "t", "swapaxes", "swapdims", "movedim", "moveaxis", "numpy_T", "mT", "mH"),
        *("adjoint", "matrix_H"),
    )
    splits = (
        *("split", "split_with_sizes", "tensor_split", "unsafe_split", "unsafe_split_with_sizes"),
        *("hsplit", "vsplit", "dsplit"),
    )
    cuts = ("select", "slice", "unbind", "narrow", *splits)
    halves = ("chunk", "unsafe_chunk")
    same = (
        *("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"),
        *("contiguous", "clone", "detach", "alias", "to", "_to_copy", "type_as", "lift_fresh_copy"),
        *("_conj", "resolve_conj", "resolve_neg", "real", "imag"),
    )
    expands = ("expand", "expand_as", "broadcast_to")
    others = (
        *expands,
        *("meshgrid", "unfold", "diagonal", "view_as_real"),
        *("view_as_complex", "as_strided", "broadcast_tensors"),
    )
    aten = (*shapes, *orders, *cuts, *halves, *same, *others)
    lists = ("tensors",)
    dispatched: Mapping[str, str] = {
        **dict.fromkeys(shapes, "reshape"),
        **dict.fromkeys(orders, "transpose"),
        **dict.fromkeys(("select", "unbind"), "select"),
        **dict.fromkeys(("slice", "narrow"), "slice"),
        **dict.fromkeys(same, "same"),
    }

    def family(self, spec: OpSpec) -> str:
        if spec.kind == "copy":
            return "copy"
        # Nothing is computed and nothing moved: a view costs its dispatch, which differs by operator.
        return f"view ({self.dispatched.get(str(spec.attr('op')), 'other')})"

    def bytes(self, spec: OpSpec) -> Scalar:
        if spec.kind == "view":
            return 0
        return super().bytes(spec)

    def resized(self, spec: OpSpec, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> OpSpec:
        name, new = str(spec.attr("op")), super().resized(spec, inputs, outputs)
        sized = name != "unfold"  # whose size is a window's
        for attr in ("size", "shape") if sized else ():
            given = spec.attr(attr)
            if given is not None:  # -1 stands for what is left, at any width
                new = new.with_attr(attr, _open(given, new.out.shape))
        if name == "unflatten":
            given, dim = spec.attr("sizes"), spec.attr("dim") % len(spec.inputs[0].shape)
            new = new.with_attr("sizes", _open(given, new.out.shape[dim : dim + len(given)]))
        cut = name in (*self.splits, *self.halves)
        sizes, before = (
            [t.shape[spec.attr("dim", 0)] for t in s.outputs] if cut else [] for s in (new, spec)
        )
        if sizes != before:
            dim = spec.attr("dim", 0)
            parts = {"split_sizes": tuple(sizes), "dim": dim, "op": "split_with_sizes"}
            left_out = {*parts, "chunks", "split_size", "sections", "indices"}
            kept = [pair for pair in new.attrs if pair[0] not in left_out]
            return replace(new, attrs=(*kept, *parts.items()))
        dim, step = spec.attr("dim", 0), spec.attr("step", 1)
        if name in ("slice", "narrow") and new.out.shape[dim] != spec.out.shape[dim]:
            size = new.out.shape[dim]
            ends = {"slice": ("end", (size - 1) * step + 1), "narrow": ("length", size)}
            new = new.with_attr("start", 0).with_attr(*ends[name])
        return new

    def silent(self, spec: OpSpec, operands: Sequence[bool]) -> bool:
        return operands[0] and spec.attr("op") not in self.expands  # one copy less is no zero

    def target(self, spec: OpSpec) -> str:
        name = str(spec.attr("op"))
        # Dropout calls what it reads "input", but "self" where it works in place.
        return f"{name}_" if "dropout" in name and spec.operand("self") is not None else name

    def rearrangements(self, spec: OpSpec) -> list[Rearrangement]:
        name = str(spec.attr("op"))
        shape = spec.inputs[0].shape
        rank = len(shape)
        if name in self.shapes:
            return [Reshape(shape, spec.out.shape)]
        if name in self.orders:
            return [Permute(tuple(_order(spec, name, rank)))]
        if name in self.same:
            return [Permute(tuple(range(rank)))]
        if name not in (*self.cuts, *self.halves) or not rank:
            return []
        dim = spec.attr("dim", {"vsplit": 0, "hsplit": min(1, rank - 1), "dsplit": 2}.get(name, 0)) % rank
        places = np.arange(shape[dim])
        if name == "select":
            return [Take(dim, places[[spec.attr("index")]], kept=False)]
        if name == "unbind":
            return [Take(dim, places[[k]], kept=False) for k in range(len(spec.outputs))]
        if name == "slice":
            return [Take(dim, places[spec.attr("start") : spec.attr("end") : spec.attr("step")])]
        if name == "narrow":
            return [Take(dim, places[spec.attr("start") :][: spec.attr("length")])]
        ends = np.cumsum([t.shape[dim] for t in spec.outputs])
        return [Take(dim, part) for part in np.split(places, ends[:-1])]

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        name = str(spec.attr("op"))
        found = self.rearrangements(spec)
        if found:
            for i, how in enumerate(found):
                io.rearranged(how, i)
        elif name in self.expands:
            self._expand(spec, io)
        elif name == "unfold":
            dim = spec.attr("dimension") % len(spec.inputs[0].shape)
            axes = [io.axis(0, a) for a in range(len(spec.inputs[0].shape))]
            io.freeze(axes[dim], "unfold makes windows of these channels")
            axes[dim] = None
            io.output([*axes, None])
        else:
            freeze_everything(spec, io, f"{name} has no channel rule")

    def _expand(self, spec: OpSpec, io: AxisLabels) -> None:
        """Copies can be of any number: of heads that share a key, say, or of another operand's channels."""
        before, after = spec.inputs[0].shape, spec.out.shape
        lead = len(after) - len(before)
        given: list[Labels] = [None] * len(after)
        if len(spec.inputs) > 1:
            given = [io.axis(1, a) for a in range(len(after))]
        axes: list[Labels] = []
        for a, size in enumerate(after):
            own = io.axis(0, a - lead) if a >= lead else None
            if a >= lead and before[a - lead] == size:
                if len(spec.inputs) > 1:
                    io.tie(own, given[a])
            else:
                io.freeze(own, "expanded from one channel to many")
                own = given[a] if len(spec.inputs) > 1 else io.fresh(size)
            axes.append(own)
        io.output(axes)


def _open(given: Sequence[int], sizes: Sequence[Scalar]) -> tuple[Scalar, ...]:
    """Sizes, with -1 where it was given: it stands for what is left, at any width."""
    return tuple(-1 if g == -1 else size for g, size in zip(given, sizes, strict=True))


def _order(spec: OpSpec, name: str, rank: int) -> list[int]:
    """For every axis of the output, the axis of the input that it is."""
    order = list(range(rank))
    if name == "permute":
        return [d % rank for d in spec.attr("dims")]
    if name == "numpy_T":
        return order[::-1]
    if name in ("movedim", "moveaxis"):
        source = [d % rank for d in as_tuple(spec.attr("source"))]
        destination = [d % rank for d in as_tuple(spec.attr("destination"))]
        rest = iter(d for d in order if d not in source)
        return [source[destination.index(d)] if d in destination else next(rest) for d in order]
    if rank >= 2:
        last = name in ("mT", "mH", "adjoint", "matrix_H")
        a = spec.attr("dim0", spec.attr("axis0", -2 if last else 0))
        b = spec.attr("dim1", spec.attr("axis1", -1 if last else 1))
        order[a], order[b] = order[b], order[a]
    return order


class Concat(Handler):
    """Concatenation along ``dim``; ``stack`` along a new one."""

    aten = ("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "column_stack")
    alike: Mapping[str, str] = dict.fromkeys(aten[1:], "cat")
    lists = ("tensors",)

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        return {"operands": len(spec.inputs)}

    def target(self, spec: OpSpec) -> str:
        return spec.kind

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        rank = len(spec.inputs[0].shape)
        ranks = {len(t.shape) for t in spec.inputs}
        if spec.kind.endswith("stack") and spec.kind != "stack":
            freeze_everything(spec, io, f"operator {spec.kind} has no channel rule")
            return
        new = spec.kind == "stack"
        dim = spec.attr("dim", 0) % (rank + new)
        axes: list[Labels] = []
        for axis in range(rank if len(ranks) == 1 else 0):
            parts = [io.axis(i, axis) for i in range(len(spec.inputs))]
            if axis != dim or new:
                for part in parts[1:]:
                    io.tie(parts[0], part)
                axes.append(parts[0])
            elif all(p is None for p in parts):
                axes.append(None)
            else:
                sizes = (t.shape[axis] for t in spec.inputs)
                whole = [np.full(n, -1) if p is None else p for p, n in zip(parts, sizes, strict=True)]
                axes.append(np.concatenate(whole))
        if new:
            axes.insert(dim, None)
        if len(ranks) > 1:  # an empty tensor, which torch lets pass
            freeze_everything(spec, io, "concatenated with a tensor of another rank")
        else:
            io.output(axes)


class Repeat(Handler):
    """A tensor written several times over: a channel's copies live and die with it."""

    aten = ("repeat", "tile", "repeat_interleave")
    alike: Mapping[str, str] = {"tile": "repeat", "repeat_interleave": "repeat"}

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        before, after = spec.inputs[0].shape, spec.out.shape
        lead = len(after) - len(before)
        if lead < 0 or len(spec.inputs) > 1:
            freeze_everything(spec, io, f"{spec.kind} writes these channels several times")
            return
        axes: list[Labels] = [None] * lead
        for a, size in enumerate(before):
            own = io.axis(0, a)
            if own is not None and size != after[a + lead]:
                times = after[a + lead] // size
                own = np.repeat(own, times) if spec.kind == "repeat_interleave" else np.tile(own, times)
            axes.append(own)
        io.output(axes)


class Gather(Handler):
    """Elements read by index, and counts of them; what is read is as large as what is written."""

    aten: tuple[str, ...] = (
        *("index_select", "gather", "take", "take_along_dim", "one_hot", "nonzero", "histc"),
        *("bucketize", "searchsorted"),
    )
    alike: Mapping[str, str] = dict.fromkeys(aten, "index")

    def bytes(self, spec: OpSpec) -> Scalar:
        written = sum((t.bytes for t in spec.outputs), 0)
        return 2 * written + sum((t.bytes for t in spec.inputs[1:]), 0)

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        reason = f"{spec.kind} picks among these channels"
        rank = len(spec.inputs[0].shape)
        if spec.kind == "index_select" and rank:
            io.freeze(io.axis(1, 0), reason)
            axes = [io.axis(0, a) for a in range(rank)]
            io.freeze(axes[spec.attr("dim") % rank], reason)
            axes[spec.attr("dim") % rank] = None
            io.output(axes)
        else:
            freeze_everything(spec, io, reason)


class Index(Gather):
    """Elements read by one tensor of indices for each of some axes, or by a mask.

    Axes without an index pass; those with one become the indices' own, where the first of them stood, or
    in front where others lie between them.
    """

    aten = ("index", "_unsafe_index")
    alike: Mapping[str, str] = {"_unsafe_index": "index"}
    lists = ("indices",)

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        reason = f"{spec.kind} picks among these channels"
        if any(t.dtype in ("bool", "uint8") for t in spec.inputs[1:]):
            freeze_everything(spec, io, reason)
            return
        there = spec.attr("indices") or (True,) * (len(spec.inputs) - 1)
        indexed = [a for a, given in enumerate(there) if given]
        for i in range(1, len(spec.inputs)):
            for a in range(len(spec.inputs[i].shape)):
                io.freeze(io.axis(i, a), reason)
        for a in indexed:
            io.freeze(io.axis(0, a), reason)
        kept = [io.axis(0, a) for a in range(len(spec.inputs[0].shape)) if a not in indexed]
        adjacent = indexed == list(range(indexed[0], indexed[0] + len(indexed)))
        at = indexed[0] if adjacent else 0
        new = len(spec.out.shape) - len(kept)
        io.output([*kept[:at], *[None] * new, *kept[at:]])


class Scatter(Handler):
    """Elements written by index into a tensor; everything freezes."""

    aten = (
        *("index_put", "scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy", "index_fill"),
        *("index_reduce", "masked_scatter", "select_scatter", "slice_scatter", "diagonal_scatter"),
    )
    alike: Mapping[str, str] = dict.fromkeys(aten, "index")
    lists = ("indices",)

    def keeps_zero(self, spec: OpSpec) -> bool:
        return False


class Embedding(Handler):
    """Rows of ``weight (V, E)`` by index, or sums of them."""

    aten = ("embedding", "embedding_bag")
    alike: Mapping[str, str] = {"embedding_bag": "embedding"}

    def bytes(self, spec: OpSpec) -> Scalar:
        indices = spec["indices"]
        rows = TensorSpec("rows", (indices.numel, spec["weight"].shape[1]), spec.out.dtype)
        return rows.bytes + spec.out.bytes + indices.bytes

    def silent(self, spec: OpSpec, operands: Sequence[bool]) -> bool:
        return operands[0]

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        for axis in range(len(spec["indices"].shape)):
            io.freeze(io.axis(1, axis), f"{spec.kind} reads these as indices")
        io.freeze(io.axis(0, 0), f"{spec.kind} reads these by index")
        width = io.axis(0, 1, "output")
        io.output([*[None] * (len(spec.out.shape) - 1), width])
        for i in range(1, len(spec.outputs)):
            io.output([None] * len(spec.outputs[i].shape), i)


class Reduce(Handler):
    """Reductions and scans over ``dim``. Other axes pass through; a reduced channel axis freezes."""

    scans = ("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "diff")
    sorts = ("topk", "sort", "argsort", "median", "nanmedian", "kthvalue", "mode")
    means = ("sum", "nansum", "nanmean", "norm", "linalg_vector_norm", "logsumexp", "count_nonzero")
    largest = ("amin", "argmax", "argmin", "aminmax", "any", "all", "prod")
    spreads = ("std", "var_mean", "std_mean")
    softs = ("softmax", "log_softmax", "_softmax", "_log_softmax")
    zero_free = ("sum", "nansum", "norm", "linalg_vector_norm")
    """What is the same without those elements that are zero; of norms, the Euclidean."""
    aten: tuple[str, ...] = ("mean", "amax", "var", *softs, *scans, *sorts, *means, *largest, *spreads)
    alike: Mapping[str, str] = {
        **dict.fromkeys(scans, "cumsum"),
        **dict.fromkeys(sorts, "topk"),
        **dict.fromkeys(means, "mean"),
        **dict.fromkeys(largest, "amax"),
        **dict.fromkeys(spreads, "var"),
        **dict.fromkeys(softs, "softmax"),
    }

    def keeps_zero(self, spec: OpSpec) -> bool:
        return spec.kind not in (*self.softs, "logsumexp", "logcumsumexp")

    def dims(self, spec: OpSpec) -> set[int]:
        """The axes that the operator runs along."""
        rank = len(spec.inputs[0].shape)
        dims = spec.attr("dim")
        return {d % rank for d in (as_tuple(dims) if dims not in (None, ()) else range(rank)) if rank}

    def features(self, spec: OpSpec) -> dict[str, Scalar]:
        shape = spec.inputs[0].shape
        dims = self.dims(spec)
        run = [a for a in range(len(shape)) if set(range(a, len(shape))) <= dims]
        return {
            "reduced": prod([shape[a] for a in sorted(dims)]),
            "run": prod([shape[a] for a in run]),  # elements that lie side by side
        }

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        if len(spec.inputs) > 1:
            freeze_everything(spec, io, f"{spec.kind} of several tensors has no channel rule")
            return
        rank = len(spec.inputs[0].shape)
        reduced = self.dims(spec)
        axes = [io.axis(0, a) for a in range(rank)]
        for a in reduced:
            if spec.kind not in self.zero_free or spec.attr("ord", spec.attr("p", 2)) != 2:
                io.freeze(axes[a], f"{spec.kind} runs over these channels")
            elif not io.silent(0):
                io.freeze(axes[a], f"{spec.kind} runs over these channels, where a removed one is not zero")
        for i, out in enumerate(spec.outputs):
            if len(out.shape) == rank:
                same = [out.shape[a] == spec.inputs[0].shape[a] for a in range(rank)]
                kept = [
                    a not in reduced or (same[a] and spec.kind not in self.zero_free) for a in range(rank)
                ]
                io.output([x if keep else None for x, keep in zip(axes, kept, strict=True)], i)
            else:
                io.output([axes[a] for a in range(rank) if a not in reduced], i)


class Distance(Handler):
    """How far rows are from each other, pair by pair."""

    aten = ("cosine_similarity", "pairwise_distance")
    alike: Mapping[str, str] = dict.fromkeys(aten, "mean")


class Extreme(Reduce):
    """``max`` and ``min``: over an axis, over everything, or of two tensors."""

    aten = ("max", "min")
    alike: Mapping[str, str] = dict.fromkeys(aten, "amax")

    def family(self, spec: OpSpec) -> str:
        return "add" if spec.operand("other") is not None else super().family(spec)

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        if spec.operand("other") is not None:
            broadcast_axes(spec, io)
        else:
            super().channels(spec, io)
