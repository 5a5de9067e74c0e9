"""The regulariser: its value by hand, exact zeros, exact removal, targets met, clear refusals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import latmorph as lm
from latmorph.morph.controller import Controller
from oracle import largest_difference, randomise
from tools.networks import Branches, Inverted, Residual, ViT, conv_norm


def pair() -> nn.Module:
    """Two convolutions with a norm between: one group, of 4 channels."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1)
    )


X = (torch.zeros(1, 3, 8, 8),)


def test_the_term_by_hand() -> None:
    model = pair()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, 2.0, 0.5, 0.0]))
        model[1].bias.copy_(torch.tensor([0.0, 0.0, 0.5, 0.0]))
    regularizer = lm.Regularizer(model, X, lm.FlopCost(), strength=0.3)
    price = 2 * 64 * (9 * 3 + 5) / (2 * 64 * 4 * (9 * 3 + 5))  # of a channel, over the parent's cost
    mean_square = (1 + 4 + 0.5 + 0) / 4
    norms = np.sqrt(np.array([1.0, 4.0, 0.5, 0.0]) / mean_square)
    assert regularizer.loss().item() == pytest.approx(0.3 * price * norms.sum(), rel=1e-6)


def test_the_term_s_gradient_shrinks_scale_and_shift_towards_zero() -> None:
    model = pair()
    with torch.no_grad():
        model[1].bias.fill_(-0.5)
    regularizer = lm.Regularizer(model, X, lm.FlopCost(), strength=1.0)
    regularizer.loss().backward()
    assert bool((model[1].weight.grad > 0).all())
    assert bool((model[1].bias.grad < 0).all())
    assert model[0].weight.grad is None


def test_a_dead_channel_has_no_gradient_and_no_nan() -> None:
    model = pair()
    with torch.no_grad():
        model[1].weight[2] = 0
        model[1].bias[2] = 0
    regularizer = lm.Regularizer(model, X, lm.FlopCost(), strength=1.0)
    regularizer.loss().backward()
    assert model[1].weight.grad[2] == 0
    assert bool(torch.isfinite(model[1].weight.grad).all())


def test_dear_channels_are_shrunk_more_than_cheap_ones() -> None:
    """Two groups, one at four times the pixels of the other: prices stand in the ratio of the costs."""
    model = nn.Sequential(conv_norm(3, 4, 3), nn.MaxPool2d(2), conv_norm(4, 4, 3), conv_norm(4, 4, 3))
    regularizer = lm.Regularizer(model, X, lm.FlopCost(), strength=1.0)
    graph = regularizer.graph
    prices = {graph.groups[g].name: regularizer.prices[g] for g in graph.prunable}
    # conv 0 writes 64 pixels and is read at 16; conv 2 writes and is read at 16
    assert prices["0.0"] / prices["2.0"] == pytest.approx((64 * 27 + 16 * 36) / (16 * 36 + 16 * 36))


