"""What the workers of a cluster evaluate: settings, or parts of the last ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gks_eval.grid.settings import Grid

__all__ = ["Unit", "divide", "units"]


@dataclass(frozen=True)
class Unit:
    """Work for one worker.

    Attributes:
        at: Number of the setting.
        part: Number of the part; None for the whole setting, also to write it after its parts.
        tasks: Of the part.
    """

    at: int
    part: int | None = None
    tasks: tuple[str, ...] = ()


def units(settings: Sequence[int], workers: int, parts: Sequence[Sequence[str]]) -> list[Unit]:
    """Return the work in its order.

    Settings are whole as long as their number divides evenly among the workers. The remaining
    settings are evaluated in parts.

    Args:
        settings: Numbers of the settings that are not finished.
        workers: Number of workers.
        parts: Tasks of each part, one part per worker; a single one for settings in one piece.
    """
    whole = len(settings) - len(settings) % workers if len(parts) > 1 else len(settings)
    return [Unit(at) for at in settings[:whole]] + [
        Unit(at, number, tuple(names))
        for at in settings[whole:]
        for number, names in enumerate(parts)
    ]


def divide(tasks: Any, grid: Grid, parts: int) -> list[list[str]]:
    """Divide a grid's tasks into parts of similar size.

    The largest tasks are placed first, each into the smallest part. The size of a task is the
    length of its rows as text. A prefix that tasks of several parts share is computed in each.

    Args:
        tasks: lm-eval's index of tasks.
        grid: The grid.
        parts: Number of parts; there are fewer if there are fewer tasks.
    """
    from lm_eval.evaluator_utils import get_sample_size

    limit, samples = grid.evaluation.get("limit"), grid.evaluation.get("samples") or {}
    sizes = {
        name: sum(
            len(str(row))
            for _, row in task.doc_iterator(
                limit=get_sample_size(task, limit), samples=samples.get(name)
            )
        )
        for name, task in tasks.load(list(grid.tasks))["tasks"].items()
    }
    filled = [0] * parts
    found: list[list[str]] = [[] for _ in range(parts)]
    for name in sorted(sizes, key=lambda one: -sizes[one]):
        smallest = filled.index(min(filled))
        filled[smallest] += sizes[name]
        found[smallest].append(name)
    return [names for names in found if names]
