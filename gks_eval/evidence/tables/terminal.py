"""Tables in a terminal."""

from __future__ import annotations

import io

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from gks_eval.evidence.tables.content import Table
from gks_eval.evidence.tables.escape import plain

__all__ = ["print_tables", "render", "show"]

_STYLES = {"best": "bold", "second": "underline"}


def print_tables(tables: list[Table], console: Console) -> None:
    """Print tables and the notes below each."""
    for table in tables:
        grid = RichTable(
            title=Text(plain(table.title)),
            title_justify="left",
            box=SIMPLE_HEAD,
            collapse_padding=True,
        )
        names = [row[0] for row in table.rows]
        for index, column in enumerate(table.columns):
            left = index == 0 or not _numeric(table, index)
            grid.add_column(
                Text(plain(column)),
                justify="left" if left else "right",
                no_wrap=not left,
                # Names are to be read whole where the terminal is not much too narrow.
                min_width=min(20, max(map(len, names), default=0)) if index == 0 else None,
                overflow="fold",
            )
        for position, row in enumerate(table.rows):
            cells = []
            for index, cell in enumerate(row):
                style = _STYLES.get(table.marks.get((position, index), ""), "")
                # A value stands over its interval, so that several runs fit side by side.
                value, bracket, interval = plain(cell).partition(" [")
                lines = f"{value}\n[{interval}" if bracket and index else plain(cell)
                cells.append(Text(lines, style=style))
            grid.add_row(*cells)
        console.print(grid)
        for note in table.notes:
            console.print(Text(plain(note), style="dim"))
        console.print()


def show(tables: list[Table]) -> None:
    """Print tables to the terminal."""
    print_tables(tables, Console())


def render(tables: list[Table], width: int = 160) -> str:
    """Return tables as plain text, for a file."""
    out = io.StringIO()
    print_tables(tables, Console(file=out, width=width))
    return out.getvalue()


def _numeric(table: Table, index: int) -> bool:
    return any(row[index][:1] in "0123456789+-<" for row in table.rows if row[index])
