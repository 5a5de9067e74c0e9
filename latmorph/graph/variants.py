"""Variants: one network at many widths, to be timed where a profile has to be right."""

from __future__ import annotations

import numpy as np

from latmorph.graph.graph import Graph
from latmorph.opspec import Step


def variants(graph: Graph, count: int, *, seed: int = 0) -> tuple[tuple[Step, ...], ...]:
    """The network itself and ``count - 1`` narrower ones (see :func:`variant`)."""
    return tuple(variant(graph, index, seed=seed) for index in range(count))


def variant(graph: Graph, index: int, *, seed: int = 0) -> tuple[Step, ...]:
    """The network itself for index 0, a narrower one for every other, as steps that a backend can time.

    Widths are drawn as shrinking leaves them: a common factor for the whole network, each group off it
    by its own, half of them multiples of 8. Raises UsageError when the network cannot be timed operator
    by operator (see :meth:`latmorph.Graph.steps_at`).
    """
    return graph.steps_at(_narrower(graph, np.random.default_rng((seed, index))) if index else graph.widths)


def _narrower(graph: Graph, random: np.random.Generator) -> np.ndarray:
    factor = random.uniform(0.15, 1.1)
    widths = graph.widths.copy()
    for g in graph.prunable:
        own = widths[g] * factor * np.exp(random.normal(0.0, 0.4))
        if random.random() < 0.5:
            own = 8 * max(1, round(own / 8))
        widths[g] = min(widths[g], max(1, round(own)))
    return widths
