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
    """Print tables and the notes below each, wide ones in blocks of columns."""
    for table in tables:
        cells = [[_stacked(cell, first=i == 0) for i, cell in enumerate(row)] for row in table.rows]
        title = plain(table.title)
        for columns in _blocks(table, cells, console.width):
            console.print(_grid(table, cells, columns, title))
            title = f"{plain(table.title)} (continued)"
        for note in table.notes:
            console.print(Text(plain(note), style="dim"))
        console.print()


def _grid(table: Table, cells: list[list[str]], columns: list[int], title: str) -> RichTable:
    grid = RichTable(
        title=Text(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False
    )
    for index in columns:
        grid.add_column(
            Text(plain(table.columns[index])),
            justify="right" if index and _numeric(table, index) else "left",
            no_wrap=bool(table.keys),
            overflow="fold",
        )
    for position, row in enumerate(cells):
        styled = [
            Text(row[index], style=_STYLES.get(table.marks.get((position, index), ""), ""))
            for index in columns
        ]
        grid.add_row(*styled)
    return grid


def _stacked(cell: str, first: bool) -> str:
    """Set a value above its interval, so that several runs fit side by side."""
    text = plain(cell)
    value, bracket, interval = text.partition(" [")
    return f"{value}\n[{interval}" if bracket and not first else text


def _blocks(table: Table, cells: list[list[str]], width: int) -> list[list[int]]:
    """Return which columns stand side by side; each block begins with the table's keys."""
    every = list(range(len(table.columns)))
    if not table.keys:
        return [every]
    sizes = [
        max(
            map(len, [plain(table.columns[i]), *(line for r in cells for line in r[i].split("\n"))])
        )
        for i in every
    ]
    keys = every[: table.keys]
    blocks: list[list[int]] = []
    block = list(keys)
    for index in every[table.keys :]:
        if len(block) > len(keys) and sum(sizes[i] + 3 for i in [*block, index]) > width:
            blocks.append(block)
            block = list(keys)
        block.append(index)
    return [*blocks, block]


def show(tables: list[Table]) -> None:
    """Print tables to the terminal."""
    print_tables(tables, Console())


def render(tables: list[Table], width: int = 160) -> str:
    """Return tables as plain text, for a file."""
    out = io.StringIO()
    print_tables(tables, Console(file=out, width=width))
    return out.getvalue()


def _numeric(table: Table, index: int) -> bool:
    return any(row[index][:1] in "0123456789+-<–" for row in table.rows if row[index])
