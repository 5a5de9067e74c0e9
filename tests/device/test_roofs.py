"""Roofs are recovered from a device whose roofs are planted; blocks from staircases drawn by hand."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latmorph.device.backend import Session, StepSession
from latmorph.device.roofs import Roofs, best_block, measure_roofs, measure_sweep
from latmorph.device.simulated import Simulated
from latmorph.opspec import OpSpec, Step

WIDTHS = np.array([*range(30, 69), *range(94, 99), *range(126, 132)])


def device(**planted: Any) -> Simulated:
    """A device on which depthwise convolutions too are bound by compute, so that their blocks show."""
    return Simulated(**{"bandwidth_bytes_per_s": 1e12, **planted})


@functools.cache
def roofs_of(**planted: Any) -> Roofs:
    return measure_roofs(device(**planted))


@pytest.mark.parametrize("peak", [1e9, 1e11, 3e12])
def test_the_planted_peak_is_recovered(peak: float) -> None:
    # The matrix products of 256 to 1536 do 3.4e7 to 7.2e9 FLOPs: at most 2 us of overhead are then at
    # most 0.1 % of 7.2e9 / 3e12 s = 2.4 ms. Memory (28 MB at 1e13 B/s: 3 us) stays under the compute.
    found = roofs_of(peak_flops_per_s=peak, bandwidth_bytes_per_s=1e13).peak_flops_per_s
    assert found == pytest.approx(peak, rel=1e-3)
    assert found <= peak


@pytest.mark.parametrize("bandwidth", [2e9, 1e10, 1e12])
def test_the_planted_bandwidth_is_recovered_at_every_size(bandwidth: float) -> None:
    # What is measured is the slope above the smallest operator, which itself moves 64 bytes: those are
    # 1 in 4096 of the smallest buffer's traffic.
    roofs = roofs_of(bandwidth_bytes_per_s=bandwidth)
    assert [size for size, _ in roofs.bandwidth] == [2.0**p for p in range(17, 28)]
    assert [rate for _, rate in roofs.bandwidth] == pytest.approx([bandwidth] * 11, rel=3e-4)


@pytest.mark.parametrize("overhead", [5e-7, 2e-6, 4e-5])
def test_the_planted_overhead_is_recovered(overhead: float) -> None:
    # The smallest operator moves 64 bytes beside its overhead: 64 ps at 1e12 B/s.
    assert roofs_of(overhead_s=overhead).overhead_s == pytest.approx(overhead + 64e-12, rel=1e-9)


@pytest.mark.parametrize(("in_block", "out_block"), [(1, 1), (1, 8), (4, 16), (16, 32), (8, 2)])
def test_planted_blocks_are_recovered(in_block: int, out_block: int) -> None:
    roofs = roofs_of(in_block=in_block, out_block=out_block)
    assert roofs.blocks == {
        "conv2d": (in_block, out_block),
        "depthwise": (1, out_block),  # its input and output channels are the same
        "linear": (in_block, out_block),
    }


def test_the_sweeps_that_blocks_were_found_in_are_kept() -> None:
    roofs = roofs_of(out_block=8)
    kept = {(sweep.kind, sweep.axis): sweep for sweep in roofs.sweeps}
    assert set(kept) == {(kind, "in") for kind in ("conv2d", "linear")} | {(k, "out") for k in roofs.blocks}
    sweep = kept["conv2d", "out"]
    assert sweep.widths == tuple(WIDTHS)
    # 64 inputs, 3x3, 14x14: two FLOPs a multiply-add of the padded width at 1e11 FLOP/s, and 2 us.
    padded = -(-WIDTHS // 8) * 8
    assert sweep.times_s == pytest.approx(2e-6 + 2 * 64 * 9 * 196 * padded / 1e11, rel=1e-3)


def test_roofs_come_through_noise() -> None:
    # Noise is one-sided (a time is never too short) and 5 % wide; minima of 12 passes of it are off by
    # half a percent at most, those of a difference of two times by a little more.
    roofs = roofs_of(noise=0.05, seed=3, in_block=4, out_block=16)
    assert roofs.peak_flops_per_s == pytest.approx(1e11, rel=0.01)
    assert roofs.overhead_s == pytest.approx(2e-6, rel=0.02)
    assert [rate for _, rate in roofs.bandwidth] == pytest.approx([1e12] * 11, rel=0.03)
    assert roofs.blocks == {"conv2d": (4, 16), "depthwise": (1, 16), "linear": (4, 16)}


def test_bandwidth_never_rises_with_the_working_set() -> None:
    rates = [rate for _, rate in roofs_of(noise=0.5, seed=1).bandwidth]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) > 1  # the noise was there


def test_a_block_hidden_under_the_memory_roof_is_not_believed() -> None:
    # At 1e8 B/s every convolution of the sweep waits for memory: time is smooth in the width.
    slow = device(bandwidth_bytes_per_s=1e8)
    assert measure_sweep(slow, "conv2d", "out").block == 1


class SpellEnds(Simulated):
    """A neighbour doubles all times while the first passes over the sweep run, and leaves amid one."""

    def __init__(self, ends_after: int, **planted: Any) -> None:
        super().__init__(**planted)
        object.__setattr__(self, "left", [ends_after])

    def slowness(self) -> float:
        left: list[int] = self.left  # type: ignore[attr-defined]
        left[0] -= 1
        return 2.0 if left[0] >= 0 else 1.0

    def load(self, steps: Sequence[Step], scratch_bytes: int = 0) -> Session:
        return _SpellSession(self, super().load(steps, scratch_bytes))

    def reference(self) -> float:
        return super().reference() * self.slowness()


class _SpellSession(StepSession):
    def __init__(self, owner: SpellEnds, calm: Session) -> None:
        assert isinstance(calm, StepSession)
        super().__init__()
        self.owner = owner
        self.calm = calm

    def specs(self) -> tuple[OpSpec, ...]:
        return self.calm.specs()

    def clock_steps(self) -> list[float]:
        slowness = self.owner.slowness()
        return [t * slowness for t in self.calm.clock_steps()]

    def time_whole(self) -> float:
        return sum(self.time_steps())


@pytest.mark.parametrize("ends_after", [0, 39, 39 + 2, 39 + 2 + 20, 3 * 41 + 39 + 30])
def test_a_spell_that_ends_amid_the_sweep_hides_no_block(ends_after: int) -> None:
    # 39 warming calls, then passes of references and 39 widths. A width timed calm beside a reference
    # taken in the spell is no faster than the others.
    assert measure_sweep(SpellEnds(ends_after, bandwidth_bytes_per_s=1e12), "conv2d", "out").block == 8


# --- best_block


def staircase(block: int, *, constant: float = 1.0, slope: float = 0.0, step: float = 0.1) -> np.ndarray:
    """Times by hand: a constant, a slope in the width, and ``step`` for every unit rounded up."""
    return np.array([constant + slope * w + step * block * np.ceil(w / block) for w in WIDTHS])


@pytest.mark.parametrize("block", [2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("slope", [0.0, 0.05, 0.1])
def test_the_block_of_a_staircase_is_found(block: int, slope: float) -> None:
    assert best_block(WIDTHS, staircase(block, slope=slope)) == block


@given(
    st.sampled_from([4, 8, 16, 32]),
    st.floats(0.1, 100.0),
    st.floats(0.0, 0.3),
    st.integers(0, 2**32 - 1),
)
@settings(deadline=None)
def test_the_block_is_found_in_any_unit_and_under_a_little_noise(
    block: int, unit: float, slope: float, seed: int
) -> None:
    # One part in a thousand of noise, against edges that are at least 4 % of the time each.
    noise = 1 + 1e-3 * np.random.default_rng(seed).standard_normal(len(WIDTHS))
    times = staircase(block, constant=1.0, slope=slope, step=0.3) * unit * noise
    assert best_block(WIDTHS, times) == block


@pytest.mark.parametrize(
    "times",
    [
        np.ones(len(WIDTHS)),
        1.0 + 0.2 * WIDTHS,
        0.2 * WIDTHS,
        5.0 + 0.1 * WIDTHS + 1e-4 * WIDTHS**2,
        1.0 + 0.2 * WIDTHS + 1e-4 * np.ceil(WIDTHS / 8),  # an edge of 1 in 10^4 is nobody's cliff
    ],
    ids=["flat", "line", "through zero", "bent", "invisible steps"],
)
def test_a_smooth_line_has_no_block(times: np.ndarray) -> None:
    assert best_block(WIDTHS, times) == 1


def test_the_edges_alone_tell_the_block() -> None:
    # Edges after 32 and 64 and nowhere between: smaller blocks have others, at 48 say, that are not there.
    widths = np.array([31, 32, 33, 34, 63, 64, 65, 66])
    times = np.array([1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 3.0, 3.0])
    assert best_block(widths, times) == 32


def test_one_edge_is_not_believed() -> None:
    # After 64 a single edge stands in the range: whatever made it, it did not come again.
    widths = np.arange(40, 90)
    assert best_block(widths, 1.0 + 0.1 * widths + (widths > 64)) != 64


# --- bandwidth_at


def roofs_with(bandwidth: tuple[tuple[float, float], ...]) -> Roofs:
    return Roofs(1e11, bandwidth, 1e-6, {})


def test_bandwidth_is_interpolated_in_logarithms_and_held_outside() -> None:
    roofs = roofs_with(((1e4, 1e12), (1e6, 1e10), (1e8, 1e10)))
    asked = np.array([0.0, 1.0, 1e4, 1e5, 10**5.5, 1e6, 1e7, 1e8, 1e12])
    # Half-way in logarithm from 1e4 to 1e6 lies 1e5, and half-way from 1e12 to 1e10 lies 1e11.
    expected = [1e12, 1e12, 1e12, 1e11, 10**10.5, 1e10, 1e10, 1e10, 1e10]
    assert roofs.bandwidth_at(asked) == pytest.approx(expected)


def test_bandwidth_of_one_measured_size_is_one_number() -> None:
    assert roofs_with(((1e6, 7e9),)).bandwidth_at(np.array([1.0, 1e6, 1e9])) == pytest.approx([7e9] * 3)


@given(st.lists(st.floats(1.0, 1e12), min_size=2, max_size=10))
def test_a_larger_working_set_is_never_read_faster(sizes: list[float]) -> None:
    roofs = roofs_with(((1e4, 9e11), (3e5, 2e11), (1e6, 1.9e11), (1e8, 1e10)))
    rates = roofs.bandwidth_at(np.sort(sizes))
    assert np.all(np.diff(rates) <= 1e-9 * rates[0])
