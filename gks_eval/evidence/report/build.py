"""The page, from runs and what lies beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

import gks_eval
from gks_eval.errors import ResultsError
from gks_eval.evidence.compare import Settings, compare
from gks_eval.evidence.observed import LibraryGeometry, RoutingShares, find_observed
from gks_eval.evidence.paper import Family, load_paper, side_by_side
from gks_eval.evidence.report.items import collect
from gks_eval.evidence.report.plots import (
    difference_plot,
    geometry_plot,
    paper_plot,
    routing_plot,
)
from gks_eval.evidence.runs import Run
from gks_eval.evidence.tables.content import Table, difference_table, leaderboard
from gks_eval.evidence.tables.paper_text import paper_tables

__all__ = ["Options", "build_page"]


@dataclass(frozen=True, slots=True)
class Options:
    """What the page shows.

    Attributes:
        title: Its heading.
        metric: As in `Settings`.
        family: Tasks to put beside the paper's.
        most: Samples to keep at most.
        max_text: Characters of a prompt to keep.
    """

    title: str = "Evaluation report"
    metric: str | None = None
    family: Family = "gks_paper"
    most: int = 20_000
    max_text: int = 4_000


def build_page(runs: Sequence[Run], folders: Sequence[Path], options: Options | None = None) -> str:
    """Return the whole page as HTML.

    Args:
        runs: The runs, the baseline first.
        folders: Where to look for routing shares and library geometry.
        options: What to show.

    Raises:
        ResultsError: A file is broken.
    """
    options = options or Options()
    # A page shows what there is and says what is not comparable; refusing is for decisions.
    comparison = compare(runs, Settings(metric=options.metric, force=True), alone=True)
    observed = [find_observed(folder) for folder in folders]
    routes = [found for group, _ in observed for found in group]
    geometry = [found for _, group in observed for found in group]
    book = collect(runs, comparison, options.most, options.max_text)
    environment = Environment(
        loader=PackageLoader("gks_eval.evidence", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["interval"] = _interval
    environment.filters["breakable"] = _breakable
    macros: Any = environment.get_template("macros.html.j2").module
    changes = difference_table(comparison)
    paper = _paper(runs, options.family)
    parts = {
        "changes": changes.rows,
        "paper": paper,
        "routing": routes,
        "geometry": geometry,
    }
    names = {"changes": "Change", "paper": "Paper", "routing": "Routing", "geometry": "Library"}
    return environment.get_template("page.html.j2").render(
        title=options.title,
        style=_trusted(_asset("page.css")),
        script=_trusted(_asset("page.js")),
        table=macros.table,
        figure=macros.figure,
        sections=[
            ("scores", "Scores"),
            *((key, names[key]) for key, part in parts.items() if part),
            ("samples", "Samples"),
            ("provenance", "Provenance"),
        ],
        comparison=comparison,
        board=leaderboard(comparison),
        changes=changes if changes.rows else None,
        difference_svg=_trusted(difference_plot(comparison)),
        paper=paper,
        routes=[_routes(found) for found in routes],
        geometry=[_geometry(found) for found in geometry],
        data=_json({"runs": [run.label for run in runs], **asdict(book)}),
        version=gks_eval.__version__,
    )


def _asset(name: str) -> str:
    return (resources.files("gks_eval.evidence.report") / name).read_text(encoding="utf-8")


def _interval(cell: str) -> Markup:
    """Put an interval on a line of its own below its value."""
    value, bracket, interval = cell.partition(" [")
    return (
        escape(value) + Markup("<small>[{}</small>").format(interval) if bracket else escape(cell)
    )


def _breakable(name: str) -> Markup:
    """Let a narrow window break a long name behind its underscores."""
    return escape(name).replace("_", Markup("_<wbr>"))


def _trusted(text: str) -> Markup:
    """Mark a text as markup: our own style and script, SVG by matplotlib, JSON by `_json`."""
    return Markup(text)  # noqa: S704 - nothing of a model or data set comes here unescaped


def _json(content: object) -> Markup:
    """Return JSON that cannot end the script element it stands in."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # Lone surrogates, which a broken data set may hold, cannot be written as UTF-8.
    return _trusted(text.encode("utf-8", "replace").decode("utf-8"))


def _paper(runs: Sequence[Run], family: Family) -> list[dict[str, Any]]:
    published = load_paper()
    try:
        cells = side_by_side(published, list(published.tables), runs, family)
    except ResultsError:
        return []  # no run is named as a row of the paper's
    ours = {cell.table for cell in cells if cell.ours is not None}
    # Runs of another model than any table's are shown beside the first model's tables.
    fitting = {cell.table for cell in cells if cell.ours is not None and not cell.other_model}
    ours = fitting or {name for name in ours if name.startswith("phi3")}
    kept = [cell for cell in cells if cell.table in ours]
    tables = paper_tables(published, kept, family)
    names = dict.fromkeys(cell.table for cell in kept)
    return [
        {"table": table, "svg": _trusted(paper_plot(kept, name))}
        for name, table in zip(names, tables, strict=True)
    ]


def _routes(routes: RoutingShares) -> dict[str, Any]:
    by_task, by_layer = routing_plot(routes)
    rows = []
    for name, task in routes.tasks.items():
        layers = max(1, len(task.mean_coefficient))
        means = [sum(column) / layers for column in zip(*task.mean_coefficient, strict=True)]
        entropy = sum(task.entropy) / layers
        rows.append([name, str(task.tokens), *(f"{mean:.4f}" for mean in means), f"{entropy:.3f}"])
    columns = ["task", "tokens", *routes.experts, "entropy (nats)"]
    table = Table("Mean coefficients", columns, rows, {}, [])
    return {
        "routes": routes,
        "by_task": _trusted(by_task),
        "by_layer": _trusted(by_layer),
        "table": table,
    }


def _geometry(geometry: LibraryGeometry) -> dict[str, Any]:
    rules = list(geometry.residual_norm)

    def mean(values: Sequence[float] | None) -> str:
        return f"{sum(values) / len(values):.4f}" if values else "–"

    rows = [
        [
            expert,
            mean(geometry.norm.get(expert)),
            *(mean(geometry.residual_norm[rule].get(expert)) for rule in rules),
            *(f"{cosine:.3f}" for cosine in geometry.cosine_general[index]),
            mean(geometry.rule_distance.get(expert)),
        ]
        for index, expert in enumerate(geometry.experts)
    ]
    columns = ["expert", "|dW|", *(f"|residual|, {rule}" for rule in rules)]
    columns += [*(f"cosine with {name}" for name in geometry.general), "|factors − delta|/|delta|"]
    note = f"Norms are means over {len(geometry.layers)} layers."
    plots = [(rule, _trusted(geometry_plot(geometry, rule))) for rule in geometry.cosine_experts]
    return {
        "geometry": geometry,
        "table": replace(Table("Norms and cosines", columns, rows, {}, []), notes=[note]),
        "plots": plots,
    }
