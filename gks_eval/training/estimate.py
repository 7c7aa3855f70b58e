"""Estimates what a recipe needs before it is run, without a GPU or the base's weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gks_eval.errors import CompatibilityError, GksError
from gks_eval.library.peft_adapter import RECORD
from gks_eval.model.device import recipe_device
from gks_eval.training.jobs import Job, TrainingPlan
from gks_eval.training.limits import peak_memory_mb
from gks_eval.training.preflight import Checked, check_run
from gks_eval.training.recipe import ExpertSection, GeneralMember, Recipe
from gks_eval.training.sft import steps_of
from gks_eval.training.start import attach_adapter
from gks_eval.util.json_file import read_or_empty
from gks_eval.util.process_group import ProcessGroup

if TYPE_CHECKING:
    import torch

__all__ = ["Estimate", "JobEstimate", "Memory", "estimate"]


FIRST_STEP_MB = 256
"""Memory that a process keeps after its first step: 290 and 305 MB measured, on two bases."""


@dataclass(frozen=True)
class JobEstimate:
    """One adapter before its training; values that need data from the hub are None.

    Attributes:
        key: Key of the job.
        rows: Rows to train on.
        tokens: Tokens in one epoch; exact for windows.
        steps: Optimiser steps.
        finished: Whether the library has the adapter already; it is then not trained again.
    """

    key: str
    rows: int | None
    tokens: int | None
    steps: int | None
    finished: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of one adapter's training, by use.

    Attributes:
        program: The process without a model; 0 for a GPU.
        base: Weights of the base as loaded.
        adapter: Factors and the optimiser's two moments, in float32.
        activations: A micro-step with the longest rows, gradients included.
    """

    program: int
    base: int
    adapter: int
    activations: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.program + self.base + self.adapter + self.activations


@dataclass(frozen=True)
class Estimate:
    """What a run needs, and what would stop it.

    Attributes:
        jobs: One estimate per job, in the order of the recipe.
        memory: None if the base's configuration is not available, or its code needs values.
        faults: What would stop the run; it would end with the first.
        remarks: What to know about the recipe before it is run.
    """

    jobs: tuple[JobEstimate, ...]
    memory: Memory | None
    faults: tuple[GksError, ...]
    remarks: tuple[str, ...] = ()


def estimate(
    plan: TrainingPlan, only: Sequence[str] = (), output: Path | None = None, *, here: bool = True
) -> Estimate:
    """Estimate a recipe without training; local data are read, data on the hub are not.

    Args:
        plan: The recipe's jobs.
        only: Names of adapters; all when empty.
        output: The library's folder, to see which adapters it has already.
        here: Whether this machine will train.

    Raises:
        UsageError: No job has a name in `only`.
    """
    jobs = plan.select(only)
    checked = check_run(
        plan, jobs, output, whole=not only, processes=ProcessGroup().size, here=here
    )
    estimates = tuple(_job(job, checked, output) for job in jobs)
    memory = _memory(plan, jobs, checked)
    return Estimate(estimates, memory, checked.faults, tuple(plan.remarks()))


def _job(job: Job, checked: Checked, output: Path | None) -> JobEstimate:
    schedule = job.section.schedule
    if output is not None and job.key in checked.finished:
        record = read_or_empty(output / job.key / RECORD)
        return JobEstimate(
            job.key, record.get("rows"), record.get("tokens"), record.get("steps"), finished=True
        )
    if (counts := checked.counts.get(job.key)) is not None:
        rows = counts.report.rows
        return JobEstimate(job.key, rows, counts.report.tokens, steps_of(rows, schedule))
    if job.member.file is not None:
        return JobEstimate(job.key, None, None, None)
    if isinstance(job.member, GeneralMember):
        rows = job.member.windows
        length = job.member.prompt + job.member.completion
        return JobEstimate(job.key, rows, rows * length, steps_of(rows, schedule))
    steps = steps_of(job.member.rows, schedule) if job.member.rows else None
    return JobEstimate(job.key, job.member.rows, None, steps)


def _memory(plan: TrainingPlan, jobs: Sequence[Job], checked: Checked) -> Memory | None:
    import torch

    from gks_eval.library.fit import linear_layers
    from gks_eval.training.footprint import step_bytes

    recipe, outline = plan.recipe, checked.outline
    if outline is None or any(isinstance(fault, CompatibilityError) for fault in checked.faults):
        return None
    device = _device_type(recipe)
    outline.to(getattr(torch, recipe.load.dtype)).requires_grad_(False)
    base = _base_bytes(recipe, outline, linear_layers(outline))
    model = attach_adapter(outline, recipe.adapter, str(outline.name_or_path), recipe.seed)
    factors = sum(p.numel() for p in model.parameters() if p.requires_grad)
    steps = {_largest_step(job, checked) for job in jobs if job.key not in checked.finished}
    try:
        activations = max(
            step_bytes(model, rows, length, checkpointing=checkpointing, device=device)
            for rows, length, checkpointing in steps
        )
    except Exception:  # a model's code may read values, which meta tensors do not have
        return None
    return Memory(
        program=_program_bytes() if device == "cpu" else 0,
        base=base,
        adapter=12 * factors,
        activations=activations,
    )


def _base_bytes(recipe: Recipe, model: torch.nn.Module, linear: dict[str, torch.nn.Linear]) -> int:
    parameters = sum(p.numel() for p in model.parameters())
    width = 4 if recipe.load.dtype == "float32" else 2
    if recipe.load.quantization == "none":
        return width * parameters
    packed = [m.weight.numel() for name, m in linear.items() if name != "lm_head"]
    # NF4: half a byte per weight, a float32 scale per 64; one layer at a time is unpacked.
    held = round(sum(packed) * (0.5 + 4 / 64)) + width * (parameters - sum(packed))
    return held + width * max(packed, default=0)


def _device_type(recipe: Recipe) -> str:
    try:
        return recipe_device(recipe.load.device).type
    except GksError:  # the recipe's device is not on this machine
        return recipe.load.device


def _program_bytes() -> int:
    # Import what training imports, so that its memory counts.
    import bitsandbytes  # noqa: F401
    import datasets  # noqa: F401
    import torch
    from trl import SFTTrainer  # noqa: F401

    return (peak_memory_mb(torch.device("cpu")) + FIRST_STEP_MB) << 20


def _largest_step(job: Job, checked: Checked) -> tuple[int, int, bool]:
    schedule = job.section.schedule
    rows, length = schedule.batch_size, 0
    if (counts := checked.counts.get(job.key)) is not None:
        rows, length = min(rows, counts.report.rows), counts.longest
    elif isinstance(job.section, ExpertSection):
        length = job.section.max_tokens
    elif isinstance(job.member, GeneralMember):
        length = job.member.prompt + job.member.completion
    return rows, length, schedule.gradient_checkpointing
