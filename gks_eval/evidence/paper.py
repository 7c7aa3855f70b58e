"""The tables of the paper and of PEFT's example as data, and your own runs next to them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Final, Literal

from pydantic import Field

from gks_eval.errors import ResultsError, UsageError, did_you_mean
from gks_eval.evidence.runs import Run
from gks_eval.evidence.scores import pick_key
from gks_eval.evidence.stats.holm import holm
from gks_eval.evidence.stats.unpaired import mean_interval, proportion_difference
from gks_eval.evidence.stats.wilson import wilson_interval
from gks_eval.util.yaml import FrozenModel, parse_typed

__all__ = [
    "SCHEMA",
    "PaperCell",
    "PaperRow",
    "PaperTable",
    "PaperTables",
    "inferred_n",
    "load_paper",
    "paper_n",
    "side_by_side",
]

SCHEMA: Final = "gks_eval.paper/1"
Protocol = Literal["gks_paper", "gks_peft"]
Family = Literal["gks_paper", "gks_peft", "gks"]


class PaperRow(FrozenModel):
    """One setting of a published table: values in percent, and the average if one is printed."""

    values: list[float]
    printed_avg: float | None = None

    @property
    def mean(self) -> float:
        """Return the average recomputed from the row."""
        return math.fsum(self.values) / len(self.values)

    @property
    def average_is_off(self) -> bool:
        """Return whether the printed average differs from its row's mean by more than rounding."""
        return self.printed_avg is not None and abs(self.mean - self.printed_avg) > 0.0101


class PaperTable(FrozenModel):
    """One published table.

    Attributes:
        title: Heading.
        source: Where it is printed, if not in the paper.
        model: Part of the model's name on the hub.
        library: Bundled library with the adapters.
        protocol: Family of tasks that score as the table does.
        group: Part of the name of the group of tasks; empty for the family's only group.
        settings: Setting of each row that is named by a short name.
        full_split: Number of items of the full split by column, where it is known.
        inferred: Number of items that the values of a column fit.
        columns: The sets.
        rows: The settings.
    """

    title: str
    source: str = ""
    model: str
    library: str
    protocol: Protocol = "gks_paper"
    group: str = ""
    settings: dict[str, str] = Field(default_factory=dict)
    full_split: dict[str, int] = Field(default_factory=dict)
    inferred: dict[str, int] = Field(default_factory=dict)
    columns: list[str]
    rows: dict[str, PaperRow]

    def family(self, asked: Family) -> Family:
        """Return the tasks to read: the table's own, or those with lm-eval's prompts."""
        return "gks" if asked == "gks" else self.protocol


class PaperTables(FrozenModel):
    """All published tables with their source."""

    source: str
    tables: dict[str, PaperTable]

    def named(self, name: str) -> PaperTable:
        """Return one table.

        Raises:
            UsageError: There is none of that name.
        """
        if name not in self.tables:
            raise UsageError(f"no table {name!r}; {did_you_mean(name, self.tables)}.")
        return self.tables[name]


class PaperCell(FrozenModel):
    """One number of the paper next to your own.

    Attributes:
        table: The table's name.
        row: The setting, such as ``gks_avg``.
        column: The set, or ``average``.
        paper: The paper's value, in percent; the average is recomputed from the row.
        paper_n: Number of items; None if unknown.
        inferred: Whether `paper_n` was inferred from the values of the column.
        run: Label of the own run; empty if there is none.
        task: Task that `ours` is from.
        ours: Value of the own run, in percent.
        n: Number of items.
        low: Lower bound of its interval (Wilson, 95%).
        high: Upper bound.
        difference: Ours minus the paper's, in points.
        p_holm: p-value of "no difference", unpaired, Holm over the table.
        verdict: ``agrees``: no significant difference at 5%; empty if it cannot be tested.
        other_model: Whether the run is of another model than the table's.
        note: A remark for the reader.
    """

    table: str
    row: str
    column: str
    paper: float
    paper_n: int | None = None
    inferred: bool = False
    run: str = ""
    task: str = ""
    ours: float | None = None
    n: int | None = None
    low: float | None = None
    high: float | None = None
    difference: float | None = None
    p_holm: float | None = None
    verdict: Literal["", "agrees", "higher", "lower"] = ""
    other_model: bool = False
    note: str = ""


def load_paper() -> PaperTables:
    """Read the bundled data."""
    file = resources.files("gks_eval.evidence") / "data" / "paper_tables.yaml"
    return parse_typed(file.read_text(encoding="utf-8"), PaperTables, "paper_tables.yaml")


def paper_n(table: PaperTable, column: str) -> int | None:
    """Return the number of items of a column, if its values are possible on the full split.

    A value v is possible for n items if some 100 k / n rounds or truncates to v at two decimals.
    """
    n = table.full_split.get(column)
    if n is None:
        return None
    index = table.columns.index(column)
    return n if all(_fits(row.values[index], n) for row in table.rows.values()) else None


def inferred_n(table: PaperTable, row: str, column: str) -> int | None:
    """Return the number of items that was inferred for a column, if the row's value is possible."""
    n = table.inferred.get(column)
    value = table.rows[row].values[table.columns.index(column)]
    return n if n is not None and _fits(value, n) else None


