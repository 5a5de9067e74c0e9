"""The scripts behind the figures in docs: their arithmetic by hand, what they draw, pages of all results."""

from __future__ import annotations

import math
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import latmorph as lm
from latmorph.device.roofs import Roofs
from latmorph.latency.profile import Profile
from latmorph.opspec import OpSpec, TensorSpec
from tools import accuracy, cases, hard_set, zoo
from tools.accuracy_page import (
    Figures,
    Goal,
    Kind,
    Network,
    Round,
    baselines,
    best_constant,
    compare,
    coverage,
    effects,
    goals,
    repeatability,
    with_constant,
    write_page,
)
from tools.bench_step import Pairs
from tools.cases import Case, Cases, Designed, Drawn


def network(
    name: str,
    predicted_s: float,
    rounds_s: tuple[float, ...],
    *,
    parent: str = "",
    shrunk: dict[str, int] | None = None,
) -> Network:
    rounds = tuple(Round("2026-01-03T00:00", t, (t, 1.2 * t), (1e-3,)) for t in rounds_s)
    interval = (0.9 * predicted_s, 1.2 * predicted_s)
    return Network(name, 10**9, predicted_s / 2, predicted_s, interval, (), rounds, parent, shrunk or {})


def figures(
    name: str, *networks: Network, threads: int = 1, shipped: bool = True, budget_s: float = 190.0
) -> Figures:
    return Figures(
        set=name,
        seed=7,
        machine="Some CPU",
        runtime="eager, torch 2",
        dtype="float32",
        threads=threads,
        batch=1,
        profile=f"some-profile-{threads}t",
        profile_budget_s=budget_s,
        profile_created="2026-01-02T03:04:05",
        shipped=shipped,
        reference_s=1e-3,
        mismatch=(),
        load=(1.0, 1.0),
        kinds={"conv2d": Kind(12, 4.0, 3.0)},
        networks=networks,
        failed={"Lost": "CaptureError: no"},
    )


def test_errors_are_relative_to_the_rounds_in_which_the_reference_was_calmer() -> None:
    one = network("A", 0.0121, (0.012, 0.009, 0.010, 0.012, 0.008, 0.020))
    slower = (1.0, 1.3, 1.1, 1.2, 1.6, 1.5)  # the first, the third and the fourth are the calmer half
    rounds = [
        msgspec.structs.replace(r, references_s=(1e-3 * factor, 2e-3))
        for r, factor in zip(one.rounds, slower, strict=True)
    ]
    one = msgspec.structs.replace(one, rounds=tuple(rounds))
    assert one.measured_s == pytest.approx(0.034 / 3)
    assert one.error == pytest.approx(0.0121 * 3 / 0.034 - 1)
    # Of the first three rounds the first and the third, of the last the fourth and the sixth.
    assert one.takes_s == pytest.approx((0.011, 0.016))
    assert one.disagreement == pytest.approx(5 / 11)
    # Of the two samples of the reference beside a round the smaller counts: 1, 1.1 and 1.2 ms.
    assert figures("zoo", one).noise == pytest.approx(0.1)


def test_statistics_by_hand() -> None:
    found = compare([1.04, 1.92, 3.6, 4.0], [1.0, 2.0, 3.0, 4.0])  # errors +4, -4, +20 and 0 %
    assert found.count == 4
    assert found.mean == pytest.approx(0.28 / 4)
    assert found.median == pytest.approx(0.04)
    assert found.largest == pytest.approx(0.2)
    assert found.bias == pytest.approx(0.02)
    assert (found.within_5, found.within_10) == (0.75, 0.75)
    assert found.rank == pytest.approx(1.0)
    # Two neighbours swapped among four: 1 - 6 * 2 / (4 * 15).
    assert compare([1, 3, 2, 4], [1, 2, 3, 4]).rank == pytest.approx(0.8)
    assert math.isnan(compare([1, 2], [1, 2]).rank)


