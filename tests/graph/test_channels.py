"""Channel groups: the masked twin agrees with the rebuilt network, and members are the ones expected."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import latmorph as lm
from oracle import largest_difference, masked_twin, random_kept, randomise
from tools.networks import NETWORKS, Branches, Residual, ViT, conv_norm

DRAWS, MANY = 1, 20


def check(model: nn.Module, x: torch.Tensor, seed: int, draws: int, tolerance: float = 1e-5) -> None:
    """The oracle, on random removals, with random batch norm statistics."""
    randomise(model, seed)
    graph = lm.capture(model, (x,))
    random = np.random.default_rng(seed)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(draws):
        kept = random_kept(graph, random)
        small = lm.shrink(model, lm.Structure.keep(graph, kept))
        assert largest_difference(masked_twin(model, graph, kept), small, (x,)) <= tolerance
    shrunk = lm.capture(small, (x,))
    promised = lm.ParameterCost().total(graph, lm.Structure.keep(graph, kept).widths_of(graph))
    assert shrunk.parameters == sum(p.numel() for p in small.parameters()) == promised
    for g in graph.prunable:
        removed = graph.groups[g].width - len(kept[graph.groups[g].name])
        for member in graph.groups[g].members:
            if member.role == "scale":  # of one group only, unlike what reads a concatenation
                sizes = (before[member.parameter].shape[0], small.state_dict()[member.parameter].shape[0])
                assert sizes[0] - sizes[1] >= removed * member.indices.shape[1]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


SIZES = {"Inception v3": 96, "VGG-16": 64, "ViT-S/16": 224}
"""Image sizes that keep the test short; convolutions do not care, ViT's positions do."""


@pytest.mark.parametrize("name", NETWORKS)
def test_rebuilt_networks_equal_their_masked_twins(name: str, fresh_seed: int) -> None:
    torch.manual_seed(fresh_seed)
    size = SIZES.get(name, 96)
    check(NETWORKS[name](), torch.randn(1, 3, size, size), fresh_seed, DRAWS)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_rebuilt_networks_equal_their_masked_twins_at_full_size(name: str, fresh_seed: int) -> None:
    torch.manual_seed(fresh_seed)
    check(NETWORKS[name](), torch.randn(1, 3, 224, 224), fresh_seed, MANY)


def test_the_oracle_holds_in_double_precision_to_1e_9(fresh_seed: int) -> None:
    torch.manual_seed(fresh_seed)
    model = nn.Sequential(conv_norm(3, 12, 3), Residual(12, 7, 16, 2, True), nn.Flatten(), nn.Linear(256, 5))
    check(model.double(), torch.randn(2, 3, 8, 8, dtype=torch.float64), fresh_seed, 5, 1e-9)


def test_a_wrong_removal_is_seen_by_the_oracle() -> None:
    """The oracle can fail: rebuilding with other channels than the twin masks does not agree."""
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(5, 4)
    graph = lm.capture(model, (x,))
    small = lm.shrink(model, lm.Structure.keep(graph, {"0": [0, 1, 2, 3]}))
    assert largest_difference(masked_twin(model, graph, {"0": [0, 1, 2, 4]}), small, (x,)) > 1e-3


def described(graph: lm.Graph, name: str) -> dict[tuple[str, int, str], list[list[int]]]:
    group = graph.groups[graph.group(name)]
    return {(m.parameter, m.axis, m.role): m.indices.tolist() for m in group.members}


