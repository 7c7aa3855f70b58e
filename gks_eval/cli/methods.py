"""`gks-eval methods`: the rules, routers and merges that settings can name."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from gks_eval.method.declaration import Method

__all__ = ["register"]

MARKDOWN_HEAD = """\
<!-- gks-eval methods --markdown -->
# Methods

All rules, routers and merges for use in a setting. The docstrings in `gks_eval/method/` have the
formulas. [method.md](method.md) explains how rules, routers and merges fit together;
[extending.md](extending.md) shows how to add one.
"""

# How a setting names each kind.
WRITTEN = {
    "rule": "gks:LANGUAGES;rule=NAME",
    "router": "NAME, NAME:LANGUAGES or NAME:LANGUAGES;PARAMETER=VALUE",
    "merge": "merge:NAME",
}


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("methods")(methods)


def methods(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print docs/methods.md instead of a table.")
    ] = False,
) -> None:
    """List rules, routers and merges: what they do, parameters, needs and papers."""
    from gks_eval.cli._bar import working

    with working("reading methods"):
        from gks_eval.method.registry import MERGES, ROUTERS, RULES

        found: dict[str, list[Method]] = {
            "rule": [*RULES.usable()],
            "router": [*ROUTERS.usable()],
            "merge": [*MERGES.usable()],
        }
    console = Console()
    columns = console.width if console.is_terminal else 1000
    typer.echo(_markdown(found) if markdown else _text(found, columns), nl=False)


def _text(found: dict[str, list[Method]], columns: int) -> str:
    width = max(len(method.name) for methods in found.values() for method in methods) + 4
    lines = []
    for kind, methods in found.items():
        lines.append(f"{kind}s, in a setting: {WRITTEN[kind]}")
        for method in methods:
            facts = [_plain(method.summary), method.paper]
            facts += [
                f"{name}{default}: {what}" for name, default, what in _parameters(method, "=")
            ]
            facts += [f"needs {needs}" for needs in _needs(method)]
            rows = [row for fact in facts for row in _rows(fact, columns - width)]
            lines.append(f"  {method.name:{width - 2}}{rows[0]}")
            lines += [" " * width + row for row in rows[1:]]
        lines.append("")
    return "\n".join(lines)


def _rows(fact: str, columns: int) -> list[str]:
    return wrap(
        fact,
        max(columns, 20),
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _markdown(found: dict[str, list[Method]]) -> str:
    lines = [MARKDOWN_HEAD]
    for kind, methods in found.items():
        lines += [
            f"## {kind.capitalize()}s\n",
            "| name | what it does | parameters | needs | source |",
            "|---|---|---|---|---|",
        ]
        for method in methods:
            parameters = "<br>".join(
                f"`{name}`{default}: {description}"
                for name, default, description in _parameters(method, " = ")
            )
            summary = method.summary.replace("``", "`").replace("|", "\\|")
            needs = ", ".join(_needs(method)) or "nothing"
            cells = (f"`{method.name}`", summary, parameters or "none", needs)
            lines.append(f"| {' | '.join(cells)} | {method.paper} |")
        lines.append("")
    return "\n".join(lines)


def _parameters(method: Method, sign: str) -> list[tuple[str, str, str]]:
    # With a default of None the value follows from the library; the description says how.
    return [
        (
            name,
            "" if field.default is None else f"{sign}{field.default}",
            (field.description or "").rstrip("."),
        )
        for name, field in method.parameters.fields().items()
    ]


def _needs(method: Method) -> list[str]:
    needs = [method.needs] if method.needs else []
    if getattr(method, "equal_factors", False):
        instead = getattr(method, "instead", "")
        needs.append(f"equal ranks and scalings{f', or {instead}' if instead else ''}")
    return needs


def _plain(text: str) -> str:
    return text.replace("``", "")
