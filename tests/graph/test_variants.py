"""Networks at other widths as steps: the same operators that capture finds in the network rebuilt so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import latmorph as lm
from latmorph.device.eager import _Program
from latmorph.graph.variants import variants
from latmorph.opspec import OpSpec
from oracle import random_kept
from tools.networks import Attention, Branches, Inverted, Residual, conv_norm


class Split(nn.Module):
    """An operator with several outputs."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, self.dim)
        return a * b


class Shuffle(nn.Module):
    """Channels read group by group: of what is left of them, in no order that a reshape gives."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        return x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)


NETWORKS = {
    "residual": (nn.Sequential(conv_norm(3, 8, 3), Residual(8, 6, 16, 2, True)), (1, 3, 8, 8)),
    "depthwise": (nn.Sequential(conv_norm(3, 8, 3), Inverted(8, 8, 1, 6)), (2, 3, 8, 8)),
    "branches": (
        nn.Sequential(Branches(conv_norm(3, 4, 1), conv_norm(3, 6, 3)), nn.Flatten(), nn.Linear(360, 4)),
        (1, 3, 6, 6),
    ),
    "attention": (
        nn.Sequential(nn.Linear(5, 12), nn.GELU(), nn.Linear(12, 32), nn.LayerNorm(32), Attention(32, 4)),
        (1, 4, 5),
    ),
    "shuffle": (
        nn.Sequential(nn.Conv2d(3, 12, 1), Shuffle(), nn.Conv2d(12, 8, 1), Split(1), nn.Conv2d(4, 2, 1)),
        (2, 3, 4, 4),
    ),
    "split": (nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 8), Split()), (3, 5)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_steps_at_other_widths_are_those_of_the_rebuilt_network(name: str) -> None:
    model, shape = NETWORKS[name]
    model.eval()
    graph = lm.capture(model, (torch.zeros(shape),))
    structure = lm.Structure.keep(graph, random_kept(graph, np.random.default_rng(1)))
    rebuilt = lm.capture(lm.shrink(model, structure), (torch.zeros(shape),))
    steps = graph.steps_at(structure.widths_of(graph))
    # Where a part of an axis begins depends on which channels are left, not only on how many.
    found = [s.with_attr("start", 0) if s.attr("op") == "narrow" else s for s in rebuilt.specs]
    if name == "attention":  # torch lays out otherwise what it attends to where values are of another width
        assert [shapes(s.spec) for s in steps] == [shapes(s) for s in found]
    else:
        assert [s.spec for s in steps] == found


def shapes(spec: OpSpec) -> tuple[Any, ...]:
    return spec.attr("op", spec.kind), [t.shape for t in spec.inputs], [t.shape for t in spec.outputs]


@pytest.mark.parametrize("name", NETWORKS)
def test_variants_run_in_torch_with_the_shapes_that_they_promise(name: str) -> None:
    model, shape = NETWORKS[name]
    graph = lm.capture(model, (torch.zeros(shape),))
    made = variants(graph, 4)
    assert [s.spec for s in made[0]] == list(graph.specs)
    assert len({tuple(s.spec.out.shape for s in steps) for steps in made}) > 1
    for steps in made:
        program = _Program(steps, "cpu")
        values: dict[int, Any] = {-1: program.inputs}
        with torch.no_grad():
            for i, call in enumerate(program.calls):
                out = call(*(values[s][k] for s, k in program.sources[i]))
                values[i] = (out,) if isinstance(out, torch.Tensor) else tuple(out)
                assert [tuple(v.shape) for v in values[i]] == [t.shape for t in steps[i].spec.outputs]


class Two(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y


class Constant(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tensor([1.0, 2.0])


class Spectrum(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.fft(x).real


def test_several_inputs_and_constants_are_given_to_a_backend() -> None:
    x = torch.zeros(3, 2)
    for model, inputs in ((Two(), (x, x + 1)), (Constant(), (x,))):
        (steps,) = variants(lm.capture(model, inputs), 1)
        program = _Program(steps, "cpu")
        assert [tuple(given.shape) for given in program.inputs.values()] == [(3, 2)] * len(inputs)
        program.run()


def test_a_network_that_cannot_be_timed_by_its_operators_says_why() -> None:
    graph = lm.capture(Spectrum(), (torch.zeros(3, 2),), allow_unknown=True)
    with pytest.raises(lm.UsageError, match=r"without a handler.*fft"):
        variants(graph, 1)