def test_a_residual_block_ties_its_ends_and_frees_its_middle() -> None:
    model = nn.Sequential(conv_norm(3, 4, 3), Residual(4, 5, 4, 1, False), nn.Flatten(), nn.Linear(64, 2))
    graph = lm.capture(model, (torch.zeros(1, 3, 4, 4),))
    inner = described(graph, "1.body.0.0")
    column = [[i] for i in range(5)]
    assert inner == {
        ("1.body.0.0.weight", 0, "output"): column,
        ("1.body.0.1.weight", 0, "scale"): column,
        ("1.body.0.1.bias", 0, "shift"): column,
        ("1.body.0.1.running_mean", 0, "statistic"): column,
        ("1.body.0.1.running_var", 0, "statistic"): column,
        ("1.body.1.0.weight", 1, "input"): column,
    }
    outer = described(graph, "0.0")
    assert ("1.body.1.0.weight", 0, "output") in outer
    assert ("1.body.0.0.weight", 1, "input") in outer
    # Flatten: channel c owns its 4 x 4 pixels, in one run.
    assert outer[("3.weight", 1, "input")] == [list(range(16 * c, 16 * c + 16)) for c in range(4)]
    assert {g.name: g.frozen is None for g in graph.groups} == {
        "0.0:input": False,
        "0.0": True,
        "1.body.0.0": True,
        "3": False,
    }


def test_a_concatenation_shifts_the_indices_of_what_comes_later() -> None:
    model = nn.Sequential(Branches(nn.Conv2d(3, 2, 1), nn.Conv2d(3, 3, 1)), nn.Conv2d(5, 4, 1))
    graph = lm.capture(model, (torch.zeros(1, 3, 4, 4),))
    assert described(graph, "0.branches.0")[("1.weight", 1, "input")] == [[0], [1]]
    assert described(graph, "0.branches.1")[("1.weight", 1, "input")] == [[2], [3], [4]]


def test_a_depthwise_convolution_passes_channels_through() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 2, 1))
    x = torch.randn(1, 3, 6, 6)
    graph = lm.capture(model, (x,))
    members = described(graph, "0")
    assert members[("1.weight", 0, "output")] == [[0, 1], [2, 3], [4, 5], [6, 7]]  # multiplier 2
    assert members[("2.weight", 1, "input")] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    small = lm.shrink(model, lm.Structure.keep(graph, {"0": [1, 3]}))
    assert (small[1].groups, small[1].in_channels, small[1].out_channels) == (2, 2, 4)
    check(model, x, 0, 5)


def test_a_grouped_convolution_loses_whole_groups_or_as_many_channels_of_each() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(12, 2, 1))
    x = torch.randn(1, 3, 6, 6)
    graph = lm.capture(model, (x,))
    groups, each, made = (
        [g.name for g in graph.groups if g.frozen is None and g.width == w] for w in (4, 2, 3)
    )
    assert described(graph, groups[0])[("0.weight", 0, "output")] == [[2 * k, 2 * k + 1] for k in range(4)]
    assert described(graph, groups[0])[("1.weight", 0, "output")] == [
        [3 * k, 3 * k + 1, 3 * k + 2] for k in range(4)
    ]
    assert described(graph, each[0])[("0.weight", 0, "output")] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert described(graph, each[0])[("1.weight", 1, "input")] == [[0], [1]]
    assert described(graph, made[0])[("1.weight", 0, "output")] == [
        [0, 3, 6, 9],
        [1, 4, 7, 10],
        [2, 5, 8, 11],
    ]
    small = lm.shrink(model, lm.Structure.keep(graph, {each[0]: [1], made[0]: [0, 2]}))
    assert (small[1].groups, small[1].in_channels, small[1].out_channels) == (4, 4, 8)
    small = lm.shrink(model, lm.Structure.keep(graph, {groups[0]: [0, 1, 3], made[0]: [0, 2]}))
    assert (small[1].groups, small[1].in_channels, small[1].out_channels) == (3, 6, 6)
    check(model, x, 0, 5)


