"""The command line. Heavy imports stand in the commands, so that ``--help`` is quick."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latmorph._version import __version__
from latmorph.errors import LatmorphError, LatmorphWarning, ProfileMismatchWarning, UsageError

if TYPE_CHECKING:
    from latmorph.device.backend import Backend
    from latmorph.device.fingerprint import Fingerprint
    from latmorph.latency.profile import Header, Profile
    from latmorph.report.staircase import Staircase

FRESH_VARIANTS = 60
"""Variants of a model that a new profile measures beside sampled networks."""


MODEL = "package.module:callable that makes the model, or a .pt2 or .onnx file"
INPUT = "1x3x224x224, or 1x77:int64; once for each argument of forward; a file may know its own"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0, 2 for bad input (one line on stderr), or 130 when interrupted."""
    args = _parser().parse_args(argv)
    warnings.showwarning = _show_warning
    try:
        run: Callable[[argparse.Namespace], None] = args.run
        run(args)
    except (LatmorphError, OSError) as error:
        print(f"latmorph: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("latmorph: interrupted", file=sys.stderr)
        return 130
    return 0


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    # A mismatch is said beside the figures that it concerns; other libraries' warnings are not the user's.
    if issubclass(category, LatmorphWarning) and not issubclass(category, ProfileMismatchWarning):
        print(f"latmorph: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="latmorph", description="Networks that are fast on the device they will really run on."
    )
    parser.add_argument("--version", action="version", version=f"latmorph {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print JSON instead of tables")
        return sub

    sub = command("profile", _profile, "Measure this device and save its latency model.")
    sub.add_argument("--device", required=True, help="cpu or cuda")
    sub.add_argument("--runtime", default="eager", help="eager (default) or onnxruntime")
    sub.add_argument("--dtype", default="float32", help="float32 (default), float64, bfloat16, float16")
    sub.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    sub.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the runtime: spinning, optimisation or provider of onnxruntime",
    )
    sub.add_argument("--quick", action="store_true", help="half a minute of measuring, larger errors")
    sub.add_argument("--budget", metavar="TIME", help="time to measure for: 90s, 5m, 1h, or seconds")
    sub.add_argument(
        "--seed", type=int, default=0, help="seed of what is drawn; a profile gone on with keeps its own"
    )
    sub.add_argument("--model", metavar="MODEL", help="add measurements of this model to a profile (focus)")
    sub.add_argument("--input", action="append", default=[], metavar="SHAPE", help=f"with --model: {INPUT}")
    base = sub.add_mutually_exclusive_group()
    base.add_argument(
        "--profile",
        metavar="NAME",
        help="the profile to go on with, or of another device to borrow from; by default the nearest",
    )
    base.add_argument("--fresh", action="store_true", help="start from nothing")
    sub.add_argument("-o", "--output", type=Path, metavar="DIR", help="the profile's folder")

    sub = command("profiles", _profiles, "List the profiles, or show and draw one.")
    sub.add_argument("name", nargs="?", metavar="NAME", help="a profile's name or folder")
    sub.add_argument("--operator", metavar="KIND", help="draw the staircase of conv2d, depthwise or linear")
    sub.add_argument("-o", "--output", type=Path, metavar="DIR", help="where to draw the pictures")

    for name, run, text in (
        ("predict", _predict, "Predict a model's latency, operator by operator."),
        ("measure", _measure, "Measure a model on this device, beside its prediction."),
    ):
        sub = command(name, run, text)
        sub.add_argument("model", metavar="MODEL", help=MODEL)
        sub.add_argument("--input", action="append", default=[], metavar="SHAPE", help=INPUT)
        sub.add_argument("--profile", default="cpu", metavar="NAME", help="name, folder, cpu or cuda")
    commands.choices["predict"].add_argument(
        "--all", action="store_true", help="show every operator and every cliff"
    )
    commands.choices["predict"].add_argument(
        "--cliffs",
        type=int,
        metavar="CHANNELS",
        help="look for cliffs within so many channels below the present widths (0: do not)",
    )
    commands.choices["predict"].add_argument(
        "--picture", type=Path, metavar="FILE.png", help="draw where the time goes"
    )
    commands.choices["predict"].add_argument(
        "--allow-unknown", action="store_true", help="go on past operators that have no handler"
    )
    commands.choices["measure"].add_argument(
        "--passes", type=int, default=8, help="passes, of three timed runs each"
    )

    sub = command("inspect", _inspect, "Show a model's channel groups, and what is frozen and why.")
    sub.add_argument("model", metavar="MODEL", help=MODEL)
    sub.add_argument("--input", action="append", default=[], metavar="SHAPE", help=INPUT)
    sub.add_argument("--profile", metavar="NAME", help="say where time sits by this profile")
    sub.add_argument("--all", action="store_true", help="show every group, with all of its members")

    sub = command("demo", _demo, "Profile, train, shrink and measure on embedded data, in minutes.")
    sub.add_argument("--device", default="cpu", help="cpu or cuda")
    sub.add_argument("--threads", type=int, default=1, help="CPU threads for timing (default 1)")
    sub.add_argument("--profile", metavar="NAME", help="use this profile instead of a quick new one")
    sub.add_argument("--data", type=Path, metavar="DIR", help="a folder with the whole Fashion-MNIST")
    sub.add_argument("--target", type=float, default=0.5, help="fraction of the parent's cost")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("-o", "--output", type=Path, default=Path("latmorph-demo"), metavar="DIR")
    return parser


