"""Compares methods over several seeds: runs of libraries that were trained alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gks_eval.errors import ResultsError, UsageError
from gks_eval.evidence.averages import group_keys, group_weights, is_weighted
from gks_eval.evidence.measure import linked
from gks_eval.evidence.replicate_rows import MEAN, Replicates, Row
from gks_eval.evidence.replicate_runs import Method
from gks_eval.evidence.replicate_tasks import SeededTask, seeded_task
from gks_eval.evidence.runs import Run, selected_names
from gks_eval.evidence.stats.holm import holm
from gks_eval.evidence.stats.replicated import Replicated, replicated

__all__ = ["replicates"]


def replicates(
    methods: Sequence[Method],
    metric: str | None = None,
    tasks: Sequence[str] = (),
    confidence: float = 0.95,
) -> Replicates:
    """Compare every method with the first, seed by seed and item by item.

    Args:
        methods: As `find_methods` returns them.
        metric: For every task; None for each task's usual one.
        tasks: Tasks or groups to keep; empty for all that every run has.
        confidence: Of the intervals.

    Raises:
        ResultsError: Runs that cannot be compared, or have other items.
        UsageError: No run has a task or metric that was asked for.
    """
    baseline = methods[0]
    seeds = list(baseline.runs)
    first = baseline.runs[seeds[0]]
    notes: list[str] = []
    chosen = _chosen(methods, tasks, notes)
    rows: list[Row] = []
    for method in methods[1:]:
        found: dict[str, SeededTask] = {}
        for name in chosen:
            task = seeded_task(name, baseline, method, metric)
            if isinstance(task, str):
                if task not in notes:
                    notes.append(task)
            else:
                found[name] = task
        if not found:
            raise UsageError(f"no task can be compared over seeds: {'; '.join(notes)}.")
        single = [
            _row(method, name, {name: task}, [1.0], confidence) for name, task in found.items()
        ]
        adjusted = holm([row.p for row in single])
        averages: list[Row] = []
        unit = {
            name: task
            for name, task in found.items()
            if task.unit and task.higher_is_better is not False
        }
        if len(unit) > 1:
            even = [1.0 / len(unit)] * len(unit)
            averages.append(_row(method, MEAN, unit, even, confidence))
        averages += _groups(method, first, found, metric, confidence)
        rows += averages
        rows += [
            row.model_copy(update={"p_holm": p}) for row, p in zip(single, adjusted, strict=True)
        ]
    return Replicates(
        baseline=baseline.label,
        patterns={method.label: method.pattern for method in methods},
        seeds=seeds,
        confidence=confidence,
        rows=rows,
        notes=notes,
    )


def _chosen(methods: Sequence[Method], wanted: Sequence[str], notes: list[str]) -> list[str]:
    """Return the tasks that all runs have."""
    runs = [run for method in methods for run in method.runs.values()]
    asked, _ = selected_names(runs, wanted)
    lacking = [name for name in asked if any(name not in run.tasks for run in runs)]
    if lacking:
        notes.append(f"left out, as not every run has them: {', '.join(lacking)}")
    if shared := [name for name in asked if name not in lacking]:
        return shared
    raise ResultsError("the runs share no task; evaluate all methods and seeds on the same tasks.")


def _groups(
    method: Method,
    first: Run,
    found: Mapping[str, SeededTask],
    metric: str | None,
    confidence: float,
) -> list[Row]:
    rows = []
    for name, group in first.groups.items():
        for key in group_keys(name, [first], metric):
            if all(leaf in found and found[leaf].key == key for leaf in group.leaves):
                tasks = {leaf: found[leaf] for leaf in group.leaves}
                sizes = [task.values.shape[1] for task in tasks.values()]
                weights = group_weights(sizes, is_weighted(name, key, [first]))
                rows.append(_row(method, name, tasks, weights, confidence))
    return rows


def _row(
    method: Method,
    name: str,
    tasks: Mapping[str, SeededTask],
    weights: Sequence[float],
    confidence: float,
) -> Row:
    parts = list(tasks.values())
    values = [task.values for task in parts]
    sizes = [value.shape[1] for value in values]
    clusters = linked([task.clusters for task in parts], sizes)
    found: Replicated = replicated(values, weights, clusters, unit=all(task.unit for task in parts))
    low, high = found.interval(confidence) or (None, None)
    keys = {task.key for task in parts}
    directions = {task.higher_is_better for task in parts}
    return Row(
        method=method.label,
        name=name,
        metric=keys.pop() if len(keys) == 1 else "",
        binary=all(task.binary for task in parts),
        higher_is_better=directions.pop() if len(directions) == 1 else None,
        change=found.change,
        low=low,
        high=high,
        p=found.p(),
        p_holm=None,
        p_seeds=found.seeds_p,
        p_items=found.items_p,
        stderr_seeds=found.seeds_variance**0.5,
        stderr_items=found.items_variance**0.5,
        detectable=found.detectable(round(1.0 - confidence, 12)),
        by_seed=dict(zip(method.runs, map(float, found.by_seed), strict=True)),
        n=sum(sizes),
        clusters=len({label for own in clusters for label in own}) if clusters else None,
    )
