"""lm-eval's index of tasks, with the package's own in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gks_eval.errors import UsageError, did_you_mean
from gks_eval.paths import task_folders

__all__ = ["task_manager"]


def task_manager(names: Sequence[str], include_paths: Sequence[str] = ()) -> Any:
    """Return lm-eval's index of tasks with ours in it; ours alone where that is enough.

    Args:
        names: Tasks or groups that must be there.
        include_paths: Folders of task YAMLs beside ours.

    Raises:
        UsageError: One of `names` is unknown, when the sentence suggests the nearest of ours; or a
            folder is not there.
    """
    folders = task_folders(include_paths, "--include-path")

    from lm_eval.tasks import TaskManager

    # lm-eval's own thousands of tasks take seconds to index; our YAMLs name none of them.
    if not include_paths and not any(mark in name for name in names for mark in "*?["):
        ours = TaskManager(include_path=folders, include_defaults=False)
        if all(ours.match_tasks([name]) for name in names):
            return ours
    manager = TaskManager(include_path=folders)
    for name in names:
        if not manager.match_tasks([name]):
            raise UsageError(f"--tasks: {name} is unknown; {_near_task(name, manager)}")
    return manager


def _near_task(name: str, manager: Any) -> str:
    near = did_you_mean(name, [task for task in manager.all_tasks if task.startswith("gks_")])
    return f"{near}." if near.startswith("did") else "`gks-eval run ls tasks` lists them."
