"""Fits on simulated devices, whose truth is planted: errors, laws, intervals, and what is refused."""

from __future__ import annotations

import collections
import dataclasses
import functools
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latmorph import ops
from latmorph.device.roofs import Roofs, measure_roofs
from latmorph.device.sampling import NetworkBuilder
from latmorph.device.simulated import Simulated
from latmorph.device.timing import (
    CHOSEN,
    ELSEWHERE,
    Journal,
    Plan,
    StopRule,
    Visit,
    collect,
    observations,
    visit_network,
)
from latmorph.errors import ProfileError
from latmorph.latency.estimate import total_sigma
from latmorph.latency.fit import (
    BOUND,
    NO_TREES,
    Committee,
    Validation,
    _as_arrays,
    _at_zero,
    fit,
)
from latmorph.latency.model import Forest, LatencyModel, Predictor
from latmorph.latency.roofline import places
from latmorph.opspec import OpSpec, Step, TensorSpec, footprint_bytes

Steps = tuple[Step, ...]


def chain(seed: int) -> Steps:
    """A plain network of random widths: convolutions, and every third time each of what goes with them.

    So only convolutions are many enough for trees, and a fit takes no time.
    """
    random = np.random.default_rng((seed, 77))
    size = int(random.choice([8, 14, 28]))
    net = NetworkBuilder((1, int(random.integers(8, 100)), size, size))
    x = -1
    for _ in range(int(random.integers(3, 7))):
        x = net.conv(x, int(random.integers(8, 160)), int(random.choice([1, 3])))
    if seed % 3 == 0:
        net.activation(x, "relu")
    elif seed % 3 == 1:
        net.batch_norm(x)
    else:
        net.linear(net.flatten(net.global_pool(x)), int(random.integers(10, 200)))
    return tuple(net.steps)


def quiet_visit(device: Simulated, network: int, steps: Steps, *, whole: float = 1.0) -> Visit:
    """What a visit of a calm machine holds; the whole takes ``whole`` times the sum of the steps."""
    return times_visit(network, steps, [device.true_time_s(s.spec) for s in steps], whole=whole)


def times_visit(network: int, steps: Steps, times_s: Sequence[float], *, whole: float = 1.0) -> Visit:
    specs = tuple(s.spec for s in steps)
    total = whole * sum(times_s)
    return Visit(
        network, 0, footprint_bytes(specs), specs, tuple((t,) for t in times_s), (total,), (1e-3,), ()
    )


@functools.cache
def roofs_of(device: Simulated) -> Roofs:
    return measure_roofs(device)


@functools.cache
def fitted(device: Simulated, networks: int = 40, whole: float = 1.0) -> tuple[LatencyModel, Validation]:
    return fit(roofs_of(device), [quiet_visit(device, k, chain(k), whole=whole) for k in range(networks)])


FRESH = [chain(1000 + k) for k in range(60)]
"""Networks that no fit has seen."""


def predicted_s(model: LatencyModel, steps: Steps) -> float:
    specs = [s.spec for s in steps]
    return float(Predictor(model)(specs, places(model.roofs, specs)).total_s.sum())


def true_s(device: Simulated, steps: Steps) -> float:
    return sum(device.true_time_s(s.spec) for s in steps)


def errors(model: LatencyModel, device: Simulated, networks: Sequence[Steps] = tuple(FRESH)) -> np.ndarray:
    return np.array([predicted_s(model, steps) / true_s(device, steps) - 1 for steps in networks])


# --- accuracy


@pytest.mark.parametrize("out_block", [1, 8])
def test_without_noise_fresh_networks_are_predicted_within_a_few_percent(out_block: int) -> None:
    # The formula is a hard maximum, the model a smooth one, up to 19 % above it at the ridge: that and
    # trees learnt from 200 convolutions are what is left.
    device = Simulated(out_block=out_block)
    error = np.abs(errors(fitted(device)[0], device))
    assert np.median(error) < 0.02
    assert np.max(error) < 0.10


@pytest.mark.parametrize("size", [28, 2])
def test_an_operator_takes_what_it_takes_after_another(size: int) -> None:
    # Planted: a relu takes three times as long right after a convolution as after another relu. Of 2 x 2
    # pixels it is all overhead: that has reasons too.
    device, visits = Simulated(), []
    for k in range(60):
        random = np.random.default_rng(k)
        net = NetworkBuilder((1, 8, size, size))
        x = -1
        for _ in range(3):
            x = net.conv(x, int(random.integers(8, 100)), 3)
            for _ in range(int(random.integers(1, 4))):
                x = net.activation(x, "relu", inplace=False)
        steps = tuple(net.steps)
        after = [False, *(s.spec.kind == "conv2d" for s in steps[:-1])]
        times = [(3 if a else 1) * device.true_time_s(s.spec) for s, a in zip(steps, after, strict=True)]
        visits.append(times_visit(k, steps, times))
    model, _ = fit(roofs_of(device), visits)
    net = NetworkBuilder((1, 8, size, size))
    x = net.conv(-1, 64, 3)
    x = net.activation(x, "relu", inplace=False)
    net.activation(x, "relu", inplace=False)
    specs = [s.spec for s in net.steps]
    times = Predictor(model)(specs, places(model.roofs, specs)).total_s[:, 0]
    assert times[1] / times[2] == pytest.approx(3.0, rel=0.1)


