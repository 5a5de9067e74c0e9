"""Groups at zero in training: what they cost, which may be, and what is left of the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import latmorph as lm
from oracle import largest_difference, randomise
from tools.networks import Branches, Residual, conv_norm

X = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


def network() -> nn.Module:
    torch.manual_seed(0)
    blocks = (Residual(8, 6, 8, 1, False), Residual(8, 5, 8, 1, True))
    branches = Branches(conv_norm(8, 4, 1), nn.Sequential(conv_norm(8, 5, 1), conv_norm(5, 6, 3)))
    return nn.Sequential(conv_norm(3, 8, 3), *blocks, branches, nn.Flatten(), nn.Linear(640, 5))


EMPTY = (
    ("1.body.0.0",),
    ("2.body.1.0",),
    ("3.branches.0.0",),
    ("3.branches.1.1.0",),
    ("3.branches.1.0.0",),
    ("1.body.0.0", "2.body.0.0", "3.branches.0.0"),
)


@pytest.mark.parametrize("names", EMPTY)
@pytest.mark.parametrize("cost", [lm.FlopCost(), lm.ParameterCost()])
def test_a_network_with_groups_at_zero_costs_what_is_left_of_it(
    cost: lm.FlopCost, names: tuple[str, ...]
) -> None:
    model = network().eval()
    graph = lm.capture(model, X)
    widths = graph.widths.copy()
    widths[[graph.group(name) for name in names]] = 0
    left = lm.capture(lm.shrink(model, lm.Structure.keep(graph, dict.fromkeys(names, ()))), X)
    assert cost.total(graph, widths) == cost.total(left)
    rows = np.stack([graph.widths, widths])
    expected = np.array([0.0, cost.total(left) - cost.total(graph)])
    np.testing.assert_allclose(cost.change(graph, graph.widths, rows), expected)


def test_what_cuts_the_network_in_two_costs_infinitely_much() -> None:
    graph = lm.capture(network(), X)
    widths = graph.widths.copy()
    widths[[graph.group(name) for name in ("3.branches.0.0", "3.branches.1.1.0")]] = 0
    assert lm.FlopCost().total(graph, widths) == np.inf


def test_the_price_of_a_channel_knows_what_the_last_one_takes_with_it() -> None:
    graph = lm.capture(network(), X)
    g = graph.group("2.body.1.0")
    zero = np.zeros(len(graph.groups), dtype=np.int64)
    cost = lm.FlopCost()
    widths = graph.widths.copy()
    widths[g] = 0
    saved = cost.total(graph) - cost.total(graph, widths)
    assert cost.marginal(graph, graph.widths, zero)[g] == pytest.approx(saved / graph.widths[g])
    assert cost.marginal(graph, graph.widths)[g] < saved / graph.widths[g]


def trained(
    least: int | dict[str, int], target: float, classic: bool = False
) -> tuple[lm.Regularizer, nn.Module]:
    """The network after a schedule in which nothing but the regulariser acts."""
    model = network()
    randomise(model, 0)
    regularizer = lm.Regularizer(model, X, lm.FlopCost(), target=target, steps=60, every=1, least=least)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    if not classic:
        regularizer.attach(optimizer)
    for _ in range(60):
        optimizer.zero_grad()
        loss = 0.0 * model(X[0]).sum()
        (loss + regularizer.loss() if classic else loss).backward()
        optimizer.step()
    return regularizer, model


def test_training_brings_groups_to_zero_and_leaves_a_network() -> None:
    parent = lm.capture(network(), X)
    dead = ("1.body.0.0", "3.branches.0.0")
    least = {parent.groups[g].name: int(parent.widths[g]) for g in parent.prunable} | dict.fromkeys(dead, 0)
    widths = parent.widths.copy()
    widths[[parent.group(name) for name in dead]] = 0
    target = lm.FlopCost().total(parent, widths) / parent.flops
    regularizer, model = trained(least, target)
    structure = regularizer.structure()
    assert structure.widths == {name: 0 if name in dead else width for name, width in least.items()}
    assert regularizer.fraction == pytest.approx(target)
    small = lm.shrink(model, structure)
    assert largest_difference(model, small, X) <= 1e-5
    graph, left = lm.capture(model, X), lm.capture(small, X)
    assert len(left.nodes) < len(graph.nodes)
    assert left.flops / graph.flops == pytest.approx(regularizer.fraction)


def test_by_default_every_group_keeps_a_channel() -> None:
    regularizer, model = trained(1, 0.2)
    structure = regularizer.structure()
    assert min(structure.widths.values()) >= 1
    assert type(lm.shrink(model, structure)) is nn.Sequential


def test_groups_keep_as_many_channels_as_is_said() -> None:
    regularizer, _ = trained({"1.body.0.0": 3, "3.branches.0.0": 4, "2.body.1.0": 0}, 0.4)
    widths = regularizer.structure().widths
    assert widths["1.body.0.0"] >= 3
    assert widths["3.branches.0.0"] == 4
    assert all(w >= 1 for name, w in widths.items() if name != "2.body.1.0")


def test_a_target_below_what_must_be_left_is_refused() -> None:
    with pytest.raises(lm.TargetError, match="as few channels left in every group as may be"):
        trained(4, 0.1)
    # With blocks and a branch gone, the same target can be reached.
    assert trained(0, 0.1)[0].fraction <= 0.1


def test_classic_mode_keeps_what_the_network_needs() -> None:
    model = network()
    regularizer = lm.Regularizer(model, X, lm.FlopCost(), strength=1.0, least=0)
    held = dict(model.named_parameters())
    with torch.no_grad():
        for group in regularizer.graph.groups:
            for member in group.members:
                if member.role in ("scale", "shift", "output", "bias"):
                    held[member.parameter].zero_()
    structure = regularizer.structure()
    assert 0 in structure.widths.values()
    assert structure.widths["0.0"] >= 1  # the residual stream
    lm.shrink(model, structure)


@pytest.mark.parametrize(
    ("least", "error", "message"),
    [
        (-1, lm.UsageError, "least must not be negative"),
        ({"nobody": 2}, lm.StructureError, "no channel group 'nobody'"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    least: int | dict[str, int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        lm.Regularizer(network(), X, lm.FlopCost(), strength=1.0, least=least)
