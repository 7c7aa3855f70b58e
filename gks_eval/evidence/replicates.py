"""Compares methods over several seeds: runs of libraries that were trained alike."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import numpy as np
from pydantic import Field

from gks_eval.errors import ResultsError, UsageError
from gks_eval.evidence.aggregation import ratio_of_sums
from gks_eval.evidence.averages import group_keys, group_weights, is_weighted
from gks_eval.evidence.clusters import DECLARED, with_clusters
from gks_eval.evidence.measure import Changes, linked, pair
from gks_eval.evidence.observed import files_named
from gks_eval.evidence.runs import Run, find_runs
from gks_eval.evidence.samples import read_samples
from gks_eval.evidence.scores import choose_metrics, load_scores
from gks_eval.evidence.stats.holm import holm
from gks_eval.evidence.stats.replicated import Replicated, replicated
from gks_eval.util.json_file import JsonFile
from gks_eval.util.schemas import REPLICATES, ReplicatesSchema
from gks_eval.util.yaml import FrozenModel

__all__ = [
    "FEW_SEEDS",
    "MEAN",
    "Method",
    "Replicates",
    "Row",
    "find",
    "find_replicates",
    "replicates",
]

_FILE: Final = JsonFile(
    "file of replicates", ResultsError, "write it again with gks-eval compare --replicates"
)
# With fewer seeds the detectable change is part of the verdict.
FEW_SEEDS: Final = 5
_LEAST: Final = 3
MEAN: Final = "mean over tasks"


@dataclass(frozen=True, slots=True)
class Method:
    """The runs of one method, by the library's recorded seed or the text that ``*`` matched."""

    label: str
    pattern: str
    runs: Mapping[str, Run]


class Row(FrozenModel):
    """A method's change from the baseline on one task or average.

    Attributes:
        method: The method's label.
        name: Task, group, or ``mean over tasks``: all with scores between 0 and 1 of which a lower
            one is not better. They weigh the same.
        metric: ``metric,filter``; empty for ``mean over tasks``.
        binary: Whether the metric is an accuracy.
        higher_is_better: None if lm-eval does not record it.
        change: Mean over seeds, method minus baseline.
        low: Lower bound of its interval; None if nothing varies.
        high: Upper bound.
        p: Two-sided p-value with seeds and items as samples.
        p_holm: After Holm's correction over the method's tasks; None for averages.
        p_seeds: p-value of t over seeds, with the items taken as fixed.
        p_items: p-value of the item score, with the seeds taken as fixed.
        stderr_seeds: Standard error of the change from seeds.
        stderr_items: Standard error of the change from items.
        detectable: The change that is detected in 80% of cases at this level.
        by_seed: The change under each seed.
        n: Items.
        clusters: Clusters of linked items; None if no items are linked.
    """

    method: str
    name: str
    metric: str
    binary: bool
    higher_is_better: bool | None
    change: float
    low: float | None
    high: float | None
    p: float
    p_holm: float | None
    p_seeds: float
    p_items: float
    stderr_seeds: float
    stderr_items: float
    detectable: float | None
    by_seed: dict[str, float]
    n: int
    clusters: int | None


