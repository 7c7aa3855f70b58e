"""Plots as inline SVG whose colours are the page's own, so that they follow light and dark."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gks_eval.evidence.comparison import Comparison
from gks_eval.evidence.observed import LibraryGeometry, RoutingShares
from gks_eval.evidence.paper import Cell
from gks_eval.evidence.tables.escape import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["difference_plot", "geometry_plot", "paper_plot", "routing_plot"]

# Stand-ins that no plot uses otherwise; the SVG's text is rewritten to the page's variables.
_INK, _MUTED, _GRID, _PAPER = "#010203", "#040506", "#070809", "#0a0b0c"
_SERIES = [f"#0d0e{i:02x}" for i in range(1, 9)]
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _GRID: "var(--line)",
    _PAPER: "var(--panel)",
    **{colour: f"var(--series-{i})" for i, colour in enumerate(_SERIES, start=1)},
}
_MARKERS = "osD^vPX*"


def difference_plot(comparison: Comparison) -> str:
    """Return every candidate's differences from the baseline with intervals; empty if none."""
    rows = [row for row in comparison.rows if row.binary and row.differences]
    compared = {d.candidate for row in rows for d in row.differences}
    candidates = [run.label for run in comparison.runs[1:] if run.label in compared]
    if not rows:
        return ""
    lane = 0.8 / max(1, len(candidates))
    figure, axes = _lanes(len(rows), candidates)
    axes.axvline(0, color=_MUTED, linewidth=1)
    for position, row in enumerate(rows):
        for d in row.differences:
            order = candidates.index(d.candidate)
            y = position - 0.4 + lane * (order + 0.5)
            colour = _SERIES[order % len(_SERIES)]
            if d.low is not None and d.high is not None:
                axes.plot([100 * d.low, 100 * d.high], [y, y], color=colour, linewidth=1.5)
            marker = _MARKERS[order % len(_MARKERS)]
            axes.plot([100 * d.difference], [y], marker, color=colour, markersize=5)
    _names(axes, [row.name for row in rows])
    axes.set_xlabel(f"points against {_texts([comparison.baseline])[0]} (95% interval)", color=_INK)
    _legend(axes, candidates)
    return _svg(figure, "differences")


def paper_plot(cells: Sequence[Cell], table: str) -> str:
    """Return one table's paper values (hollow) and ours (filled, with interval); empty if none."""
    cells = [cell for cell in cells if cell.table == table]
    columns = list(dict.fromkeys(cell.column for cell in cells))
    rows = list(dict.fromkeys(cell.row for cell in cells if cell.ours is not None))
    if not rows:
        return ""
    lane = 0.8 / len(rows)
    figure, axes = _lanes(len(columns), rows)
    for cell in cells:
        if cell.row not in rows:
            continue
        order = rows.index(cell.row)
        colour = _SERIES[order % len(_SERIES)]
        marker = _MARKERS[order % len(_MARKERS)]
        y = columns.index(cell.column) - 0.4 + lane * (order + 0.5)
        if cell.ours is not None and cell.low is not None and cell.high is not None:
            axes.plot([cell.paper, cell.ours], [y, y], ":", color=_MUTED, linewidth=0.8)
            axes.plot([cell.low, cell.high], [y, y], color=colour, linewidth=1.5)
            axes.plot([cell.ours], [y], marker, color=colour, markersize=5)
        axes.plot(
            [cell.paper], [y], marker, markerfacecolor=_PAPER, markeredgecolor=colour, markersize=5
        )
    _names(axes, columns)
    axes.set_xlabel("accuracy, percent: hollow the paper's, filled ours (95% interval)", color=_INK)
    _legend(axes, rows)
    return _svg(figure, f"paper-{table}")


