"""Well-known networks, written out with random weights, so that tests and benchmarks need no model zoo.

Shapes and operators follow the papers' networks as they are commonly run: ResNet (He et al., 2015),
MobileNetV2 (Sandler et al., 2018), VGG (Simonyan and Zisserman, 2014), Inception v3 (Szegedy et al.,
2015) and ViT (Dosovitskiy et al., 2020). None of them is used in fitting a profile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int | tuple[int, int],
    stride: int = 1,
    padding: int | tuple[int, int] | None = None,
    groups: int = 1,
    act: Callable[[], nn.Module] | None = lambda: nn.ReLU(inplace=True),
) -> nn.Sequential:
    """Convolution without bias, batch norm, and an activation unless ``act`` is None."""
    if padding is None:
        padding = kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([act()] if act is not None else []))


class Residual(nn.Module):
    """A basic (two 3x3) or bottleneck (1x1, 3x3, 1x1) block around a shortcut."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        if bottleneck:
            self.body = nn.Sequential(
                conv_norm(inputs, inner, 1),
                conv_norm(inner, inner, 3, stride),
                conv_norm(inner, outputs, 1, act=None),
            )
        else:
            self.body = nn.Sequential(
                conv_norm(inputs, inner, 3, stride), conv_norm(inner, outputs, 3, act=None)
            )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = conv_norm(inputs, outputs, 1, stride, act=None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.body(x) + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """``(n, 3, h, w)`` to ``(n, classes)``."""

    def __init__(self, depths: Sequence[int], bottleneck: bool, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1))
        blocks, width = [], 64
        for stage, depth in enumerate(depths):
            inner = 64 * 2**stage
            outputs = inner * 4 if bottleneck else inner
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(Residual(width, inner, outputs, stride, bottleneck))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.stem(x))
        return self.head(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))


class Inverted(nn.Module):
    """MobileNetV2's block: expand, depthwise, project."""

    def __init__(self, inputs: int, outputs: int, stride: int, factor: int) -> None:
        super().__init__()
        inner = inputs * factor
        layers = [] if factor == 1 else [conv_norm(inputs, inner, 1, act=nn.ReLU6)]
        layers += [
            conv_norm(inner, inner, 3, stride, groups=inner, act=nn.ReLU6),
            conv_norm(inner, outputs, 1, act=None),
        ]
        self.body = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class MobileNetV2(nn.Module):
    """``(n, 3, h, w)`` to ``(n, classes)``."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_norm(3, 32, 3, 2, act=nn.ReLU6)]
        width = 32
        for factor, outputs, depth, stride in (
            *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
            *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
        ):
            for block in range(depth):
                layers.append(Inverted(width, outputs, stride if block == 0 else 1, factor))
                width = outputs
        layers.append(conv_norm(width, 1280, 1, act=nn.ReLU6))
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean([2, 3]))


class VGG(nn.Module):
    """``(n, 3, 224, 224)`` to ``(n, classes)``: convolutions with bias and no norm, large linear layers."""

    def __init__(self, plan: Sequence[int], classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for outputs in plan:
            if outputs == 0:
                layers.append(nn.MaxPool2d(2, 2))
            else:
                layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.ReLU(inplace=True)]
                width = outputs
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(7)
        self.head = nn.Sequential(
            *(nn.Linear(width * 49, 4096), nn.ReLU(inplace=True), nn.Dropout()),
            *(nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout()),
            nn.Linear(4096, classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.flatten(self.pool(self.features(x)), 1))


class Branches(nn.Module):
    """Parallel branches and their concatenation."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def _chain(inputs: int, *layers: tuple[int, int | tuple[int, int]]) -> nn.Sequential:
    units, width = [], inputs
    for outputs, kernel in layers:
        units.append(conv_norm(width, outputs, kernel))
        width = outputs
    return nn.Sequential(*units)


def _pooled(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.AvgPool2d(3, 1, 1), conv_norm(inputs, outputs, 1))


