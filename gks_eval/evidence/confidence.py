"""How sure a run is of the gold choice, item by item, next to whether it is right.

With the log-likelihoods l of the choices and the lengths n that the metric divides by, the margin
of an item is l_g / n_g less the largest of the other l_j / n_j, and its probability is the softmax
of l / n at g, the gold choice. The metric is right where the margin is positive.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gks_eval.evidence.comparison import Row, Shift
from gks_eval.evidence.measure import linked
from gks_eval.evidence.records import TaskResult
from gks_eval.evidence.runs import Run
from gks_eval.evidence.samples import ItemKey, cluster_label, filtered_rows
from gks_eval.evidence.stats.item_score import item_score

__all__ = ["Gold", "gold_of", "shifts"]


class Gold(NamedTuple):
    """One item: margin, probability of the gold choice, and its cluster."""

    margin: float
    probability: float
    cluster: str


def shifts(row: Row, runs: Sequence[Run], confidence: float) -> list[Shift]:
    """Return the paired shifts of a task's row, one per candidate, where they exist.

    Args:
        row: A task's row of accuracies; other rows have no shifts.
        runs: The runs, the baseline first.
        confidence: Of the intervals.
    """
    if row.kind != "task" or not row.binary or not row.differences:
        return []
    candidates = {d.candidate: d.difference for d in row.differences}
    first = gold_of(runs[0].tasks[row.name], row.metric)
    found = []
    for run in runs[1:]:
        if run.label not in candidates or not first:
            continue
        second = gold_of(run.tasks[row.name], row.metric)
        keys = [key for key in first if key in second]
        if not keys:
            continue
        labels = [first[key].cluster or second[key].cluster or str(key) for key in keys]
        links = linked([labels], [len(keys)])
        parts: dict[str, Any] = {}
        for name, unit in (("margin", False), ("probability", True)):
            changes = [getattr(second[key], name) - getattr(first[key], name) for key in keys]
            score = item_score([np.array(changes)], [1.0], links, unit)
            low, high = score.interval(confidence) or (None, None)
            parts |= {name: score.change, f"{name}_low": low, f"{name}_high": high}
            parts[f"{name}_p"] = score.two_sided_p()
        found.append(
            Shift(
                name=row.title,
                metric=row.metric,
                candidate=run.label,
                n=len(keys),
                accuracy=candidates[run.label],
                **parts,
            )
        )
    return found


def gold_of(task: TaskResult, key: str) -> dict[ItemKey, Gold]:
    """Return the margin and probability of every item of a multiple-choice task.

    Empty without samples, for metrics other than the four accuracies of choices, and if the gold
    choices that are read do not give the recorded scores.
    """
    metric, _, filter_name = key.partition(",")
    if task.samples is None or metric not in ("acc", "acc_norm", "acc_bytes", "acc_token_norm"):
        return {}
    rows = [row for name, _, row in filtered_rows(task, task.samples) if name == filter_name]
    rows.sort(key=lambda row: row["doc_id"] if isinstance(row.get("doc_id"), int) else 0)
    seen: Counter[str] = Counter()
    found: dict[ItemKey, Gold] = {}
    for row in rows:
        doc_hash = str(row.get("doc_hash"))
        item, seen[doc_hash] = (doc_hash, seen[doc_hash]), seen[doc_hash] + 1
        read = _read(row, metric, str(task.config.get("target_delimiter", " ")))
        if read is None:
            continue
        margin, probability = read
        # Another gold choice or length than the metric's would give another score.
        if abs(margin) > 1e-9 and row.get(metric) not in (margin > 0.0, float(margin > 0.0)):
            return {}
        doc_id = row["doc_id"] if isinstance(row.get("doc_id"), int) else 0
        found[item] = Gold(margin, probability, cluster_label(task, doc_id, row.get("doc")))
    return found


def _read(row: Mapping[str, Any], metric: str, delimiter: str) -> tuple[float, float] | None:
    """Return an item's margin and probability, or None if they cannot be read."""
    arguments, responses = row.get("arguments"), row.get("filtered_resps")
    requests = list(arguments.values()) if isinstance(arguments, dict) else []
    choices = [str(one.get("arg_1", "")) for one in requests if isinstance(one, dict)]
    choices = [choice.removeprefix(delimiter) for choice in choices]
    if not isinstance(responses, list) or not 1 < len(choices) == len(responses):
        return None
    gold = _gold(str(row.get("target", "")), choices)
    lengths = _lengths(row, metric, choices)
    try:
        scores = [float(response[0]) / n for response, n in zip(responses, lengths, strict=True)]
    except (TypeError, ValueError, IndexError, KeyError, OverflowError, ZeroDivisionError):
        return None
    if gold is None or not all(map(math.isfinite, scores)):
        return None
    others = [score for place, score in enumerate(scores) if place != gold]
    top = max(scores)
    total = math.fsum(math.exp(score - top) for score in scores)
    return scores[gold] - max(others), math.exp(scores[gold] - top) / total


def _gold(target: str, choices: Sequence[str]) -> int | None:
    if target.isdecimal() and len(target) < 4 and int(target) < len(choices):
        return int(target)
    places = [i for i, choice in enumerate(choices) if choice.strip() == target.strip()]
    # Where the choices are in the prompts, all continuations are the same.
    return places[0] if len(places) == 1 else None


def _lengths(row: Mapping[str, Any], metric: str, choices: Sequence[str]) -> list[int]:
    if metric == "acc_norm":
        return [len(choice) for choice in choices]
    if metric == "acc_bytes":
        return [len(choice.encode("utf-8", "replace")) for choice in choices]
    if metric == "acc":
        return [1] * len(choices)
    responses = row.get("resps")
    try:
        return [int(response[0][2]) for response in responses or []]
    except (TypeError, ValueError, IndexError, KeyError):
        return []
