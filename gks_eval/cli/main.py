"""`gks-eval`: collects the families of commands and turns errors into sentences.

A family is a module of this package with ``register(app)``; it imports the wing that does the work
only when its command runs, so that ``--help`` stays fast.
"""

from __future__ import annotations

import importlib
import sys
from typing import Annotated

import typer

from gks_eval import __version__
from gks_eval.errors import GksError, ResourceError

__all__ = ["build_app", "main"]

FAMILIES = (
    "run",
    "tasks",
    "grid",
    "library",
    "routes",
    "compare",
    "gate",
    "paper",
    "report",
    "train",
    "convert",
    "cluster",
    "bench",
)


def build_app() -> typer.Typer:
    """Return the typer application with every family registered."""
    app = typer.Typer(
        name="gks-eval",
        help="Arrow-routed task LoRAs with general knowledge subtracted, in lm-eval.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for family in FAMILIES:
        importlib.import_module(f"gks_eval.cli.{family}").register(app)
    return app


def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; a `GksError` ends in one sentence and its exit code."""
    try:
        build_app()()
    except GksError as error:
        print(f"gks-eval: error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except OSError as error:  # a disk or folder that fails in the middle
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"gks-eval: error: {what}", file=sys.stderr)
        raise SystemExit(ResourceError.exit_code) from None
