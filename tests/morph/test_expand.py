"""Expansion: the widest multiplier within the target, old weights in their places."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import latmorph as lm
from latmorph.morph.expand import LARGEST, multiplied_widths, widest, with_widths
from tools.networks import Branches, Inverted, Residual, ViT, conv_norm

X = (torch.zeros(1, 3, 8, 8),)


def network() -> nn.Module:
    return nn.Sequential(
        conv_norm(3, 8, 3),
        Residual(8, 6, 16, 2, False),
        Branches(conv_norm(16, 4, 1), Inverted(16, 12, 1, 2)),
        nn.Flatten(),
        nn.Linear(256, 5),
    ).eval()


@pytest.mark.parametrize("factor", [0.3, 1.0, 2.7])
def test_the_widest_network_meets_the_target_and_a_wider_one_does_not(factor: float) -> None:
    graph, cost = lm.capture(network(), X), lm.FlopCost()
    target = factor * cost.total(graph)
    wide = lm.expand(network(), X, cost=cost, target=target)
    found = lm.capture(wide, X)
    assert found.flops <= target
    # By brute force over multipliers, finely: nothing wider fits.
    multipliers = np.exp(np.linspace(np.log(0.05), np.log(LARGEST), 4000))
    widths = multiplied_widths(graph, multipliers)
    fits = cost.evaluate(graph, widths) <= target
    best = widths[np.flatnonzero(fits)[-1]]
    assert cost.total(graph, best) <= found.flops * 1.02
    assert wide(torch.randn(2, 3, 8, 8)).shape == (2, 5)


def test_old_weights_stand_where_they_were_and_new_ones_are_initialised() -> None:
    model = network()
    graph = lm.capture(model, X)
    widths = graph.widths.copy()
    widths[graph.group("0.0")] = 11
    wide = with_widths(model, graph, widths)
    old, new = model[0][0].weight, wide[0][0].weight
    assert new.shape == (11, 3, 3, 3)
    assert torch.equal(new[:8], old)
    assert bool((new[8:] != 0).all())
    assert torch.equal(wide[0][1].weight, torch.ones(11))
    assert torch.equal(wide[1].body[0][0].weight[:, :8], model[1].body[0][0].weight)


def test_a_concatenation_grows_at_the_end_of_each_part() -> None:
    model = nn.Sequential(Branches(nn.Conv2d(3, 2, 1), nn.Conv2d(3, 3, 1)), nn.Conv2d(5, 4, 1))
    graph = lm.capture(model, X)
    widths = graph.widths.copy()
    widths[graph.group("0.branches.0")] = 4
    wide = with_widths(model, graph, widths)
    assert torch.equal(wide[1].weight[:, [0, 1, 4, 5, 6]], model[1].weight)


def test_flattened_pixels_grow_by_whole_channels() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(128, 4))
    graph = lm.capture(model, X)
    widths = graph.widths.copy()
    widths[graph.group("0")] = 3
    wide = with_widths(model, graph, widths)
    assert wide[2].weight.shape == (4, 192)
    assert torch.equal(wide[2].weight[:, :128], model[2].weight)


def test_zeroed_new_inputs_leave_the_outputs_unchanged() -> None:
    """A wider network computes the same when what reads the new channels is zero."""
    model = network()
    graph = lm.capture(model, X)
    widths = graph.widths.copy()
    widths[list(graph.prunable)] += 3
    wide = with_widths(model, graph, widths).eval()
    grown = lm.capture(wide, X)
    with torch.no_grad():
        for g in grown.prunable:
            for member in grown.groups[g].members:
                if member.role == "input":
                    added = torch.as_tensor(member.indices[-3:].ravel().copy())
                    dict(wide.named_parameters())[member.parameter].index_fill_(member.axis, added, 0.0)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(wide(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_transformer_s_hidden_layers_grow_and_its_heads_stay() -> None:
    model, x = ViT(image=16, patch=8, width=12, depth=1, heads=2), (torch.zeros(1, 3, 16, 16),)
    cost = lm.ParameterCost()
    wide = lm.expand(model, x, cost=cost, target=1.2 * cost.total(lm.capture(model, x)))
    assert type(wide) is ViT
    assert wide.blocks[0].mlp[0].out_features > model.blocks[0].mlp[0].out_features
    assert wide.blocks[0].attention.qkv.weight.shape == model.blocks[0].attention.qkv.weight.shape


def test_grouped_convolutions_grow_within_their_groups() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(12, 2, 1))
    cost = lm.ParameterCost()
    wide = lm.expand(model, X, cost=cost, target=3 * cost.total(lm.capture(model, X)))
    assert wide[1].groups == 4
    assert wide[1].in_channels > 8
    assert wide[1].in_channels == wide[0].out_channels
    # Old channels stand where they did in each group.
    inner, outer = wide[1].weight.shape[1], wide[1].out_channels // 4
    old = wide[1].weight.reshape(4, outer, inner, 3, 3)[:, :3, :2].reshape(12, 2, 3, 3)
    assert torch.equal(old, model[1].weight)


def test_a_target_out_of_reach_says_what_the_network_costs() -> None:
    with pytest.raises(lm.TargetError, match="FLOPs: no width multiplier brings the network to 10 FLOPs"):
        lm.expand(network(), X, cost=lm.FlopCost(), target=10)


def test_steps_in_the_cost_are_stood_on_at_their_far_end() -> None:
    """A cost that falls again at larger widths: the largest fitting multiplier is beyond the peak."""

    class Odd(lm.FlopCost):
        def sum_of(self, graph: lm.Graph, widths: np.ndarray, items: object) -> np.ndarray:
            width = widths[:, graph.group("0")].astype(float)
            return np.where(width % 8 == 0, width, 10 * width)

    graph = lm.capture(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)), X)
    assert widest(graph, Odd(), 25.0)[graph.group("0")] == 24
