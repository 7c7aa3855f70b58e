"""The gate: which tasks and groups a policy checks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from gks_eval.evidence.averages import group_keys
from gks_eval.evidence.checks import find_scores, group_check, task_check
from gks_eval.evidence.comparison import titled
from gks_eval.evidence.policy import GatePolicy, Limits
from gks_eval.evidence.recorded import recorded_notes
from gks_eval.evidence.records import GroupResult, TaskResult
from gks_eval.evidence.runs import Run
from gks_eval.evidence.scores import choose_metrics, title_of
from gks_eval.evidence.verdict import Check, Verdict, judge

__all__ = ["gate", "measure_checks"]


def gate(baseline: Run, candidate: Run, policy: GatePolicy) -> Verdict:
    """Judge whether a candidate is a regression, by all checks of a policy.

    Args:
        baseline: The run to compare with.
        candidate: The run that is judged.
        policy: What counts as a regression, and what is required.

    Returns:
        The verdict, with one outcome per check and the exit code of `gks-eval gate`. What prevents
        a check is reported in its outcome and never passes.
    """
    checks = measure_checks(baseline, candidate, policy)
    named = {*policy.tasks, *policy.groups, *policy.required}
    new = [name for name in candidate.tasks if name not in baseline.tasks and name not in named]
    notes = [f"{name} is not judged: the baseline does not have it" for name in new]
    both = (baseline, candidate)
    covered = {name for run in both for name in (*run.tasks, *run.groups)}
    notes += recorded_notes(both, named if policy.only_listed else covered)
    return judge(checks, policy, str(baseline.folder), str(candidate.folder), notes)


def measure_checks(
    baseline: Run, candidate: Run, policy: GatePolicy, part: bool = False
) -> list[Check]:
    """Return a check for every task and group that the policy covers.

    Args:
        baseline: The baseline.
        candidate: The candidate.
        policy: The policy.
        part: Whether only the candidate's items of the baseline count.
    """
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
    find = cache(lambda name, key: find_scores(name, key, both, part))
    checks = []
    for name in dict.fromkeys(tasks):
        limits = policy.limits("task", name)
        keys = _keys(limits, baseline.tasks.get(name), partial(choose_metrics, name, both))
        for key, title in _titles(name, keys):
            checks.append(task_check(name, title, key, limits, find))
    for name in dict.fromkeys(averages):
        limits = policy.limits("group", name)
        keys = _keys(limits, baseline.groups.get(name), partial(group_keys, name, both))
        for key, title in _titles(name, keys):
            checks.append(group_check(name, title, key, both, limits, find))
    return checks


def _keys(
    limits: Limits,
    first: TaskResult | GroupResult | None,
    choose: Callable[[str | None], list[str]],
) -> list[str]:
    """Return the keys to judge: those that the baseline has, and metrics that no run has."""
    keys: list[str] = []
    for asked in limits.metrics:
        found = choose(asked)
        found = [key for key in found if first is None or key in first.keys] or found
        keys += found or ([asked] if asked else [])
    return list(dict.fromkeys(keys))


def _titles(name: str, keys: list[str]) -> list[tuple[str | None, str]]:
    """Return each key with the name of its check; without keys, None with the plain name."""
    if len(keys) < 2:
        return [(keys[0] if keys else None, name)]
    whole = [key if "," in key else f"{key},none" for key in keys]
    return [(key, titled(name, title_of(one, whole))) for key, one in zip(keys, whole, strict=True)]