def test_without_noise_the_validation_says_so() -> None:
    _, validation = fitted(Simulated())
    assert validation.networks == 40
    assert validation.median_error_percent < 2
    assert validation.mean_error_percent < 4
    assert validation.within_10_percent > 90
    for kind in ("batch_norm", "relu", "linear", "conv2d"):
        assert validation.families[kind].median_error_percent < 3, kind


def test_the_validation_counts_every_operator_once() -> None:
    _, validation = fitted(Simulated())
    counts = collections.Counter(
        ops.handler_of(s.spec.kind).family(s.spec) for k in range(40) for s in chain(k)
    )
    assert {kind: family.operators for kind, family in validation.families.items()} == counts


def test_networks_sampled_as_for_a_profile_are_predicted_too(tmp_path: Path) -> None:
    device, plan = Simulated(), Plan(0, 5e7)
    journal = Journal(tmp_path / "journal.jsonl", {})
    rule = StopRule(least=1, most=1)
    visits = collect(functools.partial(visit_network, device), plan, journal, 1e9, rule=rule, most_visits=20)
    journal.close()
    model, _ = fit(roofs_of(device), visits)
    fresh = [plan.steps(500 + k) for k in range(40)]
    assert np.median(np.abs(errors(model, device, fresh))) < 0.03


# --- laws


def test_with_compute_as_the_only_limit_time_is_proportional_to_flops() -> None:
    # No overhead, endless bandwidth, no blocks. Roofs are measured, not given.
    device = Simulated(peak_flops_per_s=2e9, bandwidth_bytes_per_s=1e15, overhead_s=1e-12, out_block=1)
    model, _ = fitted(device)
    flops = np.array([sum(2 * macs(s.spec) for s in steps) for steps in FRESH])
    rate = flops / [predicted_s(model, steps) for steps in FRESH]
    assert rate == pytest.approx(2e9, rel=0.01)
    assert flops.max() / flops.min() > 20  # over a range of sizes


def macs(spec: OpSpec) -> int:
    """Multiply-adds, by hand."""
    if spec.kind == "conv2d":
        (_, out, *size), (_, inner, *kernel) = spec.out.shape, spec["weight"].shape
        return int(np.prod([out, inner, *size, *kernel]))
    return int(np.prod(spec["weight"].shape)) if spec.kind == "linear" else 0


def test_with_memory_as_the_only_limit_time_is_proportional_to_bytes() -> None:
    device = Simulated(peak_flops_per_s=1e18, bandwidth_bytes_per_s=1e8, overhead_s=1e-12)
    model, _ = fitted(device)
    moved = []
    for steps in FRESH:
        tensors = [t for s in steps if s.spec.kind != "view" for t in (*s.spec.inputs, *s.spec.outputs)]
        moved.append(sum(4 * float(np.prod(t.shape)) for t in tensors))
    rate = np.array(moved) / [predicted_s(model, steps) for steps in FRESH]
    assert rate == pytest.approx(1e8, rel=0.01)


def test_memory_may_stay_further_below_its_roof_than_arithmetic() -> None:
    # Linear layers read at half the bandwidth of the roof, and compute at the peak: of many rows, which
    # compute, they tell nothing of those of one row, which read.
    device = Simulated(out_block=1, overhead_s=1e-6)

    def layers(rows: int, random: np.random.Generator, low: int, high: int) -> Steps:
        net = NetworkBuilder((rows, int(random.integers(low, high))))
        for _ in range(4):
            net.linear(len(net.steps) - 1, int(random.integers(low, high)))
        return tuple(net.steps)

    def time_s(spec: OpSpec) -> float:
        (rows, inner), (outer, _) = spec.inputs[0].shape, spec["weight"].shape
        moved = 4 * (inner * outer + outer + rows * (inner + outer))
        return 1e-6 + max(2 * rows * inner * outer / 1e11, 2 * moved / 1e10)

    random = np.random.default_rng(0)
    networks = [layers(1 if k % 4 == 0 else 256, random, 100, 600) for k in range(60)]
    visits = [times_visit(k, n, [time_s(s.spec) for s in n]) for k, n in enumerate(networks)]
    model, _ = fit(roofs_of(device), visits)
    linear = model.families["linear"]
    assert (linear.level, linear.memory_level) == pytest.approx((0.0, np.log(2)), abs=0.1)
    for rows in (1, 256):  # far larger ones than any that were timed
        large = layers(rows, random, 3000, 5000)
        assert predicted_s(model, large) == pytest.approx(sum(time_s(s.spec) for s in large), rel=0.1)


def test_with_overhead_as_the_only_cost_time_is_the_number_of_operators() -> None:
    device = Simulated(peak_flops_per_s=1e18, bandwidth_bytes_per_s=1e18, overhead_s=1e-4)
    model, _ = fitted(device)
    # The fit leaves a tenth of each time to size, whatever it sees: that much it may be off.
    for steps in FRESH:
        assert predicted_s(model, steps) == pytest.approx(1e-4 * len(steps), rel=0.1)


