"""Sampled networks: random relatives of real families, to be timed operator by operator.

Operators are timed inside networks because that is where they run: with the caches as the
neighbouring operators leave them, weights that were last read a pass ago, and fresh outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from latmorph.device import images, sequences
from latmorph.device.builder import NetworkBuilder
from latmorph.device.draw import SLOW_FLOPS, Draw
from latmorph.opspec import Step

__all__ = ["FAMILIES", "SLOW_FLOPS", "NetworkBuilder", "sample_network", "width_sweep"]

FAMILIES: tuple[tuple[Callable[[Draw, float, str], NetworkBuilder], float], ...] = (
    (images.residual, 0.25),
    (images.mobile, 0.3),
    (images.plain, 0.18),
    (images.branches, 0.17),
    (sequences.transformer, 0.12),
    (images.pointwise, 0.08),
    (images.squeezed, 0.05),
    (images.hybrid, 0.03),
    (images.decoder, 0.08),
    (images.light, 0.05),
    (images.video, 0.03),
    (sequences.windows, 0.06),
    (sequences.patches, 0.03),
    (sequences.words, 0.07),
    (sequences.sentences, 0.06),
    (sequences.sound, 0.04),
    (sequences.recurrent, 0.05),
)
"""The families and their weights."""


def sample_network(
    seed: int, *, largest_flops: float = SLOW_FLOPS, dtype: str = "float32"
) -> tuple[Step, ...]:
    """The random network of a seed: 5 to some 300 operators of one family.

    Its FLOPs are at most a few times ``largest_flops``, which bounds the time of one pass.
    """
    draw = Draw(seed, max(1.0, largest_flops / SLOW_FLOPS))
    weights = np.array([weight for _, weight in FAMILIES])
    family = FAMILIES[int(draw.random.choice(len(FAMILIES), p=weights / weights.sum()))][0]
    smallest, largest = (1 / 2, 6) if draw.deep else (1 / 30, 1)
    limit = draw.log_uniform(smallest * largest_flops, largest * largest_flops)
    steps = family(draw, limit, dtype).steps
    return tuple(map(_out_of_place, steps) if draw.chance(0.5) else steps)


def _out_of_place(step: Step) -> Step:
    """The step as those write it who overwrite nothing: it takes new memory, and up to twice as long."""
    attrs = tuple((name, value) for name, value in step.spec.attrs if name != "inplace")
    return replace(step, spec=replace(step.spec, attrs=attrs))


def width_sweep(
    kind: str, axis: str, widths: Sequence[int], dtype: str = "float32"
) -> list[tuple[Step, ...]]:
    """One-operator networks whose input or output width runs over ``widths``: to find blocks.

    ``kind`` is ``conv2d``, ``depthwise`` or ``linear``; ``axis`` is ``in`` or ``out``.
    """
    networks = []
    for width in widths:
        if kind == "linear":
            net = NetworkBuilder((96, width if axis == "in" else 256), dtype)
            net.linear(-1, width if axis == "out" else 256)
        elif kind == "depthwise":
            net = NetworkBuilder((1, width, 28, 28), dtype)
            net.conv(-1, width, 3, groups=width)
        else:
            net = NetworkBuilder((1, width if axis == "in" else 64, 14, 14), dtype)
            net.conv(-1, width if axis == "out" else 64, 3)
        networks.append(tuple(net.steps))
    return networks
