"""The scores of one metric of one task in one run."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gks_eval.errors import ResultsError
from gks_eval.evidence.aggregation import aggregation_of, ratio_of_sums
from gks_eval.evidence.records import GroupResult, Metric, TaskResult
from gks_eval.evidence.runs import Run
from gks_eval.evidence.samples import Item, ItemKey, TaskSamples
from gks_eval.evidence.stats.streams import Floats

__all__ = [
    "Scores",
    "alike",
    "choose_metrics",
    "keys_of",
    "load_scores",
    "pick_key",
    "title_of",
    "usual_metric",
]

_ACCURACY = re.compile(r"^(acc|exact_match|em$|exact$|pass@|mc1$)|(_acc|_accuracy|_em)$")
# Most tasks log several metrics; without a group this order decides.
_PREFERRED = ("acc", "exact_match", "acc_norm", "em", "f1", "mcc")


@dataclass(frozen=True, slots=True)
class Scores:
    """One metric of one task in one run.

    Attributes:
        task: The task's record.
        metric: The aggregate as recorded.
        items: The items that have the metric, or None without samples.
        missing: Why `items` is None.
        binary: Whether the metric is an accuracy.
        n: Number of items behind the value.
        zero_one: Whether all scores may be 0 or 1, as far as this run shows.
    """

    task: TaskResult
    metric: Metric
    items: Sequence[Item] | None
    missing: str
    binary: bool
    n: int
    zero_one: bool

    @property
    def unit(self) -> bool:
        """Return whether all items' scores are known to lie between 0 and 1."""
        if self.items is None or ratio_of_sums(self.task, self.metric.name, self.items):
            return False
        return self.binary or bool(np.all((self.values >= 0.0) & (self.values <= 1.0)))

    @property
    def clusters(self) -> tuple[str, ...]:
        """Return a label per item, equal for linked items; empty if none are linked."""
        found = [item.cluster for item in self.items or ()]
        if not any(found):
            return ()
        names = (f"{self.task.name} {item.key}" for item in self.items or ())
        return tuple(label or name for label, name in zip(found, names, strict=True))

    @property
    def values(self) -> Floats:
        """Return one value per item, in the order of the split; their mean is the metric."""
        return self.values_of(self.items or ())

    @property
    def successes(self) -> int:
        """Return how many items score 1; only for accuracies."""
        return round(self.metric.value * self.n)

    def only(self, keys: Collection[ItemKey]) -> Scores:
        """Return the scores of the items with one of these keys."""
        items = [item for item in self.items or () if item.key in keys]
        value = float(self.values_of(items).mean()) if items else math.nan
        return replace(
            self,
            task=replace(self.task, n=len(items)),
            metric=replace(self.metric, value=value, stderr=None),
            items=None if self.items is None else items,
            n=len(items),
        )

    def values_of(self, items: Sequence[Item]) -> Floats:
        """Return one value for each of `items`, whose mean is the metric over them."""
        if parts := ratio_of_sums(self.task, self.metric.name, items):
            ratio, amounts, weights = parts
            return ratio.per_item(amounts, weights)
        return np.array([item.values[self.metric.name] for item in items], dtype=np.float64)

    def by_item(self, items: Sequence[Item]) -> Floats:
        """Return each item's own score, larger if the metric is larger."""
        if parts := ratio_of_sums(self.task, self.metric.name, items):
            return -parts[1]
        return self.values_of(items)


