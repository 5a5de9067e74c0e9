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

PICTURE = 4
"""A picture has at most so many channels."""

MAP_NOISE = 0.35
"""Deviation within a channel of a map, where that of the channels' means is one.

That is what maps are like after some layers of a network, where neighbours are alike (correlation a half):
a maximum over them takes less long than over white noise.
"""

BIAS = 0.1
"""Deviation of what layers add: without it, gates and smooth activations make numbers ever smaller."""

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

        Matrices and kernels are normal with variance ``2 / fan_in`` (He et al. 2015), and what a layer adds
        is normal with a deviation of :data:`BIAS`. Other vectors are those of a fresh norm, means zero and
        the rest ones; a number alone is a half. Integers are zero.
        """
        if not _is_floating(spec):
            return np.zeros(spec.shape, dtype=spec.dtype)
        if spec.numel == 1:  # a runtime leaves out products with one and sums with zero
            return np.full(spec.shape, 0.5, dtype=np.float32)
        if len(spec.shape) < 2 and spec.name != "bias":
            return np.full(spec.shape, float(spec.name != "running_mean"), dtype=np.float32)
        self._given += 1
        fan_in = max(1, int(np.prod(spec.shape[1:])))
        scale = BIAS if len(spec.shape) < 2 else (2.0 / fan_in) ** 0.5
        return _repeated(spec.shape, scale, self._given * STRIDE % PERIOD)


def input_values(spec: TensorSpec) -> np.ndarray:
    """Values of an input of a network, of its shape: normal, or zero where they are integers (indices).

    Of more channels than a picture has, they are as in maps deep inside: see :data:`MAP_NOISE`.
    """
    if not _is_floating(spec):
        return np.zeros(spec.shape, dtype=spec.dtype)
    noise = _repeated(spec.shape, 1.0, 0)
    if len(spec.shape) != 4 or spec.shape[1] <= PICTURE:
        return noise + np.float32(INPUT_MEAN)
    for axis in (2, 3):  # half alike, one place and the next
        noise = (noise + np.roll(noise, 1, axis)) * np.float32(0.5**0.5)
    channels = _repeated((1, spec.shape[1], 1, 1), 1.0, STRIDE)
    return channels + np.float32(MAP_NOISE) * noise


def _is_floating(spec: TensorSpec) -> bool:
    return "float" in spec.dtype


def _repeated(shape: tuple[int, ...], scale: float, start: int) -> np.ndarray:
    """The random numbers from ``start`` on, over and over."""
    count = int(np.prod(shape))
    return np.resize(np.roll(_normal(), -start) * np.float32(scale), count).reshape(shape)
