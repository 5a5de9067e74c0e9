"""Timing on a noisy machine: beside a reference operator, in random order, the calmer half.

A neighbour can slow the machine by half for seconds. So every sample is taken beside samples of one
fixed reference operator, networks are visited in random order, and a time is that of the smaller half of
its samples over that of the reference's beside them. Many networks once tell a model more than few networks
often: what one finds in its place in memory is part of the noise. Raw samples are kept.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from latmorph.device.backend import Backend
from latmorph.device.sampling import SLOW_FLOPS, sample_network
from latmorph.opspec import OpSpec, Step, footprint_bytes


@dataclass(frozen=True)
class StopRule:
    """When a visit has enough passes.

    Passes go on until the three smallest totals (each over the reference beside it) agree within
    ``spread``, at least ``least`` passes and at most ``most``; a network that takes long gets fewer,
    since its own operators average its noise.
    """

    spread: float = 0.02
    least: int = 4
    most: int = 6
    seconds: float = 0.4

    def enough(self, totals: Sequence[float], spent_s: float) -> bool:
        """Whether to stop after these totals, in units of the reference."""
        if len(totals) < self.least and spent_s < self.seconds * 2:
            return False
        if len(totals) >= self.most or spent_s >= self.seconds:
            return True
        lowest = sorted(totals)[:3]
        return lowest[-1] <= lowest[0] * (1 + self.spread)


@dataclass(frozen=True)
class Visit:
    """Raw times of one network in one visit, in seconds.

    ``run`` numbers the profiling runs that a profile was made in, from 0; :data:`ELSEWHERE` is of another
    device. ``footprint_bytes`` is the memory that a pass touches, other memory read before it included.
    ``times_s[position][pass]`` is of one operator where it stands in the network, ``whole_s`` of whole passes
    with no clock inside, ``references_s`` of the reference operator beside them, ``traffic_s`` of the block
    before and after it all.
    """

    network: int
    visit: int
    footprint_bytes: int
    specs: tuple[OpSpec, ...]
    times_s: tuple[tuple[float, ...], ...]
    whole_s: tuple[float, ...]
    references_s: tuple[float, ...]
    traffic_s: tuple[float, ...]
    run: int = 0

    @property
    def reference_s(self) -> float:
        """The reference operator's time in this visit, in seconds."""
        return calm_s(self.references_s)

    def to_builtins(self) -> dict[str, Any]:
        """Plain values, times to a nanosecond, that :meth:`from_builtins` reads."""
        return {
            "network": self.network,
            "visit": self.visit,
            "run": self.run,
            "footprint_bytes": self.footprint_bytes,
            "specs": [s.to_json() for s in self.specs],
            "times_s": [[round(t, 9) for t in times] for times in self.times_s],
            "whole_s": self.whole_s,
            "references_s": self.references_s,
            "traffic_s": self.traffic_s,
        }

    @classmethod
    def from_builtins(cls, item: Mapping[str, Any]) -> Visit:
        """What :meth:`to_builtins` made, other entries left aside."""
        return cls(
            item["network"],
            item["visit"],
            item["footprint_bytes"],
            tuple(OpSpec.from_json(s) for s in item["specs"]),
            tuple(tuple(t) for t in item["times_s"]),
            tuple(item["whole_s"]),
            tuple(item["references_s"]),
            tuple(item["traffic_s"]),
            item["run"],
        )