def test_repeatability_compares_the_second_take_with_the_first() -> None:
    found = repeatability([network("A", 1, (1.0, 1.08)), network("B", 1, (2.0, 1.96))])
    assert found.mean == pytest.approx(0.05)
    assert found.within_5 == 0.5


def test_coverage_counts_measured_times_inside_the_interval() -> None:
    inside, above = network("A", 1.0, (1.1, 1.1)), network("B", 1.0, (1.3, 1.3))
    assert coverage([inside, above, inside]) == pytest.approx(2 / 3)


def test_the_constant_has_the_smallest_mean_error_of_all() -> None:
    random = np.random.default_rng(0)
    raw = random.uniform(1, 10, 15)
    measured = raw * random.lognormal(0, 0.8, 15)

    def error(c: float) -> float:
        return float(np.mean(np.abs(c * raw / measured - 1)))

    grid = np.geomspace(0.01, 100, 20_000)
    assert error(best_constant(raw, measured)) <= min(error(c) for c in grid) + 1e-12


def test_a_network_has_no_part_in_its_own_constant() -> None:
    raw, measured = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [3.0, 6.0, 9.0, 12.0, 15.0, 18.0]
    assert with_constant(raw, measured) == pytest.approx(measured)
    for k in range(6):
        odd = [100.0 * t if i == k else t for i, t in enumerate(measured)]
        assert with_constant(raw, odd)[k] == pytest.approx(measured[k])


def test_baselines_are_of_the_same_networks() -> None:
    # Half of what is predicted, as its roofline: exact after a constant, half too low before.
    networks = [network(str(t), t, (t, t)) for t in (1.0, 2.0, 4.0, 8.0)]
    found = baselines(networks)
    assert found["max(FLOPs / peak, bytes / bandwidth), as it is"].mean == pytest.approx(0.5)
    assert found["the same, times a constant"].mean == pytest.approx(0.0)
    assert found["FLOPs times a constant"].mean > 0.5
    assert list(baselines(networks[:1])) == ["max(FLOPs / peak, bytes / bandwidth), as it is"]


def removals(*changes: tuple[float, float, float]) -> list[Network]:
    """A parent of one second, and one-group removals: predicted change, and that of each take."""
    return [
        network("P", 1.0, (1.0, 1.0)),
        *(
            network(f"P: {k}", 1 + p, (1 + a, 1 + b), parent="P", shrunk={"g": k})
            for k, (p, a, b) in enumerate(changes)
        ),
    ]


def test_signs_are_asked_of_large_effects_only() -> None:
    found = effects(removals((-0.1, -0.2, -0.2), (-0.1, 0.05, 0.07), (0.1, -0.02, -0.02), (0.1, 0.02, -0.01)))
    # Of two rounds with one reference the first counts.
    assert found.measured == pytest.approx([-0.2, 0.05, -0.02, 0.02])
    assert found.large.tolist() == [True, True, False, False]
    assert found.sign_right == pytest.approx(1 / 2)
    assert found.sign_repeats == pytest.approx(1.0)
    swings = effects(removals((0.1, 0.2, -0.1), (0.1, 0.2, 0.1)))
    assert swings.sign_repeats == pytest.approx(1 / 2)
    assert math.isnan(effects(removals((0.1, 0.0, 0.0))).sign_right)


def test_effects_leave_out_the_networks_with_all_groups_shrunk() -> None:
    pruned = network("P: pruned", 0.5, (0.5, 0.5), parent="P", shrunk={"g": 1, "h": 1})
    assert len(effects([*removals((0.1, 0.1, 0.1)), pruned]).predicted) == 1


