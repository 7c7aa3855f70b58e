"""A grid on a Ray cluster: each worker loads the base once and evaluates settings in turn.

If fewer settings than workers remain, the workers score parts of them, and one worker writes the
results from the scored requests. The unit of a dead worker goes to the next free one, which resumes
it from the scored requests in the output folder, which all workers share.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gks_eval.errors import GksError, ResourceError, ResultsError, reason
from gks_eval.grid.kept import finished
from gks_eval.grid.ray_worker import RayWorker, software
from gks_eval.grid.runner import GridRun, OnCell, locked
from gks_eval.grid.units import Unit, divide, units
from gks_eval.tasklib.local_data import DATA_ROOT, local_data
from gks_eval.util.ray_cluster import LOCAL, RETRIES, check_ray, check_size, ray_cluster

if TYPE_CHECKING:
    from collections.abc import Mapping

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
        UsageError: Ray is not installed, its cluster cannot be reached, or no host is large enough
            for a worker.
        ResultsError: A host has other software or files, or a result is not there.
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
        for at, (cell, kept) in enumerate(zip(run.cells, done, strict=True)):
            if kept:
                run.clear(at)
                report(cell, "kept")
        left = [at for at, kept in enumerate(done) if not kept]
        if left:
            with ray_cluster(options.address):
                _Pool(run, options, report).work(left)
    return run.folders


@dataclass
class _Pool:
    """The workers, and the work that remains.

    Attributes:
        waiting: Units that no worker has.
        unfinished: Number of parts that are not done, by setting.
        spent: What the parts of a setting took, by setting.
        calls: What each worker is doing: a unit, or None for its start.
        idle: Workers without a unit.
        workers: All workers that were started, including dead ones.
        deaths: By unit; None for workers that died at their start.
    """

    run: GridRun
    options: RayOptions
    report: OnCell
    waiting: deque[Unit] = field(default_factory=deque)
    unfinished: Counter[int] = field(default_factory=Counter)
    spent: defaultdict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    calls: dict[Any, tuple[Any, Unit | None]] = field(default_factory=dict)
    idle: list[Any] = field(default_factory=list)
    workers: list[Any] = field(default_factory=list)
    deaths: Counter[Unit | None] = field(default_factory=Counter)

    def work(self, left: list[int]) -> None:
        """Evaluate settings.

        Args:
            left: Their numbers.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        size = self._size()
        self.waiting.extend(units(left, size, self._parts(size)))
        self.unfinished.update(unit.at for unit in self.waiting if unit.part is not None)
        for _ in range(min(size, len(self.waiting))):
            self._start()
        try:
            while self.waiting or any(unit is not None for _, unit in self.calls.values()):
                (done,), _ = ray.wait(list(self.calls), num_returns=1)
                worker, unit = self.calls.pop(done)
                try:
                    found = ray.get(done)
                except RayTaskError as error:
                    raise error.cause from None
                except RayError as error:
                    self._buried(unit, error)
                    continue
                if isinstance(found, GksError):
                    raise found
                if unit is not None:
                    self._done(unit, found or {})
                self.idle.append(worker)
                self._assign()
        finally:
            for worker in self.workers:
                ray.kill(worker)

    def _done(self, unit: Unit, spent: Mapping[str, float]) -> None:
        if unit.part is None:
            self._check_written(unit.at)
            self.report(self.run.cells[unit.at], "done")
            return
        self.spent[unit.at].update(spent)
        self.unfinished[unit.at] -= 1
        if not self.unfinished[unit.at]:
            self.waiting.appendleft(Unit(unit.at))

    def _check_written(self, at: int) -> None:
        folder = self.run.folders[at]
        next(folder.parent.iterdir(), None)  # a network file system then looks again
        if not finished([folder], [self.run.requests[at]])[0]:
            raise ResultsError(
                f"--ray: a worker evaluated {self.run.cells[at].label}, but {folder} is not there; "
                "name an --output in a file system that all hosts share."
            )

    def _parts(self, size: int) -> list[list[str]]:
        if self.run.grid.profile:  # a profile measures one process
            return []
        with local_data():
            return divide(self.run.tasks, self.run.grid, size)

    def _size(self) -> int:
        import ray

        gpus = self.options.gpus
        check_size(self.options.cpus, gpus)
        there = ray.cluster_resources().get("GPU", 0.0)
        hosts = sum(node["Alive"] for node in ray.nodes())
        return self.options.workers or max(1, int(there / gpus) if gpus else hosts)

    def _start(self) -> None:
        import ray

        kind = ray.remote(num_cpus=self.options.cpus, num_gpus=self.options.gpus)(RayWorker)
        data = os.environ.get(DATA_ROOT)
        run = self.run
        worker = kind.remote(run.grid, run.requests, str(Path.cwd()), data, software())
        self.workers.append(worker)
        self.calls[worker.start.remote()] = worker, None

    def _assign(self) -> None:
        while self.waiting and self.idle:
            unit, worker = self.waiting.popleft(), self.idle.pop()
            cell = self.run.cells[unit.at]
            if unit.part is not None:
                self.report(cell, f"part {unit.part + 1}")
            elif unit.at not in self.unfinished:
                self.report(cell, "running")
            self.calls[worker.evaluate.remote(unit, self.spent[unit.at])] = worker, unit

    def _buried(self, unit: Unit | None, error: Exception) -> None:
        """Give a dead worker's unit to another, and start a worker in its place."""
        self.deaths[unit] += 1
        if self.deaths[unit] > RETRIES:
            label = unit and self.run.cells[unit.at].label
            what = "workers" if label is None else f"setting {label}: its workers"
            raise ResourceError(
                f"{what} died {self.deaths[unit]} times ({reason(error, last=True)}); see Ray's "
                "own logs, then run the same command again to resume."
            ) from error
        if unit is not None:
            self.waiting.appendleft(unit)
        self._assign()
        if self.waiting:
            self._start()
