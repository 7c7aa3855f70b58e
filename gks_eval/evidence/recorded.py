"""Notes on recorded results that have no row in a comparison."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

from gks_eval.evidence.records import GroupResult, TaskResult
from gks_eval.evidence.runs import Run

__all__ = ["recorded_notes"]


def recorded_notes(runs: Sequence[Run], names: Collection[str]) -> list[str]:
    """Return a note per entry, with the runs that have it.

    Args:
        runs: The runs.
        names: Tasks and groups to report on.
    """
    said: defaultdict[str, list[str]] = defaultdict(list)
    for run in runs:
        for note in dict.fromkeys(_of_run(run, names)):
            said[note].append(run.label)
    return [f"{note} in {', '.join(labels)}" for note, labels in said.items()]


def _of_run(run: Run, names: Collection[str]) -> Iterator[str]:
    entries: dict[str, TaskResult | GroupResult] = {**run.tasks, **run.groups}
    for name, entry in entries.items():
        if name in names:
            for key, value in entry.unusable.items():
                yield f"{name} is not compared by {key}: it is {value}"
            if not entry.keys:
                yield f"{name} has no metric"
    for name, group in run.groups.items():
        if name not in names:
            continue
        known = [run.tasks[leaf] for leaf in group.leaves if leaf in run.tasks]
        for leaf in group.leaves:
            if leaf not in run.tasks:
                yield f"{leaf}, a task of {name}, has no results"
        if {task.source for task in known} == {group.source}:
            for key in group.metrics:
                if key not in group.weighted:
                    yield f"{name} records an average of {key} that its tasks do not give"
    yield from (f"{name} is a group without an average" for name in run.unaveraged)
