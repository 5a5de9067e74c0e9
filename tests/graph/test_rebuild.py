"""Rebuild: same classes, weights kept, sizes that modules remember, and refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import latmorph as lm
from tools.networks import Residual, conv_norm


def small_network() -> nn.Module:
    return nn.Sequential(conv_norm(3, 8, 3), Residual(8, 6, 16, 2, False), nn.Flatten(), nn.Linear(256, 5))


def test_classes_names_modes_and_flags_stay() -> None:
    model = small_network().train()
    model[1].body[0][1].eval()
    model[3].weight.requires_grad_(False)
    graph = lm.capture(model, (torch.zeros(1, 3, 8, 8),))
    small = lm.shrink(model, lm.Structure.keep(graph, {"1.body.0.0": [0, 2, 5]}))
    assert [(n, type(m)) for n, m in small.named_modules()] == [
        (n, type(m)) for n, m in model.named_modules()
    ]
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert list(small.state_dict()) == list(model.state_dict())
    assert not small[3].weight.requires_grad
    conv, norm, reader = small[1].body[0][0], small[1].body[0][1], small[1].body[1][0]
    assert (conv.out_channels, norm.num_features, reader.in_channels) == (3, 3, 3)
    assert torch.equal(conv.weight, model[1].body[0][0].weight[[0, 2, 5]])
    assert torch.equal(reader.weight, model[1].body[1][0].weight[:, [0, 2, 5]])


def test_the_model_itself_is_not_touched_and_shares_nothing() -> None:
    model = small_network()
    before = copy.deepcopy(model.state_dict())
    graph = lm.capture(model, (torch.zeros(1, 3, 8, 8),))
    small = lm.shrink(model, lm.Structure.keep(graph, {"0.0": [1, 2]}))
    with torch.no_grad():
        for p in small.parameters():
            p.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_shrunk_network_trains() -> None:
    model = small_network()
    graph = lm.capture(model, (torch.zeros(1, 3, 8, 8),))
    small = lm.shrink(model, lm.Structure.keep(graph, {"0.0": [1, 2], "1.body.0.0": [0]}))
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    loss = small.train()(torch.randn(4, 3, 8, 8)).square().sum()
    loss.backward()
    optimizer.step()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


def test_shrinking_twice_goes_on_from_the_smaller_network() -> None:
    model = small_network()
    x = (torch.zeros(1, 3, 8, 8),)
    once = lm.shrink(model, lm.Structure.keep(lm.capture(model, x), {"0.0": [1, 2, 3]}))
    twice = lm.shrink(once, lm.Structure.keep(lm.capture(once, x), {"0.0": [0, 2]}))
    assert torch.equal(twice[0][0].weight, model[0][0].weight[[1, 3]])


def test_a_structure_of_the_larger_network_does_not_fit_the_shrunk_one() -> None:
    model = small_network()
    structure = lm.Structure.keep(lm.capture(model, (torch.zeros(1, 3, 8, 8),)), {"0.0": [1, 2, 3]})
    with pytest.raises(lm.StructureError, match=r"0\.0.*8 indices.*shrunk already"):
        lm.shrink(lm.shrink(model, structure), structure)


def test_a_structure_of_another_model_is_refused_by_name() -> None:
    structure = lm.Structure.keep(
        lm.capture(small_network(), (torch.zeros(1, 3, 8, 8),)), {"1.body.0.0": [1, 2, 3]}
    )
    with pytest.raises(lm.StructureError, match=r"1\.body\.0\.0\.weight.*no such parameter"):
        lm.shrink(nn.Linear(3, 4), structure)


def test_a_forward_that_hard_codes_a_size_is_refused_with_what_to_do() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x).view(-1, 8 * 36))

    model, x = Fixed(), (torch.zeros(1, 3, 8, 8),)
    structure = lm.Structure.keep(lm.capture(model, x), {"a": [0, 1, 2]})
    with pytest.raises(lm.StructureError, match=r"Fixed\.forward does not accept the new sizes.*-1 instead"):
        lm.shrink(model, structure)
