"""How a group averages its tasks: which metrics, with which weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gks_eval.evidence.runs import Run
from gks_eval.evidence.scores import Scores, keys_of, usual_metric

__all__ = ["group_keys", "group_weights", "is_weighted", "weighted_mean"]


def group_keys(name: str, runs: Sequence[Run], asked: str | None) -> list[str]:
    """Return the keys of the averages to show: one metric under every filter.

    The metric is `asked`, or else the usual one among those that the first run averages.
    """
    holders = [run.groups[name] for run in runs if name in run.groups]
    if not holders:
        return []
    names = [key.partition(",")[0] for key in holders[0].keys]
    return keys_of(holders, asked or usual_metric(names, names))


def is_weighted(name: str, key: str, runs: Sequence[Run]) -> bool:
    """Return whether a group weights its tasks by size, inferred from the numbers of any run.

    If the numbers fit both ways, as with tasks of equal size, lm-eval's default holds: by size.
    """
    for run in runs:
        if name in run.groups and (known := run.groups[name].weighted.get(key)) is not None:
            return known
    return True


def group_weights(sizes: Sequence[int], weighted: bool) -> list[float]:
    """Return the tasks' weights, summing to 1."""
    if not weighted:
        return [1.0 / len(sizes)] * len(sizes)
    total = sum(sizes)
    return [size / total for size in sizes]


def weighted_mean(parts: Sequence[Scores], weighted: bool) -> float:
    """Return one run's group average from the recorded values of its tasks."""
    weights = group_weights([part.n for part in parts], weighted)
    return math.fsum(w * part.metric.value for w, part in zip(weights, parts, strict=True))
