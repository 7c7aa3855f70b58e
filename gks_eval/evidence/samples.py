"""Reads a `samples_*.jsonl` of lm-eval: the score of every item, with the keys to pair it."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from gks_eval.errors import ResultsError
from gks_eval.evidence.records import TaskResult
from gks_eval.util.json_file import JsonFile

__all__ = [
    "SAMPLES",
    "Item",
    "ItemKey",
    "TaskSamples",
    "cluster_label",
    "filtered_rows",
    "read_samples",
]

SAMPLES: Final = JsonFile(
    "line of samples", ResultsError, "run the evaluation again", limit=1 << 28, constants=True
)

ItemKey = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Item:
    """The scores of one item under one filter.

    Attributes:
        doc_id: Its place in the split.
        key: Hash of the document and its occurrence, because data sets have duplicates.
        prompt_hash: Hash of the (first) prompt.
        target_hash: Hash of the gold answer.
        values: Scores by metric; an average over items is their mean.
        pairs: Pairs of numbers by metric: a rolling log-likelihood and its words or bytes.
        cluster: Equal for linked items, of this task or another; empty if it is not linked.
    """

    doc_id: int
    key: ItemKey
    prompt_hash: str
    target_hash: str
    values: Mapping[str, float]
    pairs: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    cluster: str = ""


@dataclass(frozen=True, slots=True)
class TaskSamples:
    """All items of one task in one run, by filter, each list in the order of the split."""

    path: Path
    by_filter: Mapping[str, Sequence[Item]]


def filtered_rows(task: TaskResult, path: Path) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield (filter, line number, row) of a task's samples.

    lm-eval 0.4.3 to 0.4.5 record no filter: the k-th row of a document is for the k-th filter.

    Raises:
        ResultsError: A line is not a complete sample.
    """
    filters = list(dict.fromkeys(key.partition(",")[2] for key in task.keys)) or ["none"]
    seen: Counter[int] = Counter()
    for number, row in SAMPLES.lines(path):
        if "filter" in row or "metrics" in row:
            yield _text(row, "filter", path, number), number, row
        else:
            doc_id = _doc_id(row, path, number)
            yield filters[min(seen[doc_id], len(filters) - 1)], number, row
            seen[doc_id] += 1


def read_samples(task: TaskResult) -> TaskSamples | None:
    """Read the items of `task`; None if the run logged no samples.

    Raises:
        ResultsError: The file is broken, or holds another number of items than the results.
    """
    if task.samples is None:
        return None
    rows: defaultdict[str, list[tuple[int, Mapping[str, Any]]]] = defaultdict(list)
    for name, number, row in filtered_rows(task, task.samples):
        rows[name].append((number, row))
    for filter_name, found in rows.items():
        if len(found) != task.n:
            raise ResultsError(
                f"{task.samples} holds {len(found)} items (filter {filter_name}) where "
                f"{task.source.name} says {task.n}: half written or of another run; run the "
                "evaluation again."
            )
    if task.n and not rows:
        raise ResultsError(f"{task.samples} is empty; run the evaluation again.")
    recorded = {key.partition(",")[0] for key in task.keys}
    by_filter = {name: _items(found, recorded, task) for name, found in rows.items()}
    return TaskSamples(task.samples, by_filter)


def _items(
    rows: list[tuple[int, Mapping[str, Any]]], recorded: Iterable[str], task: TaskResult
) -> list[Item]:
    path = task.samples or task.source
    # Several processes write one after another; the doc_id gives the order of the split.
    parsed = sorted(
        ((_doc_id(row, path, number), number, row) for number, row in rows),
        key=lambda entry: entry[0],
    )
    seen: Counter[str] = Counter()
    items = []
    for doc_id, number, row in parsed:
        doc_hash = _text(row, "doc_hash", path, number)
        names = row.get("metrics", recorded)
        scores = {
            name: row.get(name)
            for name in (names if isinstance(names, Iterable) else ())
            if isinstance(name, str)
        }
        items.append(
            Item(
                doc_id=doc_id,
                key=(doc_hash, seen[doc_hash]),
                prompt_hash=str(row.get("prompt_hash", "")),
                target_hash=str(row.get("target_hash", "")),
                values={n: x for n, v in scores.items() if (x := _number(v)) is not None},
                pairs={n: pair for n, v in scores.items() if (pair := _pair(v)) is not None},
                cluster=cluster_label(task, doc_id, row.get("doc")),
            )
        )
        seen[doc_hash] += 1
    return items


def cluster_label(task: TaskResult, doc_id: int, doc: object) -> str:
    """Return a label that is equal for linked items of tasks of one data set."""
    if not task.cluster:
        return ""
    if task.cluster == "task":
        return f"task {task.name}"
    fields = doc if isinstance(doc, dict) else {}
    value = doc_id if task.cluster == "doc_id" else fields.get(task.cluster)
    if value is None or value == "":
        return ""
    # A passage is long, and a text of a data set may contain anything.
    text = json.dumps([task.config.get("dataset_path") or task.name, task.cluster, value])
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _doc_id(row: Mapping[str, Any], path: Path, number: int) -> int:
    doc_id = row.get("doc_id")
    if not isinstance(doc_id, int) or isinstance(doc_id, bool):
        raise ResultsError(f"{path} line {number} has no doc_id; run the evaluation again.")
    return doc_id


def _number(value: object) -> float | None:
    """Return a number as a float, or None; integers beyond a float's range become infinite."""
    if not isinstance(value, (bool, int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _pair(value: object) -> tuple[float, float] | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    first, second = map(_number, value)
    return None if first is None or second is None else (first, second)


def _text(row: Mapping[str, Any], key: str, path: Path, number: int) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise ResultsError(
            f"{path} line {number} has no {key}; give samples as lm-eval writes them."
        )
    return value