def _print_json(value: Any) -> None:
    from latmorph.report.tables import plain

    print(json.dumps(plain(value), indent=1))


def _print_tables(*tables: Any) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:  # a pipe has no width of its own: do not fold tables to 80 columns
        console = Console(width=140)
    for table in tables:
        console.print(table)


def _note(text: str) -> None:
    print(text, file=sys.stderr)


@contextmanager
def _progress(title: str) -> Iterator[Callable[[float, str], None]]:
    """A bar on a terminal; on anything else, a line for every new text and every tenth."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.fields[title]}"), BarColumn(), TextColumn("{task.description}"))
        with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
            task = bar.add_task("", total=1.0, title=title)
            yield lambda fraction, text: bar.update(task, completed=fraction, description=text)
        return
    said: dict[str, Any] = {"tenth": -1, "text": ""}

    def tell(fraction: float, text: str) -> None:
        tenth = int(10 * fraction)
        counted = text.lstrip("0123456789") == said["text"].lstrip("0123456789")
        if tenth != said["tenth"] or not counted:
            _note(f"{title}: {100 * fraction:3.0f} % {text}")
            said.update(tenth=tenth, text=text)

    yield tell


@contextmanager
def _resumable(journal: Path) -> Iterator[Path]:
    """A run's journal; says how to go on when the run is interrupted."""
    try:
        yield journal
    except KeyboardInterrupt:
        _note(f"what was measured is kept in {journal}: run the same command again to go on")
        raise


def _journal(folder: Path) -> Path:
    """Where the unfinished run is kept that is to end in a profile's folder."""
    return folder.parent / f".{folder.name}.unfinished.jsonl"


def _seconds(option: str, text: str) -> float:
    """A time as people write it: ``90s``, ``5m``, ``1h``, or a number of seconds."""
    unit = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(text[-1:].lower())
    try:
        value = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise UsageError(f"{option} is a time like 90s, 5m, 1h or a number of seconds, above 0; got {text!r}")
    return value


def _options(given: Sequence[str]) -> dict[str, str]:
    """The runtime's options from ``key=value`` texts."""
    pairs = [text.partition("=") for text in given]
    for text, (key, equals, value) in zip(given, pairs, strict=True):
        if not (key and equals and value):
            raise UsageError(f"--option is written key=value, got {text!r}")
    return {key: value for key, _, value in pairs}


