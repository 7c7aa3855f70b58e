"""`gks-eval run ...`: lm-eval's own command line, with the package's tasks added."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import typer

from gks_eval.cli._lm_eval import lm_eval_errors
from gks_eval.errors import ResourceError, UsageError
from gks_eval.tasklib.named import check_named, warn_of_unreadable
from gks_eval.util.files import check_writable
from gks_eval.util.paths import task_folders

__all__ = [
    "check_asked",
    "check_output_path",
    "config_of",
    "folders_of_config",
    "harness_argv",
    "include_paths",
    "register",
    "token_to_environment",
]

_COMMANDS = frozenset({"run", "ls", "validate"})
_FLAG = "--include_path"
_HUB_MODELS: Final = ("gks_arrow", "hf", "hf-auto", "huggingface")


def harness_argv(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the arguments into lm-eval's own and the folders of ``--include_path``.

    lm-eval takes one folder there and silently drops all but the last; we take any number.

    Args:
        arguments: What stood after ``gks-eval run``.

    Returns:
        The arguments for lm-eval, its command first, and the user's folders in their order.

    Raises:
        UsageError: ``--include_path`` comes without a folder.
    """
    rest: list[str] = []
    folders: list[str] = []
    pending = iter(arguments)
    for argument in pending:
        flag, equals, value = argument.partition("=")
        if flag != _FLAG:
            rest.append(argument)
            continue
        folder = value if equals else next(pending, "")
        if not folder or folder.startswith("-"):
            raise UsageError(f"{_FLAG} needs a folder of task YAMLs after it.")
        folders.append(folder)
    if not rest or rest[0] not in _COMMANDS:
        rest.insert(0, "run")
    return rest, folders


def include_paths(named: Sequence[str], of_config: Sequence[str] = ()) -> list[str]:
    """Return the folders that lm-eval reads tasks from: ours, then the user's.

    If two folders have a task of one name, the later one wins, so the user's always does.

    Args:
        named: The folders of the command line. As in lm-eval they replace those of the file.
        of_config: The folders of the file given as ``--config``.

    Raises:
        UsageError: A folder does not exist; lm-eval itself would go on without its tasks.
    """
    return task_folders(list(named) or list(of_config), _FLAG)


def config_of(file: str | None) -> dict[str, Any]:
    """Return the content of lm-eval's ``--config`` file; empty without one."""
    if not file:
        return {}
    from lm_eval.config.evaluate_config import EvaluatorConfig

    return dict(EvaluatorConfig.load_yaml_config(file))


def folders_of_config(config: Mapping[str, Any]) -> list[str]:
    """Return the folders that lm-eval's configuration file names as ``include_path``."""
    named = config.get("include_path") or []
    return [named] if isinstance(named, str) else [str(folder) for folder in named]


def check_output_path(path: str) -> None:
    """Check that results can be written to ``--output_path`` before anything is loaded.

    Args:
        path: A folder, or a name that ends in ``.json``, as in lm-eval.

    Raises:
        ResourceError: They cannot be written; lm-eval would only log this, after the evaluation.
    """
    place = Path(path)
    check_writable(place.parent if place.suffix == ".json" else place)


def token_to_environment(model: str, arguments: dict[str, Any]) -> None:
    """Move a hub token from the model's arguments to the environment.

    lm-eval logs arguments and writes them into results; the hub's client reads the environment.

    Args:
        model: lm-eval's name of the model; other models may use the argument differently.
        arguments: Changed in place.
    """
    if model in _HUB_MODELS and isinstance(arguments.get("token"), str):
        os.environ["HF_TOKEN"] = arguments.pop("token")


def check_asked(asked: Mapping[str, Any], folders: Sequence[str]) -> None:
    """Refuse arguments that would fail, or score the wrong items, after the model is loaded.

    Args:
        asked: lm-eval's arguments, those of the command line before those of ``--config``.
        folders: The user's folders of tasks.

    Raises:
        UsageError: ``--cache_requests`` is combined with a part of the items, or a task of this
            package cannot do what is asked.
    """
    cache = asked.get("cache_requests")
    on = cache.get("cache_requests") if isinstance(cache, Mapping) else cache
    if on and (asked.get("limit") is not None or asked.get("samples")):
        from gks_eval.scoring.request_cache import CACHE_AND_ITEMS

        raise UsageError(CACHE_AND_ITEMS)
    names = asked.get("tasks") or []
    names = names if isinstance(names, list) else str(names).split(",")
    warn_of_unreadable(folders)
    if any(asked.get(n) for n in ("num_fewshot", "apply_chat_template", "system_instruction")):
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=task_folders(folders, _FLAG), include_defaults=False)
        check_named(manager, [part for name in names for part in str(name).split(",")], asked)


class _UnwrittenResults(logging.Handler):
    """Records whether lm-eval failed to save results: it only logs that and exits with 0."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lost = False

    def emit(self, record: logging.LogRecord) -> None:
        self.lost = self.lost or record.getMessage().startswith("Could not save")


def _run_harness(arguments: Sequence[str]) -> None:
    argv, folders = harness_argv(arguments)

    from lm_eval.__main__ import HarnessCLI
    from lm_eval.utils import setup_logging

    from gks_eval import _bridge

    setup_logging()
    sys.argv = ["gks-eval", *argv]  # lm-eval's parser reads only sys.argv
    harness = HarnessCLI()
    parsed = harness.parse_args()
    config = config_of(getattr(parsed, "config", None))
    if getattr(parsed, "include_path", None):  # `--include`, which argparse allows
        folders.append(parsed.include_path)
    parsed.include_path = include_paths(folders, folders_of_config(config))
    output = getattr(parsed, "output_path", None) or config.get("output_path")
    if output:
        check_output_path(str(output))
    asked = {**config, **{k: v for k, v in vars(parsed).items() if v is not None}}
    check_asked(asked, parsed.include_path[1:])
    if isinstance(given := getattr(parsed, "model_args", None), dict):
        token_to_environment(str(getattr(parsed, "model", "")), given)
    _bridge.register()  # for installs that read no .pth: `pip install --target`, GKS_EVAL_BRIDGE=0
    unwritten = _UnwrittenResults()
    tracker = logging.getLogger("lm_eval.loggers.evaluation_tracker")
    tracker.addHandler(unwritten)
    from gks_eval.tasklib.local_data import local_data

    try:
        with local_data():
            harness.execute(parsed)
    finally:
        tracker.removeHandler(unwritten)
    if unwritten.lost:
        raise ResourceError(
            f"--output_path {output}: lm-eval could not save all of the results (is the disk "
            "full?); LMEVAL_LOG_LEVEL=DEBUG shows why."
        )


def _run(context: typer.Context) -> None:
    """Run lm-eval's own command line with the gks_* tasks added; all its arguments work.

    `gks-eval run --help` lists them; `gks-eval run ls tasks` lists the tasks.
    """
    with lm_eval_errors():
        _run_harness(context.args)


def register(app: typer.Typer) -> None:
    """Add ``run`` to the application."""
    everything = {
        "ignore_unknown_options": True,
        "allow_extra_args": True,
        "help_option_names": [],  # `--help` is lm-eval's here
    }
    app.command("run", context_settings=everything)(_run)
