"""`gks-eval tasks` and `gks-eval lint`: where the tasks are, and whether their data are sound."""

from __future__ import annotations

from typing import Annotated

import typer

from gks_eval.cli import _complete

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("tasks")(tasks)
    app.command("lint")(lint)


def tasks() -> None:
    """Print the folder of the tasks, for lm-eval's --include_path."""
    from gks_eval.util.paths import tasks_dir

    print(tasks_dir())


def lint(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TASK",
            help="Tasks or groups of the package; default: all.",
            autocompletion=_complete.task,
        ),
    ] = None,
) -> None:
    """Report items whose gold answer is no choice, or with an empty, duplicated or single option.

    Ends with exit code 8 when a data set could not be loaded, else with 6 when there is a faulty
    item. With GKS_DATA_ROOT=FOLDER, data sets are read from FOLDER/org/name.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table

    from gks_eval.cli._bar import working

    with working("reading items"):
        from gks_eval.tasklib.faults import FaultKind
        from gks_eval.tasklib.lint import DEFAULT_TASKS, lint_tasks, raise_for_faults

        lints = lint_tasks(names or list(DEFAULT_TASKS))
    headings = ("items", *(kind.value.split()[0] for kind in FaultKind))
    columns = (Column(heading, justify="right") for heading in headings)
    table = Table(Column("task", overflow="fold"), *columns, box=box.SIMPLE)
    for found in lints:
        counts = [str(found.items), *(str(found.count(kind)) for kind in FaultKind)]
        table.add_row(found.task, *(counts if found.unread is None else ["-"] * len(counts)))
    console = Console(emoji=False)
    console.print(table)
    for found in lints:
        if found.unread is not None:
            line = f"{found.task}: not read: {found.unread}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        for index, faults in found.faults.items():
            for fault in faults:
                line = f"{found.task} item {index}: {fault.kind.value} ({fault.detail})"
                console.print(line, markup=False, highlight=False, soft_wrap=True)
    raise_for_faults(lints)
