"""The options that `gks-eval grid` and `gks-eval controls` share, and the grid they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from gks_eval.cli import _complete
from gks_eval.errors import UsageError

if TYPE_CHECKING:
    from gks_eval.grid import Grid

__all__ = [
    "BatchSize",
    "ChatTemplate",
    "Device",
    "DryRun",
    "IncludePath",
    "Library",
    "Limit",
    "ModelArgs",
    "Output",
    "Pretrained",
    "Samples",
    "Shots",
    "Tasks",
    "grid_of",
    "named_tasks",
]

Tasks: TypeAlias = Annotated[
    str,
    typer.Option(
        "--tasks",
        "-t",
        help="Comma-separated names of tasks or groups.",
        autocompletion=_complete.tasks,
    ),
]
Output: TypeAlias = Annotated[
    Path, typer.Option("--output", "-o", help="Folder that gets one sub-folder per setting.")
]
Library: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Bundled name, folder or hub id.", autocompletion=_complete.libraries),
]
Pretrained: TypeAlias = Annotated[
    str | None, typer.Option(help="Base model; default: the library's.")
]
ModelArgs: TypeAlias = Annotated[
    str,
    typer.Option(
        "--model-args", "--model_args", "-a", help="Further arguments in the format of lm_eval."
    ),
]
BatchSize: TypeAlias = Annotated[
    str, typer.Option("--batch-size", "--batch_size", "-b", help="A number, or auto.")
]
Device: TypeAlias = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:0, mps.")]
Limit: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--limit", "-L", help="Items per task (a fraction of them if below 1); for testing."
    ),
]
Samples: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--samples",
        "-E",
        help="Items per task in the format of lm_eval: JSON such as "
        """'{"gks_piqa": [0, 7]}', or a JSON file; not with --limit.""",
    ),
]
Shots: TypeAlias = Annotated[
    int | None,
    typer.Option("--num-fewshot", "--num_fewshot", "-f", help="Number of examples in the prompt."),
]
ChatTemplate: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--apply-chat-template",
        "--apply_chat_template",
        help="Wrap prompts in the chat template.",
    ),
]
IncludePath: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--include-path", "--include_path", help="Further folders of task YAMLs."),
]
DryRun: TypeAlias = Annotated[
    bool,
    typer.Option("--dry-run", help="Check everything, count items and tokens, compute nothing."),
]


def grid_of(
    settings: Sequence[str],
    tasks: str,
    output: Path,
    library: str | None,
    *,
    model_args: str,
    model: Mapping[str, str | None],
    limit: float | None,
    samples: str | None,
    num_fewshot: int | None,
    apply_chat_template: bool,
    include_path: Sequence[str] | None,
) -> Grid:
    """Return the grid that the options ask for.

    Args:
        settings: In the grid's grammar.
        tasks: As the option.
        output: As the option.
        library: As the option.
        model_args: As the option.
        model: Model arguments from separate options; they override `model_args`.
        limit: As the option.
        samples: As the option.
        num_fewshot: As the option.
        apply_chat_template: As the option.
        include_path: As the option.

    Raises:
        UsageError: An option cannot be read.
    """
    from gks_eval.grid import Grid

    given = {name: value for name, value in model.items() if value is not None}
    evaluation = {
        "limit": _checked(limit),
        "samples": None if samples is None else _samples(samples, limit),
        "num_fewshot": num_fewshot,
        "apply_chat_template": apply_chat_template or None,
    }
    return Grid(
        settings=settings,
        tasks=named_tasks(tasks),
        output=output,
        library=library,
        model_arguments=_model_arguments(model_args) | given,
        evaluation={name: value for name, value in evaluation.items() if value is not None},
        include_paths=include_path or [],
    )


def named_tasks(text: str) -> list[str]:
    """Return the tasks and groups that ``--tasks`` names.

    Raises:
        UsageError: It names nothing.
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise UsageError("--tasks names nothing; give tasks or groups, separated by commas.")
    return names


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
            # The text itself is not shown, as it may hold a token.
            raise UsageError("--model-args does not have the form name=value,name=value.") from None
        if name in setting_arguments():
            raise UsageError(
                f"--model-args: {name} belongs to a setting; write 'gks:avg;{name}=...'."
            )
    return arguments


def _checked(limit: float | None) -> float | None:
    if limit is not None and limit <= 0:
        raise UsageError(f"--limit {limit:g} takes no item; give a positive number.")
    return limit


def _samples(text: str, limit: float | None) -> dict[str, list[int]]:
    """Read ``--samples``: indices of items by task, as JSON or as the name of a JSON file."""
    from gks_eval.util.json_file import JsonFile, parse_json

    if limit is not None:
        raise UsageError("--samples and --limit exclude each other; give one of them.")
    shape = (
        """a JSON object of item numbers by task, such as {"gks_piqa": [0, 7]}, or a JSON file"""
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
                f"--samples: {task} needs a list of distinct item numbers, counted from 0."
            )
    # lm-eval takes items in the set's order but names them in the list's order.
    return {task: sorted(indices) for task, indices in found.items()}