def side_by_side(
    paper: PaperTables, names: Sequence[str], runs: Sequence[Run], family: Family = "gks_paper"
) -> list[PaperCell]:
    """Put runs next to the paper's cells.

    The label or folder of a run names its row: ``gks-avg`` is ``gks_avg``. A verdict needs a known
    or inferred n of the paper, a run of the table's model, and a task of the table's protocol
    (``gks_paper_*``, ``gks_peft_*``). `family` is ``gks`` for the tasks with lm-eval's prompts.

    Raises:
        ResultsError: Runs are given and none is named as a row.
    """
    cells = []
    matched = False
    for name in names:
        table = paper.named(name)
        by_row = {row: _run_for(row, runs) for row in table.rows}
        matched = matched or any(by_row.values())
        found = [
            _cell(name, table, row, column, by_row[row], family)
            for row in table.rows
            for column in table.columns
        ]
        cells += _with_verdicts(found, by_row, family)
        cells += [_average(name, table, row, by_row[row], found) for row in table.rows]
    if runs and not matched:
        known = sorted({row for name in names for row in paper.named(name).rows})
        labels = ", ".join(run.label for run in runs)
        raise ResultsError(
            f"no run is named as a row of the paper's tables ({', '.join(known)}): found {labels}; "
            "name them so, as in gks_avg=PATH."
        )
    return cells


def _fits(value: float, n: int) -> bool:
    count = math.floor(value * n / 100.0)
    return any(-0.0050001 <= 100.0 * k / n - value < 0.0100001 for k in (count, count + 1))


def _normal(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")


def _run_for(row: str, runs: Sequence[Run]) -> Run | None:
    for run in runs:
        # A single run is named after the given folder, which may be a parent of the setting's.
        names = [*run.label.split("/"), run.folder.name, run.folder.parent.name]
        if row in map(_normal, names):
            return run
    return None


def _cell(
    name: str, table: PaperTable, row: str, column: str, run: Run | None, family: Family
) -> PaperCell:
    paper = table.rows[row].values[table.columns.index(column)]
    known, guess = paper_n(table, column), inferred_n(table, row, column)
    blank = PaperCell(
        table=name,
        row=row,
        column=column,
        paper=paper,
        paper_n=known or guess,
        inferred=known is None and guess is not None,
    )
    task_name = f"{table.family(family)}_{column}"
    task = run.tasks.get(task_name) if run else None
    key = pick_key(task.metrics, "acc") if task else None
    if run is None or task is None or key is None:
        return blank
    value = task.metrics[key].value
    low, high = wilson_interval(round(value * task.n), task.n) if task.n else (0.0, 1.0)
    limited = task.original is not None and task.n < task.original
    return blank.model_copy(
        update={
            "run": run.label,
            "task": task_name,
            "ours": 100.0 * value,
            "n": task.n,
            "low": 100.0 * low,
            "high": 100.0 * high,
            "difference": 100.0 * value - paper,
            "other_model": not _same_model(table, run),
            "note": f"the first {task.n} of {task.original} items" if limited else "",
        }
    )


def _with_verdicts(
    cells: list[PaperCell], by_row: Mapping[str, Run | None], family: Family
) -> list[PaperCell]:
    """Test the cells that can be tested, as if the two runs were independent."""
    tests: dict[int, float] = {}
    for index, cell in enumerate(cells):
        run = by_row[cell.row]
        if cell.ours is None or cell.n is None or run is None:
            continue
        if reason := _untestable(cell, family):
            notes = ", ".join(filter(None, (cell.note, reason)))
            cells[index] = cell.model_copy(update={"note": notes})
            continue
        n = cell.paper_n or 0
        counts = (round(cell.paper * n / 100), n, round(cell.ours * cell.n / 100), cell.n)
        tests[index] = proportion_difference(*counts)[2]
    for index, p in zip(tests, holm(list(tests.values())), strict=True):
        cell = cells[index]
        agreement = "agrees" if p > 0.05 else "higher" if (cell.difference or 0.0) > 0 else "lower"
        cells[index] = cell.model_copy(update={"p_holm": p, "verdict": agreement})
    return cells


def _same_model(table: PaperTable, run: Run) -> bool:
    named = f"{run.model_args} {run.info.get('model_name', '')}".lower().replace("_", "-")
    return table.model in named or table.library in named


def _untestable(cell: PaperCell, family: Family) -> str:
    if family == "gks":
        return "another protocol than the table's"
    if cell.other_model:
        return "another model than the table's"
    return "" if cell.paper_n else "the paper's n is unknown"


def _average(
    name: str, table: PaperTable, row: str, run: Run | None, cells: Sequence[PaperCell]
) -> PaperCell:
    published = table.rows[row]
    note = ""
    if published.average_is_off:
        note = f"printed as {published.printed_avg:.2f}, which its row contradicts"
    average = PaperCell(table=name, row=row, column="average", paper=published.mean, note=note)
    ours = [cell for cell in cells if cell.row == row and cell.ours is not None]
    if run is None or len(ours) < len(table.columns):
        return average
    value = math.fsum(cell.ours or 0.0 for cell in ours) / len(ours)
    # The columns are independent samples: the variance of their plain mean.
    variance = math.fsum(
        (cell.ours or 0.0) * (100.0 - (cell.ours or 0.0)) / max(1, (cell.n or 1) - 1)
        for cell in ours
    )
    low, high = mean_interval(value, math.sqrt(variance) / len(ours))
    return average.model_copy(
        update={
            "run": run.label,
            "ours": value,
            "n": sum(cell.n or 0 for cell in ours),
            "low": low,
            "high": high,
            "difference": value - published.mean,
        }
    )
