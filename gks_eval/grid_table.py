"""The table that a finished grid prints: a row a setting, a column a task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from gks_eval.errors import ResultsError
from gks_eval.grid import CELL_FILE

__all__ = ["accuracy_table"]


def accuracy_table(folders: Sequence[Path]) -> Table:
    """Tabulate accuracy with its standard error, in percent; n stands under each task's name.

    Args:
        folders: Finished cells.

    Raises:
        ResultsError: A folder holds no readable results.
    """
    cells = [_read(folder) for folder in folders]
    columns = list(dict.fromkeys(task for _, results, _ in cells for task in results))
    sizes: dict[str, int] = {task: n for _, _, counts in cells for task, n in counts.items()}
    table = Table(caption="accuracy in percent ± standard error; n items")
    table.add_column("setting", no_wrap=True)
    for task in columns:
        count = f"\nn={sizes[task]}" if task in sizes else ""
        table.add_column(task.removeprefix("gks_") + count, justify="right")
    for label, results, _ in cells:
        table.add_row(label, *(_cell(results.get(task, {})) for task in columns))
    return table


def _read(folder: Path) -> tuple[str, dict[str, Any], dict[str, int]]:
    try:
        label = json.loads((folder / CELL_FILE).read_text(encoding="utf-8"))["label"]
        (path,) = folder.glob("results_*.json")
        content = json.loads(path.read_text(encoding="utf-8"))
        counts = {task: n["effective"] for task, n in content["n-samples"].items()}
        return label, content["results"], counts
    except (OSError, ValueError, KeyError, TypeError):
        raise ResultsError(f"{folder} holds no readable results; delete it and run anew.") from None


def _cell(metrics: dict[str, Any]) -> str:
    for metric in ("acc", "exact_match"):
        for key, value in metrics.items():
            if key.startswith(f"{metric},") and isinstance(value, (int, float)):
                error = metrics.get(key.replace(",", "_stderr,", 1))
                spread = f" ± {100 * error:.1f}" if isinstance(error, (int, float)) else ""
                return f"{100 * value:.1f}{spread}"
    return ""
