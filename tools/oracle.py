"""The masked twin of any network: what a rebuilt one must agree with, made without the code that rebuilds."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree

import latmorph as lm

ZEROED = frozenset({"output", "bias", "scale", "shift", "elementwise", "input"})
"""Roles of members whose slices are zero in a twin: a removed channel carries zero and is read with zero."""

FAINT = 0.2
"""What a constant other than zero is raised to by :func:`randomise`, if it is less."""

NOTHING = 1e-3
"""A tensor whose values are all smaller is to :func:`randomise` what one of zeros is, unless constant."""


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    """Random values for every floating-point parameter and buffer that is constant: defaults hide mistakes.

    Zeros become uniform in -0.3 to 0.3, other values are multiplied by uniform in 0.5 to 1.5. Batch norm
    statistics are such constants. So that no branch is too faint for a mistake in it to be seen, values
    below FAINT (a layer scale of 1e-6) are raised to it first, and tensors of values below NOTHING count as
    zeros.
    """
    generator = torch.Generator().manual_seed(seed)
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if tensor.is_floating_point() and tensor.numel():
            value = float(tensor.flatten()[0])
            if not bool((tensor == value).all()):
                value = 0.0 if float(tensor.abs().max()) < NOTHING else math.nan
            if math.isfinite(value):
                scatter = torch.rand(tensor.shape, generator=generator)
                wide = math.copysign(max(abs(value), FAINT), value)
                tensor.copy_(wide * (0.5 + scatter) if value else 0.6 * scatter - 0.3)


def random_structure(graph: lm.Graph, seed: int, share: float = 0.3) -> lm.Structure:
    """Each channel of each prunable group removed with probability ``share``, and at least one kept."""
    random = np.random.default_rng(seed)
    kept = {}
    for g in graph.prunable:
        group = graph.groups[g]
        alive = np.flatnonzero(random.random(group.width) >= share)
        kept[group.name] = alive.tolist() or [int(random.integers(group.width))]
    return lm.Structure.keep(graph, kept)


@torch.no_grad()
def masked_twin(model: nn.Module, graph: lm.Graph, structure: lm.Structure) -> nn.Module:
    """A copy at full size whose removed channels carry zero and are read with zero weights.

    Raises KeyError for a member that is neither a parameter nor a buffer of ``model``.
    """
    twin = copy.deepcopy(model)
    held = dict(
        itertools.chain(
            twin.named_parameters(remove_duplicate=False), twin.named_buffers(remove_duplicate=False)
        )
    )
    for name, left in structure.groups.items():
        removed = np.setdiff1d(np.arange(left.width), left.kept)
        for member in graph.groups[graph.group(name)].members:
            if member.role in ZEROED and len(removed):
                at = torch.as_tensor(member.indices[removed].ravel())
                held[member.parameter].index_fill_(member.axis, at, 0.0)
    return twin


@torch.no_grad()
def outputs(model: nn.Module, inputs: Sequence[Any]) -> list[torch.Tensor]:
    """The floating-point tensors that a model gives in eval mode, however they are nested.

    What it draws at random is the same in every call. Raises what forward raises.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        leaves = _pytree.tree_leaves(model.eval()(*inputs))
    return [x for x in leaves if isinstance(x, torch.Tensor) and (x.is_floating_point() or x.is_complex())]


def apart(reference: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> float:
    """The largest difference over the largest reference value, of the pair of tensors where it is largest.

    Infinity where shapes or the number of tensors disagree, where one of a pair has no numbers (NaN), and
    where nothing is there to compare.
    """
    if not reference or [x.shape for x in reference] != [x.shape for x in others]:
        return math.inf
    pairs = zip(reference, others, strict=True)
    return max((_apart(a, b) for a, b in pairs if a.numel()), default=math.inf)


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    # Equal infinities, as logits that are masked, have no difference that could be computed.
    largest = float(torch.where(a == b, 0.0, (a - b).abs()).max())
    size = float(torch.where(a.isfinite(), a.abs(), 0.0).max())
    if math.isnan(largest):
        return math.inf
    return largest / size if size else (math.inf if largest else 0.0)


def difference(a: nn.Module, b: nn.Module, inputs: Sequence[Any]) -> float:
    """:func:`apart` of what two models give in eval mode, ``a`` being the reference."""
    return apart(outputs(a, inputs), outputs(b, inputs))
