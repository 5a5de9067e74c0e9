"""Groups at zero: operators fall away, constants are folded, and a network is not cut in two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import latmorph as lm
from oracle import largest_difference, masked_twin, randomise
from tools.networks import Branches, Residual, ViT, conv_norm


def emptied(
    model: nn.Module, x: torch.Tensor, names: Sequence[str], more: Mapping[str, Sequence[int]] | None = None
) -> tuple[lm.Graph, nn.Module]:
    """The graph, and the network without these groups, which agrees with its masked twin."""
    model, x = model.double(), x.double()
    randomise(model, 0)
    graph = lm.capture(model, (x,))
    kept = {**dict.fromkeys(names, ()), **(more or {})}
    small = lm.shrink(model, lm.Structure.keep(graph, kept))
    twin = masked_twin(model, graph, kept)
    assert largest_difference(model, twin, (x,)) > 1e-3  # what is removed did something
    assert largest_difference(twin, small, (x,)) <= 1e-9
    assert len(lm.capture(small, (x,)).nodes) < len(graph.nodes)
    assert small(torch.cat([x, x, x])).shape[0] == 3 * len(x)
    return graph, small


def operators(model: nn.Module, x: torch.Tensor) -> list[str]:
    return [node.spec.kind for node in lm.capture(model, (x.double(),)).nodes]


IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def residual() -> nn.Module:
    blocks = (Residual(8, 6, 8, 1, False), Residual(8, 5, 8, 1, True))
    return nn.Sequential(conv_norm(3, 8, 3), *blocks, nn.Flatten(), nn.Linear(512, 5))


def test_a_residual_block_falls_away_and_leaves_the_shortcut() -> None:
    _, small = emptied(residual(), IMAGE, ["1.body.0.0"])
    kinds = operators(small, IMAGE)
    # Stem, and three convolutions of the other block; a sum with what the last norm's shift was is left.
    assert kinds.count("conv2d") == 4
    assert kinds.count("add") == 2
    assert kinds.count("batch_norm") == 4


class Plain(nn.Module):
    """A residual block without biases and norms: nothing is what it adds without its inner channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.b(torch.relu(self.a(x)))


def test_a_block_that_adds_zero_leaves_no_sum() -> None:
    model = nn.Sequential(conv_norm(3, 8, 3), Plain(), Plain(), nn.Flatten(), nn.Linear(512, 5))
    _, small = emptied(model, IMAGE, ["1.a"])
    assert operators(small, IMAGE).count("add") == 1


@pytest.mark.parametrize(
    "names", [["1.body.0.0"], ["3.branches.1.0.0"], ["1.body.0.0", "2.body.0.0", "3.branches.0.0"]]
)
def test_a_structure_file_and_a_state_dict_bring_it_back(names: list[str], tmp_path: Path) -> None:
    def network() -> nn.Module:
        branches = Branches(conv_norm(8, 4, 1), nn.Sequential(conv_norm(8, 5, 1), conv_norm(5, 6, 3)))
        blocks = (Residual(8, 6, 8, 1, False), Residual(8, 5, 8, 1, True))
        return nn.Sequential(conv_norm(3, 8, 3), *blocks, branches, nn.Flatten(), nn.Linear(640, 5)).double()

    model = network()
    _, small = emptied(model, IMAGE, names)
    lm.Structure.keep(lm.capture(model, (IMAGE.double(),)), dict.fromkeys(names, ())).save(
        tmp_path / "s.json"
    )
    torch.save(small.state_dict(), tmp_path / "weights.pt")
    for weights in (True, False):
        # In an untrained network shifts are zero, and constants another.
        again = lm.shrink(network(), lm.Structure.load(tmp_path / "s.json"), weights=weights)
        again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
        assert largest_difference(small, again, (IMAGE.double(),)) == 0
        assert operators(again, IMAGE) == operators(small, IMAGE)


