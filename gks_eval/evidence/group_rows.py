"""Group averages: recomputed from the tasks, compared by the item score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from gks_eval.evidence.averages import group_weights, is_weighted, weighted_mean
from gks_eval.evidence.comparison import Difference, Row, Score
from gks_eval.evidence.measure import linked, measure_group
from gks_eval.evidence.notes import some
from gks_eval.evidence.runs import Run
from gks_eval.evidence.scores import Scores
from gks_eval.evidence.stats.clustered_mean import clustered_interval
from gks_eval.evidence.stats.unpaired import mean_difference, mean_interval
from gks_eval.evidence.task_rows import CompareOptions, TaskOutcome

__all__ = ["group_row"]


def group_row(
    name: str,
    key: str,
    runs: Sequence[Run],
    outcomes: Mapping[str, TaskOutcome],
    settings: CompareOptions,
) -> tuple[Row | None, list[str], dict[str, list[str]]]:
    """Compare one average of a group; the row is None if no run has all its tasks.

    A run takes part if it has the group's metric for every task of the group.

    Returns:
        The row, notes, and the missing tasks by run.
    """
    holders = [run.groups[name] for run in runs if name in run.groups]
    group = next((group for group in holders if key in group.metrics), holders[0])
    leaves = [leaf for leaf in group.leaves if leaf in outcomes]
    if not leaves or key not in group.metrics:
        return None, [f"{name} has no average of {key}"], {}
    notes = []
    if left_out := [leaf for leaf in group.leaves if leaf not in leaves]:
        notes.append(f"{name} averages {key} over tasks without {some(left_out)}")
    weighted = is_weighted(name, key, runs)
    scores: dict[str, Score] = {}
    lacking: dict[str, list[str]] = {}
    for run in runs:
        parts = [outcomes[leaf].scores.get(run.label) for leaf in leaves]
        if absent := [leaf for leaf, part in zip(leaves, parts, strict=True) if part is None]:
            lacking[run.label] = absent
            continue
        known = [part for part in parts if part is not None]
        scores[run.label] = _score(dict(zip(leaves, known, strict=True)), weighted, settings)
    if not scores:
        return None, notes, lacking
    baseline = runs[0].label
    rows = [
        _difference(run.label, leaves, outcomes, scores, baseline, weighted, settings)
        for run in runs[1:]
        if run.label in scores and baseline in scores
    ]
    row = Row(
        kind="group",
        name=name,
        metric=key,
        binary=all(outcomes[leaf].row.binary for leaf in leaves),
        higher_is_better=group.metrics[key].higher_is_better,
        tasks=leaves,
        weighting="by size" if weighted else "plain",
        scores=scores,
        differences=rows,
    )
    return row, notes, lacking


def _score(tasks: Mapping[str, Scores], weighted: bool, settings: CompareOptions) -> Score:
    parts = list(tasks.values())
    weights = group_weights([part.n for part in parts], weighted)
    value = weighted_mean(parts, weighted)
    n = sum(part.n for part in parts)
    if all(part.items for part in parts):
        values, unit = [part.values for part in parts], all(part.unit for part in parts)
        links = linked([part.clusters for part in parts], [len(found) for found in values])
        if bounds := clustered_interval(values, weights, settings.confidence, links, unit):
            return Score(value=value, n=n, low=bounds[0], high=bounds[1], method="t")
    elif spread := _stderr(parts, weights):
        low, high = mean_interval(value, spread, settings.confidence)
        return Score(value=value, n=n, low=low, high=high, method="stderr")
    return Score(value=value, n=n, low=None, high=None, method="none")


def _stderr(parts: Sequence[Scores], weights: Sequence[float]) -> float | None:
    stderrs = [part.metric.stderr for part in parts]
    if any(stderr is None for stderr in stderrs) or any(part.n < 2 for part in parts):
        return None  # a single item has no standard error, not even 0
    return math.sqrt(
        math.fsum((w * (s or 0.0)) ** 2 for w, s in zip(weights, stderrs, strict=True))
    )


def _difference(
    label: str,
    leaves: Sequence[str],
    outcomes: Mapping[str, TaskOutcome],
    scores: Mapping[str, Score],
    baseline: str,
    weighted: bool,
    settings: CompareOptions,
) -> Difference:
    changes = {leaf: outcomes[leaf].changes.get(label) for leaf in leaves}
    paired = {leaf: change for leaf, change in changes.items() if change is not None}
    if len(paired) < len(leaves):
        return _unpaired(label, leaves, outcomes, scores, baseline, weighted, settings)
    measured = measure_group(paired, weighted)
    low, high = measured.test.interval(settings.confidence) or (None, None)
    return Difference(
        candidate=label,
        difference=measured.change,
        low=low,
        high=high,
        p=measured.test.two_sided_p(),
        n=measured.n,
        method="item score",
        gains=measured.gains,
        losses=measured.losses,
        unpaired_baseline=sum(change.pairing.only_first for change in paired.values()),
        unpaired_candidate=sum(change.pairing.only_second for change in paired.values()),
        detectable=measured.detectable(),
        p_equal=measured.equal_p(settings.equivalence)
        if settings.equivalence and measured.binary
        else None,
        clusters=measured.clusters,
        design_effect=measured.design_effect,
    )


def _unpaired(
    label: str,
    leaves: Sequence[str],
    outcomes: Mapping[str, TaskOutcome],
    scores: Mapping[str, Score],
    baseline: str,
    weighted: bool,
    settings: CompareOptions,
) -> Difference:
    spreads = []
    for run in (baseline, label):
        parts = [outcomes[leaf].scores[run] for leaf in leaves]
        spreads.append(_stderr(parts, group_weights([part.n for part in parts], weighted)))
    first, second = scores[baseline].value, scores[label].value
    low = high = p = None
    if spreads[0] and spreads[1]:
        low, high, p = mean_difference(first, spreads[0], second, spreads[1], settings.confidence)
    return Difference(
        candidate=label,
        difference=second - first,
        low=low,
        high=high,
        p=p,
        n=min(scores[baseline].n, scores[label].n),
        method="none" if p is None else "unpaired",
        note="not paired: not every task of the group is",
    )
