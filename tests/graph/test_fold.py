"""Constants of removed channels go into the biases of what reads them; what else moves is told."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

import latmorph as lm
from oracle import largest_difference, randomise

REMOVED = (0, 3, 4)
WIDTH = 6


def killed(model: nn.Module, names: tuple[str, ...]) -> None:
    """Zero the rows of REMOVED in these parameters, and nothing else: not the biases."""
    held = dict(model.named_parameters())
    with torch.no_grad():
        for name in names:
            held[name][list(REMOVED)] = 0.0


def shrunk(model: nn.Module, x: torch.Tensor, group: str) -> nn.Module:
    graph = lm.capture(model, (x,))
    kept = [c for c in range(WIDTH) if c not in REMOVED]
    return lm.shrink(model, lm.Structure.keep(graph, {group: kept}))


def conv(inputs: int, outputs: int, size: int, **more: object) -> nn.Module:
    return nn.Conv2d(inputs, outputs, size, **more)


FOLDED: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...], str]] = {
    "bias": (lambda: nn.Sequential(conv(3, 6, 3), nn.SiLU(), conv(6, 4, 3)), ("0.weight",), "0"),
    "shift": (
        lambda: nn.Sequential(conv(3, 6, 3), nn.BatchNorm2d(6), nn.Sigmoid(), conv(6, 4, 1)),
        ("1.weight",),
        "0",
    ),
    "bias behind a norm": (
        lambda: nn.Sequential(conv(3, 6, 3), nn.BatchNorm2d(6), nn.GELU(), conv(6, 4, 1)),
        ("0.weight",),
        "0",
    ),
    "depthwise": (
        lambda: nn.Sequential(conv(3, 6, 3), nn.Tanh(), conv(6, 6, 3, groups=6), conv(6, 4, 1)),
        ("0.weight",),
        "0",
    ),
    "pooled": (
        lambda: nn.Sequential(
            conv(3, 6, 3), nn.Tanh(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5)
        ),
        ("0.weight",),
        "0",
    ),
    "into the running mean": (
        lambda: nn.Sequential(
            conv(3, 6, 3), nn.ReLU6(), conv(6, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 2, 1)
        ),
        ("0.weight",),
        "0",
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_the_outputs_stay_where_a_constant_can_go_into_a_bias(name: str) -> None:
    build, zero, group = FOLDED[name]
    torch.manual_seed(0)
    model, x = build().double(), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    randomise(model, 0)
    killed(model, zero)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error", lm.LatmorphWarning)
        small = shrunk(model, x, group)
    assert largest_difference(model, small, (x,)) <= 1e-12
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    # And it was the folding: without the removed constants the outputs would be others.
    with torch.no_grad():
        for key in ("0.bias", "1.bias"):
            if key in dict(model.named_parameters()):
                model.get_parameter(key)[list(REMOVED)] = 0.0
    if "shift" not in name:
        assert largest_difference(model, small, (x,)) > 1e-4


class Two(nn.Module):
    """Two layers read the same constants, and one of them is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(self.a(x))
        return self.b(y) * self.c(y)


def test_every_reader_gets_its_own_constant() -> None:
    torch.manual_seed(0)
    model, x = Two().double(), torch.randn(5, 3, dtype=torch.float64)
    killed(model, ("a.weight",))
    assert largest_difference(model, shrunk(model, x, "a"), (x,)) <= 1e-12


def test_a_group_at_zero_leaves_its_constants() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))

    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body, self.head = nn.Linear(3, 4), body, nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.head(x + self.body(x))

    model, x = Shortcut().double(), torch.randn(5, 3, dtype=torch.float64)
    with torch.no_grad():
        model.body[0].weight.zero_()
    graph = lm.capture(model, (x,))
    with warnings.catch_warnings():
        warnings.simplefilter("error", lm.LatmorphWarning)
        small = lm.shrink(model, lm.Structure.keep(graph, {"body.0": []}))
    assert largest_difference(model, small, (x,)) <= 1e-12


@pytest.mark.parametrize(
    ("tail", "moves"),
    [
        (conv(6, 4, 3, padding=1), "0.weight"),  # edges read zeros in the constant's place
        (nn.ConvTranspose2d(6, 4, 2, 2), "0.weight"),  # each of four places has a weight of its own
        (conv(6, 4, 3, bias=False), "0.weight"),  # nowhere to put it
        (conv(6, 4, 1), ""),  # what is removed is no constant at all
    ],
)
def test_by_how_much_outputs_move_is_measured_and_told(tail: nn.Module, moves: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(conv(3, 6, 3), nn.Tanh(), tail), torch.randn(2, 3, 9, 9)
    killed(model, (moves,) if moves else ())
    with pytest.warns(lm.LatmorphWarning, match="outputs differ from the model's by up to 0"):
        small = shrunk(model, x, "0")
    assert largest_difference(model, small, (x,)) > 1e-4


def test_away_from_edges_a_padded_constant_is_what_it_was() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(conv(3, 6, 3), nn.Tanh(), conv(6, 4, 3, padding=1)), torch.randn(2, 3, 9, 9)
    killed(model, ("0.weight",))
    with pytest.warns(lm.LatmorphWarning):
        small = shrunk(model, x, "0")
    with torch.no_grad():
        torch.testing.assert_close(model(x)[..., 1:-1, 1:-1], small(x)[..., 1:-1, 1:-1])


def test_what_a_data_dependent_choice_hides_is_no_constant() -> None:
    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 6, bias=False), nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return self.b(torch.where(x.sum(1, keepdim=True) > 0, y + 1.0, y + 2.0))

    torch.manual_seed(0)
    model, x = Chosen().double(), torch.randn(5, 3, dtype=torch.float64)
    killed(model, ("a.weight",))
    with pytest.warns(lm.LatmorphWarning, match="outputs differ"):
        shrunk(model, x, "a")


def test_without_numbers_nothing_is_computed() -> None:
    with torch.device("meta"):
        model, x = nn.Sequential(conv(3, 6, 3), nn.Tanh(), conv(6, 4, 3)), torch.randn(2, 3, 9, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error", lm.LatmorphWarning)
        assert shrunk(model, x, "0")[2].weight.shape == (4, 3, 3, 3)
