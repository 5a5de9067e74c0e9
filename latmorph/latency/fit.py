"""Fit: from measurements to a LatencyModel, with what it gets wrong on networks held out."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import msgspec
import numpy as np

from latmorph import ops
from latmorph.device.roofs import Roofs
from latmorph.device.timing import (
    CHOSEN,
    FEWEST_NETWORKS,
    Observation,
    Visit,
    Whole,
    made_here,
    observations,
    runs,
)
from latmorph.errors import ProfileError
from latmorph.latency import roofline
from latmorph.latency.model import Family, LatencyModel, Predictor, Trees
from latmorph.opspec import OpSpec

BOUND = 3.0
"""The trees move a prediction by at most a factor ``exp(3)``, some 20, either way."""


CLOCK_S = 1e-9
"""What the clock resolves: times below it count as it, where their logarithm is taken."""

FOLDS = 3


class FamilyError(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Errors of one family's ``operators`` in held-out networks: mean and median, absolute, in percent."""

    operators: int
    mean_error_percent: float
    median_error_percent: float


class Validation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the model gets wrong on networks that were held out of the fit.

    Every one of the ``networks`` is held out once; those that were chosen, for a focus or because models
    disagreed about them, do not count. Errors are absolute, in percent of the measured time;
    ``coverage_percent`` is the share of networks whose measured time lies in a 90 % interval that was
    fitted on others.
    """

    networks: int
    median_error_percent: float
    mean_error_percent: float
    within_10_percent: float
    coverage_percent: float
    families: dict[str, FamilyError]


def fit(roofs: Roofs, visits: Sequence[Visit], *, seed: int = 0) -> tuple[LatencyModel, Validation]:
    """Fit a latency model to the visits of one profiling run or of several.

    It is of the machine as calm as a quarter of the calmest run's visits found it, and halfway between the
    latest run and the mean of the earlier ones (see :func:`_in_usual_hour`): all runs tell how an operator's
    time goes with its shape. Visits to another device tell of shapes as well; where networks held out are
    predicted better without them, they are left aside. The errors, the interval, and the step from sums of
    operators to whole networks come from the :class:`Committee`, whose predictions are of networks that it
    has not seen. The model handed out is fitted on all.

    Raises ProfileError when there are too few networks to hold any out.
    """
    committee = Committee.of(roofs, visits, seed=seed)
    own = made_here(visits)
    if len(own) < len(visits):
        alone = Committee.of(roofs, own, seed=seed)
        committee = min(committee, alone, key=lambda c: c.error_percent)
    errors, sigmas = _family_errors(committee.found, committee.held_s)
    families, changes = _fit_families(committee.tables, seed, ROUNDS)
    model = LatencyModel(
        roofs,
        {
            name: msgspec.structs.replace(
                _in_usual_hour(family, changes[name][: committee.runs_here]), sigma=sigmas.get(name, 0.3)
            )
            for name, family in families.items()
        },
        committee.scale,
        _central_sigma(committee.errors),
        committee.overhead_s,
    )
    return model, committee.validation(errors)


@dataclass(frozen=True, eq=False)
class Committee:
    """Models that have seen two thirds of the networks each, and what they say of the third left out.

    Networks of earlier runs were seen by all; ``runs_here`` of the runs, the latest among them, were of this
    device. All is as in the latest run. ``held_s`` are predictions of its observations ``found``, in their
    order, each by the model that has not seen its network, in the spell that it was taken in; ``tables``
    hold the observations of all runs by family. For ``networks``, dealt into ``folds``, ``errors`` are logs
    of measured over predicted time of a whole pass on the calm machine: ``scale`` times the sum of the
    operators, plus ``overhead_s``. Networks with an operator that has no handler are left out.
    """

    predictors: tuple[Predictor, ...]
    runs_here: int
    found: tuple[Observation, ...]
    tables: Mapping[str, _Table]
    held_s: np.ndarray
    networks: np.ndarray
    folds: np.ndarray
    errors: np.ndarray
    scale: float
    overhead_s: float

    @classmethod
    def of(
        cls, roofs: Roofs, visits: Sequence[Visit], *, seed: int = 0, rounds: int | None = None
    ) -> Committee:
        """Fit one model a fold, of so many trees a family, by default as many as the final one.

        Raises ProfileError when there are too few networks to hold any out.
        """
        visits = [v for v in visits if all(map(ops.is_known, v.specs))]
        found, wholes = observations(visits)
        whole = {network: w for network, w in wholes.items() if not w.runs_ago}
        networks = np.array(sorted(whole))
        if len(networks) < FEWEST_NETWORKS:
            raise ProfileError(
                f"{len(networks)} networks were measured, at least {FEWEST_NETWORKS} are needed for a fit: "
                "give more time"
            )
        found = _with_gaps(found, wholes)
        earlier, found = [o for o in found if o.runs_ago], [o for o in found if not o.runs_ago]
        folds = np.random.default_rng(seed).permutation(len(networks)) % FOLDS
        index = {network: i for i, network in enumerate(networks.tolist())}
        owner = np.array([index[o.network] for o in found])
        measured = np.array([whole[n].time_s for n in networks.tolist()])
        tables = _Table.of(roofs, [*found, *earlier])
        fold_of = np.append(folds[owner], np.full(len(earlier), -1))
        calm_s, held_s = np.empty(len(found)), np.empty(len(found))
        predictors = []
        for fold in range(FOLDS):
            kept = {name: table.rows(fold_of[table.index] != fold) for name, table in tables.items()}
            families, _ = _fit_families(
                {name: table for name, table in kept.items() if len(table.index)},
                seed,
                ROUNDS if rounds is None else rounds,
            )
            predictor = Predictor(LatencyModel(roofs, families, 1.0, 0.0))
            predictors.append(predictor)
            for name, table in tables.items():
                out = table.rows(fold_of[table.index] == fold)
                calm_s[out.index] = predictor.of_family(name, out.x, out.compute_s, out.memory_s)
                held_s[out.index] = calm_s[out.index]
                if name in families:
                    held_s[out.index] *= families[name].in_spell(out.spell)
        predicted = np.bincount(owner, weights=calm_s)
        sums = np.bincount(owner, weights=[o.time_s for o in found])
        spell = np.array([whole[n].spell for n in networks.tolist()])
        for _ in range(2):
            scale, overhead_s = _whole_from_sum(predicted, sums, measured)
            errors = np.log(measured / (scale * predicted + overhead_s))
            slower = spell @ _slopes(spell, errors, np.ones(len(errors)), np.zeros(len(errors), dtype=int))
            measured, errors = measured * np.exp(-slower), errors - slower
        return cls(
            tuple(predictors),
            len(runs(made_here(visits))),
            tuple(found),
            tables,
            held_s,
            networks,
            folds,
            errors,
            scale,
            overhead_s,
        )

    @property
    def sampled(self) -> np.ndarray:
        """Which networks were drawn blindly, and so tell the error on others; all where none was."""
        blind = (self.networks >= 0) & (self.networks < CHOSEN)
        return blind if blind.any() else np.full(len(blind), True)

    @property
    def error_percent(self) -> float:
        """Mean absolute error on networks that were held out, in percent."""
        return float(np.mean(100 * np.abs(np.exp(-self.errors[self.sampled]) - 1)))

    def disagreement(self, specs: Sequence[OpSpec], footprint: float) -> float:
        """How much the models differ about a network: the sum of each operator's time and its spread.

        Over the root of the network's time, so that neither the largest networks nor the smallest, whose
        operators are hardest to time, always come first.
        """
        where = roofline.places(self.predictors[0].model.roofs, specs, footprint=footprint)
        times = np.stack([p(specs, where).total_s[:, 0] for p in self.predictors])
        spread = np.log(np.maximum(times, CLOCK_S)).std(axis=0)
        known = np.isfinite(spread)
        time_s = times.mean(axis=0)[known]
        return float(np.sum(time_s * spread[known]) / np.sqrt(max(time_s.sum(), CLOCK_S)))

    def validation(self, families: dict[str, FamilyError]) -> Validation:
        """The figures that a profile keeps."""
        counted = self.sampled
        percent = 100 * np.abs(np.exp(-self.errors[counted]) - 1)
        return Validation(
            int(counted.sum()),
            float(np.median(percent)),
            self.error_percent,
            float(100 * np.mean(percent <= 10)),
            100 * _coverage(self.errors[counted], self.folds[counted]),
            families,
        )


def _with_gaps(found: Sequence[Observation], wholes: Mapping[int, Whole]) -> list[Observation]:
    """The operators' times with what lies between them, by the whole passes of their own run."""
    times_s = np.array([o.time_s for o in found])
    runs_ago = np.array([o.runs_ago for o in found])
    for run in np.unique(runs_ago):
        own = runs_ago == run
        networks, owner = np.unique(
            [o.network for o, is_own in zip(found, own, strict=True) if is_own], return_inverse=True
        )
        whole = np.array([wholes[n].time_s for n in networks.tolist()])
        gaps_s = _gaps_s(times_s[own], owner, whole)
        times_s[own] = np.maximum(times_s[own] + gaps_s, 0.5 * times_s[own])
    return [replace(o, time_s=time_s) for o, time_s in zip(found, times_s.tolist(), strict=True)]


