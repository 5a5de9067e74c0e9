"""Pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from latmorph.files import write_whole


def draw_widths(
    networks: Mapping[str, Mapping[str, int]], path: Path, subtitles: Mapping[str, str] | None = None
) -> None:
    """Draw every network's layers as rectangles as wide as they have channels, input at the bottom.

    ``networks`` maps a name to widths by group; the first is the parent, whose outline stands behind
    the others. Written as PNG, whole or not at all.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    names = list(networks)
    layers = list(networks[names[0]])
    widest = max(max(widths.values()) for widths in networks.values())
    figure = Figure(figsize=(2.6 * len(names) + 1.2, 0.42 * len(layers) + 1.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    colors = ("#6b7280", "#b7791f", "#2b6cb0", "#2f855a")
    for k, (name, ax) in enumerate(zip(names, axes, strict=True)):
        for row, layer in enumerate(layers):
            outline, width = networks[names[0]][layer], networks[name].get(layer, 0)
            ax.add_patch(
                Rectangle(
                    (-outline / 2, row - 0.36), outline, 0.72, fill=False, edgecolor="#c4c9d1", linewidth=0.8
                )
            )
            ax.add_patch(Rectangle((-width / 2, row - 0.36), width, 0.72, facecolor=colors[k % len(colors)]))
            ax.text(
                max(width, outline) / 2 + widest * 0.03,
                row,
                str(width),
                va="center",
                fontsize=8,
                color="#374151",
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
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=160)
    write_whole(path, data.getvalue())
