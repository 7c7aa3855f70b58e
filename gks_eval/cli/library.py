"""`gks-eval library ...`: lists and measures libraries of adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, get_args

import typer

from gks_eval.cli import _complete
from gks_eval.cli._overlap import overlap
from gks_eval.util.files import check_output

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the ``library`` family to the application."""
    family = typer.Typer(no_args_is_help=True, help="List and measure libraries of adapters.")
    family.command("list")(_list)
    family.command("show")(_show)
    family.command("path")(_path)
    family.command("overlap")(overlap)
    app.add_typer(family, name="library")


def _list() -> None:
    """List the bundled libraries, each with its base model."""
    from gks_eval.library.load import bundled_libraries, read_manifest

    for name in bundled_libraries():
        _, config = read_manifest(name)
        general = ", ".join(config.general) or "none"
        typer.echo(f"{name}: {len(config.experts)} experts, general {general}; {config.base_model}")


def _path(
    name: Annotated[
        str,
        typer.Argument(
            help="Bundled library, or the embedded model smollm2-135m-instruct.",
            autocompletion=_complete.libraries,
        ),
    ],
) -> None:
    """Print the folder of a bundled library or embedded model, for `--model hf` or plain PEFT."""
    from gks_eval.errors import UsageError, did_you_mean
    from gks_eval.library.load import bundled_libraries
    from gks_eval.model.embedded import EMBEDDED_MODELS, embedded_model
    from gks_eval.util.paths import adapters_dir

    if name in bundled_libraries():
        typer.echo(adapters_dir() / name)
    elif name in EMBEDDED_MODELS:
        typer.echo(embedded_model(name))
    else:
        near = did_you_mean(name, [*bundled_libraries(), *EMBEDDED_MODELS])
        raise UsageError(f"{name!r:.80} is not a bundled library or embedded model; {near}.")


def _show(
    library: Annotated[
        str,
        typer.Argument(help="Bundled name, folder or hub id.", autocompletion=_complete.libraries),
    ],
    subtract: Annotated[str, typer.Option(help="Languages such as en+de, or avg.")] = "avg",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="JSON file for all numbers (geometry.json)."),
    ] = None,
) -> None:
    """Show base, ranks, targets, norms and angles of a library, before and after each rule."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from gks_eval.cli._bar import progress_bar, working

    if output is not None:
        check_output(output)
    with working("reading the library"):
        from gks_eval.grid.table import print_whole
        from gks_eval.library.geometry import library_geometry, summary
        from gks_eval.library.load import load_library
        from gks_eval.library.starts import Starts
        from gks_eval.method.setting import Combine
        from gks_eval.util.files import write_text

        loaded = load_library(library)
    languages = None if subtract == "avg" else [part.strip() for part in subtract.split("+")]
    with progress_bar("layers", len(loaded.modules)) as advance:
        geometry = library_geometry(loaded, languages, advance)
    if output is not None:
        write_text(output, json.dumps(geometry, indent=1) + "\n")
    typer.echo(loaded.summary())
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left")
    table.caption = (
        "|dW| over all layers, a mean over experts, and as a share of that before subtraction; the "
        "norm of an even mixture of all experts, by combine; means over pairs of experts, for "
        "prototypes over layers too."
    )
    table.add_column("\nresidual")
    mixtures = (f"even mix,\n{combine}" for combine in get_args(Combine))
    for heading in ("\n|dW|", "\nleft", *mixtures, "cosine of\nexperts", "|cosine| of\nprototypes"):
        table.add_column(heading, justify="right")
    for row in summary(geometry):
        mixed = (row.mixture.get(combine) for combine in get_args(Combine))
        norms = ("–" if norm is None else f"{norm:.4g}" for norm in mixed)
        table.add_row(
            row.rule,
            f"{row.norm:.4g}",
            f"{row.left:.0%}",
            *norms,
            f"{row.cosine:+.4f}",
            f"{row.prototypes:.4f}",
        )
    print_whole(table)
    near = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left")
    near.caption = (
        "Cosine of each expert's dW with each general adapter's, and how far the residual by "
        "factors is from the exact one, relative to it, as a mean over layers; start: |cosine| of "
        "each expert's A with theirs, above 0.5 for shared starts."
    )
    near.add_column("expert")
    starts = next((record["cosine"] for record in geometry["starts"].values()), None)
    for name in (*geometry["general"], "factors from delta", "start"):
        near.add_column(name, justify="right")
    for name, row in zip(geometry["experts"], geometry["cosine_general"], strict=True):
        apart = geometry["rule_distance"].get(name)
        mean_distance = f"{sum(apart) / len(apart):.3f}" if apart else "–"
        start = f"{starts[name]:.2f}" if starts else "–"
        near.add_row(name, *(f"{cosine:+.4f}" for cosine in row), mean_distance, start)
    print_whole(near)
    for record in geometry["starts"].values():
        if warning := Starts.of_record(record).warning(loaded.name):
            typer.echo(warning)
            break  # one rule's warning is enough; column "left" shows all rules
