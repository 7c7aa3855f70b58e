"""Tables and pictures of docs/study.md, from the results of run.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from gks_eval.evidence.stats.holm import holm
from gks_eval.grid.settings import parse_settings
from gks_eval.library.geometry import summary

matplotlib.use("Agg")
from matplotlib import pyplot

Row = dict[str, Any]
NAMES = {"gks_paper_english": "English", "study_german": "German", "study_french": "French"}
NAMES |= {"gks_paper_german": "German", "gks_paper_french": "French", "study": "all"}


def groups(comparison: Row) -> list[Row]:
    """Return a comparison's group rows in their order, or its task rows if it has no groups."""
    rows: list[Row] = comparison["rows"]
    return [row for row in rows if row["kind"] == "group"] or rows


def points(fraction: float, sign: str = "") -> str:
    """Return a fraction in percent or points; a value that rounds to zero has no sign."""
    text = f"{100 * fraction:{sign}.1f}"
    return text.lstrip("+-") if float(text) == 0 else text


def guessing(base: Path) -> dict[str, float]:
    """Return the accuracy of guessing on each task, the mean of 1 / choices over its items."""
    found: dict[str, list[float]] = {}
    for path in sorted(base.glob("samples_*.jsonl")):
        task = path.stem.removeprefix("samples_").rsplit("_", 1)[0]
        for line in path.read_text("utf-8").splitlines():
            found.setdefault(task, []).append(1 / len(json.loads(line)["resps"]))
    return {task: float(np.mean(chances)) for task, chances in found.items()}


def means(comparison: Row, chances: dict[str, float]) -> list[str]:
    """Tabulate every setting's means with 95% intervals."""
    rows = groups(comparison)
    heads = [f"{NAMES.get(r['name'], r['name'])}, n = {_size(r)}" for r in rows]
    lines = ["| setting | " + " | ".join(heads) + " |", "|---" * (len(rows) + 1) + "|"]
    blind = (
        points(float(np.mean([chances[task] for task in row["tasks"] or [row["name"]]])))
        for row in rows
    )
    lines.append("| *guessing* | " + " | ".join(blind) + " |")
    for run in comparison["runs"]:
        cells = []
        for row in rows:
            score = row["scores"][run["label"]]
            low, high = points(score["low"]), points(score["high"])
            cells.append(f"{points(score['value'])} [{low}, {high}]")
        lines.append(f"| {run['label']} | " + " | ".join(cells) + " |")
    return lines


def changes(comparison: Row) -> list[str]:
    """Tabulate every setting's change of each mean, with p before and after Holm over settings."""
    rows = groups(comparison)
    found = {row["name"]: {d["candidate"]: d for d in row["differences"]} for row in rows}
    adjusted = {
        name: dict(zip(by, holm([d["p"] for d in by.values()]), strict=True))
        for name, by in found.items()
    }
    heads = [NAMES.get(name, name) for name in found]
    lines = [f"| against {comparison['baseline']} | " + " | ".join(heads) + " | items changed |"]
    lines.append("|---" * (len(rows) + 2) + "|")
    for run in comparison["runs"]:
        label = run["label"]
        if label == comparison["baseline"]:
            continue
        cells = []
        for name, by in found.items():
            d = by[label]
            low, high = points(d["low"], "+"), points(d["high"], "+")
            cell = f"{points(d['difference'], '+')} [{low}, {high}] p {d['p']:.2g}"
            # A single test needs no correction.
            cells.append(cell + (f", Holm {adjusted[name][label]:.2g}" if len(by) > 1 else ""))
        tasks = [row for row in comparison["rows"] if row["kind"] == "task"]
        changed = [d for row in tasks for d in row["differences"] if d["candidate"] == label]
        up, down = (sum(d[way] for d in changed) for way in ("gains", "losses"))
        lines.append(f"| {label} | " + " | ".join(cells) + f" | +{up} -{down} |")
    return lines


def cells_that_differ(comparison: Row) -> list[str]:
    """List single tasks whose change is significant after Holm over the tasks of one setting."""
    tasks = [row for row in comparison["rows"] if row["kind"] == "task"]
    tests = [(row["name"], d) for row in tasks for d in row["differences"]]
    raw = sum(d["p"] is not None and d["p"] < 0.05 for _, d in tests)
    against = comparison["baseline"]
    lines = [f"On single sets, {len(tests)} tests against {against}: {raw} with p < 0.05; "]
    kept = [(name, d) for name, d in tests if d["p_holm"] is not None and d["p_holm"] < 0.05]
    lines[0] += f"after Holm over a setting's tasks, {len(kept)}."
    lines += [
        f"- {d['candidate']} on {name}: {100 * d['difference']:+.1f} "
        f"(+{d['gains']} -{d['losses']} of {d['n']}), Holm {d['p_holm']:.2g}"
        for name, d in kept
    ]
    return lines


