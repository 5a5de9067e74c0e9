"""The analytic terms of the latency model, for one operator or for many widths of it at once."""

from __future__ import annotations

import numpy as np

from latmorph import ops
from latmorph.device.roofs import Roofs
from latmorph.opspec import OpSpec, Scalar, as_array

SHARPNESS = 4.0
"""Exponent of the smooth maximum: at the ridge it lies 19 % above the larger of two equal terms."""


def smoothmax(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``(a^p + b^p)^(1/p)``: close to the larger, with a slope in both."""
    high = np.maximum(a, b)
    safe = np.where(high > 0, high, 1.0)
    ratio = np.minimum(a, b) / safe
    return np.asarray(high * (1.0 + ratio**SHARPNESS) ** (1.0 / SHARPNESS))


def blocks_of(roofs: Roofs, spec: OpSpec) -> tuple[int, int]:
    """Input and output blocks of an operator's family; 1 where none were measured."""
    family = ops.handler_of(spec.kind).family(spec)
    return roofs.blocks.get(family, (1, 1))


def terms(roofs: Roofs, spec: OpSpec, variants: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds at the compute roof and at the memory roof, each of shape ``(variants,)``."""
    handler = ops.handler_of(spec.kind)
    flops = as_array(handler.padded_flops(spec, *blocks_of(roofs, spec)), variants)
    moved = as_array(handler.bytes(spec), variants)
    return flops / roofs.peak_flops_per_s, moved / roofs.bandwidth_at(moved)


def features(spec: OpSpec, variants: int, footprint: float) -> tuple[list[str], np.ndarray]:
    """Names and values, float64 of shape ``(variants, features)``, of what the residual depends on.

    ``footprint`` is the memory in bytes that a pass of the whole network touches.

    Sizes stand as logarithms to base 2; channel counts also as remainders, since kernels run in blocks.
    """
    handler = ops.handler_of(spec.kind)
    width_in, width_out = handler.widths(spec)
    sizes: dict[str, Scalar] = {
        "flops": handler.flops(spec),
        "bytes": handler.bytes(spec),
        "bytes_parameters": spec.parameter_bytes,
        "bytes_in": spec.inputs[0].bytes,
        "bytes_out": spec.out.bytes,
        "footprint": footprint,
        "batch": (*spec.out.shape, 1)[0],
        "width_in": width_in,
        "width_out": width_out,
        "inplace": int(bool(spec.attr("inplace"))),
        "strided": int(bool(spec.attr("strided"))),
        **handler.features(spec),
    }
    remainders: dict[str, Scalar] = {}
    for block in (4, 8, 16, 32):
        remainders[f"in_mod_{block}"] = width_in % block
        remainders[f"out_mod_{block}"] = width_out % block
    values = np.empty((variants, len(sizes) + len(remainders)))
    for column, value in enumerate((*sizes.values(), *remainders.values())):
        values[:, column] = value
    logs = values[:, : len(sizes)]
    np.log2(1.0 + logs, out=logs)
    return [*sizes, *remainders], values


SIZES = ("flops", "bytes", "bytes_parameters", "bytes_in", "bytes_out", "width_in", "width_out")
"""The features whose range tells how far an operator lies from the data."""
