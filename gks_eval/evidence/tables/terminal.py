"""Tables in a terminal."""

from __future__ import annotations

import io
import re

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from gks_eval.evidence.tables.content import Table
from gks_eval.evidence.tables.escape import plain

__all__ = ["print_tables", "render", "show"]

_STYLES = {"best": "bold", "second": "underline"}


def print_tables(tables: list[Table], console: Console) -> None:
    """Print tables with their notes, wide tables in blocks of columns or with one line per run."""
    for wide in tables:
        table = wide
        blocks = _blocks(table, _cells(table), console.width)
        if wide.narrow and len(blocks) > 1:
            table = wide.narrow
        left_out: list[str] = []
        first: int | None = None
        if table.spare is not None:
            columns, first = _kept(table, console.width)
            blocks = [columns]
            left_out = table.columns[len(columns) :]
        title = plain(table.title)
        for columns in blocks:
            console.print(_grid(table, columns, title, first))
            title = f"{plain(table.title)} (continued)"
        notes = table.sentences(left_out)
        if left_out:
            left = ", ".join(left_out)
            notes.append(f"Left out at this width: {left}; a wider terminal shows them.")
        for note in notes:
            console.print(Text(plain(note), style="dim"))
        console.print()


def _cells(table: Table) -> list[list[str]]:
    stack = table.spare is None
    return [
        [_stacked(cell) if stack and i >= max(1, table.keys) else plain(cell)
         for i, cell in enumerate(row)]
        for row in table.rows
    ]  # fmt: skip


def _grid(table: Table, columns: list[int], title: str, first: int | None) -> RichTable:
    tight = first is not None
    grid = RichTable(
        title=Text(title),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0) if tight else (0, 1),
        pad_edge=False,
    )
    for index in columns:
        grid.add_column(
            Text(plain(table.columns[index])),
            justify="right" if table.has_numbers(index) else "left",
            no_wrap=bool(table.keys) and not (tight and not index),
            overflow="fold",
            max_width=first if not index else None,
        )
    for position, row in enumerate(_cells(table)):
        if first is not None:
            row = [_broken(row[0], first), *row[1:]]
        styled = [
            Text(row[index], style=_STYLES.get(table.marks.get((position, index), ""), ""))
            for index in columns
        ]
        grid.add_row(*styled)
    return grid


def _kept(table: Table, width: int) -> tuple[list[int], int]:
    """Return the columns that fit, and the remaining width of the first column."""
    sizes = _sizes(table, _cells(table))
    count = len(sizes)
    fewest = count - (table.spare or 0)
    # Each column needs two characters more than its text, and the table's edges two.
    while count > fewest and sizes[0] + sum(size + 2 for size in sizes[1:count]) + 2 > width:
        count -= 1
    rest = sum(size + 2 for size in sizes[1:count]) + 2
    return list(range(count)), min(sizes[0], max(8, width - rest))


def _broken(name: str, width: int) -> str:
    """Break a name after `_`, `-`, `/` or a space, into lines of at most `width` letters.

    A part that is longer than a line begins on the line before it; the terminal wraps it.
    """
    lines = [""]
    for part in re.findall(r"\s*[^_/ -]*[_/ -]?", name):
        if len(part) <= width < len(lines[-1]) + len(part):
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _stacked(cell: str) -> str:
    """Put the interval below its value, so that several runs fit side by side."""
    text = plain(cell)
    value, bracket, interval = text.partition(" [")
    return f"{value}\n[{interval}" if bracket else text


def _sizes(table: Table, cells: list[list[str]]) -> list[int]:
    return [
        max(len(plain(name)), *(len(line) for row in cells for line in row[i].split("\n")), 0)
        for i, name in enumerate(table.columns)
    ]


def _blocks(table: Table, cells: list[list[str]], width: int) -> list[list[int]]:
    """Return the blocks of columns that fit side by side, each with the table's keys first."""
    every = list(range(len(table.columns)))
    if not table.keys:
        return [every]
    sizes = _sizes(table, cells)
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
    print_tables(tables, Console(emoji=False))


def render(tables: list[Table], width: int = 160) -> str:
    """Return tables as plain text, for a file."""
    out = io.StringIO()
    print_tables(tables, Console(file=out, width=width, emoji=False))
    return out.getvalue()
