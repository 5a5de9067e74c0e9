"""LatencyModel: predicted seconds of operators, as plain numbers that any file format can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from latmorph import ops
from latmorph.device.roofs import Roofs
from latmorph.latency import roofline
from latmorph.opspec import OpSpec


class Trees(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An ensemble of binary trees as arrays of shape ``(trees, nodes)``, padded at the end.

    A node sends a row left when its feature is at most its threshold. A leaf's ``left`` is -1 and its
    ``value`` is added to the prediction; ``depth`` bounds the way from root to leaf.
    """

    depth: int
    feature: list[list[int]]
    threshold: list[list[float]]
    left: list[list[int]]
    right: list[list[int]]
    value: list[list[float]]

    @property
    def well_formed(self) -> bool:
        """Whether all arrays have one shape and every child is a node."""
        shape = [len(row) for row in self.feature]
        parts = (self.threshold, self.left, self.right, self.value)
        if any([len(row) for row in part] != shape for part in parts) or len(set(shape)) > 1:
            return False
        nodes = shape[0] if shape else 0
        children = (
            (a, b)
            for lefts, rights in zip(self.left, self.right, strict=True)
            for a, b in zip(lefts, rights, strict=True)
        )
        return all(a == b == -1 or (0 <= a < nodes and 0 <= b < nodes) for a, b in children)


