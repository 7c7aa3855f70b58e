"""Look through the items of tasks for faults, without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gks_eval.errors import DataError, GksError, HubError, UsageError, did_you_mean, one_line
from gks_eval.tasklib.faults import Fault, FaultKind, item_faults
from gks_eval.tasklib.named import leaves
from gks_eval.util.paths import tasks_dir

__all__ = ["DEFAULT_TASKS", "TaskLint", "lint_items", "lint_tasks", "raise_for_faults"]

DEFAULT_TASKS = ("gks_all", "gks_demo")


@dataclass(frozen=True)
class TaskLint:
    """What was found in the scored split of one task.

    Attributes:
        task: Name of the task.
        items: Number of items looked at.
        faults: Faults by the item's index in the split, of faulty items only.
        unread: Why the items could not be read; None where they were.
    """

    task: str
    items: int
    faults: Mapping[int, tuple[Fault, ...]] = field(default_factory=dict)
    unread: str | None = None

    def count(self, kind: FaultKind) -> int:
        """Return the number of items with a fault of this kind."""
        return sum(any(f.kind == kind for f in found) for found in self.faults.values())


def lint_items(task: str, items: Sequence[tuple[Sequence[str], object]]) -> TaskLint:
    """Lint plain (choices, gold) pairs; see `item_faults`."""
    faults = {i: found for i, pair in enumerate(items) if (found := item_faults(*pair))}
    return TaskLint(task, len(items), faults)


def lint_tasks(names: Sequence[str], include_path: str | None = None) -> list[TaskLint]:
    """Load tasks of this pack and lint their scored splits.

    Args:
        names: Tasks, groups or tags of the pack.
        include_path: The task folder; the package's own when None.

    Returns:
        One result for each task, those whose data cannot be loaded among them.

    Raises:
        UsageError: For a name that the pack does not have.
    """
    from lm_eval.tasks import TaskManager

    from gks_eval.tasklib.task import without_warnings

    manager = TaskManager(include_path=include_path or str(tasks_dir()), include_defaults=False)
    for name in names:
        if name not in manager.all_tasks:
            raise UsageError(
                f"{name!r} is no task of this pack; {did_you_mean(name, manager.all_tasks)}."
            )
    tasks = dict.fromkeys(leaf for name in names for leaf in leaves(manager, name))
    with without_warnings():
        return [_lint_task(name, manager) for name in tasks]


def _lint_task(name: str, manager: Any) -> TaskLint:
    try:
        task = manager.load([name])["tasks"][name]
        split = task.scored_split()
        faults = {i: found for i, doc in enumerate(split) if (found := task.faults_of(doc))}
    except Exception as error:  # whatever a data set, or its rows, may raise: the rest goes on
        said = str(error) if isinstance(error, GksError) else f"{type(error).__name__}: {error}"
        return TaskLint(name, 0, unread=one_line(said))
    return TaskLint(name, len(split), faults)


def raise_for_faults(lints: Sequence[TaskLint]) -> None:
    """End in an error when anything was found, or could not be looked at.

    Raises:
        HubError: It counts the tasks whose data could not be loaded, and the faulty items.
        DataError: It counts the faulty items.
    """
    faulty = [lint for lint in lints if lint.faults]
    items = sum(len(lint.faults) for lint in faulty)
    if unread := [(lint.task, lint.unread) for lint in lints if lint.unread is not None]:
        task, reason = unread[0]
        raise HubError(
            f"{len(unread)} of {len(lints)} tasks could not be read, {task} first: "
            f"{reason.rstrip('.')}; faulty items in the others: {items}."
        )
    if faulty:
        raise DataError(
            f"faulty items: {items}, in {len(faulty)} of {len(lints)} tasks; those whose gold "
            "answer is outside the choices are left out of every score, the others are scored."
        )
