"""Measuring a candidate against a baseline, as far as a policy asks for it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gks_eval.config.gate import GatePolicy, Limits
from gks_eval.errors import ResultsError
from gks_eval.evidence.comparison import titled
from gks_eval.evidence.group_rows import group_keys, group_weights, is_weighted
from gks_eval.evidence.paired import Changes, paired_changes
from gks_eval.evidence.pairing import differences
from gks_eval.evidence.recorded import recorded_notes
from gks_eval.evidence.records import GroupResult, TaskResult
from gks_eval.evidence.runs import Run
from gks_eval.evidence.samples import read_samples
from gks_eval.evidence.scores import Scores, alike, choose_metrics, load_scores
from gks_eval.evidence.stats.group_test import group_test
from gks_eval.evidence.stats.paired_test import paired_test
from gks_eval.evidence.stats.power import detectable_difference
from gks_eval.evidence.verdict import Check, Verdict, judge

__all__ = ["gate", "measure"]


def gate(baseline: Run, candidate: Run, policy: GatePolicy) -> Verdict:
    """Measure and judge; nothing that keeps a check from being made goes unsaid."""
    checks = measure(baseline, candidate, policy)
    named = {*policy.tasks, *policy.groups, *policy.required}
    new = [name for name in candidate.tasks if name not in baseline.tasks and name not in named]
    notes = [f"{name} is not judged: the baseline does not have it" for name in new]
    both = (baseline, candidate)
    covered = {name for run in both for name in (*run.tasks, *run.groups)}
    notes += recorded_notes(both, named if policy.only_listed else covered)
    return judge(checks, policy, str(baseline.folder), str(candidate.folder), notes)


def measure(baseline: Run, candidate: Run, policy: GatePolicy) -> list[Check]:
    """Return a check for every task and group that the policy covers."""
    both = (baseline, candidate)
    groups = {name for run in both for name in run.groups}
    required_groups = [name for name in policy.required if name in groups]
    required_tasks = [name for name in policy.required if name not in groups]
    tasks = [*policy.tasks, *required_tasks]
    averages = [*policy.groups, *required_groups]
    if not policy.only_listed:
        tasks = [*baseline.tasks, *tasks]
        averages = [*baseline.groups, *averages]
    # By their real places: a link or a detour in a path must not hide that they are one.
    files = [{path.resolve() for path in run.files} for run in both]
    if files[0] & files[1]:
        fault = "baseline and candidate are the same files"
        return [
            Check(kind="task", name=name, limits=policy.limits("task", name), problem=fault)
            for name in dict.fromkeys(tasks)
        ]
    checks = []
    for name in dict.fromkeys(tasks):
        limits = policy.limits("task", name)
        keys = _judged(choose_metrics(name, both, limits.metric), baseline.tasks.get(name))
        for key, title in _titles(name, keys):
            checks.append(_task(name, title, key, both, limits))
    for name in dict.fromkeys(averages):
        limits = policy.limits("group", name)
        known = any(name in run.groups for run in both)
        keys = group_keys(name, both, limits.metric) if known else []
        keys = _judged(keys, baseline.groups.get(name))
        for key, title in _titles(name, keys):
            checks.append(_group(name, title, key, both, limits))
    return checks


def _titles(name: str, keys: list[str]) -> list[tuple[str | None, str]]:
    """Return each key with the name of its check; one without a key where there is none."""
    if len(keys) < 2:
        return [(keys[0] if keys else None, name)]
    return [(key, titled(name, key.partition(",")[2])) for key in keys]


def _judged(keys: list[str], first: TaskResult | GroupResult | None) -> list[str]:
    """Return the filters to judge: the baseline's, as with tasks."""
    return [key for key in keys if first is None or key in first.keys] or keys


def _task(name: str, title: str, key: str | None, both: tuple[Run, Run], limits: Limits) -> Check:
    scores, changes, problem = _pair(name, key or limits.metric, both)
    facts: dict[str, object] = {"metric": key or "", "problem": problem, **_values(scores)}
    if changes is None or problem:
        return Check.model_validate({"kind": "task", "name": title, "limits": limits, **facts})
    sign = _sign(scores)
    values = sign * changes.values
    tolerance = limits.max_drop or 0.0
    variance = float(np.count_nonzero(values) / changes.n if changes.binary else values.var())
    seen = detectable_difference(
        changes.n, variance, limits.alpha or 0.05, two_sided=False, binary=changes.binary
    )
    return Check.model_validate(
        {
            "kind": "task",
            "name": title,
            "limits": limits,
            **facts,
            "change": float(values.mean()),
            "n": changes.n,
            "gains": changes.gains if sign > 0 else changes.losses,
            "losses": changes.losses if sign > 0 else changes.gains,
            "p": paired_test(values, changes.binary).less_p(-tolerance),
            "detectable": None if math.isnan(seen) else seen,
        }
    )