class Replicates(FrozenModel):
    """The result of `gks-eval compare --replicates`."""

    schema_: ReplicatesSchema = Field(
        default=REPLICATES, alias="schema", serialization_alias="schema"
    )
    baseline: str
    patterns: dict[str, str]
    seeds: list[str]
    confidence: float
    rows: Annotated[list[Row], Field(min_length=1)]
    notes: list[str]

    def to_json(self) -> str:
        """Return the versioned JSON."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"


def find_replicates(folder: Path) -> list[Replicates]:
    """Read every ``replicates.json`` and ``replicates_*.json`` under a folder.

    Raises:
        ResultsError: A file is broken or of another schema.
    """
    return [_FILE.read_as(path, Replicates) for path in files_named(folder, "replicates")]


def find(sources: Sequence[str], cluster: str = DECLARED) -> list[Method]:
    """Find the runs of every method.

    Args:
        sources: Each ``LABEL=PATTERN`` with one ``*`` in the pattern, as in
            ``arrow=runs/seed*/arrow``; the first is the baseline. Runs are paired by the seed that
            the library's training recorded, or by the text that ``*`` matches where a run has none.
        cluster: Which items are linked, see `with_clusters`.

    Raises:
        UsageError: A source has another form, or a label occurs twice.
        ResultsError: Nothing matches, a match holds several runs or none, there are fewer than
            three seeds, a seed occurs twice, or methods have other seeds.
    """
    if len(sources) < 2:
        raise UsageError(
            "--replicates compares two methods or more; give LABEL=PATTERN for each, the baseline "
            "first."
        )
    methods: list[Method] = []
    for source in sources:
        label, equals, pattern = source.partition("=")
        if not equals or not label or pattern.count("*") != 1:
            raise UsageError(
                f"--replicates: {source!r} is not LABEL=PATTERN with one * where the seed stands; "
                "write it as in 'arrow=runs/seed*/arrow'."
            )
        if label in {method.label for method in methods}:
            raise UsageError(f"--replicates: two methods are called {label!r}; rename one.")
        runs = _matches(label, pattern)
        linked_runs = with_clusters(list(runs.values()), cluster)
        methods.append(Method(label, pattern, dict(zip(runs, linked_runs, strict=True))))
    methods = _by_recorded_seed(methods)
    first = methods[0]
    for method in methods[1:]:
        if other := sorted(method.runs.keys() ^ first.runs.keys()):
            raise ResultsError(
                f"{method.label} and {first.label} do not both have the seeds "
                f"{', '.join(other[:5])}; every method needs a run of every seed."
            )
    if len(first.runs) < _LEAST:
        raise ResultsError(
            f"{first.pattern} matches {len(first.runs)} seeds; the variance between seeds needs at "
            f"least {_LEAST}."
        )
    return [
        replace(method, runs={seed: method.runs[seed] for seed in first.runs}) for method in methods
    ]


def _by_recorded_seed(methods: Sequence[Method]) -> list[Method]:
    """Return the methods with their runs by the libraries' seeds, if all results record them."""
    by_seed: list[Method] = []
    recorded = True
    for method in methods:
        runs: dict[str, Run] = {}
        for text, run in method.runs.items():
            seed = run.info.get("seed")
            if seed is None:
                recorded = False
            elif seed in runs:
                raise ResultsError(
                    f"{method.label}: the libraries of {runs[seed].folder} and {run.folder} were "
                    f"trained with the same seed {seed}; every replicate needs its own seed."
                )
            runs[seed or f"*{text}"] = run
        by_seed.append(Method(method.label, method.pattern, runs))
    return by_seed if recorded else list(methods)


def _matches(label: str, pattern: str) -> dict[str, Run]:
    before, _, after = pattern.partition("*")
    # As paths, because glob writes other separators than the pattern's on Windows.
    fixed = re.compile(re.escape(Path(pattern).as_posix()).replace(r"\*", "(.*)"), re.DOTALL)
    runs: dict[str, Run] = {}
    literal = f"{glob.escape(before)}*{glob.escape(after)}"
    for path in sorted(glob.glob(literal)):  # noqa: PTH207 - Path.glob refuses absolute patterns
        if found := fixed.fullmatch(Path(path).as_posix()):
            held = find_runs([path])
            if len(held) > 1:
                raise ResultsError(
                    f"{path} holds {len(held)} runs; the pattern of {label} must match a folder of "
                    "one run per seed."
                )
            runs[found[1]] = held[0]
    if not runs:
        raise ResultsError(f"{pattern} matches no results; check the pattern of {label}.")
    return runs


@dataclass(frozen=True, slots=True)
class _Task:
    """A method's changes on one task: by seed, (S, n)."""

    key: str
    values: np.ndarray[tuple[int, int], np.dtype[np.float64]]
    clusters: tuple[str, ...]
    binary: bool
    unit: bool
    higher_is_better: bool | None


def replicates(
    methods: Sequence[Method],
    metric: str | None = None,
    tasks: Sequence[str] = (),
    confidence: float = 0.95,
) -> Replicates:
    """Compare every method with the first, seed by seed and item by item.

    Args:
        methods: As `find` returns them.
        metric: For every task; None for each task's usual one.
        tasks: Tasks or groups to keep; empty for all that every run has.
        confidence: Of the intervals.

    Raises:
        ResultsError: Runs that cannot be compared, or have other items.
        UsageError: No run has a task or metric that was asked for.
    """
    baseline = methods[0]
    seeds = list(baseline.runs)
    first = baseline.runs[seeds[0]]
    notes: list[str] = []
    chosen = _chosen(methods, tasks, notes)
    rows: list[Row] = []
    for method in methods[1:]:
        found: dict[str, _Task] = {}
        for name in chosen:
            task = _task(name, baseline, method, metric)
            if isinstance(task, str):
                if task not in notes:
                    notes.append(task)
            else:
                found[name] = task
        if not found:
            raise UsageError(f"no task can be compared over seeds: {'; '.join(notes)}.")
        single = [
            _row(method, name, {name: task}, [1.0], confidence) for name, task in found.items()
        ]
        adjusted = holm([row.p for row in single])
        averages: list[Row] = []
        unit = {
            name: task
            for name, task in found.items()
            if task.unit and task.higher_is_better is not False
        }
        if len(unit) > 1:
            even = [1.0 / len(unit)] * len(unit)
            averages.append(_row(method, MEAN, unit, even, confidence))
        averages += _groups(method, first, found, metric, confidence)
        rows += averages
        rows += [
            row.model_copy(update={"p_holm": p}) for row, p in zip(single, adjusted, strict=True)
        ]
    return Replicates(
        baseline=baseline.label,
        patterns={method.label: method.pattern for method in methods},
        seeds=seeds,
        confidence=confidence,
        rows=rows,
        notes=notes,
    )


