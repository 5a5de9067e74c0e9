"""Labels: which places of which tensors stand for the same channels, and what each channel is made of.

Every tensor carries layers of labels: arrays of integers, broadcastable to its shape, in which the same
integer means the same channel, and -1 none. An element is alive where all of its labels are. Operators
carry labels along, tie them, freeze them, and make some the product of others: row ``64 * h + d`` of a
query's weight is alive where head ``h`` and dimension ``d`` are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Layers = tuple[np.ndarray, ...]

UNLABELLED = "meets an axis without channels"
UNFIT = "channels are divided in two ways that do not fit each other"
DEEPEST = 6
"""How many times over labels may be products of products."""


@dataclass(frozen=True, eq=False)
class Solved:
    """What became of the labels.

    ``component`` is that of every label, int64 of shape ``(labels,)``; ``roots`` the channels that a
    component is made of, int64 of shape ``(components, k)``, -1 where there are fewer; ``reasons`` why a
    component is frozen, of shape ``(components,)``, None where it is not.
    """

    component: np.ndarray
    roots: np.ndarray
    reasons: np.ndarray

    def columns(self, labels: np.ndarray) -> list[np.ndarray]:
        """A layer of labels as layers of roots; those that say nothing are left out."""
        known = labels >= 0
        rows = self.roots[self.component[np.where(known, labels, 0)]]
        rows[~known] = -1
        return [rows[..., k] for k in range(rows.shape[-1]) if (rows[..., k] >= 0).any()]


class Labels:
    """Labels as they are made, tied, frozen and multiplied, until :meth:`solve` says what they stand for."""

    def __init__(self) -> None:
        self.count = 0
        self._ties: list[tuple[np.ndarray, np.ndarray]] = []
        self._frozen: list[tuple[np.ndarray, np.ndarray]] = []
        self._reasons: dict[str, int] = {}
        self._products: list[tuple[np.ndarray, np.ndarray]] = []

    def fresh(self, size: int) -> np.ndarray:
        """New labels, int64 of shape ``(size,)``."""
        self.count += size
        return np.arange(self.count - size, self.count)

    def tie(self, a: np.ndarray, b: np.ndarray, reason: str) -> None:
        """Labels of one length live and die together; ``reason`` freezes those that meet none."""
        both = (a >= 0) & (b >= 0)
        self._ties.append((a[both], b[both]))
        self.freeze(a[b < 0], reason)
        self.freeze(b[a < 0], reason)

    def freeze(self, labels: np.ndarray, reason: str) -> None:
        """Labels that can never die."""
        labels = labels[labels >= 0]
        if len(labels):
            number = self._reasons.setdefault(reason, len(self._reasons) + 1)
            self._frozen.append((labels, np.full(len(labels), number)))

    def multiply(self, whole: np.ndarray, factors: Sequence[np.ndarray]) -> None:
        """``whole[i]`` is alive where ``factors[k][i]`` is for all ``k``; arrays of one length."""
        self._products.append((whole, np.stack(factors, axis=1)))

    def solve(self) -> Solved:
        """Work out what follows from all that was said, to the end."""
        return _Solver(self.count, self._ties, self._frozen, self._products, self._reasons).solve()


class _Solver:
    """Ties and frozen labels grow by what products imply, until nothing more follows."""

    def __init__(
        self,
        count: int,
        ties: Sequence[tuple[np.ndarray, np.ndarray]],
        frozen: Sequence[tuple[np.ndarray, np.ndarray]],
        products: Sequence[tuple[np.ndarray, np.ndarray]],
        reasons: dict[str, int],
    ) -> None:
        self.count = count
        self.a, self.b = _joined([t[0] for t in ties]), _joined([t[1] for t in ties])
        self.cold, self.why = _joined([f[0] for f in frozen]), _joined([f[1] for f in frozen])
        self.reasons = reasons
        wide = max((f.shape[1] for _, f in products), default=1)
        self.whole = _joined([w for w, _ in products])
        self.factors = np.full((len(self.whole), wide), -1)
        self.product = np.repeat(np.arange(len(products)), [len(w) for w, _ in products])
        at = 0
        for w, f in products:
            self.factors[at : at + len(w), : f.shape[1]] = f
            at += len(w)

    def solve(self) -> Solved:
        while True:
            self._look()
            if not self._follow():
                break
        roots = self._roots()
        texts = np.array([None, *self.reasons], dtype=object)
        return Solved(self.component, roots, texts[self.reason])

    def _look(self) -> None:
        """Components, why they are frozen, and products in terms of them, without what is always alive."""
        self.component = _components(self.count, self.a, self.b)
        self.size = int(self.component.max(initial=-1)) + 1
        self.one_of = np.zeros(self.size, dtype=np.int64)
        self.one_of[self.component[::-1]] = np.arange(self.count)[::-1]
        self.reason = np.zeros(self.size, dtype=np.int64)
        self.reason[self.component[self.cold[::-1]]] = self.why[::-1]
        known = self.whole >= 0
        self.w = (
            np.where(known, self.component[np.where(known, self.whole, 0)], -1) if self.size else self.whole
        )
        known = self.factors >= 0
        f = (
            np.where(known, self.component[np.where(known, self.factors, 0)], -1)
            if self.size
            else self.factors
        )
        self.all_f = f.copy()
        f[(f >= 0) & (self.reason[f] > 0)] = -1
        for k in range(1, f.shape[1]):
            f[(f[:, k, None] == f[:, :k]).any(axis=1), k] = -1
        self.f = f
        self.left = (f >= 0).sum(axis=1)

    def _follow(self) -> bool:
        """Say what follows; whether anything did that was not known."""
        ties: list[tuple[np.ndarray, np.ndarray]] = []
        cold: list[tuple[np.ndarray, np.ndarray]] = []
        if not len(self.w):
            return False
        fixed = (self.w < 0) | (self.reason[self.w] > 0)
        # What is always alive has factors that are.
        rows = np.flatnonzero(fixed & (self.left > 0))
        unlabelled = self.reasons.setdefault(UNLABELLED, len(self.reasons) + 1)
        why = np.where(self.w[rows] >= 0, self.reason[self.w[rows]], unlabelled)
        cold += [
            (self.f[rows, k][self.f[rows, k] >= 0], why[self.f[rows, k] >= 0]) for k in range(self.f.shape[1])
        ]
        # Without a factor that can die, nothing can.
        rows = np.flatnonzero(~fixed & (self.left == 0))
        first = self.all_f[rows].max(axis=1, initial=-1)
        cold.append((self.w[rows], np.where(first >= 0, self.reason[first], unlabelled)))
        rows = np.flatnonzero(~fixed & (self.left == 1))
        ties.append((self.w[rows], self.f[rows].max(axis=1, initial=-1)))
        rows = np.flatnonzero(~fixed & (self.left > 1))
        if len(rows):
            self._same_factors(rows, ties)
            self._same_whole(rows, ties, cold)
        return self._add(ties, cold)

    def _same_factors(self, rows: np.ndarray, ties: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Products of the same are the same."""
        ordered = np.sort(self.f[rows], axis=1)
        order = np.lexsort(ordered.T)
        same = (ordered[order][1:] == ordered[order][:-1]).all(axis=1)
        ties.append((self.w[rows[order[1:]]][same], self.w[rows[order[:-1]]][same]))

    def _same_whole(
        self,
        rows: np.ndarray,
        ties: list[tuple[np.ndarray, np.ndarray]],
        cold: list[tuple[np.ndarray, np.ndarray]],
    ) -> None:
        """One thing that is two products: what differs in them is the same, as far as it can be told."""
        order = rows[np.argsort(self.w[rows], kind="stable")]
        pairs = np.flatnonzero(self.w[order][1:] == self.w[order][:-1])
        one, two = order[pairs], order[pairs + 1]
        f1, f2 = self.f[one], self.f[two]
        only1 = np.where((f1[:, :, None] == f2[:, None, :]).any(axis=2), -1, f1)
        only2 = np.where((f2[:, :, None] == f1[:, None, :]).any(axis=2), -1, f2)
        n1, n2 = (only1 >= 0).sum(axis=1), (only2 >= 0).sum(axis=1)
        single = (n1 == 1) & (n2 == 1)
        ties.append((only1[single].max(axis=1, initial=-1), only2[single].max(axis=1, initial=-1)))
        unfit = self.reasons.setdefault(UNFIT, len(self.reasons) + 1)
        for n, only in ((n1, only2), (n2, only1)):
            extra = only[n == 0]
            extra = extra[extra >= 0]
            cold.append((extra, np.full(len(extra), unfit)))
        many = np.flatnonzero((n1 > 0) & (n2 > 0) & ~single)
        if not len(many):
            return
        kinds = np.stack([self.product[one[many]], self.product[two[many]]], axis=1)
        kinds, kind = np.unique(kinds, axis=0, return_inverse=True)
        for k in range(len(kinds)):
            at = many[kind.ravel() == k]
            matched = _matching(only1[at], only2[at])
            ties += matched
            if not matched:
                extra = np.concatenate([only1[at].ravel(), only2[at].ravel()])
                extra = extra[extra >= 0]
                cold.append((extra, np.full(len(extra), unfit)))

    def _add(
        self, ties: Sequence[tuple[np.ndarray, np.ndarray]], cold: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> bool:
        a, b = _joined([t[0] for t in ties]), _joined([t[1] for t in ties])
        new = a != b
        frozen, why = _joined([c[0] for c in cold]), _joined([c[1] for c in cold])
        fresh = self.reason[frozen] == 0
        if not new.any() and not fresh.any():
            return False
        self.a = np.concatenate([self.a, self.one_of[a[new]]])
        self.b = np.concatenate([self.b, self.one_of[b[new]]])
        self.cold = np.concatenate([self.cold, self.one_of[frozen[fresh]]])
        self.why = np.concatenate([self.why, why[fresh]])
        return True

    def _roots(self) -> np.ndarray:
        """For every component the components that it is a product of, to the end, or itself."""
        table = np.arange(self.size)[:, None]
        rows = np.flatnonzero((self.w >= 0) & (self.left > 1))
        if not len(rows):
            return table
        step = np.full((self.size, self.f.shape[1]), -1)
        step[:, 0] = np.arange(self.size)
        step[self.w[rows[::-1]]] = self.f[rows[::-1]]
        defined = np.zeros(self.size, dtype=bool)
        defined[self.w[rows]] = True
        for _ in range(DEEPEST):
            inner = (table >= 0) & defined[table]
            if not inner.any():
                break
            table = np.where((table >= 0)[:, :, None], step[table], -1).reshape(self.size, -1)
            table = table[:, (table >= 0).any(axis=0)]
        return table


def _matching(one: np.ndarray, two: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Columns of two tables that divide their rows alike, side by side."""
    found = []
    free = list(range(two.shape[1]))
    for a in range(one.shape[1]):
        if (one[:, a] < 0).any():
            continue
        count = len(np.unique(one[:, a]))
        for b in free:
            both = np.unique(np.stack([one[:, a], two[:, b]], axis=1), axis=0)
            if (two[:, b] >= 0).all() and len(both) == count == len(np.unique(two[:, b])):
                found.append((one[:, a], two[:, b]))
                free.remove(b)
                break
    return found


def _components(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if not len(a):
        return np.arange(count)
    edges = coo_matrix((np.ones(len(a), dtype=np.int8), (a, b)), shape=(count, count))
    return np.asarray(connected_components(edges, directed=False)[1], dtype=np.int64)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if len(parts) else np.zeros(0, dtype=np.int64)
