"""Cut: what is left of every tensor and operator of a network when only some of its channels are alive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from latmorph import ops
from latmorph.errors import StructureError
from latmorph.graph.channels import along
from latmorph.graph.graph import Block, Graph, Node, is_joint
from latmorph.ops.rearrange import BLOCK, Permute, Rearrangement, Reshape, Take
from latmorph.opspec import OpSpec


@dataclass(frozen=True, eq=False)
class Gather:
    """A tensor read straight out of another, where rearranging what is left would bring it elsewhere.

    ``indices`` of ``axis`` of the tensor ``root`` (as it is left), in order, as an array whose shape is that
    of the axes they are spread over; then ``order`` says which axis comes where.
    """

    root: int
    axis: int
    indices: np.ndarray
    order: tuple[int, ...]


class Cut:
    """A network of which the channels ``alive`` are left, a mask over all channels in the groups' order."""

    def __init__(self, graph: Graph, alive: np.ndarray) -> None:
        self.graph = graph
        self.alive = np.append(alive, True)  # the last stands for no channel, which is always there
        ends = np.cumsum(graph.widths)
        self.widths = np.array([int(alive[e - w : e].sum()) for e, w in zip(ends, graph.widths, strict=True)])
        self._kept: dict[int, list[np.ndarray] | None] = {}
        self._packed: dict[int, np.ndarray | None] = {}
        self.gathers: dict[int, Gather] = {}
        self.takes: dict[int, Take] = {}
        for node in graph.nodes:
            self._rearrange(node)

    def kept(self, tensor: int) -> list[np.ndarray] | None:
        """Indices that are left along every axis; None where what is left is no product along axes."""
        if tensor not in self._kept:
            shape = self.graph.tensors[tensor].shape
            found = [np.ones(n, dtype=bool) for n in shape]
            layers = self.graph.channels.places.get(tensor, ())
            for layer in layers:
                wide = [a for a, n in enumerate(layer.shape) if n > 1]
                if len(wide) == 1:
                    found[wide[0]] &= self.alive[layer.ravel()]
            for axis, mask in enumerate(found):
                for channels in self.graph.channels.singles.get((tensor, axis), ()):
                    mask &= self.alive[channels]
            crooked = any(is_joint(x) and not self.alive[x].all() for x in layers)
            self._kept[tensor] = None if crooked else [np.flatnonzero(m) for m in found]
        return self._kept[tensor]

    def shape(self, tensor: int) -> tuple[int, ...]:
        """The tensor's shape, as far as it has one."""
        kept = self.kept(tensor)
        if kept is None:
            at = self.graph.shape_at(tensor, self.widths[None])
            return tuple(int(np.ravel(n)[0]) for n in at)
        return tuple(len(k) for k in kept)

    def is_empty(self, tensor: int) -> bool:
        """Whether nothing is left of the tensor, of which there was something."""
        return 0 in self.shape(tensor) and 0 not in self.graph.tensors[tensor].shape

    def stands_for(self, tensor: int) -> int | None:
        """Another tensor in the place of one that the operators cannot make of what is left.

        Its values are never read, only gathered from the tensor that is returned; its dtype may be.
        """
        if self.kept(tensor) is None and self._packed.get(tensor) is None:
            return self.graph.channels.blocks[tensor].root
        return None

    @cached_property
    def is_whole(self) -> bool:
        """Whether something is left of every group."""
        return bool((self.widths > 0).all())

    def spec(self, node: Node) -> OpSpec:
        """The operator at what is left of its operands, with the attributes that follow from that."""
        made = ops.resized(node.spec, *([self.shape(t) for t in ts] for ts in (node.inputs, node.outputs)))
        if node.spec.kind in ("pad", "constant_pad_nd"):
            made = self._padded(node, made)
        take = self.takes.get(node.outputs[0])
        if take is not None and made.attr("op") in ("slice", "narrow", "select"):
            first, last = (int(take.indices[k]) for k in (0, -1))
            if made.attr("op") == "select":
                return made.with_attr("index", first)
            made = made.with_attr("start", first)
            if made.attr("op") == "slice":
                made = made.with_attr("end", last + 1)
        return made

    def _padded(self, node: Node, made: OpSpec) -> OpSpec:
        """Padding along channels: as many as are left of what is padded with."""
        name = "pad" if node.spec.attr("pad") is not None else "padding"
        given, (kept, whole) = (
            list(node.spec.attr(name)),
            (self.kept(t) for t in (node.outputs[0], node.inputs[0])),
        )
        if kept is None or whole is None:
            return made
        rank = len(kept)
        for k in range(len(given) // 2):
            axis = rank - 1 - k
            before, size = given[2 * k], self.graph.tensors[node.inputs[0]].shape[axis]
            if before >= 0 and given[2 * k + 1] >= 0:
                given[2 * k] = int((kept[axis] < before).sum())
                given[2 * k + 1] = int((kept[axis] >= before + size).sum())
        return made.with_attr(name, tuple(given))

    def _rearrange(self, node: Node) -> None:
        """Find out whether the operator, on what is left, brings every element where it belongs."""
        for made, how in zip(node.outputs, ops.rearrangements(node.spec), strict=False):
            source = node.inputs[0]
            if self.is_empty(source) or self.is_empty(made):
                continue
            if self.kept(source) is None or self.kept(made) is None:
                self._follow(source, made, how)
            elif isinstance(how, Take):
                self._take(source, made, how, node)

    def _take(self, source: int, made: int, how: Take, node: Node) -> None:
        """Indices of one axis: where they are now, and whether the operator still takes them."""
        kept, left = self.kept(source), self.kept(made)
        assert kept is not None
        assert left is not None
        whole = self.graph.tensors[source].shape[how.axis]
        if len(kept[how.axis]) == whole:
            return
        rank = np.cumsum(np.isin(np.arange(whole), kept[how.axis])) - 1
        chosen = how.indices[left[how.axis]] if how.kept else how.indices
        now = rank[chosen]
        op = node.spec.attr("op")
        run = len(now) > 0 and bool((np.diff(now) == 1).all())
        one = op == "select" and len(now) == 1
        if op is None or not (run or one) or (op == "slice" and node.spec.attr("step", 1) != 1):
            order = tuple(range(len(self.graph.tensors[source].shape)))
            self.gathers[made] = Gather(source, how.axis, now, order)
        else:
            self.takes[made] = Take(how.axis, now, how.kept)

    def _follow(self, source: int, made: int, how: Rearrangement) -> None:
        """Go on from a tensor that has no shape of its own, or to one."""
        block = self.graph.channels.blocks.get(made)
        if block is None:
            raise StructureError(
                f"what is left of tensor {source} cannot be rearranged; this is a mistake of ours"
            )
        self._packed[made] = packed = self._replayed(self._before(source, block), source, made, how)
        left = self.kept(made)
        if left is None:
            return
        wanted = self._wanted(block, left)
        if packed is not None and packed.shape == wanted.shape and (packed == wanted).all():
            return
        kept = self.kept(block.root)
        assert kept is not None
        spread = [a for a, name in enumerate(block.names) if name == BLOCK]
        now = np.searchsorted(kept[block.axis], wanted)
        sizes = [len(left[a]) for a in spread]
        # Axes of the root with the block's in the place of its one.
        numbers = [*range(block.axis), *[BLOCK] * len(spread), *range(block.axis + 1, len(kept))]
        where = iter(range(block.axis, block.axis + len(spread)))
        order = tuple(next(where) if name == BLOCK else numbers.index(name) for name in block.names)
        self.gathers[made] = Gather(block.root, block.axis, now.reshape(sizes), order)
        self._packed[made] = wanted

    def _before(self, source: int, block: Block) -> np.ndarray | None:
        """Where in a block's root every element is from that is left of a tensor, as operators make it."""
        if source in self._packed:
            return self._packed[source]
        kept, own = self.kept(source), self.graph.channels.blocks.get(source)
        if kept is not None and source == block.root:
            return along(kept[block.axis], block.axis, len(kept))
        if kept is not None and own is not None and own.root == block.root:
            return self._wanted(own, kept)
        return None

    def _wanted(self, block: Block, kept: Sequence[np.ndarray]) -> np.ndarray:
        """Where in a block's root the elements ``kept`` stood of a tensor that it is of."""
        grid = [k if name == BLOCK else k[:1] for k, name in zip(kept, block.names, strict=True)]
        sizes = block.source.shape
        return block.source[np.ix_(*(g if n > 1 else [0] for g, n in zip(grid, sizes, strict=True)))]

    def _replayed(
        self, packed: np.ndarray | None, source: int, made: int, how: Rearrangement
    ) -> np.ndarray | None:
        """Where elements come from when the operator runs on what is left; None where it can't."""
        if packed is None:
            return None
        if isinstance(how, Permute):
            return how.apply(packed)
        if isinstance(how, Reshape):
            before, after = self.shape(source), self.shape(made)
            if int(np.prod(before)) != int(np.prod(after)) or any(
                n not in (1, b) for n, b in zip(packed.shape, before, strict=True)
            ):
                return None
            return Reshape(before, after).apply(packed)
        assert isinstance(how, Take)
        if self.shape(source)[how.axis] != self.graph.tensors[source].shape[how.axis]:
            return None
        return how.apply(packed)

    @cached_property
    def specs(self) -> tuple[OpSpec, ...]:
        """The operators, in execution order; those that only lead to a :class:`Gather` among them."""
        return tuple(self.spec(node) for node in self.graph.nodes)

    @property
    def is_plain(self) -> bool:
        """Whether the same operators, at other sizes, are all that it takes."""
        return self.is_whole and not self.gathers

    def parameter(self, tensor: int) -> list[np.ndarray]:
        """Indices that are left along every axis of a parameter."""
        kept = self.kept(tensor)
        assert kept is not None  # layers of parameters lie along axes
        return kept
