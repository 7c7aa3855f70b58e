"""The gate: which tasks and groups a policy checks."""

from __future__ import annotations

from functools import cache

from gks_eval.evidence.averages import group_keys
from gks_eval.evidence.checks import find_scores, group_check, task_check
from gks_eval.evidence.comparison import titled
from gks_eval.evidence.policy import GatePolicy
from gks_eval.evidence.recorded import recorded_notes
from gks_eval.evidence.records import GroupResult, TaskResult
from gks_eval.evidence.runs import Run
from gks_eval.evidence.scores import choose_metrics
from gks_eval.evidence.verdict import Check, Verdict, judge

__all__ = ["gate", "measure_checks"]


def gate(baseline: Run, candidate: Run, policy: GatePolicy) -> Verdict:
    """Measure and judge. Whatever prevents a check is reported."""
    checks = measure_checks(baseline, candidate, policy)
    named = {*policy.tasks, *policy.groups, *policy.required}
    new = [name for name in candidate.tasks if name not in baseline.tasks and name not in named]
    notes = [f"{name} is not judged: the baseline does not have it" for name in new]
    both = (baseline, candidate)
    covered = {name for run in both for name in (*run.tasks, *run.groups)}
    notes += recorded_notes(both, named if policy.only_listed else covered)
    return judge(checks, policy, str(baseline.folder), str(candidate.folder), notes)


def measure_checks(baseline: Run, candidate: Run, policy: GatePolicy) -> list[Check]:
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
    # Resolved, because links and `..` can make one file look like two.
    files = [{path.resolve() for path in run.files} for run in both]
    if files[0] & files[1]:
        fault = "baseline and candidate are the same files"
        return [
            Check(kind="task", name=name, limits=policy.limits("task", name), problem=fault)
            for name in dict.fromkeys(tasks)
        ]
    # Groups need their tasks' scores again, and each file of samples is read once.
    find = cache(lambda name, key: find_scores(name, key, both))
    checks = []
    for name in dict.fromkeys(tasks):
        limits = policy.limits("task", name)
        keys = _judged(choose_metrics(name, both, limits.metric), baseline.tasks.get(name))
        for key, title in _titles(name, keys):
            checks.append(task_check(name, title, key, limits, find))
    for name in dict.fromkeys(averages):
        limits = policy.limits("group", name)
        known = any(name in run.groups for run in both)
        keys = group_keys(name, both, limits.metric) if known else []
        keys = _judged(keys, baseline.groups.get(name))
        for key, title in _titles(name, keys):
            checks.append(group_check(name, title, key, both, limits, find))
    return checks


def _titles(name: str, keys: list[str]) -> list[tuple[str | None, str]]:
    """Return each key with the name of its check; without keys, None with the plain name."""
    if len(keys) < 2:
        return [(keys[0] if keys else None, name)]
    return [(key, titled(name, key.partition(",")[2])) for key in keys]


def _judged(keys: list[str], first: TaskResult | GroupResult | None) -> list[str]:
    """Return the keys to judge: those that the baseline has."""
    return [key for key in keys if first is None or key in first.keys] or keys
