"""Ranks many runs by their mean over the tasks that all of them have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gks_eval.evidence.aggregation import ratio_of_sums
from gks_eval.evidence.averages import group_weights
from gks_eval.evidence.comparison import Leaderboard, Place, Row, Score
from gks_eval.evidence.cost import time_ratios
from gks_eval.evidence.measure import linked
from gks_eval.evidence.notes import some
from gks_eval.evidence.runs import Run
from gks_eval.evidence.scores import Scores
from gks_eval.evidence.stats.clustered_mean import clustered_interval
from gks_eval.evidence.stats.ranks import ranks
from gks_eval.evidence.stats.streams import Floats
from gks_eval.evidence.stats.wilson import wilson_interval
from gks_eval.evidence.task_rows import CompareOptions, TaskOutcome

__all__ = ["FAMILIES", "leaderboard"]

FAMILIES = ("base", "routers", "merges", "experts", "controls")
_OTHER = "other runs"


def leaderboard(
    runs: Sequence[Run],
    outcomes: Mapping[tuple[str, str], TaskOutcome],
    groups: Sequence[Row],
    settings: CompareOptions,
) -> Leaderboard | None:
    """Rank all runs; None if they share no task with scores between 0 and 1.

    Args:
        runs: All runs.
        outcomes: By task and metric. Of a task with several filters, the first counts.
        groups: The rows of groups. If one of them averages the same tasks, its weights hold;
            otherwise all tasks weigh the same.
        settings: How to compare.
    """
    tables: dict[str, Floats] = {}
    labels: list[Sequence[str]] = []
    metrics: dict[str, str] = {}
    binary, left_out, partial = True, [], []
    for (name, key), outcome in outcomes.items():
        if name in metrics:
            continue
        metrics[name] = key
        found = _table([outcome.scores.get(run.label) for run in runs])
        if found is None:
            left_out.append(name)
            continue
        tables[name], is_whole, own = found
        labels.append(own)
        binary = binary and outcome.row.binary
        partial += [] if is_whole else [name]
    if not tables:
        return None
    weighting = next(
        (row.weighting for row in groups
         if {*row.tasks} == {*tables} and {row.metric} == {metrics[name] for name in tables}),
        "plain",
    )  # fmt: skip
    sizes = [table.shape[1] for table in tables.values()]
    weights = group_weights(sizes, weighting == "by size")
    links = linked(labels, sizes)
    places = ranks([*tables.values()], weights, round(1.0 - settings.confidence, 12), links)
    ratios = time_ratios(runs)
    notes = [f"not in the mean: {some(left_out)}"] if left_out else []
    notes += [f"only the items of all runs count in {some(partial)}"] if partial else []
    entries = [
        Place(
            run=run.label,
            rank=places[index],
            family=run.info.get("family", _OTHER),
            needs=run.info.get("needs", ""),
            time_ratio=ratios.get(run.label),
            score=_mean(
                [table[index] for table in tables.values()], weights, links, binary, settings
            ),
        )
        for index, run in enumerate(runs)
    ]
    return Leaderboard(
        tasks=[*tables],
        weighting="by size" if weighting == "by size" else "plain",
        places=sorted(entries, key=lambda place: (place.rank, -place.score.value)),
        notes=notes,
    )


def _table(scores: Sequence[Scores | None]) -> tuple[Floats, bool, list[str]] | None:
    """Return scores of the items that all runs have, (runs, n), and what is known of the items.

    That is whether those are all items, and a label per item if items are linked.
    """
    rows: list[dict[tuple[str, int], float]] = []
    for one in scores:
        if one is None or not one.items or one.metric.higher_is_better is False:
            return None
        if ratio_of_sums(one.task, one.metric.name, one.items):
            return None
        rows.append(dict(zip([item.key for item in one.items], one.values.tolist(), strict=True)))
    common = [key for key in rows[0] if all(key in row for row in rows)]
    table = np.array([[row[key] for key in common] for row in rows], dtype=np.float64)
    if not common or not np.all((table >= 0.0) & (table <= 1.0)):
        return None
    label: dict[tuple[str, int], str] = {}
    for one in scores:
        if one is not None and one.items and one.clusters:
            keys = [item.key for item in one.items]
            label = dict(zip(keys, one.clusters, strict=True))
            break
    own = [label[key] for key in common] if label else []
    return table, all(len(row) == len(common) for row in rows), own


def _mean(
    tasks: Sequence[Floats],
    weights: Sequence[float],
    links: Sequence[Sequence[str]] | None,
    binary: bool,
    settings: CompareOptions,
) -> Score:
    """Return the mean over tasks with the interval of a comparison's rows."""
    n = sum(values.size for values in tasks)
    if binary and len(tasks) == 1 and links is None:
        right = int(tasks[0].sum())
        low, high = wilson_interval(right, n, settings.confidence)
        return Score(value=right / n, n=n, low=low, high=high, method="wilson")
    bounds = clustered_interval(tasks, weights, settings.confidence, links, unit=True)
    means = (float(values.mean()) for values in tasks)
    return Score(
        value=sum(w * mean for w, mean in zip(weights, means, strict=True)),
        n=n,
        low=bounds[0] if bounds else None,
        high=bounds[1] if bounds else None,
        method="t" if bounds else "none",
    )
