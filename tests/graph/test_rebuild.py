"""Rebuild: same classes, weights kept, sizes that modules remember, and refusals."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten

import latmorph as lm
from oracle import largest_difference, masked_twin
from tools.networks import Residual, conv_norm


def small_network() -> nn.Module:
    return nn.Sequential(conv_norm(3, 8, 3), Residual(8, 6, 16, 2, False), nn.Flatten(), nn.Linear(256, 5))


def test_classes_names_modes_and_flags_stay() -> None:
    model = small_network().train()
    model[1].body[0][1].eval()
    model[3].weight.requires_grad_(False)
    graph = lm.capture(model, (torch.zeros(1, 3, 8, 8),))
    small = lm.shrink(model, lm.Structure.keep(graph, {"1.body.0.0": [0, 2, 5]}))
    assert [(n, type(m)) for n, m in small.named_modules()] == [
        (n, type(m)) for n, m in model.named_modules()
    ]
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert list(small.state_dict()) == list(model.state_dict())
    assert not small[3].weight.requires_grad
    conv, norm, reader = small[1].body[0][0], small[1].body[0][1], small[1].body[1][0]
    assert (conv.out_channels, norm.num_features, reader.in_channels) == (3, 3, 3)
    assert torch.equal(conv.weight, model[1].body[0][0].weight[[0, 2, 5]])
    assert torch.equal(reader.weight, model[1].body[1][0].weight[:, [0, 2, 5]])


def test_the_model_itself_is_not_touched_and_shares_nothing() -> None:
    model = small_network()
    before = copy.deepcopy(model.state_dict())
    graph = lm.capture(model, (torch.zeros(1, 3, 8, 8),))
    small = lm.shrink(model, lm.Structure.keep(graph, {"0.0": [1, 2]}))
    with torch.no_grad():
        for p in small.parameters():
            p.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_shrunk_network_trains() -> None:
    model = small_network()
    graph = lm.capture(model, (torch.zeros(1, 3, 8, 8),))
    small = lm.shrink(model, lm.Structure.keep(graph, {"0.0": [1, 2], "1.body.0.0": [0]}))
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    loss = small.train()(torch.randn(4, 3, 8, 8)).square().sum()
    loss.backward()
    optimizer.step()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


def test_shrinking_twice_goes_on_from_the_smaller_network() -> None:
    model = small_network()
    x = (torch.zeros(1, 3, 8, 8),)
    once = lm.shrink(model, lm.Structure.keep(lm.capture(model, x), {"0.0": [1, 2, 3]}))
    twice = lm.shrink(once, lm.Structure.keep(lm.capture(once, x), {"0.0": [0, 2]}))
    assert torch.equal(twice[0][0].weight, model[0][0].weight[[1, 3]])


def test_a_structure_of_the_larger_network_does_not_fit_the_shrunk_one() -> None:
    model = small_network()
    structure = lm.Structure.keep(lm.capture(model, (torch.zeros(1, 3, 8, 8),)), {"0.0": [1, 2, 3]})
    with pytest.raises(lm.StructureError, match=r"0\.0.*8 indices.*shrunk already"):
        lm.shrink(lm.shrink(model, structure), structure)


def test_a_structure_of_another_model_is_refused_by_name() -> None:
    structure = lm.Structure.keep(
        lm.capture(small_network(), (torch.zeros(1, 3, 8, 8),)), {"1.body.0.0": [1, 2, 3]}
    )
    with pytest.raises(lm.StructureError, match=r"1\.body\.0\.0\.weight.*no such parameter"):
        lm.shrink(nn.Linear(3, 4), structure)


class Fixed(nn.Module):
    """Says a size of its own in numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).view(-1, 8 * 36))


def test_a_forward_that_hard_codes_a_size_is_written_anew() -> None:
    model, x = Fixed(), torch.randn(1, 3, 8, 8)
    graph = lm.capture(model, (x,))
    small = lm.shrink(model, lm.Structure.keep(graph, {"a": [0, 1, 2]}))
    assert type(small) is not Fixed
    assert type(small).__name__ == "Fixed"
    assert largest_difference(masked_twin(model, graph, {"a": [0, 1, 2]}), small, (x,)) < 1e-5
    assert small(torch.randn(4, 3, 8, 8)).shape == (4, 2)