class Family(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fitted part of the model for one family of operators.

    ``overhead_s`` is paid whatever the size; ``level`` is the family's typical log of what is left over the
    roofline; the trees say the log of times over those by both, within ``bound``; ``low`` and ``high`` are
    the range of every feature in the data, and ``sigma`` the held-out error, as a standard deviation of the
    log. When neighbours slow the reference operator and the block beside it, these slow by the reference's
    factor to the power of one and the first of ``spell_slopes``, times the block's to the power of the
    second. ``memory_level`` is the log of how much further below its roof memory stays than arithmetic.
    """

    overhead_s: float
    level: float
    bound: float
    sigma: float
    features: list[str]
    low: list[float]
    high: list[float]
    trees: Trees
    spell_slopes: tuple[float, float] = (0.0, 0.0)
    memory_level: float = 0.0

    def in_spell(self, spell: np.ndarray) -> np.ndarray:
        """The factors on times over the reference's in spells (see ``Observation``), shape ``(rows, 2)``."""
        return np.asarray(np.exp(spell @ np.array(self.spell_slopes)))


class LatencyModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``t = scale * (overhead + smoothmax(compute, memory) * exp(level)) * exp(residual)`` for one operator.

    Memory is that at the roof times ``exp(memory_level)`` of the operator's family, and so is the level.
    A whole pass takes the sum of its operators and ``overhead_s``. Both it and ``scale`` are fitted on
    networks held out of the rest; ``sigma`` is the standard deviation of the log of what is left.
    """

    roofs: Roofs
    families: dict[str, Family]
    scale: float
    sigma: float
    overhead_s: float = 0.0


@dataclass(frozen=True)
class Prediction:
    """Seconds of several operators at several widths: every array has shape ``(operators, variants)``.

    ``total_s = overhead_s + smoothmax(compute_s, memory_s)``. ``sigma`` is the standard deviation of the
    log of each total; ``measured`` says which operators' families the profile has measured.
    """

    compute_s: np.ndarray
    memory_s: np.ndarray
    overhead_s: np.ndarray
    total_s: np.ndarray
    sigma: np.ndarray
    measured: np.ndarray


FADE = 0.2
"""How fast the trees fade away from the data: to ``exp(-FADE)`` with every doubling of size. What they say at
the end of the data holds for some doublings more: at 0.5, a pointwise convolution of 58 MB of weights, more
than a profile of five minutes had seen, was given 9 of its 23 ms."""

UNMEASURED_SIGMA = 0.7
"""For a family that the profile has no measurement of: the plain roofline is right within a factor 2."""


class Predictor:
    """Evaluates a LatencyModel; holds its trees as arrays."""

    def __init__(self, model: LatencyModel) -> None:
        self.model = model
        self._trees = {name: Forest(f.trees) for name, f in model.families.items()}

    def __call__(
        self, specs: Sequence[OpSpec], places: Sequence[roofline.Place], variants: int = 1
    ) -> Prediction:
        """Predict operators whose sizes are ints or integer arrays of shape ``(variants,)``.

        ``places`` says where each stands in its network. Operators without a handler get NaN: they have no
        price, and their reader must say so.
        """
        shape = (len(specs), variants)
        compute, memory = np.full(shape, np.nan), np.full(shape, np.nan)
        overhead, residual = np.full(shape, np.nan), np.zeros(shape)
        sigma = np.full(shape, UNMEASURED_SIGMA)
        rows: dict[str, list[int]] = {}
        for i, spec in enumerate(specs):
            if ops.is_known(spec):
                compute[i], memory[i] = roofline.terms(self.model.roofs, spec, variants)
                rows.setdefault(ops.handler_of(spec.kind).family(spec), []).append(i)
        measured = np.zeros(len(specs), dtype=bool)
        for name, chosen in rows.items():
            family = self.model.families.get(name)
            if family is None:
                overhead[chosen] = self.model.roofs.overhead_s
                continue
            measured[chosen] = True
            table = [roofline.features(specs[i], variants, places[i]) for i in chosen]
            x = _aligned(family, table)
            fine, distance = (
                column.reshape(len(chosen), variants) for column in self._residual(name, family, x)
            )
            overhead[chosen], residual[chosen] = family.overhead_s * np.exp(fine), family.level + fine
            sigma[chosen] = family.sigma + 0.2 * distance
            memory[chosen] *= np.exp(family.memory_level)
        factor = self.model.scale * np.exp(residual)
        compute, memory = compute * factor, memory * factor
        overhead = overhead * self.model.scale
        total = overhead + roofline.smoothmax(compute, memory)
        return Prediction(compute, memory, overhead, total, sigma, measured)

    def of_family(self, name: str, x: np.ndarray, compute_s: np.ndarray, memory_s: np.ndarray) -> np.ndarray:
        """Seconds of operators of one family, from rows of its features and their times at both roofs."""
        family = self.model.families.get(name)
        if family is None:
            ideal_s = roofline.ideal_s(compute_s, memory_s)
            return np.asarray(self.model.scale * (self.model.roofs.overhead_s + ideal_s))
        ideal_s = roofline.ideal_s(compute_s, memory_s, family.memory_level)
        residual, _ = self._residual(name, family, x)
        usual_s = family.overhead_s + ideal_s * np.exp(family.level)
        return np.asarray(self.model.scale * usual_s * np.exp(residual))

    def _residual(self, name: str, family: Family, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Residual, and the distance from the data in doublings of size, both of shape ``(rows,)``."""
        low, high = np.asarray(family.low), np.asarray(family.high)
        outside = np.maximum(0.0, np.maximum(low - x, x - high))
        sizes = [k for k, n in enumerate(family.features) if n in roofline.SIZES]
        distance = outside[:, sizes].max(axis=1)
        fine = np.clip(self._trees[name](x), -family.bound, family.bound)
        return fine * np.exp(-FADE * distance), distance


def _aligned(family: Family, table: Sequence[tuple[list[str], np.ndarray]]) -> np.ndarray:
    """The rows' features in the family's order; a feature that a row lacks is zero."""
    blocks = []
    for names, values in table:
        if names == family.features:
            blocks.append(values)
            continue
        columns = dict(zip(names, values.T, strict=True))
        zero = np.zeros(len(values))
        blocks.append(np.stack([columns.get(n, zero) for n in family.features], axis=1))
    return np.concatenate(blocks)


class Forest:
    """Trees, ready to evaluate on rows of features, float64 of shape ``(rows, features)``."""

    def __init__(self, trees: Trees) -> None:
        self.depth = trees.depth
        self.count = len(trees.feature)
        self.nodes = len(trees.feature[0]) if trees.feature else 0
        self.feature = np.asarray(trees.feature, dtype=np.int64).ravel()
        self.threshold = np.asarray(trees.threshold, dtype=np.float64).ravel()
        # Children as positions in the flat arrays, right before left; a leaf is its own child.
        start = np.repeat(np.arange(self.count) * self.nodes, self.nodes)
        own = np.arange(self.count * self.nodes)
        children = [np.asarray(side, dtype=np.int64).ravel() for side in (trees.right, trees.left)]
        self.children = np.stack([np.where(c < 0, own, start + c) for c in children], axis=1).ravel()
        self.value = np.asarray(trees.value, dtype=np.float64).ravel()
        self.roots = np.arange(self.count) * self.nodes

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if not self.count:
            return np.zeros(len(x))
        result = np.empty(len(x))
        for begin in range(0, len(x), 2048):
            part = np.ascontiguousarray(x[begin : begin + 2048])
            rows = (np.arange(len(part)) * x.shape[1])[:, None]
            node = np.broadcast_to(self.roots, (len(part), self.count))
            for _ in range(self.depth):
                goes_left = part.take(rows + self.feature.take(node)) <= self.threshold.take(node)
                node = self.children.take(2 * node + goes_left)
            result[begin : begin + 2048] = self.value.take(node).sum(axis=1)
        return result
