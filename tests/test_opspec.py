"""OpSpec: sizes by hand, the JSON form there and back, arithmetic on ints and arrays alike."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latmorph.opspec import OpSpec, TensorSpec, as_array, ceil_to, footprint_bytes

CONV = OpSpec(
    "conv2d",
    (
        TensorSpec("input", (2, 3, 5, 7)),
        TensorSpec("weight", (4, 3, 3, 3), parameter=True),
        TensorSpec("bias", (4,), parameter=True),
    ),
    (TensorSpec("out", (2, 4, 5, 7)),),
    (("stride", (1, 1)), ("groups", 1)),
)

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6)
tensors = st.builds(
    TensorSpec,
    name=st.text(max_size=8),
    shape=st.lists(st.integers(0, 2**40), max_size=5).map(tuple),
    dtype=st.sampled_from(["float32", "bfloat16", "int64", "bool"]),
    parameter=st.booleans(),
)
specs = st.builds(
    OpSpec,
    kind=st.text(max_size=12),
    inputs=st.lists(tensors, max_size=4).map(tuple),
    outputs=st.lists(tensors, max_size=3).map(tuple),
    attrs=st.lists(st.tuples(st.text(max_size=6), values), max_size=4).map(tuple),
)


ITEMS = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int8": 1, "bool": 1}


@pytest.mark.parametrize(("dtype", "item"), ITEMS.items())
def test_a_tensors_bytes_are_its_elements_times_the_size_of_one(dtype: str, item: int) -> None:
    tensor = TensorSpec("x", (2, 3, 5), dtype)
    assert tensor.numel == 30
    assert tensor.bytes == 30 * item


def test_a_tensor_without_axes_has_one_element() -> None:
    assert TensorSpec("x", ()).numel == 1
    assert TensorSpec("x", ()).bytes == 4


def test_a_shape_of_arrays_gives_the_size_of_every_variant() -> None:
    widths = np.array([1, 8, 9])
    assert TensorSpec("x", (2, widths, 5)).numel.tolist() == [10, 80, 90]
    assert TensorSpec("x", (widths, widths), "float16").bytes.tolist() == [2, 128, 162]


def test_operands_and_attributes_are_found_by_name() -> None:
    assert CONV["weight"].shape == (4, 3, 3, 3)
    assert CONV.operand("bias") == TensorSpec("bias", (4,), parameter=True)
    assert CONV.operand("other") is None
    assert CONV.attr("groups") == 1
    assert CONV.attr("dilation") is None
    assert CONV.attr("dilation", (1, 1)) == (1, 1)
    assert CONV.out.shape == (2, 4, 5, 7)


def test_a_missing_operand_is_named_in_the_error() -> None:
    with pytest.raises(KeyError, match=r"conv2d has no operand 'other'"):
        CONV["other"]


def test_parameter_bytes_leave_activations_out() -> None:
    assert CONV.parameter_bytes == (4 * 3 * 3 * 3 + 4) * 4


def test_with_attr_changes_that_attribute_only() -> None:
    changed = CONV.with_attr("groups", 3)
    assert changed.attrs == (("stride", (1, 1)), ("groups", 3))
    assert changed.inputs == CONV.inputs
    assert CONV.attr("groups") == 1


def test_with_shapes_keeps_names_dtypes_and_parameters() -> None:
    changed = CONV.with_shapes([(1, 3, 9, 9), (6, 3, 3, 3), (6,)], [(1, 6, 9, 9)])
    assert [t.shape for t in changed.inputs] == [(1, 3, 9, 9), (6, 3, 3, 3), (6,)]
    assert [(t.name, t.dtype, t.parameter) for t in changed.inputs] == [
        (t.name, t.dtype, t.parameter) for t in CONV.inputs
    ]
    assert changed.out.shape == (1, 6, 9, 9)
    assert changed.attrs == CONV.attrs


def test_with_shapes_refuses_another_number_of_operands() -> None:
    with pytest.raises(ValueError, match="zip"):
        CONV.with_shapes([(1, 3, 9, 9)], [(1, 6, 9, 9)])


@given(specs)
def test_json_there_and_back_is_the_same_operator(spec: OpSpec) -> None:
    text = spec.to_json()
    assert "\n" not in text
    assert OpSpec.from_json(text) == spec


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), (0.0, float("inf")), 1e308, 2**70])
def test_attributes_without_end_come_back(value: Any) -> None:
    # clamp(max=inf), pad(value=-inf): a profile that holds one must load again.
    spec = CONV.with_attr("groups", value)
    assert OpSpec.from_json(spec.to_json()) == spec


def test_the_json_form_is_plain_lists_that_another_reader_understands() -> None:
    assert json.loads(CONV.to_json()) == [
        "conv2d",
        [
            ["input", [2, 3, 5, 7], "float32", 0],
            ["weight", [4, 3, 3, 3], "float32", 1],
            ["bias", [4], "float32", 1],
        ],
        [["out", [2, 4, 5, 7], "float32", 0]],
        [["stride", [1, 1]], ["groups", 1]],
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "7",
        "null",
        '"conv2d"',
        '["relu",[],[]]',
        '["relu",[["self",[1],"float32"]],[],[]]',
        '["relu",[["self",7,"float32",0]],[],[]]',
        '["relu",[["self",["wide"],"float32",0]],[],[]]',
        '["relu",[],[],[["inplace"]]]',
        CONV.to_json()[:-1],
        CONV.to_json() + "]",
    ],
)
def test_text_that_is_no_operator_is_refused_as_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="not an operator"):
        OpSpec.from_json(text)


@pytest.mark.parametrize(
    "text",
    [
        '["relu",[["self",[Infinity],"float32",0]],[],[]]',  # no integer
        '["relu",[["self",[1.5],"float32",0]],[],[]]',  # a size that would be rounded in silence
        "[null,[],[],[]]",  # would become the kind "None"
        "[" * 100_000,  # deeper than the parser goes
    ],
    ids=["infinite size", "fractional size", "no kind", "nested too deep"],
)
def test_json_that_only_looks_like_an_operator_is_refused_as_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="not an operator"):
        OpSpec.from_json(text)


def test_operators_can_be_keys_and_differ_by_every_part() -> None:
    variants: list[OpSpec] = [
        CONV,
        CONV.with_attr("groups", 2),
        CONV.with_shapes([(2, 3, 5, 7), (4, 3, 3, 3), (4,)], [(2, 4, 5, 8)]),
        OpSpec("conv1d", CONV.inputs, CONV.outputs, CONV.attrs),
    ]
    assert len(set(variants)) == 4
    assert OpSpec.from_json(CONV.to_json()) in set(variants)


@given(st.integers(0, 10**9), st.integers(1, 512))
def test_ceil_to_is_the_smallest_multiple_that_is_not_below(value: int, block: int) -> None:
    up = ceil_to(value, block)
    assert up % block == 0
    assert value <= up < value + block


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=8), st.integers(1, 64))
def test_ceil_to_rounds_an_array_as_it_rounds_each_of_its_ints(sizes: list[int], block: int) -> None:
    assert ceil_to(np.array(sizes), block).tolist() == [ceil_to(size, block) for size in sizes]


@pytest.mark.parametrize(
    ("value", "expected"), [(3, [3.0, 3.0]), (np.array([1, 2]), [1.0, 2.0]), (np.int64(5), [5.0, 5.0])]
)
def test_as_array_repeats_a_scalar_and_keeps_an_array(value: Any, expected: list[float]) -> None:
    array = as_array(value, 2)
    assert array.dtype == np.float64
    assert array.tolist() == expected


def test_as_array_refuses_an_array_of_another_length() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        as_array(np.arange(3), 2)


def test_the_footprint_is_all_parameters_and_the_largest_operators_activations() -> None:
    relu = OpSpec("relu", (TensorSpec("self", (2, 4, 50, 7)),), (TensorSpec("out", (2, 4, 50, 7)),))
    # The convolution moves 210 + 280 floats of activations, relu 2 * 2800: the larger one counts.
    parameters = (4 * 27 + 4) * 4
    assert footprint_bytes([CONV, relu, CONV]) == 2 * parameters + 2 * 2800 * 4
    assert footprint_bytes([CONV]) == parameters + (210 + 280) * 4
    assert footprint_bytes([]) == 0
