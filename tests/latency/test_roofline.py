"""The analytic terms, by hand; one evaluation over many widths against one width at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latmorph.device.roofs import Roofs
from latmorph.device.sampling import NetworkBuilder
from latmorph.latency.roofline import (
    RATIOS,
    SHARPNESS,
    SIZES,
    Place,
    blocks_of,
    features,
    places,
    smoothmax,
    terms,
)
from latmorph.opspec import OpSpec, TensorSpec

ROOFS = Roofs(
    2e9,
    ((1e3, 1e9), (1e5, 1e7)),
    1e-6,
    {"conv2d": (4, 8), "depthwise": (1, 16), "linear": (2, 32)},
)

times = st.floats(1e-9, 1e3)


def spec_of(kind: str, width_in: Any, width_out: Any) -> OpSpec:
    """An operator whose channels are ints, or arrays of one length."""
    image: tuple[Any, ...] = (1, width_in, 6, 6)
    out: tuple[Any, ...] = image
    weight: tuple[Any, ...] | None = None
    if kind == "linear":
        image, weight, out = (3, width_in), (width_out, width_in), (3, width_out)
    elif kind == "depthwise":
        weight = (width_in, 1, 3, 3)
    elif kind == "conv2d":
        weight, out = (width_out, width_in, 3, 3), (1, width_out, 6, 6)
    weights = () if weight is None else (TensorSpec("weight", weight, parameter=True),)
    aten = "conv2d" if kind == "depthwise" else kind
    inputs = (TensorSpec("input", image), *weights)
    return OpSpec(aten, inputs, (TensorSpec("out", out),), (("stride", (1, 1)),))


# --- smoothmax


@given(times, times)
def test_smoothmax_is_the_p_norm(a: float, b: float) -> None:
    expected = max(a, b) * (1 + (min(a, b) / max(a, b)) ** SHARPNESS) ** (1 / SHARPNESS)
    assert float(smoothmax(np.array(a), np.array(b))) == pytest.approx(expected, rel=1e-12)


@given(times, times)
def test_smoothmax_lies_between_the_larger_and_19_percent_above_it(a: float, b: float) -> None:
    value = float(smoothmax(np.array(a), np.array(b)))
    assert max(a, b) <= value <= 1.1893 * max(a, b)  # two to the power of one quarter
    assert value == float(smoothmax(np.array(b), np.array(a)))


def test_smoothmax_of_nothing_is_nothing() -> None:
    assert smoothmax(np.array([0.0, 0.0, 2.0]), np.array([0.0, 3.0, 0.0])).tolist() == [0.0, 3.0, 2.0]


@given(times, times)
def test_smoothmax_grows_in_both_near_the_ridge(a: float, b: float) -> None:
    b = min(max(b, a / 8), 8 * a)
    base = smoothmax(np.array(a), np.array(b))
    assert smoothmax(np.array(1.1 * a), np.array(b)) > base
    assert smoothmax(np.array(a), np.array(1.1 * b)) > base


# --- terms


def test_the_compute_term_is_of_the_shape_padded_to_the_familys_blocks() -> None:
    # 3 input channels count as 4, 10 outputs as 16: two FLOPs, 36 pixels, 9 taps.
    compute, _ = terms(ROOFS, spec_of("conv2d", 3, 10), 1)
    assert compute.tolist() == [2 * 36 * 9 * 4 * 16 / 2e9]
    compute, _ = terms(ROOFS, spec_of("depthwise", 17, 17), 1)
    assert compute.tolist() == [2 * 36 * 9 * 32 / 2e9]
    compute, _ = terms(ROOFS, spec_of("linear", 5, 33), 1)
    assert compute.tolist() == [2 * 3 * 6 * 64 / 2e9]


def test_the_memory_term_is_bytes_over_the_bandwidth_of_that_many_bytes() -> None:
    # relu on 1 x C x 6 x 6 moves 288 C bytes.
    _, memory = terms(ROOFS, spec_of("relu", 1, 1), 1)
    assert memory == pytest.approx([288 / 1e9])
    _, memory = terms(ROOFS, spec_of("relu", 1000, 1000), 1)
    assert memory == pytest.approx([288_000 / 1e7])
    # Between the two measured sizes: bandwidth falls as the size to the power of -1.
    moved = 288 * 35
    _, memory = terms(ROOFS, spec_of("relu", 35, 35), 1)
    assert memory == pytest.approx([moved / (1e9 * (moved / 1e3) ** -1)])


def test_an_operator_that_moves_nothing_and_computes_nothing_takes_no_time() -> None:
    net = NetworkBuilder((2, 3, 4, 4))
    net.flatten(-1)
    compute, memory = terms(ROOFS, net.steps[0].spec, 1)
    assert (compute.tolist(), memory.tolist()) == ([0.0], [0.0])


def test_a_family_without_measured_blocks_is_not_padded() -> None:
    assert blocks_of(ROOFS, spec_of("relu", 3, 3)) == (1, 1)
    assert blocks_of(ROOFS, spec_of("depthwise", 3, 3)) == (1, 16)
    assert blocks_of(ROOFS, spec_of("conv2d", 3, 3)) == (4, 8)


widths = st.lists(st.integers(1, 300), min_size=1, max_size=6)


@given(st.sampled_from(["conv2d", "depthwise", "linear", "relu"]), widths, st.integers(2, 300))
def test_terms_and_features_of_many_widths_are_those_of_each_one(
    kind: str, many: list[int], fixed: int
) -> None:
    for pairs in ([(w, fixed) for w in many], [(fixed, w) for w in many], [(w, w) for w in many]):
        if kind in ("depthwise", "relu"):
            pairs = [(w + 1, w + 1) for w in many]  # one channel alone is no depthwise convolution
        columns = [np.array([p[k] for p in pairs]) for k in (0, 1)]
        if len({p[0] for p in pairs}) == 1 and pairs[0][0] == fixed:
            together = spec_of(kind, fixed, columns[1])
        elif len({p[1] for p in pairs}) == 1 and pairs[0][1] == fixed:
            together = spec_of(kind, columns[0], fixed)
        else:
            together = spec_of(kind, *columns)
        compute, memory = terms(ROOFS, together, len(pairs))
        names, table = features(together, len(pairs), Place(30))
        assert table.shape == (len(pairs), len(names))
        for k, pair in enumerate(pairs):
            alone = spec_of(kind, *pair)
            own_compute, own_memory = terms(ROOFS, alone, 1)
            assert compute[k] == pytest.approx(own_compute[0], rel=1e-12)
            assert memory[k] == pytest.approx(own_memory[0], rel=1e-12)
            own_names, own_table = features(alone, 1, Place(30))
            assert names == own_names
            assert table[k] == pytest.approx(own_table[0], rel=1e-12)


# --- features


def test_features_of_a_convolution_by_hand() -> None:
    names, table = features(spec_of("conv2d", 3, 10), 1, Place(33, since_kind=7, since_same=31))
    row = dict(zip(names, table[0], strict=True))
    log = {
        name: math.log2(1 + value)
        for name, value in {
            "flops": 2 * 36 * 9 * 3 * 10,
            "bytes": 4 * (3 * 36 + 10 * 3 * 9 + 10 * 36),
            "bytes_parameters": 4 * 270,
            "bytes_in": 4 * 108,
            "bytes_out": 4 * 360,
            "since_kind": 7,
            "since_same": 31,
            "width_in": 3,
            "width_out": 10,
            "kernel": 9,
            "pixels_out": 36,
            "groups": 1,
        }.items()
    }
    assert {name: row[name] for name in log} == pytest.approx(log)
    assert row["bandwidth"] == 33
    remainders = {name: value for name, value in row.items() if "_mod_" in name}
    expected = {f"in_mod_{block}": 3 for block in (4, 8, 16, 32)}
    expected |= {"out_mod_4": 2, "out_mod_8": 2, "out_mod_16": 10, "out_mod_32": 10}
    assert remainders == expected
    assert row["inplace"] == 0
    # Of a block of 16 channels, 3 and 10 are used; a ratio is the difference of two logarithms.
    assert (row["in_used"], row["out_used"]) == (3 / 16, 10 / 16)
    for over, under in RATIOS:
        assert row[f"{over}_per_{under}"] == pytest.approx(log[over] - log[under])


def test_what_was_touched_since_by_hand() -> None:
    specs = [spec_of("conv2d", 3, 8), spec_of("relu", 8, 8), spec_of("relu", 8, 8), spec_of("relu", 2, 2)]
    wide, narrow, octave = 4 * 8 * 36, 4 * 2 * 36, lambda count: round(math.log2(1 + count))
    conv, first, second, last = places(ROOFS, specs, footprint=2**20)
    # A pass lies between what a network is given, or has no like of, and its use.
    assert (conv.since_read, conv.since_freed, conv.written) == (20, 20, 0)
    # Only the convolution wrote before, and what it wrote is being read.
    assert (first.since_read, first.since_freed, first.written) == (0, 20, octave(wide))
    # The convolution's memory is free again, and the first ReLU read and wrote since.
    assert (second.since_read, second.since_freed) == (0, octave(2 * wide))
    assert second.written == octave(2 * wide)
    # It finds more than it needs where the first ReLU wrote; nothing wrote as much as it reads.
    assert narrow not in (wide, 2 * wide)
    assert (last.since_read, last.since_freed, last.written) == (20, octave(2 * wide), octave(3 * wide))
    assert places(ROOFS, specs, written=2**20)[0].written == 20


def test_places_of_a_chain_by_hand() -> None:
    view = OpSpec("view", (TensorSpec("self", (1, 8, 6, 6)),), (TensorSpec("out", (1, 288)),))
    unknown = OpSpec("unknown:aten.fft", view.inputs, view.inputs)
    specs = [spec_of("conv2d", 3, 8), view, spec_of("relu", 8, 8), unknown, spec_of("relu", 2, 2)]
    first, of_view, second, third, last = places(ROOFS, specs)
    parameters, largest = 4 * 8 * 27, 2 * 4 * 8 * 36
    # 3.2 kB, where the bandwidth falls with the footprint: 1e9 bytes/s at 1 kB.
    octave = round(math.log2(1e9 * 1000 / (parameters + largest)))
    assert {p.bandwidth for p in (first, of_view, second, third, last)} == {octave}
    assert (first.before, first.before_flops, first.before_out_bytes, first.fed) == (0.0, 0, 0, False)
    # A view moves nothing: the operator after it still stands after the convolution.
    assert replace(of_view, since_kind=3, ran=2) == second
    assert (second.before_flops, second.before_in_bytes) == (2 * 36 * 9 * 3 * 8, 4 * 3 * 36)
    assert (second.before_out_bytes, second.before_parameter_bytes) == (4 * 8 * 36, parameters)
    assert second.fed
    assert third.fed
    # What has no handler stands before others like any operator; its FLOPs are not known.
    assert (last.before_flops, last.before_out_bytes, last.fed) == (0, 4 * 8 * 36, False)
    assert len({0.0, second.before, third.before, last.before}) == 4
    # The first relu of a pass comes three places after the last one of the pass before.
    assert [p.since_kind for p in (first, of_view, second, third, last)] == [5, 5, 3, 5, 2]
    assert {p.since_same for p in (first, of_view, second, third, last)} == {5}
    # log2 of 1, 2, 3, 4 and 5, rounded.
    assert [p.ran for p in (first, of_view, second, third, last)] == [0, 1, 2, 2, 2]


def test_operators_that_are_the_same_in_all_are_found_again() -> None:
    narrow, wide = spec_of("relu", 4, 4), spec_of("relu", 8, 8)
    found = places(ROOFS, [narrow, wide, wide, narrow])
    assert [p.since_kind for p in found] == [1, 1, 1, 1]
    assert [p.since_same for p in found] == [1, 3, 1, 3]


def test_places_of_a_part_are_in_the_whole_network() -> None:
    place = places(ROOFS, [spec_of("relu", 8, 8)], footprint=1e4, operators=70)[0]
    assert (place.since_kind, place.since_same) == (70, 70)
    assert place.bandwidth == round(math.log2(1e8))
    assert places(ROOFS, [spec_of("relu", 8, 8)], ran=30)[0].ran == 5


def test_footprints_that_the_same_caches_hold_cannot_be_told_apart() -> None:
    # A core's own cache, one that all share, and memory: 2^36, 2^34.9 and 2^34 bytes/s, as measured.
    pairs = ((2**20, 6.9e10), (2**22, 3.2e10), (2**24, 3.1e10), (2**25, 1.7e10), (2**30, 1.7e10))
    roofs = Roofs(1e11, tuple((float(a), b) for a, b in pairs), 1e-6, {})
    spec = spec_of("relu", 8, 8)
    octaves = [places(roofs, [spec], footprint=b)[0].bandwidth for b in (1e5, 4.5e6, 9e6, 1.5e7, 4e7, 1e9)]
    assert octaves == [36, 35, 35, 35, 34, 34]


def test_features_tell_where_an_operator_stands() -> None:
    specs = [spec_of("conv2d", 3, 8), spec_of("relu", 8, 8), spec_of("relu", 8, 8)]
    _, second, third = places(ROOFS, specs)
    rows = [features(specs[1], 1, place) for place in (second, third)]
    names = rows[0][0]
    differ = {n for n, a, b in zip(names, rows[0][1][0], rows[1][1][0], strict=True) if a != b}
    before = {"before", "before_flops", "before_in", "before_parameters"}
    assert differ == before | {"since_kind", "since_same", "since_freed", "written", "ran"}
    assert rows[0][1][0][names.index("before_parameters")] == pytest.approx(math.log2(1 + 4 * 8 * 27))


@pytest.mark.parametrize(("width", "used"), [(1, 1 / 16), (15, 15 / 16), (16, 1.0), (17, 17 / 32), (64, 1.0)])
def test_the_share_of_a_block_that_channels_use(width: int, used: float) -> None:
    names, table = features(spec_of("conv2d", width, 8), 1, Place(0))
    assert table[0, names.index("in_used")] == pytest.approx(used)


@pytest.mark.parametrize(
    ("shapes", "run", "stretched", "least"),
    [
        (((1, 5, 7, 9), (1, 5, 7, 9)), 315, 0, 315),
        (((1, 5, 7, 9), (1, 5, 1, 1)), 63, 1, 5),
        (((2, 5, 7, 9), (7, 9)), 63, 0, 63),
        (((2, 5, 7, 9), (2, 1, 7, 9)), 63, 0, 126),
        (((2, 5, 7, 9), (9,)), 9, 0, 9),
        (((2, 5, 7, 1), (7, 1)), 7, 0, 7),
        (((4, 6), ()), 24, 1, 1),
    ],
)
def test_a_broadcast_goes_by_runs_whichever_operand_comes_first(
    shapes: tuple[tuple[int, ...], ...], run: int, stretched: int, least: int
) -> None:
    def row(kind: str, *shapes: tuple[int, ...]) -> dict[str, float]:
        inputs = tuple(TensorSpec(name, shape) for name, shape in zip("ab", shapes, strict=True))
        names, table = features(
            OpSpec(kind, inputs, (TensorSpec("out", np.broadcast_shapes(*shapes)),)), 1, Place(0)
        )
        return dict(zip(names, table[0].tolist(), strict=True))

    for kind in ("mul", "onnx.Mul"):
        found = row(kind, *shapes)
        expected = {"run": run, "stretched": stretched, "numel_least": least}
        assert {k: found[k] for k in expected} == pytest.approx(
            {k: math.log2(1 + v) for k, v in expected.items()}
        )
        assert row(kind, *reversed(shapes)) == found


def test_an_in_place_operator_can_be_told_from_one_that_writes_anew() -> None:
    net = NetworkBuilder((1, 3, 4, 4))
    net.activation(-1, "relu", inplace=True)
    net.activation(-1, "relu", inplace=False)
    (names, first), (_, second) = (features(s.spec, 1, Place(0)) for s in net.steps)
    differ = [n for n, a, b in zip(names, first[0], second[0], strict=True) if a != b]
    assert differ == ["inplace"]


@pytest.mark.parametrize("kind", ["conv2d", "depthwise", "linear", "relu"])
def test_the_sizes_that_tell_distance_from_the_data_are_features_of_every_kind(kind: str) -> None:
    names, table = features(spec_of(kind, 7, 7), 1, Place(0))
    assert set(SIZES) <= set(names)
    assert np.all(np.isfinite(table))
