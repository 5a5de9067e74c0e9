"""Predicted against measured, end to end, on networks that no profile was fitted on.

Usage: python -m tools.accuracy [--runtime eager] [--threads 1 2] [--set zoo|hard|removal|focus|all]
       [--seed 0] [--profile NAME] [--limit K] [--resume] [--predict] [-o docs/accuracy]

For each number of threads and each set: takes the profile named, or this machine's newest, predicts every
network, then measures all of them in four rounds. What is measured goes line by line into a journal in
out/accuracy, so that an interrupted run goes on with ``--resume``; in the end raw samples and figures go
into one JSON a profile and set, and ``docs/accuracy.md`` is written anew from all of those JSONs. With
``--predict`` nothing is measured: the times in the JSONs stay, and the profile predicts anew.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import gc
import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

import latmorph as lm
from latmorph import ops
from latmorph.device.roofs import Roofs
from latmorph.device.timing import MOST_UNSETTLED, SETTLED_S, TIMED
from latmorph.files import write_whole
from latmorph.latency.profile import (
    Profile,
    list_profiles,
    mismatch,
    open_profile,
    read_header,
    shipped_folder,
)
from latmorph.opspec import OpSpec
from latmorph.report.exported import exported
from latmorph.report.measured import measure_together
from latmorph.report.tables import time_text
from tools.accuracy_page import (
    TITLES,
    Figures,
    Kind,
    Network,
    Round,
    accuracy,
    read_figures,
    repeatability,
    write_page,
)
from tools.hard_set import HardNetwork, hard_set
from tools.zoo import ZooNetwork, picture, written_out, zoo

ROUNDS = 4
CHUNK = 6
"""Networks that stand side by side, and in memory, at a time."""

PASSES = (2, 5)
"""A round has at least and at most so many passes, and in between as many as fill every network's turn."""

HARD_COUNT = 64
REMOVALS, PRUNED = 12, 3
FOCUS_VARIANTS = 20
FOCUS_BUDGET_S = 120.0

REMOVAL_ZOO = (
    *("torchvision resnet18", "torchvision mobilenet_v2", "torchvision squeezenet1_1"),
    *("torchvision regnet_y_400mf", "timm mixer_s16_224"),
)
REMOVAL_HARD = ("basic", "bottleneck", "inverted", "separable", "branches")
"""Parents of the removal set: of the zoo, and the first hard network of each of these families."""

FOCUS_ON = ("ResNet-18", "MobileNetV2")


@dataclass(frozen=True)
class Case:
    """A network of a set. A shrunk one names its parent and the widths of the groups that lost channels."""

    name: str
    make: Callable[[], tuple[torch.nn.Module, tuple[torch.Tensor, ...]]]
    parent: str = ""
    shrunk: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The networks of a set, the graphs of those that have shrunk ones, and who predicts them."""

    cases: Sequence[Case]
    graphs: Mapping[str, lm.Graph]
    profiles: Mapping[str, Profile]
    """By a parent's name, the profile for its family where that is not the run's."""


@dataclass(frozen=True)
class Forecast:
    """What is said of a network before it is measured; see :class:`tools.accuracy_page.Network`.

    ``digest`` tells this network, at these widths, from any other.
    """

    flops: int
    roofline_s: float
    predicted_s: float
    interval_s: tuple[float, float]
    unpriced: tuple[str, ...]
    digest: str


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runtime", default="eager")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--batch", type=int, default=1, help="of the zoo's networks")
    parser.add_argument("--set", nargs="+", default=["all"], choices=[*TITLES, "all"])
    parser.add_argument("--seed", type=int, default=0, help="draws the hard set and the channels to remove")
    parser.add_argument("--profile", help="name or folder; by default this machine's newest")
    parser.add_argument("--limit", type=int, help="networks of a set (parents of shrunk ones), for a trial")
    parser.add_argument("--turn", type=float, default=0.5, help="seconds of a network in a round, about")
    parser.add_argument("--passes", type=int, help="passes a round, whatever time they take")
    parser.add_argument("--focus-budget", type=float, default=FOCUS_BUDGET_S, help="seconds")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    parser.add_argument("--predict", action="store_true", help="measure nothing, predict anew")
    parser.add_argument("--journals", type=Path, default=Path("out/accuracy"))
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/accuracy"))
    args = parser.parse_args(arguments)
    for threads in args.threads:
        profile = find_profile(args.profile, args.device, args.runtime, threads)
        for name in TITLES if "all" in args.set else args.set:
            figures = predict_anew(args, profile, name) if args.predict else run(args, profile, name)
            if figures is None or not figures.networks:
                print(f"{name}: nothing to show", flush=True)
                continue
            text = msgspec.json.format(msgspec.json.encode(figures), indent=1)
            write_whole(place(args, profile, name), text + b"\n")
            if not args.predict:
                journal_path(args, profile, name).unlink()
            say(figures)
            write_page(args.output)


def place(args: argparse.Namespace, profile: Profile, name: str) -> Path:
    """Where the figures of a profile and a set stand."""
    return Path(args.output / f"{stem(args, profile.name, name)}.json")


def journal_path(args: argparse.Namespace, profile: Profile, name: str) -> Path:
    """Where a run writes what it has measured so far."""
    return Path(args.journals / f"{stem(args, profile.name, name)}.jsonl")


def stem(args: argparse.Namespace, profile: str, name: str) -> str:
    """A file's name without its ending."""
    return f"{profile}-{name}" + (f"-batch{args.batch}" if args.batch > 1 else "")


