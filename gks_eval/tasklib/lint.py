"""Look through the items of tasks for faults, without a model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from gks_eval.errors import DataError, UsageError, did_you_mean
from gks_eval.paths import tasks_dir
from gks_eval.tasklib.faults import Fault, FaultKind, item_faults

__all__ = ["DEFAULT_TASKS", "TaskLint", "lint_items", "lint_tasks", "raise_for_faults"]

DEFAULT_TASKS = ("gks_all", "gks_demo")


@dataclass(frozen=True)
class TaskLint:
    """What was found in the scored split of one task.

    Attributes:
        task: Name of the task.
        items: Number of items looked at.
        faults: Faults by the item's index in the split, of faulty items only.
    """

    task: str
    items: int
    faults: Mapping[int, tuple[Fault, ...]] = field(default_factory=dict)

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

    Raises:
        UsageError: For a name that the pack does not have.
        HubError: When a task's data cannot be loaded.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=include_path or str(tasks_dir()), include_defaults=False)
    for name in names:
        if name not in manager.all_tasks:
            raise UsageError(
                f"{name!r} is no task of this pack; {did_you_mean(name, manager.all_tasks)}."
            )
    loaded: dict[str, Any] = {}
    with _without_warnings():
        for name in names:  # one by one: lm-eval refuses a task that two of the names contain
            loaded.update(manager.load([name])["tasks"])
    return [_lint_task(name, task) for name, task in loaded.items()]


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence what tasks say of faults when they load: the report says the same and more."""
    logger = logging.getLogger("gks_eval.tasklib.task")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _lint_task(name: str, task: Any) -> TaskLint:
    split = task.scored_split()
    faults = {i: found for i, doc in enumerate(split) if (found := task.faults_of(doc))}
    return TaskLint(name, len(split), faults)


def raise_for_faults(lints: Sequence[TaskLint]) -> None:
    """End in an error when anything was found.

    Raises:
        DataError: It counts the faulty items.
    """
    faulty = [lint for lint in lints if lint.faults]
    if faulty:
        items = sum(len(lint.faults) for lint in faulty)
        raise DataError(
            f"faulty items: {items}, in {len(faulty)} of {len(lints)} tasks; those whose gold "
            "answer is outside the choices are left out of every score, the others are scored."
        )
