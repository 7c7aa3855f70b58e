"""Compares runs with the first of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gks_eval.errors import ResultsError, UsageError, did_you_mean
from gks_eval.evidence.averages import group_keys
from gks_eval.evidence.comparison import Comparison, Difference, Row, RunInfo
from gks_eval.evidence.confidence import shifts
from gks_eval.evidence.group_rows import group_row
from gks_eval.evidence.leaderboard import leaderboard
from gks_eval.evidence.notes import absent_note, forced_notes, lacking_note
from gks_eval.evidence.recorded import recorded_notes
from gks_eval.evidence.runs import Run, selected_names
from gks_eval.evidence.scores import choose_metrics, title_of
from gks_eval.evidence.stats.holm import holm
from gks_eval.evidence.task_rows import MANY, CompareOptions, TaskOutcome, task_outcome

__all__ = ["CompareOptions", "compare"]


def compare(
    runs: Sequence[Run], settings: CompareOptions | None = None, alone: bool = False
) -> Comparison:
    """Compare runs with the first of them, the baseline.

    Args:
        runs: Two or more, as `find_runs` gives them.
        settings: How to compare.
        alone: Accept runs that share nothing, or a single run, and report scores only.

    Raises:
        ResultsError: Fewer than two runs, nothing in common, a broken file, or runs of other
            versions, prompts, shots or limits without ``settings.force``.
        UsageError: A task, group or metric that no run has.
    """
    settings = settings or CompareOptions()
    if len(runs) < 2 and not alone:
        raise ResultsError(
            "a comparison needs two runs and found one; name another folder or results file."
        )
    tasks, groups = selected_names(runs, settings.tasks)
    notes = recorded_notes(runs, {*tasks, *groups})
    outcomes: dict[tuple[str, str], TaskOutcome] = {}
    for name in tasks:
        keys: list[str] = []
        for metric in settings.metrics:
            found = choose_metrics(name, runs, metric)
            keys += [key for key in found if key not in keys]
            if metric and not found:
                notes.append(f"{name} has no {metric} and is left out")
        for key in keys:
            if outcome := task_outcome(name, key, runs, settings):
                outcomes[name, key] = _titled(outcome, title_of(key, keys))
    if not outcomes:
        raise _unknown_metric(settings.metrics[0] or "", tasks, runs)
    notes += _refuse_or_note(outcomes, runs[0].label, settings.force)
    rows = _with_holm([outcome.row for outcome in outcomes.values()], settings)
    if not alone and not any(row.differences for row in rows):
        raise _nothing_shared(runs, rows, notes)
    lacking: list[tuple[str, str, list[str]]] = []
    for name in groups:
        keys = []
        for metric in settings.metrics:
            found = group_keys(name, runs, metric)
            keys += [key for key in found if key not in keys]
            if not found:
                notes.append(f"{name} has no average of {metric} and is left out")
        for key in keys:
            members = {task: found for (task, own), found in outcomes.items() if own == key}
            row, said, without = group_row(name, key, runs, members, settings)
            title = {"filter": title_of(key, keys)}
            rows.extend([_judged(row.model_copy(update=title), settings)] if row else [])
            notes.extend(said)
            lacking.extend((name, run, tasks) for run, tasks in without.items())
    ranked = len(runs) > MANY if settings.leaderboard is None else settings.leaderboard
    averages = [row for row in rows if row.kind == "group"]
    return Comparison(
        baseline=runs[0].label,
        confidence=settings.confidence,
        draws=settings.draws,
        seed=settings.seed,
        equivalence=settings.equivalence,
        forced=settings.force,
        runs=[run_info(run) for run in runs],
        rows=rows,
        flips=[flip for outcome in outcomes.values() for flip in outcome.flips],
        notes=[*notes, *lacking_note(lacking), *_absent(rows, runs)],
        leaderboard=leaderboard(runs, outcomes, averages, settings) if ranked else None,
        shifts=[found for row in rows for found in shifts(row, runs, settings.confidence)]
        if settings.shift
        else [],
    )


def _nothing_shared(runs: Sequence[Run], rows: Sequence[Row], notes: Sequence[str]) -> ResultsError:
    label, shared = runs[0].label, {row.name for row in rows} & runs[0].tasks.keys()
    if any(name in run.tasks for run in runs[1:] for name in shared):
        why = "; ".join(note for note in notes if " is not compared by " in note)
        return ResultsError(
            f"{label} shares no finite score of a task with another run"
            f"{why and f' ({why})'}; name another --metric, or compare other runs."
        )
    return ResultsError(f"{label} shares no task with another run; compare runs of the same tasks.")


def run_info(run: Run) -> RunInfo:
    """Return the provenance of a run."""
    return RunInfo(
        label=run.label,
        folder=str(run.folder),
        files=[path.name for path in run.files],
        model=run.model,
        model_args=run.model_args,
        info=dict(run.info),
    )


def _titled(outcome: TaskOutcome, title: str) -> TaskOutcome:
    if not title:
        return outcome
    update = {"filter": title}
    return replace(
        outcome,
        row=outcome.row.model_copy(update=update),
        flips=[flip.model_copy(update=update) for flip in outcome.flips],
    )


def _refuse_or_note(
    outcomes: Mapping[tuple[str, str], TaskOutcome], baseline: str, force: bool
) -> list[str]:
    faults = [
        f"{outcome.row.title} in {label} and {baseline}: {', '.join(found)}"
        for outcome in outcomes.values()
        for label, found in outcome.faults.items()
    ]
    if faults and not force:
        more = f"; and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise ResultsError(
            f"the runs are not comparable: {'; '.join(faults[:4])}{more}; run them with "
            "the same settings, or compare them anyway with --force."
        )
    return forced_notes(faults)


def _with_holm(rows: Sequence[Row], settings: CompareOptions) -> list[Row]:
    """Adjust both kinds of p-values over the tasks of each candidate."""
    updates: dict[tuple[int, str], dict[str, float]] = {}
    for name in ("p", "p_equal"):
        tests: dict[str, list[tuple[int, float]]] = {}
        for index, row in enumerate(rows):
            for difference in row.differences:
                if (p := getattr(difference, name)) is not None:
                    tests.setdefault(difference.candidate, []).append((index, p))
        for candidate, entries in tests.items():
            for (index, _), p in zip(entries, holm([p for _, p in entries]), strict=True):
                updates.setdefault((index, candidate), {})[f"{name}_holm"] = p

    def adjusted(index: int, difference: Difference) -> Difference:
        return difference.model_copy(update=updates.get((index, difference.candidate), {}))

    found = [
        row.model_copy(update={"differences": [adjusted(index, d) for d in row.differences]})
        for index, row in enumerate(rows)
    ]
    return [_judged(row, settings) for row in found]


def _judged(row: Row, settings: CompareOptions) -> Row:
    """Add what is shown about the equality of runs."""
    if settings.equivalence is None:
        return row
    alpha = round(1.0 - settings.confidence, 12)

    def judged(d: Difference) -> Difference:
        # A group's p-values are not corrected.
        p, p_equal = d.p_holm or d.p, d.p_equal_holm or d.p_equal
        if p is None or p_equal is None:
            return d
        differs, equal = p < alpha, p_equal < alpha
        verdict = "differs within" if differs and equal else "differs" if differs else "open"
        return d.model_copy(update={"verdict": "equal" if equal and not differs else verdict})

    return row.model_copy(update={"differences": [judged(d) for d in row.differences]})


def _absent(rows: Sequence[Row], runs: Sequence[Run]) -> list[str]:
    tasks = [row for row in rows if row.kind == "task"]
    absent = {
        run.label: [f"{row.name} ({row.metric})" for row in tasks if run.label not in row.scores]
        for run in runs
    }
    return absent_note(absent, len(tasks))


def _unknown_metric(asked: str, tasks: Sequence[str], runs: Sequence[Run]) -> UsageError:
    known = {
        metric.name
        for run in runs
        for name, task in run.tasks.items()
        if name in tasks
        for metric in task.metrics.values()
    }
    return UsageError(f"--metric: no compared task has {asked!r}; {did_you_mean(asked, known)}.")
