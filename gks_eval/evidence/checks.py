"""The check of one task or one group: what was measured, or why it cannot be judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gks_eval.errors import ResultsError
from gks_eval.evidence.averages import is_weighted, weighted_mean
from gks_eval.evidence.looks import reading
from gks_eval.evidence.measure import Changes, Measurement, measure_group, measure_task, pair
from gks_eval.evidence.policy import Limits
from gks_eval.evidence.runs import Run
from gks_eval.evidence.samples import read_samples
from gks_eval.evidence.scores import Scores, load_scores
from gks_eval.evidence.stats.item_score import ItemScore
from gks_eval.evidence.verdict import Check

__all__ = ["Find", "Found", "find_scores", "group_check", "task_check"]


class Found(NamedTuple):
    """Both runs' scores of a task, paired, or why they cannot be judged.

    Of a `part`, the candidate has read only some of the items.
    """

    first: Scores | None
    second: Scores | None
    changes: Changes | None
    problem: str
    part: bool = False

    @property
    def higher_is_better(self) -> bool | None:
        """Return the metric's recorded direction, or None if there is none."""
        known = self.second or self.first
        return known.metric.higher_is_better if known else None


Find = Callable[[str, str | None], Found]


def find_scores(name: str, key: str | None, both: tuple[Run, Run], part: bool = False) -> Found:
    """Return both runs' scores and their pairing, or why they cannot be judged.

    Args:
        name: The task's.
        key: The metric's.
        both: The baseline and the candidate.
        part: Whether only the candidate's items of the baseline count.
    """
    loaded: list[Scores | None] = []
    problem = ""
    for run, role in zip(both, ("baseline", "candidate"), strict=True):
        task = run.tasks.get(name)
        if task is None or key is None or key not in task.metrics:
            what = "missing" if task is None else f"no metric {key or 'at all'}"
            if task is not None and key and key in task.unusable:
                what = f"{key} is {task.unusable[key]}"
            problem = problem or f"{what} in the {role}"
            loaded.append(None)
            continue
        try:
            loaded.append(load_scores(task, key, read_samples(task)))
        except ResultsError as error:
            problem = problem or str(error).rstrip(".")
            loaded.append(None)
    first, second = loaded
    if first is None or second is None:
        return Found(first, second, None, problem)
    if part and second.items is not None:
        first = first.only({item.key for item in second.items})
    paired = pair(first, second)
    first, second, changes = paired.first, paired.second, paired.changes
    if changes is None:
        missing = {scores.missing for scores in (first, second) if scores.items is None}
        return Found(first, second, None, f"cannot be paired: {' and '.join(sorted(missing))}")
    faults = list(paired.faults)
    if changes.pairing.unpaired and not faults:
        faults = [f"{changes.pairing.unpaired} items without a partner"]
    directions = {first.metric.higher_is_better, second.metric.higher_is_better}
    if len(directions) > 1 or None in directions:
        faults.append(f"the results do not say whether a higher {first.metric.name} is better")
    return Found(first, second, changes, ", ".join(faults), part)


def task_check(name: str, title: str, key: str | None, limits: Limits, find: Find) -> Check:
    """Return the check of a task by the metric `key`, called `title`."""
    found = find(name, key)
    known = [scores for scores in (found.first, found.second) if scores is not None]
    check = Check(
        kind="task",
        name=title,
        metric=key or "",
        limits=limits,
        baseline=found.first.metric.value if found.first else None,
        candidate=found.second.metric.value if found.second else None,
        higher_is_better=found.higher_is_better,
        binary=bool(known) and all(scores.binary for scores in known),
        problem=found.problem,
    )
    if found.changes is None or found.problem:
        return check
    changes = found.changes.times(_sign(found))
    if found.part:
        return _measured(check, measure_group({name: changes}, weighted=False), (name,))
    return _measured(check, measure_task(changes, mid=limits.mid_p))


def group_check(
    name: str, title: str, key: str | None, both: tuple[Run, Run], limits: Limits, find: Find
) -> Check:
    """Return the check of a group's average `key`, called `title`."""
    blank = Check(kind="group", name=title, limits=limits)

    def unjudged(problem: str) -> Check:
        return blank.model_copy(update={"problem": problem})

    for run, role in zip(both, ("baseline", "candidate"), strict=True):
        if name not in run.groups:
            return unjudged(f"missing in the {role}")
    groups = [run.groups[name] for run in both]
    if key is None or any(key not in group.metrics for group in groups):
        return unjudged(f"no metric {key or 'at all'} in both runs")
    if groups[0].leaves != groups[1].leaves:
        return unjudged("its tasks differ between the two runs")
    parts: dict[str, Found] = {}
    for leaf in groups[0].leaves:
        if all(leaf in run.tasks and key not in run.tasks[leaf].metrics for run in both):
            continue  # lm-eval averages only tasks that have the metric
        parts[leaf] = find(leaf, key)
        if parts[leaf].changes is None or parts[leaf].problem:
            return unjudged(f"{leaf}: {parts[leaf].problem}")
    if not parts:
        return unjudged(f"none of its tasks has {key}")
    directions = {_sign(found) for found in parts.values()}
    if len(directions) > 1:
        return unjudged(f"its tasks do not agree whether a higher {key} is better")
    sign = directions.pop()
    weighted = is_weighted(name, key, both)
    changes = {leaf: found.changes.times(sign) for leaf, found in parts.items() if found.changes}
    means = [
        weighted_mean([scores for scores in side if scores is not None], weighted)
        for side in zip(*((found.first, found.second) for found in parts.values()), strict=True)
    ]
    measured = measure_group(changes, weighted)
    check = Check(
        kind="group",
        name=title,
        metric=key,
        limits=limits,
        baseline=means[0],
        candidate=means[1],
        higher_is_better=sign > 0,
        binary=measured.binary,
    )
    return _measured(check, measured, tuple(parts) if any(p.part for p in parts.values()) else ())


def _measured(check: Check, measured: Measurement, looked_at: tuple[str, ...] = ()) -> Check:
    """Return a check with its measurement, in which negative changes are worse.

    Args:
        check: The check.
        measured: Its measurement.
        looked_at: The check's tasks, if only a part of their items is read.
    """
    score = measured.test if looked_at and isinstance(measured.test, ItemScore) else None
    tolerance, alpha = check.limits.max_drop or 0.0, check.limits.alpha or 0.05
    return check.model_copy(
        update={
            "change": measured.change,
            "n": measured.n,
            "gains": measured.gains,
            "losses": measured.losses,
            "p": measured.test.less_p(-tolerance),
            "p_shown": measured.test.shown_p(tolerance),
            "needed": measured.needed(tolerance, alpha),
            "detectable": measured.detectable(alpha, two_sided=False),
            "clusters": measured.clusters,
            "design_effect": measured.design_effect,
            "reading": reading(score, tolerance, looked_at) if score else None,
        }
    )


def _sign(found: Found) -> float:
    return -1.0 if found.higher_is_better is False else 1.0
