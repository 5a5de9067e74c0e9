"""Costs against rebuilt networks, brute force, and a device whose formula is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import latmorph as lm
from latmorph.device.roofs import Roofs
from latmorph.device.simulated import Simulated
from latmorph.latency.model import Family, LatencyModel, Predictor, Trees
from latmorph.morph.cost import CANDIDATES, CostModel, candidate_widths
from oracle import random_kept
from tools.networks import Inverted, Residual, conv_norm


class Planted(CostModel):
    """Seconds of the simulated device's own formula, operator by operator."""

    name, unit = "planted", "s"

    def __init__(self, device: Simulated) -> None:
        self.device = device

    def items(self, graph: lm.Graph, group: int | None = None) -> range | tuple[int, ...]:
        return range(len(graph.nodes)) if group is None else graph.nodes_of_group[group]

    def sum_of(self, graph: lm.Graph, widths: np.ndarray, items: object) -> np.ndarray:
        return np.array(
            [
                sum(self.device.true_time_s(s.spec) for k, s in enumerate(graph.steps_at(row)) if k in items)
                for row in widths
            ]
        )


class OneProfile:
    """As much of a profile as LatencyCost reads: a model without trees and without overhead."""

    def __init__(self, peak: float, bandwidth: float, out_block: int = 1) -> None:
        kinds = ("conv2d", "depthwise", "linear")
        roofs = Roofs(peak, ((1.0, bandwidth),), 0.0, dict.fromkeys(kinds, (1, out_block)))
        empty = Trees(0, [], [], [], [], [])
        family = Family(0.0, 0.0, 3.0, 0.0, ["flops"], [0.0], [100.0], empty)
        names = (*kinds, "batch_norm", "relu", "hardtanh", "add", "view", "adaptive_avg_pool2d", "mean")
        self.lowering = None
        self.model = LatencyModel(roofs, dict.fromkeys(names, family), 1.0, 0.0)
        self.predictor = Predictor(self.model)


