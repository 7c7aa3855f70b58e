"""Compares one task of several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from gks_eval.evidence.comparison import Difference, Flip, Row, Score
from gks_eval.evidence.measure import Changes, Pair, linked, measure_task, pair
from gks_eval.evidence.runs import Run
from gks_eval.evidence.samples import read_samples
from gks_eval.evidence.scores import Scores, alike, load_scores
from gks_eval.evidence.stats.clustered_mean import clustered_interval
from gks_eval.evidence.stats.paired_test import CountTest, FlipTest
from gks_eval.evidence.stats.sign_flips import DRAWS
from gks_eval.evidence.stats.unpaired import (
    mean_difference,
    mean_interval,
    proportion_difference,
)
from gks_eval.evidence.stats.wilson import wilson_interval

__all__ = ["MANY", "CompareOptions", "TaskOutcome", "score_of", "task_outcome"]

MANY: Final = 5


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """How to compare.

    Attributes:
        metric: ``metric`` or ``metric,filter`` for every task, or several of them; None for each
            task's usual one.
        tasks: Tasks and groups to keep, groups with their tasks; empty for all.
        force: Compare even if versions, prompts, shots or limits differ, with a note.
        confidence: Confidence of every interval.
        draws: Random subsets of a sign-flip test.
        seed: Seed of the draws, together with the compared values; names and order have no effect.
        leaderboard: Whether to rank the runs; None for more than `MANY` runs.
        equivalence: Margin of accuracies within which runs count as equal, 0.02 for two points.
        shift: Whether to add how much surer of the gold choice a run is.
        mid_p: Whether a task's accuracies are tested by the mid-p instead of the exact test.
    """

    metric: str | tuple[str, ...] | None = None
    tasks: tuple[str, ...] = ()
    force: bool = False
    confidence: float = 0.95
    draws: int = DRAWS
    seed: int = 0
    leaderboard: bool | None = None
    mid_p: bool = False
    equivalence: float | None = None
    shift: bool = False

    @property
    def metrics(self) -> tuple[str | None, ...]:
        """Return the metrics asked for, (None,) for each task's usual one."""
        return self.metric if isinstance(self.metric, tuple) else (self.metric,)


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """The comparison of one task, with what group averages need.

    Attributes:
        row: The task's row.
        flips: Items that changed.
        faults: By candidate label, why it is not comparable with the baseline.
        scores: By run label.
        changes: By candidate label, if paired.
    """

    row: Row
    flips: list[Flip]
    faults: Mapping[str, list[str]]
    scores: Mapping[str, Scores]
    changes: Mapping[str, Changes]


def task_outcome(
    name: str, key: str, runs: Sequence[Run], settings: CompareOptions
) -> TaskOutcome | None:
    """Compare every run that has task `name` and metric `key` with the first of `runs`.

    Returns None if no run has them.

    Raises:
        ResultsError: A samples file is broken.
    """
    loaded = {
        run.label: load_scores(run.tasks[name], key, read_samples(run.tasks[name]))
        for run in runs
        if name in run.tasks and key in run.tasks[name].metrics
    }
    if not loaded:
        return None
    scores = alike(loaded)
    baseline = loaded.get(runs[0].label)
    rows: list[Difference] = []
    flips: list[Flip] = []
    faults: dict[str, list[str]] = {}
    changes: dict[str, Changes] = {}
    for run in runs[1:]:
        candidate = loaded.get(run.label)
        if baseline is None or candidate is None:
            continue
        paired = pair(baseline, candidate)
        if paired.faults:
            faults[run.label] = paired.faults
        change = paired.changes
        if change is not None and change.n:
            changes[run.label] = change
            rows.append(_paired(run.label, change, settings))
            if change.binary:
                flips.extend(_flips(name, run.label, change))
        else:
            rows.append(_unpaired(run.label, paired, settings))
    first = next(iter(scores.values()))
    row = Row(
        kind="task",
        name=name,
        metric=key,
        binary=all(score.binary for score in scores.values()),
        higher_is_better=first.metric.higher_is_better,
        scores={label: score_of(score, settings) for label, score in scores.items()},
        differences=rows,
    )
    return TaskOutcome(row, flips, faults, scores, changes)


