"""`gks-eval convert`: adapters of other formats become PEFT folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add `convert` to the application."""
    convert = typer.Typer(no_args_is_help=True, help="Turn other adapters into PEFT folders.")
    convert.command("mttl")(mttl)
    convert.command("bin")(bin_)
    app.add_typer(convert, name="convert")


def mttl(
    source: Annotated[Path, typer.Argument(help="An MTTL library's folder, or one .ckpt.")],
    output: Annotated[Path, typer.Argument(help="Folder of the library to write.")],
    base_model: Annotated[str, typer.Option(help="Base model that the experts were trained on.")],
    numbered: Annotated[
        str | None, typer.Option(help="Call the experts NUMBERED_0, NUMBERED_1, ...")
    ] = None,
) -> None:
    """Convert an expert library of Ostapenko et al.; pickles are read without running them."""
    from gks_eval.cli._bar import working
    from gks_eval.util.paths import MANIFEST

    with working("converting"):
        from gks_eval.training.conversion import convert_mttl

        done = convert_mttl(source, output, base_model=base_model, numbered=numbered)
    typer.echo(f"{output}: {len(done.experts)} experts: {', '.join(done.experts)}")
    if done.tied:
        groups = ", and ".join(" + ".join(layers) for layers in done.tied)
        typer.echo(f"tied: one prototype per expert for {groups}")
    if not done.checked:
        typer.echo(f"{base_model}: its layers are not known here, so the fit was not checked")
    if done.manifest is None:
        typer.echo(f"{output / MANIFEST}: exists and is kept")


def bin_(
    folder: Annotated[Path, typer.Argument(help="A PEFT folder with adapter_model.bin.")],
) -> None:
    """Convert a pickled PEFT adapter to safetensors, next to it."""
    from gks_eval.cli._bar import working

    with working("converting"):
        from gks_eval.training.conversion import convert_bin

        written = convert_bin(folder)
    typer.echo(f"{written}: written; adapter_model.bin can be removed")
