"""The latency model, evaluated against a plain walk over its trees and the formula in its docstring."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latmorph.device.roofs import Roofs
from latmorph.device.sampling import NetworkBuilder
from latmorph.latency import roofline
from latmorph.latency.model import UNMEASURED_SIGMA, Family, LatencyModel, Predictor, Trees
from latmorph.opspec import OpSpec, TensorSpec

ROOFS = Roofs(1e9, ((1e3, 1e9), (1e6, 1e8)), 5e-6, {"conv2d": (1, 8)})
PLACE = roofline.Place(30)
NO_TREES = Trees(0, [], [], [], [], [])
UNKNOWN = OpSpec("unknown:aten.mystery", (TensorSpec("self", (1, 4)),), (TensorSpec("out", (1, 4)),))


def convolution(width_in: Any = 16, width_out: Any = 24) -> OpSpec:
    return OpSpec(
        "conv2d",
        (
            TensorSpec("input", (1, width_in, 8, 8)),
            TensorSpec("weight", (width_out, width_in, 3, 3), parameter=True),
        ),
        (TensorSpec("out", (1, width_out, 8, 8)),),
        (("stride", (1, 1)),),
    )


def relu(width: int = 16) -> OpSpec:
    shape = (1, width, 8, 8)
    return OpSpec("relu", (TensorSpec("self", shape),), (TensorSpec("out", shape),))


def names_and_row(spec: OpSpec) -> tuple[list[str], list[float]]:
    names, table = roofline.features(spec, 1, PLACE)
    return names, table[0].tolist()


def family(trees: Trees = NO_TREES, /, *, spec: OpSpec | None = None, **fields: Any) -> Family:
    """A family whose range of data is wide around ``spec``, unless told."""
    names, row = names_and_row(spec or convolution())
    defaults: dict[str, Any] = {
        "overhead_s": 2e-6,
        "level": 0.3,
        "bound": 3.0,
        "sigma": 0.05,
        "features": names,
        "low": [v - 50 for v in row],
        "high": [v + 50 for v in row],
    }
    return Family(**{**defaults, **fields}, trees=trees)


def model(families: dict[str, Family], scale: float = 1.0) -> LatencyModel:
    return LatencyModel(ROOFS, families, scale, 0.02)


def roofs_by_hand(spec: OpSpec) -> tuple[float, float]:
    """Compute and memory seconds of a convolution or relu here, from numbers alone."""
    moved = sum(4 * math.prod(t.shape) for t in (*spec.inputs, *spec.outputs))
    # From 1e9 at 1e3 bytes to 1e8 at 1e6: one power of ten over three.
    bandwidth = 10 ** (9 - min(max(math.log10(moved) - 3, 0), 3) / 3)
    if spec.kind == "relu":
        return 0.0, moved / bandwidth
    out, inner = spec["weight"].shape[:2]
    return 2 * 64 * 9 * inner * 8 * math.ceil(out / 8) / 1e9, moved / bandwidth


def smoothmax(a: float, b: float) -> float:
    return float((a**4 + b**4) ** 0.25)


def walk(trees: Trees, row: list[float]) -> float:
    """The sum of the leaves that a row ends in, node by node."""
    total = 0.0
    for k in range(len(trees.feature)):
        node = 0
        while trees.left[k][node] != -1:
            goes_left = row[trees.feature[k][node]] <= trees.threshold[k][node]
            node = (trees.left if goes_left else trees.right)[k][node]
        total += trees.value[k][node]
    return total


@st.composite
def forests(draw: st.DrawFn, row: list[float]) -> Trees:
    """Random trees, of random shapes, whose thresholds lie around and exactly on a row's values."""
    grown: list[list[tuple[int, float, int, int, float]]] = []
    deepest = 0

    def grow(nodes: list[tuple[int, float, int, int, float]], depth: int) -> int:
        nonlocal deepest
        deepest = max(deepest, depth)
        here = len(nodes)
        nodes.append((0, 0.0, -1, -1, draw(st.floats(-0.2, 0.2))))
        if depth < 5 and draw(st.booleans()):
            feature = draw(st.integers(0, len(row) - 1))
            threshold = row[feature] + draw(st.sampled_from([-2.0, -0.25, 0.0, 0.25, 2.0]))
            left, right = grow(nodes, depth + 1), grow(nodes, depth + 1)
            nodes[here] = (feature, threshold, left, right, 99.0)  # what a walk must not stop at
        return here

    for _ in range(draw(st.integers(1, 5))):
        grown.append([])
        grow(grown[-1], 0)
    width = max(len(nodes) for nodes in grown)
    padded = [[*nodes, *[(0, 0.0, -1, -1, 0.0)] * (width - len(nodes))] for nodes in grown]
    columns = [[[node[c] for node in nodes] for nodes in padded] for c in range(5)]
    return Trees(deepest, *columns)  # type: ignore[arg-type]