def test_the_planted_step_is_in_the_predictions() -> None:
    # 64 and 65 output channels: one more block of 8 out of 9, where compute is all.
    device = Simulated(bandwidth_bytes_per_s=1e12, out_block=8)
    model, _ = fitted(device)
    specs = []
    for width in (57, 64, 65, 72):
        net = NetworkBuilder((1, 64, 14, 14))
        net.conv(-1, width, 3)
        specs.append(net.steps[0].spec)
    times = Predictor(model)(specs, [places(model.roofs, [spec])[0] for spec in specs]).total_s[:, 0]
    assert times[0] == pytest.approx(times[1], rel=0.03)
    assert times[2] == pytest.approx(times[3], rel=0.03)
    assert times[2] / times[1] == pytest.approx(9 / 8, rel=0.03)


@pytest.mark.parametrize("whole", [1.25, 0.8])
def test_the_constant_from_sums_to_whole_networks_is_recovered(whole: float) -> None:
    device = Simulated()
    model, _ = fitted(device, whole=whole)
    assert model.scale == pytest.approx(whole, rel=0.02)
    assert np.median(errors(model, device)) == pytest.approx(whole - 1, abs=0.02)


def test_planted_overheads_of_families_are_recovered() -> None:
    device = Simulated(overhead_s=2e-5)
    families = fitted(device)[0].families
    for kind in ("conv2d", "batch_norm", "relu"):
        assert families[kind].overhead_s == pytest.approx(2e-5, rel=0.1), kind
    assert families["view (reshape)"].overhead_s == pytest.approx(2e-5, rel=1e-6)
    assert all(f.bound == BOUND for f in families.values())


def of_any_length(random: np.random.Generator, width: int, kernel: int) -> NetworkBuilder:
    """A network of 4 to 40 operators: relus, and convolutions of one width and kernel between them."""
    net = NetworkBuilder((1, int(random.integers(8, 64)), 14, 14))
    x = -1
    for _ in range(int(random.integers(4, 40))):
        relu = random.random() < 0.7
        x = net.activation(x, "relu", inplace=False) if relu else net.conv(x, width, kernel)
    return net


@pytest.mark.parametrize("gap_s", [2e-6, -5e-7])
def test_what_lies_between_operators_is_counted_with_them(gap_s: float) -> None:
    # Each operator takes so much longer, or less long, in whole passes than its own clock says. Networks
    # of 4 to 40 operators of some 5 us and more: a tenth of the small ones.
    device, visits = Simulated(), []
    random = np.random.default_rng(0)
    for k in range(60):
        net = of_any_length(random, 24, 1)
        visit = quiet_visit(device, k, tuple(net.steps))
        whole_s = visit.whole_s[0] + len(net.steps) * gap_s + 1e-5
        visits.append(dataclasses.replace(visit, whole_s=(whole_s,)))
    model, validation = fit(roofs_of(device), visits)
    assert validation.mean_error_percent < 2
    assert model.scale == pytest.approx(1.0, abs=0.01)
    assert model.overhead_s == pytest.approx(1e-5, rel=0.1)
    net = NetworkBuilder((1, 16, 14, 14))
    relu = net.activation(-1, "relu", inplace=False)
    net.activation(relu, "relu", inplace=False)
    expected = sum(device.true_time_s(s.spec) + gap_s for s in net.steps)
    assert predicted_s(model, tuple(net.steps)) == pytest.approx(expected, rel=0.03)


def test_clocks_that_take_longer_over_long_operators_are_taken_off() -> None:
    # As those of several threads do: nothing in whole passes, 10 us in what the clock says of a convolution
    # of 100 us, and none of a sum of 2 us.
    device, visits = Simulated(), []
    random = np.random.default_rng(0)
    for k in range(60):
        net = of_any_length(random, 64, 3)
        times = np.array([device.true_time_s(step.spec) for step in net.steps])
        clocked = times + 1e-5 * (times > 5e-5)
        visit = times_visit(k, tuple(net.steps), clocked.tolist())
        visits.append(dataclasses.replace(visit, whole_s=(float(times.sum()),)))
    model, validation = fit(roofs_of(device), visits)
    assert validation.mean_error_percent < 2
    net = NetworkBuilder((1, 64, 14, 14))
    for make, of in ((net.conv, (-1, 64, 3)), (net.activation, (-1, "relu", False))):
        make(*of)
        true = device.true_time_s(net.steps[-1].spec)
        assert predicted_s(model, (net.steps[-1],)) == pytest.approx(true, rel=0.05)


def test_views_take_longer_where_their_code_is_cold() -> None:
    # Planted: a view costs 2 us, and 6 us where twelve operators and more have run since one last did.
    device, visits = Simulated(), []

    def network(between: int) -> Steps:
        net = NetworkBuilder((1, 16, 14, 14))
        x = -1
        for _ in range(4):
            for _ in range(between):
                x = net.activation(x, "relu", inplace=False)
            x = net.transpose(x, 2, 3)
        return tuple(net.steps)

    def times_s(steps: Steps, between: int) -> list[float]:
        view_s = 6e-6 if between >= 12 else 2e-6
        return [view_s if s.spec.kind == "view" else device.true_time_s(s.spec) for s in steps]

    for k in range(60):
        between = 1 + k % 24
        visits.append(times_visit(k, network(between), times_s(network(between), between)))
    model, _ = fit(roofs_of(device), visits)
    for between in (2, 20):
        specs = [s.spec for s in network(between)]
        views = [i for i, spec in enumerate(specs) if spec.kind == "view"]
        prediction = Predictor(model)(specs, places(model.roofs, specs))
        expected = 6e-6 if between >= 12 else 2e-6
        assert prediction.total_s[views, 0] == pytest.approx(expected, rel=0.1)
        assert np.array_equal(prediction.total_s[views], prediction.overhead_s[views])


