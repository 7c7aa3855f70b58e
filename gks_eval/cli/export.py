"""`gks-eval export`: what a setting adds to the base, as plain PEFT adapters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gks_eval.cli import _complete

if TYPE_CHECKING:
    from gks_eval.library.truncation import Truncation

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add ``export`` to the application."""
    app.command("export")(_export)


def _export(
    library: Annotated[
        str,
        typer.Argument(help="Bundled name, folder or hub id.", autocompletion=_complete.libraries),
    ],
    setting: Annotated[
        str,
        typer.Option(
            help="A setting in the grid's grammar, such as gks:avg;rule=delta.",
            autocompletion=_complete.settings,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new library.")],
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Truncate every update to this rank by SVD."),
    ] = None,
    license_: Annotated[
        str | None,
        typer.Option(
            "--license",
            help="Licence of the new adapters, such as apache-2.0; default: the library's.",
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(metavar="ORG/NAME", help="Upload to this new or empty repository on the hub."),
    ] = None,
) -> None:
    """Export the adapters of a setting as PEFT folders: residual experts, one expert or a merge."""
    from gks_eval.cli._bar import working
    from gks_eval.method.setting import as_setting

    parsed = as_setting(setting)
    with working("exporting"):
        from gks_eval.library.export import export
        from gks_eval.library.load import load_library
        from gks_eval.library.push import check_push
        from gks_eval.library.push import push as upload
        from gks_eval.util.quiet import quiet_libraries

        quiet_libraries()

        source = load_library(library)
        if push is not None:
            check_push(source, push)
        done = export(source, parsed, output, rank, license=license_)
    if done.truncation is not None:
        _show(done.truncation)
    count = "1 adapter" if len(done.adapters) == 1 else f"{len(done.adapters)} adapters"
    checked = "exported before, unchanged" if done.kept else "PEFT reads the same updates"
    typer.echo(f"{output}: {count}: {', '.join(done.adapters)}; {checked}")
    if push is not None:
        with working("uploading"):
            address = upload(done.folder, done.files, push)
        typer.echo(f"{address}: uploaded, {len(done.files)} files")


def _show(truncation: Truncation) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from gks_eval.grid.table import print_whole

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left")
    table.caption = (
        f"||dW - dW_r|| / ||dW|| at rank {truncation.rank}, in the Frobenius norm, over all "
        "adapters."
    )
    table.add_column("layer")
    table.add_column("relative error", justify="right")
    for layer, error in truncation.layers.items():
        table.add_row(layer, f"{error:.4f}")
    table.add_section()
    table.add_row("all layers", f"{truncation.total:.4f}")
    print_whole(table)