def test_what_is_left_in_the_place_of_a_sum_is_not_written_to_behind_its_readers_backs() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (
                nn.Conv2d(3, 4, 1),
                nn.Conv2d(4, 4, 1, bias=False),
                nn.Conv2d(4, 4, 1, bias=False),
            )
            self.last = nn.Conv2d(8, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            y = F.relu(x + self.c(self.b(x)), inplace=True)
            return self.last(torch.cat([x, y], 1))

    emptied(Skips(), IMAGE, ["b"])


def test_a_branch_disappears_and_its_concatenation_shrinks() -> None:
    branches = Branches(
        conv_norm(3, 4, 1), nn.Sequential(conv_norm(3, 5, 1), conv_norm(5, 6, 3)), nn.MaxPool2d(3, 1, 1)
    )
    model = nn.Sequential(conv_norm(3, 3, 1), branches, conv_norm(13, 7, 3), nn.Flatten(), nn.Linear(448, 2))
    _, small = emptied(model, IMAGE, ["1.branches.1.1.0"])
    assert small.get_submodule("2.0").in_channels == 7
    assert operators(small, IMAGE).count("conv2d") == 3
    _, small = emptied(model, IMAGE, ["1.branches.1.1.0", "1.branches.0.0"])
    assert "cat" not in operators(small, IMAGE)


def test_a_branch_that_dies_in_its_middle_becomes_a_constant() -> None:
    inner = nn.Sequential(conv_norm(3, 5, 1), conv_norm(5, 6, 3), conv_norm(6, 4, 3))
    model = nn.Sequential(conv_norm(3, 3, 1), Branches(conv_norm(3, 4, 1), inner), conv_norm(8, 7, 3))
    # Behind a padded convolution the constant differs along the edges.
    _, small = emptied(model, IMAGE, ["1.branches.1.0.0"])
    assert operators(small, IMAGE).count("conv2d") == 3


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.down, self.up = conv_norm(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.b = nn.Conv2d(8, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        gate = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.b(x * gate)


def test_a_squeeze_excite_gate_becomes_a_constant() -> None:
    _, small = emptied(Gated(), IMAGE, ["down"], {"a.0": [0, 2, 3, 7]})
    kinds = operators(small, IMAGE)
    assert kinds.count("conv2d") == 2
    assert "sigmoid" not in kinds
    assert "mul" in kinds


def test_copies_that_become_fewer_beside_a_group_at_zero_are_of_any_batch() -> None:
    class Copies(nn.Module):
        """The input written twice, each copy with weights of its own, and a block that can fall away."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.last = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.unsqueeze(1).expand(-1, 2, -1, -1, -1).flatten(1, 2)
            return self.last(x + self.b(self.a(x).relu()))

    emptied(Copies(), IMAGE, ["a"], {"b": [1]})


def test_heads_and_a_hidden_layer_of_a_transformer_can_go() -> None:
    model, x = ViT(image=16, patch=8, width=12, depth=2, heads=2, classes=5), torch.randn(2, 3, 16, 16)
    _, small = emptied(model, x, ["blocks.0.attention.qkv", "blocks.1.mlp.0"])
    kinds = operators(small, x)
    assert kinds.count("scaled_dot_product_attention") == 1
    assert kinds.count("gelu") == 1


@pytest.mark.parametrize(
    ("model", "x", "names", "says"),
    [
        (residual(), IMAGE, ["0.0"], r"group '0\.0' at zero cuts the network in two"),
        (
            nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5)),
            torch.randn(2, 3),
            ["0"],
            r"group '0' at zero cuts",
        ),
        (
            ViT(image=16, patch=8, width=12, depth=1, heads=2),
            torch.randn(2, 3, 16, 16),
            ["blocks.0.attention.qkv:2"],
            r"group 'blocks\.0\.attention\.qkv:2' can't be at zero: .*attention",
        ),
    ],
)
def test_what_cannot_be_at_zero_is_refused_by_name(
    model: nn.Module, x: torch.Tensor, names: list[str], says: str
) -> None:
    graph = lm.capture(model, (x,))
    with pytest.raises(lm.StructureError, match=says):
        lm.shrink(model, lm.Structure.keep(graph, dict.fromkeys(names, ())))
