"""Variants: one network at many widths, to be timed where a profile has to be right."""

from __future__ import annotations

import numpy as np

from latmorph.graph.graph import Graph
from latmorph.opspec import Step


def variants(graph: Graph, count: int, *, seed: int = 0) -> tuple[tuple[Step, ...], ...]:
    """The network itself and ``count - 1`` narrower ones, as steps that a backend can time.

    Widths are drawn as shrinking leaves them: a common factor for the whole network, each group off it
    by its own, half of them multiples of 8. Raises UsageError when the network cannot be timed operator
    by operator (see :meth:`latmorph.Graph.steps_at`).
    """
    random = np.random.default_rng(seed)
    return tuple(graph.steps_at(graph.widths if k == 0 else _narrower(graph, random)) for k in range(count))


def _narrower(graph: Graph, random: np.random.Generator) -> np.ndarray:
    factor = random.uniform(0.15, 1.1)
    widths = graph.widths.copy()
    for g in graph.prunable:
        own = widths[g] * factor * np.exp(random.normal(0.0, 0.4))
        if random.random() < 0.5:
            own = 8 * max(1, round(own / 8))
        widths[g] = min(widths[g], max(1, round(own)))
    return widths