def calm_s(samples: Sequence[float]) -> float:
    """The time behind noisy samples, in seconds: the mean of the smaller half of them.

    Neighbours only ever add. Unlike the smallest sample, this does not fall with the number of samples, and
    a mean sees below what a clock resolves.
    """
    return float(np.mean(np.sort(samples)[: (len(samples) + 1) // 2]))


def in_calm_s(samples_s: Sequence[float], references_s: Sequence[float], calm_reference_s: float) -> float:
    """A callable's calm time in seconds, from samples and from the reference's samples beside them.

    As much longer as the reference took than on the calm machine, so did the callable.
    """
    return calm_s(samples_s) * calm_reference_s / calm_s(references_s)


SETTLED_S = 0.2
"""After another callable's runs, one's own get faster for about this long: caches, predictors and the heap
are as the other left them. On a Xeon, beside five others, networks of 15 ms take 3 to 5 % longer in their
fourth run than in their fortieth, 1 % in the ninth; those of 5 ms 3 % in the third."""

ALONE_S = 0.05
"""A network that nothing stands beside settles in this time: there is no other's memory among its own."""

MOST_UNSETTLED = 10
"""Shorter ones have settled after so many runs."""


def settle(run: Callable[[], float], for_s: float = SETTLED_S) -> list[float]:
    """Run what returns its own time in seconds, until it has settled; the times on the way."""
    times_s: list[float] = []
    while not times_s or (sum(times_s) < for_s and len(times_s) < MOST_UNSETTLED):
        times_s.append(run())
    return times_s


FORGOTTEN_S = 0.0015
"""In this time the reference forgets what ran before it. On a Xeon, where it takes 0.37 ms, its first run
after a ViT of 350 MB takes 0.62 ms, the second 0.41, the third 0.38; after MobileNetV2 0.47, 0.37, 0.36."""

READ_S = 0.001
"""Then its runs are read for so long."""


def settled_reference_s(backend: Backend) -> float:
    """Seconds of the reference operator: the mean of a few runs, settled.

    The yardstick must not know what it stands beside: longer after large networks, it made them short.
    """
    settle(backend.reference, FORGOTTEN_S)
    return float(np.mean(settle(backend.reference, READ_S)))


RUNS = 2
"""Runs of the block before a visit's passes, and after: between passes they would empty the caches."""


def visit_network(
    backend: Backend,
    network: int,
    visit: int,
    steps: Sequence[Step],
    scratch_bytes: int,
    rule: StopRule,
) -> Visit:
    """Load a network, settle it, and time its steps until ``rule`` is content, then its whole, four times.

    Passes of one kind stand in a row, since a runtime may hold the network twice, once with clocks in it:
    each finds the caches as the last pass of its kind left them. As in :func:`time_calls`, the reference runs
    right before each pass: it also wakes the other threads, which sleep while other memory is read.
    """
    session = backend.load(steps, scratch_bytes)
    traffic = [backend.traffic() for _ in range(RUNS)]
    references: list[float] = []

    def disturbed(run: Callable[[], float]) -> float:
        session.disturb()
        references.append(settled_reference_s(backend))
        return run()

    def settled(run: Callable[[], float]) -> int:
        kept = len(references)
        count = len(settle(functools.partial(disturbed, run), ALONE_S))
        del references[kept:]
        return count

    unsettled = settled(session.time_steps)
    totals: list[float] = []
    start = time.perf_counter()
    while not totals or not rule.enough(totals, time.perf_counter() - start):
        steps_s = disturbed(session.time_steps)
        totals.append(steps_s / references[-1])
    if session.apart:
        settled(session.time_whole)
    whole_s = [disturbed(session.time_whole) for _ in range(4)]
    traffic += [backend.traffic() for _ in range(RUNS)]
    specs, passes = session.finish()
    return Visit(
        network,
        visit,
        footprint_bytes(specs) + scratch_bytes,
        specs,
        tuple(zip(*passes[unsettled:], strict=True)),
        tuple(whole_s),
        tuple(references),
        tuple(traffic),
    )


class Schedule(Protocol):
    """Which networks a run visits, in which order: pairs of a network's number and of its visit's."""

    def __iter__(self) -> Iterator[tuple[int, int]]: ...

    def steps(self, network: int) -> tuple[Step, ...]:
        """The steps of a network."""
        ...

    def scratch_bytes(self, network: int, steps: Sequence[Step]) -> int:
        """Memory to read before each of its passes, by its number and its steps."""
        ...


WHOLE = 100
"""Operators of a sampled network that is no longer taken for a part of a larger one."""

CHOSEN = 10**6
"""Sampled networks that were chosen, not drawn blindly, are numbered from here up."""


def shuffled(networks: Sequence[int], seed: tuple[int, ...], visits: int = 1) -> Iterator[tuple[int, int]]:
    """Some networks, in random order, each visited so often."""
    jobs = [(n, v) for v in range(visits) for n in networks]
    yield from (jobs[k] for k in np.random.default_rng(seed).permutation(len(jobs)))


@dataclass(frozen=True)
class Plan:
    """Which networks a profiling run can visit, by number.

    Sampled networks are numbered from 0 up by their seeds (and again from :data:`CHOSEN` up). Those of
    ``focus``, which are taken as given, are numbered from -1 down. Iterated, it visits sampled networks in
    turn, round by round, and as many of focus while they last.
    """

    seed: int = 0
    largest_flops: float = SLOW_FLOPS
    dtype: str = "float32"
    focus: tuple[tuple[Step, ...], ...] = ()
    round_size: int = 24

    def __iter__(self) -> Iterator[tuple[int, int]]:
        first = 0
        while True:
            drawn = range(first, first + self.round_size)
            yield from shuffled([*drawn, *self.focus_round(first)], (self.seed, first))
            first += self.round_size

    def focus_round(self, first: int) -> list[int]:
        """The networks of focus that go with a round that begins at a number."""
        return [-1 - i for i in range(first, first + self.round_size) if i < len(self.focus)]

    def steps(self, network: int) -> tuple[Step, ...]:
        """The steps of a network of the plan."""
        if network < 0:
            return self.focus[-1 - network]
        seed = self.seed * 1_000_003 + network % CHOSEN
        return sample_network(seed, largest_flops=self.largest_flops, dtype=self.dtype)

    def scratch_bytes(self, network: int, steps: Sequence[Step]) -> int:
        """Memory to read before each pass: none for a fifth of the networks, else 1 MiB to 128 MiB.

        A network of ``focus`` or of at least :data:`WHOLE` operators is a whole one, and finds the caches as
        its own last pass left them.
        """
        if network < 0 or len(steps) >= WHOLE:
            return 0
        random = np.random.default_rng((self.seed, network % CHOSEN, 1))
        return 0 if random.random() < 0.2 else int(2 ** random.uniform(20, 27))


Progress = Callable[[float, str], None]
"""Called with the fraction done and a line of text."""


class Journal:
    """What a run has measured so far, one line a visit, so that an interrupted run resumes.

    The first line says which run it is; a journal of another run is not continued.
    """

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self.path = path
        self.visits: list[Visit] = []
        self.spent_s = 0.0
        self.roofs: Any = None
        self.resumed = False
        self.replaced = False
        lines = path.read_text().splitlines() if path.exists() else []
        if lines and _parse(lines[0]) == {"head": dict(head)}:
            self._read(lines[1:])
            self.resumed = True
        else:
            self.replaced = bool(lines)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"head": dict(head)}) + "\n")
        self._file = path.open("a", encoding="utf-8")
        if lines and self.resumed:
            self._file.write("\n")  # the last line may have been cut short: start on a fresh one

    def _read(self, lines: Sequence[str]) -> None:
        for line in lines:
            item = _parse(line)
            if not isinstance(item, dict):
                continue
            if "roofs" in item:
                self.roofs = item["roofs"]
                self.spent_s += float(item["spent_s"])
            elif "network" in item:
                self.spent_s += float(item["spent_s"])
                self.visits.append(Visit.from_builtins(item))

    def add_roofs(self, roofs: Any, spent_s: float) -> None:
        """Record the roofs, as plain values."""
        self.roofs = roofs
        self.spent_s += spent_s
        self._write({"roofs": roofs, "spent_s": spent_s})

    def add(self, visit: Visit, spent_s: float) -> None:
        """Record one visit."""
        self.visits.append(visit)
        self.spent_s += spent_s
        self._write({**visit.to_builtins(), "spent_s": spent_s})

    def _write(self, item: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(item) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Stop writing; the file stays, to be resumed."""
        self._file.close()


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


Visitor = Callable[[int, int, Sequence[Step], int, StopRule], Visit]
"""Visits a network: its number and the visit's, its steps, memory to read before each pass, when to stop."""


def collect(
    visitor: Visitor,
    plan: Schedule,
    journal: Journal,
    budget_s: float,
    *,
    rule: StopRule | None = None,
    progress: Progress | None = None,
    most_visits: int | None = None,
    run: int = 0,
) -> list[Visit]:
    """Visit the plan's networks until the budget is spent, what the journal holds counted in.

    Visits are marked as of ``run``. ``most_visits`` bounds the number of visits, for tests.
    """
    rule = StopRule() if rule is None else rule
    done = {(v.network, v.visit) for v in journal.visits}
    before = journal.spent_s
    start = time.perf_counter()
    spent, jobs = before, iter(plan)
    while spent < budget_s and (most_visits is None or len(journal.visits) < most_visits):
        job = next(jobs, None)  # may take time: a plan that chooses has models to fit
        if job is None:
            break
        if job not in done:
            began = time.perf_counter()
            network, visit = job
            steps = plan.steps(network)
            taken = visitor(network, visit, steps, plan.scratch_bytes(network, steps), rule)
            journal.add(replace(taken, run=run), time.perf_counter() - began)
            if progress is not None:
                progress(min(1.0, spent / budget_s), f"{len(journal.visits)} network visits")
        spent = before + time.perf_counter() - start
    return journal.visits


CALM = 0.25
"""Share of the calmest run's visits that find the machine no less calm than times are meant for.

As calm as the smaller half of samples is in the mean (see :func:`calm_s`): what a network takes at the
calmest that was ever seen would be met too seldom.
"""


FEWEST_NETWORKS = 6
"""Networks that it takes to tell how the machine is in a run, and to hold any out of a fit."""


ELSEWHERE = -1
"""The run of visits to another device: they tell how times go with shapes, not how long they are here."""


def made_here(visits: Sequence[Visit]) -> list[Visit]:
    """The visits to the device itself."""
    return [v for v in visits if v.run != ELSEWHERE]


def runs(visits: Sequence[Visit]) -> list[list[Visit]]:
    """The visits of each profiling run, the latest first; too few networks go with the run before.

    Those to another device are a run of their own, the earliest.
    """
    found: list[list[Visit]] = []
    for number in sorted({v.run for v in visits}):
        own = [v for v in visits if v.run == number]
        few = len({v.network for v in own}) < FEWEST_NETWORKS
        if few and found and found[-1][0].run != ELSEWHERE:
            found[-1] += own
        else:
            found.append(own)
    return found[::-1]


def next_run(visits: Sequence[Visit]) -> int:
    """The number of the run that follows those of some visits."""
    return 1 + max((v.run for v in visits), default=-1)


def calm_reference_s(visits: Sequence[Visit]) -> float:
    """The reference's time on the calm machine, in seconds, as the calmest of the runs found it."""
    of_runs = runs(made_here(visits) or visits)
    return float(_calm_yardsticks([_yardsticks(of_run) for of_run in of_runs])[0, 0])


Spell = tuple[float, float]
"""Logs of the reference's and of the block's time over those on the calm machine: above zero, neighbours
slowed it. A run in a noisy hour is one long spell."""

NOISY = 0.25
"""A run that was further than this from the latest one where calm, in logs, found another machine: its spells
are over what was calm in it."""


def _yardsticks(visits: Sequence[Visit]) -> np.ndarray:
    """The reference's and the block's time, shape ``(visits, 2)``; not a number without a block."""
    return np.array([(v.reference_s, calm_s(v.traffic_s) if v.traffic_s else np.nan) for v in visits])


def _spells(of_runs: Sequence[Sequence[Visit]]) -> list[list[Spell]]:
    """The spells of all visits of a device, by run, the latest first; zero where no block was timed."""
    times = [_yardsticks(visits) for visits in of_runs]
    return [
        [(float(r), float(b)) for r, b in np.nan_to_num(np.log(own / calm))]
        for own, calm in zip(times, _calm_yardsticks(times), strict=True)
    ]


def _calm_yardsticks(times: Sequence[np.ndarray]) -> np.ndarray:
    """Of each run's yardsticks, the latest first, what they are on the calm machine: shape ``(runs, 2)``.

    A quarter of a run's visits found it no less calm, in the calmest run. Not a number without a block.
    """
    calm = np.array([[_calm_time(column) for column in own.T] for own in times]).reshape(-1, 2)
    alike = np.abs(np.log(calm / calm[:1])) < NOISY
    return np.where(alike, np.where(alike, calm, np.inf).min(axis=0, initial=np.inf), calm)


def _calm_time(column: np.ndarray) -> float:
    timed = column[np.isfinite(column)]
    return float(np.quantile(timed, CALM)) if len(timed) else np.nan


@dataclass(frozen=True)
class Observation:
    """One operator's time in seconds, in units of the calm reference, and the spell that it was taken in.

    What neighbours slow more than the reference still shows in ``time_s``; ``spell`` tells it. It is of the
    latest run, or of one so many ``runs_ago``.
    """

    network: int
    position: int
    footprint_bytes: int
    spec: OpSpec
    time_s: float
    spell: Spell = (0.0, 0.0)
    runs_ago: int = 0


@dataclass(frozen=True)
class Whole:
    """A network's whole pass: seconds in units of the calm reference, the spell, and the run."""

    time_s: float
    spell: Spell
    runs_ago: int = 0


def _calm_steps_s(times_s: Sequence[Sequence[float]]) -> np.ndarray:
    """Calm times of a network's steps, from those of each in all passes.

    Each step's own calm time says its share. Together they would be less than any pass takes, since not
    all are calm at once: so they are made to sum to what the calmer half of the passes takes.
    """
    own = np.array([calm_s(times) for times in times_s])
    total = float(own.sum())
    return own * (calm_s(np.sum(times_s, axis=0)) / total) if total > 0 else own


def observations(visits: Sequence[Visit]) -> tuple[list[Observation], dict[int, Whole]]:
    """Times of every operator and, by network, of whole passes.

    In each visit, over the reference's time, times the calm one; the mean over a network's visits. Every run
    has networks of its own.
    """
    if not visits:
        return [], {}
    calm = calm_reference_s(visits)
    found: list[Observation] = []
    wholes: dict[int, Whole] = {}
    of_runs = runs(visits)
    here = [of_run for of_run in of_runs if of_run[0].run != ELSEWHERE]
    spells = _spells(here) + [_spells([of_run])[0] for of_run in of_runs[len(here) :]]
    for runs_ago, (of_run, in_spells) in enumerate(zip(of_runs, spells, strict=True)):
        own, whole = _observations(of_run, in_spells, runs_ago, calm)
        found += own
        wholes |= whole
    return found, wholes


def _observations(
    visits: Sequence[Visit], spells: Sequence[Spell], runs_ago: int, reference_s: float
) -> tuple[list[Observation], dict[int, Whole]]:
    """Those of one run."""
    taken: dict[int, list[tuple[Visit, np.ndarray, Whole]]] = {}
    for visit, spell in zip(visits, spells, strict=True):
        scale = reference_s / visit.reference_s
        whole = Whole(calm_s(visit.whole_s) * scale, spell)
        taken.setdefault(visit.network, []).append((visit, _calm_steps_s(visit.times_s) * scale, whole))
    found: list[Observation] = []
    wholes: dict[int, Whole] = {}
    for network, of_visits in taken.items():
        first = of_visits[0][0]
        spell = np.mean([whole.spell for _, _, whole in of_visits], axis=0)
        in_spell = float(spell[0]), float(spell[1])
        times_s = np.mean([times for _, times, _ in of_visits], axis=0).tolist()
        for position, (spec, time_s) in enumerate(zip(first.specs, times_s, strict=True)):
            found.append(
                Observation(network, position, first.footprint_bytes, spec, time_s, in_spell, runs_ago)
            )
        whole_s = float(np.mean([whole.time_s for _, _, whole in of_visits]))
        wholes[network] = Whole(whole_s, in_spell, runs_ago)
    return found, wholes


@dataclass(frozen=True)
class Timing:
    """Interleaved samples of one callable, and the reference's beside them.

    ``time_s`` is its calm time in seconds (see :func:`in_calm_s`). ``median_s`` and ``spread`` (half the
    interquartile range over the median) are of the raw samples.
    """

    samples_s: tuple[float, ...]
    references_s: tuple[float, ...]
    time_s: float

    @property
    def median_s(self) -> float:
        """Median of the raw samples, in seconds."""
        return float(np.median(self.samples_s))

    @property
    def spread(self) -> float:
        """Half the interquartile range of the raw samples, as a fraction of their median."""
        low, high = np.quantile(self.samples_s, [0.25, 0.75])
        return float((high - low) / 2 / self.median_s)


TIMED = 3
"""Samples of a turn: settling takes longer than they do."""


def time_calls(
    backend: Backend,
    calls: Mapping[str, Callable[[], object]],
    *,
    passes: int = 8,
    reference_s: float | None = None,
    seed: int = 0,
) -> dict[str, Timing]:
    """Time several callables side by side: in every pass each has one turn, in random order.

    In its turn a callable runs until it has settled, as one that serves request after request has, then
    timed, :data:`TIMED` times, with the reference on both sides of each. ``reference_s`` is the reference's
    calm time that a profile knows for this same machine; without it the smallest seen here is taken.
    """
    random = np.random.default_rng(seed)
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    beside: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(passes):
        for k in random.permutation(len(names)):
            name = names[k]
            timed = functools.partial(backend.time_call, calls[name])
            settle(timed)
            beside[name].append(settled_reference_s(backend))
            for _ in range(TIMED):
                samples[name].append(timed())
                beside[name].append(settled_reference_s(backend))
    calm = min(calm_s(b) for b in beside.values()) if reference_s is None else reference_s
    return {
        name: Timing(
            tuple(samples[name]),
            tuple(beside[name]),
            in_calm_s(samples[name], beside[name], calm),
        )
        for name in names
    }
