"""One handler an operator kind: its FLOPs, its bytes, its shape features, how to build it, its channels.

A multiply-add is two FLOPs, and FLOPs are those of matrix and convolution arithmetic, as counted by
``torch.utils.flop_counter``; elementwise work is priced by the bytes that it moves.

To teach latmorph an operator, add a handler here. Nothing else needs to know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from latmorph.ops import moves, norms, pointwise, products, spatial
from latmorph.ops.base import AxisLabels, Handler, Shape, broadcast_features, freeze_everything, is_one, prod
from latmorph.ops.pointwise import Binary, Elementwise
from latmorph.ops.rearrange import Rearrangement
from latmorph.opspec import OpSpec, Scalar

__all__ = [
    "UNKNOWN",
    "AxisLabels",
    "Binary",
    "Elementwise",
    "Handler",
    "broadcast_features",
    "by_aten",
    "byte_count",
    "flops",
    "handler_of",
    "is_known",
    "is_layout",
    "is_one",
    "is_pointwise",
    "laid_out",
    "prod",
    "rearrangements",
    "register",
    "resized",
]


class Unknown(Handler):
    """An operator without a handler: its channels freeze; it has no price, and estimates name it."""

    def channels(self, spec: OpSpec, io: AxisLabels) -> None:
        freeze_everything(spec, io, f"unknown operator {spec.kind.removeprefix(UNKNOWN)}")


UNKNOWN = "unknown:"
"""Prefix of the kind of an operator that has no handler."""

_ALL: tuple[Handler, ...] = (
    *(products.Convolution(), products.TransposedConvolution(), products.Linear(), products.AddMM()),
    *(products.MatMul(), products.Einsum(), products.Bilinear(), products.GroupedMatMul()),
    *(products.Attention(), products.Recurrent(), products.Lstm()),
    *(norms.BatchNorm(), norms.ChannelNorm(), norms.WeightNorm()),
    *(pointwise.Elementwise(), pointwise.PRelu(), pointwise.Glu(), pointwise.Binary(), pointwise.Creation()),
    *(spatial.Pool(), spatial.GridSample(), spatial.Pad(), spatial.Patches(), spatial.PixelShuffle()),
    *(spatial.ChannelShuffle(), spatial.Roll(), spatial.Triangle()),
    *(moves.Layout(), moves.Concat(), moves.Repeat(), moves.Gather(), moves.Index(), moves.Scatter()),
    *(moves.Embedding(), moves.Reduce(), moves.Distance(), moves.Extreme()),
)
_BY_ATEN: dict[str, Handler] = {name: handler for handler in _ALL for name in handler.aten}
_LAYOUT = _BY_ATEN["view"]
_REGISTERED: dict[str, Handler] = {}
_UNKNOWN = Unknown()


def by_aten(name: str) -> Handler | None:
    """The handler of an operator's name in ``aten`` (with or without the in-place underscore)."""
    return _BY_ATEN.get(name) or _BY_ATEN.get(name.rstrip("_"))


def is_layout(handler: Handler) -> bool:
    """Whether the operator only renames axes or copies."""
    return handler is _LAYOUT


def register(handlers: Mapping[str, Handler]) -> None:
    """Add handlers, by kind, of what is no operator of torch's: a runtime's own kernels."""
    _REGISTERED.update(handlers)


def handler_of(kind: str) -> Handler:
    """The handler of an OpSpec's kind; of an unknown one, :class:`Unknown`."""
    if kind in ("view", "copy"):
        return _LAYOUT
    return _BY_ATEN.get(kind) or _REGISTERED.get(kind, _UNKNOWN)


def flops(spec: OpSpec) -> Scalar:
    """FLOPs of one operator (see the handlers for the formulas)."""
    return handler_of(spec.kind).flops(spec)


def byte_count(spec: OpSpec) -> Scalar:
    """Bytes that one operator moves at least."""
    return handler_of(spec.kind).bytes(spec)


def resized(spec: OpSpec, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> OpSpec:
    """The operator at other shapes, with attributes that repeat or follow from a size made to agree."""
    return handler_of(spec.kind).resized(spec, inputs, outputs)


def rearrangements(spec: OpSpec) -> list[Rearrangement]:
    """For every output, where its elements stood in the first operand; empty where any is computed."""
    return handler_of(spec.kind).rearrangements(spec)


def laid_out(spec: OpSpec, dense: bool) -> OpSpec:
    """The operator marked as ``strided`` unless the activations it reads are dense; a view does not care."""
    return spec if dense or spec.kind == "view" else spec.with_attr("strided", True)


def is_pointwise(spec: OpSpec) -> bool:
    """Whether every element is made of those in its place alone, and of parameters of its channel."""
    handler = handler_of(spec.kind)
    alike = isinstance(handler, pointwise.Elementwise | pointwise.Binary | pointwise.PRelu)
    return (
        alike
        or spec.attr("op") in moves.Layout.same
        or (spec.kind == "batch_norm" and not spec.attr("training"))
    )


def is_known(spec: OpSpec) -> bool:
    """Whether the operator has a handler."""
    return not spec.kind.startswith(UNKNOWN)
