"""A grid on a Ray cluster: each worker loads the base once and evaluates settings in turn.

A setting whose worker died goes to the next free one, which resumes it from the requests that are
scored already: they are in the output folder, which all workers share.
"""

from __future__ import annotations

import os
import platform
from collections import Counter, deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gks_eval.errors import GksError, ResourceError, ResultsError, UsageError, reason
from gks_eval.grid.kept import differences
from gks_eval.grid.runner import GridRun, OnCell, locked
from gks_eval.tasklib.local_data import DATA_ROOT, local_data
from gks_eval.util.ray_cluster import LOCAL, RETRIES, check_ray, ray_cluster

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gks_eval.grid.settings import Grid

__all__ = ["RayOptions", "run_grid_on_ray"]


@dataclass(frozen=True)
class RayOptions:
    """How a grid is divided.

    Attributes:
        address: Of a running cluster; ``local`` starts one on this machine.
        workers: Number of workers; None for one per GPU asked for, else one per host.
        cpus: CPUs per worker.
        gpus: GPUs per worker.
    """

    address: str = LOCAL
    workers: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0


def run_grid_on_ray(grid: Grid, options: RayOptions, on_cell: OnCell | None = None) -> list[Path]:
    """Run every setting that is not finished, on the workers of a cluster.

    Args:
        grid: What to run; its output is in a file system that all workers share.
        options: How it is divided.
        on_cell: As for `gks_eval.grid.run_grid`.

    Returns:
        The settings' folders, in order.

    Raises:
        UsageError: Ray is not installed, its cluster cannot be reached, or has fewer GPUs.
        ResourceError: The workers of one setting died repeatedly.
        GksError: As `gks_eval.grid.run_grid`.
    """
    check_ray()
    run = GridRun(grid)
    report = on_cell or (lambda _cell, _state: None)
    with locked(run):
        with local_data():
            run.read_tasks()
            done = run.finished()
        for cell, kept in zip(run.cells, done, strict=True):
            if kept:
                report(cell, "kept")
        left = [at for at, kept in enumerate(done) if not kept]
        if left:
            with ray_cluster(options.address):
                _Pool(run, options, report, deque(left)).work()
    return run.folders


@dataclass
class _Pool:
    """The workers, and the settings that remain.

    Attributes:
        waiting: Numbers of the settings that no worker has.
        calls: What each worker is doing: a setting, or None for its start.
        idle: Workers without a setting.
        workers: All that were started, dead ones too.
        deaths: By setting; None for workers that died at their start.
    """

    run: GridRun
    options: RayOptions
    report: OnCell
    waiting: deque[int]
    calls: dict[Any, tuple[Any, int | None]] = field(default_factory=dict)
    idle: list[Any] = field(default_factory=list)
    workers: list[Any] = field(default_factory=list)
    deaths: Counter[int | None] = field(default_factory=Counter)

    def work(self) -> None:
        """Evaluate all settings."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        for _ in range(min(self._size(), len(self.waiting))):
            self._start()
        try:
            while self.waiting or any(at is not None for _, at in self.calls.values()):
                (done,), _ = ray.wait(list(self.calls), num_returns=1)
                worker, at = self.calls.pop(done)
                try:
                    fault = ray.get(done)
                except RayTaskError as error:
                    raise error.cause from None
                except RayError as error:
                    self._buried(at, error)
                    continue
                if fault is not None:
                    raise fault
                if at is not None:
                    self.report(self.run.cells[at], "done")
                self.idle.append(worker)
                self._assign()
        finally:
            for worker in self.workers:
                ray.kill(worker)

    def _size(self) -> int:
        import ray

        gpus = self.options.gpus
        there = ray.cluster_resources().get("GPU", 0.0)
        if gpus > there:
            raise UsageError(
                f"--gpus {gpus:g}: the cluster has {there:g} GPUs; ask for fewer per worker."
            )
        hosts = sum(node["Alive"] for node in ray.nodes())
        return self.options.workers or max(1, int(there / gpus) if gpus else hosts)

    def _start(self) -> None:
        import ray

        kind = ray.remote(num_cpus=self.options.cpus, num_gpus=self.options.gpus)(_Worker)
        data = os.environ.get(DATA_ROOT)
        worker = kind.remote(self.run.grid, self.run.requests, str(Path.cwd()), data)
        self.workers.append(worker)
        self.calls[worker.start.remote()] = worker, None

    def _assign(self) -> None:
        while self.waiting and self.idle:
            at, worker = self.waiting.popleft(), self.idle.pop()
            self.report(self.run.cells[at], "running")
            self.calls[worker.evaluate.remote(at)] = worker, at

    def _buried(self, at: int | None, error: Exception) -> None:
        """Give a dead worker's setting to another, and start a worker in its place."""
        self.deaths[at] += 1
        if self.deaths[at] > RETRIES:
            what = "workers" if at is None else f"setting {self.run.cells[at].label}: its workers"
            raise ResourceError(
                f"{what} died {self.deaths[at]} times ({reason(error, last=True)}); see Ray's own "
                "logs, then run the same command again to resume."
            ) from error
        if at is not None:
            self.waiting.appendleft(at)
        self._assign()
        if self.waiting:
            self._start()


class _Worker:
    """What runs in a worker's process. A GksError is returned, because Ray would wrap it."""

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

    def evaluate(self, at: int) -> GksError | None:
        """Evaluate one setting, unless a worker that died afterwards has finished it."""
        try:
            if not self._run.finished()[at]:
                self._run.evaluate(at)
        except GksError as error:
            return error
        return None
