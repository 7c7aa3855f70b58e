"""Published cells next to your own, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gks_eval.evidence.paper import Family, PaperCell, PaperTables
from gks_eval.evidence.tables.content import Table

__all__ = ["paper_tables"]

_INFERRED: Final = (
    "~: inferred; the paper names no n, and most values of the column are counts out of this many"
)


def paper_tables(paper: PaperTables, cells: Sequence[PaperCell], family: Family) -> list[Table]:
    """Return one table for each published one."""
    tables = []
    for name in dict.fromkeys(cell.table for cell in cells):
        of_table = [cell for cell in cells if cell.table == name]
        ours = any(cell.ours is not None for cell in of_table)
        tables.append(_beside(of_table) if ours else _published(paper, name, of_table))
        table = paper.tables[name]
        ours_are = f"; ours: {table.family(family)}_*" if ours else ""
        tables[-1] = Table(
            f"{table.title}{ours_are}",
            tables[-1].columns,
            tables[-1].rows,
            {},
            [*tables[-1].notes, f"Published values: {table.source or paper.source}."],
        )
    return tables


def _published(paper: PaperTables, name: str, cells: Sequence[PaperCell]) -> Table:
    table = paper.tables[name]
    known: dict[str, str] = {}
    for cell in cells:
        if cell.paper_n is not None or cell.column not in known:
            known[cell.column] = _paper_n(cell)
    rows = [
        [column, *(f"{row.values[index]:.2f}" for row in table.rows.values()), known[column]]
        for index, column in enumerate(table.columns)
    ]
    means = [f"{row.mean:.2f}{'*' * row.average_is_off}" for row in table.rows.values()]
    rows.append(["average", *means, "–"])
    notes = ["Averages are recomputed; n: items of the full split, ? where it is not known"]
    if table.inferred:
        notes.append(_INFERRED)
    notes += [f"* {cell.row}: {cell.note}" for cell in cells if cell.note]
    return Table("", ["set", *table.rows, "n"], rows, {}, [f"{note}." for note in notes])


def _beside(cells: Sequence[PaperCell]) -> Table:
    rows = []
    remarks: dict[str, int] = {}
    for cell in cells:
        mark = f" [{remarks.setdefault(cell.note, len(remarks) + 1)}]" if cell.note else ""
        rows.append(
            [
                f"{cell.row} {cell.column}{mark}",
                f"{cell.paper:.2f}",
                _paper_n(cell),
                "–" if cell.ours is None else f"{cell.ours:.2f} [{cell.low:.2f}, {cell.high:.2f}]",
                str(cell.n or "–"),
                "–" if cell.difference is None else f"{cell.difference:+.2f}",
                "–" if cell.p_holm is None else f"{cell.p_holm:.4f}",
                cell.verdict or "–",
            ]
        )
    columns = ["cell", "published", "its n", "ours", "n", "points", "p Holm", "verdict"]
    notes = [
        "Verdict at 5%, unpaired score test, Holm over the table; only where the published n is "
        "known. agrees: no significant difference.",
        *(f"[{mark}] {note}." for note, mark in remarks.items()),
    ]
    if any(cell.inferred for cell in cells):
        notes.append(f"{_INFERRED}.")
    return Table("", columns, rows, {}, notes)


def _paper_n(cell: PaperCell) -> str:
    return "?" if cell.paper_n is None else f"{'~' * cell.inferred}{cell.paper_n}"