def _profile(args: argparse.Namespace) -> None:
    from latmorph.device.registry import open_backend
    from latmorph.latency.profile import check_place, user_folder
    from latmorph.latency.profiling import DEFAULT_BUDGET_S, QUICK_BUDGET_S, run_profile

    backend = open_backend(
        args.device,
        runtime=args.runtime,
        dtype=args.dtype,
        threads=args.threads,
        options=_options(args.option),
    )
    budget = None if args.budget is None else _seconds("--budget", args.budget)
    if args.model:
        _focus(args, backend, budget)
        return
    if args.input:
        raise UsageError("--input goes with --model: it says what to add measurements of")
    here = backend.fingerprint()
    base = _base(args, here)
    folder = (args.output or user_folder() / here.slug).resolve()
    check_place(folder)
    with _resumable(_journal(folder)) as journal, _progress(f"profiling {args.device}") as progress:
        profile = run_profile(
            backend,
            journal,
            folder=folder,
            base=base,
            budget_s=budget or (QUICK_BUDGET_S if args.quick else DEFAULT_BUDGET_S),
            seed=args.seed,
            progress=progress,
        )
    _print_profile(args, profile, folder)


def _focus(args: argparse.Namespace, backend: Backend, budget: float | None) -> None:
    """``profile --model``: measurements of one model on top of a profile."""
    from latmorph.graph.capture import capture
    from latmorph.graph.variants import variants
    from latmorph.latency.profile import check_place, user_folder
    from latmorph.latency.profiling import DEFAULT_BUDGET_S, QUICK_BUDGET_S, run_profile
    from latmorph.models import load_model, short_name
    from latmorph.morph.focus import FOCUS_BUDGET_S, focus

    here = backend.fingerprint()
    base = _base(args, here)
    graph = capture(*load_model(args.model, args.input, "cpu"))
    folder = (args.output or user_folder() / f"{here.slug}-{short_name(args.model)}").resolve()
    check_place(folder)
    with _resumable(_journal(folder)) as journal, _progress(f"profiling {args.model}") as progress:
        if base and not base.fingerprint.differences(here):
            profile = focus(
                base,
                graph,
                budget_s=budget or (QUICK_BUDGET_S if args.quick else FOCUS_BUDGET_S),
                seed=args.seed,
                folder=folder,
                journal_path=journal,
                progress=progress,
            )
        else:
            _note("measuring sampled networks beside the model's")
            profile = run_profile(
                backend,
                journal,
                folder=folder,
                base=base,
                budget_s=budget or (2 * QUICK_BUDGET_S if args.quick else DEFAULT_BUDGET_S + FOCUS_BUDGET_S),
                seed=args.seed,
                focus=variants(graph, FRESH_VARIANTS),
                progress=progress,
            )
    _print_profile(args, profile, folder)


def _base(args: argparse.Namespace, here: Fingerprint) -> Profile | None:
    """The profile that a new one goes on from, or borrows measurements from; says which."""
    from latmorph.latency.profiling import check_akin

    if args.fresh:
        return None
    base = _load_profile(args.profile) if args.profile else _nearest_to(here)
    if base:
        check_akin(base, here)
        differences = "; ".join(base.fingerprint.differences(here))
        how = f"borrowing measurements ({differences}) from" if differences else "going on from"
        _note(f"{how} {base.name}, measured {base.header.created[:10]}; --fresh starts from nothing")
    return base


def _nearest_to(here: Fingerprint) -> Profile | None:
    """The newest of the nearest profiles of sampled networks alone; None where none is akin."""
    from latmorph.latency.profile import open_profile

    akin = [
        (header, folder)
        for header, folder in _headers()
        if not header.focused_visits and header.fingerprint.is_akin(here)
    ]
    nearest = min((header.fingerprint.distance(here) for header, _ in akin), default=None)
    found = [
        (header.created, folder) for header, folder in akin if header.fingerprint.distance(here) == nearest
    ]
    return open_profile(max(found)[1]) if found else None


