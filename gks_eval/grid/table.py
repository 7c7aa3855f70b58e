"""The table that a finished grid prints: a row a task, a column a setting."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gks_eval.errors import ResultsError
from gks_eval.grid.cell import CELL_FILE

__all__ = ["accuracy_table", "print_whole"]


def accuracy_table(folders: Sequence[Path]) -> Table:
    """Tabulate accuracy with its standard error, in percent.

    Args:
        folders: Finished cells.

    Returns:
        A table with the number of items in its caption where all tasks have as many, else in a
        column of its own.

    Raises:
        ResultsError: A folder holds no readable results.
    """
    cells = [_read(folder) for folder in folders]
    tasks = list(dict.fromkeys(task for _, results, _ in cells for task in results))
    sizes = {task: n for _, _, counts in cells for task, n in counts.items()}
    shared = len(set(sizes.values())) == 1
    items = f"n = {next(iter(sizes.values()))} items a task" if shared else "n items"
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption=f"Accuracy in percent ± standard error; {items}.",
        caption_justify="left",
    )
    table.add_column("task", no_wrap=True)
    if not shared:
        table.add_column("n", justify="right")
    for label, _, _ in cells:
        table.add_column(escape(label), justify="right", no_wrap=True)
    for task in tasks:
        count = [] if shared else [str(sizes.get(task, ""))]
        scores = [_cell(results.get(task, {})) for _, results, _ in cells]
        table.add_row(escape(task.removeprefix("gks_")), *count, *scores)
    return table


def print_whole(table: Table) -> None:
    """Print a table, wider than the terminal where it must be: cut numbers would mislead."""
    console = Console()
    needed = console.measure(table, options=console.options.update(width=10_000)).maximum
    Console(width=max(console.width, needed)).print(table)


def _read(folder: Path) -> tuple[str, dict[str, Any], dict[str, int]]:
    try:
        label = json.loads((folder / CELL_FILE).read_text(encoding="utf-8"))["label"]
        (path,) = folder.glob("results_*.json")
        content = json.loads(path.read_text(encoding="utf-8"))
        counts = {task: n["effective"] for task, n in content["n-samples"].items()}
        results = {task: dict(metrics) for task, metrics in content["results"].items()}
        return str(label), results, counts
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ResultsError(f"{folder} holds no readable results; delete it and run anew.") from None


def _cell(metrics: dict[str, Any]) -> str:
    for metric in ("acc", "exact_match"):
        for key, value in metrics.items():
            if key.startswith(f"{metric},") and isinstance(value, (int, float)):
                error = metrics.get(key.replace(",", "_stderr,", 1))
                spread = f"±{100 * error:.1f}" if isinstance(error, (int, float)) else ""
                return f"{100 * value:.1f}{spread}"
    return ""
