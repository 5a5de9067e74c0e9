"""Random choices that resemble those of people who design networks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SLOW_FLOPS = 1.5e9
"""Up to this bound on their FLOPs, sampled networks are those of a slow device."""

STEPS = (8, 16, 32, 64)
"""What designers choose multiples of."""


def up_to(size: int, bounds: Sequence[tuple[int, int]]) -> int:
    """Of pairs of a bound and a value, the value of the first bound that ``size`` does not exceed."""
    return next(value for bound, value in bounds if size <= bound)


def _multiple(value: float, step: int) -> int:
    """The nearest multiple of a step, or of 16 where narrow; at least one."""
    step = min(step, 16) if value < 64 else step
    return max(step, round(value / step) * step)


class Draw:
    """Random choices that resemble designed networks, and those off the beaten track.

    Two networks in five are ``designed``: all their widths are multiples of one step, or of 16 where narrow.
    Kernels are fastest where widths on both sides are, which is rare where each is drawn alone. Three in ten
    are ``pruned``: all their widths are any, as channels are left by shrinking.
    One in three is ``deep``: of as many operators as real ones, which run faster far into a pass. These start
    at pictures, and their stages are many blocks long: a network cannot be halved often.
    Pictures are halved down to ``smallest`` pixels a side: mostly 7, else 2 to 4, as pictures of 96 end,
    where weights are most of what is read.
    ``reach`` is 1 on a slow device; on a fast one it is the factor by which batches may be larger.
    """

    def __init__(self, seed: int, reach: float = 1.0) -> None:
        self.random = np.random.default_rng(seed)
        self.reach = reach
        self.designed = self.chance(0.4)
        self.pruned = not self.designed and self.chance(0.5)
        self.step = self.one(STEPS)
        self.deep = self.chance(1 / 3)
        self.smallest = 7 if self.chance(0.6) else self.one((2, 3, 4))

    def one(self, choices: Sequence[int]) -> int:
        return int(choices[int(self.random.integers(len(choices)))])

    def name(self, choices: Sequence[str]) -> str:
        return choices[int(self.random.integers(len(choices)))]

    def chance(self, probability: float) -> bool:
        return bool(self.random.random() < probability)

    def width(self, low: int, high: int) -> int:
        """A log-uniform width: a multiple of a step, or, where pruning has been, any or one off: cliffs."""
        value = self.log_uniform(low, high)
        if self.designed:
            return _multiple(value, self.step)
        if self.pruned or self.chance(0.4):
            return max(1, round(value))
        return _multiple(value, self.one(STEPS)) + (self.one((-1, 1)) if self.chance(0.3) else 0)

    def blocks(self, usual: int) -> range:
        """The blocks of a network that has so many unless it is deep; its FLOPs may end it before."""
        return range(4 * usual if self.deep else usual)

    def whole(self, share: float) -> bool:
        """Whether a network starts at its pictures, as a share of them does, and all deep ones do."""
        return self.deep or self.chance(share)

    def begins_stage(self, share: float, size: int) -> bool:
        """Whether a block begins a stage, as a share of them does.

        A quarter as many where there are many blocks, but for the first stages, of large pictures.
        """
        return self.chance(share / 4 if self.deep and size <= 28 else share)

    def wider(self, width: int, widest: int) -> int:
        """The width of a new stage: up to twice as wide. Deep networks, which have few, widen in each."""
        least = max(width, min(3 * width // 2, widest)) if self.deep else width
        return self.width(max(8, least), max(8, least, min(widest, 2 * width + 16)))

    def a_block(self, limit: float) -> float:
        """FLOPs at most of a single block, or of a few large layers: worth as much as many small ones."""
        return limit if self.deep else 4 * limit

    def halved(self, size: int) -> bool:
        """Whether a picture of a size is there to be halved."""
        return size >= 2 * self.smallest - 1

    def stride(self, changes: bool, size: int) -> int:
        """The stride of a block: two in most of those that begin a stage."""
        return 2 if changes and self.halved(size) and self.chance(0.6) else 1

    def log_uniform(self, low: float, high: float) -> float:
        return float(np.exp(self.random.uniform(np.log(low), np.log(high))))

    def image(self, choices: Sequence[int]) -> int:
        """The side of an image: of the choices, or any near them."""
        if self.chance(0.6):
            return self.one(choices)
        return int(self.random.integers(min(choices) // 2, max(choices) + 33))

    def side(self, choices: Sequence[int]) -> int:
        """The side of a picture inside a network: of the choices, or any down to two."""
        return self.one(choices) if self.chance(0.7) else round(self.log_uniform(2, max(choices)))

    def stage(self) -> tuple[int, int, int]:
        """Batch, resolution and input width of a place in a network."""
        sides = (128, 112, 64, 56, 56, 28, 28, 28, 14, 14, 14, 7, 7, 32, 16, 8, 4, 35, 17, 20, 10, 40, 80)
        size = self.one((56, 56, 35, 32, 28)) if self.deep else self.side(sides)
        widest = up_to(size, ((9, 2048), (20, 1280), (39, 512), (70, 256), (128, 96)))
        batch = 1 if self.chance(0.75) else self.one((2, 4, 8, 16, 32, 64))
        if batch > 1:
            size = min(size, max(7, int(112 * np.sqrt(self.reach / batch))))
        width = self.width(up_to(size, ((9, 64), (40, 24), (size, 12))), widest)
        # One 3x3 convolution of the place's own width stays below the limit of a whole network.
        while batch > 1 and 18 * batch * (size * width) ** 2 > self.reach * SLOW_FLOPS:
            batch //= 2
        return batch, size, width
