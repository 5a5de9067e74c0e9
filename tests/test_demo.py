"""The demo, on a schedule so short that the networks learn nothing: what it does, not how well."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import latmorph as lm
import latmorph.demo
import latmorph.latency.profiling
from latmorph.cli import main
from latmorph.data.fashion import Images, read_subset
from latmorph.demo import LATENCY_BATCH, Schedule, SmallResNet, demo_graph, run_demo, save_result
from latmorph.device.timing import TIMED, StopRule
from latmorph.latency.profile import Profile, open_profile
from latmorph.report.comparison import Comparison

TINY = Schedule(train=2, regularise=5, tune=1)
SMALL_BATCH = 8

TARGET = 0.6

NETWORKS = ["parent", "uniform width", "FLOP-targeted", "latency-targeted"]


@pytest.fixture(scope="module")
def said() -> list[tuple[float, str]]:
    return []


@pytest.fixture(scope="module")
def result(cpu_profile: Profile, said: list[tuple[float, str]]) -> Comparison:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latmorph.demo, "BATCH", SMALL_BATCH)
        return run_demo(
            cpu_profile,
            read_subset(),
            target=TARGET,
            schedule=TINY,
            seed=3,
            say=lambda fraction, text: said.append((fraction, text)),
        )


def latency_fraction(profile: Profile, widths: dict[str, int]) -> float:
    """Predicted latency at the given widths, as a fraction of the parent's, by the cost that was targeted."""
    graph, cost = demo_graph(), lm.LatencyCost(profile)
    at = np.array([widths.get(group.name, group.width) for group in graph.groups])
    return cost.total(graph, at) / cost.total(graph)


def test_four_networks_come_out_the_parent_first(result: Comparison, cpu_profile: Profile) -> None:
    assert [row.name for row in result.networks] == NETWORKS
    assert (result.profile, result.device) == ("here", cpu_profile.fingerprint.name)
    assert (result.target, result.batch, result.seed) == (TARGET, LATENCY_BATCH, 3)
    assert (result.train_images, result.test_images) == (5000, 1000)


def test_the_parent_has_the_flops_and_parameters_that_torch_counts(result: Comparison) -> None:
    model, parent = SmallResNet().eval(), result.networks[0]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(LATENCY_BATCH, 1, 28, 28))
    assert parent.flops == counter.get_total_flops()
    assert parent.parameters == sum(p.numel() for p in model.parameters())
    # Every group is as wide as the constructor says: 16, 32 and 64 channels in the three stages.
    assert set(parent.widths.values()) == {16, 32, 64}


def test_the_flop_target_is_met(result: Comparison) -> None:
    parent, small = (result.networks[NETWORKS.index(name)] for name in ("parent", "FLOP-targeted"))
    assert small.flops <= TARGET * parent.flops


@pytest.mark.parametrize("name", ["latency-targeted", "uniform width"])
def test_the_latency_target_is_met_in_predicted_latency(
    result: Comparison, cpu_profile: Profile, name: str
) -> None:
    row = result.networks[NETWORKS.index(name)]
    assert latency_fraction(cpu_profile, row.widths) <= TARGET * (1 + 1e-9)


def test_the_smaller_networks_are_narrower_and_never_wider(result: Comparison) -> None:
    parent = result.networks[0]
    for row in result.networks[1:]:
        assert list(row.widths) == list(parent.widths)
        assert all(1 <= row.widths[name] <= width for name, width in parent.widths.items())
        assert sum(row.widths.values()) < sum(parent.widths.values())
        assert row.parameters < parent.parameters


def test_the_uniformly_narrower_network_is_narrower_by_one_factor(result: Comparison) -> None:
    parent, uniform = result.networks[0].widths, result.networks[1].widths
    by_width = {parent[name]: set() for name in parent}  # type: dict[int, set[int]]
    for name, width in uniform.items():
        by_width[parent[name]].add(width)
    assert all(len(found) == 1 for found in by_width.values())
    (a,), (b,), (c,) = (by_width[width] for width in (16, 32, 64))
    # Widths are rounded, so that each says the factor to half a channel.
    lowest = max((a - 0.5) / 16, (b - 0.5) / 32, (c - 0.5) / 64)
    highest = min((a + 0.5) / 16, (b + 0.5) / 32, (c + 0.5) / 64)
    assert lowest <= highest


def test_every_network_is_measured_and_tested(result: Comparison) -> None:
    for row in result.networks:
        assert len(row.samples_s) >= 20
        assert len(row.references_s) * TIMED == len(row.samples_s) * (TIMED + 1)
        assert min(row.samples_s) > 0
        assert row.measured_s > 0
        assert row.predicted_interval_s[0] < row.predicted_s < row.predicted_interval_s[1]
        # A share of 1000 images, in percent.
        assert 0 <= row.accuracy_percent <= 100
        assert round(row.accuracy_percent * 10) == pytest.approx(row.accuracy_percent * 10)


