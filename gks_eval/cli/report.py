"""`gks-eval report`: one self-contained HTML page about a set of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gks_eval.cli._cluster import Cluster
from gks_eval.cli.paper import PaperTasks

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report")(report)


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Folders, results files or globs; the first run is the baseline. Replicates "
            "(replicates*.json), controls (controls.json), routing shares (routes*.json), library "
            "geometry (geometry*.json) and overlap (overlap*.json) in a folder are shown too."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File of the page.")] = Path(
        "report.html"
    ),
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Evaluation report",
    baseline: Annotated[
        str | None, typer.Option(help="Label of the baseline, if not the first run.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Metric, or metric,filter; default: each task's main one.")
    ] = None,
    equivalence: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=99.0, help="Test whether accuracies are equal within this many points."
        ),
    ] = None,
    cluster: Cluster = "declared",
    family: Annotated[
        PaperTasks, typer.Option(help="Tasks to show next to the paper's values.")
    ] = PaperTasks.GKS_PAPER,
    max_samples: Annotated[
        int, typer.Option(min=0, help="Samples to keep; changed ones first.")
    ] = 20_000,
    max_text: Annotated[int, typer.Option(min=100, help="Characters of a prompt to keep.")] = 4_000,
) -> None:
    """Write one page: scores, changes, the paper's values, routing, a sample browser."""
    from gks_eval.cli._bar import working
    from gks_eval.cli._extras import need_evidence

    need_evidence()
    from gks_eval.evidence.clusters import with_clusters
    from gks_eval.evidence.report.build import Options, build_page
    from gks_eval.evidence.runs import baseline_first, find_runs
    from gks_eval.util.files import check_output, write_text

    check_output(output)
    found = with_clusters(baseline_first(find_runs(runs), baseline), cluster)
    folders = [path for path in dict.fromkeys(map(Path, runs)) if path.is_dir()]
    margin = None if equivalence is None else equivalence / 100.0
    options = Options(title, metric, family.value, max_samples, max_text, margin)
    with working("reading samples"):
        page = build_page(found, folders, options)
    write_text(output, page)
    size = len(page.encode())
    shown = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
    typer.echo(f"{output}: {len(found)} {'run' if len(found) == 1 else 'runs'}, {shown}")
