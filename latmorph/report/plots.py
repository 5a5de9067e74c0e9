"""Pictures, written as PNG, whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latmorph import ops
from latmorph.device.roofs import Roofs
from latmorph.device.timing import Observation
from latmorph.files import write_whole
from latmorph.latency.estimate import Estimate
from latmorph.report.staircase import Staircase
from latmorph.report.tables import count_text, interval_text, share_text, time_text

INK, GREY, PALE = "#374151", "#6b7280", "#c4c9d1"

BOUND_COLORS = {"compute": "#2b6cb0", "memory": "#b7791f", "overhead": "#9b2c2c"}

FAMILY_COLORS = ("#2b6cb0", "#b7791f", "#2f855a", "#9b2c2c", "#6b46c1", "#0e7490", "#be185d", "#84a317")
"""Of the families with the most operators in a roofline; the rest share one grey."""


def draw_estimate(estimate: Estimate, path: Path, *, rows: int = 25) -> None:
    """Draw where a network's predicted time goes.

    On top all operators in the order in which they run, as long as their share of the time; below the
    ``rows`` largest, split into overhead and the rest, with their 90 % intervals. Colours tell the bound.
    """
    from matplotlib.patches import Patch

    total = estimate.total_s
    largest = sorted(estimate.ops, key=lambda op: -op.total_s)[:rows]
    figure = _figure(10, 0.24 * len(largest) + 3.0)
    strip, bars = figure.subplots(2, 1, height_ratios=(0.9, 0.24 * len(largest) + 1.0))
    starts = np.cumsum([0.0, *(op.total_s for op in estimate.ops)])
    for start, op in zip(starts, estimate.ops, strict=False):
        strip.barh(0, op.total_s, 1.0, start, color=BOUND_COLORS[op.bound], edgecolor="white", linewidth=0.3)
        if op.total_s > 0.007 * len(op.kind) * total:
            text = f"{op.kind}\n{share_text(op.total_s, total)}"
            strip.text(start + op.total_s / 2, 0, text, ha="center", va="center", fontsize=6, color="white")
    strip.set_xlim(0, total or 1.0)
    strip.set_ylim(-0.5, 0.5)
    strip.set_yticks([])
    strip.set_title(f"predicted {time_text(total)}, {interval_text(estimate)}", fontsize=10)
    strip.set_xlabel("time from the network's input to its output", fontsize=8)
    for row, op in enumerate(largest):
        bars.barh(row, op.overhead_s, 0.72, color=BOUND_COLORS["overhead"])
        rest = op.total_s - op.overhead_s
        larger = "compute" if op.compute_s >= op.memory_s else "memory"
        bars.barh(row, rest, 0.72, op.overhead_s, color=BOUND_COLORS[larger])
        bars.plot(op.interval_s, (row, row), color=INK, linewidth=1.0, marker="|", markersize=5)
        bars.annotate(
            share_text(op.total_s, total),
            (max(op.interval_s[1], op.total_s), row),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            color=INK,
        )
    bars.set_yticks(
        range(len(largest)), [_label(op.module or op.name, op.kind) for op in largest], fontsize=7
    )
    bars.set_ylim(len(largest) - 0.4, -0.6)
    bars.set_xlim(0, 1.12 * max((op.interval_s[1] for op in largest), default=1.0))
    left = len(estimate.ops) - len(largest)
    also = f"; {left} smaller operators are not shown here" if left else ""
    bars.set_xlabel(f"predicted time, with 90 % interval and share of the total{also}", fontsize=8)
    names = {"compute": "compute bound", "memory": "memory bound", "overhead": "overhead"}
    patches = [Patch(color=color, label=names[bound]) for bound, color in BOUND_COLORS.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    for ax in (strip, bars):
        _plain_axes(ax)
        ax.xaxis.set_major_formatter(lambda value, _: time_text(value) if value else "0")
    _write(figure, path)


def draw_roofline(observed: Sequence[Observation], roofs: Roofs, path: Path, title: str) -> None:
    """Draw measured operators by intensity and achieved rate, under the measured roofs.

    Operators without multiply-adds have no place in it. Times hold the overhead of a call: small operators
    stay far below the roofs.
    """
    families: dict[str, list[tuple[float, float]]] = {}
    for o in observed:
        flops = float(ops.flops(o.spec))
        if flops > 0 and o.time_s > 0:
            family = ops.handler_of(o.spec.kind).family(o.spec)
            point = (flops / float(ops.byte_count(o.spec)), flops / o.time_s)
            families.setdefault(family, []).append(point)
    figure = _figure(9.5, 6)
    ax = figure.subplots()
    ordered = sorted(families, key=lambda name: -len(families[name]))
    shown = {name: families[name] for name in ordered[: len(FAMILY_COLORS)]}
    rest = [point for name in ordered[len(FAMILY_COLORS) :] for point in families[name]]
    colors = (*FAMILY_COLORS[: len(shown)], PALE)
    for (name, points), color in zip((*shown.items(), ("others", rest)), colors, strict=True):
        if points:
            x, y = np.array(points).T
            label = f"{name} ({len(points)})"
            ax.scatter(x, y, s=9, color=color, alpha=0.55, linewidths=0, label=label, zorder=3)
    everywhere = np.array([point for points in families.values() for point in points] or [(1.0, 1.0)])
    slow, fast = roofs.bandwidth[-1], roofs.bandwidth[0]
    low = min(everywhere[:, 0].min(), roofs.peak_flops_per_s / fast[1]) / 2
    high = max(everywhere[:, 0].max(), roofs.peak_flops_per_s / slow[1]) * 3
    along = np.geomspace(low, high, 200)
    peak = f"peak {count_text(roofs.peak_flops_per_s, 'FLOP/s')}"
    ax.axhline(roofs.peak_flops_per_s, color=INK, linewidth=1.2, linestyle=":", label=peak, zorder=2)
    for (size, rate), style in ((fast, "--"), (slow, "-")):
        ax.plot(
            along,
            np.minimum(rate * along, roofs.peak_flops_per_s),
            color=INK,
            linestyle=style,
            linewidth=1.2,
            label=f"{count_text(rate, 'B/s')} at {count_text(size, 'B')}",
            zorder=2,
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(low, high)
    ax.set_ylim(everywhere[:, 1].min() / 2, roofs.peak_flops_per_s * 2.5)
    ax.set_xlabel("intensity, FLOPs per byte", fontsize=9)
    ax.set_ylabel("achieved rate in sampled networks, FLOP/s", fontsize=9)
    ax.set_title(title, fontsize=10)
    ax.grid(which="major", color=PALE, linewidth=0.4, alpha=0.6)
    ax.tick_params(labelsize=8)
    legend = figure.legend(loc="outside right upper", fontsize=8, frameon=False, title="roofs and families")
    legend.get_title().set_fontsize(8)
    for handle in legend.legend_handles:
        handle.set_alpha(1)
    _plain_axes(ax)
    _write(figure, path)


def draw_staircase(staircase: Staircase, path: Path, title: str) -> None:
    """Draw measured and predicted time of one operator against its width, and predicted over measured."""
    sweep, ratio = staircase.sweep, staircase.ratio
    widths, measured, predicted = (
        np.array(values) for values in (sweep.widths, sweep.times_s, staircase.predicted_s)
    )
    figure = _figure(9, 5.6)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2.4, 1))
    # Widths stand side by side; where some were left out there is a gap.
    runs = np.split(np.arange(len(widths)), np.flatnonzero(np.diff(widths) > 1) + 1)
    places = np.concatenate([run + 2.0 * k for k, run in enumerate(runs)])
    for k, run in enumerate(runs):
        for values, color, name in ((measured, "#b7791f", "measured"), (predicted, "#2b6cb0", "predicted")):
            label = name if k == 0 else None
            top.plot(places[run], values[run], "o-", color=color, markersize=3.5, linewidth=1.2, label=label)
        bottom.plot(places[run], ratio[run], "o-", color=INK, markersize=3, linewidth=1)
    bottom.axhline(1.0, color=GREY, linewidth=0.8, zorder=0)
    block = sweep.block
    for place in places[(widths % block == 0) & (block >= 4)]:
        for ax in (top, bottom):
            ax.axvline(place + 0.5, color=PALE, linewidth=0.7, zorder=0)
    marked = widths % 8 == 0
    bottom.set_xticks(places[marked], widths[marked])
    top.set_ylim(0, 1.2 * max(measured.max(), predicted.max()))
    bottom.set_ylim(0.95 * min(0.9, ratio.min()), 1.05 * max(1.1, ratio.max()))
    found = f"blocks of {block}" if block > 1 else "no block found"
    edges = ", whose edges are the grey lines" if block >= 4 else ""
    side = "input" if sweep.axis == "in" else "output"
    top.set_title(f"{title}\n{sweep.kind} by {side} width: {found}{edges}", fontsize=10)
    top.set_ylabel("time of one call", fontsize=9)
    top.yaxis.set_major_formatter(lambda value, _: time_text(value) if value else "0")
    top.legend(fontsize=8, frameon=False, loc="upper left", ncols=2)
    bottom.set_ylabel("predicted / measured", fontsize=9)
    bottom.set_xlabel(
        f"{side} channels (measured alone, its data in the caches; predicted amid a network)", fontsize=9
    )
    for ax in (top, bottom):
        _plain_axes(ax)
    _write(figure, path)


def draw_widths(
    networks: Mapping[str, Mapping[str, int]], path: Path, subtitles: Mapping[str, str] | None = None
) -> None:
    """Draw every network's layers as rectangles as wide as they have channels, input at the bottom.

    ``networks`` maps a name to widths by group; the first is the parent, whose outline stands behind
    the others. Written as PNG, whole or not at all.
    """
    from matplotlib.patches import Rectangle

    names = list(networks)
    layers = list(networks[names[0]])
    widest = max(max(widths.values()) for widths in networks.values())
    figure = _figure(2.6 * len(names) + 1.2, 0.42 * len(layers) + 1.6)
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    colors = (GREY, "#b7791f", "#2b6cb0", "#2f855a")
    for k, (name, ax) in enumerate(zip(names, axes, strict=True)):
        for row, layer in enumerate(layers):
            outline, width = networks[names[0]][layer], networks[name].get(layer, 0)
            ax.add_patch(
                Rectangle(
                    (-outline / 2, row - 0.36), outline, 0.72, fill=False, edgecolor=PALE, linewidth=0.8
                )
            )
            ax.add_patch(Rectangle((-width / 2, row - 0.36), width, 0.72, facecolor=colors[k % len(colors)]))
            ax.text(
                max(width, outline) / 2 + widest * 0.03,
                row,
                str(width),
                va="center",
                fontsize=8,
                color=INK,
            )
        ax.set_xlim(-widest * 0.55, widest * 0.72)
        ax.set_ylim(-0.6, len(layers) - 0.4)
        ax.set_xticks([])
        ax.set_yticks(range(len(layers)), layers, fontsize=8)
        ax.tick_params(length=0)
        for side in ax.spines.values():
            side.set_visible(False)
        ax.set_title(name, fontsize=10)
        ax.set_xlabel((subtitles or {}).get(name, ""), fontsize=8)
    figure.supylabel("layers, input at the bottom", fontsize=8)
    _write(figure, path)


def _label(module: str, kind: str) -> str:
    """A module and its operator, cut in front to fit beside a bar."""
    return f"{module if len(module) <= 34 else '...' + module[-31:]}  {kind}"


def _plain_axes(ax: Any) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(PALE)
    ax.tick_params(colors=INK, labelsize=7)


def _figure(width: float, height: float) -> Any:
    """A figure of so many inches, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _write(figure: Any, path: Path) -> None:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=160)
    write_whole(path, data.getvalue())
