"""From the runs of a treatment and its controls to what was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gks_eval.errors import ResultsError
from gks_eval.evidence.aggregation import ratio_of_sums
from gks_eval.evidence.averages import group_weights, is_weighted
from gks_eval.evidence.claims import claims
from gks_eval.evidence.measure import pair
from gks_eval.evidence.question import Finding, Question, QuestionControl, TaskUsed
from gks_eval.evidence.referee import (
    Rules,
    Sample,
    best_of_the_other_half,
    judge,
    mean_of_draws,
)
from gks_eval.evidence.runs import Run
from gks_eval.evidence.samples import read_samples
from gks_eval.evidence.scores import Scores, choose_metrics, load_scores
from gks_eval.evidence.stats.streams import Floats

__all__ = ["judge_runs"]


@dataclass(frozen=True, slots=True)
class _Task:
    """One task of the mean.

    Attributes:
        key: Its metric, ``metric,filter``.
        score: The treatment's mean score; 1 less the score where lower is better.
        n: Its items.
        changes: By setting, the treatment's scores less the setting's, (n,).
        binary: Whether all scores are 0 or 1.
        clusters: A label per item, equal for linked items; empty if none are linked.
    """

    key: str
    score: float
    n: int
    changes: Mapping[str, Floats]
    binary: bool
    clusters: tuple[str, ...]


def judge_runs(question: Question, runs: Mapping[str, Run]) -> Finding:
    """Compare a treatment with its controls, item by item.

    The mean is over the tasks whose scores lie between 0 and 1, each by its usual metric. Tasks
    weigh the same, unless the question names one group that lm-eval weighs by size.

    Args:
        question: What is compared.
        runs: By setting, the treatment's and every control's.

    Raises:
        ResultsError: Two runs are not comparable, a file is broken, or no task can be used.
    """
    treatment = runs[question.treatment]
    others = {text: run for text, run in runs.items() if text != question.treatment}
    tasks: dict[str, _Task] = {}
    notes: list[str] = []
    for name in treatment.tasks:
        found = _task(name, treatment, others)
        if isinstance(found, str):
            notes.append(f"{name} is left out of the mean: {found}")
        else:
            tasks[name] = found
    if not tasks:
        raise ResultsError(
            f"no task of {', '.join(question.tasks)} can be compared ({'; '.join(notes)}); choose "
            "tasks with scores between 0 and 1."
        )
    weighted = _weighted(question, treatment, {task.key for task in tasks.values()})
    weights = group_weights([task.n for task in tasks.values()], weighted)
    score = sum(w * task.score for w, task in zip(weights, tasks.values(), strict=True))
    rules = Rules(question.alpha, question.margin, weighted)
    samples = [_sample(control, tasks, score, weights) for control in question.controls]
    contrasts = judge(samples, rules)
    return Finding(
        score=score,
        tasks=tuple(
            TaskUsed(name=name, metric=task.key, n=task.n, weight=weight)
            for (name, task), weight in zip(tasks.items(), weights, strict=True)
        ),
        contrasts=tuple(contrasts),
        claims=tuple(claims(question.treatment, contrasts, rules)),
        notes=(*notes, *(f"{reason}; this control did not run" for reason in question.left_out)),
    )


def _task(name: str, treatment: Run, others: Mapping[str, Run]) -> _Task | str:
    """Return one task of all runs, or why it cannot be used."""
    keys = choose_metrics(name, [treatment])
    task = treatment.tasks[name]
    if not keys or keys[0] not in task.metrics:
        return "it has no usable metric"
    key = keys[0]
    own = load_scores(task, key, read_samples(task))
    if own.items is None:
        return own.missing
    if ratio_of_sums(task, own.metric.name, own.items) or not _unit(own):
        return f"{own.metric.name} does not lie between 0 and 1"
    value = float(own.values.mean())
    lower = own.metric.higher_is_better is False
    changes: dict[str, Floats] = {}
    binary = own.binary
    for text, run in others.items():
        other = run.tasks.get(name)
        if other is None or key not in other.metrics:
            raise ResultsError(f"{run.folder} has no {key} of {name}; run the command again.")
        paired = pair(own, load_scores(other, key, read_samples(other)))
        faults = list(paired.faults)
        if paired.changes is None or paired.changes.pairing.unpaired or not paired.changes.n:
            faults.append("items without a partner")
        if faults or paired.changes is None:
            raise ResultsError(
                f"{run.folder} and {treatment.folder} are not comparable in {name}: "
                f"{', '.join(faults)}; name another --output."
            )
        changes[text] = paired.changes.times(
            1.0 if lower else -1.0
        ).values  # `pair` takes the first from the second
        binary = binary and paired.second.zero_one
    return _Task(key, 1.0 - value if lower else value, own.n, changes, binary, own.clusters)


def _unit(scores: Scores) -> bool:
    return bool(np.all((scores.values >= 0.0) & (scores.values <= 1.0)))


def _weighted(question: Question, treatment: Run, keys: set[str]) -> bool:
    """Return whether the tasks are those of one group that lm-eval weighs by size."""
    if len(question.tasks) != 1 or len(keys) != 1:
        return False
    (name,), (key,) = question.tasks, keys
    group = treatment.groups.get(name)
    return group is not None and key in group.metrics and is_weighted(name, key, [treatment])


def _sample(
    control: QuestionControl, tasks: Mapping[str, _Task], score: float, weights: list[float]
) -> Sample:
    draws = [
        {name: task.changes[text] for name, task in tasks.items()} for text in control.settings
    ]
    best = control.over == "experts"
    changes = best_of_the_other_half(draws) if best else mean_of_draws(draws)
    means = (float(values.mean()) for values in changes.values())
    return Sample(
        name=control.name,
        role=control.role,
        draws=len(draws),
        score=score - sum(w * mean for w, mean in zip(weights, means, strict=True)),
        changes=changes,
        binary=(best or len(draws) == 1) and all(task.binary for task in tasks.values()),
        clusters={name: task.clusters for name, task in tasks.items()},
    )
