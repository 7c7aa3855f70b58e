"""What runs in the process of a Ray worker."""

from __future__ import annotations

import os
import platform
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from gks_eval.errors import GksError, ResultsError, reason
from gks_eval.grid.kept import differences
from gks_eval.grid.runner import GridRun
from gks_eval.tasklib.local_data import DATA_ROOT, local_data

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gks_eval.grid.settings import Grid
    from gks_eval.grid.units import Unit

__all__ = ["RayWorker"]


class RayWorker:
    """A worker, which loads the base once. A GksError is returned, because Ray would wrap it."""

    def __init__(
        self, grid: Grid, requests: Sequence[Mapping[str, Any]], folder: str, data: str | None
    ) -> None:
        self._asked = grid, requests, folder, data
        self._data = ExitStack()

    def start(self) -> GksError | None:
        """Read libraries and tasks, and check that they are those of the command."""
        grid, requests, folder, data = self._asked
        try:
            try:
                os.chdir(folder)  # paths are relative to it
            except OSError as error:
                raise ResultsError(
                    f"--ray: host {platform.node()} cannot enter {folder} ({reason(error)}); run "
                    "the command in a folder that all hosts share."
                ) from None
            if data is not None:
                os.environ[DATA_ROOT] = data
            self._data.enter_context(local_data())
            self._run = GridRun(grid)
            self._run.read_tasks()
            for asked, found in zip(requests, self._run.requests, strict=True):
                if others := list(differences(asked, found)):
                    raise ResultsError(
                        f"--ray: host {platform.node()} reads other content than the command "
                        f"({'; '.join(others)}); give all hosts the same files and versions."
                    )
        except GksError as error:
            return error
        return None

    def evaluate(
        self, unit: Unit, before: Mapping[str, float]
    ) -> GksError | Mapping[str, float] | None:
        """Evaluate a unit, unless a worker that died afterwards has finished its setting.

        Args:
            unit: A setting or a part.
            before: What the parts of the setting took so far.

        Returns:
            What a part took.
        """
        try:
            if self._run.finished()[unit.at]:
                return None
            if unit.part is not None:
                return self._run.evaluate_part(unit.at, unit.part, unit.tasks)
            self._run.evaluate(unit.at, before)
        except GksError as error:
            return error
        return None