@pytest.mark.parametrize("planted_s", [0.0, 1e-5, 3e-5])
def test_what_a_pass_costs_beside_its_operators_is_recovered(planted_s: float) -> None:
    device = Simulated()
    visits = []
    for k in range(40):
        visit = quiet_visit(device, k, chain(k))
        visits.append(dataclasses.replace(visit, whole_s=(1.1 * visit.whole_s[0] + planted_s,)))
    assert min(v.whole_s[0] for v in visits) > 2 * planted_s
    model, validation = fit(roofs_of(device), visits)
    assert model.overhead_s == pytest.approx(planted_s, rel=0.02, abs=1e-7)
    assert model.scale == pytest.approx(1.1, rel=0.02)
    assert validation.mean_error_percent < 4


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("slope", [-0.8, 0.0, 0.5, 1.0])
def test_what_neighbours_slow_more_or_less_than_the_reference_is_told_from_the_spells(
    slope: float, hidden: bool
) -> None:
    # In a spell the reference slows by a factor, operators by it and by its power. Or else it is hidden from
    # the reference: the block slows by the factor, operators by its power. Three visits in ten are calm.
    device, random = Simulated(), np.random.default_rng(3)
    spells = [0.0 if k % 10 < 3 else random.uniform(0.0, 0.5) for k in range(100)]
    visits = []
    for k, spell in enumerate(spells):
        visit = quiet_visit(device, k, chain(k))
        slower = np.exp((slope if hidden else 1 + slope) * spell)
        times = tuple((t[0] * slower,) for t in visit.times_s)
        yardsticks = {"references_s": (1e-3 * np.exp(0.0 if hidden else spell),)}
        if hidden:
            yardsticks["traffic_s"] = (2e-3 * np.exp(spell),)
        visits.append(
            dataclasses.replace(visit, times_s=times, whole_s=(visit.whole_s[0] * slower,), **yardsticks)
        )
    model, validation = fit(roofs_of(device), visits)
    # Drawn a little towards zero: some 300 operators in spells of a sixth or so speak against 20 of a tenth.
    slopes = [0.0, slope] if hidden else [slope, 0.0]
    assert model.families["conv2d"].spell_slopes == pytest.approx(slopes, abs=0.05 + 0.15 * abs(slope))
    # What is predicted is what a network takes on the calm machine. In the mean of the spells, a sixth, it
    # takes longer by that times the slope: at most a third of it is left.
    assert np.median(np.abs(errors(model, device))) < 0.03 + 0.05 * abs(slope)
    assert validation.median_error_percent < 4


@pytest.mark.parametrize("apart", [0.2, 1.0])
def test_a_run_in_a_noisy_hour_is_one_long_spell_unless_it_found_another_machine(apart: float) -> None:
    # In the latest run the reference is slower throughout, by a fifth or e times; in both, a spell slows
    # operators by the reference's factor to the power of 1.5. The fifth is noise: what is predicted is of
    # what is calm in the earlier run. After e times, it is of what is calm in the latest.
    device, random, slope = Simulated(), np.random.default_rng(4), 0.5
    visits, spells = [], []
    for k in range(120):
        latest = k % 2
        spell = random.uniform(0.0, 0.3)
        noise = spell + (apart if latest and apart < 0.25 else 0.0)
        visit = quiet_visit(device, k, chain(k))
        slower = np.exp((1 + slope) * noise + (0.0 if apart < 0.25 else apart * latest))
        reference_s = 1e-3 * np.exp(spell + apart * latest)
        times = tuple((t[0] * slower,) for t in visit.times_s)
        whole_s = (visit.whole_s[0] * slower,)
        visits.append(
            dataclasses.replace(
                visit, run=latest, times_s=times, whole_s=whole_s, references_s=(reference_s,)
            )
        )
        spells.append((latest, spell))
    model, _ = fit(roofs_of(device), visits)
    earlier, latest_calm = (np.quantile([s for run, s in spells if run == k], 0.25) for k in (0, 1))
    noise, slower = (earlier, earlier) if apart < 0.25 else (latest_calm, latest_calm + apart)
    expected = np.exp(slower + slope * noise)
    assert np.median(np.abs((1 + np.array(errors(model, device))) / expected - 1)) < 0.04
    other = np.exp(latest_calm + apart + slope * (latest_calm + (apart if apart < 0.25 else -apart / 2)))
    assert abs(other / expected - 1) > 0.045  # what the other reading would predict is told apart


# --- runs


def timed(visit: Visit, factor: Callable[[OpSpec], float]) -> Visit:
    """The visit where operators take so many times longer."""
    times = tuple(
        tuple(factor(spec) * t for t in own) for spec, own in zip(visit.specs, visit.times_s, strict=True)
    )
    return dataclasses.replace(visit, times_s=times, whole_s=(sum(t for (t,) in times),))


