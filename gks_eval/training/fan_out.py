"""Trains a library on a cluster: one Ray task per adapter, scheduled by Ray.

Ray gives each task to a free worker, and restarts it if a worker dies. The task then resumes from
its last checkpoint, which is in the library's folder on a file system that all workers share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from gks_eval.errors import GksError, LibraryError, ResourceError, reason
from gks_eval.training.jobs import make_plan
from gks_eval.training.library_writer import check_library_output
from gks_eval.training.whole_library import (
    TrainingOutcome,
    finish_library,
    missing_adapters,
    train_library,
)
from gks_eval.util.ray_cluster import LOCAL, RETRIES, check_ray, check_size, ray_cluster

__all__ = ["train_on_ray"]


def train_on_ray(
    recipe_file: Path,
    output: Path,
    *,
    only: Sequence[str] = (),
    address: str | None = None,
    cpus: float = 1.0,
    gpus: float = 0.0,
    report: Callable[[str], None] = lambda _: None,
) -> TrainingOutcome:
    """Train the adapters that a library lacks as tasks on Ray.

    Args:
        recipe_file: The recipe, at a path that every worker can read.
        output: The library's folder, on a file system that every worker shares.
        only: Names of adapters; all when empty.
        address: Address of a running cluster; None starts a local one.
        cpus: CPUs per task.
        gpus: GPUs per task.
        report: Called with one line per adapter.

    Raises:
        UsageError: Ray is not installed, cannot be reached at `address`, or this machine is too
            small for a task.
        ResourceError: A task's workers died repeatedly.
        LibraryError: An adapter is not where its worker wrote it.
        GksError: As `train_library`; the first error of a task.
    """
    check_ray()
    import ray
    from ray.exceptions import RayError

    plan = make_plan(recipe_file)
    if not only:
        check_library_output(output)
    wanted = {job.key for job in plan.select(only)}
    lacking = [job.key for job in missing_adapters(plan, output) if job.key in wanted]
    for remark in plan.remarks():
        report(remark)
    with ray_cluster(address):
        if address in (None, LOCAL):  # a cluster elsewhere may add hosts for a task
            check_size(cpus, gpus)
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(_train_one)
        where = (str(recipe_file.resolve()), str(output.resolve()))
        pending = {task.remote(*where, key): key for key in lacking}
        while pending:
            (done,), _ = ray.wait(list(pending), num_returns=1)
            key = pending.pop(done)
            try:
                found = ray.get(done)
            except RayError as error:
                raise ResourceError(
                    f"{key}: its Ray task failed ({reason(error, last=True)}); see Ray's own logs, "
                    "then run the same command again to resume."
                ) from error
            if isinstance(found, GksError):
                raise found
            lacks = any(job.key == key for job in missing_adapters(plan, output))
            if lacks and found:
                raise LibraryError(
                    f"{key}: a Ray worker trained it, but {output / key} is not there or has other "
                    "data; name an output and a recipe in a file system that all hosts share."
                )
            report(f"{key}: {'another process is training it' if lacks else 'trained'}")
    still = {job.key for job in missing_adapters(plan, output)}
    return finish_library(plan, output, tuple(key for key in lacking if key not in still))


def _train_one(recipe_file: str, output: str, key: str) -> GksError | bool:
    """Return whether this call trained the adapter.

    A GksError is returned, not raised: Ray would wrap it and retry.
    """
    try:
        return bool(train_library(make_plan(Path(recipe_file)), Path(output), only=[key]).trained)
    except GksError as error:
        return error