def say(figures: Figures) -> None:
    """The figures in two lines."""
    own, machine = accuracy(figures.networks), repeatability(figures.networks)
    for what, s in (("predicted", own), ("repeated", machine)):
        print(
            f"{figures.set}, {figures.threads} thread(s), {s.count} networks {what}: mean error "
            f"{100 * s.mean:.1f} %, median {100 * s.median:.1f} %, {100 * s.within_5:.0f} % within 5 %, "
            f"{100 * s.within_10:.0f} % within 10 %, largest {100 * s.largest:.0f} %, "
            f"bias {100 * s.bias:+.1f} %, rank {s.rank:.3f}",
            flush=True,
        )
    for name, why in figures.failed.items():
        print(f"missing: {name} ({why})", flush=True)


def find_profile(name: str | None, device: str, runtime: str, threads: int) -> Profile:
    """The profile named, or this machine's newest of a runtime and number of threads."""
    if name is not None:
        return lm.load_profile(name)
    headers = [(read_header(folder), folder) for folder in list_profiles().values()]
    here = [
        (header.created, folder)
        for header, folder in headers
        if (of := header.fingerprint).device == device
        and of.runtime == runtime
        and (device != "cpu" or of.threads == threads)
        and not mismatch(of)
    ]
    if not here:
        raise SystemExit(
            f"no profile of this machine's {device}, {runtime}, at {threads} thread(s): make one first"
        )
    return lm.load_profile(max(here)[1])


# The sets.


def plan_of(args: argparse.Namespace, profile: Profile, name: str) -> Plan:
    """The networks of a set."""
    device, limit = profile.fingerprint.device, args.limit
    if name == "zoo":
        return Plan([zoo_case(z, args.batch, device) for z in list(zoo().values())[:limit]], {}, {})
    if name == "hard":
        drawn = hard_set(args.seed, HARD_COUNT if limit is None else limit)
        return Plan([hard_case(h, device) for h in drawn], {}, {})
    if name == "removal":
        known = zoo()
        parents = [zoo_case(known[z], 1, device) for z in REMOVAL_ZOO if z in known]
        parents = parents or [zoo_case(written_out()[z], 1, device) for z in FOCUS_ON]
        drawn = hard_set(args.seed, 20)
        parents += [
            hard_case(next(h for h in drawn if h.family == family), device) for family in REMOVAL_HARD
        ]
        counts = (REMOVALS, PRUNED) if limit is None else (limit, 1)
        return _families(parents[:limit], counts, args.seed)
    parents = [zoo_case(written_out()[z], 1, device) for z in FOCUS_ON][:limit]
    plan = _families(parents, (0, FOCUS_VARIANTS if limit is None else limit), args.seed)
    return Plan(plan.cases, plan.graphs, {p.name: _focused(args, profile, p) for p in parents})


