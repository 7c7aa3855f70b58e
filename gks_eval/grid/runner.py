"""Running all settings of a grid on one loaded base."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from gks_eval.errors import ResourceError
from gks_eval.grid.cell import cell_request, evaluate_cell, evaluate_part
from gks_eval.grid.kept import check_commit, finished
from gks_eval.grid.kept_requests import forget, partial_folder
from gks_eval.grid.prepare import base_record, library_name, make_lm, prepare
from gks_eval.grid.profile import profiling
from gks_eval.grid.settings import Cell, Grid
from gks_eval.grid.shared_tasks import SharedTasks
from gks_eval.grid.task_index import grid_content, task_manager
from gks_eval.tasklib.local_data import local_data
from gks_eval.util.files import exclusive
from gks_eval.util.grid_order import write_order
from gks_eval.util.process_group import ProcessGroup

if TYPE_CHECKING:
    from gks_eval.model.lm import GksArrowLM

__all__ = ["GridRun", "OnCell", "locked", "run_grid"]

OnCell = Callable[[Cell, str], None]
"""Called with a cell and ``"kept"``, ``"running"`` or ``"done"``, or ``"part 1"`` on a cluster."""


def run_grid(grid: Grid, on_cell: OnCell | None = None) -> list[Path]:
    """Run every setting that is not finished.

    Args:
        grid: What to run.
        on_cell: Called with a cell and ``"kept"``, ``"running"`` or ``"done"``.

    Returns:
        The settings' folders, in order.

    Raises:
        UsageError: A setting cannot be run; all are checked before the base is loaded.
        ResultsError: A folder holds a finished cell of other arguments, or of tasks or data that
            have changed since; all are checked before the base is loaded.
        ResourceError: Another process writes to the same output, or a result cannot be written.
        GksError: As `GksArrowLM`.
    """
    run = GridRun(grid)
    report = on_cell or (lambda _cell, _state: None)
    with locked(run), local_data():
        run.read_tasks()
        for at, (cell, done) in enumerate(zip(run.cells, run.finished(), strict=True)):
            if done:
                run.clear(at)
                report(cell, "kept")
                continue
            report(cell, "running")
            run.evaluate(at)
            report(cell, "done")
        run.group.wait()  # until process 0 has written its results
    return run.folders


@contextmanager
def locked(run: GridRun) -> Iterator[None]:
    """Keep other commands from writing to a grid's output, and record its settings' order.

    Raises:
        ResourceError: Another process writes to the same output.
    """
    output, main = run.grid.output, run.group.is_main
    with exclusive(output / ".lock") if main else nullcontext(True) as held:
        if not held:
            raise ResourceError(
                f"another grid is writing to {output}; wait for it, or name another --output."
            )
        if main:
            write_order(output, [cell.slug for cell in run.cells])
        yield


class GridRun:
    """A grid in this process: its settings, checked, and the base once it is needed.

    Call `read_tasks` before `finished` and `evaluate`.

    Attributes:
        grid: The grid.
        cells: Its settings.
        folders: Their folders.
        requests: Of each setting, see `gks_eval.grid.cell.cell_request`.
        tasks: lm-eval's index, with tasks and requests made once.
        group: The processes that run the grid together.

    Raises:
        UsageError: A setting cannot be run.
        GksError: A library cannot be read.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.group = ProcessGroup()
        self.cells, self._libraries, self._base = prepare(grid)
        self.folders = [grid.output / cell.slug for cell in self.cells]
        self._lm: GksArrowLM | None = None

    def read_tasks(self) -> None:
        """Load the tasks and describe each setting's request.

        Raises:
            GksError: A task or its data cannot be loaded.
        """
        grid = self.grid
        tasks = task_manager(grid.tasks, grid.include_paths)
        content = grid_content(tasks, grid)
        self.tasks = SharedTasks(tasks)
        base = base_record(self._base, grid)
        self.requests = [
            cell_request(cell, library, base, content, grid)
            for cell, library in zip(self.cells, self._libraries, strict=True)
        ]

    def finished(self) -> list[bool]:
        """Return which settings are finished.

        Raises:
            ResultsError: A folder holds another result.
        """
        self._done = self.group.agree(finished(self.folders, self.requests))
        return self._done

    def evaluate(self, at: int, before: Mapping[str, float] | None = None) -> None:
        """Run one setting and write its folder; the first call loads the base.

        Args:
            at: Its number in `cells`.
            before: What its parts took, see `evaluate_part`.
        """
        cell = self.cells[at]
        with profiling() if self.grid.profile else nullcontext() as watch:
            with watch.phase("loading") if watch else nullcontext():
                lm = self.applied(at)
            request = self.requests[at]
            evaluate_cell(lm, self.tasks, cell, request, self.grid, self.group, watch, before)

    def evaluate_part(self, at: int, part: int, names: Sequence[str]) -> dict[str, float]:
        """Score the requests of some tasks of a setting, see `gks_eval.grid.cell.evaluate_part`."""
        lm, cell, request = self.applied(at), self.cells[at], self.requests[at]
        return evaluate_part(lm, self.tasks, cell, request, self.grid, part, names)

    def clear(self, at: int) -> None:
        """Remove what a command that was killed right after it finished a setting left of it."""
        if self.group.is_main:
            forget(partial_folder(self.grid, self.cells[at]))

    def applied(self, at: int) -> GksArrowLM:
        """Return the model at one setting; the first call loads the base.

        Args:
            at: Its number in `cells`.
        """
        from gks_eval.model.lm import GksArrowLM

        cell, grid, lm = self.cells[at], self.grid, self._lm
        if lm is None:
            arguments = cell.setting.arguments()
            lm = make_lm(GksArrowLM, arguments, library_name(cell, grid), self._base, grid)
            if self.group.is_main:
                kept = [f for f, there in zip(self.folders, self._done, strict=True) if there]
                check_commit(kept, getattr(lm.config, "_commit_hash", None))
            lm.keeps_requests = len(self.cells) > 1
            self._lm = lm
        lm.apply(cell.setting, self._libraries[at])
        lm.choose_scoring(cell.others.get("scoring") or grid.model_arguments.get("scoring"))
        batch_size = cell.others.get("batch_size") or grid.model_arguments.get("batch_size")
        if batch_size is not None:
            lm.choose_batch_size(batch_size)
        return lm