def libraries(geometries: list[Row]) -> list[str]:
    """Tabulate norms and cosines of every library, before and after subtraction."""
    heads = ["library", "rule", "norm", "even mix, factors", "even mix, outputs"]
    heads += ["cosine of experts", "abs. cosine of prototypes"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for geometry in geometries:
        for row in summary(geometry):
            norms = [row.norm, row.mixture["factors"], row.mixture["outputs"]]
            cells = [f"{norm:.2f}" for norm in norms]
            cells += [f"{row.cosine:+.3f}", f"{row.prototypes:.3f}"]
            lines.append(f"| {_name(geometry)} | {row.rule} | " + " | ".join(cells) + " |")
    return lines


def routing(routes: list[Row]) -> list[str]:
    """Tabulate how evenly each setting uses the experts."""
    lines = ["| library | setting | entropy, nats | of log top_k | most used | least used |"]
    lines.append("|---" * 6 + "|")
    for one in routes:
        entropy = np.mean([np.mean(task["entropy"]) for task in one["tasks"].values()])
        use = np.mean([np.mean(t["mean_coefficient"], axis=0) for t in one["tasks"].values()], 0)
        order = np.argsort(use)
        most, least = (f"{one['experts'][n]} {100 * use[n]:.1f}%" for n in (order[-1], order[0]))
        even = entropy / np.log(one["top_k"])
        shares = f"{entropy:.3f} | {100 * even:.0f}% | {most} | {least}"
        lines.append(f"| {_name(one)} | {_label(one)} | {shares} |")
    return lines


def draw_changes(comparison: Row, picture: Path) -> None:
    """Draw every setting's change of each mean with its 95% interval."""
    rows = groups(comparison)
    labels = [r["label"] for r in comparison["runs"] if r["label"] != comparison["baseline"]]
    figure, all_axes = pyplot.subplots(
        1, len(rows), figsize=(3.0 * len(rows) + 2.4, 0.27 * len(labels) + 1.2), sharey=True,
        layout="constrained",
    )  # fmt: skip
    for axes, row in zip(np.atleast_1d(all_axes), rows, strict=True):
        by = {d["candidate"]: d for d in row["differences"]}
        for y, label in enumerate(labels):
            d = by[label]
            axes.plot([100 * d["low"], 100 * d["high"]], [y, y], color="tab:blue", linewidth=1.5)
            axes.plot([100 * d["difference"]], [y], "o", color="tab:blue", markersize=4)
        axes.axvline(0, color="grey", linewidth=1)
        axes.set_title(f"{NAMES.get(row['name'], row['name'])}, n = {_size(row)}", fontsize=9)
        axes.set_xlabel(f"points against {comparison['baseline']}", fontsize=8)
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
        axes.invert_yaxis() if axes is np.atleast_1d(all_axes)[0] else None
        axes.grid(axis="x", alpha=0.3)
    figure.savefig(picture, dpi=110)


def draw_routing(routes: list[Row], picture: Path) -> None:
    """Draw each expert's mean coefficient on each task: one panel per setting, three per row."""
    wide = min(3, len(routes))
    high = -(-len(routes) // wide)
    figure, grid = pyplot.subplots(
        high, wide, figsize=(4.2 * wide + 1, 4.3 * high), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    tables = [
        np.array([np.mean(task["mean_coefficient"], axis=0) for task in one["tasks"].values()])
        for one in routes
    ]
    top = max(table.max() for table in tables)
    panels = list(grid.flat)
    for axes, one, table in zip(panels, routes, tables, strict=False):
        image = axes.imshow(100 * table, vmin=0, vmax=100 * top, cmap="viridis", aspect="auto")
        axes.set_xticks(range(len(one["experts"])), one["experts"], rotation=90, fontsize=7)
        names = [task.removeprefix("gks_paper_") for task in one["tasks"]]
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set_title(f"{_name(one)}: {_label(one)}", fontsize=9)
    for unused in panels[len(routes) :]:
        unused.set_axis_off()
    figure.colorbar(image, ax=grid, label="mean coefficient, %", shrink=1 / high)
    figure.savefig(picture, dpi=100)


def _size(row: Row) -> int:
    return int(max(score["n"] for score in row["scores"].values()))


def _name(record: Row) -> str:
    return Path(record["library"]).name


def _label(routes: Row) -> str:
    return parse_settings([routes["setting"]])[0].slug


def read(paths: list[Path]) -> list[Row]:
    """Return the contents of JSON files."""
    return [json.loads(path.read_text("utf-8")) for path in paths]


def write(
    folder: Path, base: Path, comparisons: list[Path], routes: list[Path], geometries: list[Path]
) -> None:
    """Write tables.md and pictures into `folder`.

    Args:
        folder: Output folder.
        base: Results of the base model; its samples give the number of choices.
        comparisons: All settings against arrow, all against base, then smaller comparisons.
        routes: Routing, one file per setting.
        geometries: Norms and cosines, one file per library.
    """
    against_arrow, against_base, *others = read(comparisons)
    routing_records = read(routes)
    parts = [means(against_arrow, guessing(base))]
    for comparison in (against_arrow, against_base):
        parts += [changes(comparison), cells_that_differ(comparison)]
    parts += [changes(comparison) for comparison in others]
    parts += [libraries(read(geometries)), routing(routing_records)]
    text = "\n\n".join("\n".join(part) for part in parts) + "\n"
    (folder / "tables.md").write_text(text, encoding="utf-8")
    draw_changes(against_arrow, folder / "changes.png")
    draw_routing(routing_records, folder / "routing.png")
