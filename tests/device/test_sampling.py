"""Sampled networks are real ones: torch runs them, and every operator has the shapes that its spec says."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from latmorph import ops
from latmorph.device.eager import _Program
from latmorph.device.sampling import FAMILIES, NetworkBuilder, sample_network, width_sweep
from latmorph.opspec import Step

SMALL = 2e7
"""FLOPs asked for where networks are really run."""

MANY = 400

seeds = st.integers(0, 2**31 - 1)


@functools.cache
def sampled(seed: int, largest_flops: float = 1.5e9) -> tuple[Step, ...]:
    return sample_network(seed, largest_flops=largest_flops)


def flops_of(steps: tuple[Step, ...]) -> int:
    return sum(int(ops.flops(s.spec)) for s in steps)


def assert_runs(steps: tuple[Step, ...]) -> None:
    made: list[tuple[tuple[int, ...], str, bool]] = []

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*inputs: torch.Tensor) -> Any:
            out = call(*inputs)
            for x in [out] if isinstance(out, torch.Tensor) else out:
                made.append((tuple(x.shape), str(x.dtype), bool(torch.isfinite(x).all())))
            return out

        return forward

    with torch.inference_mode():
        program = _Program(steps, "cpu")
        program.calls = [watched(call) for call in program.calls]  # type: ignore[misc]
        program.run()
    # Infinities and denormal numbers are slow on some processors, and no real network has them.
    expected = [(out.shape, f"torch.{out.dtype}", True) for s in steps for out in s.spec.outputs]
    assert made == expected


@given(seeds)
@settings(max_examples=80, deadline=None)
def test_every_sampled_network_runs_in_torch_with_the_shapes_of_its_specs(seed: int) -> None:
    steps = sample_network(seed, largest_flops=SMALL)
    assume(flops_of(steps) < 30 * SMALL)  # one block is always made; a few are too large for a quick test
    assert_runs(steps)


@given(seeds, st.sampled_from(["float64", "bfloat16", "float16"]))
@settings(max_examples=25, deadline=None)
def test_sampled_networks_run_in_every_dtype(seed: int, dtype: str) -> None:
    steps = sample_network(seed, largest_flops=SMALL, dtype=dtype)
    assume(flops_of(steps) < 5 * SMALL)
    assert_runs(steps)


SWEEPS = [("conv2d", "in"), ("conv2d", "out"), ("depthwise", "out"), ("linear", "in"), ("linear", "out")]


@pytest.mark.parametrize(("kind", "axis"), SWEEPS)
def test_width_sweeps_run_in_torch_and_vary_the_width_asked_for(kind: str, axis: str) -> None:
    widths = [7, 8, 9, 33]
    networks = width_sweep(kind, axis, widths)
    assert len(networks) == len(widths)
    for width, steps in zip(widths, networks, strict=True):
        assert len(steps) == 1
        assert_runs(steps)
        spec = steps[0].spec
        assert ops.handler_of(spec.kind).family(spec) == kind
        weight = spec["weight"].shape
        if kind == "depthwise":
            assert weight[:2] == (width, 1)
        else:
            assert weight[0 if axis == "out" else 1] == width


@given(seeds, st.floats(7, 12.5).map(lambda power: 10**power))
@settings(max_examples=150, deadline=None)
def test_every_step_reads_earlier_steps_of_the_shape_that_its_spec_says(seed: int, largest: float) -> None:
    steps = sample_network(seed, largest_flops=largest)
    first: set[tuple[tuple[int, ...], str]] = set()
    for i, step in enumerate(steps):
        activations = [t for t in step.spec.inputs if not t.parameter]
        assert len(step.sources) == len(activations)
        for tensor, (source, output) in zip(activations, step.sources, strict=True):
            assert -1 <= source < i
            if source < 0:
                assert output == 0
                first.add((tensor.shape, tensor.dtype))
            else:
                read = steps[source].spec.outputs[output]
                assert (read.shape, read.dtype) == (tensor.shape, tensor.dtype)
        sizes = [s for t in (*step.spec.inputs, *step.spec.outputs) for s in t.shape]
        assert min(sizes) >= 1
        assert ops.is_known(step.spec)
    assert len(first) == 1  # one input


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_a_seed_is_one_network(seed: int) -> None:
    assert sample_network(seed) == sample_network(seed)


def test_seeds_are_different_networks() -> None:
    assert len({tuple(s.spec for s in sampled(seed)) for seed in range(MANY)}) == MANY


def test_a_network_is_within_a_few_times_the_flops_asked_for() -> None:
    # The bound is what keeps one pass, and so one visit, short. The last block may take a network over
    # it, and plain ones are given four times as much; ten times is more than a few.
    flops = {seed: flops_of(sampled(seed)) for seed in range(2 * MANY)}
    too_large = {seed: f"{count:.1e}" for seed, count in flops.items() if count > 10 * 1.5e9}
    assert not too_large


def test_a_larger_limit_gives_larger_networks() -> None:
    small, large = (np.median([flops_of(sampled(k, limit)) for k in range(100)]) for limit in (1e8, 1e10))
    assert large > 3 * small


def test_widths_are_off_the_beaten_track_as_often_as_on_it() -> None:
    # More than half of the drawn widths are multiples of 8. Grouped and depthwise widths follow others, so
    # the shares are rough: aligned ones lead, odd ones and even ones between are both frequent.
    widths = [s.spec["weight"].shape[0] for k in range(MANY) for s in sampled(k) if s.spec.kind == "conv2d"]
    aligned = np.mean([w % 8 == 0 for w in widths])
    odd = np.mean([w % 2 == 1 for w in widths])
    assert 0.5 < aligned < 0.85
    assert odd > 0.08
    assert 1 - aligned - odd > 0.08
    assert min(widths) < 16
    assert max(widths) > 1000


def test_some_networks_are_aligned_throughout_and_some_hardly() -> None:
    # Dense convolutions only, whose widths are drawn: both sides of each.
    shares = []
    for k in range(MANY):
        sides = [
            width % 8 == 0
            for step in sampled(k)
            if step.spec.kind == "conv2d" and step.spec["weight"].shape[1] == step.spec["input"].shape[1] > 3
            for width in step.spec["weight"].shape[:2]
        ]
        if len(sides) >= 8:
            shares.append(np.mean(sides))
    assert 0.25 < np.mean(np.array(shares) > 0.95) < 0.6
    assert np.mean(np.array(shares) < 0.6) > 0.2


def test_some_networks_are_as_deep_as_real_ones() -> None:
    # ResNet-50 has 175 operators.
    deep = [len(sampled(k)) > 150 for k in range(MANY)]
    assert 0.08 < np.mean(deep) < 0.3


def test_pictures_in_deep_networks_are_as_large_as_in_real_ones() -> None:
    # At 224 x 224, most blocks of ResNet-50, MobileNetV2 and their like are at 14 and 28 pixels a side.
    sides = [
        step.spec.out.shape[-1]
        for k in range(MANY)
        if len(sampled(k)) > 130
        for step in sampled(k)
        if step.spec.kind == "conv2d" and step.spec["weight"].shape[-1] > 1
    ]
    low, middle, high = np.quantile(sides, [0.25, 0.5, 0.75])
    assert low >= 7
    assert 14 <= middle <= 28
    assert high <= 56


def test_activations_run_in_place_in_half_of_the_networks() -> None:
    for kind in ("relu", "hardtanh", "silu"):
        found = [
            [bool(s.spec.attr("inplace")) for s in steps if s.spec.kind == kind]
            for steps in map(sampled, range(MANY))
        ]
        shares = [np.mean(own) for own in found if own]
        assert 0.2 < np.mean(shares) < 0.8, kind
        # A network is written in one style: but for its first one, which must not overwrite the input.
        assert np.mean([share == 0 for share in shares]) > 0.2, kind


def test_every_operator_that_has_a_handler_is_priced_like_one_that_is_sampled() -> None:
    sampled_families = {
        ops.handler_of(s.spec.kind).family(s.spec) for k in range(3 * MANY) for s in sampled(k)
    }
    # A view stands in the spec's kind for all operators that rename axes, so these have no family of theirs.
    wanted = {
        handler.alike.get(name, name) for name, handler in ops._BY_ATEN.items() if not ops.is_layout(handler)
    }
    by_shape = {"depthwise", "depthwise1d", "depthwise3d", "copy"}
    views = {f"view ({name})" for name in ("reshape", "transpose", "select", "slice", "same", "other")}
    as_others = {"addmm", "_grouped_mm", "transformers.grouped_mm_fallback"}  # linear, matmul
    assert (wanted | by_shape | views) - as_others - sampled_families == set()


def test_designed_families_lead() -> None:
    weights = [weight for _, weight in FAMILIES]
    assert sum(weights[:6]) > 0.65 * sum(weights)


def test_networks_come_in_batches_too() -> None:
    batches = {sampled(k)[0].spec.inputs[0].shape[0] for k in range(MANY)}
    assert 1 in batches
    assert len(batches) >= 4


def test_the_builder_counts_its_flops_by_hand() -> None:
    net = NetworkBuilder((2, 3, 10, 10))
    x = net.conv(-1, 8, 3, stride=2)  # 5 x 5 pixels, 8 channels, 27 multiply-adds each
    x = net.activation(net.batch_norm(x), "relu")
    x = net.conv(x, 8, 3, groups=8)  # 9 multiply-adds each
    net.linear(net.flatten(net.global_pool(x)), 4)
    assert net.flops == 2 * 2 * 25 * 8 * 27 + 2 * 2 * 25 * 8 * 9 + 2 * 2 * 8 * 4
    assert net.flops == flops_of(tuple(net.steps))
    assert net.shape(-1) == (2, 3, 10, 10)
    assert net.shape(x) == (2, 8, 5, 5)
