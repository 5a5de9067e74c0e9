"""The adaptive plan, with a committee whose doubts are planted."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from latmorph.device.roofs import Roofs
from latmorph.device.sampling import NetworkBuilder
from latmorph.device.timing import CHOSEN, Journal, Plan, Visit
from latmorph.errors import ProfileError
from latmorph.latency import planning
from latmorph.latency.planning import CANDIDATES, AdaptivePlan
from latmorph.opspec import OpSpec, Step, footprint_bytes

ROOFS = Roofs(1e9, ((1e3, 1e9),), 1e-6, {})


class Numbered(Plan):
    """The network of a number has that many channels and one more."""

    def steps(self, network: int) -> tuple[Step, ...]:
        net = NetworkBuilder((1, 1 + abs(network) % CHOSEN, 2, 2))
        net.activation(-1, "relu", inplace=False)
        return tuple(net.steps)


def doubt(network: int) -> int:
    """How much is planted about a network: no two of a pool alike, and in no order."""
    return network * 37 % 101


@dataclass
class Planted:
    """A committee that doubts as planted; it notes the footprints that it is told."""

    error_percent: float
    footprints: dict[int, float]

    def disagreement(self, specs: Sequence[OpSpec], footprint: float) -> float:
        network = specs[0].out.shape[1] - 1
        self.footprints[network] = footprint - footprint_bytes(specs)
        return float(doubt(network))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.jsonl", {})
    yield journal
    journal.close()


@pytest.fixture
def committee(monkeypatch: pytest.MonkeyPatch) -> Planted:
    planted = Planted(10.0, {})

    class Committees:
        @staticmethod
        def of(roofs: Roofs, visits: Sequence[Visit], **settings: Any) -> Planted:
            if len(visits) < 6:
                raise ProfileError("too few")
            return planted

    monkeypatch.setattr(planning, "Committee", Committees)
    return planted


def adaptive(journal: Journal, *, focus: int = 0, **fields: Any) -> AdaptivePlan:
    plan = Numbered(3, round_size=8, focus=tuple(Numbered().steps(-n) for n in range(focus)))
    return AdaptivePlan(
        plan, ROOFS, journal, lambda many: [[s.spec for s in steps] for steps in many], **fields
    )


def play(plan: AdaptivePlan, count: int) -> list[int]:
    """The first networks of a plan, each of which is measured before the next is asked for."""
    networks = []
    for network, visit in itertools.islice(plan, count):
        assert visit == 0
        specs = tuple(s.spec for s in plan.steps(network))
        plan.journal.visits.append(Visit(network, 0, 0, specs, ((1e-3,),), (1e-3,), (1e-3,), ()))
        networks.append(network)
    return networks


def test_half_of_a_round_is_drawn_blindly_and_half_chosen_for_the_models_doubts(
    journal: Journal, committee: Planted
) -> None:
    networks = play(adaptive(journal), 16)
    first, second = networks[:8], networks[8:]
    # Nothing is known yet, so the chosen are simply the first of their pool.
    assert sorted(first) == [0, 1, 2, 3, *(CHOSEN + n for n in range(4, 8))]
    assert first != sorted(first)
    start = 4 + CANDIDATES * 4
    pool = range(start + 4, start + 4 + CANDIDATES * 4)
    most = sorted(sorted(pool, key=doubt)[-4:])
    assert most != list(pool)[:4]
    assert sorted(second) == [*range(start, start + 4), *(CHOSEN + n for n in most)]


def test_doubts_are_of_networks_as_they_will_be_measured(journal: Journal, committee: Planted) -> None:
    plan = adaptive(journal)
    play(plan, 16)
    assert len(committee.footprints) == CANDIDATES * 4
    scratch = {n: plan.plan.scratch_bytes(CHOSEN + n, plan.steps(n)) for n in committee.footprints}
    assert committee.footprints == scratch


def test_no_network_is_measured_twice_and_rounds_grow(journal: Journal, committee: Planted) -> None:
    networks = play(adaptive(journal), 200)
    assert len({n % CHOSEN for n in networks}) == 200
    blind = [n for n in networks if n < CHOSEN]
    assert 80 <= len(blind) <= 120
    # A later round is as large as a share of all before it: long stretches have no fit between them.
    assert max(b - a for a, b in itertools.pairwise(sorted(blind))) > CANDIDATES * 4 + 1


def test_rounds_grow_no_further_than_the_largest(
    journal: Journal, committee: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What lies between two blind networks is the pool that the round before has chosen from.
    monkeypatch.setattr("latmorph.latency.planning.LARGEST_ROUND", 8)
    blind = sorted(n for n in play(adaptive(journal), 200) if n < CHOSEN)
    assert max(b - a for a, b in itertools.pairwise(blind)) == CANDIDATES * 4 + 1


@pytest.mark.parametrize(("asked", "ends"), [(10.0, True), (12.0, True), (9.9, False), (0.0, False)])
def test_the_plan_ends_once_held_out_networks_are_predicted_as_well_as_asked(
    journal: Journal, committee: Planted, asked: float, ends: bool
) -> None:
    networks = play(adaptive(journal, error_percent=asked), 30)
    assert len(networks) == (8 if ends else 30)


def test_what_earlier_runs_are_predicted_to_ends_no_run(journal: Journal, committee: Planted) -> None:
    before = len(play(adaptive(journal), 16))
    assert len(play(adaptive(journal, error_percent=12.0, run=1), 30)) == 30  # none is of run 1
    for k, visit in enumerate(journal.visits[before:], start=before):
        journal.visits[k] = dataclasses.replace(visit, run=1)
    assert not play(adaptive(journal, error_percent=12.0, run=1), 30)


def test_with_too_few_networks_for_a_fit_the_plan_neither_ends_nor_fails(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = adaptive(journal, error_percent=1e9)
    # Only four of the first round were measured when the next is asked for: fits need six.
    jobs = iter(plan)
    for _ in range(8):
        network, _ = next(jobs)
        if len(journal.visits) < 4:
            specs = tuple(s.spec for s in plan.steps(network))
            journal.visits.append(Visit(network, 0, 0, specs, ((1e-3,),), (1e-3,), (1e-3,), ()))
    assert next(jobs)[0] % CHOSEN >= 8


def test_a_run_that_goes_on_draws_networks_that_it_has_not_seen(journal: Journal, committee: Planted) -> None:
    before = play(adaptive(journal), 5)
    again = play(adaptive(journal), 8)
    assert not {n % CHOSEN for n in before} & {n % CHOSEN for n in again}
    assert sum(n < CHOSEN for n in again) == 4


def test_every_network_of_focus_is_measured_once_and_they_are_half_of_a_round_while_they_last(
    journal: Journal, committee: Planted
) -> None:
    networks = play(adaptive(journal, focus=20), 64)
    assert sorted(n for n in networks[:16] if n < 0) == list(range(-8, 0))
    assert sorted(n for n in networks if n < 0) == list(range(-20, 0))


def test_an_interrupted_run_has_all_of_its_focus_still(journal: Journal, committee: Planted) -> None:
    before = play(adaptive(journal, focus=20), 11)
    after = play(adaptive(journal, focus=20), 64)
    assert sorted(n for n in [*before, *after] if n < 0) == list(range(-20, 0))
