"""Predicted against measured, end to end, on networks that no profile was fitted on.

Usage: python -m tools.accuracy [--runtime eager] [--threads 1 2] [--set zoo|hard|removal|focus|all]
       [--seed 0] [--profile NAME] [--limit K] [--resume] [--predict] [-o docs/accuracy]

For each number of threads: takes the profile named, or this machine's newest, predicts every network of the
sets, then measures all of them in eight rounds, each network and round in a process of its own. What is
measured goes line by line into one journal a set in out/accuracy, so that an interrupted run goes on with
``--resume``; in the end raw samples and figures go into one JSON a profile and set, and
``docs/accuracy.md`` is written anew from all of those JSONs. With ``--predict`` nothing is measured: the
times in the JSONs stay, and the profile predicts anew.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import torch

import latmorph as lm
from latmorph import ops
from latmorph.device.fresh import Caller, caller_of
from latmorph.device.registry import backend_of
from latmorph.device.roofs import Roofs
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
from tools.cases import Case, Cases, cases_of, import_zoos, time_case

ROUNDS = 8
"""Each in a process of its own: where a network's memory lies makes it a few percent faster or slower."""

FOCUS_BUDGET_S = 120.0


@dataclass(frozen=True)
class Plan(Cases):
    """The networks of a set, and who predicts them."""

    profiles: Mapping[str, Profile] = field(default_factory=dict)
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
    parser.add_argument("--passes", type=int, default=1, help="turns of a network in a round")
    parser.add_argument("--focus-budget", type=float, default=FOCUS_BUDGET_S, help="seconds")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    parser.add_argument("--predict", action="store_true", help="measure nothing, predict anew")
    parser.add_argument("--journals", type=Path, default=Path("out/accuracy"))
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/accuracy"))
    args = parser.parse_args(arguments)
    for threads in args.threads:
        profile = find_profile(args.profile, args.device, args.runtime, threads)
        names = list(TITLES) if "all" in args.set else args.set
        found = (predict_anew if args.predict else run)(args, profile, names)
        for name in names:
            figures = found.get(name)
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


def plan_of(args: argparse.Namespace, profile: Profile, name: str) -> Plan:
    """The networks of a set, and the profiles focused on them."""
    cases = cases_of(name, seed=args.seed, batch=args.batch, limit=args.limit)
    parents = [c for c in cases.networks if not c.parent] if name == "focus" else []
    return Plan(cases.networks, cases.graphs, {p.name: _focused(args, profile, p) for p in parents})


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
    for k, case in enumerate(plan.networks):
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
        if (k + 1) % 10 == 0 or k + 1 == len(plan.networks):
            print(f"predicted {k + 1} of {len(plan.networks)}", flush=True)
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


def run(args: argparse.Namespace, profile: Profile, names: Sequence[str]) -> dict[str, Figures]:
    """Predict sets and measure them together: a round is over all, so that rounds lie minutes apart."""
    load = os.getloadavg()
    with contextlib.ExitStack() as stack:
        sets = {}
        for name in names:
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
            stack.callback(journal.close)
            sets[name] = Measuring(args, profile, plan, predicted, failed, journal)
        files = {name: measuring.files() for name, measuring in sets.items()}
        backend = stack.enter_context(backend_of(profile.fingerprint))
        call = stack.enter_context(caller_of(backend, import_zoos))
        for number in range(ROUNDS):
            for name, measuring in sets.items():
                measuring.measure(number, call, files[name])
    return {
        name: figures_of(args, profile, name, m.plan, m.predicted, m.rounds, load[:2], m.failed)
        for name, m in sets.items()
    }


