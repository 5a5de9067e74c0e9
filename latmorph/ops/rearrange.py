"""Rearrangements: what operators that compute nothing do to the places of elements.

A rearrangement acts on any array that is broadcastable to the operator's input: one that has the size 1
along an axis says the same everywhere along it, and goes on doing so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BLOCK = -1
"""Name of the axes that one axis was taken apart into, among the axes that are called by their numbers."""


class Rearrangement(ABC):
    """Where every element of an output stood in the input."""

    @abstractmethod
    def apply(self, array: np.ndarray) -> np.ndarray:
        """The array, broadcastable to the input, as it is broadcastable to the output."""

    @abstractmethod
    def single(self, axis: int) -> tuple[int, int] | None:
        """Where an axis of size 1 goes: the axis, and its size there; None where it is gone."""

    @abstractmethod
    def names(self, names: Sequence[int]) -> list[int] | None:
        """Names of the output's axes, given the input's; None where any but the block does not stay whole."""


@dataclass(frozen=True)
class Reshape(Rearrangement):
    """The same elements in the same order under another shape."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def runs(self) -> list[tuple[int, int, int, int]]:
        """Shortest runs of axes of equal size, as ``(from, to, from, to)`` before and after.

        Axes of size one belong to the run that they follow, so that no run is cut short by them.
        """
        found = []
        i = j = 0
        while i < len(self.before) or j < len(self.after):
            i0, j0, left, right = i, j, 1, 1
            if i < len(self.before):
                left, i = self.before[i], i + 1
            if j < len(self.after):
                right, j = self.after[j], j + 1
            while left != right:
                if left < right:
                    left, i = left * self.before[i], i + 1
                else:
                    right, j = right * self.after[j], j + 1
            if i == len(self.before):
                j = len(self.after)
            if j == len(self.after):
                i = len(self.before)
            found.append((i0, i, j0, j))
        return found

    def apply(self, array: np.ndarray) -> np.ndarray:
        full, shape = list(array.shape), [1] * len(self.after)
        for i0, i, j0, j in self.runs():
            if any(n != 1 for n in array.shape[i0:i]):
                full[i0:i], shape[j0:j] = self.before[i0:i], self.after[j0:j]
        return np.broadcast_to(array, full).reshape(shape)

    def single(self, axis: int) -> tuple[int, int] | None:
        i0, _, j0, j = next(run for run in self.runs() if run[0] <= axis < run[1])
        ones = [b for b in range(j0, j) if self.after[b] == 1]
        if j0 + axis - i0 in ones:
            return j0 + axis - i0, 1
        if ones or j == j0:
            return (ones[0], 1) if ones else None
        return j0, self.after[j0]

    def names(self, names: Sequence[int]) -> list[int] | None:
        result: list[int] = []
        for i0, i, j0, j in self.runs():
            own = list(names[i0:i])
            if BLOCK in own:
                if any(n != BLOCK for n in own):
                    return None
                result += [BLOCK] * (j - j0)
            elif self.before[i0:i] == self.after[j0:j]:
                result += own
            else:
                return None
        return result


@dataclass(frozen=True)
class Permute(Rearrangement):
    """Axis ``k`` of the output is axis ``order[k]`` of the input."""

    order: tuple[int, ...]

    def apply(self, array: np.ndarray) -> np.ndarray:
        return array.transpose(self.order)

    def single(self, axis: int) -> tuple[int, int] | None:
        return self.order.index(axis), 1

    def names(self, names: Sequence[int]) -> list[int] | None:
        return [names[a] for a in self.order]


@dataclass(frozen=True, eq=False)
class Take(Rearrangement):
    """Some indices of one axis, in an order; one alone takes the axis away unless it is ``kept``."""

    axis: int
    indices: np.ndarray
    kept: bool = True

    def apply(self, array: np.ndarray) -> np.ndarray:
        if array.shape[self.axis] != 1:
            array = array.take(self.indices, self.axis)
        return array if self.kept else array.take(0, self.axis)

    def single(self, axis: int) -> tuple[int, int] | None:
        if self.kept:
            return axis, 1
        return None if axis == self.axis else (axis - (axis > self.axis), 1)

    def names(self, names: Sequence[int]) -> list[int] | None:
        if names[self.axis] != BLOCK:
            return None
        return [n for a, n in enumerate(names) if self.kept or a != self.axis]
