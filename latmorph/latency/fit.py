"""Fit: from measurements to a LatencyModel, with what it gets wrong on networks held out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from latmorph import ops
from latmorph.device.roofs import Roofs
from latmorph.device.timing import Observation, Visit, observations
from latmorph.errors import ProfileError
from latmorph.latency import roofline
from latmorph.latency.model import Family, LatencyModel, Predictor, Trees
from latmorph.opspec import OpSpec

BOUND = 3.0
"""The trees move a prediction by at most a factor ``exp(3)``, some 20, either way."""


CLOCK_S = 1e-9
"""What the clock resolves: times below it count as it, where their logarithm is taken."""


class FamilyError(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Errors of one family's ``operators`` in held-out networks: mean and median, absolute, in percent."""

    operators: int
    mean_error_percent: float
    median_error_percent: float


class Validation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the model gets wrong on networks that were held out of the fit.

    Every one of the ``networks`` is held out once; those that a run was focused on do not count, since
    they are too much alike. Errors are absolute, in percent of the measured time; ``coverage_percent`` is
    the share of networks whose measured time lies in a 90 % interval that was fitted on others.
    """

    networks: int
    median_error_percent: float
    mean_error_percent: float
    within_10_percent: float
    coverage_percent: float
    families: dict[str, FamilyError]


def fit(roofs: Roofs, visits: Sequence[Visit], *, seed: int = 0) -> tuple[LatencyModel, Validation]:
    """Fit a latency model to the visits of a profiling run.

    Networks are dealt into three folds. Each fold is predicted by a model fitted on the others: from
    those predictions come the error of every family, the constant from sums of operators to whole
    networks, and the interval. The model handed out is fitted on all.

    Raises ProfileError when there are too few networks to hold any out.
    """
    networks = np.array(sorted({v.network for v in visits}))
    if len(networks) < 6:
        raise ProfileError(
            f"{len(networks)} networks were measured, at least 6 are needed for a fit: give more time"
        )
    found, whole = observations(visits)
    fold_of = dict(
        zip(networks.tolist(), np.random.default_rng(seed).permutation(len(networks)) % 3, strict=True)
    )
    held: list[tuple[Observation, float]] = []
    for fold in range(3):
        train = [o for o in found if fold_of[o.network] != fold]
        test = [o for o in found if fold_of[o.network] == fold]
        predictor = Predictor(_fit_families(roofs, train, seed, rounds=80))
        for network in sorted({o.network for o in test}):
            own = [o for o in test if o.network == network]
            times = predictor([o.spec for o in own], own[0].footprint_bytes).total_s[:, 0]
            held += zip(own, times.tolist(), strict=True)
    predicted: dict[int, float] = {}
    for o, t in held:
        predicted[o.network] = predicted.get(o.network, 0.0) + t
    ratio = np.log([whole[n] / predicted[n] for n in networks])
    scale = float(np.exp(np.median(ratio)))
    left = ratio - np.median(ratio)
    sigma = _central_sigma(left)
    final = _fit_families(roofs, found, seed, rounds=160)
    errors, sigmas = _family_errors(held)
    model = LatencyModel(
        roofs,
        {
            name: msgspec.structs.replace(family, sigma=sigmas.get(name, 0.3))
            for name, family in final.families.items()
        },
        scale,
        sigma,
    )
    sampled = networks >= 0 if np.any(networks >= 0) else np.full(len(networks), True)
    percent = 100 * np.abs(np.exp(-left[sampled]) - 1)
    validation = Validation(
        int(sampled.sum()),
        float(np.median(percent)),
        float(np.mean(percent)),
        float(100 * np.mean(percent <= 10)),
        100 * _coverage(left[sampled], np.array([fold_of[n] for n in networks[sampled].tolist()])),
        errors,
    )
    return model, validation


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
    held: Sequence[tuple[Observation, float]],
) -> tuple[dict[str, FamilyError], dict[str, float]]:
    logs: dict[str, list[float]] = {}
    for o, t in held:
        error = np.log(max(t, CLOCK_S) / max(o.time_s, CLOCK_S))
        logs.setdefault(_family(o.spec), []).append(float(error))
    errors, sigmas = {}, {}
    for name, values in sorted(logs.items()):
        percent = 100 * np.abs(np.exp(values) - 1)
        errors[name] = FamilyError(len(values), float(np.mean(percent)), float(np.median(percent)))
        sigmas[name] = _central_sigma(np.array(values))
    return errors, sigmas


def _fit_families(roofs: Roofs, found: Sequence[Observation], seed: int, rounds: int) -> LatencyModel:
    by_family: dict[str, list[Observation]] = {}
    for o in found:
        by_family.setdefault(_family(o.spec), []).append(o)
    totals: dict[int, float] = {}
    for o in found:
        totals[o.network] = totals.get(o.network, 0.0) + o.time_s
    families = {
        name: _fit_family(roofs, group, totals, seed, rounds) for name, group in sorted(by_family.items())
    }
    return LatencyModel(roofs, families, 1.0, 0.0)


def _fit_family(
    roofs: Roofs, group: Sequence[Observation], totals: dict[int, float], seed: int, rounds: int
) -> Family:
    times = np.array([o.time_s for o in group])
    pairs = [roofline.terms(roofs, o.spec, 1) for o in group]
    ideal = roofline.smoothmax(np.array([c[0] for c, _ in pairs]), np.array([m[0] for _, m in pairs]))
    tables = [roofline.features(o.spec, 1, o.footprint_bytes) for o in group]
    names = tables[0][0]
    x = np.array([values[0] for _, values in tables])
    if not np.any(ideal > 0):  # nothing computed and nothing moved: views cost their dispatch
        return Family(float(np.median(times)), 0.0, BOUND, 0.0, names, *_range(x), _no_trees())
    overhead = _overhead(roofs, times, ideal)
    # What is left after the overhead, at least a tenth of the time: below that it cannot be told apart.
    target = np.log(np.maximum(times - overhead, 0.1 * times) / np.maximum(ideal, 1e-12))
    # An operator counts by the root of its share in its network: large ones decide a network's time.
    weight = np.sqrt([o.time_s / totals[o.network] for o in group]) * (1 - 0.9 * overhead / times)
    level = float(_weighted_median(target, weight))
    trees = _fit_trees(x, target - level, weight, seed, rounds)
    return Family(overhead, level, BOUND, 0.0, names, *_range(x), trees)


def _range(x: np.ndarray) -> tuple[list[float], list[float]]:
    return x.min(axis=0).tolist(), x.max(axis=0).tolist()


def _overhead(roofs: Roofs, times: np.ndarray, ideal: np.ndarray) -> float:
    """Time at size zero: the constant of a line in the roofline's time, fitted in relative error.

    Bounded by the smallest time seen, since no operator takes less than its overhead.
    """
    from scipy.optimize import nnls

    small = times <= np.quantile(times, 0.5)
    if ideal[small].max() < 2 * ideal[small].min():  # one size does not tell what of its time is overhead
        return float(min(roofs.overhead_s, 0.95 * times.min()))
    design = np.stack([np.ones(int(small.sum())), ideal[small]], axis=1) / times[small, None]
    (constant, _), _ = nnls(design, np.ones(len(design)))
    return float(min(constant, 0.95 * np.quantile(times, 0.02)))


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(cumulative, cumulative[-1] / 2)])


def _no_trees() -> Trees:
    return Trees(0, [], [], [], [], [])


def _fit_trees(x: np.ndarray, y: np.ndarray, weight: np.ndarray, seed: int, rounds: int) -> Trees:
    from sklearn.ensemble import GradientBoostingRegressor

    if len(y) < 20:
        return _no_trees()
    rate, depth = (0.08, 5) if len(y) > 400 else (0.1, 3)
    forest: Any = GradientBoostingRegressor(
        loss="huber",
        alpha=0.95,
        n_estimators=rounds,
        learning_rate=rate * 160 / rounds,
        max_depth=depth,
        subsample=0.7,
        max_features=0.5,
        min_samples_leaf=4,
        init="zero",
        random_state=seed,
    ).fit(x, y, sample_weight=weight)
    trees = [stage[0].tree_ for stage in forest.estimators_]
    nodes = max(t.node_count for t in trees)

    def padded(values: Any, fill: float) -> list[Any]:
        return [*values.tolist(), *[fill] * (nodes - len(values))]

    scale = float(forest.learning_rate)
    return Trees(
        max(t.max_depth for t in trees),
        [padded(np.maximum(t.feature, 0), 0) for t in trees],
        [padded(np.round(t.threshold, 6), 0.0) for t in trees],
        [padded(t.children_left, -1) for t in trees],
        [padded(t.children_right, -1) for t in trees],
        [padded(np.round(t.value[:, 0, 0] * scale, 7), 0.0) for t in trees],
    )
