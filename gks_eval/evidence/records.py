"""The content of results files as frozen values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["GroupResult", "Metric", "ResultsFile", "TaskResult", "is_finite"]


def is_finite(number: float) -> bool:
    """Return whether a number of a JSON file is finite as a float.

    JSON files may hold NaN, infinities and integers beyond the range of a float.
    """
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


@dataclass(frozen=True, slots=True)
class Metric:
    """One aggregated number of a task or group.

    Attributes:
        name: lm-eval's metric, such as ``acc``.
        filter: lm-eval's filter, mostly ``none``.
        value: The aggregate as recorded.
        stderr: Its standard error as recorded; None if lm-eval wrote ``N/A``.
        higher_is_better: None if lm-eval does not record it.
    """

    name: str
    filter: str
    value: float
    stderr: float | None
    higher_is_better: bool | None

    @property
    def key(self) -> str:
        """Return lm-eval's key, ``metric,filter``."""
        return f"{self.name},{self.filter}"


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The record of one task in one run.

    Attributes:
        name: The task's name.
        alias: Its display name.
        version: Its version, as text; None if not recorded.
        shots: Number of few-shot examples.
        n: Items scored.
        original: Items of the split before any limit.
        metrics: By ``metric,filter``.
        unusable: Recorded values of metrics that cannot be compared, such as NaN.
        config: The task's recorded configuration.
        source: The results file.
        samples: The file of its samples, or None.
        prompt_stamp: Chat template and system instruction in use, as one text.
        cluster: The field of the documents whose equal values link items, ``doc_id`` for the place
            in the split, ``task`` for all items of the task; empty if no items are linked.
    """

    name: str
    alias: str
    version: str | None
    shots: int | None
    n: int
    original: int | None
    metrics: Mapping[str, Metric]
    unusable: Mapping[str, str]
    config: Mapping[str, Any]
    source: Path
    samples: Path | None
    prompt_stamp: str
    cluster: str = ""

    @property
    def keys(self) -> list[str]:
        """Return every metric's key, those that cannot be compared last."""
        return [*self.metrics, *self.unusable]


@dataclass(frozen=True, slots=True)
class GroupResult:
    """A group of tasks with an average.

    Attributes:
        name: The group's name.
        alias: Its display name.
        leaves: Its tasks, sub-groups flattened, as lm-eval averages them.
        metrics: The averages as recorded.
        unusable: As a task's.
        weighted: By metric key: whether the average weights tasks by size. lm-eval does not record
            this. It is inferred from the numbers: None if they fit both, left out if neither.
        source: The results file.
    """

    name: str
    alias: str
    leaves: tuple[str, ...]
    metrics: Mapping[str, Metric]
    unusable: Mapping[str, str]
    weighted: Mapping[str, bool | None]
    source: Path

    @property
    def keys(self) -> list[str]:
        """Return every metric's key, those that cannot be compared last."""
        return [*self.metrics, *self.unusable]


@dataclass(frozen=True, slots=True)
class ResultsFile:
    """The content of one results file.

    Attributes:
        path: The file.
        stamp: Its time stamp, sortable; from the name, else from the content.
        model: What lm-eval calls the model's type, such as ``hf``.
        model_args: The model's arguments, as one sorted text.
        tasks: By name.
        groups: By name; only those with an average.
        unaveraged: Names of the groups without one.
        info: Further facts for provenance.
        ours: What `gks_arrow` recorded about itself, such as its setting; empty for other models.
    """

    path: Path
    stamp: str
    model: str
    model_args: str
    tasks: Mapping[str, TaskResult]
    groups: Mapping[str, GroupResult]
    unaveraged: tuple[str, ...] = ()
    info: Mapping[str, str] = field(default_factory=dict)
    ours: Mapping[str, Any] = field(default_factory=dict)
