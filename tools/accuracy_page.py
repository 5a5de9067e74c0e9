"""What ``tools.accuracy`` measured, as values, statistics, tables and pictures: ``docs/accuracy.md``."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from latmorph.device.timing import calm_s, in_calm_s
from latmorph.files import write_whole
from latmorph.report.tables import time_text

LARGE_EFFECT = 0.03
"""A removal whose true effect is smaller than this is not asked for its sign."""

FACTOR = 1.5
"""Where the machine repeats itself worse than a goal asks, the goal is this many times its repeatability.

A fresh profile of at most FRESH_S seconds is asked for this many times the errors of the one that ships.
"""
FRESH_S = 300.0

TOO_NOISY = 0.5
"""A goal that repeatability would widen to this says nothing of the predictions: the run was too noisy."""


class Round(msgspec.Struct, frozen=True):
    """One network in one round: its calm time, and the raw samples behind it, all in seconds."""

    measured_at: str
    time_s: float
    samples_s: tuple[float, ...]
    references_s: tuple[float, ...]

    def on(self, calm_reference_s: float) -> Round:
        """The round with its calm time worked out anew, for another calm reference."""
        return msgspec.structs.replace(
            self, time_s=in_calm_s(self.samples_s, self.references_s, calm_reference_s)
        )


def calmer_half(rounds: Sequence[Round]) -> list[Round]:
    """The rounds in which the reference was faster.

    In a noisy round a small network slows by about twice as much as the reference, so that dividing by it is
    not enough.
    """
    return sorted(rounds, key=lambda r: calm_s(r.references_s))[: (len(rounds) + 1) // 2]


def on_calm_s(rounds: Sequence[Round]) -> float:
    """What a network takes on the calm machine, in seconds: the mean over the calmer half of its rounds."""
    return float(np.mean([r.time_s for r in calmer_half(rounds)]))


class Network(msgspec.Struct, frozen=True):
    """One network, predicted and measured.

    ``roofline_s`` is the sum over operators of the larger of FLOPs over the measured peak and bytes over
    the measured bandwidth. ``parent`` names the network of which this is a shrunk one, and ``shrunk`` the
    groups that lost channels, with the width that is left.
    """

    name: str
    flops: int
    roofline_s: float
    predicted_s: float
    interval_s: tuple[float, float]
    unpriced: tuple[str, ...]
    rounds: tuple[Round, ...]
    parent: str = ""
    shrunk: dict[str, int] = {}

    @property
    def takes_s(self) -> tuple[float, float]:
        """What one half of the rounds measures, and the other, minutes later."""
        half = len(self.rounds) // 2
        return on_calm_s(self.rounds[:half]), on_calm_s(self.rounds[half:])

    @property
    def measured_s(self) -> float:
        """What all rounds measure."""
        return on_calm_s(self.rounds)

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted_s / self.measured_s - 1

    @property
    def disagreement(self) -> float:
        """The second take over the first, less one."""
        first, second = self.takes_s
        return second / first - 1


class Kind(msgspec.Struct, frozen=True):
    """A profile's own error on one kind of operator, on networks held out of its fit, in percent."""

    operators: int
    mean_error_percent: float
    median_error_percent: float


class Figures(msgspec.Struct, frozen=True):
    """One set of networks on one machine, in one runtime, at one number of threads.

    ``reference_s`` is the calm time of the reference operator to which all times are scaled; ``kinds``
    are the profile's own held-out errors; ``shipped`` tells a profile that comes with latmorph from one made
    afresh; ``failed`` says why a network of the set is missing; ``note`` how this was measured otherwise than
    the page says.
    """

    set: str
    seed: int
    machine: str
    runtime: str
    dtype: str
    threads: int
    batch: int
    profile: str
    profile_budget_s: float
    profile_created: str
    shipped: bool
    reference_s: float
    mismatch: tuple[str, ...]
    load: tuple[float, float]
    kinds: dict[str, Kind]
    networks: tuple[Network, ...]
    failed: dict[str, str]
    note: str = ""

    @property
    def noise(self) -> float:
        """How much slower than on the calm machine the reference was in calmer rounds, as a fraction."""
        calmer = [calm_s(r.references_s) for n in self.networks for r in calmer_half(n.rounds)]
        return float(np.mean(calmer)) / self.reference_s - 1

    @property
    def setting(self) -> str:
        """Machine, runtime, dtype, threads and batch in words."""
        threads = f", {self.threads} thread{'s' if self.threads > 1 else ''}" if self.threads else ""
        batch = f", batch {self.batch}" if self.batch > 1 else ""
        return f"{self.machine}: {self.runtime}, {self.dtype}{threads}{batch}"


