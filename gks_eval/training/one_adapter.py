"""Trains one adapter, from its data to its folder."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gks_eval.model.device import recipe_device
from gks_eval.training.accumulation import share_of
from gks_eval.training.adapter_writer import Factors, write_trained_adapter
from gks_eval.training.base import load_frozen_base
from gks_eval.training.held_out import mean_loss
from gks_eval.training.job_data import JobData, load_job_data
from gks_eval.training.jobs import Job, TrainingPlan
from gks_eval.training.limits import limit_errors, peak_memory_mb, reset_peak_memory
from gks_eval.training.loftq import start_from_loftq
from gks_eval.training.run_callback import RunCallback, step_callback
from gks_eval.training.sft import TrainingRun, steps_of, train_adapter
from gks_eval.training.start import attach_adapter
from gks_eval.util.files import write_text
from gks_eval.util.process_group import ProcessGroup

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["WORK", "train_job"]

WORK = ".work"
"""Folder of checkpoints and locks inside a library; removed when the library is complete."""


def train_job(
    plan: TrainingPlan,
    job: Job,
    output: Path,
    fingerprint: str,
    *,
    tokenizer: PreTrainedTokenizerBase,
    callback: RunCallback,
    group: ProcessGroup,
) -> None:
    """Train one adapter and write its folder.

    The base is loaded again for each adapter, so earlier training leaves no trace and an
    adapter's bytes do not depend on which others this process trained.

    Args:
        plan: The recipe's jobs.
        job: The one to train.
        output: The library's folder.
        fingerprint: Identifies the adapter later.
        tokenizer: The base model's tokenizer.
        callback: Receives the progress.
        group: The processes that train together.

    Raises:
        GksError: The data, the base or the machine cannot be used; see each class.
    """
    recipe = plan.recipe
    schedule = share_of(job.section.schedule, group.size)
    data = load_job_data(job, plan.root, tokenizer)
    reset_peak_memory(recipe_device(recipe.load.device))
    work = output / WORK / f"{job.kind}-{job.name}"
    if group.is_main:
        _clear_other_work(work, fingerprint + data.fingerprint)
    group.wait()
    steps = steps_of(len(data.train), schedule, group.size)
    trainer_callback = step_callback(job, callback, data.report.tokens * schedule.epochs / steps)
    with limit_errors(work):
        base = load_frozen_base(recipe, plan.root)
        model = attach_adapter(base, recipe.adapter, str(base.name_or_path), job.start_seed)
        if recipe.adapter.init == "loftq":
            unquantised = recipe.load.model_copy(update={"quantization": "none", "device": "cpu"})
            start_from_loftq(model, load_frozen_base(recipe, plan.root, unquantised))
        if group.is_main:
            callback.started(job, steps)
        run = train_adapter(
            model,
            tokenizer,
            data.train,
            schedule,
            seed=job.seed,
            work=work,
            callbacks=[trainer_callback],
        )
        if group.is_main:
            record = _record(plan, job, fingerprint, data, base, run, group.size)
            if data.held_out:
                record["held_out"] = _held_out(model, data)
            factors = Factors.of(model, recipe.adapter.save_dtype, job.key)
            write_trained_adapter(
                output / job.key, factors, recipe.adapter, recipe.base_model, record, run.curve
            )
            shutil.rmtree(work, ignore_errors=True)
            callback.finished(job, record)
    group.wait()


def _clear_other_work(folder: Path, fingerprint: str) -> None:
    # Checkpoints of another recipe or of other data cannot be resumed.
    mark = folder / "fingerprint"
    if folder.is_dir() and not (mark.is_file() and mark.read_text("utf-8") == fingerprint):
        shutil.rmtree(folder)
    if not folder.is_dir():
        write_text(mark, fingerprint)


def _record(
    plan: TrainingPlan,
    job: Job,
    fingerprint: str,
    data: JobData,
    base: PreTrainedModel,
    run: TrainingRun,
    processes: int,
) -> dict[str, Any]:
    import torch

    return {
        "adapter": job.key,
        "fingerprint": fingerprint,
        "recipe": plan.recipe_hash,
        "data": data.fingerprint,
        "begins_with": data.begins_with,
        "seed": job.seed,
        "start_seed": job.start_seed,
        "init": plan.recipe.adapter.init,
        "base_revision": getattr(base.config, "_commit_hash", None),
        **asdict(data.report),
        "steps": run.steps,
        "loss_first": round(run.curve[0]["loss"], 4),
        "loss_last": round(run.curve[-1]["loss"], 4),
        "optimizer": run.optimizer,
        "device": base.device.type,
        "threads": torch.get_num_threads(),
        "processes": processes,
        "seconds": round(run.seconds, 1),
        "tokens_per_second": round(run.tokens_per_second, 1),
        "peak_memory_mb": peak_memory_mb(base.device),
    }


def _held_out(model: PeftModel, data: JobData) -> dict[str, float]:
    with model.disable_adapter():
        before = mean_loss(model, data.held_out)
    after = mean_loss(model, data.held_out)
    return {"n": len(data.held_out), "base": round(before, 4), "adapter": round(after, 4)}
