"""The prompts of single items, read from the samples again when they are shown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from gks_eval.evidence.runs import Run
from gks_eval.evidence.samples import SAMPLES

__all__ = ["excerpts", "prompt_of"]


def excerpts(
    run: Run, wanted: Iterable[tuple[str, int]], length: int = 90
) -> dict[tuple[str, int], str]:
    """Return the ends of prompts by (task, doc_id), for items of `run`."""
    by_task: defaultdict[str, set[int]] = defaultdict(set)
    for task, doc_id in wanted:
        by_task[task].add(doc_id)
    found = {}
    for task, doc_ids in by_task.items():
        path = run.tasks[task].samples if task in run.tasks else None
        if path is None:
            continue
        for _, row in SAMPLES.lines(path):
            item = row.get("doc_id")
            if isinstance(item, int) and item in doc_ids:
                text = " ".join(prompt_of(row).split())
                found[task, item] = text if len(text) <= length else f"…{text[1 - length :]}"
    return found


def prompt_of(row: Mapping[str, Any]) -> str:
    """Return the first prompt of a sample, or an empty text if it has none."""
    arguments = row.get("arguments")
    first = next(iter(arguments.values()), None) if isinstance(arguments, dict) else None
    return str(first.get("arg_0", "")) if isinstance(first, dict) else ""