def _headers() -> Iterator[tuple[Header, Path]]:
    """The header and the folder of every profile; those that cannot be read are named on stderr."""
    from latmorph.errors import ProfileError
    from latmorph.latency.profile import list_profiles, read_header

    for folder in list_profiles().values():
        try:
            header = read_header(folder)
        except ProfileError as error:
            _note(f"latmorph: {error}")
            continue
        yield header, folder


def _print_profile(args: argparse.Namespace, profile: Profile, folder: Path) -> None:
    from latmorph.report.tables import profile_tables

    if args.json:
        _print_json({"folder": str(folder), "profile": profile.header})
        return
    _print_tables(*profile_tables(profile))
    print(f"saved in {folder}; predict with: latmorph predict MODEL --input SHAPE --profile {folder}")


def _profiles(args: argparse.Namespace) -> None:
    from latmorph.latency.profile import mismatch
    from latmorph.report.tables import profiles_table

    if args.name:
        _show_profile(args)
        return
    if args.operator or args.output:
        raise UsageError("--operator and --output go with a profile's NAME: it says whose pictures to draw")
    rows = []
    for header, _ in _headers():
        rows.append((header, not mismatch(header.fingerprint)))
    if args.json:
        _print_json([{"profile": header, "of_this_machine": here} for header, here in rows])
    else:
        _print_tables(profiles_table(rows))


def _show_profile(args: argparse.Namespace) -> None:
    from latmorph.report.staircase import staircases
    from latmorph.report.tables import profile_tables, staircase_table

    profile = _load_profile(args.name)
    steps = staircases(profile, args.operator)
    pictures = [] if args.output is None else _draw_profile(profile, steps, args.output)
    if args.json:
        _print_json({"profile": profile.header, "roofs": profile.model.roofs, "staircases": steps})
        return
    _print_tables(*profile_tables(profile))
    if args.operator:
        _print_tables(*(staircase_table(s) for s in steps))
    for path in pictures:
        print(f"picture {path}")
    for note in profile.notes:
        _note(f"note: {note}")


def _draw_profile(profile: Profile, steps: Sequence[Staircase], folder: Path) -> list[Path]:
    from latmorph.device.timing import made_here, observations
    from latmorph.report.plots import draw_roofline, draw_staircase

    paths = [folder / "roofline.png"]
    draw_roofline(observations(made_here(profile.visits))[0], profile.model.roofs, paths[0], profile.name)
    for step in steps:
        paths.append(folder / f"staircase-{step.sweep.kind}-{step.sweep.axis}.png")
        draw_staircase(step, paths[-1], profile.name)
    if not steps:
        _note(f"note: {profile.name} was made before staircases were kept: profile the device again for them")
    return paths


def _predict(args: argparse.Namespace) -> None:
    from latmorph.graph.capture import capture
    from latmorph.models import load_model
    from latmorph.morph.cliffs import REACH, find_cliffs
    from latmorph.morph.cost import LatencyCost
    from latmorph.report.plots import draw_estimate
    from latmorph.report.tables import cliffs_table, estimate_table, kinds_table

    if args.cliffs is not None and args.cliffs < 0:
        raise UsageError(f"--cliffs is a number of channels, at least 0, got {args.cliffs}")
    profile = _load_profile(args.profile)
    graph = capture(*load_model(args.model, args.input, "cpu"), allow_unknown=args.allow_unknown)
    estimate = profile.predict(graph)
    if args.picture:
        draw_estimate(estimate, args.picture)
    if not args.json:  # what is known is told before what takes longer
        _print_tables(estimate_table(estimate, None if args.all else 20), kinds_table(estimate))
    reach = args.cliffs
    if reach is None:  # a runtime that is to be asked at every width takes its time
        reach = REACH if profile.lowering is None else REACH // 2
    # Where operators have no price, what a channel changes has none either; the notes name them.
    cliffs = () if estimate.unpriced else find_cliffs(graph, LatencyCost(profile), reach=reach)
    if args.json:
        values = {"profile": profile.name, "flops": graph.flops, "estimate": estimate, "cliffs": cliffs}
        _print_json(values)
        return
    if cliffs:
        _print_tables(cliffs_table(cliffs, None if args.all else 10))
    if args.picture:
        print(f"picture {args.picture}")
    for note in estimate.notes:
        _note(f"note: {note}")


