"""Handlers of ONNX Runtime's kernels: formulas worked by hand, kinds, names, features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from latmorph import kernels, ops
from latmorph.opspec import OpSpec, TensorSpec


def spec(
    kind: str,
    operands: dict[str, tuple[Any, ...]],
    out: tuple[Any, ...],
    parameters: str = "W B",
    **attrs: Any,
) -> OpSpec:
    inputs = tuple(
        TensorSpec(name, shape, parameter=name in parameters.split()) for name, shape in operands.items()
    )
    return OpSpec(kind, inputs, (TensorSpec("out", out),), tuple(attrs.items()))


def conv(kind: str = "nchwc.Conv", w: tuple[int, ...] = (64, 32, 3, 3), **attrs: Any) -> OpSpec:
    x = (1, w[1] * attrs.get("group", 1), 14, 14)
    return spec(kind, {"X": x, "W": w, "B": w[:1]}, (1, w[0], 14, 14), **attrs)


@pytest.mark.parametrize(
    ("one", "flops"),
    [
        # Two FLOPs a multiply-add, outputs times the inputs that each is a sum of.
        (conv(), 2 * 64 * 14 * 14 * 32 * 9),
        (conv(w=(32, 1, 3, 3), group=32), 2 * 32 * 14 * 14 * 9),
        (spec("onnx.ConvTranspose", {"X": (1, 8, 5, 5), "W": (8, 4, 2, 2)}, (1, 4, 10, 10)), 2 * 8 * 25 * 16),
        (spec("onnx.Gemm", {"A": (7, 10), "B": (10, 3)}, (7, 3)), 2 * 7 * 3 * 10),
        (spec("onnx.Gemm", {"A": (10, 7), "B": (3, 10)}, (7, 3), transA=1, transB=1), 2 * 7 * 3 * 10),
        (spec("onnx.MatMul", {"A": (2, 4, 7, 10), "B": (2, 4, 10, 3)}, (2, 4, 7, 3), ""), 2 * 8 * 7 * 3 * 10),
        (
            spec("microsoft.FusedMatMul", {"A": (4, 7, 10), "B": (4, 3, 10)}, (4, 7, 3), "", transB=1),
            2 * 4 * 210,
        ),
        (
            spec("onnx.Einsum", {"X": (2, 7, 10), "in1": (2, 3, 10)}, (2, 7, 3), equation="bij,bkj->bik"),
            2 * 2 * 210,
        ),
        (
            spec("onnx.Einsum", {"X": (2, 5, 7), "in1": (7, 3)}, (2, 5, 3), equation="...i,ij->...j"),
            2 * 10 * 21,
        ),
        (spec("onnx.Einsum", {"X": (7, 10)}, (10,), equation="ij->j"), 0),
        # Keys and values: 5 rows against 9 keys of 16, then 9 values of 16.
        (
            spec(
                "microsoft.MultiHeadAttention",
                {"Q": (2, 5, 16), "K": (2, 9, 16), "V": (2, 9, 16)},
                (2, 5, 16),
            ),
            2 * 2 * 5 * 9 * 32,
        ),
        # Projection to three times the width, then 5 rows against 5, twice.
        (
            spec("microsoft.Attention", {"X": (2, 5, 16), "W": (16, 48), "B": (48,)}, (2, 5, 16)),
            2 * 2 * 5 * 16 * 48 + 2 * 2 * 2 * 5 * 5 * 16,
        ),
        # 6 steps of 2 rows, 4 gates of 5, reading 3 inputs and 5 states.
        (
            spec("onnx.LSTM", {"X": (6, 2, 3), "W": (1, 20, 3), "R": (1, 20, 5)}, (6, 1, 2, 5), "W R"),
            2 * 6 * 2 * 20 * (3 + 5),
        ),
        (spec("onnx.Add", {"X": (4, 4), "in1": (4,)}, (4, 4)), 0),
    ],
    ids=lambda x: x.kind if isinstance(x, OpSpec) else "",
)
def test_flops_are_those_worked_by_hand(one: OpSpec, flops: int) -> None:
    assert ops.flops(one) == flops


@pytest.mark.parametrize(
    ("one", "family"),
    [
        (conv(), "nchwc.conv"),
        (conv(plain_input=1), "nchwc.first"),
        (conv(w=(64, 32, 1, 1)), "nchwc.pointwise"),
        (conv(w=(32, 1, 3, 3), group=32), "nchwc.depthwise"),
        (conv(w=(32, 16, 3, 3), group=2), "nchwc.grouped"),
        (conv("onnx.Conv"), "onnx.conv"),
        (conv("microsoft.FusedConv"), "onnx.conv"),
        (conv("microsoft.FusedConv", w=(32, 1, 3, 3), group=32), "onnx.depthwise"),
        (spec("onnx.MatMul", {"A": (7, 10), "B": (10, 3)}, (7, 3)), "onnx.Gemm"),  # a constant is packed
        (spec("onnx.MatMul", {"A": (7, 10), "B": (10, 3)}, (7, 3), ""), "onnx.MatMul"),
        (spec("onnx.Squeeze", {"X": (1, 3)}, (3,)), "onnx.view"),
        (spec("onnx.Relu", {"X": (1, 3)}, (1, 3)), "onnx.Relu"),
    ],
    ids=lambda x: x.kind if isinstance(x, OpSpec) else x,
)
def test_kernels_that_one_code_runs_are_one_family(one: OpSpec, family: str) -> None:
    assert ops.handler_of(one.kind).family(one) == family


def test_a_kind_is_the_domain_and_the_operator() -> None:
    assert kernels.kind_of("", "Conv") == "onnx.Conv"
    assert kernels.kind_of("com.microsoft", "FusedConv") == "microsoft.FusedConv"
    assert kernels.kind_of("com.microsoft.nchwc", "Conv") == "nchwc.Conv"


@pytest.mark.parametrize("name", [("", "NonZero"), ("com.microsoft", "MoE"), ("my.domain", "Conv")])
def test_a_kernel_without_a_handler_is_of_unknown_kind_by_name(name: tuple[str, str]) -> None:
    kind = kernels.kind_of(*name)
    assert kind.startswith(ops.UNKNOWN)
    assert kind.endswith(f".{name[1]}")
    assert not ops.is_known(OpSpec(kind, (), ()))


def test_operands_have_the_names_of_the_schema_and_the_rest_are_numbered() -> None:
    assert kernels.operand_names("nchwc.Conv", 4) == ("X", "W", "B", "Sum")
    assert kernels.operand_names("onnx.Gemm", 2) == ("A", "B")
    assert kernels.operand_names("onnx.Concat", 3) == ("X", "in1", "in2")
    assert kernels.operand_names("unknown:onnx.NonZero", 1) == ("in0",)


def test_a_view_moves_nothing_and_a_slice_what_it_hands_out() -> None:
    assert ops.byte_count(spec("onnx.Reshape", {"X": (8, 8)}, (64,))) == 0
    assert ops.byte_count(spec("onnx.Slice", {"X": (100, 8)}, (2, 8))) == 2 * 16 * 4
    assert ops.byte_count(spec("onnx.Gather", {"X": (1000, 8), "in1": (3,)}, (3, 8))) == 2 * 24 * 4
    assert ops.byte_count(spec("onnx.Add", {"X": (8, 8), "in1": (8,)}, (8, 8))) == (64 + 8 + 64) * 4


@pytest.mark.parametrize(
    ("perm", "run", "moved"),
    [
        ((0, 2, 1, 3), 8, 2),  # heads and rows change places: rows of 8 stay together
        ((0, 3, 1, 2), 1, 3),
        ((0, 1, 2, 3), 4 * 6 * 8, 0),  # the leading one is no move at all
        ((1, 0, 2, 3), 4 * 6 * 8, 0),
    ],
)
def test_a_transpose_tells_how_long_its_runs_are(perm: tuple[int, ...], run: int, moved: int) -> None:
    shape = (1, 4, 6, 8)
    one = spec("onnx.Transpose", {"X": shape}, tuple(shape[a] for a in perm), perm=perm)
    found = ops.handler_of(one.kind).features(one)
    assert (found["run"], found["moved"]) == (run, moved)


def test_reductions_and_rows_tell_what_they_run_over() -> None:
    mean = spec("onnx.ReduceMean", {"X": (2, 16, 7, 5)}, (2, 16, 1, 1), axes=(2, 3))
    assert ops.handler_of(mean.kind).features(mean) == {"row": 35, "inner": 1}
    last = spec("onnx.ReduceMax", {"X": (2, 16, 7, 5)}, (2, 7, 5), axes=(-3,))
    assert ops.handler_of(last.kind).features(last) == {"row": 16, "inner": 35}
    soft = spec("onnx.Softmax", {"X": (2, 16, 7)}, (2, 16, 7), axis=1)
    assert ops.handler_of(soft.kind).features(soft)["row"] == 16
    assert ops.handler_of(soft.kind).features(soft)["inner"] == 7


def every_kind() -> list[str]:
    return sorted(kernels._BY_KIND)


@pytest.mark.parametrize("kind", every_kind())
def test_every_kind_has_features_that_are_numbers(kind: str) -> None:
    handler = ops.handler_of(kind)
    assert isinstance(handler, kernels.KernelHandler)
    assert (
        kernels.kind_of(
            {v: k for k, v in kernels.DOMAINS.items() if k != "ai.onnx"}[kind.split(".")[0]],
            kind.split(".")[1],
        )
        == kind
    )
    shape = (2, 8, 8, 8)
    names = kernels.operand_names(kind, max(2, len(handler.operands)))
    one = spec(kind, dict.fromkeys(names, shape), shape)
    if kind in ("microsoft.Attention", "onnx.LSTM", "onnx.GRU", "onnx.RNN"):
        one = spec(kind, dict.fromkeys(names, (8, 8, 8)), (8, 8, 8))
    if kind == "onnx.Einsum":
        one = spec(kind, dict.fromkeys(names, shape), shape, equation="abcd,abcd->abcd")
    assert all(np.isfinite(float(v)) and float(v) >= 0 for v in handler.features(one).values())
    assert ops.byte_count(one) >= 0
    assert ops.flops(one) >= 0
    assert isinstance(handler.family(one), str)
    assert all(w >= 1 for w in handler.widths(one))


def test_a_convolution_is_priced_for_many_widths_at_once() -> None:
    widths = np.array([16, 32, 48])
    many = spec(
        "nchwc.Conv", {"X": (1, 32, 7, 7), "W": (widths, 32, 3, 3), "B": (widths,)}, (1, widths, 7, 7)
    )
    assert ops.flops(many).tolist() == [2 * w * 49 * 32 * 9 for w in (16, 32, 48)]
    assert ops.handler_of("nchwc.Conv").widths(many)[1].tolist() == [16, 32, 48]