def _chosen(methods: Sequence[Method], wanted: Sequence[str], notes: list[str]) -> list[str]:
    """Return the tasks that all runs have."""
    runs = [run for method in methods for run in method.runs.values()]
    known = list(dict.fromkeys(name for run in runs for name in run.tasks))
    groups = {name: group for run in runs for name, group in run.groups.items()}
    if unknown := [name for name in wanted if name not in known and name not in groups]:
        raise UsageError(f"--tasks: no run has the task or group {unknown[0]!r}.")
    keep = set(wanted).union(*(groups[name].leaves for name in wanted if name in groups))
    asked = [name for name in known if not wanted or name in keep]
    lacking = [name for name in asked if any(name not in run.tasks for run in runs)]
    if lacking:
        notes.append(f"left out, as not every run has them: {', '.join(lacking)}")
    if shared := [name for name in asked if name not in lacking]:
        return shared
    raise ResultsError("the runs share no task; evaluate all methods and seeds on the same tasks.")


def _task(name: str, baseline: Method, method: Method, metric: str | None) -> _Task | str:
    """Return the changes on one task under every seed, or why there are none."""
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
    values = np.stack([_in_order(change, order) for change in changes])
    # Results from before a task declared its links are compared with later ones.
    links = next((change for change in changes if change.clusters), changes[0])
    labels = links.clusters and tuple(links.clusters[i] for i in _places(links, order))
    return _Task(
        key,
        values,
        labels,
        all(change.binary for change in changes),
        all(change.unit for change in changes),
        next(iter(baseline.runs.values())).tasks[name].metrics[key].higher_is_better,
    )


def _in_order(
    change: Changes, order: Sequence[tuple[str, int]]
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return change.values[_places(change, order)]


def _places(change: Changes, order: Sequence[tuple[str, int]]) -> list[int]:
    place = {item.key: index for index, (item, _) in enumerate(change.pairing.pairs)}
    return [place[key] for key in order]


def _groups(
    method: Method, first: Run, found: Mapping[str, _Task], metric: str | None, confidence: float
) -> list[Row]:
    rows = []
    for name, group in first.groups.items():
        for key in group_keys(name, [first], metric):
            if all(leaf in found and found[leaf].key == key for leaf in group.leaves):
                tasks = {leaf: found[leaf] for leaf in group.leaves}
                sizes = [task.values.shape[1] for task in tasks.values()]
                weights = group_weights(sizes, is_weighted(name, key, [first]))
                rows.append(_row(method, name, tasks, weights, confidence))
    return rows


def _row(
    method: Method,
    name: str,
    tasks: Mapping[str, _Task],
    weights: Sequence[float],
    confidence: float,
) -> Row:
    parts = list(tasks.values())
    values = [task.values for task in parts]
    sizes = [value.shape[1] for value in values]
    clusters = linked([task.clusters for task in parts], sizes)
    found: Replicated = replicated(values, weights, clusters, unit=all(task.unit for task in parts))
    low, high = found.interval(confidence) or (None, None)
    keys = {task.key for task in parts}
    directions = {task.higher_is_better for task in parts}
    return Row(
        method=method.label,
        name=name,
        metric=keys.pop() if len(keys) == 1 else "",
        binary=all(task.binary for task in parts),
        higher_is_better=directions.pop() if len(directions) == 1 else None,
        change=found.change,
        low=low,
        high=high,
        p=found.p(),
        p_holm=None,
        p_seeds=found.seeds_p,
        p_items=found.items_p,
        stderr_seeds=found.seeds_variance**0.5,
        stderr_items=found.items_variance**0.5,
        detectable=found.detectable(round(1.0 - confidence, 12)),
        by_seed=dict(zip(method.runs, map(float, found.by_seed), strict=True)),
        n=sum(sizes),
        clusters=len({label for own in clusters for label in own}) if clusters else None,
    )
