"""`gks-eval grid` and `gks-eval demo`: many settings with one load of the base."""

from __future__ import annotations

import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gks_eval.cli import _complete
from gks_eval.cli import _grid_options as options
from gks_eval.cli._grid_run import plan, run
from gks_eval.errors import UsageError
from gks_eval.util.ray_cluster import check_ray

if TYPE_CHECKING:
    from gks_eval.grid import Grid
    from gks_eval.grid.on_ray import RayOptions

__all__ = ["register"]

DEMO_SETTINGS = "base,arrow,gks:en,gks:de,gks:fr,gks:avg"


def register(app: typer.Typer) -> None:
    """Add ``grid`` and ``demo`` to the application."""
    app.command("grid")(_grid)
    app.command("demo")(_demo)


def _grid(
    settings: Annotated[
        str,
        typer.Option(
            help="Comma-separated: base, gks:en+de, gks:avg, expert:NAME, merge:NAME, or a router "
            "such as arrow; arguments of the model after ';', as in 'gks:avg;rule=delta;top_k=5'; "
            "a short name before '=', as in 'delta=gks:avg;rule=delta'. `gks-eval methods` lists "
            "routers, merges and arguments.",
            autocompletion=_complete.settings,
        ),
    ],
    tasks: options.Tasks,
    output: options.Output,
    library: options.Library = None,
    preset: Annotated[
        str | None,
        typer.Option(help="The same as ';preset=...' after every setting that has none."),
    ] = None,
    pretrained: options.Pretrained = None,
    model_args: options.ModelArgs = "",
    batch_size: options.BatchSize = "8",
    device: options.Device = None,
    limit: options.Limit = None,
    samples: options.Samples = None,
    num_fewshot: options.Shots = None,
    apply_chat_template: options.ChatTemplate = False,
    include_path: options.IncludePath = None,
    dry_run: options.DryRun = False,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile", help="Measure where each setting spends its time; `report` shows it."
        ),
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(help="Run on a Ray cluster: its address, or `local` to start one."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --ray: number of workers; default: all that --gpus allows, or 1 per host.",
        ),
    ] = None,
    gpus: Annotated[
        float | None, typer.Option(min=0.0, help="With --ray: GPUs per worker; default: 0.")
    ] = None,
) -> None:
    """Evaluate several settings with one load of the base; a killed run resumes."""
    if ray is None and (workers is not None or gpus is not None):
        name = "--workers" if workers is not None else "--gpus"
        raise UsageError(f"{name} belongs to --ray; add --ray local, or leave it out.")
    if ray is not None:
        check_ray()
    texts = [part for part in settings.split(",") if part.strip()]
    if preset is not None:
        from gks_eval.grid.settings import with_preset

        texts = [with_preset(text, preset) for text in texts]
    grid = options.grid_of(
        texts,
        tasks,
        output,
        library,
        model_args=model_args,
        model={"pretrained": pretrained, "batch_size": batch_size, "device": device},
        limit=limit,
        samples=samples,
        num_fewshot=num_fewshot,
        apply_chat_template=apply_chat_template,
        include_path=include_path,
    )
    if dry_run:
        plan(grid)
    else:
        from gks_eval.grid.on_ray import RayOptions

        how = None if ray is None else RayOptions(ray, workers, gpus=gpus or 0.0)
        _run(replace(grid, profile=profile), how)


def _demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path(
        "demo-results"
    ),
    limit: Annotated[
        int,
        typer.Option("--limit", "-L", min=1, help="Items per task, of 110; all six tasks run."),
    ] = 60,
) -> None:
    """Run base, Arrow and GenKnowSub on the bundled demo: a real 135M model, six small tasks."""
    from gks_eval.grid import Grid
    from gks_eval.util.hardware import fast_bfloat16

    dtype = "bfloat16" if fast_bfloat16() else "float32"
    _run(
        Grid(
            settings=DEMO_SETTINGS.split(","),
            tasks=["gks_demo"],
            output=output,
            library="smollm2-demo",
            model_arguments={"dtype": dtype, "batch_size": "auto"},
            evaluation={"limit": limit},
        )
    )


def _run(grid: Grid, ray: RayOptions | None = None) -> None:
    from rich.console import Console

    started = time.monotonic()
    folders = run(grid, ray=ray)
    if folders is None:
        return

    from gks_eval.grid.table import accuracy_table, print_whole

    print_whole(accuracy_table(folders))
    spent = time.monotonic() - started
    summary = f"Results in {grid.output} ({spent:.0f} s)."
    if len(grid.settings) > 1:
        folder = shlex.quote(grid.output.as_posix())
        summary += f" To test the differences: gks-eval compare {folder}"
    Console(stderr=True, emoji=False).print(summary, markup=False, highlight=False, soft_wrap=True)
