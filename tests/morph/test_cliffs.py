"""Cliffs against staircases drawn by hand, and against a device whose blocks are planted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import nn

import latmorph as lm
from latmorph.morph.cliffs import REACH
from latmorph.morph.cost import CostModel


class Drawn(CostModel):
    """A cost that is a function of the first prunable group's width."""

    name, unit = "drawn", "s"

    def __init__(self, cost_at: Callable[[int], float]) -> None:
        self.cost_at = cost_at

    def items(self, graph: lm.Graph, group: int | None = None) -> Sequence[int]:
        return range(1)

    def sum_of(self, graph: lm.Graph, widths: np.ndarray, items: Sequence[int]) -> np.ndarray:
        return np.array([self.cost_at(int(row[graph.prunable[0]])) for row in widths])


def graph(width: int) -> lm.Graph:
    """One group of that width that can be pruned; the output's is frozen."""
    return lm.capture(nn.Sequential(nn.Linear(3, width), nn.Linear(width, 4)), (torch.zeros(2, 3),))


def blocks(size: int, step: float = 1.0, rest: float = 10.0) -> Callable[[int], float]:
    return lambda width: rest + step * -(-width // size)


def test_one_channel_above_a_block_saves_a_block() -> None:
    # 9 blocks of 8 for 65 channels and 8 for 64: 19 become 18.
    (cliff,) = lm.find_cliffs(graph(65), Drawn(blocks(8)))
    assert (cliff.group, cliff.width, cliff.above, cliff.below) == ("0", 65, 65, 64)
    assert cliff.saves
    assert cliff.share == pytest.approx(-1 / 19)
    assert cliff.from_present == pytest.approx(-1 / 19)


def test_on_a_blocks_edge_the_next_edge_is_told() -> None:
    (cliff,) = lm.find_cliffs(graph(64), Drawn(blocks(8)))
    assert (cliff.width, cliff.above, cliff.below) == (64, 57, 56)
    assert cliff.share == pytest.approx(-1 / 18)


def test_what_leads_to_the_cliff_is_counted_from_the_present_width() -> None:
    # A channel costs 0.1 beside the blocks: from 68 to 64, 0.4 and a block of 9 + 6.8 + 10.
    (cliff,) = lm.find_cliffs(graph(68), Drawn(lambda w: blocks(8)(w) + 0.1 * w))
    assert (cliff.width, cliff.above, cliff.below) == (68, 65, 64)
    assert cliff.share == pytest.approx(-1.1 / 25.8)
    assert cliff.from_present == pytest.approx(-1.4 / 25.8)


def test_a_width_below_which_fewer_channels_are_slower_is_a_trap() -> None:
    # Multiples of 4 run in 10, all others in 13.4.
    found = lm.find_cliffs(graph(64), Drawn(lambda w: 10.0 if w % 4 == 0 else 13.4))
    (trap,) = (cliff for cliff in found if not cliff.saves)
    assert (trap.width, trap.above, trap.below) == (64, 64, 63)
    assert trap.share == trap.from_present == pytest.approx(0.34)
    # From 61 to 60 the cost falls again, but to no less than it is now: no saving.
    assert len(found) == 1
    (saving,) = lm.find_cliffs(graph(65), Drawn(lambda w: 10.0 if w % 4 == 0 else 13.4))[:1]
    assert (saving.above, saving.below) == (65, 64)
    assert saving.share == pytest.approx(10.0 / 13.4 - 1)


@pytest.mark.parametrize(
    "cost_at",
    [
        lambda w: 10.0,
        lambda w: float(w),
        lambda w: 5.0 + 0.2 * w,
        lambda w: 1.0 + w**2 / 100,
        blocks(8, step=0.004, rest=1.0),
    ],
    ids=["flat", "proportional", "line", "curve", "too small"],
)
@pytest.mark.parametrize("width", [5, 64])
def test_what_is_smooth_or_small_is_no_cliff(cost_at: Callable[[int], float], width: int) -> None:
    assert lm.find_cliffs(graph(width), Drawn(cost_at)) == ()


def test_a_step_over_a_few_channels_is_one_cliff() -> None:
    # Two thirds of the step lie between 50 and 49, a third between 49 and 48.
    (cliff,) = lm.find_cliffs(graph(60), Drawn(lambda w: 10.0 + 0.3 * float(np.clip((w - 48) / 1.5, 0, 1))))
    assert (cliff.above, cliff.below) == (50, 48)
    assert cliff.share == pytest.approx(-0.3 / 10.3)


def test_of_equal_cliffs_the_nearest_is_told_and_a_much_larger_one_before_a_small_one() -> None:
    (near,) = lm.find_cliffs(graph(70), Drawn(lambda w: 10.0 + (w > 66) + (w > 50)))
    assert (near.above, near.below) == (67, 66)
    (far,) = lm.find_cliffs(graph(70), Drawn(lambda w: 10.0 + 0.3 * (w > 66) + (w > 50)))
    assert (far.above, far.below) == (51, 50)


def test_nothing_beyond_reach_is_told() -> None:
    assert lm.find_cliffs(graph(100), Drawn(lambda w: 10.0 + (w >= 100 - REACH))) == ()
    (cliff,) = lm.find_cliffs(graph(100), Drawn(lambda w: 10.0 + (w > 100 - REACH)))
    assert cliff.below == 100 - REACH
    assert lm.find_cliffs(graph(65), Drawn(blocks(8)), reach=0) == ()


def test_other_widths_than_the_networks_own_are_asked_for() -> None:
    net = graph(80)
    widths = net.widths.copy()
    widths[net.prunable[0]] = 65
    (cliff,) = lm.find_cliffs(net, Drawn(blocks(8)), widths)
    assert (cliff.width, cliff.above, cliff.below) == (65, 65, 64)


def test_cliffs_of_a_profile_stand_at_the_devices_blocks_the_largest_first(
    roofline_profile: lm.Profile,
) -> None:
    # Both convolutions run in blocks of 8 output channels; the second, from 65 to 64, is bound by compute.
    net = nn.Sequential(nn.Conv2d(64, 33, 3), nn.ReLU(), nn.Conv2d(33, 65, 3), nn.ReLU(), nn.Conv2d(65, 8, 3))
    captured = lm.capture(net, (torch.zeros(1, 64, 20, 20),))
    cost = lm.LatencyCost(roofline_profile)
    found = lm.find_cliffs(captured, cost)
    savings = {cliff.group: cliff for cliff in found if cliff.saves}
    assert (savings["0"].above, savings["0"].below) == (33, 32)
    assert (savings["2"].above, savings["2"].below) == (65, 64)
    assert [abs(c.share) for c in found] == sorted((abs(c.share) for c in found), reverse=True)
    # The same figure, from the network's cost at both widths.
    widths = captured.widths.copy()
    widths[captured.group("2")] = 64
    assert savings["2"].share == pytest.approx(cost.total(captured, widths) / cost.total(captured) - 1)
