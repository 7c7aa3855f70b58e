"""`gks-eval paper`: the published tables, next to your own runs or with their commands."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["PaperTasks", "register"]


class PaperTasks(str, Enum):
    """Which tasks are compared with the paper."""

    GKS_PAPER = "gks_paper"
    GKS = "gks"


class PaperFormat(str, Enum):
    """How to print the tables."""

    TERMINAL = "terminal"
    MARKDOWN = "markdown"
    JSON = "json"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("paper")(paper)


def paper(
    results: Annotated[
        list[str] | None,
        typer.Option(help="Folder of a grid, or ROW=PATH such as gks_avg=PATH; may be repeated."),
    ] = None,
    table: Annotated[
        list[str] | None, typer.Option(help="Only this table, such as phi3_english.")
    ] = None,
    family: Annotated[
        PaperTasks,
        typer.Option(
            help="gks_paper: tasks in the table's protocol (gks_paper_*; gks_peft_* for PEFT's); "
            "gks: with lm-eval's prompts."
        ),
    ] = PaperTasks.GKS_PAPER,
    plan: Annotated[
        str | None, typer.Option(help="Print the commands that reproduce this table, and stop.")
    ] = None,
    fmt: Annotated[
        PaperFormat, typer.Option("--format", "-f", help="Output format.")
    ] = PaperFormat.TERMINAL,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to a file instead.")
    ] = None,
) -> None:
    """Show the paper's Tables 1 to 4 and that of PEFT's example next to your own runs."""
    from gks_eval.cli._bar import working
    from gks_eval.cli._extras import need_evidence

    need_evidence()
    from gks_eval.errors import ResultsError
    from gks_eval.evidence.paper import load_paper, side_by_side
    from gks_eval.evidence.paper_plan import plan as make_plan
    from gks_eval.evidence.runs import find_runs
    from gks_eval.evidence.tables.markdown import to_markdown
    from gks_eval.evidence.tables.paper_text import paper_tables
    from gks_eval.evidence.tables.terminal import render, show
    from gks_eval.util.files import write_text

    published = load_paper()
    if plan is not None:
        typer.echo(make_plan(plan, published.named(plan), family.value), nl=False)
        return
    names = list(table or published.tables)
    with working("reading results"):
        cells = side_by_side(published, names, find_runs(results or []), family.value)
    if results and not table:
        with_ours = {cell.table for cell in cells if cell.ours is not None}
        if not with_ours:
            wanted = "gks_*" if family is PaperTasks.GKS else "gks_paper_* or gks_peft_*"
            raise ResultsError(
                f"the runs have no {wanted} task of the published tables; run them, or name the "
                "other --family."
            )
        cells = [cell for cell in cells if cell.table in with_ours]
    tables = paper_tables(published, cells, family.value)
    if fmt is PaperFormat.TERMINAL and output is None:
        show(tables)
        return
    if fmt is PaperFormat.JSON:
        import json

        from gks_eval.evidence.paper import SCHEMA

        shown = dict.fromkeys(cell.table for cell in cells)
        sources = {name: published.tables[name].source or published.source for name in shown}
        content = {"schema": SCHEMA, "source": published.source, "sources": sources}
        text = json.dumps({**content, "cells": [cell.model_dump() for cell in cells]}, indent=1)
        text += "\n"
    else:
        text = to_markdown(tables) if fmt is PaperFormat.MARKDOWN else render(tables)
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_text(output, text)
