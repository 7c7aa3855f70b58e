"""`gks-eval routes`: routing on tasks, on one text, or on the experts' own text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gks_eval.cli import _complete
from gks_eval.errors import DataError, UsageError
from gks_eval.util.files import check_output

if TYPE_CHECKING:
    from gks_eval.method.setting import Setting
    from gks_eval.model.lm import GksArrowLM
    from gks_eval.training.jobs import TrainingPlan

__all__ = ["register"]

_UNSCORED = {"generate_until", "loglikelihood_rolling"}  # lm-eval's names of output types


def register(app: typer.Typer) -> None:
    """Add ``routes`` to the application."""
    app.command("routes")(_routes)


def _routes(
    library: Annotated[
        str,
        typer.Option(help="Bundled name, folder or hub id.", autocompletion=_complete.libraries),
    ],
    task: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            "--task",
            "-t",
            help="Comma-separated names of tasks or groups.",
            autocompletion=_complete.tasks,
        ),
    ] = None,
    text: Annotated[Path | None, typer.Option(help="A UTF-8 file to route token by token.")] = None,
    accuracy: Annotated[
        bool,
        typer.Option(
            "--accuracy",
            help="Share of held-out text that goes to the expert trained on its kind.",
        ),
    ] = False,
    setting: Annotated[
        str,
        typer.Option(
            "--setting",
            "--settings",
            help="A setting in the grid's grammar, such as arrow; for --accuracy also several, "
            "separated by commas.",
            autocompletion=_complete.settings,
        ),
    ] = "gks:avg",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="JSON file for all numbers: routes.json, or accuracy.json for --accuracy.",
        ),
    ] = None,
    limit: Annotated[
        int,
        typer.Option("--limit", "-L", min=1, help="Items per task, or held-out rows per expert."),
    ] = 50,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Recipe for --accuracy; default: the library's own recipe.yaml.",
            autocompletion=_complete.recipes,
        ),
    ] = None,
    every_layer: Annotated[
        bool, typer.Option("--every-layer", help="Print all layers (--accuracy).")
    ] = False,
    pretrained: Annotated[
        str | None, typer.Option(help="Base model; default: the library's.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Type of the base's weights.")] = "auto",
    include_path: Annotated[
        list[str] | None,
        typer.Option("--include-path", "--include_path", help="Further folders of task YAMLs."),
    ] = None,
) -> None:
    """Show each expert's share of tokens, mean coefficient and entropy, per layer."""
    if (task is not None) + (text is not None) + accuracy != 1:
        raise UsageError("give one of --tasks, --text and --accuracy.")
    if text is not None and output is not None:
        raise UsageError("--output is for --tasks and --accuracy; leave it out with --text.")
    if not accuracy and (recipe is not None or every_layer):
        name = "--recipe" if recipe is not None else "--every-layer"
        raise UsageError(f"{name} is for --accuracy; leave it out.")
    content = None if text is None else _read(text)
    from gks_eval.cli._bar import working
    from gks_eval.cli._lm_eval import lm_eval_errors

    labels = [part.strip() for part in setting.split(",")] if accuracy else [setting]
    parsed = {label: _setting(label) for label in labels}
    if accuracy and (fixed := [name for name, one in parsed.items() if one.expert or one.merge]):
        raise UsageError(f"--setting {fixed[0]} does not choose among experts; name a router.")
    if output is not None:
        check_output(output)
    names = [part.strip() for part in (task or "").split(",") if part.strip()]
    with working("reading the tasks"), lm_eval_errors():
        from gks_eval.model.lm import GksArrowLM
        from gks_eval.util.quiet import quiet_libraries

        quiet_libraries()
        tasks = {} if task is None else _tasks(names, include_path or [])
    plan = _plan(library, recipe) if accuracy else None
    first = parsed[labels[0]]
    # Given values only: what follows from the library must not count as given.
    arguments = {**first.model_dump(), "subtract": "+".join(first.subtract) or "none"}
    lm = GksArrowLM(pretrained, library=library, dtype=dtype, **arguments)
    if plan is not None:
        from gks_eval.cli._routing_accuracy import show_accuracy

        show_accuracy(lm, parsed, plan, limit, output, every_layer)
    elif content is not None:
        _show_text(lm, content)
    else:
        with lm_eval_errors():  # after the model, as the authors' protocol needs one of ours
            items = _items(tasks, limit)
        _show_tasks(lm, items, setting, output)


def _plan(library: str, recipe: str | None) -> TrainingPlan:
    """Return the recipe's jobs, checked before the base's weights are read."""
    from gks_eval.cli._recipe import recipe_of
    from gks_eval.library.load import load_library
    from gks_eval.training.held_out import check_held_out

    loaded = load_library(library)
    plan = recipe_of(loaded, recipe)
    check_held_out(plan, list(loaded.experts))
    return plan


