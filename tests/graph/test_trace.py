"""Traces: modules that compute the same agree, others don't, and what cannot be told is not the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latmorph.graph.trace import same_calls

X = (torch.zeros(2, 4, 6),)


class Net(nn.Module):
    """Two layers of the same shape, which ``pass_`` calls."""

    def __init__(self, pass_: Callable[[Net, Tensor], object]) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(4)
        self.pass_ = pass_

    def forward(self, x: Tensor) -> object:
        return self.pass_(self, x)


def plain(m: Net, x: Tensor) -> Tensor:
    return m.b(F.relu_(m.norm(m.a(x)))).reshape(2, -1)


def test_the_same_code_is_the_same_whatever_the_weights_and_stays_as_it_was() -> None:
    one, two = Net(plain).train(), Net(plain)
    before = {name: t.clone() for name, t in one.state_dict().items()}
    assert same_calls(one, two, X)
    assert one.training
    assert all(torch.equal(t, before[name]) for name, t in one.state_dict().items())


def test_code_that_comes_to_the_same_calls_is_the_same() -> None:
    def other(m: Net, x: Tensor) -> Tensor:
        x = F.linear(x, m.a.weight, m.a.bias)
        return F.linear(m.norm(x).relu_(), m.b.weight, m.b.bias).view(2, 24)

    assert same_calls(Net(plain), Net(other), X)


@pytest.mark.parametrize(
    "other",
    [
        lambda m, x: m.a(F.relu_(m.norm(m.b(x)))).reshape(2, -1),  # other weights
        lambda m, x: m.b(F.relu_(m.norm(m.a(x)))).reshape(4, -1),  # another shape
        lambda m, x: m.b(F.relu_(m.norm(m.a(x)))).mT.reshape(2, -1),  # another order
        lambda m, x: m.b(F.leaky_relu_(m.norm(m.a(x)), 0.1)).reshape(2, -1),  # another operator
        lambda m, x: m.b(F.relu(m.norm(m.a(x)))).reshape(2, -1),  # not in place
        lambda m, x: [plain(m, x)],  # nested in another way
    ],
)
def test_other_calls_are_not_the_same(other: Callable[[Net, Tensor], object]) -> None:
    assert not same_calls(Net(plain), Net(other), X)


def test_arguments_count() -> None:
    assert not same_calls(Net(lambda m, x: m.a(x) * 2.0), Net(lambda m, x: m.a(x) * 2.5), X)
    assert same_calls(Net(lambda m, x: m.a(x) * 2.0), Net(lambda m, x: m.a(x) * 2.0), X)


def test_which_tensor_is_read_counts() -> None:
    def first(m: Net, x: Tensor) -> Tensor:
        y = m.a(x)
        z = m.b(y)
        return y.sin() + z

    def second(m: Net, x: Tensor) -> Tensor:
        y = m.a(x)
        z = m.b(y)
        return z.sin() + z

    assert not same_calls(Net(first), Net(second), X)


@pytest.mark.parametrize(
    "untold",
    [
        lambda m, x: m.a(x) * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),  # a constant of no name
        lambda m, x: m.a(x) * float(x.sum()),  # reads values
    ],
)
def test_what_cannot_be_told_is_not_the_same(untold: Callable[[Net, Tensor], object]) -> None:
    assert not same_calls(Net(untold), Net(untold), X)
