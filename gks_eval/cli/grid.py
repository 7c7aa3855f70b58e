"""`gks-eval grid` and `gks-eval demo`: many settings over one load of the base."""

from __future__ import annotations

import shlex
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gks_eval.cli import _complete
from gks_eval.cli._lm_eval import lm_eval_told
from gks_eval.errors import UsageError
from gks_eval.util.json_file import JsonFile, parse_json

if TYPE_CHECKING:
    from gks_eval.grid import Grid

__all__ = ["register"]

DEMO_SETTINGS = "base,arrow,gks:en,gks:de,gks:fr,gks:avg"


def register(app: typer.Typer) -> None:
    """Add ``grid`` and ``demo`` to the application."""
    app.command("grid")(_grid)
    app.command("demo")(_demo)


def _grid(
    settings: Annotated[
        str,
        typer.Option(
            help="Comma-separated: base, gks:en+de, gks:avg, expert:NAME, merge:NAME, or a router "
            "such as arrow; arguments of the model after ';', as in 'gks:avg;rule=delta;top_k=5'; "
            "a short name before '=', as in 'delta=gks:avg;rule=delta'. `gks-eval methods` lists "
            "routers, merges and arguments.",
            autocompletion=_complete.settings,
        ),
    ],
    tasks: Annotated[
        str,
        typer.Option(
            "--tasks",
            "-t",
            help="Comma-separated names of tasks or groups.",
            autocompletion=_complete.tasks,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder that gets one sub-folder a setting.")
    ],
    library: Annotated[
        str | None,
        typer.Option(help="Bundled name, folder or hub id.", autocompletion=_complete.libraries),
    ] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="Base model; default: the library's.")
    ] = None,
    model_args: Annotated[
        str,
        typer.Option(
            "--model-args", "--model_args", "-a", help="Further arguments, as lm_eval takes them."
        ),
    ] = "",
    batch_size: Annotated[
        str, typer.Option("--batch-size", "--batch_size", "-b", help="A number, or auto.")
    ] = "8",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:0, mps.")] = None,
    limit: Annotated[
        float | None,
        typer.Option("--limit", "-L", help="Items a task (a share of them below 1); for testing."),
    ] = None,
    samples: Annotated[
        str | None,
        typer.Option(
            "--samples",
            "-E",
            help="Which items of a task, as lm_eval takes them: JSON such as "
            """'{"gks_piqa": [0, 7]}', or a file of it; not with --limit.""",
        ),
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option("--num-fewshot", "--num_fewshot", "-f", help="Examples in the prompt."),
    ] = None,
    apply_chat_template: Annotated[
        bool,
        typer.Option(
            "--apply-chat-template",
            "--apply_chat_template",
            help="Wrap prompts in the chat template.",
        ),
    ] = False,
    include_path: Annotated[
        list[str] | None,
        typer.Option("--include-path", "--include_path", help="Further folders of task YAMLs."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check all, count items and tokens, compute nothing."),
    ] = False,
) -> None:
    """Evaluate several settings on one load of the base; a killed run goes on where it stopped."""
    from gks_eval.grid import Grid

    arguments = _model_arguments(model_args)
    given = {"pretrained": pretrained, "batch_size": batch_size, "device": device}
    arguments |= {name: value for name, value in given.items() if value is not None}
    evaluation = {
        "limit": limit,
        "samples": None if samples is None else _samples(samples, limit),
        "num_fewshot": num_fewshot,
        "apply_chat_template": apply_chat_template or None,
    }
    run = _plan if dry_run else _run
    run(
        Grid(
            settings=[part for part in settings.split(",") if part.strip()],
            tasks=[part.strip() for part in tasks.split(",") if part.strip()],
            output=output,
            library=library,
            model_arguments=arguments,
            evaluation={name: value for name, value in evaluation.items() if value is not None},
            include_paths=include_path or [],
        )
    )


