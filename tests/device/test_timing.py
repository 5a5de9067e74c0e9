"""Timing against planted clocks: stop rule, visits, plan, journal, spells, interleaving."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from latmorph.device.backend import Backend, Session, StepSession
from latmorph.device.fingerprint import Fingerprint
from latmorph.device.sampling import NetworkBuilder
from latmorph.device.simulated import Simulated
from latmorph.device.timing import (
    CHOSEN,
    ELSEWHERE,
    MOST_UNSETTLED,
    SETTLED_S,
    TIMED,
    Journal,
    Plan,
    StopRule,
    Timing,
    Visit,
    Visitor,
    calm_reference_s,
    calm_s,
    collect,
    in_calm_s,
    made_here,
    next_run,
    observations,
    runs,
    settle,
    settled_reference_s,
    shuffled,
    time_calls,
    visit_network,
)
from latmorph.opspec import OpSpec, Step

SMALL = 1e7
"""FLOPs of the largest sampled networks here: small ones, since their times come from a formula."""

AGREE = StopRule(least=2, most=3)


class Spells(Backend):
    """Every load begins a stretch in which the device is a planted factor slower; else a plain formula."""

    def __init__(self, factors: Sequence[float]) -> None:
        self.factors = iter(factors)
        self.factor = 1.0
        self.loads = 0
        self.device = Simulated()

    def fingerprint(self) -> Fingerprint:
        return self.device.fingerprint()

    def load(self, steps: Sequence[Step], scratch_bytes: int = 0) -> Session:
        self.loads += 1
        self.factor = next(self.factors, 1.0)
        return _SpellSession(self, steps, [self.device.true_time_s(s.spec) for s in steps])

    def reference(self) -> float:
        return 1e-3 * self.factor

    def traffic(self) -> float:
        return 2e-3 * self.factor

    def time_call(self, call: Callable[[], object]) -> float:
        call()
        return self.reference()


class _SpellSession(StepSession):
    def __init__(self, backend: Spells, steps: Sequence[Step], times: list[float]) -> None:
        super().__init__()
        self.backend = backend
        self.steps = steps
        self.times = times

    def specs(self) -> tuple[OpSpec, ...]:
        return tuple(step.spec for step in self.steps)

    def clock_steps(self) -> list[float]:
        return [t * self.backend.factor for t in self.times]

    def time_whole(self) -> float:
        return sum(self.times) * self.backend.factor


class Logged(Spells):
    """Writes down what is asked of it; the first pass takes ten times as long, and of each kind if apart."""

    def __init__(self, apart: bool) -> None:
        super().__init__([])
        self.apart = apart
        self.log: list[str] = []

    def load(self, steps: Sequence[Step], scratch_bytes: int = 0) -> Session:
        self.log.append(f"load {scratch_bytes}")
        session = _LoggedSession(self, steps, [self.device.true_time_s(s.spec) for s in steps])
        session.apart = self.apart
        return session

    def reference(self) -> float:
        self.log.append("reference")
        return 1e-3

    def traffic(self) -> float:
        self.log.append("traffic")
        return 2e-3


class _LoggedSession(_SpellSession):
    backend: Logged

    def disturb(self) -> None:
        self.backend.log.append("disturb")

    def _factor(self, what: str) -> float:
        before = {"steps", "whole"} & set(self.backend.log)
        self.backend.log.append(what)
        return 1.0 if what in before or (before and not self.apart) else 10.0

    def clock_steps(self) -> list[float]:
        factor = self._factor("steps")
        return [t * factor for t in self.times]

    def time_whole(self) -> float:
        return sum(self.times) * self._factor("whole")


def chain(width: int = 8, layers: int = 2) -> tuple[Step, ...]:
    net = NetworkBuilder((1, width, 4, 4))
    x = -1
    for _ in range(layers):
        x = net.activation(net.conv(x, width, 3), "relu", inplace=False)
    return tuple(net.steps)


def take(plan: Plan, count: int) -> list[tuple[int, int]]:
    return list(itertools.islice(iter(plan), count))


def hand_visit(network: int, visit: int, times_s: Sequence[float], reference_s: float) -> Visit:
    specs = tuple(s.spec for s in chain(layers=1))
    return Visit(
        network,
        visit,
        1000,
        specs,
        tuple((t, 2 * t) for t in times_s),
        (sum(times_s), 3 * sum(times_s)),
        (1.5 * reference_s, reference_s),
        (),
    )


# --- StopRule


@pytest.mark.parametrize(
    ("totals", "spent_s", "stops"),
    [
        ([1.0] * 3, 0.0, False),  # fewer than the least
        ([1.0] * 4, 0.0, True),
        ([9.0, 9.0, 1.0, 1.01, 1.03], 0.0, False),  # the third smallest is 3 % above
        ([9.0, 9.0, 1.0, 1.01, 1.019], 0.0, True),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 0.39, False),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 0.4, True),  # time is up
        ([float(2**k) for k in range(5)], 0.0, False),
        ([float(2**k) for k in range(6)], 0.0, True),  # as many passes as allowed
        ([1.0], 0.79, False),  # a slow network still gets its least ...
        ([1.0], 0.8, True),  # ... unless it takes twice the time
    ],
)
def test_the_stop_rule(totals: list[float], spent_s: float, stops: bool) -> None:
    assert StopRule().enough(totals, spent_s) is stops


# --- calm_s


@pytest.mark.parametrize(
    ("samples", "calm"),
    [
        ([3.0], 3.0),
        ([5.0, 3.0], 3.0),
        ([9.0, 1.0, 2.0], 1.5),  # of three the two smallest
        ([8.0, 1.0, 2.0, 100.0], 1.5),
        ([8.0, 1.0, 2.0, 100.0, 3.0], 2.0),
    ],
)
def test_a_calm_time_is_the_mean_of_the_smaller_half(samples: list[float], calm: float) -> None:
    assert calm_s(samples) == pytest.approx(calm)
    assert calm_s(samples[::-1]) == calm_s(samples)


def test_a_calm_time_does_not_fall_with_the_number_of_samples() -> None:
    # Half-normal noise: the mean of the smaller half is 0.325, as numbers of that density give it.
    random = np.random.default_rng(0)
    few, many = (np.mean([calm_s(np.abs(random.normal(size=n))) for _ in range(2000)]) for n in (4, 40))
    assert many == pytest.approx(0.325, abs=0.02)
    assert few == pytest.approx(many, rel=0.25)
    smallest = np.mean([np.abs(random.normal(size=40)).min() for _ in range(2000)])
    assert smallest < 0.1 * many  # the smallest sample does


# --- visit_network


def test_a_visit_holds_the_planted_times_of_every_step() -> None:
    device, steps = Simulated(overhead_s=3e-6), chain(16, 3)
    visit = visit_network(device, 7, 1, steps, 5000, StopRule(least=4, most=9))
    true = [device.true_time_s(s.spec) for s in steps]
    assert (visit.network, visit.visit) == (7, 1)
    assert visit.specs == tuple(s.spec for s in steps)
    assert visit.times_s == tuple((t,) * 4 for t in true)  # without noise the least is enough
    assert visit.whole_s == pytest.approx([sum(true)] * 4)
    assert visit.reference_s == 1e-3
    # Three 3x3 convolutions of 16 channels, the largest activations 2 x 16 x 4 x 4, and the scratch.
    assert visit.footprint_bytes == 3 * 16 * 16 * 9 * 4 + 2 * 16 * 16 * 4 + 5000


def test_a_noisy_visit_takes_as_many_passes_as_allowed() -> None:
    visit = visit_network(Simulated(noise=1.0), 0, 0, chain(), 0, StopRule(spread=0.0, least=2, most=7))
    assert [len(t) for t in visit.times_s] == [7] * 4
    assert len(visit.whole_s) == 4
    assert len(visit.references_s) == 7 + 4
    assert len(visit.traffic_s) == 4


@pytest.mark.parametrize("apart", [False, True])
def test_a_visit_warms_the_network_and_runs_the_reference_before_every_pass(apart: bool) -> None:
    device = Logged(apart)
    visit = visit_network(device, 0, 0, chain(), 64, StopRule(least=3, most=3))
    yardstick = ["reference"] * 3  # of a millisecond each: two forget what ran before, one is read
    assert device.log == [
        "load 64",
        *["traffic"] * 2,
        *["disturb", *yardstick, "steps"] * MOST_UNSETTLED,  # untimed: all take microseconds here
        *["disturb", *yardstick, "steps"] * 3,
        *["disturb", *yardstick, "whole"] * (MOST_UNSETTLED * apart),
        *["disturb", *yardstick, "whole"] * 4,
        *["traffic"] * 2,
    ]
    true = [device.device.true_time_s(s.spec) for s in chain()]
    assert [max(t) for t in visit.times_s] == true  # the cold passes are not among the samples
    assert max(visit.whole_s) == pytest.approx(sum(true))


def test_the_reference_is_read_when_it_has_forgotten_what_ran_before_it() -> None:
    class Remembering(Simulated):
        """Its reference takes 0.6 ms right after a network, 0.5 the second time, 0.4 from the fourth on."""

        since = 0

        def reference(self) -> float:
            Remembering.since += 1
            return {1: 0.6e-3, 2: 0.5e-3, 3: 0.45e-3}.get(Remembering.since, 0.4e-3)

    assert settled_reference_s(Remembering()) == pytest.approx(0.4e-3)


def test_passes_agree_by_the_reference_beside_them_on_a_machine_that_slows_down() -> None:
    # Everything takes 5 % longer than the thing before it. Raw passes never agree within 2 %, yet each is
    # the same multiple of the reference just before it: the least number of passes is enough.
    class Slowing(Spells):
        def reference(self) -> float:
            self.factor *= 1.05
            return 1e-3 * self.factor

    class SlowingSession(_SpellSession):
        def clock_steps(self) -> list[float]:
            self.backend.factor *= 1.05
            return super().clock_steps()

        def time_whole(self) -> float:
            self.backend.factor *= 1.05
            return super().time_whole()

    class Loaded(Slowing):
        def load(self, steps: Sequence[Step], scratch_bytes: int = 0) -> Session:
            return SlowingSession(self, steps, [1e-3 for _ in steps])

    visit = visit_network(Loaded([]), 0, 0, chain(), 0, StopRule(least=3, most=30))
    assert len(visit.times_s[0]) == 3
    assert visit.times_s[0][2] > 1.15 * visit.times_s[0][0]


# --- Plan


def test_networks_are_visited_once_round_by_round() -> None:
    jobs = take(Plan(3, SMALL), 48)
    assert sorted(jobs[:24]) == [(n, 0) for n in range(24)]
    assert sorted(jobs[24:]) == [(n, 0) for n in range(24, 48)]


def test_the_order_is_random_and_the_same_for_the_same_seed() -> None:
    order = take(Plan(3, SMALL), 24)
    assert order == take(Plan(3, SMALL), 24)
    assert order != sorted(order)
    assert order != take(Plan(4, SMALL), 24)
    assert [n + 24 for n, _ in order] != [n for n, _ in take(Plan(3, SMALL), 48)[24:]]


def test_shuffled_networks_have_all_their_visits_apart() -> None:
    jobs = list(shuffled(range(-5, 25), (7, 1), visits=2))
    assert sorted(jobs) == [(n, v) for n in range(-5, 25) for v in range(2)]
    assert jobs == list(shuffled(range(-5, 25), (7, 1), visits=2))
    assert jobs != list(shuffled(range(-5, 25), (7, 2), visits=2))
    # One spell does not take both: on average a third of all the jobs lie between them.
    apart = [abs(jobs.index((n, 0)) - jobs.index((n, 1))) for n in range(-5, 25)]
    assert np.mean(apart) > 10


def test_focus_networks_are_numbered_from_minus_one_down_and_are_half_of_a_round_while_they_last() -> None:
    focus = tuple(chain(8 + i, 1) for i in range(5))
    plan = Plan(0, SMALL, focus=focus, round_size=3)
    jobs = take(plan, 6 + 5 + 3)
    first, second, third = jobs[:6], jobs[6:11], jobs[11:]
    assert sorted(n for n, _ in first) == [-3, -2, -1, 0, 1, 2]
    assert sorted(n for n, _ in second) == [-5, -4, 3, 4, 5]
    assert sorted(n for n, _ in third) == [6, 7, 8]
    assert [plan.steps(-1 - i) for i in range(5)] == list(focus)


def test_a_network_that_was_chosen_is_the_one_that_would_have_been_drawn() -> None:
    plan = Plan(2, SMALL)
    for network in (0, 7, 4321):
        assert plan.steps(CHOSEN + network) == plan.steps(network)
        steps = plan.steps(network)
        assert plan.scratch_bytes(CHOSEN + network, steps) == plan.scratch_bytes(network, steps)


def test_sampled_networks_follow_the_plans_seed() -> None:
    plan = Plan(1, SMALL)
    assert plan.steps(4) == Plan(1, SMALL).steps(4)
    assert plan.steps(4) != plan.steps(5)
    assert plan.steps(4) != Plan(2, SMALL).steps(4)


def test_sampled_networks_have_the_plans_dtype() -> None:
    for network in range(6):
        steps = Plan(0, SMALL, "bfloat16").steps(network)
        dtypes = {t.dtype for s in steps for t in (*s.spec.inputs, *s.spec.outputs)}
        assert "bfloat16" in dtypes
        assert not any("float" in dtype for dtype in dtypes - {"bfloat16"})


def test_a_fifth_of_sampled_networks_and_all_whole_ones_find_the_caches_as_they_left_them() -> None:
    plan = Plan(0, 5e8, focus=(chain(),) * 30)
    assert all(plan.scratch_bytes(-1 - i, plan.steps(-1 - i)) == 0 for i in range(30))
    drawn = [(n, plan.steps(n)) for n in range(400)]
    long = [len(steps) >= 100 for _, steps in drawn]
    scratch = [plan.scratch_bytes(n, steps) for n, steps in drawn]
    assert scratch == [Plan(0, 5e8).scratch_bytes(n, steps) for n, steps in drawn]
    assert all(s == 0 or 2**20 <= s <= 2**27 for s in scratch)
    assert sum(long) > 20
    assert not any(s for s, is_long in zip(scratch, long, strict=True) if is_long)
    # A binomial at 0.2 lies this close to its mean but for one case in 10^4.
    parts = [s for s, is_long in zip(scratch, long, strict=True) if not is_long]
    assert abs(sum(s == 0 for s in parts) - 0.2 * len(parts)) <= 4 * (0.16 * len(parts)) ** 0.5


# --- Journal


HEAD = {"format": "test", "seed": 1}


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, list[Visit]]:
    """A journal of four visits, times in whole nanoseconds, and its visits."""
    device = Simulated(noise=0.3)
    visits = []
    for k in range(4):
        visit = visit_network(device, k // 2 - 1, k % 2, chain(8, 1 + k // 2), 0, AGREE)
        visits.append(replace(visit, times_s=tuple(tuple(round(t, 9) for t in ts) for ts in visit.times_s)))
    path = tmp_path / "deep" / "journal.jsonl"
    journal = Journal(path, HEAD)
    journal.add_roofs({"peak": 1.5}, 2.0)
    for visit in visits:
        journal.add(visit, 10.0)
    journal.close()
    return path, visits


def test_a_new_journal_is_empty(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", HEAD)
    assert (journal.visits, journal.spent_s, journal.roofs) == ([], 0.0, None)
    assert not journal.resumed
    assert not journal.replaced
    journal.close()


def test_a_journal_resumes_with_its_visits_roofs_and_time(written: tuple[Path, list[Visit]]) -> None:
    path, visits = written
    journal = Journal(path, HEAD)
    assert journal.resumed
    assert not journal.replaced
    assert journal.visits == visits
    assert journal.roofs == {"peak": 1.5}
    assert journal.spent_s == 42.0
    journal.close()


def test_a_journal_can_be_resumed_again_and_again(written: tuple[Path, list[Visit]]) -> None:
    path, visits = written
    for k in range(3):
        journal = Journal(path, HEAD)
        journal.add(replace(visits[0], visit=10 + k), 1.0)
        journal.close()
    journal = Journal(path, HEAD)
    journal.close()
    assert [v.visit for v in journal.visits] == [0, 1, 0, 1, 10, 11, 12]
    assert journal.spent_s == 45.0


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, 1.0])
def test_a_last_line_cut_short_is_forgotten_and_what_follows_is_kept(
    written: tuple[Path, list[Visit]], share: float
) -> None:
    path, visits = written
    text = path.read_text()
    *whole, last = text.splitlines()
    kept = min(round(share * len(last)), len(last) - 1)
    path.write_text("\n".join([*whole, last[:kept]]))
    journal = Journal(path, HEAD)
    assert journal.visits == visits[:-1]
    assert journal.spent_s == 32.0
    journal.add(visits[-1], 10.0)
    journal.close()
    again = Journal(path, HEAD)
    again.close()
    assert again.visits == visits


def test_a_last_line_that_lacks_only_its_end_of_line_is_kept(written: tuple[Path, list[Visit]]) -> None:
    path, visits = written
    path.write_text(path.read_text().rstrip("\n"))
    journal = Journal(path, HEAD)
    assert journal.visits == visits
    journal.add(replace(visits[0], visit=9), 1.0)
    journal.close()
    again = Journal(path, HEAD)
    again.close()
    assert [v.visit for v in again.visits] == [0, 1, 0, 1, 9]


@pytest.mark.parametrize("head", [{"format": "test", "seed": 2}, {"format": "test"}, {}])
def test_a_journal_of_another_run_is_replaced(
    written: tuple[Path, list[Visit]], head: dict[str, object]
) -> None:
    path, _ = written
    journal = Journal(path, head)
    assert journal.replaced
    assert not journal.resumed
    assert journal.visits == []
    assert journal.spent_s == 0.0
    journal.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"head": head}]


def test_a_journal_whose_first_line_was_cut_short_is_replaced(written: tuple[Path, list[Visit]]) -> None:
    path, _ = written
    path.write_text(path.read_text()[:10])
    journal = Journal(path, HEAD)
    journal.close()
    assert journal.replaced
    assert journal.visits == []


def test_a_journal_is_on_disk_after_every_visit(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, HEAD)
    for k in range(3):
        journal.add(hand_visit(k, 0, [1e-3, 2e-3], 1e-3), 1.0)
        assert len(path.read_text().splitlines()) == 2 + k
    journal.close()


# --- collect


def visitor(device: Backend) -> Visitor:
    return functools.partial(visit_network, device)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.jsonl", HEAD)
    yield journal
    journal.close()


def test_collect_follows_the_plan_and_stops_at_most_visits(journal: Journal) -> None:
    device, plan = Spells([]), Plan(0, SMALL)
    visits = collect(visitor(device), plan, journal, 1e9, rule=AGREE, most_visits=7)
    assert [(v.network, v.visit) for v in visits] == take(plan, 7)
    assert device.loads == 7
    for v in visits:
        assert v.specs == tuple(s.spec for s in plan.steps(v.network))


def test_collect_does_not_repeat_what_the_journal_holds(tmp_path: Path) -> None:
    plan, path = Plan(0, SMALL), tmp_path / "journal.jsonl"
    first = Journal(path, HEAD)
    before = list(collect(visitor(Spells([])), plan, first, 1e9, rule=AGREE, most_visits=5))
    first.close()
    second, device = Journal(path, HEAD), Spells([])
    visits = collect(visitor(device), plan, second, 1e9, rule=AGREE, most_visits=8)
    second.close()
    assert device.loads == 3
    assert [(v.network, v.visit) for v in visits] == take(plan, 8)
    assert [v.specs for v in visits[:5]] == [v.specs for v in before]


def test_collect_goes_on_where_an_interruption_left_it(journal: Journal) -> None:
    plan, device = Plan(0, SMALL), Spells([])

    def progress(fraction: float, text: str) -> None:
        if len(journal.visits) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(visitor(device), plan, journal, 1e9, rule=AGREE, progress=progress, most_visits=6)
    assert len(journal.visits) == 3
    collect(visitor(device), plan, journal, 1e9, rule=AGREE, most_visits=6)
    assert device.loads == 6
    assert [(v.network, v.visit) for v in journal.visits] == take(plan, 6)


def test_time_spent_before_the_interruption_counts(journal: Journal) -> None:
    journal.add(hand_visit(0, 0, [1e-3, 1e-3], 1e-3), 100.0)
    device = Spells([])
    collect(visitor(device), Plan(0, SMALL), journal, 100.0, rule=AGREE)
    assert device.loads == 0
    collect(visitor(device), Plan(0, SMALL), journal, 1e9, rule=AGREE, most_visits=2)
    assert device.loads == 1


def test_progress_is_told_a_growing_fraction_and_the_number_of_visits(journal: Journal) -> None:
    told: list[tuple[float, str]] = []
    collect(
        visitor(Spells([])),
        Plan(0, SMALL),
        journal,
        1e9,
        rule=AGREE,
        progress=lambda fraction, text: told.append((fraction, text)),
        most_visits=3,
    )
    assert [text for _, text in told] == [f"{k} network visits" for k in (1, 2, 3)]
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert all(0 <= f <= 1 for f in fractions)


# --- observations


def test_the_calm_reference_is_the_lower_quartile_of_the_visits() -> None:
    visits = [hand_visit(k, 0, [1.0, 1.0], 1.0 + k) for k in range(9)]
    assert calm_reference_s(visits) == pytest.approx(3.0)  # the third smallest of nine


def test_operators_sum_to_the_calmer_passes() -> None:
    visit = replace(
        hand_visit(0, 0, [1.0, 1.0], 1.0), times_s=((1.0, 5.0, 2.0, 2.0), (6.0, 1.0, 3.0, 4.0))
    )  # passes of 7, 6, 5 and 6: the calmer half takes 5.5; the operators' own calm times are 1.5 and 2
    found, _ = observations([visit])
    assert [o.time_s for o in found] == pytest.approx([5.5 * 1.5 / 3.5, 5.5 * 2.0 / 3.5])


def test_observations_divide_the_spell_out_by_hand() -> None:
    # Network 0 is seen calm and in a spell of 2; network 1 in a spell only. Nine more hold the calm
    # reference at 1.
    visits = [
        hand_visit(0, 0, [10.0, 20.0], 1.0),
        hand_visit(0, 1, [18.0, 44.0], 2.0),
        dataclasses.replace(hand_visit(1, 0, [6.0, 8.0], 2.0), traffic_s=(5.0, 3.0, 7.0, 3.0)),
        *(dataclasses.replace(hand_visit(2 + k, 0, [1.0, 1.0], 1.0), traffic_s=(1.0,)) for k in range(9)),
    ]
    found, whole = observations(visits)
    seen = {(o.network, o.position): o for o in found}
    # Of two passes the calmer counts; over visits the mean, in units of the reference.
    assert seen[0, 0].time_s == pytest.approx((10.0 + 9.0) / 2)
    assert seen[0, 1].time_s == pytest.approx((20.0 + 22.0) / 2)
    assert seen[1, 0].time_s == pytest.approx(3.0)
    assert seen[1, 1].time_s == pytest.approx(4.0)
    # So is the spell, counted from where all are calm: two visits of twelve were at half speed, one of them
    # the second of network 0. The block was three times slower in network 1.
    assert seen[0, 0].spell == seen[0, 1].spell == pytest.approx((math.log(2) / 2, 0.0))
    assert seen[1, 1].spell == pytest.approx((math.log(2), math.log(3)))
    assert (whole[0].time_s, *whole[0].spell) == pytest.approx((30.5, math.log(2) / 2, 0.0))
    assert (whole[1].time_s, *whole[1].spell) == pytest.approx((7.0, *seen[1, 1].spell))
    assert len(found) == 2 * 11
    assert {o.footprint_bytes for o in found} == {1000}
    assert [o.spec.kind for o in found if o.network == 1] == ["conv2d", "relu"]


def test_without_visits_nothing_was_observed() -> None:
    assert observations([]) == ([], {})


def errors_of(device: Simulated, visits: Sequence[Visit]) -> np.ndarray:
    """Relative errors of all observed times against the planted ones."""
    found, whole = observations(visits)
    errors = [o.time_s / device.true_time_s(o.spec) - 1 for o in found]
    for v in visits:
        errors.append(whole[v.network].time_s / sum(device.true_time_s(s) for s in v.specs) - 1)
    return np.array(errors)


def test_calm_times_come_through_spells_within_single_passes(journal: Journal) -> None:
    # A tenth of all passes are twice as slow, and 2 % noise on everything. A spell is in the smaller half
    # of four samples when three are slow, in one visit of 270, and then only by a part. So many visits that
    # it does not matter which networks are drawn.
    device = Simulated(noise=0.02, spell=0.1)
    visits = collect(visitor(device), Plan(0, SMALL), journal, 1e9, most_visits=96)
    slowest = [
        max(t) / device.true_time_s(s) for v in visits for s, t in zip(v.specs, v.times_s, strict=True)
    ]
    assert np.mean(np.array(slowest) > 1.9) > 0.2  # the spells are in the samples
    assert np.quantile(np.abs(errors_of(device, visits)), 0.95) < 0.04


def test_calm_times_come_through_spells_that_cover_whole_visits(journal: Journal) -> None:
    # Two visits in five are in a spell of 1.2: only the reference tells. It knows the spell exactly here,
    # so the times come out exactly.
    random = np.random.default_rng(0)
    device = Spells([1.2 if random.random() < 0.4 else 1.0 for _ in range(24)])
    visits = collect(visitor(device), Plan(0, SMALL), journal, 1e9, rule=AGREE, most_visits=24)
    slow = [v.reference_s > 1.1e-3 for v in visits]
    assert 6 <= sum(slow) <= 18
    assert np.max(np.abs(errors_of(device.device, visits))) < 1e-9
    found, whole = observations(visits)
    # Counted from the calm visits.
    expected = {v.network: math.log(1.2) * s for v, s in zip(visits, slow, strict=True)}
    assert np.array([o.spell for o in found]) == pytest.approx(
        np.array([[expected[o.network]] * 2 for o in found])
    )
    assert {n: w.spell[0] for n, w in whole.items()} == pytest.approx(expected)


# --- time_calls


class PlantedClock(Backend):
    """A clock that moves when something runs: calls by their planted cost, times a slowness by the hour."""

    def __init__(self, slowness: Callable[[float], float] = lambda now: 1.0) -> None:
        self.now = 0.0
        self.slowness = slowness
        self.log: list[str] = []

    def spend(self, cost: float) -> None:
        self.now += cost * self.slowness(self.now)

    def call(self, name: str, cost: float) -> Callable[[], object]:
        def run() -> None:
            self.log.append(name)
            self.spend(cost)

        return run

    def fingerprint(self) -> Fingerprint:
        raise NotImplementedError

    def load(self, steps: Sequence[Step], scratch_bytes: int = 0) -> Session:
        raise NotImplementedError

    def reference(self) -> float:
        self.log.append("reference")
        start = self.now
        self.spend(1.0)
        return self.now - start

    def traffic(self) -> float:
        raise NotImplementedError

    def time_call(self, call: Callable[[], object]) -> float:
        self.log.append("timed")
        start = self.now
        call()
        return self.now - start


def test_every_callable_has_one_turn_a_pass_with_the_reference_on_both_sides() -> None:
    clock = PlantedClock()
    names = ["a", "b", "c"]
    time_calls(clock, {n: clock.call(n, 1.0) for n in names}, passes=20)
    yardstick = ["reference"] * 2  # of a second each: one forgets what ran before, one is read
    length = 2 + 2 + 4 * TIMED
    turns = [clock.log[k : k + length] for k in range(0, len(clock.log), length)]
    assert len(turns) == 60
    for settling, name, *rest in turns:  # one run of a second, and it has settled
        assert (settling, name in names) == ("timed", True)
        assert rest == [*yardstick, *["timed", name, *yardstick] * TIMED]
    orders = [tuple(t[1] for t in turns[k : k + 3]) for k in range(0, 60, 3)]
    assert all(sorted(order) == names for order in orders)
    assert len(set(orders)) > 2  # the order is drawn anew for every pass


def test_the_order_follows_the_seed() -> None:
    logs = []
    for seed in (0, 0, 1):
        clock = PlantedClock()
        time_calls(clock, {n: clock.call(n, 1.0) for n in "abcd"}, passes=5, seed=seed)
        logs.append(clock.log)
    assert logs[0] == logs[1]
    assert logs[0] != logs[2]


def test_planted_costs_are_recovered_in_units_of_the_reference_given() -> None:
    clock = PlantedClock()
    calls = {"a": clock.call("a", 3.0), "b": clock.call("b", 0.5)}
    timings = time_calls(clock, calls, passes=4)
    assert {n: t.time_s for n, t in timings.items()} == pytest.approx({"a": 3.0, "b": 0.5})
    assert [len(t.samples_s) for t in timings.values()] == [4 * TIMED, 4 * TIMED]
    # The profile knows the reference as 2 where it takes 1 today: today's machine runs twice as fast.
    timings = time_calls(clock, calls, passes=4, reference_s=2.0)
    assert {n: t.time_s for n, t in timings.items()} == pytest.approx({"a": 6.0, "b": 1.0})


def test_spells_longer_than_a_pass_do_not_favour_one_callable() -> None:
    # Slow from 400 on, where a turn takes 16: timed one after the other, the second callable would look
    # twice as slow as the first, which costs the same. Here more than half of both samples are calm.
    clock = PlantedClock(lambda now: 1.0 if now < 400.0 else 2.0)
    timings = time_calls(clock, {"a": clock.call("a", 2.0), "b": clock.call("b", 2.0)}, passes=20)
    assert max(max(t.samples_s) for t in timings.values()) == 4.0
    assert timings["a"].time_s == pytest.approx(2.0)
    assert timings["b"].time_s == pytest.approx(2.0)


def test_a_machine_slow_throughout_is_told_by_the_known_reference() -> None:
    clock = PlantedClock(lambda now: 1.7)
    timing = time_calls(clock, {"a": clock.call("a", 2.0)}, passes=3, reference_s=1.0)["a"]
    assert timing.time_s == pytest.approx(2.0)
    assert timing.median_s == pytest.approx(3.4)


@pytest.mark.parametrize("slower", [1.0, 1.04, 0.96, 1.5])
def test_what_slows_the_reference_is_taken_off(slower: float) -> None:
    # The calmer half, of both: 3 of 3, 3, 9 and 2 of 2, 2, 7, each taken in the same spell.
    samples, references = [3.0 * slower, 3.0 * slower, 9.0], [2.0 * slower, 2.0 * slower, 7.0]
    assert in_calm_s(samples, references, 2.0) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("takes_s", "runs"),
    [
        (1.0, 1),  # one run is longer than it takes to settle
        (SETTLED_S / 4, 4),
        (SETTLED_S / 1000, MOST_UNSETTLED),
        (0.0, MOST_UNSETTLED),
    ],
)
def test_runs_go_on_until_a_callable_has_settled(takes_s: float, runs: int) -> None:
    made: list[float] = []

    def run() -> float:
        made.append(takes_s)
        return takes_s

    assert len(settle(run)) == runs
    assert len(made) == runs


def test_median_and_spread_are_of_the_raw_samples() -> None:
    timing = Timing((1.0, 2.0, 3.0, 4.0, 10.0), (1.0,), 1.0)
    assert timing.median_s == 3.0
    assert timing.spread == pytest.approx((4.0 - 2.0) / 2 / 3.0)


# --- runs


def test_runs_stand_apart_the_latest_first_and_all_in_units_of_its_calm_reference() -> None:
    # In the second run the reference took twice as long, and operators as long as before.
    first = [hand_visit(k, 0, [1e-3, 2e-3], 1e-4) for k in range(4)]
    second = [replace(hand_visit(k, 0, [1e-3, 2e-3], 2e-4), run=3) for k in range(10, 16)]
    visits = [*first, *second]
    assert runs(visits) == [second, first]
    assert runs([]) == []
    assert calm_reference_s(visits) == calm_reference_s(second) == 2 * calm_reference_s(first)
    found, wholes = observations(visits)
    assert {(o.network, o.position): (o.time_s, o.runs_ago) for o in found} == {
        (k, p): (pytest.approx(t * (p + 1)), ago)
        for networks, t, ago in ((range(4), 2e-3, 1), (range(10, 16), 1e-3, 0))
        for k in networks
        for p in (0, 1)
    }
    assert {k: w.runs_ago for k, w in wholes.items()} == dict.fromkeys(range(4), 1) | dict.fromkeys(
        range(10, 16), 0
    )


def test_calm_is_what_the_calmest_run_found_unless_that_was_another_machine() -> None:
    def run(number: int, reference_s: float) -> list[Visit]:
        return [
            replace(hand_visit(10 * number + k, 0, [1e-3, 1e-3], reference_s), run=number) for k in range(8)
        ]

    alike = [*run(0, 1.1e-4), *run(1, 1.0e-4), *run(2, 1.2e-4)]
    assert calm_reference_s(alike) == pytest.approx(1.0e-4)
    found, _ = observations(alike)
    spells = {0: math.log(1.2), 1: 0.0, 2: math.log(1.1)}  # by runs ago
    assert {o.runs_ago: o.spell[0] for o in found} == pytest.approx(spells)
    assert {o.runs_ago: o.time_s for o in found} == pytest.approx({0: 1e-3 / 1.2, 1: 1e-3, 2: 1e-3 / 1.1})
    # Twice as fast in between: times over the reference's carry over, its spells do not.
    found, _ = observations([*run(0, 1.1e-4), *run(1, 0.5e-4), *run(2, 1.2e-4)])
    assert {o.runs_ago: o.spell[0] for o in found} == pytest.approx({0: math.log(1.2 / 1.1), 1: 0.0, 2: 0.0})


def test_a_run_of_too_few_networks_goes_with_the_one_before() -> None:
    first = [hand_visit(k, 0, [1e-3], 1e-4) for k in range(8)]
    few = [replace(hand_visit(k, v, [1e-3], 1e-4), run=1) for k in range(10, 15) for v in (0, 1)]
    assert runs([*first, *few]) == [[*first, *few]]
    last = [replace(hand_visit(k, 0, [1e-3], 1e-4), run=2) for k in range(20, 26)]
    assert runs([*first, *few, *last]) == [last, [*first, *few]]


def test_visits_to_another_device_are_a_run_of_their_own_however_few_follow() -> None:
    there = [replace(hand_visit(k, 0, [1e-3], 1e-4), run=ELSEWHERE) for k in range(8)]
    few = [hand_visit(k, 0, [1e-3], 2e-4) for k in range(10, 13)]
    assert runs([*there, *few]) == [few, there]
    assert made_here([*there, *few]) == few
    assert next_run(there) == 0
    assert next_run([*there, *few]) == 1
    assert calm_reference_s([*there, *few]) == calm_reference_s(few)


def test_a_visit_of_a_run_comes_back_from_plain_values() -> None:
    visit = replace(hand_visit(1, 0, [1e-3], 1e-4), run=2)
    assert Visit.from_builtins(json.loads(json.dumps(visit.to_builtins()))) == visit


def test_visits_are_marked_as_of_their_run(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", {})
    visitor = functools.partial(visit_network, Simulated())
    visits = collect(visitor, Plan(0, SMALL), journal, 1e9, rule=StopRule(least=1), most_visits=3, run=4)
    journal.close()
    assert [v.run for v in visits] == [4, 4, 4]
    again = Journal(tmp_path / "journal.jsonl", {})
    assert [v.run for v in again.visits] == [4, 4, 4]
    again.close()
