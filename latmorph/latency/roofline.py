"""The analytic terms of the latency model, for one operator or for many widths of it at once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import log2
from typing import NamedTuple
from zlib import crc32

import numpy as np

import latmorph.kernels  # noqa: F401  so that the kinds of a runtime's kernels have handlers
from latmorph import ops
from latmorph.device.roofs import Roofs
from latmorph.opspec import OpSpec, Scalar, as_array, ceil_to, footprint_bytes

SHARPNESS = 4.0
"""Exponent of the smooth maximum: at the ridge it lies 19 % above the larger of two equal terms."""


def smoothmax(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``(a^p + b^p)^(1/p)``: close to the larger, with a slope in both."""
    high = np.maximum(a, b)
    safe = np.where(high > 0, high, 1.0)
    ratio = np.minimum(a, b) / safe
    return np.asarray(high * (1.0 + ratio**SHARPNESS) ** (1.0 / SHARPNESS))


def ideal_s(compute_s: np.ndarray, memory_s: np.ndarray, memory_level: float = 0.0) -> np.ndarray:
    """Seconds at both roofs, where memory stays further below its own by a factor ``exp(memory_level)``."""
    return smoothmax(compute_s, memory_s * np.exp(memory_level))


def blocks_of(roofs: Roofs, spec: OpSpec) -> tuple[int, int]:
    """Input and output blocks of an operator's family, or else its kind; 1 where none were measured."""
    family = ops.handler_of(spec.kind).family(spec)
    return roofs.blocks.get(family, roofs.blocks.get(spec.kind, (1, 1)))


