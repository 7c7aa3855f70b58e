"""The page, from runs and the files next to them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import gks_eval
from gks_eval.errors import ResultsError
from gks_eval.evidence.accuracy import find_accuracy
from gks_eval.evidence.compare import CompareOptions, compare
from gks_eval.evidence.comparison import Comparison
from gks_eval.evidence.looks_file import read_looks
from gks_eval.evidence.observed import find_observed
from gks_eval.evidence.overlap import find_overlaps
from gks_eval.evidence.paper import Family, load_paper, side_by_side
from gks_eval.evidence.question import ControlsFile, read_controls
from gks_eval.evidence.replicate_rows import find_replicates
from gks_eval.evidence.report.folds import Fold, Sheet, folds, sheet
from gks_eval.evidence.report.forest import Forest, difference_forest, paper_forest
from gks_eval.evidence.report.items import collect
from gks_eval.evidence.report.library import accuracy_part, geometry_part, routing_part
from gks_eval.evidence.runs import Run
from gks_eval.evidence.tables.content import difference_table, score_table, shift_tables
from gks_eval.evidence.tables.controls_text import answers, controls_table
from gks_eval.evidence.tables.leaderboard import leaderboard_tables
from gks_eval.evidence.tables.looks_text import looks_tables
from gks_eval.evidence.tables.paper_text import paper_tables
from gks_eval.evidence.tables.replicates_text import replicates_table, verdicts
from gks_eval.evidence.tables.time_table import time_table

__all__ = ["Options", "build_page"]


@dataclass(frozen=True, slots=True)
class Options:
    """What the page shows.

    Attributes:
        title: Its heading.
        metric: As in `CompareOptions`.
        family: Tasks to show next to the paper's.
        most: Largest number of samples to keep.
        max_text: Largest number of characters of a prompt to keep.
        equivalence: As in `CompareOptions`.
    """

    title: str = "Evaluation report"
    metric: str | None = None
    family: Family = "gks_paper"
    most: int = 20_000
    max_text: int = 4_000
    equivalence: float | None = None


def build_page(runs: Sequence[Run], folders: Sequence[Path], options: Options | None = None) -> str:
    """Return the whole page as HTML.

    Args:
        runs: The runs, the baseline first.
        folders: Where to look for replicates, controls, routing shares, library geometry and
            overlap.
        options: What to show.

    Raises:
        ResultsError: A file is broken.
    """
    options = options or Options()
    # A page shows all runs with notes on what is not comparable; only decisions need a refusal.
    asked = CompareOptions(
        metric=options.metric, force=True, equivalence=options.equivalence, shift=True
    )
    comparison = compare(runs, asked, alone=True)
    observed = [find_observed(folder) for folder in folders]
    routes = [found for group, _ in observed for found in group]
    geometry = [found for _, group in observed for found in group]
    overlaps = [found for folder in folders for found in find_overlaps(folder)]
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
    parted = folds(comparison)
    changes = [_change(fold, comparison) for fold in parted if _changes(fold)]
    ranking = [sheet(table) for table in leaderboard_tables(comparison)]
    controls = [part for folder in folders for part in _controls(read_controls(folder))]
    looks = [
        sheet(table)
        for folder in folders
        if (found := read_looks(folder)) is not None
        for table in looks_tables(found)
    ]
    seeds = [
        (verdicts(found), sheet(replicates_table(found)))
        for folder in folders
        for found in find_replicates(folder)
    ]
    paper = _paper(runs, options.family)
    times = time_table(runs)
    parts = {
        "changes": changes,
        "seeds": seeds,
        "controls": controls,
        "looks": looks,
        "paper": paper,
        "routing": routes,
        "geometry": geometry,
        "time": times,
    }
    names = {
        "changes": "Change",
        "seeds": "Seeds",
        "controls": "Controls",
        "looks": "Gate",
        "paper": "Paper",
        "routing": "Routing",
        "geometry": "Library",
        "time": "Time",
    }
    return environment.get_template("page.html.j2").render(
        title=options.title,
        style=_trusted(_asset("page.css")),
        script=_trusted(_asset("page.js")),
        table=macros.table,
        forest=macros.forest,
        heat=macros.heat,
        sections=[
            *([("leaderboard", "Leaderboard")] if ranking else []),
            ("scores", "Scores"),
            *((key, names[key]) for key, part in parts.items() if part),
            ("samples", "Samples"),
            ("provenance", "Provenance"),
        ],
        comparison=comparison,
        ranking=ranking,
        boards=[(fold, sheet(score_table(fold.comparison, overlaps))) for fold in parted],
        accuracies=[accuracy_part(found) for folder in folders for found in find_accuracy(folder)],
        changes=changes,
        shifts=[sheet(table) for table in shift_tables(comparison)],
        seeds=seeds,
        controls=controls,
        looks=looks,
        paper=paper,
        routes=[routing_part(found) for found in routes],
        geometry=[geometry_part(found) for found in geometry],
        times=sheet(times) if times else None,
        data=_json({"runs": [run.label for run in runs], **asdict(book)}),
        version=gks_eval.__version__,
    )


def _asset(name: str) -> str:
    return (resources.files("gks_eval.evidence.report") / name).read_text(encoding="utf-8")


def _interval(cell: str) -> Markup:
    """Put an interval after its value in small type."""
    found = re.fullmatch(r"([-+]?[\d.][^ ]*) (\[.*\])", cell)
    if not found:
        return _breakable(cell)
    return Markup("{} <small>{}</small>").format(*found.groups())


def _breakable(name: str) -> Markup:
    """Allow line breaks in a long name after underscores, semicolons and the like."""
    return Markup("<wbr>").join(re.split(r"(?<=[_;:=/])", name))


def _changes(fold: Fold) -> bool:
    return any(row.differences for row in fold.comparison.rows)


def _change(fold: Fold, whole: Comparison) -> tuple[Fold, Sheet, Forest | None]:
    part = fold.comparison
    return fold, sheet(difference_table(part)), difference_forest(part, whole)


def _controls(found: ControlsFile | None) -> list[tuple[list[str], Sheet]]:
    """Return question, answers and table of a folder's controls; nothing before they have run."""
    if found is None or found.finding is None:
        return []
    asked = found.question, found.finding
    return [(answers(*asked), sheet(controls_table(*asked)))]


def _trusted(text: str) -> Markup:
    """Mark a text as markup; only for our own style and script, and JSON by `_json`."""
    return Markup(text)  # noqa: S704 - no text of a model or data set comes here unescaped


def _json(content: object) -> Markup:
    """Return JSON that cannot end the script element around it."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # Lone surrogates of a broken data set cannot be written as UTF-8.
    return _trusted(text.encode("utf-8", "replace").decode("utf-8"))


def _paper(runs: Sequence[Run], family: Family) -> list[dict[str, Any]]:
    published = load_paper()
    try:
        cells = side_by_side(published, list(published.tables), runs, family)
    except ResultsError:
        return []  # no run is named as a row of the paper's
    ours = {cell.table for cell in cells if cell.ours is not None}
    # Runs of another model than any table's are shown next to the first model's tables.
    fitting = {cell.table for cell in cells if cell.ours is not None and not cell.other_model}
    ours = fitting or {name for name in ours if name.startswith("phi3")}
    kept = [cell for cell in cells if cell.table in ours]
    tables = paper_tables(published, kept, family)
    names = dict.fromkeys(cell.table for cell in kept)
    return [
        {"table": sheet(table), "plot": paper_forest(kept, name)}
        for name, table in zip(names, tables, strict=True)
    ]
