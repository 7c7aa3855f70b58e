"""The samples for the page's browser: each text once, scores by run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gks_eval.evidence.comparison import Comparison, Row
from gks_eval.evidence.excerpts import prompt_of
from gks_eval.evidence.records import TaskResult, is_finite
from gks_eval.evidence.runs import Run
from gks_eval.evidence.samples import ItemKey, filtered_rows

__all__ = ["Book", "collect"]


@dataclass(slots=True)
class _Item:
    task: int
    doc_id: int
    prompt: str
    choices: list[str]
    gold: int
    target: str
    values: list[float | None]
    scores: list[list[float | None]]
    texts: list[str]

    def changed(self) -> bool:
        known = {value for value in self.values if value is not None}
        return len(known) > 1


@dataclass(slots=True)
class Book:
    """The samples of several runs.

    Attributes:
        tasks: Names of the tasks.
        total: Number of all items.
        items: The kept items, each as a list: task index, doc_id, prompt, choices, index of the
            gold answer or -1, gold answer, score by run, log-likelihoods by run, generated text
            by run.
    """

    tasks: list[str]
    total: int = 0
    items: list[list[Any]] = field(default_factory=list)


def collect(
    runs: Sequence[Run], comparison: Comparison, most: int = 20_000, max_text: int = 4_000
) -> Book:
    """Read the samples of all runs.

    Args:
        runs: The runs, in the comparison's order.
        comparison: Names the tasks and metrics to show.
        most: Largest number of items to keep; those that changed between runs come first.
        max_text: Characters of a prompt to keep; the middle of a longer one is cut out.

    Raises:
        ResultsError: A samples file is broken.
    """
    rows = [row for row in comparison.rows if row.kind == "task"]
    book = Book([row.title for row in rows])
    kept: list[_Item] = []
    for index, row in enumerate(rows):
        items = _task_items(index, row, runs, max_text)
        book.total += len(items)
        kept.extend(items)
    if len(kept) > most:
        chosen = sorted(range(len(kept)), key=lambda i: (not kept[i].changed(), i))[:most]
        kept = [kept[i] for i in sorted(chosen)]
    book.items = [
        [i.task, i.doc_id, i.prompt, i.choices, i.gold, i.target, i.values, i.scores, i.texts]
        for i in kept
    ]
    return book


def _task_items(index: int, row: Row, runs: Sequence[Run], max_text: int) -> list[_Item]:
    metric, _, filter_name = row.metric.partition(",")
    items: dict[ItemKey, _Item] = {}
    for position, run in enumerate(runs):
        task = run.tasks.get(row.name)
        if task is None or task.samples is None:
            continue
        for key, sample in _keyed(task, task.samples, filter_name):
            if key not in items:
                items[key] = _new(index, sample, len(runs), max_text)
            item = items[key]
            item.values[position] = _number(sample.get(metric))
            item.scores[position] = _log_likelihoods(sample)
            if not item.scores[position]:
                item.texts[position] = _cut(_generated(sample), max_text)
    return list(items.values())


def _keyed(
    task: TaskResult, path: Path, filter_name: str
) -> Iterable[tuple[ItemKey, Mapping[str, Any]]]:
    rows = [row for name, _, row in filtered_rows(task, path) if name == filter_name]
    rows.sort(key=lambda row: row["doc_id"] if isinstance(row.get("doc_id"), int) else 0)
    seen: Counter[str] = Counter()
    for row in rows:
        name = str(row.get("doc_hash"))
        yield (name, seen[name]), row
        seen[name] += 1


def _new(index: int, sample: Mapping[str, Any], runs: int, max_text: int) -> _Item:
    arguments = sample.get("arguments")
    requests = list(arguments.values()) if isinstance(arguments, dict) else []
    pairs = [(str(r.get("arg_0", "")), r.get("arg_1")) for r in requests if isinstance(r, dict)]
    choices = [second for _, second in pairs if isinstance(second, str)]
    prompt = prompt_of(sample)
    if len(choices) > 1 and len(set(choices)) == 1:
        # The choices are part of the prompts (winogrande), and the continuation is the same.
        choices, prompt = [first for first, _ in pairs], f"… {choices[0]}"
    target = str(sample.get("target", ""))
    return _Item(
        task=index,
        doc_id=sample["doc_id"] if isinstance(sample.get("doc_id"), int) else -1,
        prompt=_cut(prompt, max_text),
        choices=[_cut(choice, max_text) for choice in choices],
        gold=_gold(target, choices),
        target=_cut(target, max_text),
        values=[None] * runs,
        scores=[[] for _ in range(runs)],
        texts=[""] * runs,
    )


def _gold(target: str, choices: Sequence[str]) -> int:
    stripped = [choice.strip() for choice in choices]
    if target.isdecimal() and len(target) < 4 and int(target) < len(choices):
        return int(target)
    return stripped.index(target.strip()) if target.strip() in stripped else -1


def _log_likelihoods(sample: Mapping[str, Any]) -> list[float | None]:
    """Return one number per choice, None if it is not finite; empty without choices."""
    responses = sample.get("filtered_resps")
    found = []
    for response in responses if isinstance(responses, list) else []:
        if not isinstance(response, list) or not response:
            return []
        try:
            number = float(response[0])
        except (TypeError, ValueError):
            return []
        except OverflowError:
            number = math.inf
        found.append(round(number, 3) if math.isfinite(number) else None)
    return found


def _number(value: object) -> float | None:
    # JSON in browsers has no NaN and no infinities.
    return float(value) if isinstance(value, (bool, int, float)) and is_finite(value) else None


def _generated(sample: Mapping[str, Any]) -> str:
    responses = sample.get("filtered_resps")
    return "\n".join(map(str, responses)) if isinstance(responses, list) else ""


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} […{len(text) - 2 * half} characters…] {text[-half:]}"