@pytest.mark.parametrize(
    ("short", "repeats", "verdict"),
    [
        (0.05, 0.0, "met"),
        (0.06, 0.05, "**missed**"),
        (0.06, 0.04, "**missed**"),
        (0.08, 0.06, "met within 1.5 x repeatability"),
        (0.10, 0.06, "**missed**, also by 1.5 x repeatability"),
        (0.10, 0.40, "cannot be told: the machine does not repeat itself"),
        (math.nan, 0.0, "not measured"),
    ],
)
def test_verdicts(short: float, repeats: float, verdict: str) -> None:
    assert Goal("within", 0.05, short, repeats, str).verdict == verdict


def test_goals_of_each_set() -> None:
    exact = [network(str(t), t, (t, t)) for t in (1.0, 2.0, 3.0, 4.0)]
    far = network("far", 6.0, (5.0, 5.0))
    assert [g.verdict for g in goals(figures("zoo", *exact))] == ["met"] * 3
    assert [g.verdict for g in goals(figures("zoo", *exact, far))] == ["**missed**"] * 3
    assert [g.verdict for g in goals(figures("hard", *exact, far))] == ["**missed**", "met", "met"]
    assert [g.verdict for g in goals(figures("focus", *exact, far))] == ["**missed**"]
    shrunk = [
        network(f"P: pruned {k}", 0.5, (0.5, t), parent="P", shrunk={"g": 1, "h": 1})
        for k, t in ((0, 0.5), (1, 0.5))
    ]
    signs = removals((-0.1, -0.2, -0.2))
    assert [g.verdict for g in goals(figures("removal", *signs, *shrunk))] == ["met", "met"]
    wrong = removals((0.1, -0.2, -0.2))
    assert [g.verdict for g in goals(figures("removal", *wrong, *shrunk))] == ["**missed**", "met"]


def test_a_fresh_profile_of_five_minutes_is_allowed_more() -> None:
    one = network("A", 1.04, (1.0, 1.0))
    shipped = goals(figures("zoo", one))[0]
    fresh = goals(figures("zoo", one, shipped=False, budget_s=300.0))[0]
    long = goals(figures("zoo", one, shipped=False, budget_s=3000.0))[0]
    assert (shipped.verdict, fresh.verdict, long.verdict) == ("**missed**", "met", "**missed**")


def test_the_page_holds_every_result_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "accuracy"
    folder.mkdir()
    networks = [network(str(t), 1.1 * t, (t, t)) for t in (0.01, 0.02, 0.03)]
    for name, found in {"zoo": networks, "removal": removals((-0.1, -0.2, -0.2))}.items():
        for threads in (1, 2):
            (folder / f"{name}-{threads}.json").write_bytes(
                msgspec.json.encode(figures(name, *found, threads=threads))
            )
    write_page(folder)
    page = (tmp_path / "accuracy.md").read_text()
    for text in (
        "| zoo | eager, 1 (`some-profile-1t`, 190 s) | 3 | **10.0 %** |",
        "| zoo | eager, 2 (`some-profile-2t`, 190 s) | 3 | **10.0 %** |",
        "| zoo | eager, 1 | mean absolute error, at most 3 % | 10.0 % | 0.0 % | **missed** |",
        "| removal | eager, 1 | sign of a large effect right, at least 99 % | 100.0 % | 100.0 % | met |",
        "| conv2d | 3.0 % median, 4.0 % mean of 12 |",
        "FLOPs times a constant",
        "Missing: Lost (CaptureError: no).",
    ):
        assert text in page
    for picture in ("zoo-1", "zoo-2", "removal-1", "removal-2"):
        assert f"(accuracy/{picture}.png)" in page
        assert (folder / f"{picture}.png").read_bytes().startswith(b"\x89PNG")


