"""Networks predicted, priced and measured by a profile of ONNX Runtime, whose measurements are made up."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

import latmorph as lm
from latmorph.device.timing import TIMED
from latmorph.latency.model import LatencyModel, Predictor
from latmorph.latency.profile import Profile
from latmorph.latency.roofline import places
from latmorph.morph.cost import neighbourhood
from latmorph.report.exported import exported
from latmorph.report.measured import measure_together

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from latmorph.device.onnxruntime import OnnxRuntime


class Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + x)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        Block(32, 64),
        Block(32, 48),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    ).eval()


X = (torch.zeros(1, 3, 16, 16),)


@pytest.fixture
def profile(simulated_profile: Profile) -> Profile:
    """The formula's roofs and no families: every kernel at its roofline, which is all that is needed here."""
    header = msgspec.structs.replace(simulated_profile.header, fingerprint=OnnxRuntime().fingerprint())
    return Profile(header, LatencyModel(simulated_profile.model.roofs, {}, 1.0, 0.05), ())


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The models that torch's exporter was given."""
    made: list[nn.Module] = []
    real = torch.onnx.export

    def counted(model: nn.Module, *rest: Any, **more: Any) -> Any:
        made.append(model)
        return real(model, *rest, **more)

    monkeypatch.setattr(torch.onnx, "export", counted)
    return made


# --- predict


def test_the_parts_of_an_estimate_are_the_runtimes_kernels_with_their_modules(profile: Profile) -> None:
    graph = lm.capture(network(), X)
    found = profile.predict(graph)
    assert profile.mismatch == ()
    convolutions = [(op.kind, op.module) for op in found.ops if op.kind.endswith("Conv")]
    modules = ["0", "3.conv1", "3.conv2", "4.conv1", "4.conv2"]
    assert convolutions == [("nchwc.Conv", module) for module in modules]
    assert sum(op.flops for op in found.ops) == graph.flops  # all widths are whole blocks
    assert found.unpriced == ()
    kernels = [op.spec for op in profile.operators(graph)]
    expected = Predictor(profile.model)(kernels, places(profile.model.roofs, kernels)).total_s.sum()
    assert found.total_s == pytest.approx(expected)


