"""A method's changes on one task, item by item under every seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gks_eval.errors import ResultsError
from gks_eval.evidence.aggregation import ratio_of_sums
from gks_eval.evidence.measure import Changes, pair
from gks_eval.evidence.replicate_runs import Method
from gks_eval.evidence.samples import read_samples
from gks_eval.evidence.scores import choose_metrics, load_scores
from gks_eval.evidence.stats.streams import Floats

__all__ = ["SeededTask", "seeded_task"]


@dataclass(frozen=True, slots=True)
class SeededTask:
    """A method's changes on one task.

    Attributes:
        key: The metric, ``metric,filter``.
        values: Changes of the same items under every seed, (S, n).
        clusters: A label per item, equal for linked items; empty if none are linked.
        binary: Whether all scores are 0 or 1.
        unit: Whether all scores lie between 0 and 1.
        higher_is_better: None if lm-eval does not record it.
    """

    key: str
    values: Floats
    clusters: tuple[str, ...]
    binary: bool
    unit: bool
    higher_is_better: bool | None


def seeded_task(
    name: str, baseline: Method, method: Method, metric: str | None
) -> SeededTask | str:
    """Return the changes on one task under every seed, or why there are none.

    Raises:
        ResultsError: Two runs cannot be compared, or have other items.
    """
    keys = choose_metrics(name, [*baseline.runs.values()], metric)
    if not keys:
        return f"{name} has no {metric or 'usable metric'} and is left out"
    key = keys[0]
    changes: list[Changes] = []
    order: list[tuple[str, int]] = []
    for seed, run in baseline.runs.items():
        other = method.runs[seed]
        for one in (run, other):
            if key not in one.tasks[name].metrics:
                raise ResultsError(f"{one.folder} has no {key} of {name}; evaluate it again.")
        mine, theirs = (
            load_scores(one.tasks[name], key, read_samples(one.tasks[name])) for one in (run, other)
        )
        if mine.items is None or theirs.items is None:
            return f"{name} is left out: {mine.missing or theirs.missing}"
        if ratio_of_sums(run.tasks[name], mine.metric.name, mine.items):
            return f"{name} is left out: {mine.metric.name} is not a mean over items"
        found = pair(mine, theirs)
        where = f"{name} in {run.folder} and {other.folder}"
        if found.faults:
            raise ResultsError(
                f"{where} cannot be compared: {', '.join(found.faults)}; run them alike."
            )
        change = found.changes
        if change is None or change.pairing.unpaired:
            raise ResultsError(f"{where} have other items; run them with the same limit and data.")
        own = [item.key for item, _ in change.pairing.pairs]
        if order and sorted(own) != sorted(order):
            raise ResultsError(
                f"{name} in {run.folder} has other items than under the first seed; evaluate every "
                "seed on the same items."
            )
        order = order or own
        changes.append(change)
    values = np.stack([change.values[_places(change, order)] for change in changes])
    # Results from before a task declared its links are compared with later ones.
    links = next((change for change in changes if change.clusters), changes[0])
    labels = links.clusters and tuple(links.clusters[i] for i in _places(links, order))
    return SeededTask(
        key,
        values,
        labels,
        all(change.binary for change in changes),
        all(change.unit for change in changes),
        next(iter(baseline.runs.values())).tasks[name].metrics[key].higher_is_better,
    )


def _places(change: Changes, order: Sequence[tuple[str, int]]) -> list[int]:
    place = {item.key: index for index, (item, _) in enumerate(change.pairing.pairs)}
    return [place[key] for key in order]
