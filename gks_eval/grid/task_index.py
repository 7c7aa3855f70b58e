"""lm-eval's index of tasks, with the package's tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gks_eval.errors import UsageError, did_you_mean, whole_reason
from gks_eval.grid.settings import Grid
from gks_eval.tasklib.named import leaves, warn_of_unreadable
from gks_eval.util.paths import task_folders

__all__ = ["grid_content", "task_manager"]


def task_manager(names: Sequence[str], include_paths: Sequence[str] = ()) -> Any:
    """Return lm-eval's index with our tasks, or only our and the user's tasks if these suffice.

    Args:
        names: Tasks or groups that must exist.
        include_paths: Further folders of task YAMLs.

    Raises:
        UsageError: One of `names` is unknown (the sentence suggests the nearest of our tasks), or
            a folder does not exist.
    """
    folders = task_folders(include_paths, "--include-path")
    warn_of_unreadable(include_paths)

    from lm_eval.tasks import TaskManager

    # Indexing lm-eval's thousands of tasks takes seconds, so do it only if one of them is named.
    if not any(mark in name for name in names for mark in "*?["):
        ours = TaskManager(include_path=folders, include_defaults=False)
        if all(leaf in ours.task_index for name in names for leaf in leaves(ours, name)):
            return ours
    manager = TaskManager(include_path=folders)
    for name in names:
        if not manager.match_tasks([name]):
            raise UsageError(f"--tasks: {name} is unknown; {_near_task(name, manager)}")
    return manager


def _near_task(name: str, manager: Any) -> str:
    near = did_you_mean(name, [task for task in manager.all_tasks if task.startswith("gks_")])
    return f"{near}." if near.startswith("did") else "`gks-eval run ls tasks` lists them."


def grid_content(tasks: Any, grid: Grid) -> dict[str, Any]:
    """Load a grid's tasks and return their content as plain JSON.

    Args:
        tasks: lm-eval's index of tasks.
        grid: The grid with its tasks, items and few-shot examples.

    Raises:
        UsageError: The items or few-shot examples asked for do not exist.
        GksError: The data of a task cannot be loaded.
    """
    from gks_eval.tasklib.task import GksTask, without_warnings
    from gks_eval.tasklib.task_content import group_content, task_content

    asked = grid.evaluation
    samples = asked.get("samples") or {}
    with without_warnings():  # each setting repeats them
        loaded = tasks.load(list(grid.tasks))
        if unknown := sorted(set(samples) - set(loaded["tasks"])):
            raise UsageError(f"--samples names {unknown[0]}, which is no task of this grid.")
        found = {}
        for name, task in loaded["tasks"].items():
            if isinstance(task, GksTask):
                task.check_evaluation(asked)
            try:
                found[name] = task_content(
                    task, asked.get("limit"), samples.get(name), asked.get("num_fewshot")
                )
            except AssertionError as error:  # lm-eval's only check of item numbers
                if "--samples" not in str(error):
                    raise
                raise UsageError(f"{name}: {whole_reason(error)}.") from None
    groups = {name: group_content(group) for name, group in loaded.get("groups", {}).items()}
    return {"tasks": found, "groups": groups}