def network() -> nn.Module:
    return nn.Sequential(
        conv_norm(3, 16, 3),
        Residual(16, 12, 24, 2, True),
        Inverted(24, 24, 1, 4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    ).eval()


X = (torch.zeros(1, 3, 16, 16),)


@pytest.fixture(scope="module")
def graph() -> lm.Graph:
    return lm.capture(network(), X)


def structure(graph: lm.Graph, seed: int) -> lm.Structure:
    return lm.Structure.keep(graph, random_kept(graph, np.random.default_rng(seed), 0.5))


@pytest.mark.parametrize("seed", range(4))
def test_flops_and_parameters_at_given_widths_are_those_of_the_rebuilt_network(
    graph: lm.Graph, seed: int
) -> None:
    chosen = structure(graph, seed)
    small = lm.shrink(network(), chosen)
    widths = chosen.widths_of(graph)
    assert lm.FlopCost().total(graph, widths) == lm.capture(small, X).flops
    assert lm.ParameterCost().total(graph, widths) == sum(p.numel() for p in small.parameters())


def test_shared_parameters_count_once() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(self.a(x))

    shared = lm.capture(Shared(), (torch.zeros(1, 6),))
    assert lm.ParameterCost().total(shared) == 42
    assert lm.FlopCost().total(shared) == 2 * 2 * 36


@pytest.mark.parametrize("cost", [lm.FlopCost(), lm.ParameterCost(), lm.LatencyCost(OneProfile(1e9, 1e9))])
def test_costs_add_over_their_items_and_many_widths_are_priced_as_one_by_one(
    graph: lm.Graph, cost: CostModel
) -> None:
    widths = np.stack(
        [graph.widths, structure(graph, 1).widths_of(graph), structure(graph, 2).widths_of(graph)]
    )
    together = cost.evaluate(graph, widths)
    alone = [cost.total(graph, row) for row in widths]
    by_item = [sum(cost.sum_of(graph, row[None], [i])[0] for i in cost.items(graph)) for row in widths]
    np.testing.assert_allclose(together, alone, rtol=1e-12)
    np.testing.assert_allclose(together, by_item, rtol=1e-9)


@pytest.mark.parametrize("cost", [lm.FlopCost(), lm.ParameterCost(), lm.LatencyCost(OneProfile(1e9, 1e9))])
def test_a_change_is_that_of_the_whole_cost(graph: lm.Graph, cost: CostModel) -> None:
    for g in graph.prunable:
        tried = [1, int(graph.widths[g]) - 1, int(graph.widths[g]) + 3]
        whole = []
        for width in tried:
            widths = graph.widths.copy()
            widths[g] = width
            whole.append(cost.total(graph, widths) - cost.total(graph))
        rows = np.repeat(graph.widths[None], len(tried), axis=0)
        rows[:, g] = tried
        np.testing.assert_allclose(cost.change(graph, graph.widths, rows), whole, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("block", [1, 8])
def test_the_price_is_the_best_saving_that_a_channel_can_still_buy(block: int) -> None:
    """By brute force over all smaller widths, on the planted device, with and without steps."""
    model = nn.Sequential(nn.Conv2d(3, 22, 3), nn.Conv2d(22, 4, 3)).eval()
    graph = lm.capture(model, (torch.zeros(1, 3, 16, 16),))
    (g,) = graph.prunable
    cost = Planted(Simulated(peak_flops_per_s=1e9, overhead_s=0.0, out_block=block))
    for width in (22, 17, 16, 9, 2):
        widths = graph.widths.copy()
        widths[g] = width
        here = cost.total(graph, widths)
        best = 0.0
        for smaller in range(1, width):
            widths[g] = smaller
            best = max(best, (here - cost.total(graph, widths)) / (width - smaller))
        widths[g] = width
        assert cost.marginal(graph, widths)[g] == pytest.approx(best)


def test_a_flop_price_is_its_finite_difference(graph: lm.Graph) -> None:
    """FLOPs of a chain are linear in one width: price and difference of one channel agree."""
    prices = lm.FlopCost().marginal(graph, graph.widths)
    for g, group in enumerate(graph.groups):
        if group.frozen is not None:
            assert prices[g] == 0
            continue
        widths = graph.widths.copy()
        widths[g] -= 1
        assert prices[g] == pytest.approx(lm.FlopCost().total(graph) - lm.FlopCost().total(graph, widths))


def test_the_price_by_hand_of_a_channel_between_two_convolutions() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 5, 3, padding=1, bias=False)
    )
    graph = lm.capture(model, (torch.zeros(1, 3, 10, 10),))
    (g,) = graph.prunable
    # As written by one convolution and as read by the other: MorphNet, eq. 5 with two FLOPs a multiply-add
    assert lm.FlopCost().marginal(graph, graph.widths)[g] == 2 * 100 * 9 * (3 + 5)
    assert lm.ParameterCost().marginal(graph, graph.widths)[g] == 9 * (3 + 5)


def test_latency_is_proportional_to_flops_when_compute_is_the_only_limit(graph: lm.Graph) -> None:
    latency = lm.LatencyCost(OneProfile(peak=1e9, bandwidth=1e30))
    widths = np.stack([structure(graph, k).widths_of(graph) for k in range(5)])
    flops = lm.FlopCost().evaluate(graph, widths)
    np.testing.assert_allclose(latency.evaluate(graph, widths), flops / 1e9, rtol=1e-9)
    np.testing.assert_allclose(
        latency.marginal(graph, graph.widths) * 1e9, lm.FlopCost().marginal(graph, graph.widths), rtol=1e-6
    )


def test_latency_of_a_network_with_unknown_operators_is_refused() -> None:
    class Spectral(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.fft(x).real

    spectral = lm.capture(Spectral(), (torch.zeros(1, 8),), allow_unknown=True)
    with pytest.raises(lm.UsageError, match="fft"):
        lm.LatencyCost(OneProfile(1e9, 1e9)).total(spectral)


@pytest.mark.parametrize("width", [2, 5, 25, 26, 64, 65, 100, 1000, 4096])
def test_candidate_widths_are_below_the_width_and_include_the_ends_and_the_nearest_edges(width: int) -> None:
    found = candidate_widths(width)
    assert found == sorted(set(found))
    assert found[0] == 1
    assert found[-1] == width - 1
    assert len(found) <= CANDIDATES + 4
    if width > 16:
        assert (width - 1) // 8 * 8 in found