def _setting(text: str) -> Setting:
    from gks_eval.method.setting import Setting

    parsed, others = Setting.parse(text)
    if others:
        name = next(iter(others))
        mend = f"use --{name}" if name in ("library", "pretrained", "dtype") else "leave it out"
        raise UsageError(f"--setting: {name} is not an argument of a setting; {mend}.")
    if not parsed.uses_library:
        raise UsageError(f"--setting {text} does not route; choose another, such as arrow.")
    return parsed


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError(f"--text {path} is not UTF-8; save it as UTF-8.") from None
    except OSError as error:
        raise UsageError(f"--text {path} cannot be read: {error.strerror}.") from None


def _show_text(lm: GksArrowLM, content: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from gks_eval.grid.table import print_whole
    from gks_eval.model.observe import observe_text

    assert lm.library is not None
    tokens, c_TE = observe_text(lm, content)
    experts = lm.library.mixed_adapters(lm.setting)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left")
    table.caption = "Mean coefficient over all routed layers; each token's largest in bold."
    table.add_column("token")
    for name in experts:
        table.add_column(name, justify="right")
    for token, shares in zip(tokens, c_TE.tolist(), strict=True):
        most = max(shares)
        cells = [Text(f"{share:.2f}", style="bold" if share == most else "") for share in shares]
        table.add_row(Text(repr(token)), *cells)
    print_whole(table)


def _show_tasks(
    lm: GksArrowLM, items: dict[str, list[list[Any]]], label: str, output: Path | None
) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    from gks_eval.cli._bar import progress_bar
    from gks_eval.grid.table import print_whole
    from gks_eval.model.observe import observe_requests, routing_record
    from gks_eval.util.files import write_text

    with progress_bar("routing", sum(map(len, items.values()))) as advance:

        def pairs(requests: list[list[Any]]) -> Iterator[list[tuple[list[int], list[int]]]]:
            for item in requests:
                if fault := lm.context_fault(item):
                    raise DataError(fault)
                yield lm.token_pairs(item)
                advance()

        tallies = {name: observe_requests(lm, pairs(found)) for name, found in items.items()}
    record = routing_record(lm, label, tallies)
    if output is not None:
        write_text(output, json.dumps(record, indent=1) + "\n")
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left")
    table.caption = "Mean coefficient of each expert over tokens and layers; entropy in nats."
    if ties := lm.library.config.tied_prototypes if lm.library else []:
        names = ", and ".join(" + ".join(entry.layers) for entry in ties)
        table.caption += f" One prototype per expert for {names}."
    found = record["tasks"].values()
    layers = len(record["layers"])
    table.add_column("expert", no_wrap=True)
    for name in record["tasks"]:
        table.add_column(escape(name.removeprefix("gks_")), justify="right")
    for expert, name in enumerate(record["experts"]):
        means = [sum(row[expert] for row in task["mean_coefficient"]) / layers for task in found]
        table.add_row(name, *(f"{mean:.3f}" for mean in means))
    table.add_section()
    table.add_row("entropy", *(f"{sum(task['entropy']) / layers:.3f}" for task in found))
    table.add_row("tokens", *(str(task["tokens"]) for task in found))
    print_whole(table)


def _tasks(names: list[str], include_paths: list[str]) -> dict[str, Any]:
    """Return the tasks by name, including those of groups."""
    if not names:
        raise UsageError("--tasks is empty; give tasks or groups, separated by commas.")
    from gks_eval.grid import task_manager
    from gks_eval.tasklib.local_data import local_data

    with local_data():
        tasks: dict[str, Any] = task_manager(names, include_paths).load(names)["tasks"]
    scored = {name: task for name, task in tasks.items() if task.OUTPUT_TYPE not in _UNSCORED}
    if not scored:
        raise UsageError(f"--tasks {','.join(names)}: none of these is scored by log-likelihood.")
    if left := ", ".join(sorted(tasks.keys() - scored)):
        typer.echo(f"Left out, not scored by log-likelihood: {left}.", err=True)
    return scored


def _items(tasks: dict[str, Any], limit: int) -> dict[str, list[list[Any]]]:
    """Return the requests of every task, grouped by item."""
    items: dict[str, list[list[Any]]] = {}
    for name, task in tasks.items():
        task.set_config(key="num_fewshot", value=0)
        task.build_all_requests(limit=limit, rank=0, world_size=1)
        scored = [one for one in task.instances if one.request_type == "loglikelihood"]
        if scored:
            items[name] = [list(group) for _, group in groupby(scored, lambda one: one.doc_id)]
    return items
