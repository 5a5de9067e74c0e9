"""The hard set: random networks at widths that no designer would choose, drawn by a seed.

Code and distributions of their own, shared with nothing that draws a profile's networks: the set is a
test. Half of all widths are odd or one off a multiple of 8, 16 or 32; a good part of the networks spends
its time in depthwise convolutions; each has the FLOPs of 3 to 150 ms at 40 GFLOP/s.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

LEAST_FLOPS, MOST_FLOPS = 0.12e9, 6e9
MOST_DEPTHWISE_FLOPS = 1.2e9
"""Depthwise networks run at a fraction of the speed: so many FLOPs take them as long."""

MOST_PARAMETERS = 60_000_000


@dataclass(frozen=True)
class Taste:
    """What one network's blocks have in common: kernel size, activation and norm."""

    kernel: int
    activation: Callable[[], nn.Module]
    norm: Callable[[int], nn.Module] | None

    def conv(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
        dilation: int = 1,
    ) -> nn.Sequential:
        """Convolution, norm and activation as this network writes them."""
        padding = dilation * (kernel // 2)
        layers: list[nn.Module] = [
            nn.Conv2d(
                inputs, outputs, kernel, stride, padding, dilation, groups=groups, bias=self.norm is None
            )
        ]
        if self.norm is not None:
            layers.append(self.norm(outputs))
        if act:
            layers.append(self.activation())
        return nn.Sequential(*layers)


class Sum(nn.Module):
    """``body(x) + shortcut(x)``, and an activation where there is one."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, act: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut, self.act = body, shortcut, act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x) + self.shortcut(x)
        return y if self.act is None else self.act(y)


class Join(nn.Module):
    """The branches' channels, one after the other."""

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Gate(nn.Module):
    """Channels scaled by what their means say (squeeze and excitation)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = functional.relu(self.down(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.up(means))


class LastNorm(nn.Module):
    """Layer norm over the channels of ``(n, c, h, w)``, and a two-layer perceptron, channels last."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class Tokens(nn.Module):
    """A pre-norm transformer block over ``(n, tokens, width)``."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, tokens, width = x.shape
        q, k, v = (
            t.reshape(n, tokens, self.heads, -1).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        y = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).reshape(n, tokens, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Patches, blocks, mean over the tokens, classes."""

    def __init__(self, patch: int, blocks: Sequence[Tokens], width: int, tokens: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


class Draw:
    """The random choices of one network."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.random.random() < probability)

    def pick(self, *choices: int) -> int:
        """One of the choices."""
        return int(self.random.choice(choices))

    def width(self, around: float) -> int:
        """A number of channels: half of the time odd or one off a block's edge, else whole blocks."""
        w = max(6.0, around * float(np.exp(self.random.normal(0.0, 0.25))))
        awkward, odd = self.chance(0.5), self.chance(0.5)
        if awkward and odd:
            return 2 * int(w / 2) + 1
        block = self.pick(8, 16, 32) if awkward else self.pick(2, 4, 8, 16, 32)
        edge = block * max(1, round(w / block))
        return edge + self.pick(-1, 1) if awkward else edge

    def taste(self) -> Taste:
        """Kernel size, activation and norm of a network."""
        kernel = int(self.random.choice((3, 5, 7), p=(0.75, 0.2, 0.05)))
        activations: tuple[Callable[[], nn.Module], ...] = (
            lambda: nn.ReLU(inplace=True),
            nn.ReLU,
            nn.ReLU6,
            lambda: nn.SiLU(inplace=True),
            nn.Hardswish,
            nn.GELU,
            lambda: nn.LeakyReLU(0.1),
        )
        weights = (0.4, 0.1, 0.1, 0.15, 0.1, 0.1, 0.05)
        activation = activations[int(self.random.choice(len(activations), p=weights))]
        norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d
        if self.chance(0.15):
            norm = None if self.chance(0.6) else lambda width: nn.GroupNorm(1, width)
        return Taste(kernel, activation, norm)


Block = tuple[nn.Module, int]
"""A block and the number of its output channels."""


def plain(draw: Draw, taste: Taste, inputs: int, outputs: int, stride: int) -> Block:
    """One convolution, now and then dilated."""
    dilation = 2 if stride == 1 and draw.chance(0.1) else 1
    return taste.conv(inputs, outputs, taste.kernel, stride, dilation=dilation), outputs


def basic(draw: Draw, taste: Taste, inputs: int, outputs: int, stride: int) -> Block:
    """Two convolutions around a shortcut."""
    inner = draw.width(outputs)
    body = nn.Sequential(
        taste.conv(inputs, inner, taste.kernel, stride), taste.conv(inner, outputs, 3, act=False)
    )
    return Sum(body, _shortcut(taste, inputs, outputs, stride), taste.activation()), outputs


def bottleneck(draw: Draw, taste: Taste, inputs: int, outputs: int, stride: int) -> Block:
    """1x1, 3x3 (a third of them in groups), 1x1 around a shortcut."""
    groups = draw.pick(2, 4, 8) if draw.chance(0.33) else 1
    inner = max(1, round(draw.width(outputs / 2) / groups)) * groups
    body = nn.Sequential(
        taste.conv(inputs, inner, 1),
        taste.conv(inner, inner, taste.kernel, stride, groups),
        taste.conv(inner, outputs, 1, act=False),
    )
    return Sum(body, _shortcut(taste, inputs, outputs, stride), taste.activation()), outputs


def inverted(draw: Draw, taste: Taste, inputs: int, outputs: int, stride: int) -> Block:
    """Wide depthwise between two 1x1, half of them gated."""
    inner = draw.width(inputs * draw.pick(2, 3, 4, 6))
    layers = [taste.conv(inputs, inner, 1), taste.conv(inner, inner, taste.kernel, stride, inner)]
    if draw.chance(0.4):
        layers.append(nn.Sequential(Gate(inner, draw.width(inner / 6))))
    body = nn.Sequential(*layers, taste.conv(inner, outputs, 1, act=False))
    return (Sum(body, nn.Identity()) if stride == 1 and inputs == outputs else body), outputs


def separable(draw: Draw, taste: Taste, inputs: int, outputs: int, stride: int) -> Block:
    """Depthwise, then 1x1."""
    return nn.Sequential(
        taste.conv(inputs, inputs, taste.kernel, stride, inputs), taste.conv(inputs, outputs, 1)
    ), outputs


def modern(draw: Draw, taste: Taste, inputs: int, outputs: int, stride: int) -> Block:
    """Depthwise 5x5 or 7x7, layer norm and a perceptron around a shortcut; a strided convolution first."""
    kernel = draw.pick(5, 7)
    body = nn.Sequential(
        nn.Conv2d(outputs, outputs, kernel, padding=kernel // 2, groups=outputs),
        LastNorm(outputs, draw.width(outputs * draw.pick(2, 3, 4))),
    )
    block = Sum(body, nn.Identity())
    if stride == 1 and inputs == outputs:
        return block, outputs
    return nn.Sequential(nn.Conv2d(inputs, outputs, stride, stride), block), outputs


def branches(draw: Draw, taste: Taste, inputs: int, outputs: int, stride: int) -> Block:
    """Two to four ways side by side, joined."""
    count = draw.pick(2, 3, 4)
    made: list[nn.Module] = []
    total = 0
    for k in range(count):
        width = draw.width(outputs / count)
        inner = draw.width(outputs / count)
        if k == 0:
            made.append(taste.conv(inputs, width, 1, stride))
        elif k == 3:
            made.append(nn.Sequential(nn.AvgPool2d(3, stride, 1), taste.conv(inputs, width, 1)))
        else:
            made.append(
                nn.Sequential(taste.conv(inputs, inner, 1), taste.conv(inner, width, 2 * k + 1, stride))
            )
        total += width
    return Join(made), total


def dense(draw: Draw, taste: Taste, inputs: int, outputs: int, stride: int) -> Block:
    """New channels beside the old ones; where the picture shrinks, a 1x1 and a pool."""
    if stride > 1:
        return nn.Sequential(taste.conv(inputs, outputs, 1), nn.AvgPool2d(stride)), outputs
    growth = draw.width(outputs / 3)
    made = nn.Sequential(taste.conv(inputs, 3 * growth, 1), taste.conv(3 * growth, growth, 3))
    return Join([nn.Identity(), made]), inputs + growth


def _shortcut(taste: Taste, inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return taste.conv(inputs, outputs, 1, stride, act=False)


FAMILIES: dict[str, tuple[Callable[[Draw, Taste, int, int, int], Block], float]] = {
    "plain": (plain, 0.12),
    "basic": (basic, 0.13),
    "bottleneck": (bottleneck, 0.12),
    "inverted": (inverted, 0.17),
    "separable": (separable, 0.13),
    "modern": (modern, 0.06),
    "branches": (branches, 0.1),
    "dense": (dense, 0.05),
}
"""Blocks and their share of the networks; transformers have the rest."""

DEPTHWISE = ("inverted", "separable", "modern")


class HardNetwork(msgspec.Struct, frozen=True):
    """A drawn network: its name, family, image's shape, and of what it is made, the same every time."""

    name: str
    family: str
    shape: tuple[int, int, int, int]
    key: tuple[int, int, int]
    scale: float

    def make(self) -> nn.Module:
        """The network in eval mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.key[0] + 1_000 * self.key[1] + self.key[2])
            return _drawn(self.key, self.family, self.scale)[0].eval()


def hard_set(seed: int, count: int) -> tuple[HardNetwork, ...]:
    """The first ``count`` networks of a seed."""
    return tuple(hard_network(seed, index) for index in range(count))


def hard_network(seed: int, index: int) -> HardNetwork:
    """One network of a seed, its base width set so that its FLOPs are near a number drawn beforehand."""
    for attempt in itertools.count():
        key = (seed, index, attempt)
        random = np.random.default_rng(key)
        family = _family(seed, index)
        most = MOST_DEPTHWISE_FLOPS if family in DEPTHWISE else MOST_FLOPS
        target = float(np.exp(random.uniform(np.log(1.3 * LEAST_FLOPS), np.log(most / 1.3))))
        scale = 1.0
        for _ in range(5):
            with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
                model, size = _drawn(key, family, scale)
                model.eval()(torch.empty(1, 3, size, size))
            flops = counter.get_total_flops()
            if target / 1.3 <= flops <= target * 1.3:
                break
            scale *= (target / flops) ** 0.5
        else:
            continue
        if sum(p.numel() for p in model.parameters()) <= MOST_PARAMETERS:
            name = f"{index:02d} {family} {size}"
            return HardNetwork(name, family, (1, 3, size, size), key, scale)
    raise AssertionError


def _family(seed: int, index: int) -> str:
    """Families are dealt, not drawn: every 20 networks hold them in their shares."""
    share = [weight for _, weight in FAMILIES.values()]
    edges = np.cumsum([*share, 1 - sum(share)])
    place = (np.random.default_rng((seed, index // 20)).permutation(20)[index % 20] + 0.5) / 20
    return [*FAMILIES, "transformer"][int(np.searchsorted(edges, place))]


def _drawn(key: tuple[int, int, int], family: str, scale: float) -> tuple[nn.Module, int]:
    """A network and the side of its image; ``scale`` multiplies its base width and nothing else."""
    draw = Draw(np.random.default_rng((*key, 1)))
    return _transformer(draw, scale) if family == "transformer" else _convolutional(draw, family, scale)


def _convolutional(draw: Draw, family: str, scale: float) -> tuple[nn.Module, int]:
    size = draw.pick(96, 128, 160, 192, 224, 256) if draw.chance(0.5) else draw.pick(*range(96, 257))
    taste = draw.taste()
    around = 32 * scale
    inputs = draw.width(around)
    kernel, stride = ((3, 2), (7, 2), (4, 4), (3, 1))[draw.pick(0, 0, 1, 2, 3)]
    if kernel == 4:
        layers: list[nn.Module] = [nn.Conv2d(3, inputs, 4, 4)]
    else:
        layers = [taste.conv(3, inputs, kernel, stride)]
        if draw.chance(0.4):
            layers.append(nn.MaxPool2d(3, 2, 1))
    for stage in range(draw.pick(3, 4)):
        outputs = draw.width(around * draw.random.uniform(1.4, 2.1) ** stage)
        # A network now and then changes its mind about how to build a stage.
        name = (
            family if draw.chance(0.85) else str(draw.random.choice([f for f in FAMILIES if f != "modern"]))
        )
        for depth in range(draw.pick(1, 2, 2, 3, 4)):
            step = 2 if depth == 0 and (stage > 0 or draw.chance(0.3)) else 1
            block, inputs = FAMILIES[name][0](draw, taste, inputs, outputs, step)
            layers.append(block)
    if draw.chance(0.5):
        outputs = draw.width(inputs * 2)
        layers.append(taste.conv(inputs, outputs, 1))
        inputs = outputs
    head: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten(1)]
    if draw.chance(0.25):
        outputs = draw.width(inputs)
        head += [nn.Linear(inputs, outputs), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers, *head, nn.Linear(inputs, draw.pick(10, 100, 365, 1000))), size


def _transformer(draw: Draw, scale: float) -> tuple[nn.Module, int]:
    patch = draw.pick(8, 14, 16, 16, 32)
    side = draw.pick(*range(-(-96 // patch), 256 // patch + 1))
    if draw.chance(0.6):
        heads, each = draw.pick(1, 3, 5), 2 * round(draw.pick(*range(8, 40)) * scale) + 1
    else:
        heads, each = draw.pick(2, 3, 4, 6, 8), 8 * max(1, round(draw.pick(2, 3, 4, 6, 8) * scale))
    width = heads * each
    depth = draw.pick(*range(2, 13))
    hidden = draw.width(width * draw.random.uniform(1.5, 4.5))
    blocks = [Tokens(width, heads, hidden) for _ in range(depth)]
    return Transformer(patch, blocks, width, side * side, draw.pick(10, 100, 1000)), patch * side