@dataclass(frozen=True)
class Measuring:
    """What a run measures of a set: the networks of a plan that were predicted, as the journal holds them.

    ``failed`` says why one is missing.
    """

    args: argparse.Namespace
    profile: Profile
    plan: Plan
    predicted: Mapping[str, Forecast]
    failed: dict[str, str]
    journal: Journal

    @property
    def rounds(self) -> dict[str, tuple[Round, ...]]:
        """The rounds of every network that was in all of them."""
        taken = self.journal.taken
        return {
            case.name: tuple(taken[case.name, number] for number in range(ROUNDS))
            for case in self.plan.networks
            if all((case.name, number) in taken for number in range(ROUNDS))
        }

    def files(self) -> dict[str, str]:
        """For ONNX Runtime, by name, the file that torch's exporter wrote of each network.

        Files stay beside the journals by the network's digest: exporting takes longer than measuring.
        """
        files: dict[str, str] = {}
        if self.profile.fingerprint.runtime != "onnxruntime":
            return files
        for case in self.plan.networks:
            if case.name in self.predicted:
                digest = digest_of(self.predicted[case.name].digest, torch.__version__)
                path = self.args.journals / "onnx" / f"{digest}.onnx"
                try:
                    if not path.exists():
                        model, inputs = case.make()
                        # The exported file lives as long as the model does.
                        write_whole(path, exported(model, inputs).read_bytes())
                    files[case.name] = str(path)
                except Exception as error:  # one network must not end the run; the page names it
                    self.failed[case.name] = _reason(error)
        return files

    def measure(self, number: int, call: Caller, files: Mapping[str, str]) -> None:
        """Measure what the journal lacks of a round, one network after another, in random order."""
        predicted = [c for c in self.plan.networks if c.name in self.predicted]
        left = [c for c in predicted if (c.name, number) not in self.journal.taken]
        for k in np.random.default_rng((self.args.seed, number)).permutation(len(left)):
            case = left[k]
            if case.name in self.failed:
                continue
            # Times are in units of the reference of the profile that predicts them.
            own = _profile_of(self.plan, case, self.profile)
            try:
                time_s, samples_s, references_s = call(
                    time_case,
                    case=msgspec.to_builtins(case),
                    onnx=files.get(case.name),
                    passes=self.args.passes,
                    reference_s=None if own.mismatch else own.header.reference_s,
                )
            except Exception as error:
                self.failed[case.name] = _reason(error)
                continue
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
            rounded = (tuple(round(t, 9) for t in times) for times in (samples_s, references_s))
            self.journal.add(case.name, number, Round(now, time_s, *rounded))
            error = self.predicted[case.name].predicted_s / time_s - 1
            print(f"  {case.name}: {time_text(time_s)}, predicted {100 * error:+.1f} %", flush=True)
        print(f"round {number + 1} of {ROUNDS}: {len(left)} networks measured", flush=True)


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
            for c in plan.networks
            if c.name in rounds and c.name in predicted
        ),
        dict(failed),
    )


def ships(profile: Profile) -> bool:
    """Whether this very profile comes with latmorph."""
    folder = shipped_folder() / profile.name
    return folder.is_dir() and read_header(folder).created == profile.header.created


_FORECAST = ("flops", "roofline_s", "predicted_s", "interval_s", "unpriced")


def predict_anew(args: argparse.Namespace, profile: Profile, names: Sequence[str]) -> dict[str, Figures]:
    """The figures of sets with their measurements as they stand and a profile's predictions made again.

    A profile that has no figures yet takes the measurements of the one that is named after the machine.
    Sets without any are left out, and the one whose profiles are made in the run.
    """
    found = {name: _predicted_anew(args, profile, name) for name in names if name != "focus"}
    return {name: figures for name, figures in found.items() if figures is not None}


def _predicted_anew(args: argparse.Namespace, profile: Profile, name: str) -> Figures | None:
    candidates = (profile.name, profile.fingerprint.slug)
    paths = [args.output / f"{stem(args, n, name)}.json" for n in candidates]
    path = next((p for p in paths if p.exists()), None)
    if path is None:
        return None
    old = read_figures(path)
    args = argparse.Namespace(**{**vars(args), "seed": old.seed})
    calm = old.reference_s if profile.mismatch else profile.header.reference_s
    rounds = {n.name: n.rounds for n in old.networks}
    if calm != old.reference_s:
        rounds = {name: tuple(r.on(calm) for r in taken) for name, taken in rounds.items()}
    plan = plan_of(args, profile, name)
    widths = {n.name: n.shrunk for n in old.networks}
    same = [c for c in plan.networks if widths.get(c.name) == c.shrunk]
    kept = Plan(same, plan.graphs, plan.profiles)
    gone = widths.keys() - {c.name for c in same}
    failed = {**old.failed, **dict.fromkeys(sorted(gone), "drawn otherwise now: measure anew")}
    return figures_of(args, profile, name, kept, forecasts(kept, profile, failed), rounds, old.load, failed)


if __name__ == "__main__":
    main()