@dataclass(frozen=True)
class Statistics:
    """How times compare with other times of the same networks; ``mean`` to ``bias`` are fractions.

    ``mean``, ``median`` and ``largest`` are of absolute errors, ``bias`` is the median of signed ones,
    ``within_5`` and ``within_10`` are shares of networks, ``rank`` is Spearman's correlation.
    """

    count: int
    mean: float
    median: float
    largest: float
    bias: float
    within_5: float
    within_10: float
    rank: float


def compare(predicted: Sequence[float] | np.ndarray, measured: Sequence[float] | np.ndarray) -> Statistics:
    """Statistics of predicted times against measured ones, both of shape ``(n,)``, n at least one."""
    errors = np.asarray(predicted, dtype=np.float64) / np.asarray(measured, dtype=np.float64) - 1
    size = np.abs(errors)
    return Statistics(
        len(errors),
        float(size.mean()),
        float(np.median(size)),
        float(size.max()),
        float(np.median(errors)),
        float(np.mean(size <= 0.05)),
        float(np.mean(size <= 0.10)),
        rank_correlation(predicted, measured),
    )


def rank_correlation(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Spearman's rank correlation; not a number for fewer than three."""
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic) if len(a) > 2 else math.nan


def accuracy(networks: Sequence[Network]) -> Statistics:
    """Predictions against measurements."""
    return compare([n.predicted_s for n in networks], [n.measured_s for n in networks])


def repeatability(networks: Sequence[Network]) -> Statistics:
    """The second take against the first: the same networks, the same method, minutes apart."""
    return compare([n.takes_s[1] for n in networks], [n.takes_s[0] for n in networks])


def coverage(networks: Sequence[Network]) -> float:
    """Share of networks whose measured time lies in the predicted 90 % interval."""
    return float(np.mean([n.interval_s[0] <= n.measured_s <= n.interval_s[1] for n in networks]))


def best_constant(raw: np.ndarray, measured: np.ndarray) -> float:
    """The ``c`` for which the mean of ``|c raw / measured - 1|`` is smallest: a weighted median."""
    ratio, weight = measured / raw, raw / measured
    order = np.argsort(ratio)
    half = np.cumsum(weight[order])
    return float(ratio[order][np.searchsorted(half, half[-1] / 2)])


