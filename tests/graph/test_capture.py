"""Capture: right operators, an untouched model, and clear errors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import latmorph as lm
from latmorph.device.eager import CpuEager
from tools.networks import NETWORKS


@pytest.mark.parametrize("name", NETWORKS)
def test_flops_and_parameters_equal_torch_s_own_count(name: str) -> None:
    model, x = NETWORKS[name]().eval(), torch.zeros(1, 3, 224, 224)
    graph = lm.capture(model, (x,))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x)
    assert graph.flops == counter.get_total_flops()
    assert graph.parameters == sum(p.numel() for p in model.parameters())
    assert graph.unknown == ()


def test_bytes_count_every_operand_once() -> None:
    graph = lm.capture(nn.Conv2d(3, 8, 3, bias=False), (torch.zeros(2, 3, 10, 10),))
    assert graph.bytes == 4 * (2 * 3 * 100 + 8 * 3 * 9 + 2 * 8 * 64)


def test_operators_carry_module_names_shapes_dtypes_and_attributes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()).double()
    conv, norm, act = lm.capture(model, (torch.zeros(1, 3, 9, 9, dtype=torch.float64),)).nodes
    assert [n.module for n in (conv, norm, act)] == ["0", "1", "2"]
    assert conv.spec.kind == "conv2d"
    assert conv.spec.attr("stride") == (2, 2)
    assert conv.spec.out.shape == (1, 8, 4, 4)
    assert conv.spec["weight"].parameter
    assert conv.spec.out.dtype == "float64"
    assert norm.spec.kind == "batch_norm"
    assert norm.spec.attr("training") is False


class Everything(nn.Module):
    """State that a careless capture would change: batch statistics, dropout's random state, a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.frozen = nn.BatchNorm2d(4).eval()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.frozen(self.body(x))


def test_the_model_stays_as_it_was() -> None:
    model = Everything().train()
    model.frozen.eval()
    model.body[0].weight.grad = torch.ones_like(model.body[0].weight)
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    pointers = [p.data_ptr() for p in model.parameters()]
    random = torch.get_rng_state()
    lm.capture(model, (torch.zeros(2, 3, 8, 8),))
    assert [m.training for m in model.modules()] == modes
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert model.body[0].weight.grad is not None
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


class Keeps(nn.Module):
    """Keeps what it worked out, as detectors keep anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.last: torch.Tensor | None = None
        self.all: list[torch.Tensor] = []
        self.by_size: dict[int, torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = self.newest = self.layer(x)
        self.all.append(self.last)
        self.by_size[len(x)] = self.last
        return self.last.relu()


def test_what_a_model_keeps_of_a_pass_is_no_tensor_of_ours() -> None:
    model, x = Keeps().requires_grad_(False), torch.ones(2, 3)
    model(x)
    kept = model.last
    graph = lm.capture(model, (torch.zeros(5, 3),))
    assert model.last is kept
    assert model.newest is kept
    assert model.all == [kept]
    assert model.by_size == {2: kept}
    small = lm.shrink(model, lm.Structure.keep(graph, {}))
    assert torch.equal(small(x), model(x))


def test_a_failing_capture_leaves_the_model_as_it_was_too() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout()).train()
    with pytest.raises(lm.CaptureError):
        lm.capture(model, (torch.zeros(1, 5),))
    assert model.training
    assert model[1].training


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x - 1


class Loops(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(int(x.sum().item())):
            x = x * 2
        return x


@pytest.mark.parametrize("model", [Branches(), Loops()])
def test_control_flow_on_data_is_named_with_what_to_do(model: nn.Module) -> None:
    with pytest.raises(lm.CaptureError, match=f"{type(model).__name__}: control flow depends on .*rewrite"):
        lm.capture(model, (torch.ones(3),))


class Picks(nn.Module):
    """A detector in small: how many rows its head reads is decided by values."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6))
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.backbone(x)
        x = x[x.sum(1) > x.sum(1).median()]
        return self.head(x) if len(x) else x.new_zeros(0, 2)


class Layers(nn.Module):
    """All layers of a Picks, each called as there, with nothing decided."""

    def __init__(self, whole: Picks) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.whole.head(self.whole.backbone(x))