def zoo_case(z: ZooNetwork, batch: int, device: str) -> Case:
    """A network of a zoo."""
    return Case(z.name, lambda: (z.make().to(device), tuple(x.to(device) for x in z.inputs(batch))))


def hard_case(h: HardNetwork, device: str) -> Case:
    """A network of the hard set."""

    def make() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
        return h.make().to(device), (picture(h.shape).to(device),)

    return Case(f"hard {h.name}", make)


def _families(parents: Iterable[Case], counts: tuple[int, int], seed: int) -> Plan:
    """Every parent, then so many of it with one group shrunk and so many with all groups shrunk."""
    cases, graphs = [], {}
    for k, parent in enumerate(parents):
        print(f"{parent.name}: drawing what to remove", flush=True)
        graph = lm.capture(*parent.make())
        random = np.random.default_rng((seed, k, 2))
        drawn = [*one_group(graph, counts[0], random), *all_groups(graph, counts[1], random)]
        cases.append(parent)
        for number, widths in enumerate(drawn):
            single = ", ".join(f"{g} to {w}" for g, w in widths.items())
            name = f"{parent.name}: {single if len(widths) == 1 else f'pruned {number}'}"
            make = functools.partial(shrunk, parent, graph, widths)
            cases.append(Case(name, make, parent.name, widths))
        graphs[parent.name] = graph
    return Plan(cases, graphs, {})


def shrunk(
    parent: Case, graph: lm.Graph, widths: Mapping[str, int]
) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """The parent with the first channels of some groups kept: which ones are kept, no clock can tell."""
    model, inputs = parent.make()
    structure = lm.Structure.keep(graph, {group: range(width) for group, width in widths.items()})
    return lm.shrink(model, structure), inputs