def test_a_forward_that_would_run_and_do_another_thing_is_written_anew() -> None:
    class Scaled(nn.Module):
        """Scales by its width: shrunk in place it would run, and scale by another number."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return self.b(y * y.shape[-1] ** -0.5)

    model, x = Scaled(), torch.randn(4, 3)
    graph = lm.capture(model, (x,))
    small = lm.shrink(model, lm.Structure.keep(graph, {"a": [0, 1, 2]}))
    assert type(small) is not Scaled
    assert largest_difference(masked_twin(model, graph, {"a": [0, 1, 2]}), small, (x,)) < 1e-5


@pytest.mark.parametrize("kind", ["dict", "nested", "several"])
def test_outputs_of_any_form_and_several_inputs_are_kept(kind: str) -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 2), nn.Linear(4, 8)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
            z = (self.a(x) + self.c(y)).view(-1, 2, 4).mT.reshape(-1, 8)
            z = self.b(z)
            return {"dict": {"z": z, "w": 2 * z}, "nested": [z, (z + 1, {"z": z})], "several": (z, z.relu())}[
                kind
            ]

    model = Many()
    x = (torch.randn(3, 3), torch.randn(3, 4))
    graph = lm.capture(model, x)
    kept = {"a": [0, 2, 3, 7]}
    small = lm.shrink(model, lm.Structure.keep(graph, kept))
    assert type(small) is not Many
    wanted, found = masked_twin(model, graph, kept)(*x), small(*x)
    (a, form), (b, other) = tree_flatten(wanted), tree_flatten(found)
    assert form == other
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(a, b, strict=True))


def test_dropout_is_on_in_training_only() -> None:
    class Dropped(Fixed):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(self.drop(x))

    model, x = Dropped(), torch.randn(1, 3, 8, 8)
    small = lm.shrink(model, lm.Structure.keep(lm.capture(model, (x,)), {"a": [0, 1, 2]}))
    assert type(small) is not Dropped
    assert isinstance(small.drop, nn.Dropout)
    assert not torch.equal(small.train()(x), small(x))
    assert torch.equal(small.eval()(x), small(x))


def test_what_drops_in_training_without_a_trace_is_named() -> None:
    class Depth(nn.Module):
        """Stochastic depth as zoos write it: in eval mode it does nothing at all."""

        def __init__(self, drop_prob: float) -> None:
            super().__init__()
            self.drop_prob = drop_prob

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (torch.rand(len(x), 1, 1, 1) > self.drop_prob) if self.training else x

    class Deep(Fixed):
        def __init__(self, drop_prob: float) -> None:
            super().__init__()
            self.path, self.drop = Depth(drop_prob), nn.Dropout(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(self.drop(self.path(x)))

    def shrunk(drop_prob: float) -> list[str]:
        model, x = Deep(drop_prob), torch.randn(1, 3, 8, 8)
        structure = lm.Structure.keep(lm.capture(model, (x,)), {"a": [0, 1, 2]})
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", lm.LatmorphWarning)
            lm.shrink(model, structure)
        return [str(w.message) for w in said if "drop at random" in str(w.message)]

    assert shrunk(0.0) == []
    (message,) = shrunk(0.1)
    assert message.startswith("1 modules")
    assert message.endswith(": path")


def test_what_only_the_dtype_is_read_of_need_not_be_made() -> None:
    class Halves(nn.Module):
        """Queries and keys in two halves, each as wide as it likes, and a scale in their dtype."""

        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(5, 6)
            self.out = nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            n, length, _ = x.shape
            q, k = (layer(x).view(n, length, 4, 3).transpose(1, 2) for layer in (self.q, self.k))
            v = self.v(x).view(n, length, 2, 3).transpose(1, 2)
            scale = torch.tensor(0.5).type_as(q)
            (a, b), (c, d) = (t.reshape(n, 2, 2, length, 3).unbind(2) for t in (q, k))
            y = F.scaled_dot_product_attention(a, c, v) - scale * F.scaled_dot_product_attention(b, d, v)
            return self.out(y.transpose(1, 2).reshape(n, length, 6))

    model, x = Halves().double(), torch.randn(3, 7, 5, dtype=torch.float64)
    graph = lm.capture(model, (x,))
    widths = sorted(int(graph.widths[g]) for g in graph.prunable)
    assert widths == [2, 3, 3, 3]  # heads; widths of one half, of the other, and of values
    kept = {graph.groups[g].name: list(range(2 - k % 2)) for k, g in enumerate(graph.prunable)}
    small = lm.shrink(model, lm.Structure.keep(graph, kept))
    twin = masked_twin(model, graph, kept)
    for batch in (x, torch.cat([x, x])):
        assert largest_difference(twin, small, (batch,)) <= 1e-12
