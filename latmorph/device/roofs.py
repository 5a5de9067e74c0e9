"""Roofs: the measured peaks of a device."""

from __future__ import annotations

import msgspec
import numpy as np

from latmorph.device.backend import Backend
from latmorph.device.sampling import NetworkBuilder, width_sweep
from latmorph.opspec import Step

BLOCKS = (1, 2, 4, 8, 16, 32, 64)
"""Block sizes that are looked for."""


class Roofs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Measured peaks.

    ``bandwidth`` pairs a working set in bytes with the bandwidth in bytes/s at that size, rising in
    size and never rising in bandwidth; ``blocks`` maps ``conv2d``, ``depthwise`` and ``linear`` to the
    input and output blocks to which kernels round channel counts up.
    """

    peak_flops_per_s: float
    bandwidth: tuple[tuple[float, float], ...]
    overhead_s: float
    blocks: dict[str, tuple[int, int]]

    def bandwidth_at(self, working_set: np.ndarray) -> np.ndarray:
        """Bandwidth in bytes/s for working sets in bytes, by log-linear interpolation."""
        sizes = np.log([size for size, _ in self.bandwidth])
        rates = np.log([rate for _, rate in self.bandwidth])
        asked = np.log(np.maximum(np.asarray(working_set, dtype=np.float64), 1.0))
        return np.asarray(np.exp(np.interp(asked, sizes, rates)))


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
    for power in range(17, 29):
        steps = _inplace((2**power // 4,), dtype)
        moved = 2 * steps[0].spec.out.bytes
        time_s = max(_smallest(backend, steps, passes) - tiny, 1e-9)
        bandwidth.append((float(steps[0].spec.out.bytes), moved / time_s))
    # A larger working set is never faster; what looks so is the overhead's share of a small one.
    rates = np.maximum.accumulate([rate for _, rate in bandwidth[::-1]])[::-1]
    blocks = {
        kind: (
            1 if kind == "depthwise" else find_block(backend, kind, "in", dtype),
            find_block(backend, kind, "out", dtype),
        )
        for kind in ("conv2d", "depthwise", "linear")
    }
    pairs = tuple((size, float(rate)) for (size, _), rate in zip(bandwidth, rates, strict=True))
    return Roofs(peak, pairs, tiny, blocks)


def find_block(backend: Backend, kind: str, axis: str, dtype: str = "float32") -> int:
    """The block to which a kernel rounds an axis up, from times on both sides of block edges.

    See :func:`best_block`. A device whose time is smooth in the width gives 1.
    """
    widths = [*range(30, 69), *range(94, 99), *range(126, 132)]
    networks = width_sweep(kind, axis, widths, dtype)
    order = np.random.default_rng(0).permutation(len(widths))
    times = np.full(len(widths), np.inf)
    sessions = [backend.load(steps) for steps in networks]
    for session in sessions:
        session.time_steps()
    # Smallest of many, in turns: a spell that comes or goes amid the turns leaves calm ones of every width.
    for _ in range(12):
        for k in order:
            times[k] = min(times[k], sessions[k].time_steps()[0])
    return best_block(np.array(widths), times)


def best_block(widths: np.ndarray, times: np.ndarray) -> int:
    """The block whose steps explain times against widths, both of shape ``(n,)``.

    For every candidate, time is fitted as a constant, a slope in the width (what grows smoothly) and
    a slope in the width rounded up to the block. The block is the smallest whose mean absolute error is
    within a fifth of the best: a step has to show, and more than once, before it is believed.
    """
    errors = {}
    for block in BLOCKS:
        padded = -(-widths // block) * block
        if len(np.unique(padded)) < 3:
            continue
        design = np.stack([np.ones(len(widths)), widths, padded], axis=1)
        coefficients = np.linalg.lstsq(design, times, rcond=None)[0]
        errors[block] = float(np.mean(np.abs(design @ coefficients - times)))
    limit = max(1.2 * min(errors.values()), 2e-3 * float(np.mean(times)))
    return min(block for block, error in errors.items() if error <= limit)


def _inplace(shape: tuple[int, ...], dtype: str) -> list[Step]:
    net = NetworkBuilder(shape, dtype)
    net.activation(-1, "relu")
    return net.steps


def _smallest(backend: Backend, steps: list[Step], passes: int) -> float:
    session = backend.load(steps)
    session.time_steps()
    return min(session.time_steps()[0] for _ in range(passes))
