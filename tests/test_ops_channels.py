"""Channel rules of the operators beside convolution and batch norm, by the masked twin and by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import latmorph as lm
from oracle import largest_difference, masked_twin, random_kept, randomise


class Then(nn.Module):
    """A layer, a function of what it makes, and a layer that reads that."""

    def __init__(self, first: nn.Module, middle: Callable[..., Any] | nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.first, self.last = first, last
        self.middle = middle

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(self.middle(self.first(x)))
        return y


class First(nn.Module):
    def forward(self, x: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return x[0]


class Conv1D(nn.Module):
    """A linear layer as GPT-2 has it: the weight lies the other way, and the width stands beside it."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.nf = width
        self.weight = nn.Parameter(torch.randn(inner, width))
        self.bias = nn.Parameter(torch.randn(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = (*x.shape[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(size)


class Wider(nn.Module):
    """A residual block whose shortcut is padded with zeros, as ResNets for small pictures have it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(4, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x, (0, 0, 0, 0, 2, 2)) + self.body(x)


IMAGE, SOUND, VIDEO = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 16), torch.randn(2, 3, 4, 8, 8)


def conv(width: int) -> nn.Module:
    return nn.Conv2d(3, width, 3, padding=1)


def last(width: int) -> nn.Module:
    return nn.Conv2d(width, 2, 1)


NETWORKS: dict[str, tuple[nn.Module, torch.Tensor]] = {
    "transposed": (Then(conv(6), nn.ConvTranspose2d(6, 5, 3, 2, 1), last(5)), IMAGE),
    "transposed without bias": (Then(conv(6), nn.ConvTranspose2d(6, 5, 2, 2, bias=False), last(5)), IMAGE),
    "transposed in groups": (Then(conv(6), nn.ConvTranspose2d(6, 8, 3, groups=2), last(8)), IMAGE),
    "transposed depthwise": (Then(conv(6), nn.ConvTranspose2d(6, 12, 3, groups=6), last(12)), IMAGE),
    "transposed sound": (
        Then(nn.Conv1d(3, 6, 3), nn.ConvTranspose1d(6, 4, 3), nn.Conv1d(4, 2, 1)),
        SOUND,
    ),
    "transposed video": (
        Then(nn.Conv3d(3, 6, 3), nn.ConvTranspose3d(6, 4, 2, 2), nn.Conv3d(4, 2, 1)),
        VIDEO,
    ),
    "depthwise sound": (
        Then(nn.Conv1d(3, 6, 3), nn.Conv1d(6, 6, 3, groups=6, dilation=2), nn.Conv1d(6, 2, 1)),
        SOUND,
    ),
    "no batch": (Then(conv(6), nn.MaxPool2d(2), last(6)), IMAGE[0]),
    "instance norm": (Then(conv(6), nn.InstanceNorm2d(6, affine=True), last(6)), IMAGE),
    "instance norm bare": (Then(conv(6), nn.InstanceNorm2d(6), last(6)), IMAGE),
    "prelu": (Then(conv(6), nn.PReLU(6), last(6)), IMAGE),
    "prelu with one slope": (Then(conv(6), nn.PReLU(), last(6)), IMAGE),
    "glu": (Then(conv(12), lambda x: F.glu(x, 1), last(6)), IMAGE),
    "chunk": (Then(conv(12), lambda x: torch.mul(*x.chunk(2, 1)), last(6)), IMAGE),
    "chunks added": (Then(conv(12), lambda x: sum(x.chunk(3, 1)), last(4)), IMAGE),
    "pixel shuffle": (Then(conv(24), lambda x: F.pixel_shuffle(x, 2), last(6)), IMAGE),
    "pixel unshuffle": (Then(conv(3), lambda x: F.pixel_unshuffle(x, 2), last(12)), IMAGE),
    "channel shuffle": (Then(conv(12), nn.ChannelShuffle(3), last(12)), IMAGE),
    "patches and back": (
        Then(conv(6), lambda x: F.fold(F.unfold(x, 2, stride=2), (8, 8), 2, stride=2), last(6)),
        IMAGE,
    ),
    "resized": (Then(conv(6), lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), last(6)), IMAGE),
    "padded": (Then(conv(6), lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect"), last(6)), IMAGE),
    "rolled in space": (Then(conv(6), lambda x: x.roll((1, 2), (2, 3)).flip(3), last(6)), IMAGE),
    "stacked": (Then(conv(6), lambda x: torch.stack([x, x.relu()], 2).sum(2), last(6)), IMAGE),
    "selected in space": (
        Then(
            conv(6), lambda x: x[:, :, torch.tensor([1, 3, 5])].index_select(3, torch.tensor([0, 2])), last(6)
        ),
        IMAGE,
    ),
    "like": (Then(conv(6), lambda x: x * torch.ones_like(x) + torch.zeros_like(x), last(6)), IMAGE),
    "compared": (
        Then(conv(6), lambda x: torch.where(x > 0, x, 0.1 * x).masked_fill(x < -1, 0.0), last(6)),
        IMAGE,
    ),
    "spread": (Then(conv(6), lambda x: x * (x.var((2, 3), keepdim=True) + 1), last(6)), IMAGE),
    "largest": (Then(conv(6), lambda x: x.max(3)[0].unsqueeze(3), last(6)), IMAGE),
    "turned": (Then(conv(6), lambda x: x.movedim(1, -1).swapaxes(1, 3).mT.transpose(2, 3), last(6)), IMAGE),
    "shaped like itself": (Then(conv(6), lambda x: (2 * x).view_as(x).reshape_as(x), last(6)), IMAGE),
    "repeated in space": (
        Then(conv(6), lambda x: x.repeat(1, 1, 2, 1).repeat_interleave(2, 3), last(6)),
        IMAGE,
    ),
    "addmm": (Then(nn.Linear(3, 6), Conv1D(5, 6), nn.Linear(5, 2)), torch.randn(2, 7, 3)),
    "repeated": (Then(conv(3), lambda x: x.repeat(1, 2, 1, 1), last(6)), IMAGE),
    "tiled": (Then(conv(3), lambda x: x.repeat_interleave(2, 1), last(6)), IMAGE),
    "split": (Then(conv(6), lambda x: x.split(4, 1)[0], last(4)), IMAGE),
    "cut and put together": (
        Then(conv(6), lambda x: torch.cat([x[:, 4:], x[:, :2], x[:, 1:5:2]], 1), last(6)),
        IMAGE,
    ),
    "shuffled by hand": (
        Then(conv(12), lambda x: x.view(2, 3, 4, 8, 8).transpose(1, 2).reshape(2, 12, 8, 8), last(12)),
        IMAGE,
    ),
    "turned by hand": (
        Then(nn.Linear(3, 12), lambda x: x.unflatten(-1, (4, 3)).mT.flatten(-2), nn.Linear(12, 2)),
        torch.randn(5, 3),
    ),
    "shuffled and split": (
        Then(
            conv(12),
            lambda x: torch.mul(
                *nn.ChannelShuffle(2)(torch.cat([x, x.sin()], 1)).split((10, 14), 1)[1].chunk(2, 1)
            ),
            last(7),
        ),
        IMAGE,
    ),
    "group norm": (Then(conv(6), nn.GroupNorm(3, 6), last(6)), IMAGE),
    "recurrent": (
        Then(nn.Linear(3, 6), nn.Sequential(nn.LSTM(6, 5), First()), nn.Linear(5, 2)),
        torch.randn(4, 2, 3),
    ),
    "recurrent both ways": (
        Then(
            nn.Linear(3, 6),
            nn.Sequential(nn.GRU(6, 5, num_layers=2, bidirectional=True, batch_first=True), First()),
            nn.Linear(10, 2),
        ),
        torch.randn(4, 2, 3),
    ),
    "recurrent at the start": (
        Then(nn.Sequential(nn.LSTM(3, 6, 2), First()), nn.Tanh(), nn.Linear(6, 2)),
        torch.randn(4, 2, 3),
    ),
    "einsum": (
        Then(nn.Linear(3, 6), lambda x: torch.einsum("nc,mc->nm", x, x), nn.Linear(4, 2)),
        torch.randn(4, 3),
    ),
    "einsum with channels": (
        Then(nn.Linear(3, 6), lambda x: torch.einsum("nlc,nmc->nlm", x, x) @ x, nn.Linear(6, 2)),
        torch.randn(4, 5, 3),
    ),
    "made of the width": (Then(conv(6), lambda x: x + torch.zeros(6, 1, 1), last(6)), IMAGE),
    "padded along": (Then(conv(6), lambda x: F.pad(x, (0, 0, 0, 0, 2, 1)), last(9)), IMAGE),
    "padded and added": (Then(conv(4), Wider(), last(8)), IMAGE),
    "summed": (Then(conv(6), lambda x: x * x.relu().sum(1, keepdim=True), last(6)), IMAGE),
    "normalised": (Then(conv(6), lambda x: F.normalize(x, dim=1), last(6)), IMAGE),
    "a mean of no channels": (
        Then(conv(6), lambda x: x.unflatten(1, (2, 3)).mean(1), last(3)),
        IMAGE,
    ),
    "outer product": (
        Then(nn.Linear(3, 6), lambda x: (x[:, :, None] * x[:, None, :2]).flatten(1), nn.Linear(12, 2)),
        torch.randn(5, 3),
    ),
    "two clamped": (Then(conv(6), lambda x: torch.addcmul(x, x, x.sigmoid()), last(6)), IMAGE),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_rebuilt_networks_equal_their_masked_twins(name: str) -> None:
    model, x = NETWORKS[name]
    model = model.double().eval()
    x = x.double()
    randomise(model, 0)
    graph = lm.capture(model, (x,))
    assert graph.prunable, {g.name: g.frozen for g in graph.groups}
    random = np.random.default_rng(0)
    sizes = []
    for _ in range(5):
        kept = random_kept(graph, random, 0.5)
        small = lm.shrink(model, lm.Structure.keep(graph, kept))
        assert largest_difference(masked_twin(model, graph, kept), small, (x,)) <= 1e-9
        sizes.append(sum(p.numel() for p in small.parameters()))
    assert min(sizes) < sum(p.numel() for p in model.parameters())


class Remembers(nn.Module):
    """Keeps what it worked out of its parameter between passes, as LeViT does with its biases."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1))
        self.known: dict[str, torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if "twice" not in self.known:
            self.known["twice"] = 2 * self.weight
        return x * self.known["twice"]


def test_what_modules_keep_between_passes_is_no_tensor_without_values() -> None:
    model = Then(conv(6), Remembers(), last(6)).eval()
    graph = lm.capture(model, (IMAGE,))
    assert model.middle.known == {}
    small = lm.shrink(model, lm.Structure.keep(graph, {"first": [0, 2, 3]}))
    assert small.middle.known == {}
    assert largest_difference(masked_twin(model, graph, {"first": [0, 2, 3]}), small, (IMAGE,)) <= 1e-5


def test_indices_that_a_module_holds_are_no_channels() -> None:
    class Pick(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("places", torch.arange(6).flip(0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.index_select(1, self.places)

    graph = lm.capture(Then(conv(6), Pick(), last(6)).eval(), (IMAGE,))
    assert graph.prunable == ()


FROZEN: dict[str, tuple[nn.Module, torch.Tensor, str]] = {
    "rolled": (Then(conv(6), lambda x: x.roll(1, 1), last(6)), IMAGE, "roll moves"),
    "flipped": (Then(conv(6), lambda x: x.flip(1), last(6)), IMAGE, "flip moves"),
    "picked": (Then(conv(6), lambda x: x[:, torch.tensor([0, 2])], last(2)), IMAGE, "index picks"),
    "summed up": (Then(conv(6), lambda x: x.cumsum(1), last(6)), IMAGE, "cumsum runs over"),
    "sorted": (Then(conv(6), lambda x: x.sort(1)[0], last(6)), IMAGE, "sort runs over"),
    "group norm in one group": (
        Then(conv(6), nn.GroupNorm(1, 6), last(6)),
        IMAGE,
        "group_norm takes its statistics",
    ),
    "summed where not zero": (
        Then(conv(6), lambda x: x * x.sigmoid().sum(1, keepdim=True), last(6)),
        IMAGE,
        "sum runs over these channels, where a removed one is not zero",
    ),
    "multiplied where not zero": (
        Then(nn.Linear(3, 6), lambda x: x.sigmoid() @ x.exp().mT, nn.Linear(4, 2)),
        torch.randn(4, 3),
        "matmul sums over these channels, where a removed one is not zero",
    ),
    "a diagonal": (
        Then(nn.Linear(3, 6), lambda x: torch.einsum("cc->c", x), nn.Linear(6, 2)),
        torch.randn(6, 3),
        "einsum takes a diagonal",
    ),
    "rms norm": (Then(nn.Linear(3, 6), nn.RMSNorm(6), nn.Linear(6, 2)), torch.randn(4, 3), "rms_norm takes"),
    "scattered": (
        Then(conv(6), lambda x: x.scatter(1, torch.zeros(2, 1, 8, 8).long(), 0.0), last(6)),
        IMAGE,
        "scatter has no channel rule",
    ),
}


@pytest.mark.parametrize("name", FROZEN)
def test_channels_that_cannot_go_say_which_operator_holds_them(name: str) -> None:
    model, x, reason = FROZEN[name]
    graph = lm.capture(model.eval(), (x,))
    frozen = [g.frozen for g in graph.groups if g.name.startswith("first") and not g.name.endswith(":input")]
    assert frozen
    assert all(text is not None for text in frozen)
    assert any(re.search(reason, text or "") for text in frozen), frozen


def test_a_channel_that_is_read_by_itself_stays_and_the_others_are_free() -> None:
    graph = lm.capture(Then(conv(6), lambda x: x * x[:, :1], last(6)).eval(), (IMAGE,))
    (alone,) = (g for g in graph.groups if g.frozen == "one of these channels is read by itself")
    (free,) = (graph.groups[g] for g in graph.prunable)
    assert {m.parameter: m.indices.tolist() for m in alone.members}["first.weight"] == [[0]]
    assert {m.parameter: m.indices.tolist() for m in free.members}["last.weight"] == [[1], [2], [3], [4], [5]]


def test_halves_of_a_split_in_equal_parts_are_one_unit() -> None:
    model = Then(conv(12), lambda x: torch.mul(*x.chunk(2, 1)), last(6))
    graph = lm.capture(model.eval(), (IMAGE,))
    (group,) = (graph.groups[g] for g in graph.prunable)
    rows = {(m.parameter, m.role): m.indices.tolist() for m in group.members}
    assert group.width == 6
    assert rows[("first.weight", "output")] == [[k, k + 6] for k in range(6)]
    assert rows[("last.weight", "input")] == [[k] for k in range(6)]


def test_a_transposed_convolution_in_groups_keeps_them_equal() -> None:
    model = Then(conv(6), nn.ConvTranspose2d(6, 8, 3, groups=2), last(8))
    graph = lm.capture(model.eval(), (IMAGE,))
    rows = {
        (m.parameter, m.axis, m.role): m.indices.tolist()
        for g in graph.prunable
        for m in graph.groups[g].members
    }
    assert rows[("middle.weight", 0, "input")] == [[k, k + 3] for k in range(3)]
    assert rows[("middle.weight", 1, "output")] == [[k] for k in range(4)]
    assert rows[("last.weight", 1, "input")] == [[k, k + 4] for k in range(4)]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.sum() * 2,
        lambda x: x.sum().reshape(1, 1).expand(2, 3),
        lambda x: torch.view_as_complex(x.reshape(2, -1, 2)).abs(),
        lambda x: x.long() % 3,
        lambda x: x.flatten()[0] + x.numel(),
        lambda x: torch.cat([x, x.new_zeros(0, *x.shape[1:])], 0),
        lambda x: x.reshape(1, 1, 1, -1).squeeze() > 0,
        lambda x: torch.stack([x.mean(), x.std()]).max(),
    ],
)
def test_odd_shapes_and_dtypes_behind_channels_are_captured(function: Callable[..., Any]) -> None:
    model = Then(conv(6), function, nn.Identity()).eval()
    graph = lm.capture(model, (IMAGE,))
    assert graph.unknown == ()
    kept = random_kept(graph, np.random.default_rng(0))
    small = lm.shrink(model, lm.Structure.keep(graph, kept))
    with torch.no_grad():
        a, b = masked_twin(model, graph, kept)(IMAGE), small(IMAGE)
    assert a.shape == b.shape
    assert torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-6)
