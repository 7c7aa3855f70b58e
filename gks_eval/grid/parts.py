"""A setting whose items are read in parts, on one loaded base."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gks_eval.errors import UsageError
from gks_eval.grid.cell_files import publish, write_results
from gks_eval.grid.kept_requests import forget, partial_folder, prepare_partial
from gks_eval.grid.runner import GridRun, locked
from gks_eval.grid.settings import Grid
from gks_eval.tasklib.local_data import local_data

__all__ = ["Parts", "open_parts"]


class Parts:
    """One setting of a grid, ready to read items.

    Attributes:
        folder: Of its results.
        content: As `gks_eval.grid.task_index.grid_content` gives it.
        versions: By task, as lm-eval records them.
    """

    def __init__(self, run: GridRun) -> None:
        """Take a grid of one setting, whose tasks are read.

        Raises:
            UsageError: The prompts of a task depend on which items are read.
        """
        self._run = run
        self._partial = partial_folder(run.grid, run.cells[0])
        self.folder: Path = run.folders[0]
        self.content: Mapping[str, Any] = run.requests[0]["content"]
        self.versions = _versions(run.tasks, run.grid)

    def bind(self, **more: Any) -> bool:
        """Add to the request that the folder stands for; return whether the folder exists.

        Raises:
            ResultsError: It holds results of another request.
        """
        self._run.requests[0] |= more
        return self._run.finished()[0]

    def read(self, items: Mapping[str, Sequence[int]]) -> None:
        """Evaluate these items, those before from the kept requests, and replace the results.

        Args:
            items: By task their numbers, in order.

        Raises:
            GksError: As `gks_eval.grid.run_grid`.
        """
        run = self._run
        cell, request, grid = run.cells[0], run.requests[0], run.grid
        lm = run.applied(0)
        prepare_partial(self._partial, lm.identity(), request)
        found = write_results(self._partial, lm, run.tasks, cell, grid, run.group, samples=items)
        assert found is not None  # there is one process
        old = self._partial / "old"
        shutil.rmtree(old, ignore_errors=True)
        if self.folder.exists():
            self.folder.replace(old)
        publish(self._partial, lm, cell, request, grid, found)

    def close(self) -> None:
        """Remove the kept requests."""
        forget(self._partial)


@contextmanager
def open_parts(grid: Grid) -> Iterator[Parts]:
    """Check a grid of one setting, without loading its base.

    Raises:
        UsageError: The setting cannot be run, or its items cannot be read in parts.
        ResourceError: Another process writes to the same output.
        GksError: A library or the data of a task cannot be read.
    """
    run = GridRun(grid)
    if run.group.size > 1:
        raise UsageError("gate --run runs in one process; start it without torchrun or accelerate.")
    with locked(run), local_data():
        run.read_tasks()
        yield Parts(run)


def _versions(tasks: Any, grid: Grid) -> dict[str, str]:
    """Return the tasks' versions.

    Raises:
        UsageError: The prompts of a task depend on which items are read.
    """
    from lm_eval.api.samplers import ContextSampler

    from gks_eval.tasklib.task import without_warnings

    with without_warnings():
        loaded = tasks.load(list(grid.tasks))["tasks"]
    asked = grid.evaluation.get("num_fewshot")
    for name, task in loaded.items():
        own = task.config.num_fewshot
        shots = own if asked is None or own == 0 else asked
        if shots and type(getattr(task, "sampler", None)) is ContextSampler:
            raise UsageError(
                f"{name} draws few-shot examples item after item, so a part of its items has other "
                "prompts; evaluate all of it and use gate --candidate."
            )
    return {name: str(task.VERSION) for name, task in loaded.items()}