# --- trees


@given(st.data(), st.lists(st.tuples(st.integers(1, 64), st.integers(1, 64)), min_size=1, max_size=6))
@settings(deadline=None)
def test_trees_are_walked_as_by_hand_and_enter_the_formula(
    data: st.DataObject, widths: list[tuple[int, int]]
) -> None:
    trees = data.draw(forests(names_and_row(convolution())[1]))
    assert trees.well_formed
    specs = [convolution(*pair) for pair in widths]
    prediction = Predictor(model({"conv2d": family(trees)}, scale=1.5))(specs, [PLACE] * len(specs))
    for i, spec in enumerate(specs):
        residual = walk(trees, names_and_row(spec)[1])
        overhead = 2e-6 * math.exp(residual)
        compute, memory = (t * math.exp(0.3 + residual) for t in roofs_by_hand(spec))
        assert prediction.compute_s[i, 0] == pytest.approx(1.5 * compute, rel=1e-9)
        assert prediction.memory_s[i, 0] == pytest.approx(1.5 * memory, rel=1e-9)
        assert prediction.overhead_s[i, 0] == pytest.approx(1.5 * overhead, rel=1e-9)
        expected = 1.5 * (overhead + smoothmax(compute, memory))
        assert prediction.total_s[i, 0] == pytest.approx(expected, rel=1e-9)


def test_many_rows_are_walked_like_few() -> None:
    # More rows than one batch of the evaluation holds: the answer must not depend on where it is cut.
    names = names_and_row(convolution())[0]
    feature = [[names.index("width_out"), 0, 0]]
    split = Trees(1, feature, [[5.0, 0, 0]], [[1, -1, -1]], [[2, -1, -1]], [[9, -1, 1]])
    widths = np.arange(1, 5001)
    predictor = Predictor(model({"conv2d": family(split, level=0.0)}))
    total = predictor([convolution(16, widths)], [PLACE], len(widths)).total_s[0]
    # log2(1 + 31) = 5 goes left.
    for width in (1, 30, 31, 32, 2047, 2048, 2049, 4095, 4096, 4097, 5000):
        factor = math.exp(-1.0 if width <= 31 else 1.0)
        compute, memory = roofs_by_hand(convolution(16, width))
        expected = (2e-6 + smoothmax(compute, memory)) * factor
        assert total[width - 1] == pytest.approx(expected, rel=1e-9)


def test_several_kinds_and_variants_stand_in_their_own_rows() -> None:
    families = {"conv2d": family(level=0.5), "relu": family(spec=relu(), overhead_s=1e-6, level=-0.5)}
    widths = [8, 9, 24]
    specs = [relu(4), convolution(16, np.array(widths)), UNKNOWN, relu(32)]
    prediction = Predictor(model(families))(specs, [PLACE] * 4, 3)
    assert prediction.total_s.shape == (4, 3)
    for k, width in enumerate(widths):
        for row, spec, overhead, level in (
            (0, relu(4), 1e-6, -0.5),
            (1, convolution(16, width), 2e-6, 0.5),
            (3, relu(32), 1e-6, -0.5),
        ):
            compute, memory = (t * math.exp(level) for t in roofs_by_hand(spec))
            expected = overhead + smoothmax(compute, memory)
            assert prediction.total_s[row, k] == pytest.approx(expected, rel=1e-9)


