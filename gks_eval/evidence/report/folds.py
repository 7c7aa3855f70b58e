"""Arranges a comparison for the page: averages first, then the tasks of each group in a fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from gks_eval.evidence.comparison import Comparison, Row
from gks_eval.evidence.tables.content import Table

__all__ = ["Body", "Fold", "Sheet", "folds", "sheet"]

FEW = 10  # up to this many tasks are shown unfolded


@dataclass(frozen=True, slots=True)
class Fold:
    """A part of a comparison.

    Attributes:
        title: The group's name; empty for the averages and for tasks without a group.
        comparison: The same comparison with fewer rows.
        closed: Whether the reader opens it.
    """

    title: str
    comparison: Comparison
    closed: bool


def folds(comparison: Comparison) -> list[Fold]:
    """Return the averages, then each group's tasks; a task is in its smallest group only."""
    rows = comparison.rows
    groups = [row for row in rows if row.kind == "group"]
    home: dict[str, str] = {}
    for group in sorted(groups, key=lambda group: len(group.tasks)):
        for task in group.tasks:
            home.setdefault(task, group.name)
    tasks = [row for row in rows if row.kind == "task"]
    closed = bool(groups) and len(tasks) > FEW
    names = dict.fromkeys([*(group.name for group in groups), ""])
    parts = [(name, [row for row in tasks if home.get(row.name, "") == name]) for name in names]
    other = "tasks in no group" if groups else ""
    found = [Fold(name or other, _part(comparison, part), closed) for name, part in parts if part]
    return [Fold("", _part(comparison, groups), False), *found] if groups else found


def _part(comparison: Comparison, rows: list[Row]) -> Comparison:
    return comparison.model_copy(update={"rows": rows})


@dataclass(frozen=True, slots=True)
class Body:
    """The rows that share a name.

    Attributes:
        name: The first cell of all of them.
        rows: The other cells, each with its classes.
    """

    name: str
    rows: list[list[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table that names each task once.

    Attributes:
        title: As in `Table`.
        columns: As in `Table`.
        words: By column, ``words`` where it has names or words, else empty.
        bodies: The rows by name.
        notes: As in `Table`.
    """

    title: str
    columns: Sequence[str]
    words: Sequence[str]
    bodies: list[Body]
    notes: Sequence[str]


def sheet(table: Table) -> Sheet:
    """Return the table with neighbouring rows of one name merged under that name."""
    words = ["" if table.has_numbers(j) else "words" for j in range(len(table.columns))]
    marked = [
        (
            row[0],
            [(cell, f"{words[j]} {table.marks.get((i, j), '')}".strip())
             for j, cell in enumerate(row) if j],
        )
        for i, row in enumerate(table.rows)
    ]  # fmt: skip
    bodies = [
        Body(name, [cells for _, cells in rows]) for name, rows in groupby(marked, lambda r: r[0])
    ]
    return Sheet(table.title, table.columns, words, bodies, table.sentences())
