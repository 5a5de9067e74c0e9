"""Focus on a device that is a formula: what is added, what stays, and how an interrupted run goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

import latmorph as lm
from latmorph.device import registry
from latmorph.device.sampling import NetworkBuilder
from latmorph.device.simulated import Simulated
from latmorph.device.timing import StopRule, visit_network
from latmorph.latency.fit import fit
from latmorph.latency.profile import open_profile
from latmorph.latency.profiling import run_profile
from tools.networks import Residual, conv_norm

RULE = StopRule(least=1, most=1)
NO_LIMIT_S = 1e6


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "open_backend", lambda *_, **__: Simulated())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> lm.Profile:
    """A profile of as few networks as a fit takes, so that fits are quick."""
    return run_profile(
        Simulated(),
        tmp_path_factory.mktemp("base") / "journal",
        budget_s=NO_LIMIT_S,
        largest_flops=1e7,
        rule=RULE,
        most_visits=8,
    )


@pytest.fixture(scope="module")
def of_dense_layers(base: lm.Profile) -> lm.Profile:
    """A profile that has seen nothing but linear layers: of convolutions it knows the roofline at best."""
    device, random, visits = Simulated(), np.random.default_rng(0), []
    for network in range(8):
        net = NetworkBuilder((4, int(random.integers(8, 256))))
        x = -1
        for _ in range(4):
            x = net.activation(net.linear(x, int(random.integers(8, 256))), "relu", inplace=False)
        visits.append(visit_network(device, network, 0, net.steps, 0, RULE))
    model, validation = fit(base.model.roofs, visits)
    header = msgspec.structs.replace(base.header, visits=len(visits), validation=validation)
    return lm.Profile(header, model, tuple(visits))


@pytest.fixture(scope="module")
def graph() -> lm.Graph:
    net = nn.Sequential(conv_norm(3, 24, 3), Residual(24, 40, 24, 1, False), nn.Flatten())
    return lm.capture(net, (torch.zeros(1, 3, 12, 12),))


def focused(profile: lm.Profile, model: Any, **changes: Any) -> lm.Profile:
    return lm.focus(profile, model, **{"budget_s": NO_LIMIT_S, "rule": RULE, "most_visits": 16, **changes})


def test_the_new_profile_holds_the_old_measurements_and_those_of_the_network(
    base: lm.Profile, graph: lm.Graph
) -> None:
    made = focused(base, graph, budget_s=300.0)
    old = len(base.visits)
    assert made.visits[:old] == base.visits
    added = made.visits[old:]
    assert len(added) == 16
    # Numbered below all others, twice at most, every one a network of the same kinds of operators.
    assert {v.network for v in added} <= {-1 - k for k in range(12)}
    assert len({(v.network, v.visit) for v in added}) == 16
    assert {tuple(s.kind for s in v.specs) for v in added} == {tuple(s.kind for s in graph.specs)}
    assert len({v.specs for v in added}) > 4
    header, before = made.header, base.header
    assert (header.visits, header.focused_visits) == (old + 16, 16)
    assert header.operators == before.operators + 16 * len(graph.nodes)
    assert header.budget_s == before.budget_s + 300.0
    assert header.name == before.name
    assert made.model == fit(base.model.roofs, made.visits, seed=before.seed)[0]
    # The old profile is as it was.
    assert base.header.focused_visits == 0
    assert len(base.visits) == old


def test_the_network_itself_is_among_what_is_measured(base: lm.Profile, graph: lm.Graph) -> None:
    made = focused(base, graph, most_visits=24)
    assert graph.specs in {v.specs for v in made.visits}


def test_predictions_of_the_networks_variants_get_better(
    of_dense_layers: lm.Profile, graph: lm.Graph
) -> None:
    device = Simulated()
    random = np.random.default_rng(5)
    before, after = [], []
    made = focused(of_dense_layers, graph, most_visits=60)
    for _ in range(12):
        widths = graph.widths.copy()
        for g in graph.prunable:
            widths[g] = random.integers(4, widths[g] + 1)
        true = sum(device.true_time_s(step.spec) for step in graph.steps_at(widths))
        for profile, errors in ((of_dense_layers, before), (made, after)):
            errors.append(abs(lm.LatencyCost(profile).total(graph, widths) / true - 1))
    assert np.mean(after) < 0.6 * np.mean(before)


def test_a_second_focus_numbers_its_networks_anew(base: lm.Profile, graph: lm.Graph) -> None:
    once = focused(base, graph)
    twice = focused(
        once, nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), inputs=(torch.zeros(2, 8),)
    )
    first = {v.network for v in once.visits}
    second = {v.network for v in twice.visits[len(once.visits) :]}
    assert max(second) < min(first)
    assert twice.header.focused_visits == 32


def interrupt_after(visits: int) -> Callable[[float, str], None]:
    def progress(fraction: float, text: str) -> None:
        if text == f"{visits} network visits":
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_run_goes_on_where_it_was(base: lm.Profile, graph: lm.Graph, tmp_path: Path) -> None:
    journal, folder = tmp_path / "journal", tmp_path / "mine"
    places = {"journal_path": journal, "folder": folder}
    with pytest.raises(KeyboardInterrupt):
        focused(base, graph, **places, progress=interrupt_after(9))
    assert journal.is_file()
    assert not folder.exists()
    said: list[str] = []
    made = focused(base, graph, **places, progress=lambda _, text: said.append(text))
    assert said[0] == "resumed after 9 network visits"
    assert "10 network visits" in said
    assert "9 network visits" not in said
    assert not journal.exists()
    whole = focused(base, graph)
    assert [v.specs for v in made.visits] == [v.specs for v in whole.visits]
    assert open_profile(folder) == made
    assert made.name == "mine"


def test_a_run_of_another_network_starts_anew(base: lm.Profile, graph: lm.Graph, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with pytest.raises(KeyboardInterrupt):
        focused(base, graph, journal_path=journal, progress=interrupt_after(9))
    said: list[str] = []
    focused(
        base,
        nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)),
        inputs=(torch.zeros(2, 8),),
        journal_path=journal,
        progress=lambda _, text: said.append(text),
    )
    assert "starting anew" in said[0]
    assert "1 network visits" in said


def test_a_profile_of_another_machine_is_refused(cpu_profile: lm.Profile, graph: lm.Graph) -> None:
    of = msgspec.structs.replace(cpu_profile.fingerprint, device="cuda")
    header = msgspec.structs.replace(cpu_profile.header, fingerprint=of)
    there = lm.Profile(header, cpu_profile.model, cpu_profile.visits)
    with pytest.raises(lm.ProfileError, match="another machine"):
        focused(there, graph)


@pytest.mark.parametrize("budget", [0.0, -1.0, float("inf"), float("nan")])
def test_a_budget_that_is_no_time_is_refused(base: lm.Profile, graph: lm.Graph, budget: float) -> None:
    with pytest.raises(lm.UsageError, match="budget"):
        focused(base, graph, budget_s=budget)


def test_a_network_that_cannot_be_timed_is_refused_before_anything_is_measured(
    base: lm.Profile, tmp_path: Path
) -> None:
    class Fourier(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.fft(x).real

    unknown = lm.capture(Fourier(), (torch.zeros(2, 8),), allow_unknown=True)
    with pytest.raises(lm.UsageError, match="fft"):
        focused(base, unknown, journal_path=tmp_path / "journal")
    assert not (tmp_path / "journal").exists()
