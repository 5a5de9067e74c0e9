"""Estimates: what adds up, what is named, how wide the interval is; all by hand from a plain roofline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from latmorph.device.roofs import Roofs
from latmorph.device.sampling import NetworkBuilder
from latmorph.latency import roofline
from latmorph.latency.estimate import Estimate, OpEstimate, estimate, total_sigma
from latmorph.latency.model import UNMEASURED_SIGMA, Family, LatencyModel, Prediction, Predictor, Trees
from latmorph.opspec import OpSpec, TensorSpec, footprint_bytes

PEAK, BANDWIDTH, OVERHEAD = 1e9, 1e8, 5e-6
ROOFS = Roofs(PEAK, ((1e3, BANDWIDTH),), OVERHEAD, {})
SIGMA = 0.1


@dataclass(frozen=True)
class Node:
    name: str
    module: str
    spec: OpSpec


@dataclass(frozen=True)
class Network:
    nodes: Sequence[Node]


def network(*specs: OpSpec) -> Network:
    return Network([Node(f"n{i}", f"layer.{i}", spec) for i, spec in enumerate(specs)])


def conv(width_in: int = 64, width_out: int = 64, size: int = 16) -> OpSpec:
    net = NetworkBuilder((1, width_in, size, size))
    net.conv(-1, width_out, 3)
    return net.steps[0].spec


def relu(width: int = 64, size: int = 16) -> OpSpec:
    net = NetworkBuilder((1, width, size, size))
    net.activation(-1, "relu", inplace=False)
    return net.steps[0].spec


def unknown(name: str) -> OpSpec:
    return OpSpec(
        f"unknown:{name}", (TensorSpec("self", (1, 64, 16, 16)),), (TensorSpec("out", (1, 64, 16, 16)),)
    )


def family(spec: OpSpec, sigma: float) -> Family:
    """A family with no more than the roofline in it, whose data reach everywhere."""
    names, _ = roofline.features(spec, 1, roofline.Place(0))
    ends = [-1e3] * len(names), [1e3] * len(names)
    return Family(OVERHEAD, 0.0, 3.0, sigma, names, *ends, Trees(0, [], [], [], [], []))


@pytest.fixture
def predictor() -> Predictor:
    families = {"conv2d": family(conv(), 0.02), "relu": family(relu(), 0.03)}
    return Predictor(LatencyModel(ROOFS, families, 1.0, SIGMA))


def seconds(spec: OpSpec) -> tuple[float, float, float]:
    """Compute, memory and total of an operator, by hand."""
    flops = 0.0
    if spec.kind == "conv2d":
        flops = 2.0 * math.prod(spec.out.shape) * math.prod(spec["weight"].shape[1:])
    memory = sum(4.0 * math.prod(t.shape) for t in (*spec.inputs, *spec.outputs)) / BANDWIDTH
    compute = flops / PEAK
    return compute, memory, OVERHEAD + (compute**4 + memory**4) ** 0.25


def test_the_total_is_the_sum_of_its_operators(predictor: Predictor) -> None:
    specs = [conv(), relu(), conv(64, 32), relu(32), relu(32)]
    found = estimate(predictor, network(*specs).nodes)
    assert found.total_s == pytest.approx(sum(seconds(s)[2] for s in specs), rel=1e-9)
    assert sum(op.total_s for op in found.ops) == pytest.approx(found.total_s, rel=1e-12)


def test_every_operator_stands_in_order_with_its_name_kind_flops_and_parts(predictor: Predictor) -> None:
    specs = [conv(), relu()]
    found = estimate(predictor, network(*specs).nodes).ops
    assert [(op.name, op.module, op.kind) for op in found] == [
        ("n0", "layer.0", "conv2d"),
        ("n1", "layer.1", "relu"),
    ]
    assert [op.flops for op in found] == [2 * 64 * 16 * 16 * 64 * 9, 0]
    for op, spec in zip(found, specs, strict=True):
        compute, memory, total = seconds(spec)
        assert op.compute_s == pytest.approx(compute, rel=1e-9)
        assert op.memory_s == pytest.approx(memory, rel=1e-9)
        assert op.overhead_s == pytest.approx(OVERHEAD, rel=1e-9)
        assert op.total_s == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize(
    ("compute", "memory", "overhead", "bound"),
    [(3.0, 2.0, 1.0, "compute"), (1.0, 3.0, 2.0, "memory"), (1.0, 2.0, 3.0, "overhead")],
)
def test_the_bound_is_the_largest_term(compute: float, memory: float, overhead: float, bound: str) -> None:
    assert OpEstimate("n", "m", "conv2d", 1, compute, memory, overhead, 9.0, (8.0, 10.0)).bound == bound


def test_an_operators_interval_is_that_of_its_familys_error(predictor: Predictor) -> None:
    conv2d, relu_ = estimate(predictor, network(conv(), relu()).nodes).ops
    # 90 % of a normal lie within 1.645 standard deviations: 0.02 of the log for convolutions, 0.03 for ReLU.
    for op, sigma in ((conv2d, 0.02), (relu_, 0.03)):
        low, high = op.interval_s
        assert low == pytest.approx(op.total_s * math.exp(-1.645 * sigma))
        assert high == pytest.approx(op.total_s * math.exp(1.645 * sigma))


def test_bounds_of_real_operators(predictor: Predictor) -> None:
    # 19 MFLOP at 1 GFLOP/s; 131 KB at 100 MB/s; 8 bytes in 80 ns under 5 us of overhead.
    found = estimate(predictor, network(conv(), relu(), relu(1, 1)).nodes).ops
    assert [op.bound for op in found] == ["compute", "memory", "overhead"]


def test_the_footprint_that_tells_the_caches_is_that_of_the_whole_network() -> None:
    specs = [conv(), relu(), conv(64, 128)]
    # What one convolution touches is read at 2^30 bytes/s, what all three do at 2^20.
    pairs = ((float(footprint_bytes(specs[:1])), 2.0**30), (float(footprint_bytes(specs)), 2.0**20))
    roofs = Roofs(PEAK, pairs, OVERHEAD, {})
    names, _ = roofline.features(conv(), 1, roofline.places(roofs, specs)[0])
    k = names.index("bandwidth")
    # Trees that know the octave 20.
    window = Trees(
        2,
        [[k, k, 0, 0, 0]],
        [[19.5, 20.5, 0, 0, 0]],
        [[2, 3, -1, -1, -1]],
        [[1, 4, -1, -1, -1]],
        [[0.0, 0.0, -1.0, 1.0, -1.0]],
    )
    made = family(conv(), 0.02)
    made = Family(OVERHEAD, 0.0, 3.0, 0.02, made.features, made.low, made.high, window)
    predictor = Predictor(LatencyModel(roofs, {"conv2d": made}, 1.0, SIGMA))
    whole, alone = (estimate(predictor, network(*some).nodes).ops[0] for some in (specs, specs[:1]))
    assert whole.compute_s == pytest.approx(seconds(conv())[0] * math.e, rel=1e-9)
    assert alone.compute_s == pytest.approx(seconds(conv())[0] / math.e, rel=1e-9)


def test_operators_without_a_handler_are_named_and_not_in_the_total(predictor: Predictor) -> None:
    found = estimate(predictor, network(conv(), unknown("fft"), unknown("sort"), unknown("fft")).nodes)
    assert found.unpriced == ("fft", "sort")
    assert [op.kind for op in found.ops] == ["conv2d"]
    assert found.total_s == pytest.approx(seconds(conv())[2], rel=1e-9)
    assert any("fft, sort" in note and "not in the total" in note for note in found.notes)


def test_kinds_never_timed_are_named_and_priced(predictor: Predictor) -> None:
    net = NetworkBuilder((1, 8, 4, 4))
    net.activation(-1, "silu", inplace=False)
    net.activation(-1, "tanh", inplace=False)
    found = estimate(predictor, network(conv(), *(s.spec for s in net.steps)).nodes)
    assert found.unmeasured == ("silu", "tanh")
    assert found.unpriced == ()
    extra = 2 * (OVERHEAD + 2 * 8 * 16 * 4 / BANDWIDTH)
    assert found.total_s == pytest.approx(seconds(conv())[2] + extra, rel=1e-9)
    assert any("silu, tanh" in note and "never timed" in note for note in found.notes)


def test_notes_given_come_first_and_nothing_is_noted_without_cause(predictor: Predictor) -> None:
    assert estimate(predictor, network(conv(), relu()).nodes).notes == ()
    notes = estimate(predictor, network(unknown("fft")).nodes, ["another machine"]).notes
    assert notes[0] == "another machine"
    assert len(notes) == 2


# --- the interval


def log_half_width(found: Estimate) -> float:
    """Half the interval, in standard deviations of the log: 1.645 of them hold 90 % on both sides."""
    low, high = found.interval_s
    assert low * high == pytest.approx(found.total_s**2)
    return math.log(high / low) / 2 / 1.645


def test_the_interval_is_what_whole_networks_showed(predictor: Predictor) -> None:
    # Many operators of 2 and 3 % each: less than the 10 % that whole networks showed.
    specs = [conv(), relu()] * 8
    assert log_half_width(estimate(predictor, network(*specs).nodes)) == pytest.approx(SIGMA)


def test_one_uncertain_operator_alone_widens_the_interval() -> None:
    wide = Predictor(LatencyModel(ROOFS, {"conv2d": family(conv(), 0.5)}, 1.0, SIGMA))
    assert log_half_width(estimate(wide, network(conv()).nodes)) == pytest.approx(0.5)
    # Four alike and independent: each has a quarter of the time, and their errors half cancel.
    assert log_half_width(estimate(wide, network(*[conv()] * 4).nodes)) == pytest.approx(0.25)


def test_a_kind_never_timed_widens_the_interval_by_its_share(predictor: Predictor) -> None:
    net = NetworkBuilder((1, 64, 16, 16))
    net.activation(-1, "silu", inplace=False)
    silu = net.steps[0].spec
    share = seconds(relu())[2] / (seconds(relu())[2] + seconds(conv())[2])  # silu moves what relu moves
    found = estimate(predictor, network(conv(), silu).nodes)
    independent = math.hypot(share * UNMEASURED_SIGMA, (1 - share) * 0.02)
    expected = max(SIGMA, independent) + share * UNMEASURED_SIGMA
    assert log_half_width(found) == pytest.approx(expected, rel=1e-6)


def test_total_sigma_is_of_each_variant_on_its_own() -> None:
    total = np.array([[1.0, 9.0, 1.0], [1.0, 1.0, np.nan]])
    sigma = np.array([[0.1, 0.1, 0.1], [0.7, 0.7, 0.7]])
    prediction = Prediction(total, total, total, total, sigma, np.array([True, False]))
    expected = [
        math.hypot(0.05, 0.35) + 0.35,
        max(0.1, math.hypot(0.09, 0.07)) + 0.07,
        0.1,  # what has no price has no share
    ]
    assert total_sigma(prediction, 0.0)[:2] == pytest.approx([expected[0], math.hypot(0.09, 0.07) + 0.07])
    assert total_sigma(prediction, 0.1) == pytest.approx([max(0.1, expected[0]), expected[1], expected[2]])


def test_an_empty_network_takes_no_time(predictor: Predictor) -> None:
    found = estimate(predictor, network().nodes)
    assert (found.total_s, found.interval_s, found.ops) == (0.0, (0.0, 0.0), ())


def test_a_network_of_unpriced_operators_alone_takes_no_time_and_says_so(predictor: Predictor) -> None:
    found = estimate(predictor, network(unknown("fft")).nodes)
    assert found.total_s == 0.0
    assert found.unpriced == ("fft",)
    assert all(math.isfinite(s) for s in found.interval_s)