def _inception_a(inputs: int, pooled: int) -> Branches:
    return Branches(
        _chain(inputs, (64, 1)),
        _chain(inputs, (48, 1), (64, 5)),
        _chain(inputs, (64, 1), (96, 3), (96, 3)),
        _pooled(inputs, pooled),
    )


def _inception_c(inputs: int, inner: int) -> Branches:
    flat, tall = (1, 7), (7, 1)
    return Branches(
        _chain(inputs, (192, 1)),
        _chain(inputs, (inner, 1), (inner, flat), (192, tall)),
        _chain(inputs, (inner, 1), (inner, tall), (inner, flat), (inner, tall), (192, flat)),
        _pooled(inputs, 192),
    )


def _inception_e(inputs: int) -> Branches:
    def split() -> Branches:
        return Branches(conv_norm(384, 384, (1, 3)), conv_norm(384, 384, (3, 1)))

    return Branches(
        _chain(inputs, (320, 1)),
        nn.Sequential(_chain(inputs, (384, 1)), split()),
        nn.Sequential(_chain(inputs, (448, 1), (384, 3)), split()),
        _pooled(inputs, 192),
    )


class InceptionV3(nn.Module):
    """``(n, 3, h, w)`` to ``(n, classes)``, without the auxiliary head."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv_norm(3, 32, 3, 2, 0),
            conv_norm(32, 32, 3, 1, 0),
            conv_norm(32, 64, 3),
            nn.MaxPool2d(3, 2),
            conv_norm(64, 80, 1),
            conv_norm(80, 192, 3, 1, 0),
            nn.MaxPool2d(3, 2),
        )
        self.blocks = nn.Sequential(
            _inception_a(192, 32),
            _inception_a(256, 64),
            _inception_a(288, 64),
            Branches(
                conv_norm(288, 384, 3, 2, 0),
                nn.Sequential(_chain(288, (64, 1), (96, 3)), conv_norm(96, 96, 3, 2, 0)),
                nn.MaxPool2d(3, 2),
            ),
            *(_inception_c(768, inner) for inner in (128, 160, 160, 192)),
            Branches(
                nn.Sequential(conv_norm(768, 192, 1), conv_norm(192, 320, 3, 2, 0)),
                nn.Sequential(
                    _chain(768, (192, 1), (192, (1, 7)), (192, (7, 1))), conv_norm(192, 192, 3, 2, 0)
                ),
                nn.MaxPool2d(3, 2),
            ),
            _inception_e(1280),
            _inception_e(2048),
        )
        self.head = nn.Sequential(nn.Dropout(), nn.Linear(2048, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.stem(x))
        return self.head(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))


class Attention(nn.Module):
    """Multi-head self-attention over ``(n, tokens, width)`` with one matrix for query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(n, tokens, width))


class Encoder(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """``(n, 3, image, image)`` to ``(n, classes)``."""

    def __init__(
        self,
        *,
        image: int = 224,
        patch: int = 16,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, (image // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.Sequential(*(Encoder(width, heads, 4 * width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


def resnet18() -> ResNet:
    """ResNet-18."""
    return ResNet((2, 2, 2, 2), bottleneck=False)


def resnet50() -> ResNet:
    """ResNet-50."""
    return ResNet((3, 4, 6, 3), bottleneck=True)


def mobilenet_v2() -> MobileNetV2:
    """MobileNetV2 at width 1."""
    return MobileNetV2()


def vgg16() -> VGG:
    """VGG-16."""
    return VGG((64, 64, 0, 128, 128, 0, *[256] * 3, 0, *[512] * 3, 0, *[512] * 3, 0))


def inception_v3() -> InceptionV3:
    """Inception v3."""
    return InceptionV3()


def vit_small() -> ViT:
    """ViT-S/16."""
    return ViT()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-18": resnet18,
    "ResNet-50": resnet50,
    "MobileNetV2": mobilenet_v2,
    "VGG-16": vgg16,
    "Inception v3": inception_v3,
    "ViT-S/16": vit_small,
}
"""The six networks of the accuracy table, by the name that it prints."""
