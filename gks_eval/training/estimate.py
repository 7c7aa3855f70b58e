"""What a recipe will take, said before it is run; needs neither a GPU nor the base's weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gks_eval.config.recipe import ExpertSection, GeneralMember, Recipe
from gks_eval.errors import GksError
from gks_eval.files import read_json
from gks_eval.team import Team
from gks_eval.training.adapter_writer import RECORD
from gks_eval.training.checks import Checked, check_run
from gks_eval.training.plan import Job, Plan
from gks_eval.training.sft import steps_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

__all__ = ["Estimate", "JobEstimate", "Memory", "estimate"]


@dataclass(frozen=True)
class JobEstimate:
    """One adapter before its training; None is what only its data, on the hub, can tell.

    Attributes:
        key: Of the job.
        rows: To train on.
        tokens: In one epoch; of windows, exactly.
        steps: Of the optimiser.
        finished: The library has it already, and it would not be trained again.
    """

    key: str
    rows: int | None
    tokens: int | None
    steps: int | None
    finished: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes on the device, by their use; activations are a rule of thumb.

    Attributes:
        base: Weights of the base as it is held.
        adapter: Factors, gradients and the optimiser's two moments, float32.
        activations: Kept for the backward pass of one micro-step of the longest rows.
    """

    base: int
    adapter: int
    activations: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.base + self.adapter + self.activations


@dataclass(frozen=True)
class Estimate:
    """What a run will take, and what it still lacks.

    Attributes:
        jobs: In the order of the recipe.
        memory: None where the base's configuration cannot be had.
        faults: What would stop the run; the run would end with the first.
        remarks: What should be known of the recipe before it is run.
    """

    jobs: tuple[JobEstimate, ...]
    memory: Memory | None
    faults: tuple[GksError, ...]
    remarks: tuple[str, ...] = ()


def estimate(
    plan: Plan, only: Sequence[str] = (), output: Path | None = None, *, here: bool = True
) -> Estimate:
    """Look at a recipe without training; local data are read, the hub's are not.

    Args:
        plan: The recipe's jobs.
        only: Names of adapters; all when empty.
        output: The library's folder, to see which adapters it has already.
        here: Whether it is this machine that trains.

    Raises:
        UsageError: A name in `only` that no job has.
    """
    jobs = plan.select(only)
    checked = check_run(plan, jobs, output, whole=not only, processes=Team().size, here=here)
    estimates = tuple(_job(job, checked, output) for job in jobs)
    memory = None if checked.outline is None else _memory(plan, jobs, checked.outline)
    return Estimate(estimates, memory, checked.faults, tuple(plan.remarks()))


def _job(job: Job, checked: Checked, output: Path | None) -> JobEstimate:
    schedule = job.section.schedule
    if output is not None and job.key in checked.finished:
        record = read_json(output / job.key / RECORD)
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


def _memory(plan: Plan, jobs: Sequence[Job], model: PreTrainedModel) -> Memory:
    from gks_eval.fit import linear_layers

    recipe = plan.recipe
    config = model.config
    targets = tuple(recipe.adapter.targets)
    linear = linear_layers(model)
    factors = sum(
        recipe.adapter.rank * (m.in_features + m.out_features)
        for name, m in linear.items()
        if name.rpartition(".")[2] in targets
    )
    longest = max(_longest(job) * job.section.schedule.batch_size for job in jobs)
    checkpointing = all(job.section.schedule.gradient_checkpointing for job in jobs)
    width = 4 if recipe.load.dtype == "float32" else 2
    layers, hidden = config.num_hidden_layers, config.hidden_size
    # A layer keeps about 16 vectors of the hidden width and 3 of the inner one a token; with
    # checkpointing that is one layer's worth, and one vector a layer.
    inside = 16 * hidden + 3 * getattr(config, "intermediate_size", 4 * hidden)
    kept = layers * hidden + inside if checkpointing else layers * inside
    return Memory(
        base=_base_bytes(recipe, model, linear, width),
        adapter=16 * factors,
        activations=width * longest * kept,
    )


def _base_bytes(
    recipe: Recipe, model: torch.nn.Module, linear: dict[str, torch.nn.Linear], width: int
) -> int:
    parameters = sum(p.numel() for p in model.parameters())
    if recipe.load.quantization == "none":
        return width * parameters
    packed = sum(m.weight.numel() for name, m in linear.items() if name != "lm_head")
    # NF4: half a byte a weight and a float32 scale every 64.
    return round(packed * (0.5 + 4 / 64)) + width * (parameters - packed)


def _longest(job: Job) -> int:
    if isinstance(job.section, ExpertSection):
        return job.section.max_tokens
    assert isinstance(job.member, GeneralMember)
    return job.member.prompt + job.member.completion
