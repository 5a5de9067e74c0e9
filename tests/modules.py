"""Modules that several tests capture or export."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from tools import networks


class Call(nn.Module):
    """A module around one function, so that it can be captured; it may hold parameters."""

    def __init__(self, function: Callable[..., Any], **parameters: torch.Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, *x: torch.Tensor) -> Any:
        return self.function(*x, **dict(self.named_parameters()))


class Small(nn.Module):
    """One of each: residual block (of some ``inner`` width), depthwise, branches, pool, attention, head."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.stem = networks.conv_norm(3, 16, 3, 2)
        self.block = networks.Residual(16, inner, 24, 2, bottleneck=True)
        self.light = networks.Inverted(24, 24, 1, 4)
        self.branches = networks.Branches(networks.conv_norm(24, 8, 1), nn.AvgPool2d(3, 1, 1))
        self.encoder = networks.Encoder(32, 4, 64)
        self.head = nn.Sequential(nn.Dropout(), nn.Linear(32, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.branches(self.light(self.block(self.stem(x))))
        x = self.encoder(x.flatten(2).transpose(1, 2))
        return self.head(x.mean(1))


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Without what torch's exporter prints."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