def two_runs(
    then: Callable[[OpSpec], float], now: Callable[[OpSpec], float] = lambda spec: 1.0
) -> tuple[list[Visit], list[Visit]]:
    """Sixty networks in a first run, twelve by now, of which none has a batch norm.

    In the first run the reference took three times as long: times are over it, and so do not tell.
    """
    device = Simulated()
    first = [timed(quiet_visit(device, k, chain(k)), then) for k in range(60)]
    first = [dataclasses.replace(timed(v, lambda _: 3.0), references_s=(3 * v.reference_s,)) for v in first]
    numbers = [k for k in range(100, 118) if k % 3 != 1]
    latest = [timed(quiet_visit(device, k, chain(k)), now) for k in numbers]
    return first, [dataclasses.replace(v, run=1) for v in latest]


def is_pointwise(spec: OpSpec) -> bool:
    return spec.kind == "conv2d" and spec["weight"].shape[-1] == 1


def shaped(spec: OpSpec) -> float:
    """Wide convolutions take twice as long as the formula says, pointwise ones less."""
    wide = spec.kind == "conv2d" and spec.out.shape[1] > 100
    return (2.0 if wide else 1.0) * (0.6 if is_pointwise(spec) else 1.0)


def reshaped(spec: OpSpec) -> float:
    """Convolutions take three quarters of what they take by :func:`shaped`, all else a half more."""
    return shaped(spec) * (0.75 if spec.kind == "conv2d" else 1.5)


def error_when_reshaped(model: LatencyModel) -> float:
    """Mean absolute error on fresh networks of a device that is :func:`reshaped`."""
    device = Simulated()
    truth = [sum(reshaped(s.spec) * device.true_time_s(s.spec) for s in steps) for steps in FRESH]
    said = np.array([predicted_s(model, steps) for steps in FRESH])
    return float(np.mean(np.abs(said / truth - 1)))


def test_earlier_runs_tell_of_shapes_and_the_latest_how_long_operators_take_by_now() -> None:
    first, latest = two_runs(shaped, reshaped)

    # Over fits of three seeds: the latest run's few networks leave much to which trees are grown.
    def error(visits: Sequence[Visit]) -> float:
        models = [fit(roofs_of(Simulated()), visits, seed=seed)[0] for seed in range(3)]
        return float(np.mean([error_when_reshaped(model) for model in models]))

    assert error(first) > 0.2
    assert error([*first, *latest]) < 0.04
    assert error([*first, *latest]) < 0.5 * error(latest)


@pytest.mark.parametrize("earlier", [0.06, -0.06, 0.4])
def test_a_run_is_one_hour_of_many_unless_it_found_another_machine(earlier: float) -> None:
    # Two earlier runs, of which one took a tenth longer than the latest, the other 2 % less: halfway to their
    # mean is 2 % more than the latest. Or else both took half as long again.
    device, visits = Simulated(), []
    factors = [0.04 + earlier, 0.04 - earlier, 0.0] if earlier < 0.15 else [earlier, earlier, 0.0]
    for k, run in enumerate(np.random.default_rng(0).permutation(150) % 3):
        slower = float(np.exp(factors[run]))
        visit = timed(quiet_visit(device, k, chain(k)), lambda spec, slower=slower: slower)
        visits.append(dataclasses.replace(visit, run=int(run)))
    model, _ = fit(roofs_of(device), visits)
    expected = np.exp(0.02 if earlier < 0.15 else 0.0)
    assert np.median(1 + np.array(errors(model, device))) == pytest.approx(expected, abs=0.006)


def test_what_the_latest_run_has_not_seen_changed_as_others_did() -> None:
    device, (first, latest) = Simulated(), two_runs(lambda spec: 1.3)
    model, _ = fit(roofs_of(device), [*first, *latest])
    net = NetworkBuilder((1, 64, 28, 28))
    net.batch_norm(-1)
    steps = tuple(net.steps)
    assert predicted_s(model, steps) / true_s(device, steps) == pytest.approx(1.0, abs=0.05)


def test_where_runs_differ_in_more_than_a_factor_the_latest_is_right() -> None:
    # Pointwise convolutions took twice as long in the first run, others as long as now.
    device, (first, latest) = Simulated(), two_runs(lambda spec: 2.0 if is_pointwise(spec) else 1.0)
    model, validation = fit(roofs_of(device), [*first, *latest])
    assert np.mean(np.abs(errors(model, device))) < 0.05
    assert validation.mean_error_percent < 8


def test_only_the_latest_run_is_held_out_and_gives_the_figures() -> None:
    first, latest = two_runs(lambda spec: 1.3)
    committee = committee_of([*first, *latest])
    assert committee.networks.tolist() == [v.network for v in latest]
    assert {o.network for o in committee.found} == set(committee.networks.tolist())
    seen = {n for table in committee.tables.values() for n in table.network.tolist()}
    assert seen == set(range(60)) | set(committee.networks.tolist())
    assert committee.validation({}).networks == len(latest)
    assert fit(roofs_of(Simulated()), [*first, *latest])[1].mean_error_percent < 6


def test_a_run_alone_is_fitted_alike_whatever_its_number() -> None:
    _, visits = two_runs(lambda spec: 1.3)
    other = [dataclasses.replace(v, run=7) for v in visits]
    assert fit(roofs_of(Simulated()), visits) == fit(roofs_of(Simulated()), other)


# --- another device


def lent(visits: Sequence[Visit]) -> list[Visit]:
    return [dataclasses.replace(v, run=ELSEWHERE) for v in visits]


