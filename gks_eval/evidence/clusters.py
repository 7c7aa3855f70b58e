"""Which items of a task are linked: declared by the task, or named by the user.

A task declares it in the metadata of its YAML, as ``cluster: FIELD``. Items with the same value of
that field of the document are linked, within a task and between tasks of one data set. So the
translations of a question are linked by its id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from gks_eval.errors import UsageError, did_you_mean
from gks_eval.evidence.records import TaskResult
from gks_eval.evidence.runs import Run
from gks_eval.evidence.samples import SAMPLES

__all__ = ["DECLARED", "NONE", "with_clusters"]

DECLARED: Final = "declared"
NONE: Final = "none"
# Fields that every sample has: its place in the split, and its task.
_ALWAYS: Final = ("doc_id", "task")


def with_clusters(runs: Sequence[Run], field: str) -> list[Run]:
    """Return runs whose tasks link their items by `field`.

    Args:
        runs: As `find_runs` gives them.
        field: ``declared`` for what the tasks declare; ``none`` for no links; otherwise a field of
            the documents, ``doc_id`` or ``task``, for the tasks that declare nothing.

    Raises:
        UsageError: Such tasks exist and no document of theirs has the field.
    """
    if field == DECLARED:
        return list(runs)
    if field == NONE:
        return [_linked(run, dict.fromkeys(run.tasks, "")) for run in runs]
    bare = {name for run in runs for name in run.tasks} - {
        name for run in runs for name, task in run.tasks.items() if task.cluster
    }
    known = set(_ALWAYS)
    for run in runs:
        for name in bare & run.tasks.keys():
            known |= _fields(run.tasks[name])
    if bare and field not in known:
        raise UsageError(
            f"--cluster: no document of a task without declared links has a field {field!r}; "
            f"{did_you_mean(field, known)}."
        )
    return [_linked(run, dict.fromkeys(bare & run.tasks.keys(), field)) for run in runs]


def _linked(run: Run, fields: dict[str, str]) -> Run:
    tasks = {
        name: replace(task, cluster=fields.get(name, task.cluster))
        for name, task in run.tasks.items()
    }
    return replace(run, tasks=tasks)


def _fields(task: TaskResult) -> set[str]:
    if task.samples is None:
        return set()
    for _, row in SAMPLES.lines(task.samples):
        doc = row.get("doc")
        return {key for key in doc if isinstance(key, str)} if isinstance(doc, dict) else set()
    return set()