def _demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where results go.")] = Path(
        "demo-results"
    ),
    limit: Annotated[
        int,
        typer.Option("--limit", "-L", min=1, help="Items a task, of 110; all six tasks are run."),
    ] = 60,
) -> None:
    """Run base, Arrow and GenKnowSub on the bundled demo: a real 135M model, six small tasks."""
    from gks_eval.grid import Grid
    from gks_eval.util.hardware import fast_bfloat16

    dtype = "bfloat16" if fast_bfloat16() else "float32"
    _run(
        Grid(
            settings=DEMO_SETTINGS.split(","),
            tasks=["gks_demo"],
            output=output,
            library="smollm2-demo",
            model_arguments={"dtype": dtype, "batch_size": "auto"},
            evaluation={"limit": limit},
        )
    )


def _model_arguments(text: str) -> dict[str, Any]:
    if not text:
        return {}
    from lm_eval.utils import simple_parse_args_string

    from gks_eval.method.setting import setting_arguments

    try:
        arguments: dict[str, Any] = simple_parse_args_string(text)
    except ValueError:
        arguments = {"": ""}
    for name, value in arguments.items():
        if value == "" or name == "self":
            # Without the text itself, which may hold a token.
            raise UsageError("--model-args is not written name=value,name=value.") from None
        if name in setting_arguments():
            raise UsageError(
                f"--model-args: {name} belongs to a setting; write 'gks:avg;{name}=...'."
            )
    return arguments


def _samples(text: str, limit: float | None) -> dict[str, list[int]]:
    """Read ``--samples``: indices of items by task, as JSON or as the name of a file of it."""
    if limit is not None:
        raise UsageError("--samples and --limit exclude each other; give one of them.")
    shape = (
        """a JSON object of item numbers by task, such as {"gks_piqa": [0, 7]}, or a file of it"""
    )
    file = JsonFile("file of item numbers", UsageError, "see --help")
    try:
        inline = text.lstrip().startswith("{")
        found = parse_json(text.encode("utf-8", "replace")) if inline else file.read(Path(text))
    except (ValueError, UsageError):
        raise UsageError(f"--samples {text[:60]!r} is not {shape}.") from None
    if not isinstance(found, dict) or not found:
        raise UsageError(f"--samples {text[:60]!r} is not {shape}.")
    for task, indices in found.items():
        numbers = isinstance(indices, list) and all(type(n) is int and n >= 0 for n in indices)
        if not numbers or not indices or len(set(indices)) < len(indices):
            raise UsageError(
                f"--samples: {task} needs a list of different item numbers, 0 being the first."
            )
    # lm-eval takes the items in the set's order and names them in the list's.
    return {task: sorted(indices) for task, indices in found.items()}


def _plan(grid: Grid) -> None:
    from gks_eval.grid.grid_plan import plan_grid
    from gks_eval.grid.table import plan_lines, plan_table, print_whole
    from gks_eval.util.process_group import ProcessGroup
    from gks_eval.util.quiet import quiet_libraries

    group = ProcessGroup()
    if not group.is_main:
        return  # one process counts for all
    group.leave()
    quiet_libraries()
    with lm_eval_told():
        plan = plan_grid(grid)
    print_whole(plan_table(plan))
    for line in plan_lines(plan):
        typer.echo(line)


def _run(grid: Grid) -> None:
    from rich.console import Console

    from gks_eval.cli._bar import working

    console = Console(stderr=True)
    started = time.monotonic()
    total = len(grid.settings)
    seen = 0
    waiting = ExitStack()
    waiting.enter_context(working("reading libraries and tasks"))

    from gks_eval.grid import Cell, run_grid
    from gks_eval.grid.table import accuracy_table, print_whole
    from gks_eval.util.process_group import ProcessGroup
    from gks_eval.util.quiet import quiet_libraries

    quiet_libraries()

    def report(cell: Cell, state: str) -> None:
        nonlocal seen
        waiting.close()
        if state != "done":
            seen += 1
            console.print(f"[{seen}/{total}] {cell.label}: {state}", markup=False, highlight=False)

    group = ProcessGroup()
    with waiting, lm_eval_told():
        folders = run_grid(grid, report if group.is_main else None)
    if not group.is_main:
        return
    print_whole(accuracy_table(folders))
    spent = time.monotonic() - started
    told = f"Results in {grid.output} ({spent:.0f} s)."
    if total > 1:
        told += f" To test the differences: gks-eval compare {shlex.quote(grid.output.as_posix())}"
    console.print(told, markup=False, highlight=False, soft_wrap=True)
