"""`gks-eval controls`: whether subtraction and routing do anything that a control does not."""

from __future__ import annotations

from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gks_eval.cli import _complete
from gks_eval.cli import _grid_options as options

if TYPE_CHECKING:
    from gks_eval.evidence.question import Finding, Question
    from gks_eval.grid import Grid

__all__ = ["register"]


class ControlsFormat(str, Enum):
    """How to show what was found."""

    TERMINAL = "terminal"
    MARKDOWN = "markdown"
    JSON = "json"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("controls")(controls)


def controls(
    treatment: Annotated[
        str,
        typer.Option(
            help="A routed setting with subtraction, such as gks:avg, with arguments after ';' as "
            "in a grid; every control keeps them.",
            autocompletion=_complete.treatments,
        ),
    ],
    tasks: options.Tasks,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder for controls.json and one sub-folder per setting."
        ),
    ],
    library: options.Library = None,
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="Draws of each random control, from seed 0 on.")
    ] = 5,
    margin: Annotated[
        float,
        typer.Option(
            min=0.0001,
            max=0.9,
            help="Smallest difference of the mean score that matters; 0.02 is two points.",
        ),
    ] = 0.02,
    fmt: Annotated[
        ControlsFormat, typer.Option("--format", help="Output format.")
    ] = ControlsFormat.TERMINAL,
    pretrained: options.Pretrained = None,
    model_args: options.ModelArgs = "",
    batch_size: options.BatchSize = "8",
    device: options.Device = None,
    limit: options.Limit = None,
    samples: options.Samples = None,
    num_fewshot: options.Shots = None,
    apply_chat_template: options.ChatTemplate = False,
    include_path: options.IncludePath = None,
    dry_run: options.DryRun = False,
) -> None:
    """Compare a treatment with its controls on one load of the base, and say what beats what.

    The question (controls, tasks, draws, margin) is written to controls.json before the run;
    another question in the same folder is refused. The exit status is 0 whatever is found.
    """
    from gks_eval.cli._extras import need_evidence

    need_evidence()
    grid = options.grid_of(
        [treatment],
        tasks,
        output,
        library,
        model_args=model_args,
        model={"pretrained": pretrained, "batch_size": batch_size, "device": device},
        limit=limit,
        samples=samples,
        num_fewshot=num_fewshot,
        apply_chat_template=apply_chat_template,
        include_path=include_path,
    )
    question, grid = _asked(grid, seeds, margin)
    if dry_run:
        from gks_eval.cli._grid_run import plan
        from gks_eval.evidence.tables.controls_text import question_sentence

        plan(grid)
        typer.echo(question_sentence(question))
        return
    finding = _found(question, grid)
    if finding is not None:
        _show(question, finding, fmt)


def _asked(grid: Grid, seeds: int, margin: float) -> tuple[Question, Grid]:
    """Return the question and the grid that answers it, and refuse another in its folder."""
    from gks_eval.cli._bar import working
    from gks_eval.grid.controls import controls_of, read_treatment
    from gks_eval.util.quiet import quiet_libraries

    treatment = read_treatment(grid.settings[0])
    quiet_libraries()
    with working("reading the library"):
        from gks_eval.evidence.question import Question, QuestionControl, check_question
        from gks_eval.grid.prepare import prepare

        _, (library,), _ = prepare(grid)
        assert library is not None  # a treatment routes
        found, left_out = controls_of(treatment, library, seeds)
    question = Question(
        treatment=treatment.text,
        library=library.name,
        library_hash=library.content_of(treatment.setting) or "",
        tasks=tuple(grid.tasks),
        seeds=seeds,
        evaluation={name: str(value).removesuffix(".0") for name, value in grid.evaluation.items()},
        margin=margin,
        controls=tuple(QuestionControl(**asdict(control)) for control in found),
        left_out=tuple(left_out),
    )
    check_question(grid.output, question)
    settings = [treatment.text, *(text for control in found for text in control.settings)]
    return question, replace(grid, settings=settings)


def _found(question: Question, grid: Grid) -> Finding | None:
    """Run the grid and judge it; None in all processes but process 0."""
    from gks_eval.cli._bar import working
    from gks_eval.cli._grid_run import run
    from gks_eval.evidence.controls import judge_runs
    from gks_eval.evidence.question import CONTROLS_FILE, ControlsFile
    from gks_eval.evidence.runs import one_run
    from gks_eval.util.files import write_text

    file = grid.output / CONTROLS_FILE

    def fix_question() -> None:
        if not file.exists():
            write_text(file, ControlsFile(question=question).to_json())

    folders = run(grid, fix_question)
    if folders is None:
        return None
    with working("reading samples"):
        runs = {
            text: one_run(str(folder)) for text, folder in zip(grid.settings, folders, strict=True)
        }
        finding = judge_runs(question, runs)
    write_text(file, ControlsFile(question=question, finding=finding).to_json())
    return finding


def _show(question: Question, finding: Finding, fmt: ControlsFormat) -> None:
    from gks_eval.evidence.question import ControlsFile
    from gks_eval.evidence.tables.controls_text import answers, controls_table

    table = controls_table(question, finding)
    table = replace(table, notes=[*answers(question, finding), *table.notes])
    if fmt is ControlsFormat.TERMINAL:
        from gks_eval.evidence.tables.terminal import show

        show([table])
    elif fmt is ControlsFormat.MARKDOWN:
        from gks_eval.evidence.tables.markdown import to_markdown

        typer.echo(to_markdown([table]), nl=False)
    else:
        typer.echo(ControlsFile(question=question, finding=finding).to_json(), nl=False)
