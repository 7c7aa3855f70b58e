"""The scores that a comparison rests on: one metric of one task in one run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gks_eval.errors import ResultsError
from gks_eval.evidence.records import Metric, TaskResult
from gks_eval.evidence.runs import Run
from gks_eval.evidence.samples import Item, TaskSamples

__all__ = ["Scores", "choose_metric", "load_scores", "pick_key"]

# Most tasks log several metrics; without a group's word this order decides.
_PREFERRED = ("acc", "exact_match", "acc_norm", "em", "f1", "mcc")


@dataclass(frozen=True, slots=True)
class Scores:
    """One metric of one task in one run.

    Attributes:
        task: The task's record.
        metric: The aggregate as recorded.
        items: The items that have the metric; None where they cannot be had.
        missing: Why `items` is None, as half a sentence.
        binary: Whether every item scores 0 or 1, so that the metric is an accuracy.
        n: Number of items behind the value.
    """

    task: TaskResult
    metric: Metric
    items: Sequence[Item] | None
    missing: str
    binary: bool
    n: int

    @property
    def values(self) -> list[float]:
        """Return the items' scores, in the order of the split."""
        return [item.values[self.metric.name] for item in self.items or ()]

    @property
    def successes(self) -> int:
        """Return how many items score 1; meaningful where `binary`."""
        return round(self.metric.value * self.n)


def load_scores(task: TaskResult, key: str, samples: TaskSamples | None) -> Scores:
    """Bring a metric's record and its items together.

    Raises:
        ResultsError: The items do not add up to the recorded mean: the files are of two runs.
    """
    metric = task.metrics[key]
    if samples is None:
        return Scores(task, metric, None, "no samples logged", _looks_binary(task, metric), task.n)
    found = samples.by_filter.get(metric.filter, ())
    items = [item for item in found if metric.name in item.values]
    if not items:
        reason = f"no score for {metric.name} in its samples"
        return Scores(task, metric, None, reason, _looks_binary(task, metric), task.n)
    values = [item.values[metric.name] for item in items]
    mean = math.fsum(values) / len(values)
    if abs(mean - metric.value) > 1e-6 * max(1.0, abs(metric.value)):
        if _aggregation(task, metric.name) == "mean":
            raise ResultsError(
                f"{samples.path} gives {metric.name} = {mean:.6g} where {task.source.name} says "
                f"{metric.value:.6g}: they are of two runs; run the evaluation again."
            )
        reason = f"{metric.name} is no mean over items"
        return Scores(task, metric, None, reason, False, task.n)
    binary = all(value in (0.0, 1.0) for value in values)
    return Scores(task, metric, items, "", binary, len(items))


def choose_metric(task: str, runs: Iterable[Run], asked: str | None = None) -> str | None:
    """Return the key of the metric to compare `task` by; None where no run has `asked`.

    Args:
        task: The task's name.
        runs: The runs; the metric must be in the first that has the task.
        asked: ``metric`` or ``metric,filter``; without it the metric that a group averages, else
            the usual one.
    """
    holders = [run for run in runs if task in run.tasks]
    if not holders:
        return None
    metrics = holders[0].tasks[task].metrics
    if asked is not None:
        return pick_key(metrics, asked)
    for run in holders:
        for group in run.groups.values():
            shared = [key for key in group.metrics if key in metrics]
            if task in group.leaves and shared:
                return shared[0]
    for name in _PREFERRED:
        if key := pick_key(metrics, name):
            return key
    return next(iter(metrics), None)


def pick_key(metrics: Iterable[str], asked: str) -> str | None:
    """Return the key that `asked`, with or without a filter, stands for."""
    keys = list(metrics)
    if asked in keys:
        return asked
    return next(
        (key for key in (f"{asked},none", *keys) if key in keys and key.split(",")[0] == asked),
        None,
    )


def _looks_binary(task: TaskResult, metric: Metric) -> bool:
    """Tell an accuracy by its standard error, sqrt(p (1 - p) / (n - 1)) in lm-eval."""
    count = metric.value * task.n
    if not 0.0 <= metric.value <= 1.0 or task.n < 2 or abs(count - round(count)) > 1e-6 * task.n:
        return False
    if metric.stderr is None:
        return metric.name.startswith(("acc", "exact_match"))
    expected = math.sqrt(metric.value * (1.0 - metric.value) / (task.n - 1))
    return abs(metric.stderr - expected) <= 1e-6


def _aggregation(task: TaskResult, metric: str) -> str | None:
    entries = task.config.get("metric_list")
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and entry.get("metric") == metric:
            return str(entry.get("aggregation"))
    return None
