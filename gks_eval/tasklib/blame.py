"""Which task, item and key an exception of lm-eval comes from, read from its traceback.

lm-eval lets whatever a task's YAML or functions raise pass through, without the task's name.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gks_eval.errors import whole_reason

__all__ = ["Blame", "blame"]

# Keys of a YAML whose evaluation has a method of the same name in lm-eval's task class.
_KEYS: Final = frozenset(
    "doc_to_text doc_to_target doc_to_choice process_results should_decontaminate".split()
)
_SPLITS: Final = {"test_docs", "validation_docs", "training_docs", "fewshot_docs"}


@dataclass(frozen=True)
class Blame:
    """Where a task went wrong.

    Attributes:
        task: Its name.
        file: Its YAML; None for a task without one.
        item: Index of the item that was being read; None where it was no single one.
        reason: What is wrong.
        key: The key of the YAML that it comes from, where that is known.
        offline: Whether the data set's place could not be reached.
    """

    task: str
    file: str | None
    item: int | None
    reason: str
    key: str | None
    offline: bool = False

    def __str__(self) -> str:
        """Return the tail of a sentence: what is wrong, and what to correct."""
        item = "" if self.item is None else f", item {self.item}"
        mend = f"correct {self.key or 'the task'} in {self.file or 'its Python file'}"
        if self.offline:
            mend = "go online, or set GKS_DATA_ROOT to a folder that holds the set as org/name/"
        return f"in task {self.task}{item}: {self.reason}; {mend}"


def blame(error: BaseException) -> Blame | None:
    """Return the task that an exception comes from; None where it comes from no task."""
    if isinstance(error, AssertionError) and "--samples" in str(error):
        return None  # lm-eval's check of an argument, made by its task class
    name = file = item = key = reason = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        local, called = frame.f_locals, frame.f_code.co_name
        entry: Any = local.get("entry")
        task: Any = local.get("self")
        if getattr(entry, "yaml_path", None) is not None:
            name, file = entry.name, str(entry.yaml_path)
        config: Any = getattr(task, "config", None)
        if getattr(config, "task", None) is None or not hasattr(task, "doc_to_text"):
            task = None
        else:
            name = config.task
            source = (config.metadata or {}).get("config_source")
            file = file if source in (None, "inline") else source
        if isinstance(local.get("doc_id"), int):
            item = local["doc_id"]
        if task is not None and called in _KEYS:
            key = called
            columns = ", ".join(getattr(task, "features", None) or [])
            reason = f"{_said(error)}{f' (columns: {columns})' if columns else ''}"
        elif task is not None and called == "download":
            key = "dataset_path, dataset_name or dataset_kwargs"
        elif task is not None and called in _SPLITS:
            key, reason = _split(error, task, called.replace("docs", "split"))
        elif task is not None and called == "__init__" and "test_doc" in local:
            item = 0
            key, reason = _first_item(local) or (key, reason)
        elif task is not None and "metric_name" in local and isinstance(error, KeyError):
            key, reason = "metric_list", f"lm-eval knows no metric {local['metric_name']!r}"
    if name is None:
        return None
    offline = isinstance(error, ConnectionError)
    return Blame(name, file, item, reason or _said(error), key, offline)


def _said(error: BaseException) -> str:
    text = whole_reason(error)
    kind = type(error).__name__
    return f"{kind}: {text}" if isinstance(error, LookupError) and text != kind else text


def _split(error: BaseException, task: Any, key: str) -> tuple[str, str]:
    wanted = getattr(task.config, key, None)
    if isinstance(error, KeyError) and error.args == (wanted,):
        known = ", ".join(map(str, getattr(task, "dataset", None) or {}))
        return key, f"its data set has no split {wanted!r}; it has {known or 'none'}"
    return "process_docs" if task.config.process_docs is not None else key, _said(error)


def _first_item(local: Mapping[str, Any]) -> tuple[str, str] | None:
    """Read what lm-eval's check of a task's first item was about."""
    choices, target = local.get("test_choice"), local.get("test_target")
    if isinstance(choices, list):
        if isinstance(target, int) and not -len(choices) <= target < len(choices):
            return "doc_to_target", (
                f"doc_to_target gives {target}, and doc_to_choice has {len(choices)} choices, "
                "counted from 0"
            )
        if "" in choices:
            return "doc_to_choice", "doc_to_choice gives an empty choice"
    return None
