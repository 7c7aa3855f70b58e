"""The size of a grid before it runs, measured without reading the base's weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gks_eval.grid.cell import cell_request
from gks_eval.grid.evaluate import evaluate
from gks_eval.grid.kept import finished
from gks_eval.grid.prepare import base_record, make_lm, prepare
from gks_eval.grid.record import record_of
from gks_eval.grid.settings import Cell, Grid
from gks_eval.grid.task_index import grid_content, task_manager
from gks_eval.tasklib.local_data import local_data

__all__ = ["GridPlan", "TaskSize", "plan_grid"]


@dataclass(frozen=True)
class TaskSize:
    """The size of one task, which every setting computes.

    Attributes:
        items: Documents.
        requests: Texts to score or to continue.
        tokens: Input tokens that lm-eval's own scorer runs for them, without padding.
        distinct: Distinct input prefixes, which the packed scorer runs.
    """

    items: int
    requests: int
    tokens: int
    distinct: int


@dataclass(frozen=True)
class GridPlan:
    """A grid before it runs.

    Attributes:
        cells: Each setting, and whether it is finished already.
        tasks: Sizes by task.
        distinct: Distinct input prefixes of all tasks together, which share some.
        continued: Texts to continue, whose cost does not follow from the inputs.
        weights: Weights per token, without embeddings and vocabulary head.
        rate: Distinct tokens per second of the finished settings; None if none is finished.
    """

    cells: Sequence[tuple[Cell, bool]]
    tasks: Mapping[str, TaskSize]
    distinct: int
    continued: int
    weights: int
    rate: float | None

    @property
    def left(self) -> int:
        """Return the number of settings that remain to be run."""
        return sum(not done for _, done in self.cells)

    @property
    def tera_operations(self) -> float:
        """Return the remaining operations in 1e12, at 2 operations per weight and token."""
        return 2e-12 * self.weights * self.distinct * self.left

    @property
    def seconds(self) -> float | None:
        """Return the remaining time, at the rate of the finished settings."""
        return None if self.rate is None else self.left * self.distinct / self.rate


def plan_grid(grid: Grid) -> GridPlan:
    """Check a grid as `run_grid` does, build its requests with lm-eval, and count them.

    Nothing is written, and only the config and the tokenizer of the base are read.

    Raises:
        GksError: As `run_grid`, for all that can be checked without the weights.
    """
    from gks_eval.grid.weightless import WeightlessLM

    cells, libraries, base = prepare(grid)
    with local_data():
        tasks = task_manager(grid.tasks, grid.include_paths)
        content = grid_content(tasks, grid)
        pairs = list(zip(cells, libraries, strict=True))
        recorded = base_record(base, grid)
        requests = [cell_request(cell, library, recorded, content, grid) for cell, library in pairs]
        done = finished([grid.output / cell.slug for cell in cells], requests)
        states = list(zip(cells, done, strict=True))
        lm = make_lm(WeightlessLM, {"router": "none"}, None, base, grid)
        results = evaluate(lm, tasks, grid, log_samples=False, bootstrap_iters=0)
    assert results is not None  # there is one process
    asked = Counter(task for task, _, _ in lm.scored) + Counter(lm.continued)
    items = {task: count["effective"] for task, count in results["n-samples"].items()}
    return GridPlan(
        cells=states,
        tasks={task: TaskSize(items[task], asked[task], *lm.count(task)) for task in items},
        distinct=lm.count()[1],
        continued=len(lm.continued),
        weights=lm.weights(),
        rate=_rate([cell for cell, done in states if done], grid),
    )


def _rate(finished: Sequence[Cell], grid: Grid) -> float | None:
    tokens = seconds = 0.0
    for cell in finished:
        spent = (record_of(grid.output / cell.slug) or {}).get("spent", {})
        tokens += spent.get("distinct_tokens", 0)
        seconds += spent.get("seconds", 0)
    return tokens / seconds if tokens and seconds else None
