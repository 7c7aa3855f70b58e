"""Running and planning a grid, with output for a terminal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gks_eval.cli._lm_eval import lm_eval_errors

if TYPE_CHECKING:
    from gks_eval.grid import Grid
    from gks_eval.grid.on_ray import RayOptions

__all__ = ["plan", "run"]


def plan(grid: Grid) -> None:
    """Check a grid and print its size; compute nothing."""
    from gks_eval.grid.grid_plan import plan_grid
    from gks_eval.grid.table import plan_lines, plan_table, print_whole
    from gks_eval.util.process_group import ProcessGroup
    from gks_eval.util.quiet import quiet_libraries

    group = ProcessGroup()
    if not group.is_main:
        return  # one process counts for all
    group.leave()
    quiet_libraries()
    with lm_eval_errors():
        found = plan_grid(grid)
    print_whole(plan_table(found))
    for line in plan_lines(found):
        typer.echo(line)


def run(
    grid: Grid, on_start: Callable[[], None] | None = None, ray: RayOptions | None = None
) -> list[Path] | None:
    """Run a grid and print each setting's progress on standard error.

    Args:
        grid: What to run.
        on_start: Called in process 0 after all checks, before anything is computed.
        ray: How to divide it among the workers of a cluster; None runs it here.

    Returns:
        The settings' folders; None in all processes but process 0.
    """
    from rich.console import Console

    from gks_eval.cli._bar import working

    console = Console(stderr=True, emoji=False)
    total = len(grid.settings)
    seen: dict[str, int] = {}
    waiting = ExitStack()
    waiting.enter_context(working("reading libraries and tasks"))

    from gks_eval.grid import Cell, run_grid
    from gks_eval.grid.on_ray import run_grid_on_ray
    from gks_eval.util.process_group import ProcessGroup
    from gks_eval.util.quiet import quiet_libraries

    quiet_libraries()

    def report(cell: Cell, state: str) -> None:
        waiting.close()
        if not seen and on_start is not None:
            on_start()
        if state != "done" and cell.label not in seen:
            seen[cell.label] = len(seen) + 1
        if state != "done" or ray is not None:
            console.print(
                f"[{seen[cell.label]}/{total}] {cell.label}: {state}", markup=False, highlight=False
            )

    group = ProcessGroup()
    with waiting, lm_eval_errors():
        if ray is not None:
            folders = run_grid_on_ray(grid, ray, report)
        else:
            folders = run_grid(grid, report if group.is_main else None)
    return folders if group.is_main else None
