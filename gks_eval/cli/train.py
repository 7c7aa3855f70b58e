"""`gks-eval train`: trains a library of adapters from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gks_eval.cli import _complete

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add `train` to the application."""
    app.command("train")(train)


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe.yaml, its folder, or the name of a bundled library that has one.",
            autocompletion=_complete.recipes,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the library; default: the recipe's folder."),
    ] = None,
    only: Annotated[
        str, typer.Option(help="Comma-separated names of adapters to train: en,cluster_3.")
    ] = "",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check everything, estimate steps and memory; train nothing."
        ),
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(help="Train on a Ray cluster: its address, or `local` to start one."),
    ] = None,
    gpus: Annotated[float, typer.Option(help="GPUs to request from Ray per adapter.")] = 0.0,
    loss_table: Annotated[
        bool,
        typer.Option("--loss-table", help="Measure every adapter on every other's held-out rows."),
    ] = False,
) -> None:
    """Train the adapters of a recipe; the same command resumes where it stopped."""
    from gks_eval.cli._bar import working
    from gks_eval.errors import UsageError

    recipe_file = find_recipe(recipe)
    if output is None and not Path(recipe).exists():
        raise UsageError(f"{recipe} is bundled: give a folder for the library with --output.")
    folder = output or recipe_file.resolve().parent
    names = [name.strip() for name in only.split(",") if name.strip()]
    if only and not names:
        raise UsageError("--only names no adapter; leave it out to train all of them.")
    with working("reading the recipe and its data"):
        from gks_eval.cli._training_view import TrainingView, quiet_training, show_estimate
        from gks_eval.training.estimate import estimate
        from gks_eval.training.jobs import make_plan
        from gks_eval.training.loss_table import check_measurable
        from gks_eval.training.whole_library import train_library
        from gks_eval.util.ray_cluster import check_ray

        plan = make_plan(recipe_file)
        if loss_table:
            check_measurable(plan, folder, plan.select(names))
        if ray is not None:
            check_ray()
        if dry_run:
            quiet_training()
        expected = estimate(plan, names, folder, here=ray is None) if dry_run else None
    if expected is not None:
        show_estimate(expected)
        if expected.faults:
            raise expected.faults[0]
        return
    with TrainingView() as view:
        if ray is None:
            outcome = train_library(plan, folder, only=names, callback=view)
        else:
            from gks_eval.training.fan_out import train_on_ray

            outcome = train_on_ray(
                recipe_file, folder, only=names, address=ray, gpus=gpus, report=typer.echo
            )
    view.table(outcome, folder)
    if loss_table:
        from gks_eval.training.loss_table import measure_losses

        measure_losses(plan, folder, report=typer.echo)


def find_recipe(recipe: str) -> Path:
    """Return a recipe's file, given itself, its folder, or a bundled library's name."""
    from gks_eval.errors import UsageError
    from gks_eval.util.paths import RECIPE, adapters_dir, bundled

    names = bundled(RECIPE)
    for place in (Path(recipe), Path(recipe) / RECIPE):
        if place.is_file():
            return place
    if recipe in names:
        return adapters_dir() / recipe / RECIPE
    raise UsageError(
        f"{recipe or repr(recipe)} is not a recipe; give a recipe.yaml or a bundled one: "
        f"{', '.join(names)}."
    )