def score_of(scores: Scores, settings: CompareOptions) -> Score:
    """Return a run's value with its interval: Wilson, t, or from the standard error."""
    value, n = scores.metric.value, scores.n
    links = linked([scores.clusters], [len(scores.items or ())])
    if scores.items and links:
        bounds = clustered_interval([scores.values], [1.0], settings.confidence, links, scores.unit)
        if bounds:
            return Score(value=value, n=n, low=bounds[0], high=bounds[1], method="t")
        # A single cluster does not show how clusters vary. Equal items count once per cluster.
        count = len({label for own in links for label in own})
        if not scores.binary or 0 < scores.successes < len(scores.items):
            return Score(value=value, n=n, low=None, high=None, method="none")
        right = count if scores.successes else 0
        low, high = wilson_interval(right, count, settings.confidence)
        return Score(value=value, n=n, low=low, high=high, method="wilson")
    if scores.binary and n:
        low, high = wilson_interval(scores.successes, n, settings.confidence)
        return Score(value=value, n=n, low=low, high=high, method="wilson")
    if scores.items:
        if bounds := clustered_interval(
            [scores.values], [1.0], settings.confidence, unit=scores.unit
        ):
            return Score(value=value, n=n, low=bounds[0], high=bounds[1], method="t")
    elif scores.metric.stderr:
        low, high = mean_interval(value, scores.metric.stderr, settings.confidence)
        return Score(value=value, n=n, low=low, high=high, method="stderr")
    return Score(value=value, n=n, low=None, high=None, method="none")


def _paired(label: str, change: Changes, settings: CompareOptions) -> Difference:
    measured = measure_task(change, settings.draws, settings.seed, settings.mid_p)
    low, high = measured.test.interval(settings.confidence) or (None, None)
    pairing = change.pairing
    method: Literal["mcnemar", "mid-p", "sign flips", "item score"] = "item score"
    if isinstance(measured.test, CountTest):
        method = "mid-p" if settings.mid_p else "mcnemar"
    elif isinstance(measured.test, FlipTest):
        method = "sign flips"
    return Difference(
        candidate=label,
        difference=measured.change,
        low=low,
        high=high,
        p=measured.test.two_sided_p(),
        n=measured.n,
        method=method,
        gains=measured.gains,
        losses=measured.losses,
        unpaired_baseline=pairing.only_first,
        unpaired_candidate=pairing.only_second,
        detectable=measured.detectable(),
        p_equal=measured.equal_p(settings.equivalence)
        if settings.equivalence and measured.binary
        else None,
        clusters=measured.clusters,
        design_effect=measured.design_effect,
        note=f"{pairing.unpaired} items have no partner and are left out"
        if pairing.unpaired
        else "",
    )


def _unpaired(label: str, paired: Pair, settings: CompareOptions) -> Difference:
    baseline, candidate = paired.first, paired.second
    low: float | None = None
    high: float | None = None
    p: float | None = None
    first, second = baseline.metric, candidate.metric
    method: str = "unpaired"
    if baseline.binary and candidate.binary and baseline.n and candidate.n:
        counts = (baseline.successes, baseline.n, candidate.successes, candidate.n)
        low, high, p = proportion_difference(*counts, settings.confidence)
    elif first.stderr and second.stderr:
        stderrs = (first.value, first.stderr, second.value, second.stderr)
        low, high, p = mean_difference(*stderrs, settings.confidence)
    else:
        method = "none"
    reasons = dict.fromkeys(
        scores.missing or "no item in common"
        for scores in (baseline, candidate)
        if scores.items is None
    )
    return Difference(
        candidate=label,
        difference=second.value - first.value,
        low=low,
        high=high,
        p=p,
        n=min(baseline.n, candidate.n),
        method="unpaired" if method == "unpaired" else "none",
        note=f"not paired: {', '.join(reasons) or 'no item in common'}",
    )


def _flips(name: str, label: str, change: Changes) -> list[Flip]:
    return [
        Flip(
            task=name,
            candidate=label,
            change="gain" if gained else "loss",
            doc_id=item.doc_id,
            doc_hash=item.key[0],
            occurrence=item.key[1],
        )
        for item, gained in change.changed()
    ]