def test_a_transformer_s_heads_and_their_widths_are_free_and_the_stream_says_why_not() -> None:
    model = ViT(image=32, patch=8, width=24, depth=2, heads=3)
    graph = lm.capture(model, (torch.zeros(1, 3, 32, 32),))
    widths = {graph.groups[g].name: graph.groups[g].width for g in graph.prunable}
    expected = {"attention.qkv": 3, "attention.qkv:2": 8, "attention.qkv:3": 8, "mlp.0": 96}
    assert widths == {f"blocks.{b}.{name}": width for b in range(2) for name, width in expected.items()}
    weight = ("blocks.0.attention.qkv.weight", 0, "output")
    heads = described(graph, "blocks.0.attention.qkv")[weight]
    # Query, key and value of head h: rows 24 * which + 8 * h + d.
    assert heads[1] == [24 * which + 8 + d for which in range(3) for d in range(8)]
    dots, values = (described(graph, f"blocks.0.attention.qkv:{k}") for k in (2, 3))
    assert dots[weight][5] == [24 * which + 8 * h + 5 for which in range(2) for h in range(3)]
    assert values[weight][5] == [48 + 8 * h + 5 for h in range(3)]
    assert ("blocks.0.attention.out.weight", 1, "input") not in dots
    assert values[("blocks.0.attention.out.weight", 1, "input")][5] == [5, 13, 21]
    (stream,) = [
        g
        for g in graph.groups
        if any(m.parameter == "blocks.0.mlp.2.weight" and m.axis == 0 for m in g.members)
    ]
    assert stream.frozen is not None
    assert "layer_norm" in stream.frozen


def test_a_network_rewritten_from_its_graph_trains_takes_any_batch_and_exports() -> None:
    torch.manual_seed(0)
    model = ViT(image=32, patch=8, width=24, depth=2, heads=3)
    graph = lm.capture(model, (torch.zeros(1, 3, 32, 32),))
    small = lm.shrink(model.train(), lm.Structure.keep(graph, {"blocks.0.attention.qkv": [0, 2]}))
    assert small.training
    assert isinstance(small.get_submodule("blocks.0.attention.qkv"), nn.Linear)
    assert small.get_submodule("blocks.0.attention.qkv").out_features == 48
    assert isinstance(small.norm, nn.LayerNorm)
    assert set(small.state_dict()) == set(model.state_dict())
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    x = torch.randn(5, 3, 32, 32)
    before = small(x)
    before.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in small.parameters())
    optimizer.step()
    assert not torch.equal(before, small(x))
    again = lm.capture(small, (x,))
    assert again.parameters == sum(p.numel() for p in small.parameters())
    twice = lm.shrink(small, lm.Structure.keep(again, {"blocks.1.attention.qkv": [1]}))
    assert twice(x[:2]).shape == (2, 1000)


def frozen_reason(model: nn.Module, x: torch.Tensor, name: str) -> str:
    graph = lm.capture(model, (x,))
    reason = graph.groups[graph.group(name)].frozen
    assert reason is not None
    return reason


class Function(nn.Module):
    """Linear, a function over its channels, linear."""

    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor], width: int = 6) -> None:
        super().__init__()
        self.first, self.second, self.between = nn.Linear(4, 6), nn.Linear(width, 3), between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.between(self.first(x)))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Function(lambda x: x.softmax(-1)), "softmax runs over"),
        (Function(lambda x: torch.nn.functional.layer_norm(x, (6,))), "layer_norm takes its statistics"),
        (Function(lambda x: x * x[..., :1]), "one of these channels is read by itself"),
        (Function(lambda x: x / (x * x)), "divided by"),
        (Function(lambda x: torch.nn.functional.pad(x, (1, 1), "circular"), 8), "goes on along"),
        (Function(lambda x: x.cumsum(-1)), "cumsum runs over"),
        (Function(lambda x: x.mean(-1, keepdim=True).expand(-1, 6)), "mean runs over"),
    ],
)
def test_what_cannot_be_removed_says_why(model: nn.Module, says: str) -> None:
    assert says in frozen_reason(model, torch.randn(2, 4), "first")