def leaf(value: float) -> Trees:
    return Trees(0, [[0]], [[0.0]], [[-1]], [[-1]], [[value]])


@pytest.mark.parametrize("memory_level", [-0.7, 0.4])
def test_the_memory_level_is_of_memory_alone(memory_level: float) -> None:
    predictor = Predictor(model({"conv2d": family(level=0.3, memory_level=memory_level)}, scale=1.5))
    compute, memory = (t * math.exp(0.3) for t in roofs_by_hand(convolution()))
    memory *= math.exp(memory_level)
    prediction = predictor([convolution()], [PLACE])
    assert prediction.compute_s[0, 0] == pytest.approx(1.5 * compute, rel=1e-9)
    assert prediction.memory_s[0, 0] == pytest.approx(1.5 * memory, rel=1e-9)
    assert prediction.total_s[0, 0] == pytest.approx(1.5 * (2e-6 + smoothmax(compute, memory)), rel=1e-9)


@pytest.mark.parametrize(("value", "fine"), [(1e6, 3.0), (-1e6, -3.0), (2.9, 2.9), (-2.9, -2.9)])
def test_the_residual_is_bounded(value: float, fine: float) -> None:
    prediction = Predictor(model({"conv2d": family(leaf(value))}))([convolution()], [PLACE])
    compute, memory = (t * math.exp(0.3) for t in roofs_by_hand(convolution()))
    expected = (2e-6 + smoothmax(compute, memory)) * math.exp(fine)
    assert prediction.total_s[0, 0] == pytest.approx(expected, rel=1e-9)


# --- away from the data


def residual_of(family_: Family, spec: OpSpec) -> tuple[float, float]:
    """The residual that the prediction implies, and its standard deviation."""
    prediction = Predictor(model({"conv2d": family_}))([spec], [PLACE])
    above = prediction.total_s[0, 0] - prediction.overhead_s[0, 0]
    return math.log(above / smoothmax(*roofs_by_hand(spec))), float(prediction.sigma[0, 0])


@pytest.mark.parametrize("doublings", [0.0, 1.0, 2.0, 6.0])
@pytest.mark.parametrize("side", ["low", "high"])
def test_away_from_the_data_the_trees_fade_and_the_uncertainty_grows(doublings: float, side: str) -> None:
    spec = convolution()
    names, row = names_and_row(spec)
    ends: dict[str, Any] = {"low": [v - 50 for v in row], "high": [v + 50 for v in row]}
    k = names.index("width_out")
    # The data end so many doublings before the operator.
    ends[side][k] = row[k] + (doublings if side == "low" else -doublings)
    residual, sigma = residual_of(family(leaf(1.0), **ends), spec)
    assert residual == pytest.approx(0.3 + math.exp(-0.2 * doublings), rel=1e-6)
    assert sigma == pytest.approx(0.05 + 0.2 * doublings)


def test_far_from_the_data_only_the_level_is_left() -> None:
    spec = convolution(2**16, 2**16)
    names, row = names_and_row(convolution(8, 8))
    residual, _ = residual_of(family(leaf(3.0), features=names, low=row, high=row, level=-0.2), spec)
    assert residual == pytest.approx(-0.2, abs=0.02)


def test_a_remainder_that_the_data_lack_is_not_far_away() -> None:
    spec = convolution(16, 23)
    names, row = names_and_row(spec)
    high = [v + 50 for v in row]
    high[names.index("out_mod_8")] = 0.0  # all the data had aligned widths
    residual, sigma = residual_of(family(leaf(1.0), high=high), spec)
    assert residual == pytest.approx(1.3, rel=1e-6)
    assert sigma == pytest.approx(0.05)