def _gaps_s(times: np.ndarray, owner: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Seconds that a whole pass takes for each operator beyond what the operator's own clock says.

    More, where what calls operators works between them; less, where their clocks take more time than is
    taken off. ``times`` are the operators', of networks ``owner`` that take ``whole``. Whole passes are
    explained by the sums of their operators, a constant, a gap for every operator, and one more for those
    that last longer than :data:`SHARED_S`: what clocks the work of several threads takes time itself. Less
    than the clock resolves is none.
    """
    shared = times / (times + SHARED_S)
    count = len(whole)
    # In microseconds.
    terms = (
        np.bincount(owner, times, count),
        np.full(count, 1e-6),
        1e-6 * np.bincount(owner, minlength=count),
        1e-6 * np.bincount(owner, shared, count),
    )
    design = np.stack(terms, axis=1) / whole[:, None]
    # Networks of one length cannot tell gaps from a constant: they are normal around none, as far as noise
    # leaves it open.
    usual = 1e-6 / GAP_S * np.eye(4)[2:]
    ratio, weight, noise = np.ones(count), np.ones(count), 0.1
    for _ in range(STEPS):
        # A step towards the least logarithm of the ratio of said over measured: where clocks were late, it is
        # the sum that is wrong, and relative errors of the whole would be smallest for too small a factor.
        rows = np.concatenate([design * (weight / ratio)[:, None], noise * usual])
        line = np.linalg.lstsq(rows, np.append(weight * (1 - np.log(ratio)), (0.0, 0.0)), rcond=None)[0]
        ratio = np.maximum(design @ line, 0.1)
        left = np.log(ratio)
        noise, weight = float(np.sqrt(np.mean((weight * left) ** 2))), _of_size(left)
    gaps_s = 1e-6 * (line[2] + line[3] * shared)
    return np.where(np.abs(gaps_s) >= CLOCK_S, gaps_s, 0.0)


GAP_S = 1e-5
"""How large gaps are: their standard deviation, before whole passes say more."""

SHARED_S = 2e-5
"""Operators that last so long are shared among threads where there are several; many shorter ones are not."""


STEPS = 8
"""Rounds of weighting until a line is settled."""


def _of_size(errors: np.ndarray) -> np.ndarray:
    """Weights with which large errors count by their size, not by its square."""
    return np.asarray(1 / np.sqrt(np.maximum(np.abs(errors), 0.01)))


def _whole_from_sum(predicted: np.ndarray, sums: np.ndarray, whole: np.ndarray) -> tuple[float, float]:
    """The factor and the constant that take predicted sums of operators to whole passes.

    The constant, what a pass costs beside its operators, is that of a line through the measured ``sums`` and
    ``whole`` times, in relative error, where large errors count by their size, not by its square; less than
    the clock resolves is none. The factor is a median, in which a network counts by the root of its time:
    those of many operators, or of large ones, tell best what a sum lacks.
    """
    from scipy.optimize import nnls

    design = np.stack([sums, np.ones(len(sums))], axis=1) / whole[:, None]
    weight = np.ones(len(sums))
    for _ in range(STEPS):
        line, _ = nnls(design * weight[:, None], weight)
        weight = _of_size(design @ line - 1)
    constant = min(float(line[1]), _largest_constant(whole))
    constant = constant if constant >= CLOCK_S else 0.0
    return _weighted_median((whole - constant) / predicted, np.sqrt(whole)), constant


def _largest_constant(whole: np.ndarray) -> float:
    """Seconds that a pass can cost beside its operators: half of the shortest one, at most."""
    return 0.5 * float(whole.min())


def _central_sigma(errors: np.ndarray) -> float:
    """Half the width of the central 90 %, in standard deviations: the tails of noise are not normal."""
    return float(np.quantile(np.abs(errors), 0.9) / 1.645)


def _coverage(errors: np.ndarray, folds: np.ndarray) -> float:
    """Share of errors inside the interval that the other folds' errors give."""
    inside = 0
    for fold in np.unique(folds):
        others = errors[folds != fold]
        limit = 1.645 * _central_sigma(others if len(others) else errors)
        inside += int(np.sum(np.abs(errors[folds == fold]) <= limit))
    return inside / len(errors)


def _family(spec: OpSpec) -> str:
    return ops.handler_of(spec.kind).family(spec)


def _family_errors(
    found: Sequence[Observation], predicted_s: np.ndarray
) -> tuple[dict[str, FamilyError], dict[str, float]]:
    logs: dict[str, list[float]] = {}
    for o, t in zip(found, predicted_s.tolist(), strict=True):
        error = np.log(max(t, CLOCK_S) / max(o.time_s, CLOCK_S))
        logs.setdefault(_family(o.spec), []).append(float(error))
    errors, sigmas = {}, {}
    for name, values in sorted(logs.items()):
        percent = 100 * np.abs(np.exp(values) - 1)
        errors[name] = FamilyError(len(values), float(np.mean(percent)), float(np.median(percent)))
        sigmas[name] = _central_sigma(np.array(values))
    return errors, sigmas


@functools.lru_cache(maxsize=2**18)
def _features(spec: OpSpec, place: roofline.Place) -> tuple[list[str], np.ndarray]:
    names, values = roofline.features(spec, 1, place)
    return names, values[0]


@dataclass(frozen=True, eq=False)
class _Table:
    """The observations of one family as arrays over its operators.

    ``index`` says which of all observations each is; ``share`` is of its network's time.
    """

    overhead_s: float
    index: np.ndarray
    network: np.ndarray
    runs_ago: np.ndarray
    times_s: np.ndarray
    spell: np.ndarray
    compute_s: np.ndarray
    memory_s: np.ndarray
    share: np.ndarray
    names: list[str]
    x: np.ndarray

    def ideal_s(self, memory_level: float = 0.0) -> np.ndarray:
        """Seconds of each at both roofs (see :func:`roofline.ideal_s`)."""
        return roofline.ideal_s(self.compute_s, self.memory_s, memory_level)

    def rows(self, chosen: np.ndarray) -> _Table:
        """Some of the operators, as a boolean array says."""
        columns = ((f.name, getattr(self, f.name)) for f in fields(self))
        return replace(self, **{name: c[chosen] for name, c in columns if isinstance(c, np.ndarray)})

    @classmethod
    def of(cls, roofs: Roofs, found: Sequence[Observation]) -> dict[str, _Table]:
        """One table a family."""
        networks: dict[int, list[Observation]] = {}
        for o in found:
            networks.setdefault(o.network, []).append(o)
        totals = {network: sum(o.time_s for o in own) for network, own in networks.items()}
        index = {id(o): i for i, o in enumerate(found)}
        groups: dict[str, list[tuple[Observation, roofline.Place]]] = {}
        for own in networks.values():
            where = roofline.places(roofs, [o.spec for o in own], footprint=own[0].footprint_bytes)
            for o, place in zip(own, where, strict=True):
                groups.setdefault(_family(o.spec), []).append((o, place))
        tables = {}
        for name, placed in sorted(groups.items()):
            group = [o for o, _ in placed]
            times = np.array([o.time_s for o in group])
            pairs = np.array([roofline.terms(roofs, o.spec, 1) for o in group])[:, :, 0]
            rows = [_features(o.spec, place) for o, place in placed]
            tables[name] = cls(
                roofs.overhead_s,
                np.array([index[id(o)] for o in group]),
                np.array([o.network for o in group]),
                np.array([o.runs_ago for o in group]),
                times,
                np.array([o.spell for o in group]),
                pairs[:, 0],
                pairs[:, 1],
                times / np.array([totals[o.network] for o in group]),
                rows[0][0],
                np.array([values for _, values in rows]),
            )
        return tables


def _fit_families(
    tables: Mapping[str, _Table], seed: int, rounds: int
) -> tuple[dict[str, Family], dict[str, np.ndarray]]:
    """The families as in the latest run, and their changes (see :func:`_changes`)."""
    parts = {name: _Part.of(table) for name, table in tables.items()}
    told = [p for p in parts.values() if p.informed.any()]
    usual = 0.0
    if told:
        usual = _weighted_median(
            np.concatenate([p.target for p in told]), np.concatenate([p.informed * p.weight for p in told])
        )

    tasks = {name: _Task.of(table, parts[name], usual) for name, table in tables.items()}
    # LightGBM works outside of Python's lock. The largest families first, so that none is waited for alone.
    names = sorted(tables, key=lambda name: -len(tables[name].times_s))
    with ThreadPoolExecutor(os.cpu_count()) as pool:

        def each(made: Callable[[str], Made]) -> dict[str, Made]:
            return dict(zip(names, pool.map(made, names), strict=True))

        unseen = each(lambda name: _cross_fitted(tables[name], tasks[name], seed, rounds // 3))
        tasks = {name: task.on_calm_machine(tables[name], unseen[name]) for name, task in tasks.items()}
        changes = _changes(tables, tasks, unseen)
        tasks = {
            name: replace(task, target=task.target - changes[name][tables[name].runs_ago])
            for name, task in tasks.items()
        }
        families = each(lambda name: _fit_family(tables[name], tasks[name], seed, rounds))
    return {name: families[name] for name in tables}, changes


Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class _Part:
    """What of a family's times is left after the overhead: its log over the roofline.

    ``informed`` says how well it can be told apart from the overhead, from 0 to 1, and 0 where the roofline
    is so far below the overhead that what is left is noise; ``weight`` how much an operator counts: by a
    power of its share in its network, and not at all where it was interrupted.
    """

    overhead_s: float
    memory_level: float
    target: np.ndarray
    weight: np.ndarray
    informed: np.ndarray

    @classmethod
    def of(cls, table: _Table) -> _Part:
        """The part at the memory level at which the family's operators are most alike."""
        overhead = _overhead(table.overhead_s, table.times_s, table.ideal_s())
        times = np.maximum(table.times_s, CLOCK_S)
        parts = [cls._at(table, times, overhead, level) for level in MEMORY_LEVELS]
        return min(parts, key=lambda part: part.unlikeness + BELIEF / len(times) * part.memory_level**2)

    @property
    def unlikeness(self) -> float:
        """How far the logs of operators that tell something lie from the median one, in the mean."""
        told = self.informed * self.weight
        if not told.any():
            return 0.0
        spread = np.abs(self.target - _weighted_median(self.target, told))
        return float(np.average(np.minimum(spread, BOUND), weights=told))

    @classmethod
    def _at(cls, table: _Table, times: np.ndarray, overhead: float, memory_level: float) -> _Part:
        ideal = table.ideal_s(memory_level)
        # At least a tenth of the time: below that it cannot be told apart at all.
        target = np.log(np.maximum(times - overhead, 0.1 * times) / np.maximum(ideal, 1e-12))
        weight = table.share**0.75
        # The few that took longer than their like by more than trees can say were interrupted.
        wild = times > np.exp(BOUND) * (overhead + ideal * np.exp(np.median(target)))
        if wild.sum() <= max(1, 0.01 * len(wild)):
            weight[wild] = 0.0
        informed = np.where(
            (ideal > 0.02 * overhead) & (ideal > 0) & (times > 1.5 * overhead), 1 - overhead / times, 0.0
        )
        return cls(overhead, memory_level, target, weight, informed)


MEMORY_LEVELS = tuple(k / 8 for k in range(-12, 13))
"""What a family's memory level may be."""

BELIEF = 5.0
"""Operators, told apart from their overhead, that it takes to believe in a family's own level by half.

That is if they lie a factor ``e`` around it. Fewer do where they agree, as their variance. Where the middle
of a family's residuals is, as many say by half, however they agree.
"""


EARLIER = 0.5
"""What an operator of an earlier run counts beside one of the latest."""


@dataclass(frozen=True, eq=False)
class _Task:
    """What trees have to say of a family: the ``target``, logs of times over those by overhead and level.

    Times are those on the calm machine, as far as ``spell_slopes`` tell.
    """

    overhead_s: float
    level: float
    memory_level: float
    target: np.ndarray
    weight: np.ndarray
    spell_slopes: np.ndarray

    @classmethod
    def of(cls, table: _Table, part: _Part, usual: float) -> _Task:
        weight = part.weight * np.where(table.runs_ago > 0, EARLIER, 1.0)
        # Small operators are all overhead, and tell nothing of what a large one takes: that is as usual.
        told, level = float(part.informed.sum()), usual
        if told:
            own = _weighted_median(part.target, part.informed * weight)
            spread = max(_weighted_median(np.abs(part.target - own), part.informed * weight), 0.1)
            doubt = BELIEF * min(spread, 1.0) ** 2
            level = (told * own + doubt * usual) / (told + doubt)
        usual_s = part.overhead_s + table.ideal_s(part.memory_level) * np.exp(level)
        target = np.log(np.maximum(table.times_s, CLOCK_S) / np.maximum(usual_s, CLOCK_S))
        # The overhead is that of the fastest: what is left lies around the middle. Few operators hardly tell.
        middle = _weighted_median(target, weight) if weight.any() else 0.0
        middle *= len(target) / (len(target) + BELIEF)
        overhead_s = part.overhead_s * float(np.exp(middle))
        return cls(overhead_s, level + middle, part.memory_level, target - middle, weight, np.zeros(2))

    def on_calm_machine(self, table: _Table, unseen: np.ndarray) -> _Task:
        """The task without what spells did, as far as their slopes tell: of what ``unseen`` left over."""
        slopes = _slopes(table.spell, self.target - unseen, self.weight, table.runs_ago)
        return replace(self, target=self.target - table.spell @ slopes, spell_slopes=slopes)


def _changes(
    tables: Mapping[str, _Table], tasks: Mapping[str, _Task], unseen: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Of each family, logs of its times in a run so many runs ago over those in the latest.

    From run to run a machine changes, and kinds of operators by factors of their own: by the mean of what
    trees left over that had not seen the network and know of no run. Where the latest has few operators of
    a family, or none, it changed as others did, as by :data:`DOUBT` of them.
    """
    longest = max(int(table.runs_ago.max()) for table in tables.values())
    count, change = (np.zeros((len(tables), longest + 1)) for _ in range(2))
    for row, (name, table) in enumerate(tables.items()):
        left = np.clip(tasks[name].target - unseen[name], -0.5, 0.5)
        weight = tasks[name].weight + np.finfo(float).tiny
        numbers, weights, sums = (
            np.bincount(table.runs_ago, w, longest + 1) for w in (np.ones(len(left)), weight, weight * left)
        )
        mean = sums / np.maximum(weights, np.finfo(float).tiny)
        count[row] = np.minimum(numbers, numbers[0])
        change[row] = np.where(count[row] > 0, mean - mean[0], 0.0)
    usual = (count * change).sum(axis=0) / np.maximum(count.sum(axis=0), 1.0)
    change = (count * change + DOUBT * usual) / (count + DOUBT)
    change[:, 0] = 0.0
    return dict(zip(tables, change, strict=True))


HOURLY = 0.15
"""How much times may change from hour to hour, in logs."""


def _in_usual_hour(family: Family, change: np.ndarray) -> Family:
    """The family halfway between the latest run and the mean of the earlier ones, by their ``change``.

    How a machine is in one hour says little of how it is in the next: on an EPYC all operators of one run
    took 2 to 6 % longer or less than those of another, and runs in a row were hardly more alike than any. A
    family that changed by more than :data:`HOURLY` is as in the latest run: that is another machine.
    """
    earlier = change[1:][np.abs(change[1:]) < HOURLY]
    slower = float(earlier.mean()) / 2 if len(earlier) else 0.0
    return msgspec.structs.replace(
        family, overhead_s=family.overhead_s * float(np.exp(slower)), level=family.level + slower
    )


def _fit_family(table: _Table, task: _Task, seed: int, rounds: int) -> Family:
    # Where runs differ in more than the mean, a tree can say so.
    x = np.column_stack([table.x, table.runs_ago]) if table.runs_ago.any() else table.x
    trees = _as_arrays(_boosted(x, task.target, task.weight, seed, rounds))
    limits = table.x.min(axis=0).tolist(), table.x.max(axis=0).tolist()
    return Family(
        task.overhead_s,
        task.level,
        BOUND,
        0.0,
        table.names,
        *limits,
        _at_zero(trees, len(table.names)),
        tuple(task.spell_slopes.tolist()),
        task.memory_level,
    )


def _at_zero(trees: Trees, feature: int) -> Trees:
    """The trees where that feature is zero, without it: what splits by it sends all rows left."""
    split, threshold = np.array(trees.feature, dtype=int), np.array(trees.threshold)
    decided = split == feature
    return msgspec.structs.replace(
        trees,
        feature=np.where(decided, 0, split).tolist(),
        threshold=np.where(decided, np.finfo(float).max, threshold).tolist(),
    )


def _cross_fitted(table: _Table, task: _Task, seed: int, rounds: int) -> np.ndarray:
    """What trees say of operators whose networks they have not seen: half of the networks at a time.

    Of those that they have seen they know the spell by heart.
    """
    import lightgbm

    half = np.unique(table.network, return_inverse=True)[1] % 2 == 0
    said = np.zeros(len(half))
    for out in (half, ~half):
        trees = _boosted(table.x[~out], task.target[~out], task.weight[~out], seed, rounds)
        if trees != NO_TREES and out.any():
            said[out] = lightgbm.Booster(model_str=trees).predict(table.x[out], num_threads=1)
    return said


def _slopes(spell: np.ndarray, error: np.ndarray, weight: np.ndarray, runs_ago: np.ndarray) -> np.ndarray:
    """How much more, or less, than the reference operators slow in a spell: slopes of log errors in its logs.

    That is within runs: between them more may change than how noisy the machine is. Large errors do not
    count, and few spells tell little: slopes are drawn towards zero as by :data:`DOUBT` of them. Within -1,
    where operators do not slow at all (max-pooling, which waits for its own branches), and 2.
    """
    from scipy.optimize import lsq_linear

    chosen = (np.abs(error - np.median(error)) < 0.5) & (weight > 0)
    if not chosen.any():
        return np.zeros(2)
    w = weight[chosen] / weight[chosen].mean()
    root = np.sqrt(w)[:, None]
    rows = root * _within(np.column_stack([spell, error])[chosen], w, runs_ago[chosen])
    doubt = np.sqrt(DOUBT) * SPELL * np.eye(2, 3)
    rows = np.concatenate([rows, doubt])
    return np.asarray(lsq_linear(rows[:, :2], rows[:, 2], bounds=(-1.0, 2.0)).x)


def _within(values: np.ndarray, weight: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Columns of values less their weighted means in each group of rows."""
    own = np.unique(group, return_inverse=True)[1]
    total = np.bincount(own, weight)
    means = np.stack([np.bincount(own, weight * column) / total for column in values.T], axis=1)
    return np.asarray(values - means[own])


SPELL = 0.1
"""A spell worth the name: the reference, or the block, is slower by a tenth."""

DOUBT = 20
"""Operators in such a spell that it takes to believe half of what they say."""


def _overhead(least_s: float, times: np.ndarray, ideal: np.ndarray) -> float:
    """Time at size zero: the constant of a line in the roofline's time, fitted in relative error.

    Bounded by the smallest time seen, since no operator takes less than its overhead. Views, which compute
    and move nothing, are all overhead.
    """
    from scipy.optimize import nnls

    if not ideal.any():
        return float(np.median(times))
    times = np.maximum(times, CLOCK_S)
    small = times <= np.quantile(times, 0.5)
    if ideal[small].max() < 2 * ideal[small].min():  # one size does not tell what of its time is overhead
        return float(min(least_s, 0.95 * times.min()))
    design = np.stack([np.ones(int(small.sum())), ideal[small]], axis=1) / times[small, None]
    (constant, _), _ = nnls(design, np.ones(len(design)))
    return float(min(constant, 0.95 * np.quantile(times, 0.02)))


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(cumulative, cumulative[-1] / 2)])


NO_TREES = ""
"""LightGBM's text of none."""

ROUNDS = 300
"""Trees of a family's residual."""

FEWEST_OPERATORS = 20
"""A family of fewer gets no trees: its level alone."""


def _boosted(x: np.ndarray, y: np.ndarray, weight: np.ndarray, seed: int, rounds: int) -> str:
    """Trees of a family's residual, as LightGBM's text."""
    import lightgbm

    if len(y) < FEWEST_OPERATORS:
        return NO_TREES
    settings = {
        "objective": "huber",  # a fifth is a large error: more is noise
        "alpha": 0.2,
        "learning_rate": 24 / rounds,
        "num_leaves": 20,
        "max_depth": 7,
        "min_data_in_leaf": 6 if len(y) > 400 else 4,
        "boost_from_average": False,
        "feature_fraction": 0.6,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "lambda_l2": 1.0,
        "num_threads": 1,
        "deterministic": True,
        "seed": seed,
        "verbosity": -1,
    }
    data = lightgbm.Dataset(x, y, weight=weight / weight.mean(), params={"verbosity": -1})
    # Kept as it is: else it would be written and read once more.
    booster = lightgbm.train(settings, data, rounds, keep_training_booster=True)
    return str(booster.model_to_string())


def _as_arrays(text: str) -> Trees:
    """LightGBM's text of trees as padded arrays: inner nodes first, then leaves."""
    rows: tuple[list[list[Any]], ...] = ([], [], [], [], [])
    depth = 0
    for block in text.split("\nTree=")[1:]:
        given = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        leaves = [round(float(v), 7) for v in given["leaf_value"].split()]
        inner = len(leaves) - 1
        # A child below zero is a leaf, counted from -1 down.
        left, right = (
            [int(c) if int(c) >= 0 else inner - 1 - int(c) for c in given.get(side, "").split()]
            for side in ("left_child", "right_child")
        )
        level = [0] * (inner + len(leaves))
        for node, children in enumerate(zip(left, right, strict=True)):  # children come after their parent
            for child in children:
                level[child] = level[node] + 1
        depth = max(depth, *level)
        empty = [0] * len(leaves)
        rows[0].append([*map(int, given.get("split_feature", "").split()), *empty])
        rows[1].append([*map(float, given.get("threshold", "").split()), *map(float, empty)])
        rows[2].append([*left, *[-1] * len(leaves)])
        rows[3].append([*right, *[-1] * len(leaves)])
        rows[4].append([*[0.0] * inner, *leaves])
    most = max((len(row) for row in rows[0]), default=0)
    fills = (0, 0.0, -1, -1, 0.0)
    return Trees(
        depth,
        *(
            [[*row, *[fill] * (most - len(row))] for row in column]
            for column, fill in zip(rows, fills, strict=True)
        ),
    )