def routing_plot(routes: RoutingShares) -> tuple[str, str]:
    """Return (task x expert, layer x expert) heat maps of the mean coefficients."""
    import numpy as np

    names = list(routes.tasks)
    tables = {name: np.array(task.mean_coefficient) for name, task in routes.tasks.items()}
    if not names or not routes.layers or not routes.experts:
        return "", ""
    by_task = np.stack([table.mean(axis=0) for table in tables.values()])
    weights = np.array([max(1, routes.tasks[name].tokens) for name in names], dtype=float)
    by_layer = np.tensordot(weights / weights.sum(), np.stack(list(tables.values())), axes=1)
    label = "mean coefficient"
    salt = f"{routes.library}-{routes.setting}"
    first = _heat(by_task, routes.experts, names, label, f"tasks-{salt}")
    order = sorted(range(len(routes.layers)), key=lambda i: _by_depth(routes.layers[i]))
    layers = [routes.layers[i] for i in order]
    return first, _heat(by_layer[order], routes.experts, layers, label, f"layers-{salt}")


def _by_depth(layer: str) -> list[tuple[int, str]]:
    # Layer 2 comes before layer 10.
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in layer.split(".")]


def geometry_plot(geometry: LibraryGeometry, rule: str) -> str:
    """Return the cosines between experts under one rule."""
    import numpy as np

    table = np.array(geometry.cosine_experts[rule])
    salt = f"cosines-{geometry.library}-{rule}"
    return _heat(table, geometry.experts, geometry.experts, "cosine", salt, signed=True)


def _heat(
    table: Any,
    columns: Sequence[str],
    rows: Sequence[str],
    label: str,
    salt: str,
    signed: bool = False,
) -> str:
    figure, axes = _figure(
        2.4 + 0.42 * len(columns), 1.5 + (0.3 * len(rows) if len(rows) <= 40 else 12)
    )
    image = axes.imshow(
        table,
        aspect="auto",
        interpolation="nearest",
        cmap="RdBu_r" if signed else "viridis",
        vmin=-1.0 if signed else 0.0,
        vmax=1.0 if signed else None,
    )
    axes.set_xticks(range(len(columns)), _texts(columns), rotation=45, ha="right")
    step = max(1, len(rows) // 40)
    axes.set_yticks(range(0, len(rows), step), _texts(rows)[::step])
    bar = figure.colorbar(image, ax=axes, fraction=0.05)
    bar.set_label(label, color=_INK)
    bar.ax.tick_params(colors=_INK)
    bar.outline.set_edgecolor(_GRID)
    return _svg(figure, salt)


def _texts(names: Sequence[str]) -> list[str]:
    # A dollar sign would start a formula, and long names leave a plot no room.
    return [_short(plain(name)).replace("$", r"\$") for name in names]


def _short(name: str, most: int = 40) -> str:
    return name if len(name) <= most else f"{name[: most - 13]}…{name[-12:]}"


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    axes.tick_params(colors=_INK, length=0, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_GRID)
    return figure, axes


def _names(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), _texts(names))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for edge in range(1, len(names)):
        axes.axhline(edge - 0.5, color=_GRID, linewidth=0.4)


def _legend_columns(labels: Sequence[str]) -> int:
    # Of a width of 7.2 inches; a letter of 9 points takes about 0.075, a marker with its gaps 0.5.
    widest = max((len(text) for text in _texts(labels)), default=1)
    return max(1, min(4, len(labels), int(7.0 / (0.075 * widest + 0.5))))


def _lanes(rows: int, labels: Sequence[str]) -> tuple[Figure, Axes]:
    # Each row has a lane for each label; the first line of the legend has its place already.
    lines = -(-len(labels) // _legend_columns(labels))
    legend = 0.18 * max(0, lines - 1)
    return _figure(7.2, 1.1 + legend + rows * max(0.32, 0.17 * len(labels)))


def _legend(axes: Axes, labels: Sequence[str]) -> None:
    for order, label in enumerate(labels):
        marker = _MARKERS[order % len(_MARKERS)]
        axes.plot([], [], marker, color=_SERIES[order % len(_SERIES)], label=_texts([label])[0])
    axes.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=_legend_columns(labels),
        frameon=False,
        labelcolor=_INK,
        fontsize=9,
    )


def _svg(figure: Figure, salt: str) -> str:
    import matplotlib as mpl

    out = io.StringIO()
    # Text stays text; a salt of its own keeps two plots' ids apart on one page.
    with (
        mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif"}),
        warnings.catch_warnings(),
    ):
        # The browser draws the letters, with fonts of its own.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return text
