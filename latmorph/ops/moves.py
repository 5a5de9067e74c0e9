"""Operators that rename axes, move data about, or reduce it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from latmorph.ops.base import AxisLabels, Handler, Labels, as_tuple, freeze_everything, pass_axes, prod
from latmorph.ops.pointwise import broadcast_axes
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
    cuts = (
        *("select", "slice", "unbind", "split", "split_with_sizes", "tensor_split", "narrow", "unsafe_split"),
        *("unsafe_split_with_sizes", "hsplit", "vsplit", "dsplit"),
    )
    halves = ("chunk", "unsafe_chunk")
    same = (
        *("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"),
        *("contiguous", "clone", "detach", "alias", "to", "_to_copy", "type_as", "lift_fresh_copy"),
        *("_conj", "resolve_conj", "resolve_neg", "real", "imag"),
    )
    others = (
        *("expand", "expand_as", "broadcast_to", "meshgrid", "unfold", "diagonal", "view_as_real"),
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

    def fitted(self, spec: OpSpec) -> OpSpec:
        sized = spec.attr("op") != "unfold"  # whose size is a window's
        for name in ("size", "shape") if sized else ():
            given = spec.attr(name)
            if given is not None:  # -1 stands for what is left, at any width
                sizes = zip(given, spec.out.shape, strict=True)
                spec = spec.with_attr(name, tuple(-1 if g == -1 else size for g, size in sizes))
        return spec

    def target(self, spec: OpSpec) -> str:
        name = str(spec.attr("op"))
        # Dropout calls what it reads "input", but "self" where it works in place.
        return f"{name}_" if "dropout" in name and spec.operand("self") is not None else name

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        name = str(spec.attr("op"))
        before, after = spec.inputs[0].shape, spec.out.shape
        rank = len(before)
        axes = [io.axis(0, a) for a in range(rank)]
        if name in self.shapes:
            result, broken = reshape_labels(before, after, axes)
            for labels in broken:
                io.freeze(labels, f"{name} takes these channels apart")
            for a in range(len(result) if len(spec.inputs) > 1 else 0):  # the shape is another tensor's
                io.tie(result[a], io.axis(1, a))
            io.output(result)
        elif name in self.orders:
            io.output([axes[d] for d in _order(spec, name, rank)])
        elif name in ("expand", "expand_as", "broadcast_to"):
            lead = len(after) - rank
            given: list[Labels] = [None] * len(after)
            if len(spec.inputs) > 1:
                given = [io.axis(1, a) for a in range(len(after))]
            for a in range(rank):
                if before[a] != after[a + lead]:
                    io.freeze(axes[a], "expanded from one channel to many")
                else:
                    if len(spec.inputs) > 1:
                        io.tie(axes[a], given[a + lead])
                    given[a + lead] = axes[a]
            io.output(given)
        elif name in self.cuts:
            dim = spec.attr("dim", 0) % rank
            if name == "slice" and tuple(before) == tuple(after):
                io.output(axes)
                return
            io.freeze(axes[dim], f"{name} cuts these channels at fixed places")
            gone = name in ("select", "unbind")
            for i in range(len(spec.outputs)):
                io.output([None if a == dim else x for a, x in enumerate(axes) if not (gone and a == dim)], i)
        elif name in self.halves:
            self._halve(spec, io, axes, spec.attr("dim", 0) % rank)
        elif name in self.same:
            io.output(axes)
        else:
            freeze_everything(spec, io, f"{name} has no channel rule")

    def _halve(self, spec: OpSpec, io: AxisLabels, axes: list[Labels], dim: int) -> None:
        """Equal parts stay equal, so the k-th channel of every part is one unit."""
        cut = axes[dim]
        count = len(spec.outputs)
        parts: list[Labels] = [None] * count
        if cut is not None and all(t.shape == spec.out.shape for t in spec.outputs):
            parts = list(cut.reshape(count, -1))
            for part in parts[1:]:
                io.tie(parts[0], part)
        else:
            io.freeze(cut, f"{spec.attr('op')} cuts these channels at fixed places")
        for k, part in enumerate(parts):
            io.output([*axes[:dim], part, *axes[dim + 1 :]], k)


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


def reshape_labels(
    before: Sequence[int], after: Sequence[int], axes: Sequence[Labels]
) -> tuple[list[Labels], list[Labels]]:
    """Labels after a reshape, and the labels that the reshape takes apart (to be frozen).

    Axes are matched in runs of equal product. A run that merges one labelled axis with unlabelled
    ones repeats its labels over the merged axis; a run that splits a labelled axis breaks it.
    """
    result: list[Labels] = []
    broken: list[Labels] = []
    i = j = 0
    while i < len(before) or j < len(after):
        i0, j0 = i, j
        left, right = 1, 1
        if i < len(before):
            left, i = before[i], i + 1
        if j < len(after):
            right, j = after[j], j + 1
        while left != right:
            if left < right:
                left, i = left * before[i], i + 1
            else:
                right, j = right * after[j], j + 1
        # Sizes of one belong to the run that they follow, so that no run is cut short by them.
        if i == len(before):
            j = len(after)
        if j == len(after):
            i = len(before)
        labelled = [a for a in range(i0, i) if axes[a] is not None]
        wide = [b for b in range(j0, j) if after[b] != 1]
        if not labelled:
            result += [None] * (j - j0)
        elif len(labelled) == 1 and len(wide) <= 1 and j > j0:
            a = labelled[0]
            shape = [before[k] if k == a else 1 for k in range(i0, i)]
            full = np.broadcast_to(np.asarray(axes[a]).reshape(shape), before[i0:i]).ravel()
            keep = wide[0] if wide else j0
            result += [full if b == keep else None for b in range(j0, j)]
        elif [before[k] for k in range(i0, i) if before[k] != 1] == [after[b] for b in wide]:
            sized = iter([axes[k] for k in range(i0, i) if before[k] != 1])
            result += [next(sized) if b in wide else None for b in range(j0, j)]
        else:
            broken += [axes[a] for a in labelled]
            result += [None] * (j - j0)
    return result, broken


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
            elif any(p is None for p in parts):
                for part in parts:
                    io.freeze(part, "concatenated with an axis that has no channels")
                axes.append(None)
            else:
                axes.append(np.concatenate([p for p in parts if p is not None]))
        if new:
            axes.insert(dim, None)
        if len(ranks) > 1:  # an empty tensor, which torch lets pass
            freeze_everything(spec, io, "concatenated with a tensor of another rank")
        else:
            io.output(axes)


class Repeat(Handler):
    """A tensor written several times over; an axis that is repeated freezes."""

    aten = ("repeat", "tile", "repeat_interleave")
    alike: Mapping[str, str] = {"tile": "repeat", "repeat_interleave": "repeat"}

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        before, after = spec.inputs[0].shape, spec.out.shape
        lead = len(after) - len(before)
        if lead < 0 or len(spec.inputs) > 1:
            freeze_everything(spec, io, f"{spec.kind} writes these channels several times")
            return
        axes: list[Labels] = [io.axis(0, a) for a in range(len(before))]
        for a in range(len(before)):
            if before[a] != after[a + lead]:
                io.freeze(axes[a], f"{spec.kind} writes these channels several times")
                axes[a] = None
        io.output([*[None] * lead, *axes])


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
            pass_axes(spec, io, {spec.attr("dim") % rank: reason})
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


class Reduce(Handler):
    """Reductions and scans over ``dim``. Other axes pass through; a reduced channel axis freezes."""

    scans = ("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "diff")
    sorts = ("topk", "sort", "argsort", "median", "nanmedian", "kthvalue", "mode")
    means = ("sum", "nansum", "nanmean", "norm", "linalg_vector_norm", "logsumexp", "count_nonzero")
    largest = ("amin", "argmax", "argmin", "aminmax", "any", "all", "prod")
    spreads = ("std", "var_mean", "std_mean")
    softs = ("softmax", "log_softmax", "_softmax", "_log_softmax")
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
            io.freeze(axes[a], f"{spec.kind} runs over these channels")
        for i, out in enumerate(spec.outputs):
            if len(out.shape) == rank:
                same = [out.shape[a] == spec.inputs[0].shape[a] for a in range(rank)]
                io.output([axes[a] if a not in reduced or same[a] else None for a in range(rank)], i)
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