def test_a_grid_of_positions_that_is_resized_is_no_channels() -> None:
    class Positions(nn.Module):
        """Positions learned on a grid of 4 x 4, read on one of 6 x 6."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 2, 1)
            self.grid = nn.Parameter(torch.randn(1, 16, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            grid = self.grid.mT.view(1, 5, 4, 4)
            return self.b(self.a(x) + nn.functional.interpolate(grid, (6, 6), mode="bicubic"))

    model, x = Positions(), torch.randn(2, 3, 6, 6)
    graph = lm.capture(model, (x,))
    assert [graph.groups[g].name for g in graph.prunable] == ["a"]
    assert any("works along these channels" in (g.frozen or "") for g in graph.groups)
    check(model, x, 0, 3)


class Standardised(nn.Module):
    """A convolution and a linear layer whose weights are computed from parameters in every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(6, 4, 3, 3))
        self.last = nn.Conv2d(6, 5, 1)
        self.matrix = nn.Parameter(torch.randn(2, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.conv2d(self.first(x), self.weight - self.weight.mean((1, 2, 3), keepdim=True))
        return nn.functional.linear(self.last(x).mean((2, 3)), self.matrix * 2)


def test_computed_weights_free_what_they_keep_apart() -> None:
    model, x = Standardised(), torch.randn(1, 3, 8, 8)
    graph = lm.capture(model, (x,))
    assert "mean runs over" in (graph.groups[graph.group("first")].frozen or "")
    assert {graph.groups[g].name for g in graph.prunable} == {"weight", "last"}
    check(model, x, 0, 5)


def test_weight_norm_keeps_rows_apart() -> None:
    norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(norm(nn.Conv2d(3, 4, 3)), nn.ReLU(), norm(nn.Conv2d(4, 2, 3)))
    graph = lm.capture(model, (torch.randn(1, 3, 8, 8),))
    assert graph.prunable == ()  # the second layer takes the length of what it reads with


def test_spectral_norm_is_named() -> None:
    norm = nn.utils.parametrizations.spectral_norm
    model = nn.Sequential(norm(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Conv2d(4, 2, 3))
    graph = lm.capture(model, (torch.randn(1, 3, 8, 8),), allow_unknown=True)
    assert graph.prunable == ()


def test_inputs_and_outputs_are_frozen_and_say_so() -> None:
    graph = lm.capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)), (torch.zeros(1, 3, 8, 8),))
    reasons = [g.frozen for g in graph.groups if g.frozen]
    assert any("reads the network's input" in r for r in reasons)
    assert any("the network's output" in r for r in reasons)
    assert len(graph.prunable) == 1


def test_an_output_in_the_middle_freezes_what_it_shows() -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.a(x)
            return y, self.b(y)

    assert frozen_reason(Features(), torch.zeros(1, 3), "a") == "the network's output"


def test_weights_used_twice_shrink_in_both_places() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.loop, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            return self.last(self.loop(torch.relu(self.loop(x))))

    check(Twice(), torch.randn(3, 4), 0, 5)


def test_tied_parameters_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.c.weight = self.b.weight
            self.d = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.d(self.c(torch.relu(self.b(torch.relu(self.a(x))))))

    model, x = Tied(), torch.randn(3, 4)
    graph = lm.capture(model, (x,))
    kept = random_kept(graph, np.random.default_rng(0))
    small = lm.shrink(model, lm.Structure.keep(graph, kept))
    assert small.c.weight is small.b.weight
    assert largest_difference(masked_twin(model, graph, kept), small, (x,)) < 1e-5


def test_rows_that_are_read_by_index_stay_and_so_does_what_a_tied_head_makes_of_them() -> None:
    class Tied(nn.Module):
        """Words, and a layer that reads how like each word the sum is, by the same weights."""

        def __init__(self) -> None:
            super().__init__()
            self.words, self.last = nn.Embedding(7, 6), nn.Linear(7, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.relu(nn.functional.linear(self.words(x).sum(1), self.words.weight)))

    model, x = Tied(), torch.arange(7).view(1, 7)
    graph = lm.capture(model, (x,))
    assert [(graph.groups[g].name, graph.groups[g].width) for g in graph.prunable] == [("words:2", 6)]
    assert any("embedding reads these by index" in (g.frozen or "") for g in graph.groups)
    check(model, x, 0, 5)


def test_a_squeeze_excite_gate_shrinks_with_what_it_gates() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
            self.b = nn.Conv2d(8, 2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.a(x))
            gate = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))
            return self.b(x * gate)

    check(Gated(), torch.randn(2, 3, 8, 8), 0, 10)
