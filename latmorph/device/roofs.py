"""Roofs: the measured peaks of a device."""

from __future__ import annotations

import functools

import msgspec
import numpy as np

from latmorph.device.backend import Backend, Session
from latmorph.device.sampling import NetworkBuilder, width_sweep
from latmorph.opspec import Step

BLOCKS = (1, 2, 4, 8, 16, 32, 64)
"""Block sizes that are looked for."""

SIZES = range(17, 28)
"""Powers of two of the buffers whose bandwidth is measured: beyond the last, no cache holds any of it."""

SWEEPS = (("conv2d", "in"), ("conv2d", "out"), ("depthwise", "out"), ("linear", "in"), ("linear", "out"))
"""Kinds and axes whose widths are swept; a depthwise convolution's input is as wide as its output."""


class Sweep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Smallest seconds of one operator, alone and again and again, by the width of one of its axes.

    ``kind`` and ``axis`` are those of :func:`latmorph.device.sampling.width_sweep`.
    """

    kind: str
    axis: str
    widths: tuple[int, ...]
    times_s: tuple[float, ...]

    @property
    def block(self) -> int:
        """The block to which the kernel rounds the axis up (see :func:`best_block`); 1 if none shows."""
        return best_block(np.array(self.widths), np.array(self.times_s))


class Roofs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Measured peaks.

    ``bandwidth`` pairs a working set in bytes with the bandwidth in bytes/s at that size, rising in
    size and never rising in bandwidth; ``blocks`` maps ``conv2d``, ``depthwise`` and ``linear`` to the
    input and output blocks to which kernels round channel counts up, ``sweeps`` what they were found in.
    """

    peak_flops_per_s: float
    bandwidth: tuple[tuple[float, float], ...]
    overhead_s: float
    blocks: dict[str, tuple[int, int]]
    sweeps: tuple[Sweep, ...] = ()

    def bandwidth_at(self, working_set: np.ndarray) -> np.ndarray:
        """Bandwidth in bytes/s for working sets in bytes, by log-linear interpolation."""
        sizes, rates = _logs(self.bandwidth)
        asked = np.log(np.maximum(np.asarray(working_set, dtype=np.float64), 1.0))
        return np.asarray(np.exp(np.interp(asked, sizes, rates)))


@functools.lru_cache(maxsize=16)
def _logs(bandwidth: tuple[tuple[float, float], ...]) -> tuple[np.ndarray, np.ndarray]:
    """Logs of working sets and of their bandwidths; asked for with every operator of a network."""
    sizes, rates = zip(*bandwidth, strict=True)
    return np.log(sizes), np.log(rates)


def measure_roofs(backend: Backend, *, dtype: str = "float32", passes: int = 12) -> Roofs:
    """Peak of the matrix product, bandwidth by working set, overhead of a call, blocks of channels.

    The overhead is the smallest time of an operator on a handful of elements; the bandwidth is of
    reading and writing one buffer in place, the overhead taken off.
    """
    tiny = _smallest(backend, _inplace((1, 8), dtype), passes * 4)
    peak = 0.0
    for size in (256, 512, 1024, 1536):
        net = NetworkBuilder((size, size), dtype)
        net.linear(-1, size, bias=False)
        peak = max(peak, net.flops / _smallest(backend, net.steps, passes))
    bandwidth: list[tuple[float, float]] = []
    for power in SIZES:
        steps = _inplace((2**power // 4,), dtype)
        moved = 2 * steps[0].spec.out.bytes
        time_s = max(_smallest(backend, steps, passes) - tiny, 1e-9)
        bandwidth.append((float(steps[0].spec.out.bytes), moved / time_s))
    # A larger working set is never faster; what looks so is the overhead's share of a small one.
    rates = np.maximum.accumulate([rate for _, rate in bandwidth[::-1]])[::-1]
    sweeps = tuple(measure_sweep(backend, kind, axis, dtype) for kind, axis in SWEEPS)
    found = {(sweep.kind, sweep.axis): sweep.block for sweep in sweeps}
    blocks = {kind: (found.get((kind, "in"), 1), found[kind, "out"]) for kind, _ in found}
    pairs = tuple((size, float(rate)) for (size, _), rate in zip(bandwidth, rates, strict=True))
    return Roofs(peak, pairs, tiny, blocks, sweeps)


def measure_sweep(backend: Backend, kind: str, axis: str, dtype: str = "float32") -> Sweep:
    """Times on both sides of block edges."""
    widths = [*range(30, 69), *range(94, 99), *range(126, 132)]
    networks = width_sweep(kind, axis, widths, dtype)
    order = np.random.default_rng(0).permutation(len(widths))
    sessions = [backend.load(steps) for steps in networks]
    # Smallest of many, in turns: a spell that comes or goes amid the turns leaves calm ones of every width.
    for _ in range(13):
        for k in order:
            sessions[k].time_steps()
    return Sweep(kind, axis, tuple(widths), tuple(_calm(session) for session in sessions))


def best_block(widths: np.ndarray, times: np.ndarray) -> int:
    """The block whose steps explain times against widths, both of shape ``(n,)``.

    For every candidate, time is fitted as a constant, a slope in the width (what grows smoothly) and
    a slope in the width rounded up to the block. The block is the smallest whose mean absolute error is
    within a fifth of the best: a step has to show, and more than once, before it is believed. Widths that
    show no three steps of any block give 1.
    """
    errors = {}
    for block in BLOCKS:
        padded = -(-widths // block) * block
        if len(np.unique(padded)) < 3:
            continue
        design = np.stack([np.ones(len(widths)), widths, padded], axis=1)
        coefficients = np.linalg.lstsq(design, times, rcond=None)[0]
        errors[block] = float(np.mean(np.abs(design @ coefficients - times)))
    limit = max(1.2 * min(errors.values(), default=0.0), 2e-3 * float(np.mean(times)))
    return min((block for block, error in errors.items() if error <= limit), default=1)


def _inplace(shape: tuple[int, ...], dtype: str) -> list[Step]:
    net = NetworkBuilder(shape, dtype)
    net.activation(-1, "relu")
    return net.steps


def _smallest(backend: Backend, steps: list[Step], passes: int) -> float:
    session = backend.load(steps)
    for _ in range(passes + 1):
        session.time_steps()
    return _calm(session)


def _calm(session: Session) -> float:
    """Smallest time of a network of one step; the first pass, which finds cold caches, does not count."""
    _, passes = session.finish()
    return min(sum(operators) for operators in passes[1:])
