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
    import torch

    from latmorph.latency.profile import Profile


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
    sub.add_argument("--runtime", default="eager", help="eager")
    sub.add_argument("--dtype", default="float32", help="float32 (default), float64, bfloat16, float16")
    sub.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    sub.add_argument("--quick", action="store_true", help="half a minute of measuring, larger errors")
    sub.add_argument("--budget", type=float, metavar="SECONDS", help="time to measure for")
    sub.add_argument("--seed", type=int, default=0, help="seed of the sampled networks")
    sub.add_argument("-o", "--output", type=Path, metavar="DIR", help="the profile's folder")

    sub = command("profiles", _profiles, "List the profiles, or show one.")
    sub.add_argument("name", nargs="?", metavar="NAME", help="a profile's name or folder")

    for name, run, text in (
        ("predict", _predict, "Predict a model's latency, operator by operator."),
        ("measure", _measure, "Measure a model on this device, beside its prediction."),
    ):
        sub = command(name, run, text)
        sub.add_argument("model", metavar="MODEL", help="package.module:callable that makes the model")
        sub.add_argument(
            "--input",
            action="append",
            required=True,
            metavar="SHAPE",
            help="1x3x224x224, or 1x77:int64; once for each argument of forward",
        )
        sub.add_argument("--profile", default="cpu", metavar="NAME", help="name, folder, cpu or cuda")
    commands.choices["predict"].add_argument("--all", action="store_true", help="show every operator")
    commands.choices["predict"].add_argument(
        "--allow-unknown", action="store_true", help="go on past operators that have no handler"
    )
    commands.choices["measure"].add_argument("--passes", type=int, default=15, help="timed passes")

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
def _resumable(journal: Path) -> Iterator[None]:
    """Say how to go on when a profiling run is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        _note(f"what was measured is kept in {journal}: run the same command again to go on")
        raise


def _profile(args: argparse.Namespace) -> None:
    from latmorph.device.registry import open_backend
    from latmorph.latency.profile import check_place, user_folder
    from latmorph.latency.profiling import DEFAULT_BUDGET_S, QUICK_BUDGET_S, run_profile
    from latmorph.report.tables import profile_tables

    backend = open_backend(args.device, runtime=args.runtime, dtype=args.dtype, threads=args.threads)
    folder = (args.output or user_folder() / backend.fingerprint().slug).resolve()
    check_place(folder)
    budget = args.budget
    if budget is None:
        budget = QUICK_BUDGET_S if args.quick else DEFAULT_BUDGET_S
    if not 0 < budget < float("inf"):
        raise UsageError(f"--budget is a positive number of seconds, got {budget:g}")
    journal = folder.parent / f".{folder.name}.unfinished.jsonl"
    with _resumable(journal), _progress(f"profiling {args.device}") as progress:
        profile = run_profile(
            backend,
            journal,
            folder=folder,
            budget_s=budget,
            seed=args.seed,
            progress=progress,
        )
    if args.json:
        _print_json({"folder": str(folder), "profile": profile.header})
    else:
        _print_tables(*profile_tables(profile))
        print(f"saved in {folder}; predict with: latmorph predict MODEL --input SHAPE --profile {folder}")


def _profiles(args: argparse.Namespace) -> None:
    from latmorph.errors import ProfileError
    from latmorph.latency.profile import list_profiles, load_profile, mismatch, read_header
    from latmorph.report.tables import profile_tables, profiles_table

    if args.name:
        profile = load_profile(args.name)
        if args.json:
            _print_json({"profile": profile.header, "roofs": profile.model.roofs})
        else:
            _print_tables(*profile_tables(profile))
            for note in profile.notes:
                _note(f"note: {note}")
        return
    rows = []
    for folder in list_profiles().values():
        try:
            header = read_header(folder)
        except ProfileError as error:
            _note(f"latmorph: {error}")
            continue
        rows.append((header, not mismatch(header.fingerprint)))
    if args.json:
        _print_json([{"profile": header, "of_this_machine": here} for header, here in rows])
    else:
        _print_tables(profiles_table(rows))


def _predict(args: argparse.Namespace) -> None:
    from latmorph.graph.capture import capture
    from latmorph.report.tables import estimate_table

    profile = _load_profile(args.profile)
    model, inputs = _load_model(args.model, args.input, "cpu")
    graph = capture(model, inputs, allow_unknown=args.allow_unknown)
    estimate = profile.predict(graph)
    if args.json:
        _print_json({"profile": profile.name, "flops": graph.flops, "estimate": estimate})
        return
    _print_tables(estimate_table(estimate, None if args.all else 20))
    for note in estimate.notes:
        _note(f"note: {note}")


def _measure(args: argparse.Namespace) -> None:
    from latmorph.graph.capture import capture
    from latmorph.report.measured import measure
    from latmorph.report.tables import measure_table

    profile = _load_profile(args.profile)
    _check_device(profile)
    model, inputs = _load_model(args.model, args.input, profile.fingerprint.device)
    estimate = profile.predict(capture(model, inputs, allow_unknown=True))
    timing = measure(model, inputs, profile, passes=args.passes)
    if args.json:
        _print_json({"profile": profile.name, "estimate": estimate, "measured": timing})
        return
    _print_tables(measure_table(estimate, timing))
    for note in estimate.notes:
        _note(f"note: {note}")


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
        journal = out / ".profile.unfinished.jsonl"
        with _resumable(journal), _progress("quick profile") as progress:
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
    from latmorph.device.registry import open_backend

    open_backend(profile.fingerprint.device, runtime=profile.fingerprint.runtime)


def _load_model(path: str, shapes: Sequence[str], device: str) -> tuple[torch.nn.Module, tuple[Any, ...]]:
    """The model that ``package.module:callable`` makes, and inputs of the given shapes, on the device."""
    import importlib

    module_name, colon, attribute = path.partition(":")
    if not colon or not module_name or not attribute:
        raise UsageError(f"model {path!r}: write package.module:callable, as in torchvision.models:resnet18")
    inputs = tuple(_example(text) for text in shapes)
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UsageError(
            f"model {path!r}: module {module_name!r} does not import ({_first(error)})"
        ) from None
    made: Any = module
    for part in attribute.split("."):
        if not hasattr(made, part):
            raise UsageError(f"model {path!r}: {module_name!r} has no {part!r}")
        made = getattr(made, part)
    import torch

    if not isinstance(made, torch.nn.Module):
        try:
            made = made()
        except Exception as error:
            raise UsageError(
                f"model {path!r}: calling it without arguments failed ({_first(error)})"
            ) from None
    if not isinstance(made, torch.nn.Module):
        raise UsageError(f"model {path!r}: gave {type(made).__name__}, not a torch.nn.Module")
    return made.to(device), tuple(x.to(device) for x in inputs)


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _example(text: str) -> torch.Tensor:
    import torch

    shape_text, _, dtype = text.partition(":")
    try:
        shape = tuple(int(s) for s in shape_text.split("x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise UsageError(f"input shape {text!r}: write sizes like 1x3x224x224, all at least 1")
    kind = getattr(torch, dtype or "float32", None)
    if not isinstance(kind, torch.dtype):
        raise UsageError(f"input shape {text!r}: torch has no dtype {dtype!r}")
    try:
        return torch.rand(shape).to(kind) if kind.is_floating_point else torch.zeros(shape, dtype=kind)
    except (RuntimeError, TypeError, ValueError, MemoryError, OverflowError) as error:
        raise UsageError(f"input shape {text!r}: torch cannot make it ({_first(error)})") from None


if __name__ == "__main__":
    sys.exit(main())
