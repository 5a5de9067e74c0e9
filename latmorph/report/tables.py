"""Tables for people. What a machine reads is ``--json``, from :func:`plain`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from latmorph.device.timing import Timing, made_here, runs
from latmorph.latency.estimate import Estimate, OpEstimate
from latmorph.latency.profile import Header, Profile
from latmorph.morph.cliffs import Cliff
from latmorph.report.staircase import Staircase

if TYPE_CHECKING:
    from latmorph.report.comparison import Comparison
    from latmorph.report.inspection import GroupRow, Inspection


ROUNDS_UP = 0.9995
"""From here on, three digits of a value show as the next unit's 1."""


def time_text(seconds: float) -> str:
    """Seconds with a fitting unit and three significant digits."""
    if not math.isfinite(seconds):
        return "unknown"
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        if abs(seconds) * factor >= ROUNDS_UP or unit == "us":
            return f"{_three(seconds * factor)} {unit}"
    raise AssertionError


def count_text(value: float, unit: str = "") -> str:
    """A count with a decimal prefix and three significant digits."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= ROUNDS_UP * factor:
            return f"{_three(value / factor)} {prefix}{unit}".strip()
    return f"{value:g} {unit}".strip()


def _three(value: float) -> str:
    value = float(f"{value:.2e}")
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{digits}f}"


def plain(value: Any) -> Any:
    """Dataclasses and structs as dicts and lists, for JSON; times that are not known become null."""
    import msgspec

    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, msgspec.Struct):
        return plain(msgspec.structs.asdict(value))
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def estimate_table(estimate: Estimate, rows: int | None) -> Table:
    """Operators by their share of the total, the largest ``rows`` of them (all if None)."""
    table = Table(title=f"predicted {time_text(estimate.total_s)}, {interval_text(estimate)}")
    for name in ("module", "operator"):
        table.add_column(name, overflow="fold")
    for name in ("FLOPs", "compute", "memory", "overhead", "total", "90 % interval", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("bound", no_wrap=True)
    ordered = sorted(estimate.ops, key=lambda op: -op.total_s)
    shown = ordered if rows is None else ordered[:rows]
    for op in shown:
        table.add_row(
            op.module or op.name,
            op.kind,
            count_text(op.flops) if op.flops else "",
            time_text(op.compute_s) if op.flops else "",
            time_text(op.memory_s),
            time_text(op.overhead_s),
            time_text(op.total_s),
            range_text(op.interval_s),
            share_text(op.total_s, estimate.total_s),
            op.bound,
        )
    rest = sum(op.total_s for op in ordered[len(shown) :])
    if rest:
        left = len(ordered) - len(shown)
        share = share_text(rest, estimate.total_s)
        table.add_row(f"{left} others", *[""] * 5, time_text(rest), "", share, "")
    return table


def kinds_table(estimate: Estimate) -> Table:
    """Totals by kind of operator, the largest first, and the time under each bound."""
    bounds = [
        f"{share_text(sum(op.total_s for op in estimate.ops if op.bound == bound), estimate.total_s)} {bound}"
        for bound in ("compute", "memory", "overhead")
    ]
    table = Table(title="totals by kind", caption=f"time by bound: {', '.join(bounds)}", show_footer=True)
    flops = sum(op.flops for op in estimate.ops)
    table.add_column("operator", "total")
    for name, footer in (
        ("number", str(len(estimate.ops))),
        ("FLOPs", count_text(flops) if flops else ""),
        ("total", time_text(estimate.total_s)),
        ("share", ""),
    ):
        table.add_column(name, footer, justify="right", no_wrap=True)
    kinds: dict[str, list[OpEstimate]] = {}
    for op in estimate.ops:
        kinds.setdefault(op.kind, []).append(op)
    for kind, own in sorted(kinds.items(), key=lambda item: -sum(op.total_s for op in item[1])):
        flops = sum(op.flops for op in own)
        time_s = sum(op.total_s for op in own)
        table.add_row(
            kind,
            str(len(own)),
            count_text(flops) if flops else "",
            time_text(time_s),
            share_text(time_s, estimate.total_s),
        )
    if estimate.overhead_s:
        share = share_text(estimate.overhead_s, estimate.total_s)
        table.add_row("the pass beside them", "", "", time_text(estimate.overhead_s), share)
    return table


def cliffs_table(cliffs: Sequence[Cliff], rows: int | None) -> Table:
    """The largest ``rows`` cliffs (all if None), with what it takes to get there from the present width."""
    table = Table(
        title="cliffs: steps of the network's predicted time",
        caption="shares of the network's present time; past a trap, fewer channels are slower",
    )
    table.add_column("channels of", overflow="fold")
    for name in ("now", "cliff", "from now", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for cliff in cliffs[:rows]:
        table.add_row(
            cliff.group,
            str(cliff.width),
            f"{cliff.above} -> {cliff.below} channels {'saves' if cliff.saves else 'costs'} "
            f"{100 * abs(cliff.share):.1f} %",
            f"{100 * cliff.from_present:+.1f} %",
            "" if cliff.saves else "trap",
        )
    if rows is not None and len(cliffs) > rows:
        table.add_row(f"{len(cliffs) - rows} smaller ones", *[""] * 4)
    return table


def groups_table(found: Inspection, rows: int | None) -> Table:
    """The ``rows`` groups (all if None) that can shrink and that matter most, by time or else by FLOPs."""
    timed = any(row.time_s is not None for row in found.groups)
    free = [row for row in found.groups if row.frozen is None]
    ordered = sorted(free, key=lambda row: -(row.time_s or 0.0) if timed else -row.flops)
    table = Table(
        title=f"{len(free)} channel groups can shrink: in {100 * found.prunable_flops:.1f} % of the FLOPs, "
        f"{100 * found.prunable_parameters:.1f} % of the parameters",
        caption="FLOPs and time are those of all operators that the group's width matters to",
    )
    table.add_column("group", overflow="fold")
    priced = any(row.channel_s is not None for row in found.groups)
    more = (*(("time", "share") if timed else ()), *(("a channel saves",) if priced else ()))
    for name in ("width", "FLOPs", "parameters", *more):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("who is in it", overflow="fold")
    for row in ordered[:rows]:
        times = (time_text(row.time_s or 0.0), share_text(row.time_s or 0.0, found.total_s or 0.0))
        table.add_row(
            row.name,
            str(row.width),
            count_text(row.flops) if row.flops else "",
            count_text(row.parameters),
            *(times if timed else ()),
            *((time_text(row.channel_s or 0.0),) if priced else ()),
            _members_text(row, None if rows is None else 3),
        )
    if rows is not None and len(ordered) > rows:
        table.add_row(f"{len(ordered) - rows} smaller ones", *[""] * (len(table.columns) - 1))
    return table


def _members_text(row: GroupRow, most: int | None) -> str:
    """Parameters of a group with their roles, the first ``most`` of them."""
    texts: dict[str, list[str]] = {}
    for member in row.members:
        times = f" x{member.indices_per_channel}" if member.indices_per_channel > 1 else ""
        module, _, last = member.parameter.rpartition(".")
        texts.setdefault(module, []).append(f"{last} {member.role}{times}")
    named = [
        f"{module} ({', '.join(parts)})" if module else ", ".join(parts) for module, parts in texts.items()
    ]
    left = len(named) - len(named[:most])
    return "; ".join([*named[:most], *([f"{left} more"] if left else [])])


def frozen_table(found: Inspection, rows: int | None) -> Table | None:
    """Why channels can't be removed, the ``rows`` largest reasons (all if None); None where all can."""
    reasons: dict[str, list[GroupRow]] = {}
    for row in found.groups:
        if row.frozen is not None:
            reasons.setdefault(row.frozen, []).append(row)
    if not reasons:
        return None
    ordered = sorted(reasons.items(), key=lambda item: -sum(row.parameters for row in item[1]))
    table = Table(title="frozen")
    table.add_column("reason", overflow="fold")
    for name in ("groups", "channels", "parameters"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("groups are", overflow="fold")
    for reason, own in ordered[:rows]:
        names = [row.name for row in own]
        shown = names if rows is None else names[:2]
        table.add_row(
            reason,
            str(len(own)),
            str(sum(row.width for row in own)),
            count_text(sum(row.parameters for row in own)),
            ", ".join(shown) + (", ..." if len(shown) < len(names) else ""),
        )
    if rows is not None and len(ordered) > rows:
        table.add_row(f"{len(ordered) - rows} others", *[""] * 4)
    return table


def staircase_table(staircase: Staircase) -> Table:
    """Measured and predicted time of one operator by its width."""
    sweep = staircase.sweep
    table = Table(
        title=f"{sweep.kind} by {'input' if sweep.axis == 'in' else 'output'} width, blocks of {sweep.block}",
        caption="measured alone, its data in the caches; predicted amid a network",
    )
    for name in ("channels", "measured", "predicted", "predicted / measured"):
        table.add_column(name, justify="right", no_wrap=True)
    for width, measured, predicted, ratio in zip(
        sweep.widths, sweep.times_s, staircase.predicted_s, staircase.ratio, strict=True
    ):
        table.add_row(str(width), time_text(measured), time_text(predicted), f"{ratio:.2f}")
    return table


def share_text(part: float, whole: float) -> str:
    """A part of a whole, in percent."""
    return f"{100 * part / whole:.1f} %" if whole else "0.0 %"


def range_text(interval_s: tuple[float, float]) -> str:
    """Two times with their units."""
    return f"{time_text(interval_s[0])} to {time_text(interval_s[1])}"


def interval_text(estimate: Estimate) -> str:
    """The 90 % interval in words."""
    return f"90 % interval {range_text(estimate.interval_s)}"


def measure_table(estimate: Estimate, timing: Timing) -> Table:
    """Predicted beside measured."""
    table = Table()
    for name in ("predicted", "90 % interval", "measured", "error", "raw median", "spread", "passes"):
        table.add_column(name, justify="right")
    table.add_row(
        time_text(estimate.total_s),
        range_text(estimate.interval_s),
        time_text(timing.time_s),
        f"{100 * (estimate.total_s / timing.time_s - 1):+.1f} %",
        time_text(timing.median_s),
        f"{100 * timing.spread:.1f} %",
        str(len(timing.samples_s)),
    )
    return table


def profiles_table(headers: Sequence[tuple[Header, bool]]) -> Table:
    """All profiles; a star marks those of this machine."""
    table = Table(caption="* of this machine")
    for name in ("profile", "processor", "runtime", "dtype", "threads", "created"):
        table.add_column(name, overflow="fold")
    table.add_column("held-out error", justify="right")
    for header, here in headers:
        of = header.fingerprint
        table.add_row(
            f"{header.name} {'*' if here else ''}",
            of.name,
            f"{of.runtime}, {of.runtime_version}",
            of.dtype,
            str(of.threads),
            header.created[:10],
            f"{header.validation.median_error_percent:.1f} %",
        )
    return table


def profile_tables(profile: Profile) -> list[Table]:
    """One profile: what it is of, its roofs, and its held-out errors by family."""
    header, model = profile.header, profile.model
    of, checked = header.fingerprint, header.validation
    own = made_here(profile.visits)
    lent, earlier = len(profile.visits) - len(own), sum(map(len, runs(own)[1:]))
    about = Table(title=header.name, show_header=False)
    about.add_column()
    about.add_column()
    for key, text in (
        ("processor", f"{of.name}, {of.cores} cores, {' '.join(of.features)}"),
        (
            "runtime",
            f"{of.runtime}, {of.runtime_version}, {of.dtype}, {of.threads} thread(s)"
            + "".join(f", {key} {value}" for key, value in of.options),
        ),
        (
            "measured",
            f"{header.operators} operators in {header.visits} network visits"
            + (f", {header.focused_visits} of them of networks in focus" if header.focused_visits else "")
            + (f", {earlier} of them in earlier runs" if earlier else "")
            + (f", {lent} of them to another device" if lent else "")
            + f", in {header.budget_s:.0f} s, {header.created}",
        ),
        ("peak", count_text(model.roofs.peak_flops_per_s, "FLOP/s")),
        *(
            (f"bandwidth at {count_text(size, 'B')}", count_text(rate, "B/s"))
            for size, rate in model.roofs.bandwidth[::3]
        ),
        ("overhead of a call", time_text(model.roofs.overhead_s)),
        (
            "channel blocks (in, out)",
            ", ".join(f"{kind} {a}, {b}" for kind, (a, b) in model.roofs.blocks.items()),
        ),
        (
            "held-out networks",
            f"{checked.networks}: error mean {checked.mean_error_percent:.1f} %, "
            f"median {checked.median_error_percent:.1f} %, {checked.within_10_percent:.0f} % within 10 %, "
            f"90 % interval covers {checked.coverage_percent:.0f} %",
        ),
    ):
        about.add_row(key, text)
    errors = Table(title="held-out error by operator family")
    errors.add_column("family")
    for name in ("operators", "mean error", "median error", "overhead"):
        errors.add_column(name, justify="right")
    for name, family in checked.families.items():
        errors.add_row(
            name,
            str(family.operators),
            f"{family.mean_error_percent:.1f} %",
            f"{family.median_error_percent:.1f} %",
            time_text(model.families[name].overhead_s),
        )
    return [about, errors]


def comparison_table(result: Comparison) -> Table:
    """Networks side by side."""
    parent = result.networks[0]
    table = Table(
        title=f"Target: {result.target:g} of the parent's FLOPs or latency, on {result.device}",
        caption=f"latency of a batch of {result.batch}; ratios to the parent; "
        f"{result.test_images} test images",
    )
    table.add_column("network")
    for name in ("accuracy", "FLOPs", "parameters", "predicted", "measured", "ratio", "spread"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in result.networks:
        table.add_row(
            row.name,
            f"{row.accuracy_percent:.1f} %",
            f"{count_text(row.flops)} ({row.flops / parent.flops:.2f})",
            count_text(row.parameters),
            f"{time_text(row.predicted_s)} ({row.predicted_s / parent.predicted_s:.2f})",
            time_text(row.measured_s),
            f"{row.measured_s / parent.measured_s:.2f}",
            f"{100 * row.measured_spread:.1f} %",
        )
    return table