def _measure(args: argparse.Namespace) -> None:
    import torch

    from latmorph.graph.capture import capture
    from latmorph.models import ExportedModule, load_model
    from latmorph.report.measured import measure
    from latmorph.report.tables import measure_table

    profile = _load_profile(args.profile)
    _check_device(profile)
    model, inputs = load_model(args.model, args.input, profile.fingerprint.device)
    estimate = profile.predict(capture(model, inputs, allow_unknown=True))
    called = ExportedModule(model) if isinstance(model, torch.export.ExportedProgram) else model
    timing = measure(called, inputs, profile, passes=args.passes)
    if args.json:
        _print_json({"profile": profile.name, "estimate": estimate, "measured": timing})
        return
    _print_tables(measure_table(estimate, timing))
    for note in estimate.notes:
        _note(f"note: {note}")


def _inspect(args: argparse.Namespace) -> None:
    from latmorph.graph.capture import capture
    from latmorph.models import load_model
    from latmorph.report.inspection import inspect
    from latmorph.report.tables import frozen_table, groups_table

    profile = _load_profile(args.profile) if args.profile else None
    graph = capture(*load_model(args.model, args.input, "cpu"), allow_unknown=profile is None)
    found = inspect(graph, profile)
    if args.json:
        _print_json(found)
        return
    rows = None if args.all else 20
    tables = (groups_table(found, rows), frozen_table(found, rows))
    _print_tables(*(table for table in tables if table is not None))
    for name in graph.unknown:
        _note(f"note: operator {name} has no handler: its channels are frozen, and it is in no figure")


def _demo(args: argparse.Namespace) -> None:
    from latmorph.data.fashion import read_folder, read_subset
    from latmorph.demo import FOCUS_VARIANTS, demo_graph, run_demo, save_result
    from latmorph.device.registry import open_backend
    from latmorph.graph.variants import variants
    from latmorph.latency.profiling import QUICK_BUDGET_S, run_profile
    from latmorph.report.plots import draw_widths
    from latmorph.report.tables import comparison_table, time_text

    out: Path = args.output
    if not 0 < args.target < 1:
        raise UsageError(f"--target is a fraction between 0 and 1, got {args.target:g}")
    images = read_subset() if args.data is None else read_folder(args.data)
    if args.profile:
        profile = _load_profile(args.profile)
        _check_device(profile)
    else:
        backend = open_backend(args.device, threads=args.threads)
        with _resumable(out / ".profile.unfinished.jsonl") as journal, _progress("quick profile") as progress:
            focus = variants(demo_graph(), FOCUS_VARIANTS)
            profile = run_profile(
                backend,
                journal,
                folder=out / "profile",
                budget_s=QUICK_BUDGET_S,
                focus=focus,
                progress=progress,
            )
    with _progress("demo") as progress:
        result = run_demo(profile, images, target=args.target, seed=args.seed, say=progress)
    save_result(result, out / "result.json")
    draw_widths(
        {row.name: row.widths for row in result.networks},
        out / "widths.png",
        {r.name: f"{time_text(r.measured_s)}, {r.accuracy_percent:.1f} %" for r in result.networks},
    )
    if args.json:
        _print_json(result)
    else:
        _print_tables(comparison_table(result))
        for note in result.notes:
            _note(f"note: {note}")
        print(f"picture {out / 'widths.png'}, raw figures {out / 'result.json'}")


def _load_profile(name: str) -> Profile:
    from latmorph.latency.profile import load_profile

    return load_profile(name)


def _check_device(profile: Profile) -> None:
    """Raises DeviceError when this machine has no device of the profile's kind."""
    from latmorph.device.registry import backend_of

    backend_of(profile.fingerprint)


if __name__ == "__main__":
    sys.exit(main())
