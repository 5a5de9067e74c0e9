"""FLOPs against formulas worked out by hand and torch's own counter; channel rules against brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from modules import Call
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import latmorph as lm
from latmorph import ops
from latmorph.ops.rearrange import Reshape
from latmorph.opspec import OpSpec, TensorSpec


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
def test_transposed_convolutions_agree_with_torch_s_counter(
    rank: int, groups: int, inner: int, outer: int, kernel: int, stride: int, dilation: int, batch: int
) -> None:
    make = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1]
    model = make(
        groups * inner, groups * outer, kernel, stride, groups=groups, dilation=dilation, bias=outer == 1
    ).eval()
    x = torch.zeros(batch, groups * inner, *[4] * rank)
    spec = spec_of(model, x)
    # every pixel of the input is multiplied into kernel x outer places of its group
    by_hand = 2 * batch * groups * inner * 4**rank * kernel**rank * outer
    assert ops.flops(spec) == counted(model, x) == by_hand
    handler = ops.handler_of(spec.kind)
    assert handler.padded_flops(spec, 1, 1) == by_hand


def test_convolutions_without_a_batch_count_their_channels_on_the_first_axis() -> None:
    spec = spec_of(nn.Conv2d(6, 10, 3, groups=2), torch.zeros(6, 8, 9))
    assert ops.flops(spec) == 2 * 10 * 6 * 7 * 3 * 9
    assert ops.handler_of("conv2d").features(spec)["groups"] == 2


EQUATIONS = (
    *("bij,bjk->bik", "bij,bkj->bik", "ij,jk->ki", "bhid,bhjd->bhij", "i,j->ij", "ij,ij->ij", "bij,j->bi"),
    *("...ij,...jk->...ik", "...ij,jk->...ik", "bij,jk", "bij->bji", "ij,ij->", "bijk,ij->bk", "bc,bd->bcd"),
    *("ab,bc,cd->ad", "bij,bjk,bkl,l->bi", "i,ij,j->", "b i j, b j k -> b i k"),
)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einstein_sums_agree_with_torch_s_counter(equation: str) -> None:
    size = {letter: 2 + k for k, letter in enumerate("abcdhijkl")}
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    inputs = [torch.zeros([*[2, 3] * ("..." in t), *(size[i] for i in t.strip("."))]) for t in terms]
    model = Call(lambda *x: torch.einsum(equation, *x))
    assert ops.flops(spec_of(model, *inputs)) == counted(model, *inputs)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize(("layers", "both"), [(1, False), (2, True)])
def test_a_recurrent_layer_s_flops_are_those_of_its_gates(kind: str, layers: int, both: bool) -> None:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    model = getattr(nn, kind)(5, 7, layers, bidirectional=both, batch_first=True).double()
    (spec,) = (s for s in lm.capture(model, (torch.zeros(2, 11, 5).double(),)).specs if s.kind != "zeros")
    first = gates * 7 * (5 + 7) * (2 if both else 1)
    second = gates * 7 * (2 * 7 + 7) * 2 if layers == 2 else 0
    assert ops.flops(spec) == 2 * 2 * 11 * (first + second)
    features = ops.handler_of(spec.kind).features(spec)
    assert (features["steps"], features["layers"], features["directions"]) == (11, layers, 1 + both)


@pytest.mark.parametrize(("kind", "gates"), [("LSTMCell", 4), ("GRUCell", 3), ("RNNCell", 1)])
def test_a_recurrent_cell_is_one_step(kind: str, gates: int) -> None:
    graph = lm.capture(getattr(nn, kind)(5, 7), (torch.zeros(3, 5),))
    (spec,) = (s for s in graph.specs if s.kind.endswith("_cell"))
    assert ops.flops(spec) == 2 * 3 * gates * 7 * (5 + 7)
    assert ops.handler_of(spec.kind).features(spec)["steps"] == 1


def test_a_bilinear_layer_multiplies_every_pair() -> None:
    spec = spec_of(nn.Bilinear(4, 5, 6), torch.zeros(3, 4), torch.zeros(3, 5))
    assert ops.flops(spec) == 2 * 3 * 4 * 5 * 6


def test_products_with_a_sum_are_products() -> None:
    x, w = torch.zeros(3, 4, 5), torch.zeros(3, 5, 6)
    model = Call(lambda a, b: torch.baddbmm(torch.zeros(1), a, b))
    assert lm.capture(model, (x, w)).flops == counted(model, x, w) == 2 * 3 * 4 * 5 * 6

    class Affine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.zeros(5, 6)), nn.Parameter(torch.zeros(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.addmm(self.bias, x, self.weight)

    spec = spec_of(Affine(), x[0])
    assert ops.flops(spec) == counted(Affine(), x[0]) == 2 * 4 * 5 * 6
    handler = ops.handler_of("addmm")
    assert (handler.family(spec), handler.widths(spec)) == ("linear", (5, 6))
    assert handler.padded_flops(spec, 4, 8) == 2 * 4 * 8 * 8


def test_shared_heads_are_priced_by_the_heads_of_the_query() -> None:
    q, k = torch.zeros(2, 8, 5, 4), torch.zeros(2, 2, 7, 4)
    model = Call(lambda q, k: nn.functional.scaled_dot_product_attention(q, k, k, enable_gqa=True))
    spec = spec_of(model, q, k)
    assert ops.flops(spec) == counted(model, q, k) == 2 * 2 * 8 * 5 * 7 * (4 + 4)
    assert ops.handler_of(spec.kind).features(spec)["shared"] == 4


def test_what_is_read_by_index_is_as_large_as_what_is_written() -> None:
    x, i = torch.zeros(100, 8), torch.zeros(3, dtype=torch.int64)
    for model, extra in (
        (Call(lambda x, i: x[i]), 3 * 8),
        (Call(lambda x, i: x.index_select(0, i)), 3 * 8),
    ):
        assert ops.byte_count(spec_of(model, x, i)) == 2 * 3 * 8 * 4 + extra
    spec = spec_of(nn.Embedding(100, 8), i)
    assert ops.byte_count(spec) == 2 * 3 * 8 * 4 + 3 * 8


def test_what_is_made_of_a_value_reads_nothing() -> None:
    x = torch.zeros(5, 6)
    for model in (
        Call(torch.ones_like),
        Call(lambda x: x.new_zeros(5, 6)),
        Call(lambda x: torch.zeros(5, 6)),
    ):
        assert ops.byte_count(spec_of(model, x)) == 5 * 6 * 4


def test_seldom_met_kinds_are_priced_as_kinds_that_are_sampled() -> None:
    # One step of alike is enough: what stands for others stands for itself.
    for name, handler in ops._BY_ATEN.items():
        stands = handler.alike.get(name, name)
        if stands in ops._BY_ATEN:
            other = ops.handler_of(stands)
            assert other.alike.get(stands, stands) == stands, name


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
    assert set(missing) <= {"transformers.grouped_mm_fallback"}


def _unary() -> list[str]:
    needs_arguments = {"clamp", "clamp_min", "clamp_max", "threshold", "bitwise_not"}
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


def test_views_are_priced_by_what_is_dispatched() -> None:
    calls = {
        "transpose": (lambda a: a.transpose(1, 2), lambda a: a.permute(2, 0, 1)),
        "reshape": (lambda a: a.flatten(1), lambda a: a.unsqueeze(0)),
        "select": (lambda a: a[:, 1],),
        "slice": (lambda a: a[:, 1:],),
        "same": (lambda a: nn.functional.dropout(a, training=False),),
        "other": (lambda a: a[:, :1].expand(2, 3, 4), lambda a: a.chunk(2, 2)[0]),
    }
    for name, alike in calls.items():
        for call in alike:
            spec = lm.capture(Call(call), (torch.zeros(2, 3, 4),)).specs[-1]
            assert ops.handler_of(spec.kind).family(spec) == f"view ({name})", spec


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
    shape = [before[a] if a == axis else 1 for a in range(len(before))]
    labels = (np.arange(before[axis]) + 100).reshape(shape)
    found = Reshape(tuple(before), tuple(after)).apply(labels)
    carried = np.broadcast_to(labels, before).reshape(after)
    assert found.ndim == len(after)
    assert (np.broadcast_to(found, after) == carried).all()
    if before == after:
        assert found.shape == labels.shape


def test_an_einstein_sum_follows_its_path() -> None:
    a, b, c = (TensorSpec("tensors", s) for s in ((2, 30), (30, 40), (40, 3)))
    whole = OpSpec("einsum", (a, b, c), (TensorSpec("out", (2, 3)),), (("equation", "ab,bc,cd->ad"),))
    assert ops.flops(whole) == 2 * (2 * 30 * 40 + 2 * 40 * 3)
    last_first = whole.with_attr("path", (1, 2, 0, 1))
    assert ops.flops(last_first) == 2 * (30 * 40 * 3 + 2 * 30 * 3)
