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
from oracle import random_kept
from tools.networks import Attention, Branches, Inverted, Residual, conv_norm


class Split(nn.Module):
    """An operator with several outputs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, -1)
        return a * b


NETWORKS = {
    "residual": (nn.Sequential(conv_norm(3, 8, 3), Residual(8, 6, 16, 2, True)), (1, 3, 8, 8)),
    "depthwise": (nn.Sequential(conv_norm(3, 8, 3), Inverted(8, 8, 1, 6)), (2, 3, 8, 8)),
    "branches": (
        nn.Sequential(Branches(conv_norm(3, 4, 1), conv_norm(3, 6, 3)), nn.Flatten(), nn.Linear(360, 4)),
        (1, 3, 6, 6),
    ),
    "attention": (
        nn.Sequential(nn.Linear(5, 12), nn.GELU(), nn.Linear(12, 8), nn.LayerNorm(8), Attention(8, 2)),
        (1, 4, 5),
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
    assert [s.spec for s in steps] == list(rebuilt.specs)


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