def test_the_runtime_is_asked_once_for_a_captured_network(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = lm.capture(network(), X)
    first = profile.predict(graph)
    monkeypatch.setattr("latmorph.device.onnxruntime.Lowering.network", None)
    assert profile.predict(graph) == first


def test_a_file_is_predicted_by_what_the_runtime_makes_of_it(profile: Profile) -> None:
    model = network()
    path = exported(model, X)
    graph = lm.capture(model, X)
    # The official export of the same network has the same kernels.
    read = type(graph)(graph.nodes, graph.tensors, graph.inputs, graph.outputs, onnx=path)
    ours = sorted((op.kind, op.flops) for op in profile.predict(graph).ops)
    assert sorted((op.kind, op.flops) for op in profile.predict(read).ops) == ours


# --- LatencyCost


def test_the_cost_at_the_networks_own_widths_is_its_prediction(profile: Profile) -> None:
    graph = lm.capture(network(), X)
    assert lm.LatencyCost(profile).total(graph) == pytest.approx(profile.predict(graph).total_s)


def test_a_change_asked_of_a_part_is_that_of_the_whole(profile: Profile) -> None:
    graph = lm.capture(network(), X)
    cost = lm.LatencyCost(profile)
    for group in graph.prunable:
        tried = np.repeat(graph.widths[None], 4, axis=0)
        width = int(graph.widths[group])
        tried[:, group] = [width - 1, width - 4, width - 16, width // 2]
        whole = cost.evaluate(graph, tried) - cost.total(graph)
        found = cost.change(graph, graph.widths, tried)
        np.testing.assert_allclose(found, whole, atol=1e-3 * cost.total(graph))
        assert found[2] < 0


def test_an_odd_width_inside_a_block_is_felt_by_the_next_block(profile: Profile) -> None:
    graph = lm.capture(network(), X)
    odd = graph.widths.copy()
    odd[graph.group("3.conv1")] -= 1
    cost = lm.LatencyCost(profile)
    before, after = cost.evaluate(graph, np.stack([graph.widths, odd]))
    assert after > before  # fewer channels, and slower: the blocked layout is lost
    nodes = {
        graph.nodes[i].module for i in neighbourhood(graph, graph.nodes_of_group[graph.group("3.conv1")])
    }
    assert {"0", "3.conv1", "3.conv2", "4.conv1", "4.conv2"} <= nodes


def test_prices_are_the_best_saving_a_whole_block_buys(profile: Profile) -> None:
    graph = lm.capture(network(), X)
    cost = lm.LatencyCost(profile)
    prices = cost.marginal(graph, graph.widths)
    assert all(prices[g] > 0 for g in graph.prunable)
    lowering = profile.lowering
    assert lowering is not None
    for g in graph.prunable:
        width = int(graph.widths[g])
        candidates = cost.candidates(width)
        assert all(0 < c < width for c in candidates)
        tried = np.repeat(graph.widths[None], len(candidates), axis=0)
        tried[:, g] = candidates
        saved = cost.total(graph) - cost.evaluate(graph, tried)
        assert prices[g] == pytest.approx(max(saved / (width - np.array(candidates))), rel=0.02)


def test_kernels_without_a_price_are_no_cost(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = lm.capture(network(), X)
    monkeypatch.setattr("latmorph.kernels._BY_KIND", {})
    monkeypatch.setattr("latmorph.device.onnxruntime._LOWERED", {})
    with pytest.raises(lm.UsageError, match=r"nchwc\.Conv"):
        lm.LatencyCost(profile).total(graph)


# --- measure


def test_a_model_is_exported_once_and_left_as_it_was(profile: Profile, exports: list[nn.Module]) -> None:
    model = network().train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            timing = lm.measure(model, X, profile, passes=3)
    assert len(timing.samples_s) == 3 * TIMED
    assert all(0 < t < 60 for t in timing.samples_s)
    assert exports == [model]
    assert all(m.training for m in model.modules())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_other_weights_or_inputs_are_exported_anew(exports: list[nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    paths = {exported(model, (torch.zeros(1, 4),))}
    paths.add(exported(model, (torch.ones(1, 4),)))  # values do not matter
    assert len(exports) == 1
    paths.add(exported(model, (torch.zeros(2, 4),)))
    with torch.no_grad():
        model[0].weight.mul_(2)
    paths.add(exported(model, (torch.zeros(2, 4),)))
    assert len(paths) == len(exports) == 3


def test_an_exported_file_goes_with_its_model() -> None:
    model = nn.Linear(4, 4).eval()
    path = exported(model, (torch.zeros(1, 4),))
    assert path.is_file()
    del model
    import gc

    gc.collect()
    assert not path.exists()


def test_weights_too_large_for_one_file_lie_beside_it(
    monkeypatch: pytest.MonkeyPatch, profile: Profile
) -> None:
    monkeypatch.setattr("latmorph.report.exported.ONE_FILE_BYTES", 10)
    model = nn.Linear(64, 64).eval()
    path = exported(model, (torch.zeros(1, 64),))
    assert len(list(path.parent.glob(f"{path.stem}*"))) == 2
    assert lm.measure(model, (torch.zeros(1, 64),), profile, passes=1).samples_s[0] > 0


def test_a_file_and_a_captured_network_are_measured_too(profile: Profile, exports: list[nn.Module]) -> None:
    model = network()
    path = exported(model, X)
    graph = lm.capture(model, X)
    timings = measure_together(
        {"file": (path, ()), "text": (str(path), X), "graph": (graph, ())}, profile, passes=2
    )
    assert all(len(t.samples_s) == 2 * TIMED for t in timings.values())
    assert len(exports) == 1


def test_a_captured_network_runs_in_eager_and_a_file_does_not(cpu_profile: Profile, tmp_path: Path) -> None:
    graph = lm.capture(network(), X)
    assert lm.measure(graph, (), cpu_profile, passes=1).samples_s[0] > 0
    with pytest.raises(lm.UsageError, match=r"some\.onnx: a file runs in ONNX Runtime"):
        lm.measure(tmp_path / "some.onnx", (), cpu_profile, passes=1)


def test_a_model_that_torch_cannot_export_is_named(profile: Profile) -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if float(x.sum()) > 0 else -x

    model = Branching().train()
    with pytest.raises(lm.CaptureError, match="Branching could not be exported to ONNX"):
        lm.measure(model, X, profile)
    assert model.training
