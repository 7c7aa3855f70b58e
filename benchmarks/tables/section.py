"""A table of results, and how its numbers are written."""

from __future__ import annotations

from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.record import Timing

__all__ = ["TableSection", "empty", "in_seconds", "milliseconds", "short"]


@dataclass(frozen=True)
class TableSection:
    """A table with a title above and notes below."""

    title: str
    table: Table
    notes: str = ""


def empty(columns: str, *, words: int = 1) -> Table:
    """Return a table without rows; the first `words` columns are left-aligned."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, column in enumerate(columns.split("|")):
        table.add_column(column, justify="left" if number < words else "right", no_wrap=True)
    return table


def short(number: float) -> str:
    """Return three significant digits, or all digits of a large number."""
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}"


def milliseconds(timing: Timing) -> str:
    """Return median and range."""
    low, middle, high = (
        short(1000 * seconds) for seconds in (timing.minimum, timing.median, timing.maximum)
    )
    return f"{middle} ({low}-{high})"


def in_seconds(timing: Timing) -> str:
    """Return median and range, or the only value."""
    if len(timing.rounds) == 1:
        return f"{timing.median:.2f}"
    return f"{timing.median:.2f} ({timing.minimum:.2f}-{timing.maximum:.2f})"