def _group(name: str, title: str, key: str | None, both: tuple[Run, Run], limits: Limits) -> Check:
    blank = Check(kind="group", name=title, limits=limits)

    def unjudged(problem: str) -> Check:
        return blank.model_copy(update={"problem": problem})

    for run, role in zip(both, ("baseline", "candidate"), strict=True):
        if name not in run.groups:
            return unjudged(f"missing in the {role}")
    groups = [run.groups[name] for run in both]
    if key is None or any(key not in group.metrics for group in groups):
        return unjudged(f"no metric {key or limits.metric or 'at all'} in both runs")
    if groups[0].leaves != groups[1].leaves:
        return unjudged("the two runs have other tasks in it")
    parts: list[list[Scores]] = []
    paired: dict[str, Changes] = {}
    for leaf in groups[0].leaves:
        if all(leaf in run.tasks and key not in run.tasks[leaf].metrics for run in both):
            continue  # lm-eval averages only the tasks that have the metric
        scores, changes, problem = _pair(leaf, key, both)
        if changes is None or problem:
            return unjudged(f"{leaf}: {problem}")
        parts.append([score for score in scores if score is not None])
        paired[leaf] = changes
    if not paired:
        return unjudged(f"no task of it has {key}")
    if len({part[0].metric.higher_is_better for part in parts}) > 1:
        return unjudged(f"its tasks do not agree whether a higher {key} is better")
    sign = _sign(parts[0])
    sizes = [changes.n for changes in paired.values()]
    weights = group_weights(sizes, is_weighted(name, key, both))
    values = {leaf: sign * changes.values for leaf, changes in paired.items()}
    test = group_test(values, weights)
    binary = all(changes.binary for changes in paired.values())
    seen = detectable_difference(
        1,
        float(test.drawn.var()),
        limits.alpha or 0.05,
        two_sided=False,
        binary=False,
        largest=1.0 if binary else math.inf,
    )
    means = [
        math.fsum(w * part[side].metric.value for w, part in zip(weights, parts, strict=True))
        for side in (0, 1)
    ]
    return Check(
        kind="group",
        name=title,
        metric=key,
        limits=limits,
        baseline=means[0],
        candidate=means[1],
        higher_is_better=sign > 0,
        binary=binary,
        change=test.average,
        n=sum(sizes),
        gains=sum(int(np.count_nonzero(v > 0)) for v in values.values()),
        losses=sum(int(np.count_nonzero(v < 0)) for v in values.values()),
        p=test.less_p(-(limits.max_drop or 0.0)),
        detectable=None if math.isnan(seen) or test.problem else seen,
        problem=test.problem,
    )


def _pair(
    name: str, key: str | None, both: tuple[Run, Run]
) -> tuple[list[Scores | None], Changes | None, str]:
    """Return both runs' scores, their pairing, and what keeps them from being judged."""
    scores: list[Scores | None] = []
    problem = ""
    for run, role in zip(both, ("baseline", "candidate"), strict=True):
        task = run.tasks.get(name)
        if task is None or key is None or key not in task.metrics:
            what = "missing" if task is None else f"no metric {key or 'at all'}"
            if task is not None and key and key in task.unusable:
                what = f"{key} is {task.unusable[key]}"
            problem = problem or f"{what} in the {role}"
            scores.append(None)
            continue
        try:
            scores.append(load_scores(task, key, read_samples(task)))
        except ResultsError as error:
            problem = problem or str(error).rstrip(".")
            scores.append(None)
    first, second = scores
    if first is None or second is None:
        return scores, None, problem
    first, second = alike({"first": first, "second": second}).values()
    scores = [first, second]
    changes = paired_changes(first, second)
    if changes is None:
        missing = {s.missing for s in (first, second) if s.items is None}
        return scores, None, f"cannot be paired: {' and '.join(sorted(missing))}"
    faults = differences(first.task, second.task, changes.pairing)
    lonely = changes.pairing.only_first + changes.pairing.only_second
    if lonely and not faults:
        faults = [f"{lonely} items without a partner"]
    directions = {first.metric.higher_is_better, second.metric.higher_is_better}
    if len(directions) > 1 or None in directions:
        faults.append(f"the results do not say whether a higher {first.metric.name} is better")
    return scores, changes, ", ".join(faults)


def _sign(scores: Sequence[Scores | None]) -> float:
    first = scores[0]
    return -1.0 if first is not None and first.metric.higher_is_better is False else 1.0


def _values(scores: Sequence[Scores | None]) -> dict[str, object]:
    known = [score for score in scores if score is not None]
    return {
        "baseline": scores[0].metric.value if scores[0] else None,
        "candidate": scores[1].metric.value if scores[1] else None,
        "higher_is_better": known[-1].metric.higher_is_better if known else None,
        "binary": bool(known) and all(score.binary for score in known),
    }
