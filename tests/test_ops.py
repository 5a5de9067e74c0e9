"""FLOPs against formulas worked out by hand and torch's own counter; channel rules against brute force."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import latmorph as lm
from latmorph import ops
from latmorph.opspec import OpSpec, TensorSpec


class Call(nn.Module):
    """A module around one function, so that it can be captured."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *x: torch.Tensor) -> torch.Tensor:
        return self.function(*x)


def counted(model: nn.Module, *inputs: torch.Tensor) -> int:
    """FLOPs by torch's counter, with attention as the two matrix products that it is."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops()


def spec_of(model: nn.Module, *inputs: torch.Tensor) -> OpSpec:
    """The one operator of a model."""
    (node,) = lm.capture(model, inputs).nodes
    return node.spec


def test_a_convolution_s_flops_are_the_textbook_s() -> None:
    spec = spec_of(nn.Conv2d(6, 10, (3, 5), stride=2, padding=1, groups=2), torch.zeros(4, 6, 16, 20))
    # 4 images, 10 x 8 x 9 outputs, each a dot product over 6/2 channels x 15 taps
    assert ops.flops(spec) == 2 * 4 * 10 * 8 * 9 * 3 * 15


def test_a_linear_layer_s_flops_are_the_textbook_s() -> None:
    assert ops.flops(spec_of(nn.Linear(7, 11), torch.zeros(2, 3, 7))) == 2 * 2 * 3 * 7 * 11


@settings(max_examples=60, deadline=None)
@given(
    rank=st.integers(1, 3),
    groups=st.integers(1, 3),
    inner=st.integers(1, 3),
    outer=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    batch=st.integers(1, 3),
)
def test_convolutions_agree_with_torch_s_counter(
    rank: int, groups: int, inner: int, outer: int, kernel: int, stride: int, dilation: int, batch: int
) -> None:
    make = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    model = make(groups * inner, groups * outer, kernel, stride, 1, dilation, groups).eval()
    x = torch.zeros(batch, groups * inner, *[6] * rank)
    assert ops.flops(spec_of(model, x)) == counted(model, x)


@settings(max_examples=30, deadline=None)
@given(
    lead=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    rows=st.integers(1, 4),
    keys=st.integers(1, 4),
    embed=st.integers(1, 4),
)
def test_products_and_attention_agree_with_torch_s_counter(
    lead: list[int], rows: int, keys: int, embed: int
) -> None:
    q, k = torch.zeros(*lead, rows, embed), torch.zeros(*lead, keys, embed)
    product = Call(lambda a, b: torch.matmul(a, b.transpose(-1, -2).contiguous()))
    assert lm.capture(product, (q, k)).flops == counted(product, q, k)
    attention = Call(nn.functional.scaled_dot_product_attention)
    assert ops.flops(spec_of(attention, q, k, k)) == counted(attention, q, k, k)


def test_every_handled_name_is_an_operator_of_torch() -> None:
    missing = [name for name in ops._BY_ATEN if not hasattr(torch.ops.aten, name)]
    # Names that only older or newer releases have are fine, but most must be there.
    assert set(missing) <= {"view_as", "stochastic_depth", "to", "conv3d"}


def _unary() -> list[str]:
    needs_arguments = {"clamp", "clamp_min"}
    return [n for n in ops.Elementwise.aten if n not in needs_arguments]


@pytest.mark.parametrize("name", _unary())
def test_an_operator_keeps_zero_exactly_when_it_does_so_in_torch(name: str) -> None:
    spec = OpSpec(name, (TensorSpec("self", (3,)),), (TensorSpec("out", (3,)),))
    result = getattr(torch.ops.aten, name)(torch.zeros(3))
    assert ops.handler_of(name).keeps_zero(spec) == bool((result == 0).all())


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (1.0, 6.0), (-3.0, -1.0), (None, 1.0), (0.5, None)])
def test_a_clamp_keeps_zero_when_zero_lies_inside(low: float | None, high: float | None) -> None:
    model = Call(lambda x: torch.clamp(x, low, high))
    spec = spec_of(model, torch.zeros(1, 3))
    assert ops.handler_of(spec.kind).keeps_zero(spec) == bool((model(torch.zeros(1, 3)) == 0).all())


def test_sums_keep_zero_only_between_activations_of_one_shape() -> None:
    x = torch.zeros(2, 3)
    bias = nn.Parameter(torch.ones(3))

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.bias

    for model, inputs, keeps in (
        (Call(lambda a, b: a + b), (x, x), True),
        (Call(lambda a: a + 1), (x,), False),
        (Call(lambda a: 1 - a), (x,), False),
        (Call(lambda a: a * 3), (x,), True),
        (Call(lambda a: a**2), (x,), False),  # a power of zero need not be zero
        (Shifted(), (x,), False),
    ):
        spec = spec_of(model, *inputs)
        assert ops.handler_of(spec.kind).keeps_zero(spec) is keeps, spec.kind


def test_padding_rounds_the_channels_that_a_kernel_walks() -> None:
    handler = ops.handler_of("conv2d")
    dense = spec_of(nn.Conv2d(6, 10, 3, padding=1), torch.zeros(1, 6, 5, 5))
    assert handler.padded_flops(dense, 4, 8) == 2 * 25 * 16 * 8 * 9
    depthwise = spec_of(nn.Conv2d(10, 10, 3, padding=1, groups=10), torch.zeros(1, 10, 5, 5))
    assert handler.padded_flops(depthwise, 4, 8) == 2 * 25 * 16 * 9
    linear = spec_of(nn.Linear(6, 10), torch.zeros(3, 6))
    assert ops.handler_of("linear").padded_flops(linear, 4, 8) == 2 * 3 * 8 * 16


def test_formulas_price_many_widths_at_once_as_they_do_one_by_one() -> None:
    widths = np.array([1, 3, 8, 30])
    for kind in ("conv2d", "linear"):
        for which in ("flops", "bytes", "padded_flops"):
            one_by_one = []
            for width in widths.tolist():
                one_by_one.append(_priced(kind, which, width))
            assert _priced(kind, which, widths).tolist() == one_by_one


def _priced(kind: str, which: str, width: Any) -> Any:
    if kind == "conv2d":
        shapes = [(1, 6, 9, 9), (width, 6, 3, 3)], [(1, width, 9, 9)]
        names = ("input", "weight")
    else:
        shapes = [(5, 6), (width, 6)], [(5, width)]
        names = ("input", "weight")
    spec = OpSpec(
        kind,
        tuple(TensorSpec(n, s, parameter=n == "weight") for n, s in zip(names, shapes[0], strict=True)),
        tuple(TensorSpec("out", s) for s in shapes[1]),
    )
    handler = ops.handler_of(kind)
    return getattr(handler, which)(spec, *((4, 8) if which == "padded_flops" else ()))


def test_a_view_moves_nothing_and_a_copy_moves_everything_twice() -> None:
    x = torch.zeros(2, 3, 4)
    view = spec_of(Call(lambda a: a.transpose(1, 2)), x)
    assert (view.kind, ops.byte_count(view)) == ("view", 0)
    copies = lm.capture(Call(lambda a: a.transpose(1, 2).contiguous()), (x,)).specs
    assert [(s.kind, ops.byte_count(s)) for s in copies] == [("view", 0), ("copy", 2 * 24 * 4)]


def _factorised(draw: Any, total: int) -> list[int]:
    sizes = []
    while total > 1 and len(sizes) < 3:
        divisors = [d for d in range(1, total + 1) if total % d == 0]
        sizes.append(draw(st.sampled_from(divisors)))
        total //= sizes[-1]
    return [*sizes, total]


@st.composite
def reshapes(draw: Any) -> tuple[list[int], list[int], int]:
    before = draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4))
    return before, _factorised(draw, int(np.prod(before))), draw(st.integers(0, len(before) - 1))


@settings(max_examples=300, deadline=None)
@given(case=reshapes())
def test_labels_after_a_reshape_are_those_that_the_elements_carry(
    case: tuple[list[int], list[int], int],
) -> None:
    before, after, axis = case
    labels = np.arange(before[axis]) + 100
    axes: list[Any] = [labels if a == axis else None for a in range(len(before))]
    result, broken = ops.reshape_labels(before, after, axes)
    shape = [before[a] if a == axis else 1 for a in range(len(before))]
    carried = np.broadcast_to(labels.reshape(shape), before).reshape(after)
    labelled = [b for b, found in enumerate(result) if found is not None]
    assert len(result) == len(after)
    # Either the labels stand on one axis, where every element agrees, or they are handed back as broken.
    assert (len(labelled) == 1) != bool(broken)
    for b in labelled:
        for index in itertools.product(*(range(n) for n in after)):
            assert carried[index] == result[b][index[b]]
    if before == after:
        assert labelled == [axis] or before[axis] == 1