@pytest.mark.parametrize("importance", [0.5, 0.1])
def test_a_proximal_step_by_hand(importance: float) -> None:
    """Without gradients a step subtracts lr x strength x price from every channel's relative norm."""
    model = pair()
    with torch.no_grad():
        model[1].weight[1] = importance
    regularizer = lm.Regularizer(model, X, lm.FlopCost(), strength=2.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    regularizer.attach(optimizer)
    scale = np.sqrt((3 + importance**2) / 4)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    cut = 0.5 * 2.0 * 0.25
    expected = [max(0.0, g / scale - cut) * scale for g in (1.0, importance, 1.0, 1.0)]
    torch.testing.assert_close(model[1].weight.detach(), torch.tensor(expected, dtype=torch.float32))


class Mixed(nn.Module):
    """Sigmoid and squeeze-excite behind channels, so that a dead one does not arrive as zero."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv_norm(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 6, 3)
        self.norm = nn.BatchNorm2d(8, affine=False)
        self.down, self.up = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 6, 1)
        self.head = nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.sigmoid(self.b(self.a(x)))
        x = self.c(self.norm(x) + 1)
        x = x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.head(x.mean((2, 3)))


def cnn() -> nn.Module:
    return nn.Sequential(
        conv_norm(3, 8, 3),
        Residual(8, 8, 16, 2, False),
        Branches(conv_norm(16, 6, 1), Inverted(16, 10, 1, 3)),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def plain() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(512, 32), nn.Tanh(), nn.Linear(32, 10)),
    )


class Dense(nn.Module):
    """Concatenation before the norm, as in DenseNet: one norm's scale belongs to several groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * k) for k in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(6 + 4 * k, 4, 3, padding=1, bias=False) for k in range(2))
        self.head = nn.Linear(14, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = torch.cat([x, conv(torch.relu(norm(x)))], 1)
        return self.head(torch.relu(self.norms[2](x)).mean((2, 3)))


def vit() -> nn.Module:
    return ViT(image=8, patch=4, width=16, depth=2, heads=2, classes=10)


def optimizers() -> dict[str, Callable[[nn.Module], torch.optim.Optimizer]]:
    return {
        "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3),
        "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.003),
    }


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 3, 8, 8, generator=generator), torch.randint(0, 10, (64,), generator=generator)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.eval()


@pytest.mark.parametrize("optimizer", optimizers())
@pytest.mark.parametrize("make", [cnn, plain, vit, Mixed, Dense])
def test_removed_channels_are_exactly_zero_and_their_removal_changes_nothing(
    make: Callable[[], nn.Module], optimizer: str
) -> None:
    torch.manual_seed(0)
    model = make()
    randomise(model, 0)
    regularizer = lm.Regularizer(model, X, lm.FlopCost(), target=0.6, steps=60, every=3)
    opt = optimizers()[optimizer](model)
    regularizer.attach(opt)
    train(model, opt, 80)
    graph = regularizer.graph
    parameters = dict(model.named_parameters())
    removed = 0
    for g, alive in regularizer.alive.items():
        dead = np.flatnonzero(~alive.numpy())
        removed += len(dead)
        members = graph.groups[g].members
        scaled = {m.parameter.rpartition(".")[0] for m in members if m.role == "scale"}
        roles = ("scale", "shift") if scaled else ("output", "bias")
        for member in members:
            if member.role in roles:
                rows = parameters[member.parameter].detach().numpy().take(member.indices[dead].ravel(), 0)
                assert (rows == 0).all(), member.parameter
    assert removed > 0
    assert regularizer.fraction <= 0.6
    structure = regularizer.structure()
    small = lm.shrink(model, structure)
    assert sum(structure.widths.values()) == sum(graph.groups[g].width for g in graph.prunable) - removed
    assert lm.capture(small, X).flops <= 0.6 * graph.flops
    x = torch.randn(16, 3, 8, 8)
    assert largest_difference(model, small, (x,)) <= 1e-5


def test_the_target_is_met_closely_not_only_undercut() -> None:
    torch.manual_seed(0)
    model = cnn()
    regularizer = lm.Regularizer(model, X, lm.FlopCost(), target=0.5, steps=80, every=4)
    optimizer = optimizers()["sgd"](model)
    regularizer.attach(optimizer)
    train(model, optimizer, 100)
    dearest = max(lm.FlopCost().marginal(regularizer.graph, regularizer.graph.widths))
    assert 0.5 - dearest / regularizer.parent_cost <= regularizer.fraction <= 0.5


def test_a_target_that_training_has_not_reached_is_met_by_the_structure() -> None:
    model = cnn()
    regularizer = lm.Regularizer(model, X, lm.ParameterCost(), target=0.4, steps=1000)
    with pytest.warns(lm.LatmorphWarning, match="to 1.000 of the parent, the target is 0.4: 20 ch"):
        structure = regularizer.structure()
    small = lm.shrink(model, structure)
    assert sum(p.numel() for p in small.parameters()) <= 0.4 * sum(p.numel() for p in model.parameters())


def test_selection_removes_the_least_important_channels_of_a_group() -> None:
    model = pair()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.1, 2.0, 0.2, 1.0]))
    with pytest.warns(lm.LatmorphWarning, match="2 channels"):
        structure = lm.Regularizer(model, X, lm.FlopCost(), target=0.55).structure()
    assert structure.groups["0"].kept == (1, 3)