def one_group(graph: lm.Graph, count: int, random: np.random.Generator) -> list[dict[str, int]]:
    """Removals from one group each, drawn by the FLOPs that hang on it.

    Half leave any width, a quarter take one to four channels, a quarter leave one off a block's edge.
    """
    groups = [g for g in graph.prunable if graph.groups[g].width > 1]
    if not groups:
        return []
    tried = np.repeat(graph.widths[None], len(groups), axis=0)
    for row, g in enumerate(groups):
        tried[row, g] = max(1, tried[row, g] // 2)
    saved = np.maximum(-lm.FlopCost().change(graph, graph.widths, tried), 1.0)
    drawn: list[dict[str, int]] = []
    for _ in range(20 * count):
        if len(drawn) == count:
            break
        group = graph.groups[int(random.choice(groups, p=saved / saved.sum()))]
        draw = random.random()
        width = int(random.integers(1, group.width))
        if draw < 0.25:
            width = group.width - int(random.integers(1, 5))
        elif draw < 0.5:
            block = int(random.choice((8, 16, 32)))
            width = block * round(width / block) + int(random.choice((-1, 1)))
        found = {group.name: min(max(width, 1), group.width - 1)}
        if found not in drawn:
            drawn.append(found)
    return drawn


def all_groups(graph: lm.Graph, count: int, random: np.random.Generator) -> list[dict[str, int]]:
    """Whole networks shrunk: one factor for all groups, each off it by its own, half of the widths odd."""
    drawn = []
    for _ in range(count):
        factor = random.uniform(0.25, 0.95)
        widths = {}
        for g in graph.prunable:
            own = graph.groups[g].width * factor * np.exp(random.normal(0.0, 0.3))
            width = 2 * int(own / 2) + 1 if random.random() < 0.5 else 2 * round(own / 2)
            widths[graph.groups[g].name] = int(min(max(width, 1), graph.groups[g].width))
        drawn.append(widths)
    return drawn


def _focused(args: argparse.Namespace, profile: Profile, parent: Case) -> Profile:
    """The profile with a network's own measurements added; kept beside the journal for ``--resume``."""
    words = parent.name.lower().replace(" ", "-")
    folder = args.journals / f"{stem(args, profile.name, 'focus')}-{words}"
    if args.resume and folder.exists():
        return open_profile(folder)
    print(f"{parent.name}: focusing for {args.focus_budget:.0f} s", flush=True)
    return lm.focus(profile, *parent.make(), budget_s=args.focus_budget, folder=folder)


def _profile_of(plan: Plan, case: Case, profile: Profile) -> Profile:
    return plan.profiles.get(case.parent or case.name, profile)


# Predictions.


def forecasts(plan: Plan, profile: Profile, failed: dict[str, str]) -> dict[str, Forecast]:
    """Every network predicted; in ``failed`` goes why one could not be."""
    made: dict[str, Forecast] = {}
    for k, case in enumerate(plan.cases):
        own = _profile_of(plan, case, profile)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if len(case.shrunk) == 1:
                    made[case.name] = removal(own, plan.graphs[case.parent], case.shrunk, made[case.parent])
                else:
                    made[case.name] = whole(own, plan.graphs.get(case.name), case)
        except Exception as error:  # one network must not end the run; the page names it
            failed[case.name] = _reason(error)
        if (k + 1) % 10 == 0 or k + 1 == len(plan.cases):
            print(f"predicted {k + 1} of {len(plan.cases)}", flush=True)
    return made


def whole(profile: Profile, graph: lm.Graph | None, case: Case) -> Forecast:
    """A network predicted from its own capture."""
    if graph is None:
        graph = lm.capture(*case.make(), allow_unknown=True)
    estimate = profile.predict(graph)
    return Forecast(
        graph.flops,
        roofline_s(profile.model.roofs, graph.specs),
        estimate.total_s,
        estimate.interval_s,
        estimate.unpriced,
        digest_of(graph.fingerprint, *(spec.to_json() for spec in graph.specs)),
    )


def digest_of(*words: str) -> str:
    """Hexadecimal digits that tell these words from others."""
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def removal(profile: Profile, graph: lm.Graph, widths: Mapping[str, int], parent: Forecast) -> Forecast:
    """A parent with one group shrunk, predicted as a regulariser does: by the change of the parent's cost."""
    at = graph.widths.copy()
    for group, width in widths.items():
        at[graph.group(group)] = width
    change = float(lm.LatencyCost(profile).change(graph, graph.widths, at[None])[0])
    predicted = parent.predicted_s + change
    low, high = (limit * predicted / parent.predicted_s for limit in parent.interval_s)
    return Forecast(
        int(lm.FlopCost().total(graph, at)),
        roofline_s(profile.model.roofs, graph.specs_at(at[None])),
        predicted,
        (low, high),
        parent.unpriced,
        digest_of(parent.digest, *(f"{group} {width}" for group, width in widths.items())),
    )


def roofline_s(roofs: Roofs, specs: Iterable[OpSpec]) -> float:
    """MorphNet's latency: by operator, the larger of FLOPs over the peak and bytes over the bandwidth."""
    total = 0.0
    for spec in specs:
        if ops.is_known(spec):
            moved = np.ravel(np.asarray(ops.byte_count(spec), dtype=np.float64))
            flops = np.ravel(np.asarray(ops.flops(spec), dtype=np.float64))
            total += float(np.maximum(flops / roofs.peak_flops_per_s, moved / roofs.bandwidth_at(moved))[0])
    return total


# Measurements.


@dataclass(frozen=True)
class Runnable:
    """What is measured of a case: a module in eager, for ONNX Runtime a file that torch's exporter wrote.

    Files stay in ``folder`` by the network's digest, since exporting takes longer than measuring: without
    them every round of every run would wait for it.
    """

    runtime: str
    folder: Path

    def __call__(self, case: Case, digest: str) -> tuple[torch.nn.Module | Path, tuple[torch.Tensor, ...]]:
        """The case, ready for :func:`latmorph.report.measured.measure_together`."""
        path = self.folder / f"{digest_of(digest, torch.__version__)}.onnx"
        if self.runtime == "onnxruntime" and path.exists():
            return path, ()
        model, inputs = case.make()
        if self.runtime != "onnxruntime":
            return model, inputs
        write_whole(path, exported(model, inputs).read_bytes())
        return path, ()


class Line(msgspec.Struct, frozen=True):
    """One network in one round, as the journal holds it."""

    name: str
    number: int
    round: Round


class Journal:
    """What has been measured so far. The first line says of what; another run's journal is not continued."""

    def __init__(self, path: Path, head: Mapping[str, object], resume: bool) -> None:
        self.taken: dict[tuple[str, int], Round] = {}
        first = msgspec.json.encode(head).decode()
        lines = path.read_text().splitlines() if resume and path.exists() else []
        path.parent.mkdir(parents=True, exist_ok=True)
        if lines[:1] == [first]:
            for text in lines[1:]:
                try:
                    line = msgspec.json.decode(text, type=Line)
                except msgspec.MsgspecError:  # the last line of an interrupted run
                    continue
                self.taken[line.name, line.number] = line.round
        self._file = path.open("w", encoding="utf-8")
        self._file.write(first + "\n")
        for (name, number), round_ in self.taken.items():
            self._write(Line(name, number, round_))

    def add(self, name: str, number: int, round_: Round) -> None:
        """Record one network in one round."""
        self.taken[name, number] = round_
        self._write(Line(name, number, round_))

    def _write(self, line: Line) -> None:
        self._file.write(msgspec.json.encode(line).decode() + "\n")
        self._file.flush()

    def close(self) -> None:
        """Stop writing; the file stays, to be resumed."""
        self._file.close()


def run(args: argparse.Namespace, profile: Profile, name: str) -> Figures:
    """Predict and measure a set."""
    load = os.getloadavg()
    plan = plan_of(args, profile, name)
    failed: dict[str, str] = {}
    predicted = forecasts(plan, profile, failed)
    head = {
        "set": name,
        "seed": args.seed,
        "batch": args.batch,
        "limit": args.limit,
        "profile": profile.name,
        "reference_s": profile.header.reference_s,
    }
    journal = Journal(journal_path(args, profile, name), head, args.resume)
    try:
        for number in range(ROUNDS):
            _measure_round(args, profile, plan, predicted, journal, number, failed)
    finally:
        journal.close()
    rounds = {
        case.name: tuple(journal.taken[case.name, number] for number in range(ROUNDS))
        for case in plan.cases
        if all((case.name, number) in journal.taken for number in range(ROUNDS))
    }
    return figures_of(args, profile, name, plan, predicted, rounds, load[:2], failed)


def _measure_round(
    args: argparse.Namespace,
    profile: Profile,
    plan: Plan,
    predicted: Mapping[str, Forecast],
    journal: Journal,
    number: int,
    failed: dict[str, str],
) -> None:
    """Measure what the journal lacks of a round, chunk by chunk in random order."""
    parts = chunks(plan.cases, {name: f.predicted_s for name, f in predicted.items()})
    order = np.random.default_rng((args.seed, number)).permutation(len(parts))
    runnable = Runnable(profile.fingerprint.runtime, args.journals / "onnx")
    done = 0
    for place_ in order:
        part = [c for c in parts[place_] if (c.name, number) not in journal.taken]
        passes = args.passes or passes_for([predicted[c.name].predicted_s for c in part], args.turn)
        # Times are in units of the reference of the profile that predicts them.
        own = _profile_of(plan, parts[place_][0], profile)
        made = [(c, functools.partial(runnable, c, predicted[c.name].digest)) for c in part]
        for case, round_ in _measure(made, own, passes, failed):
            journal.add(case.name, number, round_)
            error = predicted[case.name].predicted_s / round_.time_s - 1
            print(f"  {case.name}: {time_text(round_.time_s)}, predicted {100 * error:+.1f} %", flush=True)
        done += len(parts[place_])
        print(f"round {number + 1} of {ROUNDS}: {done} of {len(predicted)} measured", flush=True)


def _measure(
    part: Sequence[tuple[Case, Callable[[], Any]]], profile: Profile, passes: int, failed: dict[str, str]
) -> list[tuple[Case, Round]]:
    """Measure networks side by side; where that fails, each on its own, to find the one that cannot run."""
    part = [(c, make) for c, make in part if c.name not in failed]
    if not part:
        return []
    try:
        timings = measure_together({c.name: make() for c, make in part}, profile, passes=passes)
    except Exception as error:
        if len(part) == 1:
            failed[part[0][0].name] = _reason(error)
            return []
        return [found for one in part for found in _measure([one], profile, passes, failed)]
    finally:
        gc.collect()
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    return [
        (
            c,
            Round(
                now,
                timings[c.name].time_s,
                tuple(round(t, 9) for t in timings[c.name].samples_s),
                tuple(round(t, 9) for t in timings[c.name].references_s),
            ),
        )
        for c, _ in part
    ]


def chunks(cases: Sequence[Case], times: Mapping[str, float]) -> list[list[Case]]:
    """The networks that are measured side by side: a family at a time, or some that take about as long.

    Networks without a predicted time are left out.
    """
    known = [c for c in cases if c.name in times]
    families = {c.parent for c in known if c.parent}
    found = [[c for c in known if parent in (c.name, c.parent)] for parent in sorted(families)]
    alone = sorted((c for c in known if not c.parent and c.name not in families), key=lambda c: times[c.name])
    return found + [alone[k : k + CHUNK] for k in range(0, len(alone), CHUNK)]


def passes_for(times: Sequence[float], turn_s: float) -> int:
    """Passes over networks of these times, in seconds, that take ``turn_s`` of each, within bounds."""
    least, most = PASSES
    if not times:
        return least
    turns_s = sum(min(MOST_UNSETTLED * t, max(t, SETTLED_S)) + TIMED * t for t in times)
    return int(min(max(round(turn_s * len(times) / turns_s), least), most))


def _reason(error: Exception) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:160]}"