def test_a_model_that_decides_by_values_is_shrunk_by_way_of_its_layers() -> None:
    torch.manual_seed(0)
    whole, x = Picks().double(), torch.randn(40, 3, dtype=torch.float64)
    with pytest.raises(lm.CaptureError, match="module that holds the model and calls its layers"):
        lm.capture(whole, (x,))
    layers = Layers(whole)
    graph = lm.capture(layers, (x,))
    kept = {"whole.backbone.0": [0, 2, 3, 7], "whole.backbone.2": [1, 2, 5]}
    with torch.no_grad():
        for layer, left in zip((whole.backbone[0], whole.backbone[2]), kept.values(), strict=True):
            gone = [i for i in range(len(layer.bias)) if i not in left]
            layer.weight[gone], layer.bias[gone] = 0.0, 0.0
    small = lm.shrink(layers, lm.Structure.keep(graph, kept)).whole
    assert isinstance(small, Picks)
    assert small.head.in_features == 3
    assert 0 < len(small(x)) < 40
    torch.testing.assert_close(small(x), whole(x))


@pytest.mark.parametrize(
    ("model", "inputs", "says"),
    [
        (nn.Linear, (torch.zeros(1, 3),), "must be a torch.nn.Module, got type"),
        ("resnet18", (torch.zeros(1, 3),), "must be a torch.nn.Module, got str"),
        (nn.Linear(3, 4), torch.zeros(1, 3), r"must be a tuple .* got Tensor; write \(x,\)"),
        (nn.Linear(3, 4), (torch.zeros(1, 3), torch.zeros(1)), r"does not take 2 positional"),
        (nn.Linear(3, 4), (), r"does not take 0 positional"),
        (nn.Linear(3, 4), (torch.zeros(1, 5),), r"inputs \(1, 5\).*check the inputs"),
        (nn.Conv2d(3, 4, 3), (torch.zeros(1, 3, 8, 8, dtype=torch.int64),), "int64"),
    ],
)
def test_wrong_arguments_are_named_with_what_to_do(model: Any, inputs: Any, says: str) -> None:
    with pytest.raises(lm.CaptureError, match=says):
        lm.capture(model, inputs)


class Spectral(nn.Module):
    """An operator that latmorph has no handler for, between two layers that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.fft.fft(self.first(x)).real)


def test_an_unknown_operator_raises_with_its_name_and_module() -> None:
    with pytest.raises(lm.UnknownOperatorError, match="fft") as caught:
        lm.capture(nn.Sequential(Spectral()), (torch.zeros(2, 8),))
    assert any("fft" in name for name in caught.value.operators)
    assert ["0"] in caught.value.operators.values()


def test_an_unknown_operator_that_is_allowed_freezes_its_channels_by_name() -> None:
    graph = lm.capture(Spectral(), (torch.zeros(2, 8),), allow_unknown=True)
    assert any("fft" in name for name in graph.unknown)
    assert graph.prunable == ()
    (group,) = [g for g in graph.groups if g.name == "first"]
    assert group.frozen is not None
    assert "fft" in group.frozen


def test_inputs_of_several_kinds_and_outputs_in_a_dict_are_read() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(10, 6)
            self.mix = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor, ids: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"a": self.mix(x + self.words(ids)), "b": x}

    graph = lm.capture(Several(), (torch.zeros(2, 6), torch.zeros(2, dtype=torch.int64)))
    assert len(graph.inputs) == 2
    assert len(graph.outputs) == 2


@pytest.mark.parametrize("name", NETWORKS)
def test_layouts_are_those_that_operands_have_when_the_network_runs(name: str) -> None:
    model, x = NETWORKS[name]().eval(), torch.zeros(1, 3, 224, 224)
    graph = lm.capture(model, (x,))
    with CpuEager() as backend:
        specs, _ = backend.load(graph.steps_at(graph.widths)).finish()
    assert [bool(s.attr("strided")) for s in graph.specs] == [bool(s.attr("strided")) for s in specs]


def test_parameters_of_a_module_with_two_names_count_once() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(nn.Linear(3, 4), layer, nn.ReLU(), layer, nn.Linear(4, 2))
    layer.unread = nn.ModuleList([nn.Linear(2, 2)] * 2)
    graph = lm.capture(model, (torch.zeros(1, 3),))
    promised = lm.ParameterCost().total(graph, graph.widths)
    assert graph.parameters == sum(p.numel() for p in model.parameters()) == promised
