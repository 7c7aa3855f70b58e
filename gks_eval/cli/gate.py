"""`gks-eval gate`: says whether a candidate may replace a baseline."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gks_eval.cli import _complete
from gks_eval.cli import _grid_options as options
from gks_eval.cli._cluster import Cluster

if TYPE_CHECKING:
    from gks_eval.evidence.verdict import Verdict
    from gks_eval.grid import Grid

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("gate")(gate)


def gate(
    baseline: Annotated[str, typer.Option(help="Results file or folder of the baseline.")],
    candidate: Annotated[
        str | None, typer.Option(help="Results file or folder of the candidate.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="Policy file; without one, no task may get worse.")
    ] = None,
    cluster: Cluster = "declared",
    plan: Annotated[
        bool, typer.Option("--plan", help="Print how many items would be needed per check.")
    ] = False,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write a Markdown summary here.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the verdict as JSON here.")] = None,
    run: Annotated[
        str | None,
        typer.Option(
            help="Instead of --candidate: evaluate this setting in parts, and stop when the "
            "verdict is clear; a killed run resumes. Needs --tasks and --output.",
            autocompletion=_complete.settings,
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            "-t",
            help="With --run: comma-separated names of tasks or groups.",
            autocompletion=_complete.tasks,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the results of --run.")
    ] = None,
    library: options.Library = None,
    pretrained: options.Pretrained = None,
    model_args: options.ModelArgs = "",
    batch_size: options.BatchSize = "8",
    device: options.Device = None,
    num_fewshot: options.Shots = None,
    apply_chat_template: options.ChatTemplate = False,
    include_path: options.IncludePath = None,
) -> None:
    """Judge a candidate: exit 0 pass, 1 regression, 2 could not judge.

    The Markdown summary is also added to the file that GITHUB_STEP_SUMMARY names.
    """
    from gks_eval.cli._bar import working
    from gks_eval.errors import GksError, UsageError

    try:
        if run is None:
            if candidate is None:
                raise UsageError("name the candidate with --candidate, or a setting with --run.")
            if tasks or output or library or pretrained or model_args:
                raise UsageError("--tasks, --output and the model's options need --run.")
            with working("judging"):
                verdict = _verdict(baseline, candidate, policy, cluster)
        else:
            if candidate is not None:
                raise UsageError("--candidate and --run exclude each other; give one of them.")
            if not tasks or output is None:
                raise UsageError("--run needs --tasks and --output.")
            grid = options.grid_of(
                [run],
                tasks,
                output,
                library,
                model_args=model_args,
                model={"pretrained": pretrained, "batch_size": batch_size, "device": device},
                limit=None,
                samples=None,
                num_fewshot=num_fewshot,
                apply_chat_template=apply_chat_template,
                include_path=include_path,
            )
            verdict = _run(grid, baseline, policy, cluster)
        _write(verdict, junit, markdown, json, plan)
    except GksError as error:
        # Exit code 1 means only "regression" here.
        typer.echo(f"gks-eval: error: could not judge: {error}", err=True)
        raise typer.Exit(2) from None
    except Exception as error:
        name = type(error).__name__
        typer.echo(f"gks-eval: error: could not judge: {name}: {error}", err=True)
        raise typer.Exit(2) from error
    raise typer.Exit(verdict.exit_code)


def _verdict(baseline: str, candidate: str, policy_path: Path | None, cluster: str) -> Verdict:
    from gks_eval.cli._extras import need_evidence

    need_evidence()
    from gks_eval.errors import ResultsError
    from gks_eval.evidence.clusters import with_clusters
    from gks_eval.evidence.gate import gate as run_gate
    from gks_eval.evidence.policy import GatePolicy
    from gks_eval.evidence.runs import one_run
    from gks_eval.evidence.verdict import unjudgeable
    from gks_eval.util.yaml import load_typed

    policy = load_typed(policy_path, GatePolicy) if policy_path else GatePolicy()
    try:
        runs = with_clusters([one_run(baseline), one_run(candidate)], cluster)
        return run_gate(runs[0], runs[1], policy)
    except ResultsError as error:
        return unjudgeable(str(error).rstrip("."), policy, baseline, candidate)


def _run(grid: Grid, baseline: str, policy_path: Path | None, cluster: str) -> Verdict:
    from gks_eval.cli._extras import need_evidence

    need_evidence()
    from gks_eval.cli._gate_run import run_gate
    from gks_eval.errors import ResultsError
    from gks_eval.evidence.policy import GatePolicy
    from gks_eval.evidence.verdict import unjudgeable
    from gks_eval.util.yaml import load_typed

    policy = load_typed(policy_path, GatePolicy) if policy_path else GatePolicy()
    try:
        return run_gate(grid, baseline, policy, cluster)
    except ResultsError as error:
        return unjudgeable(str(error).rstrip("."), policy, baseline, grid.settings[0])


def _write(
    verdict: Verdict,
    junit: Path | None,
    markdown: Path | None,
    json: Path | None,
    plan: bool,
) -> None:
    from gks_eval.evidence.tables.escape import plain
    from gks_eval.evidence.tables.gate_text import headline, to_junit, verdict_table
    from gks_eval.evidence.tables.markdown import to_markdown
    from gks_eval.evidence.tables.terminal import show
    from gks_eval.util.files import write_text

    table = verdict_table(verdict, plan)
    if verdict.outcomes:
        show([table])
    else:
        for note in verdict.notes:
            typer.echo(plain(f"{note}."))
    typer.echo(headline(verdict))
    summary = to_markdown([table])
    if json:
        write_text(json, verdict.to_json())
    if junit:
        write_text(junit, to_junit(verdict))
    if markdown:
        write_text(markdown, summary)
    if step_summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(step_summary).open("a", encoding="utf-8") as stream:
            stream.write(summary + "\n")