def load_scores(task: TaskResult, key: str, samples: TaskSamples | None) -> Scores:
    """Combine the record of a metric with its items.

    Raises:
        ResultsError: The items do not give the recorded value: the files are of two runs.
    """
    metric = task.metrics[key]

    def without(reason: str, over_all: bool = False) -> Scores:
        binary = not over_all and _looks_binary(task, metric)
        zero_one = binary or (not over_all and metric.value in (0.0, 1.0))
        return Scores(task, metric, None, reason, binary, task.n, zero_one)

    if samples is None:
        return without("no samples logged")
    found = samples.by_filter.get(metric.filter, ())
    items = [item for item in found if metric.name in item.values or metric.name in item.pairs]
    parts = ratio_of_sums(task, metric.name, items) if items else None
    if parts is None:
        items = [item for item in items if metric.name in item.values]
    if not items:
        if found and aggregation_of(task, metric.name) not in (None, "mean"):
            return without(f"{metric.name} is scored over all items at once", over_all=True)
        return without(f"no score for {metric.name} in its samples")
    known = aggregation_of(task, metric.name)
    if parts:
        ratio, amounts, weights = parts
        finite = bool(np.isfinite(amounts).all() and np.isfinite(weights).all())
        value = ratio.value(amounts, weights) if finite else math.nan
    else:
        values = [item.values[metric.name] for item in items]
        finite = all(map(math.isfinite, values))
        value = math.fsum(values) / len(values) if finite else math.nan
    if not finite:
        return without(f"its samples hold a score of {metric.name} that is not finite")
    if abs(value - metric.value) > 1e-6 * max(1.0, abs(metric.value)):
        if parts or known == "mean":
            raise ResultsError(
                f"{samples.path} gives {metric.name} = {value:.6g} where {task.source.name} says "
                f"{metric.value:.6g}: they are of two runs; run the evaluation again."
            )
        return without(f"{metric.name} is scored over all items at once", over_all=True)
    zero_one = parts is None and {*values} <= {0.0, 1.0}
    # All items may score 0 in BLEU or F1 as well; then the name decides.
    binary = zero_one and (len({*values}) > 1 or bool(_ACCURACY.search(metric.name)))
    return Scores(task, metric, items, "", binary, len(items), zero_one)


def alike(scores: Mapping[str, Scores]) -> dict[str, Scores]:
    """Return the runs' scores of one metric, with all or none of them as accuracies."""
    binary = all(s.zero_one for s in scores.values()) and any(s.binary for s in scores.values())
    return {label: replace(s, binary=binary) for label, s in scores.items()}


def choose_metrics(task: str, runs: Iterable[Run], asked: str | None = None) -> list[str]:
    """Return the keys to compare `task` by: one metric under every filter.

    Args:
        task: The task's name.
        runs: The runs; the first that has the task decides which metric.
        asked: ``metric``, or ``metric,filter`` for one filter. By default the metric that a group
            averages, or else the usual one.

    Returns:
        The keys, which some runs may lack; none where no run has `asked`.
    """
    holders = [run for run in runs if task in run.tasks]
    return keys_of([run.tasks[task] for run in holders], asked or _usual(task, holders))


def title_of(key: str, keys: Sequence[str]) -> str:
    """Return what distinguishes a key from the other keys of a task: filter, metric or both."""
    metrics, filters = zip(*(one.split(",", 1) for one in keys), strict=True)
    metric, filter_name = key.split(",", 1)
    parts = [metric] if len({*metrics}) > 1 else []
    parts += [filter_name] if len({*filters}) > 1 else []
    return ", ".join(parts)


def keys_of(entries: Iterable[TaskResult | GroupResult], asked: str | None) -> list[str]:
    """Return the keys that `asked` names: a metric under every filter, or a single key."""
    keys = list(dict.fromkeys(key for entry in entries for key in entry.keys))
    return [key for key in keys if asked in (key, key.partition(",")[0])]


def _usual(task: str, holders: Sequence[Run]) -> str | None:
    if not holders:
        return None
    names = [key.partition(",")[0] for key in holders[0].tasks[task].keys]
    for run in holders:
        for group in run.groups.values():
            if task in group.leaves and (averaged := usual_metric(group.keys, names)):
                return averaged
    return usual_metric(names, names)


def usual_metric(keys: Iterable[str], among: Iterable[str]) -> str | None:
    """Return the usual metric among those in both `keys` and `among`."""
    known = set(among)
    names = [name for key in keys if (name := key.partition(",")[0]) in known]
    return next((name for name in (*_PREFERRED, *names) if name in names), None)


def pick_key(metrics: Iterable[str], asked: str) -> str | None:
    """Return the key that `asked` names, with or without a filter."""
    keys = list(metrics)
    if asked in keys:
        return asked
    return next(
        (key for key in (f"{asked},none", *keys) if key in keys and key.split(",")[0] == asked),
        None,
    )


def _looks_binary(task: TaskResult, metric: Metric) -> bool:
    """Return whether a metric without samples looks like an accuracy, by name, count and stderr.

    lm-eval's standard error of an accuracy is sqrt(p (1 - p) / (n - 1)).
    """
    count = metric.value * task.n
    if not 0.0 <= metric.value <= 1.0 or task.n < 2 or abs(count - round(count)) > 1e-6 * task.n:
        return False
    named = bool(_ACCURACY.search(metric.name))
    if metric.stderr is None or metric.value in (0.0, 1.0):
        return named and not metric.stderr
    expected = math.sqrt(metric.value * (1.0 - metric.value) / (task.n - 1))
    return abs(metric.stderr - expected) <= 1e-6
