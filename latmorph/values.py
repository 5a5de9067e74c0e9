"""Values that the parameters and inputs of timed networks have.

Times depend on them: a maximum over random numbers branches at random, and max-pooling takes three times
as long over them as over constants. So weights and inputs are random, of a size that keeps activations
near one through any number of layers: no infinities, and no denormal numbers, which are slow.
"""

from __future__ import annotations

import functools

import numpy as np

from latmorph.opspec import TensorSpec

INPUT_MEAN = 0.75
"""Mean of an input, in standard deviations.

Numbers in a picture are alike where they are near each other, and so are those of the maps made of it.
White noise is not, and a maximum over it takes longer; a constant under the noise makes up for it: pooling
in a network then takes as long as over a picture whose spectrum falls as a photograph's does.
"""

PERIOD = 65521
"""Random numbers are drawn once and repeated; a prime, so that no two rows of a weight are alike."""

STRIDE = 7919
"""The next parameter begins so many numbers further on; prime too: no start comes again before all have."""


@functools.cache
def _normal() -> np.ndarray:
    numbers = np.random.default_rng(0).standard_normal(PERIOD, dtype=np.float32)
    numbers.setflags(write=False)
    return numbers


class ParameterValues:
    """Values of a network's parameters, one after another: those of no two of a shape are the same.

    Equal ones would be stored once, by whoever writes the network down or by the runtime, and then be warm in
    the caches: a network of linear layers took two thirds of its time.
    """

    def __init__(self) -> None:
        self._given = 0

    def __call__(self, spec: TensorSpec) -> np.ndarray:
        """Values of the next parameter, of its shape; float32 for any floating dtype.

        Matrices and kernels are normal with variance ``2 / fan_in`` (He et al. 2015), vectors are those of a
        fresh norm: ones, and zeros where they are added; a number alone is a half. Integers are zero.
        """
        if not _is_floating(spec):
            return np.zeros(spec.shape, dtype=spec.dtype)
        if len(spec.shape) < 2:
            value = 0.0 if spec.name in ("bias", "running_mean") else 1.0
            if spec.numel == 1:  # a runtime leaves out products with one and sums with zero
                value = 0.5
            return np.full(spec.shape, value, dtype=np.float32)
        fan_in = max(1, int(np.prod(spec.shape[1:])))
        self._given += 1
        return _repeated(spec.shape, (2.0 / fan_in) ** 0.5, self._given * STRIDE % PERIOD)


def input_values(spec: TensorSpec) -> np.ndarray:
    """Values of an input of a network, of its shape: normal, or zero where they are integers (indices)."""
    if not _is_floating(spec):
        return np.zeros(spec.shape, dtype=spec.dtype)
    return _repeated(spec.shape, 1.0, 0) + np.float32(INPUT_MEAN)


def _is_floating(spec: TensorSpec) -> bool:
    return "float" in spec.dtype


def _repeated(shape: tuple[int, ...], scale: float, start: int) -> np.ndarray:
    """The random numbers from ``start`` on, over and over."""
    count = int(np.prod(shape))
    return np.resize(np.roll(_normal(), -start) * np.float32(scale), count).reshape(shape)