def test_the_classic_term_alone_drives_cheap_gains_out() -> None:
    torch.manual_seed(0)
    model = cnn()
    regularizer = lm.Regularizer(model, X, lm.FlopCost(), strength=20.0, every=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(32, 3, 8, 8, generator=generator), torch.randint(0, 10, (32,), generator=generator)
    first = regularizer.loss().item()
    for _ in range(60):
        optimizer.zero_grad()
        (nn.functional.cross_entropy(model(x), y) + regularizer.loss()).backward()
        optimizer.step()
    assert regularizer.loss().item() < 0.6 * first


def test_no_strength_changes_nothing() -> None:
    torch.manual_seed(0)
    models = [cnn() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for k, model in enumerate(models):
        optimizer = optimizers()["sgd"](model)
        if k:
            lm.Regularizer(model, X, lm.FlopCost(), strength=0.0).attach(optimizer)
        train(model, optimizer, 5)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_last_channel_of_a_group_stays() -> None:
    model = pair()
    regularizer = lm.Regularizer(model, X, lm.FlopCost(), strength=1e6)
    optimizer = optimizers()["sgd"](model)
    regularizer.attach(optimizer)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for _ in range(3):
        optimizer.step()
    assert [int(mask.sum()) for mask in regularizer.alive.values()] == [1]
    assert len(regularizer.structure().groups["0"].kept) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({}, lm.UsageError, "either strength= or target="),
        ({"strength": 1.0, "target": 0.5}, lm.UsageError, "either strength= or target="),
        ({"strength": -1.0}, lm.UsageError, "must not be negative, got -1"),
        ({"target": 0.0}, lm.UsageError, "between 0 and 1, got 0"),
        ({"target": 1.5}, lm.UsageError, "between 0 and 1, got 1.5"),
        ({"target": 0.5, "steps": 0}, lm.UsageError, "at least 1"),
        ({"target": 0.01}, lm.TargetError, "as few channels left in every group.*above the target of 0.01"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    arguments: dict[str, float], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        lm.Regularizer(pair(), X, lm.FlopCost(), **arguments)


def test_a_network_without_removable_channels_is_refused_with_the_reasons() -> None:
    with pytest.raises(lm.UsageError, match=r"no channel of Linear can be removed.*the network's output"):
        lm.Regularizer(nn.Linear(3, 4), (torch.zeros(1, 3),), lm.FlopCost(), strength=1.0)


def test_an_optimizer_of_another_model_and_a_second_attach_are_refused() -> None:
    model = pair()
    regularizer = lm.Regularizer(model, X, lm.FlopCost(), strength=1.0)
    with pytest.raises(lm.UsageError, match="does not hold the parameters of 0"):
        regularizer.attach(torch.optim.SGD(pair().parameters(), lr=0.1))
    regularizer.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(lm.UsageError, match="attached already"):
        regularizer.attach(torch.optim.SGD(model.parameters(), lr=0.1))


def test_the_controller_follows_a_straight_line_to_the_target() -> None:
    controller = Controller(target=0.4, steps=100, strength=1.0, gain=2.0)
    assert [controller.wanted(s) for s in (0, 50, 100, 1000)] == pytest.approx([1.0, 0.7, 0.4, 0.4])
    controller.update(50, 0.8)
    assert controller.strength == 2.0
    controller.update(50, 0.6)
    assert controller.strength == 1.0