def test_morphnets_latency_by_hand() -> None:
    def linear(rows: int, inputs: int, outputs: int) -> OpSpec:
        operands = (
            TensorSpec("input", (rows, inputs)),
            TensorSpec("weight", (outputs, inputs), parameter=True),
        )
        return OpSpec("linear", operands, (TensorSpec("out", (rows, outputs)),))

    roofs = Roofs(1e9, ((1e3, 1e9),), 0.0, {})
    wide, thin = linear(100, 100, 100), linear(1, 100, 100)
    unknown = OpSpec("unknown:mystery", (TensorSpec("x", (5,)),), (TensorSpec("out", (5,)),))
    # 2 x 100^3 FLOPs against 3 x 100^2 x 4 bytes; 2 x 100^2 FLOPs against (100 + 100 + 100^2) x 4 bytes.
    assert accuracy.roofline_s(roofs, [wide, thin, unknown]) == pytest.approx(2e-3 + 40_800e-9)


def test_a_journal_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    path, head = tmp_path / "j.jsonl", {"set": "zoo"}
    taken = Round("2026-01-03T00:00", 1.0, (1.0,), (1e-3,))
    journal = accuracy.Journal(path, head, resume=False)
    journal.add("A", 0, taken)
    journal.close()
    path.write_text(path.read_text() + '{"name": "B", "num')
    again = accuracy.Journal(path, head, resume=True)
    assert again.taken == {("A", 0): taken}
    again.add("B", 0, taken)
    again.close()
    both = accuracy.Journal(path, head, resume=True)
    assert set(both.taken) == {("A", 0), ("B", 0)}
    both.close()
    for other, resume in (({"set": "hard"}, True), (head, False)):
        fresh = accuracy.Journal(path, other, resume)
        assert fresh.taken == {}
        fresh.close()


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 40, 3, bias=False),
        nn.BatchNorm2d(40),
        nn.ReLU(),
        nn.Conv2d(40, 24, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(1),
        nn.Linear(24, 10),
    )


@pytest.fixture
def parent(monkeypatch: pytest.MonkeyPatch) -> Case:
    written = {"small": zoo.ZooNetwork("small", small, lambda batch: (torch.rand(batch, 3, 64, 64),))}
    monkeypatch.setattr(cases, "written_out", lambda: written)
    return Case("small", Designed("small"))


def test_removals_are_of_groups_that_can_shrink_and_leave_what_they_say(parent: Case) -> None:
    graph = lm.capture(*parent.make())
    width = {graph.groups[g].name: graph.groups[g].width for g in graph.prunable}
    random = np.random.default_rng(0)
    single, whole = cases.one_group(graph, 12, random), cases.all_groups(graph, 6, random)
    assert len(single) == 12
    assert len(whole) == 6
    assert all(len(w) == 1 and 1 <= left < width[g] for w in single for g, left in w.items())
    assert {g for w in single for g in w} == set(width)
    assert all(set(w) == set(width) and 1 <= left <= width[g] for w in whole for g, left in w.items())
    for widths in (single[0], whole[0]):
        made = cases.shrunk(parent, graph, widths)
        assert made.parent == "small"
        assert made.shrunk == {g: left for g, left in widths.items() if left < width[g]}
        # As another process has it: from plain values.
        left = lm.capture(*msgspec.convert(msgspec.to_builtins(made), Case).make())
        for group, wanted in widths.items():
            assert left.groups[left.group(group)].width == wanted


def test_a_removal_is_predicted_by_the_change_of_the_parents_cost(
    simulated_profile: Profile, parent: Case
) -> None:
    graph = lm.capture(*parent.make())
    before = accuracy.whole(simulated_profile, graph, parent)
    name = graph.groups[graph.prunable[0]].name
    after = accuracy.removal(simulated_profile, graph, {name: 8}, before)
    alone = accuracy.whole(simulated_profile, None, cases.shrunk(parent, graph, {name: 8}))
    assert after.flops == alone.flops
    assert after.roofline_s == pytest.approx(alone.roofline_s)
    # The same operators; the cost keeps the parent's places, which the model hears of as features.
    assert after.predicted_s == pytest.approx(alone.predicted_s, rel=0.1)
    assert after.predicted_s < before.predicted_s