def test_progress_rises_and_names_the_stages(result: Comparison, said: list[tuple[float, str]]) -> None:
    fractions = [fraction for fraction, _ in said]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[-1] < 1
    text = " ".join(text for _, text in said)
    for word in ("parent", "FLOP-targeted", "latency-targeted", "uniform", "measuring"):
        assert word in text


def test_a_saved_result_reads_back_equal(result: Comparison, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "result.json"
    save_result(result, path)
    assert msgspec.json.decode(path.read_bytes(), type=Comparison) == result
    assert list(path.parent.iterdir()) == [path]


@pytest.fixture
def short_demo(monkeypatch: pytest.MonkeyPatch, cpu_profile: Profile) -> None:
    """``latmorph demo`` with a tiny schedule and a quick profile of a dozen visits."""
    # The roofs of this machine are known by now.
    monkeypatch.setattr(latmorph.latency.profiling, "measure_roofs", lambda *_, **__: cpu_profile.model.roofs)
    monkeypatch.setattr(latmorph.demo, "BATCH", SMALL_BATCH)
    monkeypatch.setattr(latmorph.demo, "run_demo", functools.partial(run_demo, schedule=TINY))
    together = latmorph.demo.measure_together
    monkeypatch.setattr(
        latmorph.demo,
        "measure_together",
        lambda networks, profile, passes: together(networks, profile, passes=2),
    )
    run = functools.partial(
        latmorph.latency.profiling.run_profile,
        most_visits=12,
        largest_flops=3e7,
        rule=StopRule(least=1, most=1),
    )
    monkeypatch.setattr(latmorph.latency.profiling, "run_profile", run)
    # The visits end the run, however slow the machine is.
    monkeypatch.setattr(latmorph.latency.profiling, "QUICK_BUDGET_S", 1e6)


def test_the_command_profiles_quickly_and_writes_picture_and_figures(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, short_demo: None
) -> None:
    out = tmp_path / "out"
    assert main(["demo", "--target", "0.7", "--seed", "5", "-o", str(out)]) == 0
    shown = capsys.readouterr().out
    for name in NETWORKS:
        assert name in shown
    assert sorted(p.name for p in out.iterdir()) == ["profile", "result.json", "widths.png"]
    assert (out / "widths.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    result = msgspec.json.decode((out / "result.json").read_bytes(), type=Comparison)
    assert [row.name for row in result.networks] == NETWORKS
    assert (result.target, result.seed) == (0.7, 5)
    profile = open_profile(out / "profile")
    assert len(profile.visits) == 12
    # Visits of the demo's own network are among them, and are counted.
    own = sum(visit.network < 0 for visit in profile.visits)
    assert profile.header.focused_visits == own > 0


def test_the_command_takes_a_given_profile_and_prints_json(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    profiles_folder: Path,
    cpu_profile: Profile,
    result: Comparison,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[Any] = []

    def ready(profile: Profile, images: Images, **settings: Any) -> Comparison:
        given.append((profile, len(images.train_images), settings["target"], settings["seed"]))
        return result

    monkeypatch.setattr(latmorph.demo, "run_demo", ready)
    out, data = tmp_path / "out", write_some_data(tmp_path)
    argv = ["demo", "--profile", "here", "--data", str(data), "--target", "0.6", "--seed", "3", "--json"]
    assert main([*argv, "-o", str(out)]) == 0
    assert given == [(cpu_profile, 1, 0.6, 3)]
    shown = capsys.readouterr().out
    assert json.loads(shown) == json.loads((out / "result.json").read_text())
    assert msgspec.json.decode(shown, type=Comparison) == result
    assert sorted(p.name for p in out.iterdir()) == ["result.json", "widths.png"]


def write_some_data(folder: Path) -> Path:
    """A folder that is a whole data set in form: one image and one label of each kind."""
    for name in ("train", "t10k"):
        images = bytes((0, 0, 8, 3)) + b"".join(n.to_bytes(4, "big") for n in (1, 28, 28)) + bytes(28 * 28)
        labels = bytes((0, 0, 8, 1)) + (1).to_bytes(4, "big") + bytes(1)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return folder


def test_the_command_refuses_a_folder_without_data_before_it_measures(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measures(*_: object, **__: object) -> None:
        raise AssertionError("the profile began")

    monkeypatch.setattr(latmorph.latency.profiling, "run_profile", measures)
    assert main(["demo", "--data", str(tmp_path / "nowhere"), "-o", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "nowhere" in err
    assert err.count("\n") == 1
