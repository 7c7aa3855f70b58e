"""`gks-eval compare`: which differences between runs are significant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gks_eval.cli._cluster import Cluster

if TYPE_CHECKING:
    from gks_eval.evidence.tables.content import Table

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
            "LABEL=PATH names a run; a folder with several runs counts as all of them."
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
        bool, typer.Option("--shift", help="Add the change of the confidence in the gold choices.")
    ] = False,
    replicates: Annotated[
        bool,
        typer.Option(
            "--replicates",
            help="Compare methods over seeds: each argument is LABEL=PATTERN, in which * matches "
            "the seed.",
        ),
    ] = False,
    cluster: Cluster = "declared",
    mid_p: Annotated[
        bool, typer.Option("--mid-p", help="Test accuracies by the mid-p, not the exact p-value.")
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
    wanted = tuple(name.strip() for name in (tasks or "").split(",") if name.strip())
    if replicates:
        only = {
            "--baseline": baseline,
            "--equivalence": equivalence,
            "--flips": flips,
            "--shift": shift,
            "--mid-p": mid_p,
            "--leaderboard": leaderboard,
            "--force": force,
        }
        _over_seeds(runs, metric, wanted, confidence, cluster, fmt, output, only)
        return
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

    found = with_clusters(baseline_first(find_runs(runs), baseline), cluster)
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
    tables.append(difference_table(comparison, comparison.notes))
    tables += shift_tables(comparison)
    if flips:
        texts = excerpts(found[0], flips_to_show(comparison, flips))
        tables.append(flip_table(comparison, texts, flips))
    if fmt is CompareFormat.CSV:
        from gks_eval.evidence.tables.csv_file import to_csv

        text = to_csv(comparison)
    elif fmt is CompareFormat.LATEX:
        from gks_eval.evidence.tables.latex_table import to_latex

        text = to_latex(comparison)
    elif fmt is CompareFormat.JSON:
        text = comparison.to_json()
    else:
        _put_tables(tables, fmt, output)
        return
    _put(text, output)


def _over_seeds(
    sources: list[str],
    metrics: list[str] | None,
    tasks: tuple[str, ...],
    confidence: float,
    cluster: str,
    fmt: CompareFormat,
    output: Path | None,
    only: Mapping[str, object],
) -> None:
    """Compare methods over seeds; `only` holds the options that do not apply."""
    from gks_eval.cli._bar import working
    from gks_eval.errors import UsageError
    from gks_eval.evidence.replicate_runs import find_methods
    from gks_eval.evidence.replicates import replicates
    from gks_eval.evidence.tables.replicates_text import replicates_table, verdicts

    if given := [name for name, value in only.items() if value]:
        raise UsageError(f"{given[0]} does not apply to --replicates; leave it out.")
    if fmt in (CompareFormat.CSV, CompareFormat.LATEX):
        raise UsageError(
            f"--replicates has no {fmt.value} output; use --format terminal, markdown or json."
        )
    if metrics and len(metrics) > 1:
        raise UsageError("--replicates takes one --metric; run the command once for each.")
    with working("reading samples"):
        found = replicates(
            find_methods(sources, cluster), metrics[0] if metrics else None, tasks, confidence
        )
    if fmt is CompareFormat.JSON:
        _put(found.to_json(), output)
        return
    table = replicates_table(found)
    _put_tables([replace(table, notes=[*verdicts(found), *table.notes])], fmt, output)


def _put_tables(tables: list[Table], fmt: CompareFormat, output: Path | None) -> None:
    if fmt is CompareFormat.MARKDOWN:
        from gks_eval.evidence.tables.markdown import to_markdown

        _put(to_markdown(tables), output)
        return
    from gks_eval.evidence.tables.terminal import render, show

    if output is None:
        show(tables)
    else:
        _put(render(tables), output)


def _put(text: str, output: Path | None) -> None:
    if output is None:
        typer.echo(text, nl=False)
        return
    from gks_eval.util.files import write_text

    write_text(output, text)
