"""A recipe -> a library: runs the jobs, skips finished ones, resumes unfinished ones."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gks_eval.errors import DataError
from gks_eval.model.load_base import load_tokenizer
from gks_eval.training.adapter_writer import CURVE, is_finished
from gks_eval.training.base import base_of
from gks_eval.training.curves import draw_curves
from gks_eval.training.jobs import Job, TrainingPlan
from gks_eval.training.library_writer import is_foreign, write_trained_manifest
from gks_eval.training.limits import release_memory
from gks_eval.training.one_adapter import WORK, train_job
from gks_eval.training.preflight import check_run
from gks_eval.training.run_callback import RunCallback
from gks_eval.training.sources import identity
from gks_eval.util.files import exclusive
from gks_eval.util.process_group import ProcessGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["CURVES", "TrainingOutcome", "finish_library", "missing_adapters", "train_library"]

CURVES = "losses.png"


@dataclass(frozen=True)
class TrainingOutcome:
    """The result of a run.

    Attributes:
        trained: Adapters that this process trained.
        missing: Adapters of the recipe that the library does not have yet.
        manifest: The manifest, if nothing is missing.
    """

    trained: tuple[str, ...]
    missing: tuple[str, ...]
    manifest: Path | None


def train_library(
    plan: TrainingPlan,
    output: Path,
    *,
    only: Sequence[str] = (),
    callback: RunCallback | None = None,
) -> TrainingOutcome:
    """Train the adapters of a recipe that the library does not have yet.

    Several processes may run this on one library, also on several machines if the file system
    supports locks: the first process to reach an adapter trains it. The process that finishes the
    last adapter writes the manifest. Under torchrun the processes train each adapter together.

    Args:
        plan: The recipe's jobs.
        output: The library's folder.
        only: Names of adapters; all when empty.
        callback: Receives the progress.

    Raises:
        GksError: The recipe, the data, the base or the machine cannot be used; see each class.
    """
    callback = callback or RunCallback()
    group = ProcessGroup()
    jobs = plan.select(only)
    if group.is_main:
        callback.planned(plan, jobs)
    # All checks come first, so that a missing column is reported now and not after hours.
    checked = check_run(plan, jobs, output, whole=not only, processes=group.size)
    if checked.faults:
        raise checked.faults[0]
    tokenizer: PreTrainedTokenizerBase | None = None
    trained: list[str] = []
    for job in jobs:
        fingerprint = checked.fingerprints[job.key]
        lock = output / WORK / f"{job.kind}-{job.name}.lock"
        with exclusive(lock) if group.is_main else nullcontext(True) as held:
            why = group.agree(_why_skipped(held, output / job.key, fingerprint))
            if why:
                if group.is_main:
                    callback.skipped(job, why)
                continue
            tokenizer = tokenizer or load_tokenizer(base_of(plan.recipe, plan.root))
            train_job(
                plan, job, output, fingerprint, tokenizer=tokenizer, callback=callback, group=group
            )
            trained.append(job.key)
            release_memory()
    group.wait()
    if not group.is_main:
        return TrainingOutcome(tuple(trained), (), None)
    return finish_library(plan, output, tuple(trained))


def finish_library(plan: TrainingPlan, output: Path, trained: tuple[str, ...]) -> TrainingOutcome:
    """Draw the curves, and write the manifest if nothing is missing.

    Args:
        plan: The recipe's jobs.
        output: The library's folder.
        trained: Newly trained adapters.

    Raises:
        ResourceError: The disk is full, or the folder cannot be written.
    """
    missing = tuple(job.key for job in missing_adapters(plan, output))
    done = [job.key for job in plan.jobs if job.key not in missing]
    # Also if this run trained nothing: an earlier run may have been killed before this point.
    if drawn := [key for key in done if (output / key / CURVE).is_file()]:
        draw_curves(output, drawn, output / CURVES)
    has_experts = any(job.kind == "experts" for job in plan.jobs)
    if missing or not has_experts or is_foreign(output):
        return TrainingOutcome(trained, missing, None)
    manifest = write_trained_manifest(plan, output)
    shutil.rmtree(output / WORK, ignore_errors=True)
    return TrainingOutcome(trained, (), manifest)


def missing_adapters(plan: TrainingPlan, output: Path) -> list[Job]:
    """Return the jobs whose adapter the library does not have, or has from another recipe."""
    return [job for job in plan.jobs if not _has(plan, job, output)]


def _has(plan: TrainingPlan, job: Job, output: Path) -> bool:
    try:
        data = identity(job, plan.root)
    except DataError:  # its file is gone, which does not concern a run over the others
        return False
    return is_finished(output / job.key, plan.fingerprint(job, data))


def _why_skipped(held: bool, folder: Path, fingerprint: str) -> str:
    if not held:
        return "another process is training it"
    return "finished before" if is_finished(folder, fingerprint) else ""