def test_another_device_tells_of_shapes_and_this_one_how_long_operators_take() -> None:
    there, here = two_runs(shaped, reshaped)
    alone, _ = fit(roofs_of(Simulated()), here)
    taught, validation = fit(roofs_of(Simulated()), [*lent(there), *here])
    assert error_when_reshaped(taught) < 0.5 * error_when_reshaped(alone)
    assert validation.networks == len(here)


def test_a_device_that_tells_nothing_of_this_one_does_no_harm() -> None:
    # There every operator takes any time, up to a hundred times as long.
    def any_time(spec: OpSpec) -> float:
        return float(100 ** np.random.default_rng(zlib.crc32(spec.to_json().encode())).uniform(-1, 1))

    there, here = two_runs(any_time)
    assert fit(roofs_of(Simulated()), [*lent(there), *here]) == fit(roofs_of(Simulated()), here)


# --- the committee


def committee_of(visits: Sequence[Visit]) -> Committee:
    return Committee.of(roofs_of(Simulated()), visits)


def held_by_operator(committee: Committee) -> dict[tuple[int, int], float]:
    return {(o.network, o.position): float(t) for o, t in zip(committee.found, committee.held_s, strict=True)}


def test_no_network_is_predicted_by_a_model_that_has_seen_it() -> None:
    # Its own times can be anything: what is said of it does not move, what is said of others does.
    device = Simulated()
    visits = [quiet_visit(device, k, chain(k)) for k in range(20)]
    slow = times_visit(7, chain(7), [3 * t for (t,) in visits[7].times_s])
    before = held_by_operator(committee_of(visits))
    after = held_by_operator(committee_of([*visits[:7], slow, *visits[8:]]))
    own = {key for key in before if key[0] == 7}
    assert len(own) == len(chain(7))
    assert all(after[key] == before[key] for key in own)
    assert any(after[key] != before[key] for key in before.keys() - own)


def test_held_out_networks_of_the_formula_are_predicted_closely() -> None:
    device = Simulated()
    committee = committee_of([quiet_visit(device, k, chain(k)) for k in range(40)])
    assert len(committee.predictors) == 3
    assert sorted(committee.networks.tolist()) == list(range(40))
    assert sorted(np.bincount(committee.folds).tolist()) == [13, 13, 14]
    assert committee.error_percent < 4
    validation = committee.validation({})
    assert validation.networks == 40
    assert validation.coverage_percent >= 75  # of 40, an interval from two thirds of them


def test_only_networks_drawn_blindly_tell_the_error() -> None:
    device = Simulated()
    visits = [quiet_visit(device, k, chain(k)) for k in range(12)]
    odd = [quiet_visit(device, n, chain(77), whole=2.0) for n in (-1, CHOSEN + 3)]
    committee = committee_of([*visits, *odd])
    blind = np.array([0 <= n < 12 for n in committee.networks.tolist()])
    assert committee.sampled.tolist() == blind.tolist()
    percent = 100 * np.abs(np.exp(-committee.errors) - 1)
    assert np.min(percent[~blind]) > 40  # twice as slow as the sum of their operators
    assert committee.error_percent == pytest.approx(np.mean(percent[blind]))
    assert committee.error_percent < 10
    assert committee.validation({}).networks == 12
    # Where none was drawn blindly, all count.
    focused = committee_of([dataclasses.replace(v, network=-1 - v.network) for v in visits])
    assert focused.sampled.all()


def test_models_agree_about_what_they_have_seen_and_differ_about_what_only_some_have() -> None:
    device = Simulated()
    visits = [quiet_visit(device, k, chain(k)) for k in range(1, 30)]
    steps = with_gelu(0, 128)
    times = [device.true_time_s(s.spec) * (10 if s.spec.kind == "gelu" else 1) for s in steps]
    committee = committee_of([times_visit(0, steps, times), *visits])

    def doubt(steps: Steps) -> float:
        specs = [s.spec for s in steps]
        return committee.disagreement(specs, footprint_bytes(specs))

    net = NetworkBuilder((1, 128, 28, 28))
    net.activation(-1, "gelu", inplace=False)
    assert doubt(tuple(net.steps)) > 3 * max(doubt(steps) for steps in FRESH[:10])
    # What none of them knows is no doubt of theirs.
    unknown = OpSpec("unknown:mystery", (TensorSpec("self", (1, 4)),), (TensorSpec("out", (1, 4)),))
    specs = [s.spec for s in FRESH[0]]
    where = places(committee.predictors[0].model.roofs, [*specs, unknown], footprint=1e6)[:-1]
    times = np.stack([p(specs, where).total_s[:, 0] for p in committee.predictors])
    mean, spread = times.mean(axis=0), np.log(times).std(axis=0)
    expected = float(np.sum(mean * spread) / np.sqrt(mean.sum()))
    assert committee.disagreement([*specs, unknown], 1e6) == pytest.approx(expected, rel=1e-12)


def test_networks_with_a_kernel_that_has_no_handler_are_left_out() -> None:
    device = Simulated()
    visits = [quiet_visit(device, k, chain(k)) for k in range(9)]
    unknown = OpSpec("unknown:mystery", (TensorSpec("self", (1, 4)),), (TensorSpec("out", (1, 4)),))
    strange = quiet_visit(device, 9, chain(9))
    strange = dataclasses.replace(
        strange, specs=(*strange.specs, unknown), times_s=(*strange.times_s, (1e-3,))
    )
    assert fit(roofs_of(device), [*visits, strange]) == fit(roofs_of(device), visits)
    with pytest.raises(ProfileError, match="1 networks were measured"):
        fit(roofs_of(device), [visits[0], strange])


