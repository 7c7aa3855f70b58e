"""`gks-eval compare`: which differences between runs are significant."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from gks_eval.cli._cluster import Cluster

__all__ = ["register"]


class CompareFormat(str, Enum):
    """How to show a comparison."""

    TERMINAL = "terminal"
    MARKDOWN = "markdown"
    CSV = "csv"
    JSON = "json"
    LATEX = "latex"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare")(compare)


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Results files, folders or globs of lm-eval; the first is the baseline. "
            "LABEL=PATH names a run; a folder of several runs gives them all."
        ),
    ],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Metric, or metric,filter; can be given several times; default: each task's main "
            "one."
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks", "-t", help="Comma-separated names of tasks or groups; default: all."
        ),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Label of the baseline, if not the first run.")
    ] = None,
    fmt: Annotated[
        CompareFormat, typer.Option("--format", "-f", help="Output format.")
    ] = CompareFormat.TERMINAL,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to a file instead.")
    ] = None,
    flips: Annotated[
        int,
        typer.Option(min=0, help="List this many changed items per task, run and direction."),
    ] = 0,
    confidence: Annotated[
        float, typer.Option(min=0.5, max=0.999, help="Level of the intervals.")
    ] = 0.95,
    equivalence: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=99.0, help="Test whether accuracies are equal within this many points."
        ),
    ] = None,
    shift: Annotated[
        bool, typer.Option("--shift", help="Add how much surer of the gold choices the runs are.")
    ] = False,
    cluster: Cluster = "declared",
    mid_p: Annotated[
        bool, typer.Option("--mid-p", help="Test a task's accuracies by the mid-p, not exactly.")
    ] = False,
    leaderboard: Annotated[
        bool | None,
        typer.Option(
            "--leaderboard/--no-leaderboard",
            help="Rank the runs, with ties. By default for more than 5 runs.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Compare even if versions, prompts, shots or limits differ."),
    ] = False,
    draws: Annotated[
        int, typer.Option(min=99, max=1_000_000, help="Random subsets of a sign-flip test.")
    ] = 9_999,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the subsets.")] = 0,
) -> None:
    """Compare runs task by task: intervals, paired tests, averages, changed items."""
    from gks_eval.cli._bar import working
    from gks_eval.cli._extras import need_evidence

    need_evidence()
    from gks_eval.evidence.clusters import with_clusters
    from gks_eval.evidence.compare import CompareOptions
    from gks_eval.evidence.compare import compare as build
    from gks_eval.evidence.excerpts import excerpts
    from gks_eval.evidence.runs import baseline_first, find_runs
    from gks_eval.evidence.tables.content import (
        difference_table,
        flip_table,
        flips_to_show,
        score_table,
        shift_tables,
    )
    from gks_eval.evidence.tables.leaderboard import leaderboard_tables
    from gks_eval.util.files import write_text

    found = with_clusters(baseline_first(find_runs(runs), baseline), cluster)
    wanted = tuple(name.strip() for name in (tasks or "").split(",") if name.strip())
    options = CompareOptions(
        metric=tuple(metric) if metric else None,
        tasks=wanted,
        force=force,
        confidence=confidence,
        draws=draws,
        seed=seed,
        leaderboard=leaderboard,
        mid_p=mid_p,
        shift=shift,
        equivalence=None if equivalence is None else equivalence / 100.0,
    )
    with working("reading samples"):
        comparison = build(found, options)
    tables = [*leaderboard_tables(comparison), score_table(comparison)]
    tables.append(difference_table(comparison))
    tables[-1].notes.extend(f"{note}." for note in comparison.notes)
    tables += shift_tables(comparison)
    if flips:
        texts = excerpts(found[0], flips_to_show(comparison, flips))
        tables.append(flip_table(comparison, texts, flips))
    if fmt is CompareFormat.TERMINAL:
        from gks_eval.evidence.tables.terminal import render, show

        if output is None:
            show(tables)
            return
        text = render(tables)
    elif fmt is CompareFormat.MARKDOWN:
        from gks_eval.evidence.tables.markdown import to_markdown

        text = to_markdown(tables)
    elif fmt is CompareFormat.CSV:
        from gks_eval.evidence.tables.csv_file import to_csv

        text = to_csv(comparison)
    elif fmt is CompareFormat.LATEX:
        from gks_eval.evidence.tables.latex_table import to_latex

        text = to_latex(comparison)
    else:
        text = comparison.to_json()
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_text(output, text)
