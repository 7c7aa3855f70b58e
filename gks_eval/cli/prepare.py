"""`gks-eval prepare`: the vectors that a router needs, made from the experts' data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gks_eval.cli import _complete
from gks_eval.errors import UsageError

if TYPE_CHECKING:
    from gks_eval.library.library import Library
    from gks_eval.training.jobs import TrainingPlan
    from gks_eval.training.vector_plan import VectorPlan

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add ``prepare`` to the application."""
    app.command("prepare")(_prepare)


def _prepare(
    library: Annotated[
        str,
        typer.Argument(help="Bundled name, folder or hub id.", autocompletion=_complete.libraries),
    ],
    router: Annotated[str, typer.Option(help="phatgoose or mean_activation.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="A recipe.yaml, its folder or a bundled library's name; or EXPERT=FILE.jsonl, "
            "once per expert. Default: the library's own recipe.yaml."
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, help="Rows per expert at most; default: 10, for phatgoose steps x batch size."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps (phatgoose).")] = 100,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per step (phatgoose).")] = 4,
    learning_rate: Annotated[
        float, typer.Option(min=0.0, max=1e4, help="Constant learning rate (phatgoose).")
    ] = 1e-3,
    seed: Annotated[
        int,
        typer.Option(min=0, max=2**31 - 1, help="Seed of the order of the rows (phatgoose)."),
    ] = 0,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16; default: the recipe's, or float32."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and list the experts; make nothing.")
    ] = False,
) -> None:
    """Make the vectors of a router from the experts' data; the same command again resumes."""
    from gks_eval.cli._bar import progress_bar, working

    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise UsageError(f"--dtype {dtype} is unknown; use float32, bfloat16 or float16.")
    with working("reading the library and its data"):
        from gks_eval.cli._training_view import quiet_training
        from gks_eval.library.load import load_library
        from gks_eval.training.vector_plan import VectorOptions, plan_vectors
        from gks_eval.training.vectors import prepare

        quiet_training()
        loaded = load_library(library)
        options = VectorOptions(samples, steps, batch_size, learning_rate, seed, dtype)
        plan = plan_vectors(loaded, router, _data(loaded, data or [], seed), options)
    _show(plan)
    if dry_run:
        typer.echo(f"{plan.folder}: nothing made (--dry-run)")
        return
    waiting = [job for job in plan.jobs if not job.done]
    each = steps if router == "phatgoose" else 0
    total = sum(each or job.data.report.rows for job in waiting)
    with progress_bar(router, total) as advance:
        prepare(plan, on_step=advance)
    typer.echo(f"{plan.folder}: {len(waiting)} made, {len(plan.jobs) - len(waiting)} kept")


def _data(library: Library, given: list[str], seed: int) -> TrainingPlan:
    """Return the jobs of the recipe or of the files that were given."""
    from gks_eval.cli._recipe import recipe_of
    from gks_eval.training.jobs import plan_of
    from gks_eval.training.recipe import Recipe

    parts = [part.partition("=") for part in given]
    files = {name: file for name, _, file in parts if file and name in library.experts}
    if not files and len(given) < 2:
        return recipe_of(library, given[0] if given else None, "--data")
    if len(files) != len(given):
        raise UsageError("--data: give one recipe, or EXPERT=FILE.jsonl once for every expert.")
    recipe = {
        "base_model": library.config.base_model,
        "adapter": {"targets": ["all"]},  # unused: only the gates are trained
        "seed": seed,
        "experts": {
            "format": _format(library),
            "members": {name: {"file": str(Path(file).resolve())} for name, file in files.items()},
        },
    }
    return plan_of(Recipe.model_validate(recipe), Path())


def _format(library: Library) -> str:
    from gks_eval.model.base_model import resolve_base
    from gks_eval.model.load_base import load_tokenizer

    tokenizer = load_tokenizer(resolve_base(manifest=library.config))
    return "plain" if tokenizer.chat_template is None else "chat"


def _show(plan: VectorPlan) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from gks_eval.grid.table import print_whole

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("expert", "rows", "tokens", "steps", "state"):
        right = column not in ("expert", "state")
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    steps = str(plan.options.steps) if plan.router == "phatgoose" else "-"
    for job in plan.jobs:
        report = job.data.report
        state = "done" if job.done else "to be made"
        table.add_row(job.name, str(report.rows), str(report.tokens), steps, state)
    print_whole(table)