# --- trees


def boosted(rows: int, seed: int, **settings: Any) -> tuple[Any, np.ndarray]:
    import lightgbm

    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 5))
    x[:, 3] = random.integers(0, 4, rows)  # ties on thresholds
    y = x[:, 0] * (x[:, 1] > 0) + np.sin(3 * x[:, 2]) + x[:, 3]
    given = {
        "verbosity": -1,
        "num_threads": 1,
        "boost_from_average": False,
        "min_data_in_leaf": 5,
        **settings,
    }
    return lightgbm.train(given, lightgbm.Dataset(x, y), 40), x


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "settings",
    [{}, {"num_leaves": 2}, {"num_leaves": 60, "max_depth": 4}, {"feature_fraction": 0.3, "lambda_l2": 5.0}],
    ids=["usual", "stumps", "shallow", "random"],
)
def test_trees_as_arrays_predict_what_lightgbm_predicts(settings: dict[str, Any], seed: int) -> None:
    booster, x = boosted(300, seed, **settings)
    trees = _as_arrays(booster.model_to_string())
    assert trees.well_formed
    assert len(trees.feature) == 40
    fresh = np.random.default_rng(9).normal(size=(500, 5)) * 2
    for rows in (x, np.round(x), fresh):
        assert Forest(trees)(rows) == pytest.approx(booster.predict(rows), abs=1e-5)


def test_trees_of_a_single_leaf_are_trees_too() -> None:
    # Where leaves must be larger than half of the rows, no tree can split.
    booster, x = boosted(60, 0, min_data_in_leaf=50)
    text = booster.model_to_string()
    assert "num_leaves=1\n" in text
    trees = _as_arrays(text)
    assert trees.well_formed
    assert Forest(trees)(x) == pytest.approx(booster.predict(x), abs=1e-5)


def test_trees_of_different_sizes_are_padded_and_a_single_leaf_among_them_counts() -> None:
    booster, x = boosted(60, 0)
    text = booster.model_to_string()
    first, rest = text.split("\nTree=1\n", 1)
    leaf = "\nTree=40\nnum_leaves=1\nnum_cat=0\nleaf_value=0.25\n"
    trees = _as_arrays(first + leaf + "\nTree=1\n" + rest)
    assert trees.well_formed
    assert len(trees.feature) == 41
    assert Forest(trees)(x) == pytest.approx(booster.predict(x) + 0.25, abs=1e-5)


def test_no_trees_are_none_as_arrays() -> None:
    assert not Forest(_as_arrays(NO_TREES)).count


def test_trees_at_zero_are_those_of_rows_whose_feature_is_zero() -> None:
    booster, x = boosted(300, 0)
    counts = 3  # of the features the one that holds numbers from zero up
    trees = _as_arrays(booster.model_to_string())
    settled = _at_zero(trees, counts)
    assert settled.well_formed
    assert counts in np.array(trees.feature)
    assert counts not in np.array(settled.feature)
    zero = x.copy()
    zero[:, counts] = 0.0
    assert Forest(settled)(x) == pytest.approx(booster.predict(zero), abs=1e-5)


# --- few samples


def with_gelu(k: int, width: int) -> Steps:
    """The plain network with one gelu of 28 x 28 pixels before it."""
    net = NetworkBuilder((1, width, 28, 28))
    x = net.activation(-1, "gelu", inplace=False)
    x = net.conv(x, 8 + 3 * k, 3)
    for _ in range(3):
        x = net.conv(net.activation(net.batch_norm(x), "relu"), 16 + 5 * k, 3)
    return tuple(net.steps)


@pytest.mark.parametrize("widths", [(128,), (128,) * 9, (64, 256), (64, 64, 128, 256)], ids=str)
def test_a_kind_seen_at_few_sizes_is_not_taken_for_overhead_alone(widths: tuple[int, ...]) -> None:
    # One size tells nothing about how much of the time is overhead, nor do two of which only the smaller
    # is looked at; the roofs, which were measured, do. A gelu of 8 channels takes some 7 us here, 2 of
    # them overhead; the smallest ones seen took 42 and 82 us.
    device = Simulated()
    networks = [with_gelu(k, width) for k, width in enumerate(widths)]
    networks += [chain(k) for k in range(len(widths), 18)]
    model, _ = fit(roofs_of(device), [quiet_visit(device, k, steps) for k, steps in enumerate(networks)])
    net = NetworkBuilder((1, 8, 28, 28))
    net.activation(-1, "gelu", inplace=False)
    assert predicted_s(model, tuple(net.steps)) == pytest.approx(true_s(device, tuple(net.steps)), rel=0.5)


def test_a_kind_seen_in_one_network_is_held_out_with_it() -> None:
    # Planted ten times slower than its roofline: whoever has not seen it must be wrong by 90 %.
    device = Simulated()
    visits = [quiet_visit(device, k, chain(k)) for k in range(1, 18)]
    steps = with_gelu(0, 128)
    times = [device.true_time_s(s.spec) * (10 if s.spec.kind == "gelu" else 1) for s in steps]
    model, validation = fit(roofs_of(device), [times_visit(0, steps, times), *visits])
    assert validation.families["gelu"].operators == 1
    assert validation.families["gelu"].mean_error_percent == pytest.approx(90, abs=1)
    # What the error says goes into the model as the family's uncertainty.
    assert model.families["gelu"].sigma > 0.5