# Figures.


def figures_of(
    args: argparse.Namespace,
    profile: Profile,
    name: str,
    plan: Plan,
    predicted: Mapping[str, Forecast],
    rounds: Mapping[str, tuple[Round, ...]],
    load: tuple[float, float],
    failed: Mapping[str, str],
) -> Figures:
    """What was predicted and what was measured, put together."""
    of = profile.fingerprint
    return Figures(
        name,
        args.seed,
        f"{of.name}, {of.cores} cores, {' '.join(of.features)}",
        f"{of.runtime}, {of.runtime_version}",
        of.dtype,
        of.threads,
        args.batch,
        profile.name,
        profile.header.budget_s + (args.focus_budget if name == "focus" else 0.0),
        profile.header.created,
        ships(profile),
        profile.header.reference_s,
        profile.mismatch,
        load,
        {
            kind: Kind(f.operators, f.mean_error_percent, f.median_error_percent)
            for kind, f in profile.header.validation.families.items()
        },
        tuple(
            Network(
                c.name,
                *(getattr(predicted[c.name], f) for f in _FORECAST),
                rounds[c.name],
                c.parent,
                dict(c.shrunk),
            )
            for c in plan.cases
            if c.name in rounds and c.name in predicted
        ),
        dict(failed),
    )


def ships(profile: Profile) -> bool:
    """Whether this very profile comes with latmorph."""
    folder = shipped_folder() / profile.name
    return folder.is_dir() and read_header(folder).created == profile.header.created


