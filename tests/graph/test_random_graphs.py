"""The oracle on networks that nobody designed: Hypothesis chains, splits and joins layers at random."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import latmorph as lm
from oracle import largest_difference, masked_twin, random_kept, randomise


class Random(nn.Module):
    """A list of instructions: each takes the newest tensor (and one before it) and adds another."""

    def __init__(self, program: list[tuple[str, int]]) -> None:
        super().__init__()
        self.program = program
        self.layers = nn.ModuleList()
        widths, sizes = [4], [6]
        for name, n in program:
            width, size = widths[-1], sizes[-1]
            layer: nn.Module = nn.Identity()
            if name == "conv":
                layer, width = nn.Conv2d(width, n, 3, padding=1, bias=n % 2 == 0), n
            elif name == "stride" and size > 2:
                layer, size = nn.Conv2d(width, width, 2, 2), size // 2
            elif name == "depthwise":
                layer = nn.Conv2d(width, 2 * width, 3, padding=1, groups=width)
                width *= 2
            elif name == "grouped" and width % 2 == 0:
                layer, width = nn.Conv2d(width, 2 * n, 1, groups=2), 2 * n
            elif name == "norm":
                layer = nn.BatchNorm2d(width)
            elif name == "act":
                layer = (nn.ReLU(), nn.SiLU(), nn.Sigmoid(), nn.Hardswish(), nn.GELU())[n % 5]
            elif name == "pool" and size > 2:
                layer, size = (nn.MaxPool2d, nn.AvgPool2d)[n % 2](2), size // 2
            elif name in ("add", "mul", "cat"):
                other = n % len(widths)
                if sizes[other] != size or (name != "cat" and widths[other] != width):
                    other = len(widths) - 1
                layer = nn.Identity()
                layer.other = other
                width = width + widths[other] if name == "cat" else width
            self.layers.append(layer)
            widths.append(min(width, 10**6))
            sizes.append(size)
        self.flat = bool(program and program[-1][1] % 2)
        self.head = nn.Linear(widths[-1] * (sizes[-1] ** 2 if self.flat else 1), 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = [x]
        for (name, _), layer in zip(self.program, self.layers, strict=True):
            y = layer(values[-1])
            if name in ("add", "mul", "cat"):
                other: Any = values[layer.other]
                y = torch.cat([y, other], 1) if name == "cat" else y + other if name == "add" else y * other
            values.append(y)
        y = values[-1]
        return self.head(y.flatten(1) if self.flat else y.mean((2, 3)))


NAMES = ("conv", "conv", "stride", "depthwise", "grouped", "norm", "act", "pool", "add", "mul", "cat")
PROGRAMS = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 9)), min_size=1, max_size=9).filter(
    lambda program: sum(name in ("depthwise", "cat") for name, _ in program) <= 4
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=PROGRAMS, seed=st.integers(0, 2**16))
def test_the_oracle_holds_on_random_networks(program: list[tuple[str, int]], seed: int) -> None:
    check(program, seed)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=PROGRAMS, seed=st.integers(0, 2**16))
def test_the_oracle_holds_on_very_many_random_networks(program: list[tuple[str, int]], seed: int) -> None:
    check(program, seed)


def check(program: list[tuple[str, int]], seed: int) -> None:
    torch.manual_seed(seed)
    model, x = Random(program).double(), torch.randn(2, 4, 6, 6, dtype=torch.float64)
    randomise(model, seed)
    graph = lm.capture(model, (x,))
    kept = random_kept(graph, np.random.default_rng(seed), share=0.4)
    small = lm.shrink(model, lm.Structure.keep(graph, kept))
    assert largest_difference(masked_twin(model, graph, kept), small, (x,)) <= 1e-9
