"""The masked twin: what a rebuilt network must agree with, made without the code that rebuilds."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

import latmorph as lm


def randomise(model: nn.Module, seed: int) -> None:
    """Random batch norm statistics, scales and shifts: at their defaults they hide mistakes."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return (low + (high - low) * torch.rand(like.shape, generator=generator)).to(like.dtype)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(uniform(module.running_mean, -0.3, 0.3))
                module.running_var.copy_(uniform(module.running_var, 0.5, 1.5))
                if module.weight is not None:
                    module.weight.copy_(uniform(module.weight, 0.5, 1.5))
                    module.bias.copy_(uniform(module.bias, -0.3, 0.3))


def random_kept(graph: lm.Graph, random: np.random.Generator, share: float = 0.3) -> dict[str, list[int]]:
    """Channels to keep of every group that can shrink: each removed with probability ``share``."""
    kept = {}
    for g in graph.prunable:
        group = graph.groups[g]
        alive = np.flatnonzero(random.random(group.width) >= share)
        kept[group.name] = alive.tolist() or [int(random.integers(group.width))]
    return kept


REMOVED = ("output", "bias", "scale", "shift", "elementwise", "input")
"""Roles of what makes a channel, and of what reads it; all at zero, it is as if it were not there."""


def masked_twin(model: nn.Module, graph: lm.Graph, kept: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy, at full size, whose parameters are zero wherever they make or read a removed channel."""
    twin = copy.deepcopy(model)
    held = dict(twin.named_parameters(remove_duplicate=False))
    held.update(twin.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for name, channels in kept.items():
            group = graph.groups[graph.group(name)]
            removed = np.setdiff1d(np.arange(group.width), channels)
            for member in group.members:
                if member.role in REMOVED:
                    at = torch.as_tensor(member.indices[removed].ravel())
                    held[member.parameter].index_fill_(member.axis, at, 0.0)
    return twin


@torch.no_grad()
def largest_difference(a: nn.Module, b: nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    """Largest difference of the outputs in eval mode, over the largest output."""
    first, second = a.eval()(*inputs), b.eval()(*inputs)
    assert first.shape == second.shape
    return float((first - second).abs().max() / first.abs().max().clamp_min(1e-30))