def test_an_operator_too_short_for_the_clock_does_not_stop_the_fit() -> None:
    # A view takes no time where nothing is launched and the clock is coarse.
    device = Simulated()
    visits = []
    for k in range(12):
        steps = chain(k)
        times = [0.0 if s.spec.kind == "view" else device.true_time_s(s.spec) for s in steps]
        visits.append(times_visit(k, steps, times))
    model, validation = fit(roofs_of(device), visits)
    assert np.isfinite(validation.mean_error_percent)
    assert model.families["view (reshape)"].overhead_s == 0.0


@pytest.mark.parametrize("kind", ["conv2d", "relu", "linear"])
def test_an_operator_that_was_interrupted_does_not_pass_for_a_large_one(kind: str) -> None:
    # One that took ten milliseconds longer is nearly all of its network: by its share it would outweigh
    # all others of its kind.
    device = Simulated()
    visits = [quiet_visit(device, k, chain(k)) for k in range(30)]
    hit = next(k for k, v in enumerate(visits) if any(s.kind == kind for s in v.specs))
    times = [t for (t,) in visits[hit].times_s]
    times[next(i for i, s in enumerate(visits[hit].specs) if s.kind == kind)] += 1e-2
    visits[hit] = times_visit(hit, chain(hit), times)
    model, validation = fit(roofs_of(device), visits)
    error = np.abs(errors(model, device))
    assert np.median(error) < 0.03
    assert np.max(error) < 0.2
    assert validation.median_error_percent < 4


@pytest.mark.parametrize("networks", [0, 1, 5])
def test_fewer_than_six_networks_are_refused(networks: int) -> None:
    device = Simulated()
    visits = [quiet_visit(device, k, chain(k)) for k in range(networks)]
    visits += [dataclasses.replace(v, visit=1) for v in visits]  # two visits do not make two networks
    with pytest.raises(ProfileError, match=rf"{networks} networks were measured, at least 6.*more time"):
        fit(roofs_of(device), visits)


def test_six_networks_are_enough() -> None:
    device = Simulated()
    model, validation = fit(roofs_of(device), [quiet_visit(device, k, chain(k)) for k in range(6)])
    assert validation.networks == 6
    assert np.median(np.abs(errors(model, device))) < 0.1


def test_the_same_measurements_and_seed_give_the_same_model() -> None:
    device = Simulated()
    visits = [quiet_visit(device, k, chain(k)) for k in range(8)]
    assert fit(roofs_of(device), visits, seed=3) == fit(roofs_of(device), visits, seed=3)


# --- noise and the interval


def noisy_visits(device: Simulated, networks: int, first: int = 0) -> list[Visit]:
    rule, numbers = StopRule(least=3, most=5), range(first, first + networks)
    return [visit_network(device, k, v, chain(k), 0, rule) for v in range(2) for k in numbers]


@functools.cache
def measured_afresh(noise: float, seed: int = 1) -> tuple[Validation, np.ndarray, np.ndarray]:
    """A fit's validation; the log errors and standard deviations of 150 networks that it never saw.

    They are measured as noisily as the 80 that were fitted.
    """
    device = Simulated(noise=noise, seed=seed)
    visits = noisy_visits(device, 80)
    model, validation = fit(roofs_of(Simulated()), visits)
    fresh = noisy_visits(device, 150, first=5000)
    _, whole = observations([*visits, *fresh])
    errors, sigmas = [], []
    for v in fresh[:150]:
        prediction = Predictor(model)(v.specs, places(model.roofs, v.specs, footprint=v.footprint_bytes))
        errors.append(float(np.log((prediction.total_s.sum() + model.overhead_s) / whole[v.network].time_s)))
        sigmas.append(float(total_sigma(prediction, model.sigma)[0]))
    return validation, np.array(errors), np.array(sigmas)


@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_the_interval_holds_nine_in_ten_fresh_networks(noise: float) -> None:
    # The validation's own coverage is of the residuals that set the interval, so it cannot tell. Should
    # intervals hold exactly 90 %, the share of 150 has a standard deviation of 2.4 %, and one of 3.4 % comes
    # from an interval that was itself taken from 80 networks: together, over three profiles, 2.4 %.
    found = [measured_afresh(noise, seed) for seed in (1, 2, 3)]
    shares = [np.mean(np.abs(errors) <= 1.645 * sigmas) for _, errors, sigmas in found]
    assert 0.83 <= np.mean(shares) <= 0.97


@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_held_out_errors_foretell_those_of_fresh_networks(noise: float) -> None:
    validation, errors, _ = measured_afresh(noise)
    fresh = 100 * float(np.mean(np.abs(np.exp(errors) - 1)))
    assert 0.6 < validation.mean_error_percent / fresh < 1.6


def test_more_noise_gives_a_wider_interval() -> None:
    sigmas: list[Any] = []
    for noise in (0.0, 0.4):
        device = Simulated(noise=noise, seed=4)
        sigmas.append(fit(roofs_of(Simulated()), noisy_visits(device, 15))[0].sigma)
    assert sigmas[1] > 2 * sigmas[0]
