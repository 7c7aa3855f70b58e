"""One `samples_*.jsonl` of lm-eval: the score of every item, in a form that can be paired."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gks_eval.errors import ResultsError
from gks_eval.evidence.json_text import parse
from gks_eval.evidence.records import TaskResult, is_finite

__all__ = ["Item", "ItemKey", "TaskSamples", "iter_rows", "read_samples"]

ItemKey = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Item:
    """The scores of one item under one filter.

    Attributes:
        doc_id: Its place in the split.
        key: Hash of the document and its occurrence: sets hold duplicated items.
        prompt_hash: Hash of the (first) prompt.
        target_hash: Hash of the gold answer.
        values: Scores by metric; scores that are no plain number are left out.
    """

    doc_id: int
    key: ItemKey
    prompt_hash: str
    target_hash: str
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class TaskSamples:
    """All items of one task in one run, by filter, each list in the order of the split."""

    path: Path
    by_filter: Mapping[str, Sequence[Item]]


def iter_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, row) of a samples file.

    Raises:
        ResultsError: A line is not a complete JSON object.
    """
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = parse(line)
                except (ValueError, RecursionError):
                    row = None
                if not isinstance(row, dict):
                    raise ResultsError(
                        f"{path} is broken or only half written (line {number}); run the "
                        "evaluation again."
                    )
                yield number, row
    except OSError as error:
        raise ResultsError(f"{path} cannot be read: {error.strerror}.") from None


def read_samples(task: TaskResult) -> TaskSamples | None:
    """Read the items of `task`; None where the run logged no samples.

    Raises:
        ResultsError: The file is broken, or holds fewer or more items than the results say.
    """
    if task.samples is None:
        return None
    rows: defaultdict[str, list[tuple[int, Mapping[str, Any]]]] = defaultdict(list)
    for number, row in iter_rows(task.samples):
        rows[_text(row, "filter", task.samples, number)].append((number, row))
    for filter_name, found in rows.items():
        if len(found) != task.n:
            raise ResultsError(
                f"{task.samples} holds {len(found)} items (filter {filter_name}) where "
                f"{task.source.name} says {task.n}: half written or of another run; run the "
                "evaluation again."
            )
    if task.n and not rows:
        raise ResultsError(f"{task.samples} is empty; run the evaluation again.")
    by_filter = {name: _items(found, task.samples) for name, found in rows.items()}
    return TaskSamples(task.samples, by_filter)


def _items(rows: list[tuple[int, Mapping[str, Any]]], path: Path) -> list[Item]:
    parsed = []
    for number, row in rows:
        doc_id = row.get("doc_id")
        if not isinstance(doc_id, int) or isinstance(doc_id, bool):
            raise ResultsError(f"{path} line {number} has no doc_id; run the evaluation again.")
        parsed.append((doc_id, number, row))
    # Several ranks write their shares one after another: the split's order is the doc_id's.
    parsed.sort(key=lambda entry: entry[0])
    seen: Counter[str] = Counter()
    items = []
    for doc_id, number, row in parsed:
        doc_hash = _text(row, "doc_hash", path, number)
        items.append(
            Item(
                doc_id=doc_id,
                key=(doc_hash, seen[doc_hash]),
                prompt_hash=str(row.get("prompt_hash", "")),
                target_hash=str(row.get("target_hash", "")),
                values=_values(row, path, number),
            )
        )
        seen[doc_hash] += 1
    return items


def _values(row: Mapping[str, Any], path: Path, number: int) -> dict[str, float]:
    names = row.get("metrics")
    values = {}
    for name in names if isinstance(names, list) else []:
        value = row.get(name) if isinstance(name, str) else None
        if not isinstance(value, (bool, int, float)):
            continue
        if not is_finite(value):
            raise ResultsError(
                f"{path} line {number} records {str(value)[:20]} for {name}; look into that "
                "run before using it."
            )
        values[name] = float(value)
    return values


def _text(row: Mapping[str, Any], key: str, path: Path, number: int) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise ResultsError(
            f"{path} line {number} has no {key}; give samples as lm-eval writes them."
        )
    return value
