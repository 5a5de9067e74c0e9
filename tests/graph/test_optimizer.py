"""Optimiser state follows: the smaller network goes on as the larger one would have."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import latmorph as lm
from oracle import masked_twin, random_kept
from tools.networks import ViT, conv_norm

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
}


def network() -> nn.Module:
    """Convolutions with batch norm: shrunk, it is of the same classes."""
    return nn.Sequential(conv_norm(3, 8, 3), conv_norm(8, 6, 3), nn.Flatten(), nn.Linear(384, 5))


def transformer() -> nn.Module:
    """Heads and all: shrunk, it is written anew."""
    return ViT(image=8, patch=4, width=12, depth=1, heads=3, classes=5)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    optimizer.zero_grad()
    model.eval()(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("build", [network, transformer])
def test_steps_after_shrinking_are_those_of_the_masked_twin(
    build: Callable[[], nn.Module], name: str
) -> None:
    torch.manual_seed(0)
    model, x = build().double(), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    optimizer = OPTIMIZERS[name](model.parameters())
    for _ in range(3):
        step(model, optimizer, x)
    graph = lm.capture(model, (x,))
    kept = random_kept(graph, np.random.default_rng(0), 0.4)

    twin = masked_twin(model, graph, kept)
    its_own = OPTIMIZERS[name](twin.parameters())
    its_own.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    small = lm.shrink(model, lm.Structure.keep(graph, kept), optimizer=optimizer)
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in small.parameters()}
    # One step: from then on what the twin's zeros become is no business of the smaller network's.
    step(twin, its_own, x)
    step(small, optimizer, x)
    wanted = lm.shrink(twin, lm.Structure.keep(graph, kept)).state_dict()
    for key, value in small.state_dict().items():
        assert torch.allclose(value, wanted[key], atol=1e-12), key


def test_settings_of_parameter_groups_stay_and_what_is_gone_is_left_out() -> None:
    model, x = network(), torch.randn(2, 3, 8, 8)
    biases = [p for p in model.parameters() if p.ndim == 1]
    others = [p for p in model.parameters() if p.ndim > 1]
    optimizer = torch.optim.SGD([{"params": biases, "lr": 0.5}, {"params": others}], lr=0.1, momentum=0.9)
    step(model, optimizer, x)
    graph = lm.capture(model, (x,))
    small = lm.shrink(model, lm.Structure.keep(graph, {"0.0": [1, 2]}), optimizer=optimizer)
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.1]
    assert all(p.ndim == 1 for p in optimizer.param_groups[0]["params"])
    assert optimizer.state[small[0][0].weight]["momentum_buffer"].shape == small[0][0].weight.shape


def test_state_of_another_shape_starts_anew_and_says_so() -> None:
    model, x = network(), torch.randn(2, 3, 8, 8)
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    step(model, optimizer, x)
    graph = lm.capture(model, (x,))
    with pytest.warns(lm.LatmorphWarning, match=r"0\.0\.weight.*starts anew"):
        small = lm.shrink(model, lm.Structure.keep(graph, {"0.0": [1, 2]}), optimizer=optimizer)
    step(small, optimizer, x)
