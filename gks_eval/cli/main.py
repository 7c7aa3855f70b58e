"""`gks-eval`: collects the families of commands and turns errors into sentences.

A family is a module of this package with ``register(app)``; it imports the wing that does the work
only when its command runs, so that ``--help`` stays fast.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import Annotated, Any, Final, NoReturn

import typer
from typer.core import TyperGroup

from gks_eval import __version__
from gks_eval.cli import _complete
from gks_eval.errors import GksError, ResourceError, UsageError, one_line

__all__ = ["build_app", "exit_with_sentence", "main"]

# Newer releases of typer contain a copy of click; this is the base class in both cases.
_COMMAND_LINE_ERROR: Final[Any] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)

FAMILIES = (
    "run",
    "tasks",
    "grid",
    "controls",
    "library",
    "methods",
    "routes",
    "compare",
    "gate",
    "paper",
    "report",
    "cite",
    "train",
    "prepare",
    "convert",
    "export",
    "cluster",
)


class _Commands(TyperGroup):
    """A group whose help shows every command's first sentence in full."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, one.get_short_help_str(limit=1000)) for name, one in commands if one]
            )


def build_app() -> typer.Typer:
    """Return the typer application with every family registered."""
    app = typer.Typer(
        name="gks-eval",
        cls=_Commands,
        help="Arrow-routed task LoRAs with general knowledge subtracted, in lm-eval.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for family in FAMILIES:
        importlib.import_module(f"gks_eval.cli.{family}").register(app)
    for group in app.registered_groups:
        group.cls = _Commands
    return app


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; an error ends in one sentence and its exit code."""
    _no_bars_in_logs()
    with _complete.joined_bash_words():
        exit_with_sentence(build_app(), "gks-eval")


def exit_with_sentence(app: typer.Typer, name: str) -> NoReturn:
    """Run a typer application and exit; an error ends in one sentence and its exit code.

    Args:
        app: The application.
        name: What its error sentences start with.
    """
    _escape_unprintable()
    try:
        status = app(standalone_mode=False)
    except GksError as error:
        _end(name, str(error), error.exit_code)
    except _COMMAND_LINE_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help itself
            error.show()
            raise SystemExit(UsageError.exit_code) from None
        where = error.ctx.command_path if getattr(error, "ctx", None) else name
        said = error.format_message().replace("Value error, ", "").strip().rstrip(".")
        _end(name, f"{said}; see {where} --help.", UsageError.exit_code)
    except typer.Abort:
        _end(name, "stopped.", 130)
    except OSError as error:  # a disk or folder that fails during the run
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        _end(name, what, ResourceError.exit_code)
    raise SystemExit(status if isinstance(status, int) else 0)


def _no_bars_in_logs() -> None:
    # tqdm, which lm-eval and transformers use too, reads the variable when it is imported.
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")


def _escape_unprintable() -> None:
    # Windows' terminals and pipes often have an encoding of 256 characters.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _end(name: str, sentence: str, status: int) -> NoReturn:
    print(f"{name}: error: {one_line(sentence)}", file=sys.stderr)
    raise SystemExit(status) from None