def with_constant(raw: Sequence[float], measured: Sequence[float], seed: int = 0) -> np.ndarray:
    """``raw`` times a constant: for each half of the networks, the best one of the other half."""
    x, y = np.asarray(raw, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    order = np.random.default_rng(seed).permutation(len(x))
    halves = order[: len(x) // 2], order[len(x) // 2 :]
    predicted = np.empty(len(x))
    for ours, others in (halves, halves[::-1]):
        predicted[ours] = best_constant(x[others], y[others]) * x[ours]
    return predicted


def baselines(networks: Sequence[Network]) -> dict[str, Statistics]:
    """The baselines' errors on the same networks; those with a constant need two networks at least."""
    measured = [n.measured_s for n in networks]
    flops, roofline = [float(n.flops) for n in networks], [n.roofline_s for n in networks]
    found = {"max(FLOPs / peak, bytes / bandwidth), as it is": compare(roofline, measured)}
    if len(networks) > 1 and min(flops) > 0:
        found = {
            "FLOPs times a constant": compare(with_constant(flops, measured), measured),
            **found,
            "the same, times a constant": compare(with_constant(roofline, measured), measured),
        }
    return found


@dataclass(frozen=True)
class Effects:
    """Changes of a parent's time when one group loses channels, as fractions of it, each of shape (n,).

    ``takes`` has shape (2, n): what either half of the rounds measured.
    """

    predicted: np.ndarray
    measured: np.ndarray
    takes: np.ndarray

    @property
    def large(self) -> np.ndarray:
        """Which true effects are large enough to be asked for their sign."""
        return np.abs(self.measured) > LARGE_EFFECT

    @property
    def sign_right(self) -> float:
        """Share of large effects whose sign is predicted."""
        return _share(np.sign(self.predicted) == np.sign(self.measured), self.large)

    @property
    def sign_repeats(self) -> float:
        """Share of large effects to which both takes give one sign."""
        return _share(np.sign(self.takes[0]) == np.sign(self.takes[1]), self.large)


def _share(right: np.ndarray, among: np.ndarray) -> float:
    return float(np.mean(right[among])) if among.any() else math.nan


def effects(networks: Sequence[Network]) -> Effects:
    """Of every network with one shrunk group, its time over its parent's, less one."""
    by_name = {n.name: n for n in networks}
    pairs = [(n, by_name[n.parent]) for n in networks if len(n.shrunk) == 1 and n.parent in by_name]
    return Effects(
        np.array([n.predicted_s / p.predicted_s - 1 for n, p in pairs]),
        np.array([n.measured_s / p.measured_s - 1 for n, p in pairs]),
        np.array([[a / b - 1 for a, b in zip(n.takes_s, p.takes_s, strict=True)] for n, p in pairs]).T,
    )


@dataclass(frozen=True)
class Goal:
    """One figure that was asked for.

    ``short`` is what is missing from perfect (an error, or a share's or a correlation's distance from
    one), ``repeats`` the same of the machine's repeatability, ``allowed`` the most that was asked.
    """

    text: str
    allowed: float
    short: float
    repeats: float
    show: Callable[[float], str]

    @property
    def verdict(self) -> str:
        """Whether the goal is met, as it stands or by the machine's repeatability."""
        if math.isnan(self.short):
            return "not measured"
        if self.short <= self.allowed + 1e-9:
            return "met"
        if self.repeats <= self.allowed + 1e-9:
            return "**missed**"
        widened = FACTOR * self.repeats
        if widened >= TOO_NOISY:
            return "cannot be told: the machine does not repeat itself"
        words = f"{FACTOR:g} x repeatability"
        return f"met within {words}" if self.short <= widened + 1e-9 else f"**missed**, also by {words}"


def _error(value: float) -> str:
    return f"{100 * value:.1f} %"


def _share_text(short: float) -> str:
    return "" if math.isnan(short) else f"{100 * (1 - short):.1f} %"


def _rank_text(short: float) -> str:
    return "" if math.isnan(short) else f"{1 - short:.3f}"


def goals(figures: Figures) -> list[Goal]:
    """The goals of a set and how far they are met."""
    asked = _goals_of_shipped(figures)
    if figures.set == "focus" or figures.shipped or figures.profile_budget_s > FRESH_S:
        return asked
    words = f" (errors {FACTOR:g} times that: a profile of five minutes)"
    return [replace(g, text=g.text + words, allowed=FACTOR * g.allowed) for g in asked]


def _goals_of_shipped(figures: Figures) -> list[Goal]:
    networks = figures.networks
    if figures.set == "removal":
        return _removal_goals(networks)
    own, machine = accuracy(networks), repeatability(networks)

    def within(percent: int, share: float) -> Goal:
        ours, theirs = (s.within_5 if percent == 5 else s.within_10 for s in (own, machine))
        asked = "all" if share == 1 else f"at least {100 * share:.0f} %"
        return Goal(f"within {percent} %, {asked}", 1 - share, 1 - ours, 1 - theirs, _share_text)

    if figures.set == "zoo":
        mean = Goal("mean absolute error, at most 3 %", 0.03, own.mean, machine.mean, _error)
        return [mean, within(5, 0.95), within(10, 0.99)]
    if figures.set == "hard":
        rank = Goal("rank correlation, at least 0.98", 0.02, 1 - own.rank, 1 - machine.rank, _rank_text)
        return [within(10, 0.95), within(5, 0.80), rank]
    return [within(5, 1.0)]


def _removal_goals(networks: Sequence[Network]) -> list[Goal]:
    asked, found = [], effects(networks)
    if len(found.predicted):
        signs = 1 - found.sign_right, 1 - found.sign_repeats
        asked.append(Goal("sign of a large effect right, at least 99 %", 0.01, *signs, _share_text))
    pruned = [n for n in networks if len(n.shrunk) > 1]
    if pruned:
        own, machine = accuracy(pruned), repeatability(pruned)
        shares = 1 - own.within_10, 1 - machine.within_10
        asked.append(Goal("pruned within 10 %, all", 0.0, *shares, _share_text))
    return asked


TITLES = {
    "zoo": "zoo networks at their designed widths",
    "hard": "the hard set: random networks at odd widths",
    "removal": "removing channels",
    "focus": "a profile focused on one network",
}
"""The sets in the order in which the page has them."""


def _order(figures: Figures) -> tuple[str, int, int, int, str]:
    return (figures.machine, *_runtime_order(figures), list(TITLES).index(figures.set), figures.profile)


def _runtime_order(figures: Figures) -> tuple[int, int]:
    return int(not figures.runtime.startswith("eager")), figures.threads


def summary(everything: Sequence[Figures]) -> str:
    """One row a set: errors, and the machine's own beside them."""
    lines = [
        "| set | runtime, threads | networks | mean error | median | within 5 % | within 10 % | largest "
        "| bias | rank | interval covers | repeats: mean | repeats: within 5 % |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for f in everything:
        own, machine = accuracy(f.networks), repeatability(f.networks)
        runtime = f"{f.runtime.split(',')[0]}, {f.threads} (`{f.profile}`, {f.profile_budget_s:.0f} s)"
        lines.append(
            f"| {f.set} | {runtime} | {own.count} | **{_error(own.mean)}** | {_error(own.median)} | "
            f"{_error(own.within_5)} | {_error(own.within_10)} | {_error(own.largest)} | "
            f"{100 * own.bias:+.1f} % | {own.rank:.3f} | {_error(coverage(f.networks))} | "
            f"{_error(machine.mean)} | {_error(machine.within_5)} |"
        )
    return "\n".join(lines)


def goals_table(everything: Sequence[Figures]) -> str:
    """One row a goal."""
    lines = [
        "| set | runtime, threads | asked for | here | repeatability | |",
        "| --- | --- | --- | ---: | ---: | --- |",
    ]
    for f in everything:
        runtime = f"{f.runtime.split(',')[0]}, {f.threads}"
        lines += [
            f"| {f.set} | {runtime} | {goal.text} | {goal.show(goal.short)} | {goal.show(goal.repeats)} | "
            f"{goal.verdict} |"
            for goal in goals(f)
        ]
    return "\n".join(lines)


def section(figures: Figures, picture: str) -> str:
    """One set in one setting: its baselines, its pictures and its networks."""
    moments = [r.measured_at for n in figures.networks for r in n.rounds]
    lines = [
        f"### {figures.setting}: {TITLES[figures.set]}",
        "",
        f"Profile `{figures.profile}`, measured for {figures.profile_budget_s:.0f} s on "
        f"{figures.profile_created[:10]}. Networks measured {min(moments)} to {max(moments)}, "
        f"{max(len(n.rounds) for n in figures.networks)} rounds, load average "
        f"{figures.load[0]:.1f}, the reference {100 * figures.noise:+.1f} % from calm in the calmer half"
        + (f", seed {figures.seed}." if figures.set != "zoo" else "."),
        *(f"\n**The profile is of another machine: {d}.**" for d in figures.mismatch),
        *(f"\n**{note}**" for note in (figures.note,) if note),
        "",
        f"![predicted over measured, and errors]({picture})",
        "",
    ]
    if figures.set == "removal":
        found = effects(figures.networks)
        right, repeats = (_share_text(1 - s) or "none" for s in (found.sign_right, found.sign_repeats))
        lines += [
            f"{len(found.predicted)} removals from a single group, {int(found.large.sum())} of them with a "
            f"true effect above {100 * LARGE_EFFECT:.0f} %: of these the sign of {right} is predicted, and "
            f"two takes agree on {repeats}.",
            "",
        ]
    if figures.set in ("zoo", "hard"):
        lines += [*_baselines_table(figures.networks), ""]
    unpriced = sorted({name for n in figures.networks for name in n.unpriced})
    if unpriced:
        lines += [f"Operators without a price, left out of predictions: {', '.join(unpriced)}.", ""]
    lines += [f"Missing: {name} ({why})." for name, why in figures.failed.items()]
    return "\n".join([*lines, *_networks_table(figures.networks), ""])


def _baselines_table(networks: Sequence[Network]) -> list[str]:
    rows = {"latmorph": accuracy(networks), **baselines(networks), "repeatability": repeatability(networks)}
    return [
        "| | mean error | median | within 5 % | within 10 % | largest | rank |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {name} | {_error(s.mean)} | {_error(s.median)} | {_error(s.within_5)} | "
            f"{_error(s.within_10)} | {_error(s.largest)} | {s.rank:.3f} |"
            for name, s in rows.items()
        ),
    ]


def _networks_table(networks: Iterable[Network]) -> list[str]:
    lines = [
        "",
        "<details><summary>Every network</summary>",
        "",
        "| network | GFLOPs | predicted | 90 % interval | measured | error | second take |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for n in networks:
        low, high = n.interval_s
        lines.append(
            f"| {n.name} | {n.flops / 1e9:.2f} | {time_text(n.predicted_s)} | {time_text(low)} to "
            f"{time_text(high)} | {time_text(n.measured_s)} | {100 * n.error:+.1f} % | "
            f"{100 * n.disagreement:+.1f} % |"
        )
    return [*lines, "", "</details>"]


def kinds_table(everything: Sequence[Figures]) -> str:
    """Every profile's own held-out errors, kind by kind: median in percent."""
    profiles = {f.profile: f for f in everything}
    names = sorted({kind for f in profiles.values() for kind in f.kinds})
    lines = [
        "| kind | " + " | ".join(f"`{name}`" for name in profiles) + " |",
        "| --- |" + " ---: |" * len(profiles),
    ]
    for kind in names:
        cells = []
        for f in profiles.values():
            k = f.kinds.get(kind)
            cells.append(
                f"{k.median_error_percent:.1f} % median, {k.mean_error_percent:.1f} % mean of {k.operators}"
                if k
                else ""
            )
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(figures: Figures, path: Path) -> None:
    """Predicted against measured, and the errors' histogram beside the takes'. PNG, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    if figures.set == "removal":
        _draw_effects(left, effects(figures.networks))
    else:
        _draw_times(left, figures.networks)
    _draw_errors(right, figures.networks)
    figure.suptitle(f"{TITLES[figures.set]}\n{figures.setting}", fontsize=10)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    write_whole(path, data.getvalue())


BLUE, GREY, BAND = "#2b6cb0", "#9aa3af", "#e2e8f0"


def _draw_times(axes: Any, networks: Sequence[Network]) -> None:
    from matplotlib.ticker import LogLocator

    measured = 1e3 * np.array([n.measured_s for n in networks])
    predicted = 1e3 * np.array([n.predicted_s for n in networks])
    low, high = 0.8 * min(measured.min(), predicted.min()), 1.25 * max(measured.max(), predicted.max())
    line = np.array([low, high])
    axes.fill_between(line, 0.9 * line, 1.1 * line, color=BAND, linewidth=0, label="within 10 %")
    axes.plot(line, line, color=GREY, linewidth=0.8)
    axes.scatter(measured, predicted, s=14, color=BLUE, alpha=0.8, linewidths=0, label="a network")
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.set_xlabel("measured, ms")
    axes.set_ylabel("predicted, ms")
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _draw_effects(axes: Any, found: Effects) -> None:
    if not len(found.predicted):
        return
    x, y = 100 * found.measured, 100 * found.predicted
    low, high = min(x.min(), y.min()) - 2, max(x.max(), y.max(), 0) + 2
    axes.axvspan(-100 * LARGE_EFFECT, 100 * LARGE_EFFECT, color=BAND, linewidth=0, label="too small to ask")
    axes.plot((low, high), (low, high), color=GREY, linewidth=0.8)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.scatter(x, y, s=14, color=BLUE, alpha=0.8, linewidths=0, label="a removal")
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.set_xlabel("measured change of the network's time, %")
    axes.set_ylabel("predicted change, %")
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _draw_errors(axes: Any, networks: Sequence[Network]) -> None:
    edges = np.linspace(-20, 20, 41)
    series = (
        ("predicted over measured", [n.error for n in networks], {"color": BLUE, "alpha": 0.8}),
        (
            "second take over first",
            [n.disagreement for n in networks],
            {"histtype": "step", "color": "#b7791f", "linewidth": 1.4},
        ),
    )
    for label, values, style in series:
        axes.hist(np.clip(100 * np.array(values), -19.99, 19.99), bins=edges, label=label, **style)
    axes.set_xlim(-20, 20)
    axes.margins(y=0.25)
    axes.set_xlabel("error, % (what is farther out stands at the edge)")
    axes.set_ylabel("networks")
    axes.legend(frameon=False, fontsize=8, loc="upper left")


INTRODUCTION = """# Accuracy: predicted against measured, end to end

Written by `python -m tools.accuracy` from the JSON files in `docs/accuracy/`, which hold the raw samples.

**Sets.** *zoo*: networks of torchvision, timm, pytorchcv and transformers as designed, random weights
(`tools/zoo.py`). *hard*: random networks, half of all widths odd or one off a multiple of 8, 16 or 32, two
in five of the networks built of depthwise convolutions, drawn by a seed with code of their own
(`tools/hard_set.py`). *removal*: networks with channels taken from one group, and with channels taken from
all. *focus*: a profile with two minutes of measurements of one network added, on that network and 20 shrunk
variants of it. No network of zoo, hard or removal is used in fitting a profile.

**Measuring.** Eight rounds over everything, in random order; in each, every network has a process of its
own, forked from one that has imported the zoos and run nothing (`latmorph/device/fresh.py`), as it has in
profiles. There it is built, runs until it has settled, then three times timed, with a fixed reference
operator, settled itself, before and after each. A round's time is the mean of the calmer half of its
samples, taken to the calm machine by how much the reference was slower than on it
(`latmorph/device/timing.py`); "measured" is the mean of the calmer half of a network's rounds, calmer by
the reference: in noise small networks slow by about twice as much as it does.
**Repeatability** is the second take, made of the later half of the rounds in the same way, against the
first, made of the earlier: the same networks, the same method, minutes apart. Pictures are noise with the
spectrum of a photograph: how long max-pooling takes depends on what it reads. On Linux, the allocator keeps
freed memory (`keep_freed_memory` in `latmorph/device/backend.py`), in profiles and here.

**Profiles.** The time given with a profile is that of all its runs of `latmorph profile`, which may be days
apart. All tell how times go with shapes, and the calmest of them what calm is. Machines change from hour to
hour, by other factors for other kinds of operators: predictions lie halfway between the latest run and the
mean of the others. A name that ends in `5min` is of one run that started from nothing (`--fresh`), one in
`borrowed` of one that took the shapes from another device's profile, as a first run does on a machine
without a profile.

**Baselines**, on the same networks in the same run. *FLOPs times a constant*: the best constant of one half
of the networks (smallest mean error), tested on the other half, both ways. *max(FLOPs / peak, bytes /
bandwidth)*: MorphNet's model summed over operators, with the peak and the bandwidths that the profile
measured; as it is, and with a constant found in the same way.

**Goals.** Where the machine's own repeatability is worse than what is asked, the goal is within 1.5
times of it: errors, or the share of networks outside, at most 1.5 times as large.
"""


def read_figures(path: Path) -> Figures:
    """The figures in a file; SystemExit with what to do where it holds something else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Figures)
    except msgspec.MsgspecError as error:
        raise SystemExit(f"{path}: not of this version ({error}); remove it, or measure anew") from None


def write_page(folder: Path) -> None:
    """Write the page beside ``folder``, and a picture for each JSON in it, from all of those JSONs."""
    found = [(read_figures(path), path) for path in folder.glob("*.json")]
    found = [(f, path) for f, path in sorted(found, key=lambda pair: _order(pair[0])) if f.networks]
    parts = [INTRODUCTION]
    for machine in dict.fromkeys(f.machine for f, _ in found):
        here = [f for f, _ in found if f.machine == machine]
        parts += [
            f"## {machine}\n",
            f"{summary(here)}\n",
            f"### Asked for, and found\n\n{goals_table(here)}\n",
            f"### The profiles' own held-out errors, by kind of operator\n\n{kinds_table(here)}\n",
        ]
        for f, path in found:
            if f.machine == machine:
                draw(f, path.with_suffix(".png"))
                parts.append(section(f, f"{folder.name}/{path.stem}.png"))
    write_whole(folder.with_suffix(".md"), "\n".join(parts).encode())
