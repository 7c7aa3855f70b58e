"""Checks for what would stop a run before its first step, without reading weights.

`train_library` raises what is found here, and a dry run reports it. Both use one list of checks, so
that they end with the same message and the same exit code.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gks_eval.errors import GksError, UsageError
from gks_eval.model.device import recipe_device
from gks_eval.model.load_base import load_tokenizer, outline_of
from gks_eval.training.accumulation import share_of
from gks_eval.training.adapter_writer import is_finished
from gks_eval.training.base import base_of
from gks_eval.training.examples import DataReport, chat_text
from gks_eval.training.job_data import load_job_data, separator_of
from gks_eval.training.jobs import Job, TrainingPlan
from gks_eval.training.library_writer import check_library_output
from gks_eval.training.loftq import check_quantised
from gks_eval.training.recipe import GeneralMember
from gks_eval.training.sources import identity
from gks_eval.training.start import check_targets
from gks_eval.util.files import check_writable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Checked", "JobCounts", "check_run"]

PACKAGES = ("trl", "matplotlib")


@dataclass(frozen=True)
class JobCounts:
    """The data of one adapter, counted.

    Attributes:
        report: The counts of `gks_eval.training.job_data`.
        longest: Tokens of the longest training row.
    """

    report: DataReport
    longest: int


@dataclass(frozen=True)
class Checked:
    """What the checks found.

    Attributes:
        faults: What would stop the run, in the order in which the run would meet it.
        fingerprints: Fingerprints by job; without jobs whose data are missing.
        finished: Keys of the jobs whose adapter the library has already.
        counts: Counts by job; only for local data without faults.
        outline: The base on the meta device; None if it is not available or not needed.
    """

    faults: tuple[GksError, ...]
    fingerprints: Mapping[str, str]
    finished: frozenset[str]
    counts: Mapping[str, JobCounts]
    outline: PreTrainedModel | None


def check_run(
    plan: TrainingPlan,
    jobs: Sequence[Job],
    output: Path | None,
    *,
    whole: bool = True,
    processes: int = 1,
    here: bool = True,
) -> Checked:
    """Check a run up to its first step, without the base's weights and data on the hub.

    Args:
        plan: The recipe's jobs.
        jobs: The jobs to train.
        output: The library's folder, if known.
        whole: Whether the run will write the library's manifest.
        processes: Number of processes that train each adapter together.
        here: Whether this machine will train.
    """
    import torch

    faults: list[GksError] = []
    fingerprints: dict[str, str] = {}
    counts: dict[str, JobCounts] = {}
    tokenizer: PreTrainedTokenizerBase | None = None
    outline: PreTrainedModel | None = None
    recipe = plan.recipe
    with _noted(faults):
        _check_packages()
    if output is not None:
        with _noted(faults):
            if whole:
                check_library_output(output)
            check_writable(output)
    for job in jobs:
        with _noted(faults):
            fingerprints[job.key] = plan.fingerprint(job, identity(job, plan.root))
    finished = frozenset(
        key for key, mark in fingerprints.items() if output and is_finished(output / key, mark)
    )
    todo = [job for job in jobs if job.key in fingerprints and job.key not in finished]
    if not todo:  # neither base nor device is needed
        return Checked(tuple(faults), fingerprints, finished, counts, None)
    if here:
        with _noted(faults):
            recipe_device(recipe.load.device)
    with _noted(faults):
        base = base_of(recipe, plan.root)
        tokenizer = load_tokenizer(base)
        outline = outline_of(base, getattr(torch, recipe.load.dtype))
        check_targets(outline, recipe.adapter.targets, recipe.base_model)
        if recipe.adapter.init == "loftq":
            check_quantised(outline, recipe.adapter.targets)
    for job in todo:
        with _noted(faults):
            share_of(job.section.schedule, processes)
            if tokenizer is not None:
                _check_tokenizer(job, tokenizer)
                if job.member.file is not None:
                    counts[job.key] = _counted(job, plan.root, tokenizer)
    return Checked(tuple(faults), fingerprints, finished, counts, outline)


@contextmanager
def _noted(faults: list[GksError]) -> Iterator[None]:
    # A fault of the tokenizer or the recipe repeats for every job.
    try:
        yield
    except GksError as error:
        if str(error) not in map(str, faults):
            faults.append(error)


def _check_packages() -> None:
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UsageError(f"training needs {', '.join(missing)}: pip install 'gks-eval[train]'.")


def _check_tokenizer(job: Job, tokenizer: PreTrainedTokenizerBase) -> None:
    if job.section.format == "chat":
        chat_text(tokenizer, "source", "target")
    if isinstance(job.member, GeneralMember) and job.member.cut == "packed":
        separator_of(tokenizer)


def _counted(job: Job, root: Path, tokenizer: PreTrainedTokenizerBase) -> JobCounts:
    data = load_job_data(job, root, tokenizer)
    longest = max((len(example.input_ids) for example in data.train), default=0)
    return JobCounts(data.report, longest)
