"""What a comparison says of one network."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch import nn

import latmorph as lm
from latmorph.device.simulated import Simulated
from latmorph.device.timing import Timing
from latmorph.latency.profile import Profile
from latmorph.report.comparison import Comparison, compared

X = (torch.zeros(2, 3, 8, 8),)

TIMING = Timing((3e-3, 2e-3, 4e-3), (1e-3, 2e-3, 1e-3), 1.9e-3)


class Net(nn.Module):
    """Two convolutions, whose channels can go, and a linear layer whose outputs cannot."""

    def __init__(self, first: int = 8, second: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.second = nn.Conv2d(first, second, 1)
        self.head = nn.Linear(second, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.second(torch.relu(self.first(x))))
        logits: torch.Tensor = self.head(y.mean(dim=(2, 3)))
        return logits


def flops(first: int, second: int) -> int:
    """Two a multiply-add: the convolutions on two 8x8 pictures, the linear layer on two vectors."""
    return 2 * (2 * 64) * (first * 27 + second * first) + 2 * 2 * (10 * second)


def parameters(first: int, second: int) -> int:
    return first * 27 + (first * second + second) + (second * 10 + 10)


@pytest.mark.parametrize(("first", "second"), [(8, 16), (5, 16), (3, 7)])
def test_a_compared_network_has_its_own_counts_and_the_parents_groups(
    simulated_profile: Profile, first: int, second: int
) -> None:
    parent = lm.capture(Net(), X)
    row = compared("small", Net(first, second), X, simulated_profile, parent, TIMING, 87.5)
    assert (row.name, row.accuracy_percent) == ("small", 87.5)
    assert row.flops == flops(first, second)
    assert row.parameters == parameters(first, second)
    assert sorted(row.widths) == sorted(parent.groups[g].name for g in parent.prunable)
    assert sorted(row.widths.values()) == sorted((first, second))


def test_a_shrunk_network_is_compared_at_the_widths_of_its_structure(simulated_profile: Profile) -> None:
    model = Net()
    parent = lm.capture(model, X)
    kept = {parent.groups[g].name: [0, 2] for g in parent.prunable}
    small = lm.shrink(model, lm.Structure.keep(parent, kept))
    row = compared("small", small, X, simulated_profile, parent, TIMING, 50.0)
    assert set(row.widths.values()) == {2}
    assert row.flops == flops(2, 2)


def test_the_measured_figures_are_those_of_the_timing(simulated_profile: Profile) -> None:
    row = compared("parent", Net(), X, simulated_profile, lm.capture(Net(), X), TIMING, 50.0)
    assert row.measured_s == 1.9e-3
    assert row.measured_median_s == pytest.approx(3e-3)
    # Quartiles of 2, 3 and 4 ms are 2.5 and 3.5 ms: half of 1 ms over 3 ms.
    assert row.measured_spread == pytest.approx(0.5 / 3)
    assert row.samples_s == TIMING.samples_s
    assert row.references_s == TIMING.references_s


def test_the_prediction_is_that_of_the_planted_device(simulated_profile: Profile) -> None:
    # Large enough for the simulated device to be bound by its planted peak of 1e11 FLOP/s.
    x = (torch.zeros(8, 3, 32, 32),)
    model = Net(64, 256)
    graph = lm.capture(model, x)
    row = compared("parent", model, x, simulated_profile, graph, TIMING, 50.0)
    planted = sum(Simulated().true_time_s(node.spec) for node in graph.nodes)
    assert row.predicted_s == pytest.approx(planted, rel=0.15)  # the fit has seen some 20 networks
    low, high = row.predicted_interval_s
    assert low < row.predicted_s < high


def test_a_comparison_reads_back_equal_from_json(simulated_profile: Profile) -> None:
    parent = lm.capture(Net(), X)
    rows = tuple(
        compared(name, Net(width), X, simulated_profile, parent, TIMING, 50.0)
        for name, width in (("parent", 8), ("small", 4))
    )
    result = Comparison("formula", "a device", 0.5, 2, 5000, 1000, 0, rows, ("a note",))
    assert msgspec.json.decode(msgspec.json.encode(result), type=Comparison) == result
