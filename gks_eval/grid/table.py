"""The tables that a grid prints: its size before it runs, and its accuracies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gks_eval.errors import ResultsError
from gks_eval.grid.cell import CELL_FILE
from gks_eval.library.starts import Starts
from gks_eval.util.json_file import read_or_empty
from gks_eval.util.result_files import RESULTS

if TYPE_CHECKING:
    from gks_eval.grid.grid_plan import GridPlan

__all__ = ["accuracy_table", "plan_lines", "plan_table", "print_whole"]


def accuracy_table(folders: Sequence[Path]) -> Table:
    """Tabulate accuracy with its standard error, in percent.

    Args:
        folders: Finished cells.

    Returns:
        A table. If all scores have the same number of items, the caption gives it; otherwise a
        column does, and each score of a task whose settings differ in it. The caption also warns of
        shared starts, see `gks_eval.library.starts`.

    Raises:
        ResultsError: A folder holds no readable results.
    """
    cells = [_read(folder) for folder in folders]
    tasks = list(dict.fromkeys(task for _, results, _, _ in cells for task in results))
    sizes = {task: {n[task] for _, _, n, _ in cells if task in n} for task in tasks}
    every = set().union(*sizes.values())
    shared, mixed = len(every) == 1, any(len(found) > 1 for found in sizes.values())
    items = f"n = {min(every)} items per task" if shared else "n items"
    caption = f"Accuracy in percent ± standard error; {items}."
    if mixed:
        caption += (
            " SETTINGS OF ONE TASK DIFFER IN n (in brackets): these scores are not comparable."
        )
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption=caption + _starts_note(cells),
        caption_justify="left",
    )
    table.add_column("task", no_wrap=True)
    if not shared:
        table.add_column("n", justify="right")
    for label, _, _, _ in cells:
        table.add_column(escape(label), justify="right", no_wrap=True)
    for task in tasks:
        found = sorted(sizes[task])
        count = [] if shared else ["-".join(map(str, found[:: len(found) - 1 or 1]))]
        scores = [
            _cell(results.get(task, {})) + (f" ({n[task]})" if len(found) > 1 and task in n else "")
            for _, results, n, _ in cells
        ]
        table.add_row(escape(task.removeprefix("gks_")), *count, *scores)
    return table


def plan_table(plan: GridPlan) -> Table:
    """Tabulate the size of a grid, one row per task."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("task", no_wrap=True)
    for name in ("items", "requests", "tokens", "distinct"):
        table.add_column(name, justify="right", no_wrap=True)
    sizes = list(plan.tasks.items())
    for task, size in sizes:
        counts = (size.items, size.requests, size.tokens, size.distinct)
        table.add_row(escape(task.removeprefix("gks_")), *(f"{count:,}" for count in counts))
    sums = (
        sum(getattr(size, name) for _, size in sizes) for name in ("items", "requests", "tokens")
    )
    table.add_section()
    table.add_row("together", *(f"{count:,}" for count in sums), f"{plan.distinct:,}")
    return table


def plan_lines(plan: GridPlan) -> list[str]:
    """Return the remaining work of a grid, as sentences."""
    done = len(plan.cells) - plan.left
    lines = [f"Settings: {plan.left} to run, {done} finished."]
    if not plan.left:
        return [*lines, "Nothing remains to be computed."]
    if plan.continued:
        lines.append(
            f"Generation requests: {plan.continued:,}; the numbers below do not include them."
        )
    lines.append(
        f"Remaining: {plan.left} x {plan.distinct:,} distinct tokens, about "
        f"{plan.tera_operations:,.3g} TFLOP (2 FLOP per weight and token, {plan.weights:,} "
        "weights)."
    )
    if plan.seconds is not None and plan.rate is not None:
        lines.append(
            f"Estimated: {_clock(plan.seconds)}, at the {plan.rate:,.0f} distinct tokens per "
            "second of the finished settings."
        )
    else:
        lines.append("Estimated time: available once a setting is finished.")
    return lines


def _clock(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def print_whole(table: Table) -> None:
    """Print a table, wider than the terminal if necessary: truncated numbers would mislead."""
    console = Console(emoji=False)
    needed = console.measure(table, options=console.options.update(width=10_000)).maximum
    Console(width=max(console.width, needed), emoji=False).print(table)


def _read(folder: Path) -> tuple[str, dict[str, Any], dict[str, int], Starts | None]:
    try:
        label = read_or_empty(folder / CELL_FILE)["label"]
        (path,) = folder.glob(RESULTS)
        content = read_or_empty(path)
        counts = {task: n["effective"] for task, n in content["n-samples"].items()}
        results = {task: dict(metrics) for task, metrics in content["results"].items()}
        starts = content["config"].get("gks_eval", {}).get("starts")
        return str(label), results, counts, Starts.of_record(starts) if starts else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ResultsError(
            f"{folder} holds no readable results; delete it and run again."
        ) from None


def _starts_note(cells: Sequence[tuple[str, Any, Any, Starts | None]]) -> str:
    shares = [
        f"{starts.left_of_shared:.0%} ({escape(label)})"
        for label, _, _, starts in cells
        if starts and starts.shared
    ]
    if not shares:
        return ""
    return (
        "\nShared starts: subtraction from the factors leaves "
        f"{', '.join(shares)} of the experts' updates; preset=exact does not depend on the starts."
    )


def _cell(metrics: dict[str, Any]) -> str:
    for metric in ("acc", "exact_match"):
        for key, value in metrics.items():
            if key.startswith(f"{metric},") and isinstance(value, (int, float)):
                error = metrics.get(key.replace(",", "_stderr,", 1))
                spread = f"±{100 * error:.1f}" if isinstance(error, (int, float)) else ""
                return f"{100 * value:.1f}{spread}"
    return ""
