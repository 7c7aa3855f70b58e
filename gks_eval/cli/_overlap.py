"""`gks-eval library overlap`: whether items of tasks occur in a library's training rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from gks_eval.cli import _complete
from gks_eval.cli._grid_options import named_tasks
from gks_eval.util.files import check_output

__all__ = ["overlap"]


def overlap(
    library: Annotated[
        str,
        typer.Argument(help="Bundled name, folder or hub id.", autocompletion=_complete.libraries),
    ],
    task: Annotated[
        str,
        typer.Option(
            "--tasks",
            "--task",
            "-t",
            help="Comma-separated names of tasks or groups.",
            autocompletion=_complete.tasks,
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Option(
            help="The recipe; default: the library's own recipe.yaml.",
            autocompletion=_complete.recipes,
        ),
    ] = None,
    n: Annotated[int, typer.Option("--ngram", min=2, help="Words of an n-gram.")] = 13,
    limit: Annotated[
        int | None, typer.Option("--limit", "-L", min=1, help="Items per task; default: all.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="JSON file for all numbers (overlap.json)."),
    ] = None,
    include_path: Annotated[
        list[str] | None,
        typer.Option("--include-path", "--include_path", help="Further folders of task YAMLs."),
    ] = None,
) -> None:
    """Report the share of each task's items with n-grams of a library's training rows."""
    names = named_tasks(task)
    if output is not None:
        check_output(output)
    from gks_eval.cli._bar import progress_bar, working
    from gks_eval.cli._lm_eval import lm_eval_errors
    from gks_eval.cli._recipe import recipe_of

    with working("reading the library and the tasks"):
        from gks_eval.library.load import load_library
        from gks_eval.training.overlap import overlap_record, training_texts
        from gks_eval.util.files import write_text
        from gks_eval.util.quiet import quiet_libraries
        from gks_eval.util.schemas import OVERLAP
        from gks_eval.util.versions import versions

        quiet_libraries()
        loaded = load_library(library)
        plan = recipe_of(loaded, recipe)
        with lm_eval_errors():
            items = _items(names, include_path or [], limit)
    texts = {job.key: training_texts(plan, job) for job in plan.jobs}
    with progress_bar("comparing", len(texts)) as advance:
        found = overlap_record(items, texts, n, advance)
    if output is not None:
        record = {
            "schema": OVERLAP,
            "library": loaded.name,
            "n": n,
            "tasks": found,
            "provenance": {
                "content_hash": loaded.content_hash,
                "recipe": plan.recipe_hash,
                **versions(),
            },
        }
        write_text(output, json.dumps(record, indent=1) + "\n")
    _print(found, n)


def _items(names: list[str], include_paths: list[str], limit: int | None) -> dict[str, Any]:
    from gks_eval.grid import task_manager
    from gks_eval.tasklib.item_words import item_words
    from gks_eval.tasklib.local_data import local_data

    with local_data():
        tasks = task_manager(names, include_paths).load(names)["tasks"]
        return {name: item_words(task, limit) for name, task in tasks.items()}


def _print(found: dict[str, Any], n: int) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from gks_eval.grid.table import print_whole

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left")
    table.caption = (
        f"Percent of items that share {n} words in a row with a training row, and of items whose "
        f"whole question occurs in one. Short: items of fewer than {n} words, which share none."
    )
    table.add_column("task", no_wrap=True)
    for name in ("items", "short", f"{n}-gram", "question"):
        table.add_column(name, justify="right")
    table.add_column("most from")
    for name, one in found.items():
        counts = {key: (pair["ngram"], pair["question"]) for key, pair in one["adapters"].items()}
        most = max(counts, key=lambda key: counts[key], default="-")
        table.add_row(
            name,
            str(one["items"]),
            str(one["short"]),
            f"{100 * one['ngram']:.1f}",
            f"{100 * one['question']:.1f}",
            most if any(counts.get(most, ())) else "-",
        )
    print_whole(table)