_FORECAST = ("flops", "roofline_s", "predicted_s", "interval_s", "unpriced")


def predict_anew(args: argparse.Namespace, profile: Profile, name: str) -> Figures | None:
    """The figures of a set with its measurements as they stand and a profile's predictions made again.

    A profile that has no figures yet takes the measurements of the one that is named after the machine.
    None where there are none, and for the set whose profiles are made in the run.
    """
    candidates = (profile.name, profile.fingerprint.slug)
    paths = [args.output / f"{stem(args, n, name)}.json" for n in candidates]
    path = next((p for p in paths if p.exists()), None)
    if path is None or name == "focus":
        return None
    old = read_figures(path)
    args = argparse.Namespace(**{**vars(args), "seed": old.seed})
    calm = old.reference_s if profile.mismatch else profile.header.reference_s
    rounds = {n.name: n.rounds for n in old.networks}
    if calm != old.reference_s:
        rounds = {name: tuple(r.on(calm) for r in taken) for name, taken in rounds.items()}
    plan = plan_of(args, profile, name)
    widths = {n.name: n.shrunk for n in old.networks}
    same = [c for c in plan.cases if widths.get(c.name) == c.shrunk]
    kept = Plan(same, plan.graphs, plan.profiles)
    gone = widths.keys() - {c.name for c in same}
    failed = dict.fromkeys(sorted(gone), "drawn otherwise now: measure anew")
    return figures_of(args, profile, name, kept, forecasts(kept, profile, failed), rounds, old.load, failed)


if __name__ == "__main__":
    main()