def test_a_set_is_the_same_for_another_process() -> None:
    for name in ("zoo", "hard"):
        for case in cases.cases_of(name, seed=3, limit=2).networks:
            again = msgspec.json.decode(msgspec.json.encode(case), type=Case)
            (one, inputs), (other, same) = case.make(), again.make()
            assert all(torch.equal(a, b) for a, b in zip(inputs, same, strict=True))
            assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_run_is_written_and_predicted_anew(tmp_path: Path, profiles_folder: Path) -> None:
    output = tmp_path / "docs" / "accuracy"
    words = ["--set", "hard", "--limit", "2", "--profile", "here", "-o", str(output)]
    words += ["--passes", "1", "--journals", str(tmp_path / "journals")]
    accuracy.main(words)
    path = output / "here-hard.json"
    first = msgspec.json.decode(path.read_bytes(), type=Figures)
    assert [n.name for n in first.networks] == [f"hard {h.name}" for h in hard_set.hard_set(0, 2)]
    assert all(len(n.rounds) == accuracy.ROUNDS and n.measured_s > 0 for n in first.networks)
    assert not first.failed
    assert list((tmp_path / "journals").iterdir()) == []
    assert "the hard set" in (tmp_path / "docs" / "accuracy.md").read_text()
    # A prediction that someone spoilt is put right, and what was measured stays.
    spoilt = msgspec.structs.replace(
        first, networks=tuple(msgspec.structs.replace(n, predicted_s=1.0) for n in first.networks)
    )
    path.write_bytes(msgspec.json.encode(spoilt))
    accuracy.main([*words, "--predict"])
    assert msgspec.json.decode(path.read_bytes(), type=Figures) == first


def test_networks_are_exported_once_for_onnx_runtime(tmp_path: Path, parent: Case) -> None:
    pytest.importorskip("onnxruntime")
    args = Namespace(journals=tmp_path)
    profile: Any = SimpleNamespace(fingerprint=SimpleNamespace(runtime="onnxruntime"))
    plan = accuracy.Plan([parent])
    predicted = {"small": accuracy.Forecast(1, 1.0, 1.0, (0.5, 2.0), (), "digest")}
    failed: dict[str, str] = {}
    journal = accuracy.Journal(tmp_path / "journal", {}, resume=False)
    measuring = accuracy.Measuring(args, profile, plan, predicted, failed, journal)
    files = measuring.files()
    assert not failed
    first = Path(files["small"])
    written = first.stat().st_mtime_ns
    assert lm.capture(first).flops == lm.capture(*parent.make()).flops
    assert measuring.files() == files
    assert first.stat().st_mtime_ns == written