def terms(roofs: Roofs, spec: OpSpec, variants: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds at the compute roof and at the memory roof, each of shape ``(variants,)``."""
    handler = ops.handler_of(spec.kind)
    flops = as_array(handler.padded_flops(spec, *blocks_of(roofs, spec)), variants)
    moved = as_array(handler.bytes(spec), variants)
    return flops / roofs.peak_flops_per_s, moved / roofs.bandwidth_at(moved)


@dataclass(frozen=True)
class Place:
    """Where an operator stands: what of its network tells how long it takes there.

    As much memory as a pass touches is read at some ``2**bandwidth`` bytes/s: that says which caches hold it.
    The last operator before it that moved data has the digest ``before`` of its kind, and these FLOPs and
    bytes; ``fed`` says whether what it wrote is as large as what this one reads, and so most likely that.
    ``since_kind`` and ``since_same`` say how many operators ago, pass after pass, one of this kind ran, and
    one that is the same in all: the longer, the less of its code is in the caches still, which makes a small
    one up to three times slower.

    What lies in the caches also shows in how much memory was touched, in octaves of bytes: ``since_read``
    since what this one reads was written, ``since_freed`` since as much memory as it writes to was last in
    use, for that is given out again, and ``written`` is what operators of this pass wrote before.

    ``ran`` operators, in octaves too, ran before it in this pass: what stands between passes leaves the code
    cold, so that the first ones of a pass take longer.
    """

    bandwidth: int
    before: float = 0.0
    before_flops: int = 0
    before_in_bytes: int = 0
    before_out_bytes: int = 0
    before_parameter_bytes: int = 0
    fed: bool = False
    since_kind: int = 1
    since_same: int = 1
    since_read: int = 0
    since_freed: int = 0
    written: int = 0
    ran: int = 0


def places(
    roofs: Roofs,
    specs: Sequence[OpSpec],
    *,
    footprint: float | None = None,
    operators: int | None = None,
    written: int = 0,
    ran: int = 0,
) -> list[Place]:
    """The places of a network's operators, given in the order in which they run.

    ``footprint``, in bytes, is the network's, where these are a part of it or where other memory is read
    beside it; so is the number of ``operators``. ``written`` bytes are those that the part before them wrote,
    where ``ran`` operators stand.
    """
    touched = footprint_bytes(specs) if footprint is None else footprint
    # In whole octaves: from the exact footprint trees would know each network, and so by heart what its
    # process found.
    bandwidth = round(float(np.log2(roofs.bandwidth_at(np.array(touched)))))
    count = len(specs) if operators is None else operators
    since_kind = _since([spec.kind for spec in specs], count)
    since_same = _since(specs, count)
    moved = [_Moved.by(spec) for spec in specs]
    memory = _memory(moved, touched, written)
    found = []
    before, wrote = (0.0, 0, 0, 0, 0), 0
    for i, spec in enumerate(specs):
        fed = bool(spec.inputs) and spec.inputs[0].bytes == wrote
        since = since_kind[i], since_same[i], *memory[i]
        found.append(Place(bandwidth, *before, fed, *since, _octaves(ran + i)))
        if moved[i].moves:
            before = (
                crc32(spec.kind.encode()) / 2**32,
                int(ops.flops(spec)) if ops.is_known(spec) else 0,
                moved[i].read,
                moved[i].made,
                moved[i].parameters,
            )
            wrote = moved[i].made
    return found


def _since(values: Sequence[Hashable], count: int) -> list[int]:
    """How many places ago each value came last, in passes of ``count`` that follow one another."""
    last = {value: i - count for i, value in enumerate(values)}
    found = []
    for i, value in enumerate(values):
        found.append(i - last[value])
        last[value] = i
    return found


def _moves(spec: OpSpec) -> bool:
    """Whether an operator moves data, as views do not."""
    return not ops.is_known(spec) or bool(ops.byte_count(spec))


def written_bytes(specs: Iterable[OpSpec]) -> int:
    """Bytes that operators write, views left aside."""
    return sum(int(t.bytes) for spec in specs if _moves(spec) for t in spec.outputs)


class _Moved(NamedTuple):
    """Whether an operator moves data; bytes of what it reads, its largest input, parameters and outputs.

    Parameters count neither as read nor as an input.
    """

    moves: bool
    read: int
    given: int
    parameters: int
    made: int

    @classmethod
    def by(cls, spec: OpSpec) -> _Moved:
        activations = [int(t.bytes) for t in spec.inputs if not t.parameter]
        return cls(
            _moves(spec),
            sum(activations),
            max(activations, default=0),
            int(spec.parameter_bytes),
            sum(int(t.bytes) for t in spec.outputs),
        )


def _memory(operators: Sequence[_Moved], footprint: float, written: int) -> list[tuple[int, int, int]]:
    """Of each operator ``since_read``, ``since_freed`` and ``written`` (see :class:`Place`).

    What has the size that an operator reads, or at least the size that it writes, is taken for what it reads
    or is given; what the operator just before wrote is still in use. Where nothing is alike, it was in use a
    pass ago, and all of the ``footprint`` was touched since.
    """
    touched = 0
    # Sizes written, and what had been touched by then. They fall: what is no larger than a later one, and so
    # never found, is left out.
    past: list[tuple[int, int]] = []
    latest = (-1, 0)  # nothing yet, in which nothing fits
    after: dict[int, int] = {}
    found = []
    for moves, read, given, parameters, made in operators:
        large_enough = bisect_right(past, -made, key=lambda one: -one[0])
        since_freed = touched - past[large_enough - 1][1] if large_enough else footprint
        since_read = touched - after[given] if given in after else footprint
        found.append((_octaves(since_read), _octaves(since_freed), _octaves(written)))
        if moves:
            touched += read + parameters + made
            written += made
            while past and past[-1][0] <= latest[0]:
                past.pop()
            past.append(latest)
            latest = made, touched
            after[made] = touched
    return found


def _octaves(count: float) -> int:
    return round(log2(1 + count))


def features(spec: OpSpec, variants: int, place: Place) -> tuple[list[str], np.ndarray]:
    """Names and values, float64 of shape ``(variants, features)``, of what the residual depends on.

    Sizes stand as logarithms to base 2; so do the ratios that say what an operator's time is spent on, which
    trees could not make out of sizes. Channel counts stand also as remainders, since kernels run in
    blocks, and as the share of a block of :data:`BLOCK` that they use.
    """
    handler = ops.handler_of(spec.kind)
    width_in, width_out = handler.widths(spec)
    parameters = spec.parameter_bytes
    given = [t for t in spec.inputs if not t.parameter] or spec.inputs
    largest = max(given, key=lambda t: np.max(t.numel)) if len(given) > 1 else (*given, spec.out)[0]
    read = (1, 1, *largest.shape)
    sizes: dict[str, Scalar] = {
        "flops": handler.flops(spec),
        "bytes": handler.bytes(spec),
        "bytes_parameters": parameters,
        "bytes_in": sum((t.bytes for t in spec.inputs), 0) - parameters,
        "bytes_out": spec.out.bytes,
        "before_flops": place.before_flops,
        "before_in": place.before_in_bytes,
        "before_out": place.before_out_bytes,
        "before_parameters": place.before_parameter_bytes,
        "since_kind": place.since_kind,
        "since_same": place.since_same,
        "batch": (*spec.out.shape, 1)[0],
        "width_in": width_in,
        "width_out": width_out,
        "last": read[-1],  # what lies side by side is one run for a copy, at least
        "last_two": read[-2] * read[-1],
        "inplace": int(bool(spec.attr("inplace"))),
        "strided": int(bool(spec.attr("strided"))),
        **handler.features(spec),
    }
    shares: dict[str, Scalar] = {
        "bandwidth": place.bandwidth,
        "since_read": place.since_read,
        "since_freed": place.since_freed,
        "written": place.written,
        "before": place.before,
        "fed": int(place.fed),
        "ran": place.ran,
    }
    for name, width in (("in", width_in), ("out", width_out)):
        for block in (4, 8, 16, 32):
            shares[f"{name}_mod_{block}"] = width % block
        shares[f"{name}_used"] = width / (ceil_to(width, BLOCK) + (width == 0))
    names, over, under = _columns(tuple(sizes), tuple(shares))
    table = np.empty((len(names), variants))
    for row, value in enumerate(sizes.values()):
        table[row] = value
    logs = table[: len(sizes)]
    np.log2(1.0 + logs, out=logs)
    table[len(sizes) : len(sizes) + len(RATIOS)] = table[over] - table[under]
    for row, value in enumerate(shares.values(), start=len(sizes) + len(RATIOS)):
        table[row] = value
    return [*names], table.T


@cache
def _columns(sizes: tuple[str, ...], shares: tuple[str, ...]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of all features, and the places of the sizes that stand over and under in ratios."""
    names = [*sizes, *(f"{a}_per_{b}" for a, b in RATIOS), *shares]
    over, under = np.array([[sizes.index(name) for name in pair] for pair in RATIOS]).T
    return names, over, under


BLOCK = 16
"""The widest block of channels that kernels on CPUs work in: a vector of the widest registers."""

RATIOS = (
    ("flops", "bytes"),
    ("flops", "bytes_in"),
    ("flops", "bytes_out"),
    ("flops", "bytes_parameters"),
    ("bytes_in", "bytes_out"),
    ("bytes_parameters", "bytes_out"),
    ("width_in", "width_out"),
)
"""Pairs of sizes whose ratio is a feature."""

SIZES = ("flops", "bytes", "bytes_parameters", "bytes_in", "bytes_out", "width_in", "width_out")
"""The features whose range tells how far an operator lies from the data."""