def test_features_are_matched_by_name_and_missing_ones_are_zero() -> None:
    names, row = names_and_row(convolution())
    order = [*reversed(names), "feature of a later version"]
    split = Trees(
        1, [[order.index("width_in"), 0, 0]], [[3.0, 0, 0]], [[1, -1, -1]], [[2, -1, -1]], [[0, -1, 1]]
    )
    ends: dict[str, Any] = {
        "features": order,
        "low": [*(v - 50 for v in reversed(row)), 0.0],
        "high": [*(v + 50 for v in reversed(row)), 0.0],
    }
    assert residual_of(family(split, **ends), convolution(7, 24))[0] == pytest.approx(0.3 - 1, rel=1e-6)
    assert residual_of(family(split, **ends), convolution(8, 24))[0] == pytest.approx(0.3 + 1, rel=1e-6)


# --- without a family, without a handler


def test_an_unknown_operator_has_no_price() -> None:
    prediction = Predictor(model({"conv2d": family()}))([UNKNOWN, convolution()], [PLACE] * 2)
    for part in (prediction.compute_s, prediction.memory_s, prediction.overhead_s, prediction.total_s):
        assert np.isnan(part[0, 0])
        assert np.isfinite(part[1, 0])
    assert prediction.measured.tolist() == [False, True]


def test_a_family_never_measured_is_priced_by_the_roofline_and_flagged() -> None:
    prediction = Predictor(model({"conv2d": family()}, scale=2.0))([relu(), convolution()], [PLACE] * 2)
    _, memory = roofs_by_hand(relu())
    assert prediction.total_s[0, 0] == pytest.approx(2 * (5e-6 + memory), rel=1e-9)
    assert prediction.sigma[0, 0] == UNMEASURED_SIGMA
    assert prediction.measured.tolist() == [False, True]


def test_nothing_to_predict_is_an_empty_prediction() -> None:
    assert Predictor(model({}))([], [], 4).total_s.shape == (0, 4)


def test_views_cost_their_overhead_alone() -> None:
    net = NetworkBuilder((1, 16, 8, 8))
    net.flatten(-1)
    view = net.steps[0].spec
    families = {"view (reshape)": family(spec=view, level=0.0, overhead_s=3e-7)}
    assert Predictor(model(families))([view], [PLACE]).total_s[0, 0] == pytest.approx(3e-7)


# --- well-formed trees

GOOD = Trees(1, [[0, 0, 0]], [[1.0, 0, 0]], [[1, -1, -1]], [[2, -1, -1]], [[0.0, 1, 2]])


def test_good_trees_are_well_formed() -> None:
    assert GOOD.well_formed
    assert NO_TREES.well_formed


@pytest.mark.parametrize(
    "broken",
    [
        {"left": [[3, -1, -1]]},  # a child that is no node
        {"right": [[2, -1, 3]]},
        {"left": [[-2, -1, -1]]},
        {"left": [[1, -1]]},  # arrays of other shapes
        {"value": [[0.0, 1.0]]},
        {"threshold": []},
        {"feature": [[0, 0, 0], [0]]},
        {"right": [[-1, -1, -1]]},  # a node with one child
    ],
    ids=repr,
)
def test_broken_trees_are_not_well_formed(broken: dict[str, Any]) -> None:
    assert not msgspec.structs.replace(GOOD, **broken).well_formed


def test_in_one_place_a_prediction_does_not_depend_on_what_is_predicted_beside_it() -> None:
    predictor = Predictor(model({"conv2d": family(leaf(0.4)), "relu": family(spec=relu())}))
    alone = predictor([convolution(3, 5)], [PLACE])
    beside = predictor([relu(2), UNKNOWN, convolution(64, 64), convolution(3, 5)], [PLACE] * 4)
    assert beside.total_s[3, 0] == alone.total_s[0, 0]
    assert beside.sigma[3, 0] == alone.sigma[0, 0]