def test_one_network_that_cannot_run_does_not_take_others_along(
    tmp_path: Path, profiles_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_one(name: str, **settings: object) -> Cases:
        good, bad = cases.cases_of("hard", limit=2).networks
        gone = Drawn(msgspec.structs.replace(bad.source.network, family="no such family"))
        return Cases([good, Case(bad.name, gone)])

    def predicted(plan: object, profile: Profile, failed: dict[str, str]) -> dict[str, accuracy.Forecast]:
        names = [c.name for c in without_one("hard").networks]
        return {name: accuracy.Forecast(1, 1.0, 1.0, (0.5, 2.0), (), name) for name in names}

    monkeypatch.setattr(accuracy, "cases_of", without_one)
    monkeypatch.setattr(accuracy, "forecasts", predicted)
    accuracy.main(
        [
            *("--set", "hard", "zoo", "--profile", "here"),
            *("-o", str(tmp_path / "a"), "--journals", str(tmp_path / "j")),
        ]
    )
    good, bad = (c.name for c in without_one("hard").networks)
    for name in ("hard", "zoo"):
        found = msgspec.json.decode((tmp_path / "a" / f"here-{name}.json").read_bytes(), type=Figures)
        assert [n.name for n in found.networks] == [good]
        assert found.failed.keys() == {bad}
        assert "KeyError" in found.failed[bad]


def widths_of(model: nn.Module) -> list[int]:
    """Channels out of every layer but the last, which are the classes."""
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return [m.out_channels if isinstance(m, nn.Conv2d) else m.out_features for m in layers][:-1]


@pytest.fixture(scope="module")
def drawn() -> tuple[hard_set.HardNetwork, ...]:
    return hard_set.hard_set(5, 20)


def test_half_of_the_hard_sets_widths_are_odd(drawn: tuple[hard_set.HardNetwork, ...]) -> None:
    found = [width for h in drawn for width in widths_of(h.make())]
    assert 0.42 <= np.mean([width % 2 for width in found]) <= 0.62


def test_drawn_widths_are_odd_or_off_an_edge_half_of_the_time() -> None:
    draw = hard_set.Draw(np.random.default_rng(0))
    found = np.array([draw.width(64) for _ in range(4000)])
    assert abs(np.mean(found % 2) - 0.5) < 0.03
    beside = np.isin(found % 8, (1, 7))
    assert np.mean(beside) > 0.3  # of odd numbers drawn evenly, half would be: a quarter of all


def test_a_seed_draws_the_same_networks_every_time() -> None:
    for index in (0, 5):
        one, again = hard_set.hard_network(11, index), hard_set.hard_network(11, index)
        assert (one.name, one.shape) == (again.name, again.shape)
        a, b = one.make().state_dict(), again.make().state_dict()
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    names = [h.name for h in hard_set.hard_set(11, 6)]
    assert names != [h.name for h in hard_set.hard_set(12, 6)]


def test_hard_networks_run_within_their_flops(drawn: tuple[hard_set.HardNetwork, ...]) -> None:
    for h in drawn[:6]:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            assert h.make()(torch.rand(h.shape)).isfinite().all()
        assert hard_set.LEAST_FLOPS <= counter.get_total_flops() <= hard_set.MOST_FLOPS


def test_two_in_five_hard_networks_are_built_of_depthwise_convolutions(
    drawn: tuple[hard_set.HardNetwork, ...],
) -> None:
    families = [h.family for h in drawn]
    assert {"plain", "basic", "bottleneck", "branches", "transformer"} <= set(families)
    assert sum(family in hard_set.DEPTHWISE for family in families) in (7, 8)
    for h in drawn:
        if h.family in hard_set.DEPTHWISE:
            layers = [m for m in h.make().modules() if isinstance(m, nn.Conv2d)]
            assert any(m.groups == m.in_channels > 1 for m in layers)


def test_networks_written_out_are_made_with_the_same_weights_every_time() -> None:
    one = zoo.written_out()["MobileNetV2"]
    a, b = one.make(), one.make()
    assert not a.training
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert [tuple(x.shape) for x in one.inputs(2)] == [(2, 3, 224, 224)]


def test_pictures_are_normalised_and_have_a_photographs_spectrum() -> None:
    x = zoo.picture((2, 3, 64, 128))
    assert x.shape == (2, 3, 64, 128)
    assert torch.allclose(x.mean((2, 3)), torch.zeros(2, 3), atol=1e-5)
    assert torch.allclose(x.std((2, 3)), torch.ones(2, 3), atol=1e-5)
    frequency = torch.hypot(torch.fft.fftfreq(64)[:, None], torch.fft.fftfreq(128)[None])
    power = torch.fft.fft2(x).abs().square().mean((0, 1))
    rings = [power[(low <= frequency) & (frequency < 2 * low)].mean() for low in (0.05, 0.1, 0.2)]
    assert torch.stack(rings).log2().diff().tolist() == pytest.approx([-2.0] * 2, abs=0.3)
    assert torch.equal(x, zoo.picture((2, 3, 64, 128)))


def test_overhead_is_taken_pair_by_pair() -> None:
    assert Pairs("x", (1.0, 2.0), (1.5, 2.0)).ratios.tolist() == [1.5, 1.0]
