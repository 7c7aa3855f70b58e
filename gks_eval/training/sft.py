"""Supervised fine-tuning of one adapter: TRL's SFTTrainer under a recipe's schedule.

The optimiser of the recipe runs, with one exception: ``paged_adamw_8bit`` needs a CUDA device for
paging; without one, ``adamw_8bit`` runs instead (the same update, not paged).
"""

from __future__ import annotations

import contextlib
import inspect
import math
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gks_eval.training.examples import Example
from gks_eval.training.limits import limit_errors
from gks_eval.training.recipe import Schedule

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase, TrainerCallback

__all__ = ["TrainingRun", "last_checkpoint", "optimizer_for", "steps_of", "train_adapter"]

WHOLE = "WHOLE"
"""Marker inside a checkpoint that was written to its end."""


@dataclass(frozen=True)
class TrainingRun:
    """Results of a finished run.

    Attributes:
        curve: One mapping per optimiser step: step, loss, learning_rate, grad_norm.
        steps: Optimiser steps.
        seconds: Wall time, without the part before a resume.
        tokens_per_second: Speed over this time.
        optimizer: The optimiser that ran.
    """

    curve: list[dict[str, float]]
    steps: int
    seconds: float
    tokens_per_second: float
    optimizer: str


def optimizer_for(schedule: Schedule, device_type: str) -> str:
    """Return the optimiser that runs on a device; see the head of this module."""
    if schedule.optimizer == "paged_adamw_8bit" and device_type != "cuda":
        return "adamw_8bit"
    return schedule.optimizer


def steps_of(rows: int, schedule: Schedule, processes: int = 1) -> int:
    """Return the number of optimiser steps; the last one of an epoch may be smaller."""
    micro = math.ceil(rows / (schedule.batch_size * processes))
    return max(1, math.ceil(schedule.epochs * math.ceil(micro / schedule.accumulation)))


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end; half-written ones are removed."""
    whole: list[tuple[int, Path]] = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / WHOLE).is_file():
            whole.append((_step(checkpoint), checkpoint))
        else:
            shutil.rmtree(checkpoint, ignore_errors=True)
    return max(whole)[1] if whole else None


def train_adapter(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    schedule: Schedule,
    *,
    seed: int,
    work: Path,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainingRun:
    """Train the adapter of `model` in place; resume from the last whole checkpoint in `work`.

    Args:
        model: A base with a trainable adapter.
        tokenizer: Used for its padding token.
        examples: Encoded rows.
        schedule: Optimisation.
        seed: Seed of the order of rows and of dropout.
        work: Folder of the checkpoints.
        callbacks: Called with steps and losses.

    Raises:
        ResourceError: Memory or disk is full.
    """
    import datasets
    from transformers import PrinterCallback

    checkpoint = last_checkpoint(work)
    done_before = _step(checkpoint)
    device = next(model.parameters()).device
    optimizer = optimizer_for(schedule, device.type)
    rows = datasets.Dataset.from_dict(
        {
            "input_ids": [list(example.input_ids) for example in examples],
            "labels": [list(example.labels) for example in examples],
        }
    )
    start_time = time.monotonic()
    with _known_noise():
        trainer = _trainer_class(device.type)(
            model=model,
            args=_arguments(schedule, optimizer, seed=seed, work=work, cpu=device.type == "cpu"),
            train_dataset=rows,
            processing_class=tokenizer,
            callbacks=[_whole_checkpoints(), *callbacks],
        )
    trainer.remove_callback(PrinterCallback)
    # TRL keeps the adapter of a 4-bit base in bfloat16, whose 8 bits of precision lose an update
    # of 1e-4 to a weight of 0.03.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    with _known_noise(), limit_errors(work):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.monotonic() - start_time
    share = 1.0 - done_before / max(trainer.state.global_step, 1)
    tokens = sum(len(e.input_ids) for e in examples) * schedule.epochs * share
    return TrainingRun(
        curve=_curve(trainer.state.log_history),
        steps=trainer.state.global_step,
        seconds=seconds,
        tokens_per_second=tokens / max(seconds, 1e-9),
        optimizer=optimizer,
    )


def _arguments(schedule: Schedule, optimizer: str, *, seed: int, work: Path, cpu: bool) -> Any:
    from trl import SFTConfig

    decay = {"constant": "constant_with_warmup"}.get(schedule.decay, schedule.decay)
    return SFTConfig(
        output_dir=str(work),
        seed=seed,
        data_seed=seed,
        num_train_epochs=schedule.epochs,
        per_device_train_batch_size=schedule.batch_size,
        gradient_accumulation_steps=schedule.accumulation,
        learning_rate=schedule.learning_rate,
        lr_scheduler_type=decay,
        warmup_steps=schedule.warmup,
        max_grad_norm=schedule.clip,
        weight_decay=schedule.weight_decay,
        optim={"adamw": "adamw_torch"}.get(optimizer, optimizer),
        gradient_checkpointing=schedule.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        # The base has the dtype `load.dtype` and the adapter float32: no autocast.
        bf16=False,
        fp16=False,
        use_cpu=cpu,
        max_length=None,  # the examples are shortened and counted already
        dataset_kwargs={"skip_prepare_dataset": True},
        save_strategy="steps",
        save_steps=schedule.checkpoint_steps,
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=1,
        disable_tqdm=True,
        report_to="none",
        dataloader_pin_memory=not cpu,
        ddp_find_unused_parameters=False,  # every factor takes part in every step
    )


def _trainer_class(device_type: str) -> Any:
    """Return SFTTrainer; on a CPU, one that computes logits only where tokens are scored.

    Without Triton, TRL computes the logits of all positions, tile by tile. For rows of which a few
    tokens are scored, these take a third of a step.
    """
    from trl import SFTTrainer

    if device_type != "cpu":
        return SFTTrainer

    class ScoredOnly(SFTTrainer):  # type: ignore[misc, unused-ignore]
        def compute_loss(
            self,
            model: Any,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            import torch

            labels_BT = inputs["labels"][:, 1:]
            columns = (labels_BT != -100).any(0).nonzero().squeeze(1)
            # Tiles need less memory where most positions are scored.
            if (
                return_outputs
                or num_items_in_batch is None
                or 2 * len(columns) > labels_BT.shape[1]
                or not _chooses_logits(self.model)
            ):
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            given = {key: value for key, value in inputs.items() if key != "labels"}
            logits_BSV = model(**given, use_cache=False, logits_to_keep=columns).logits
            loss = torch.nn.functional.cross_entropy(
                logits_BSV.float().flatten(0, 1), labels_BT[:, columns].flatten(), reduction="sum"
            )
            return loss / num_items_in_batch * self.accelerator.num_processes

    return ScoredOnly


def _chooses_logits(model: PeftModel) -> bool:
    # Others ignore the argument, and return the logits of all positions.
    return "logits_to_keep" in inspect.signature(model.get_base_model().forward).parameters


@contextlib.contextmanager
def _known_noise() -> Iterator[None]:
    # TRL uses gradient_checkpointing, and the newest transformers activation_checkpointing; both
    # names work.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
        yield


def _whole_checkpoints() -> TrainerCallback:
    from transformers import TrainerCallback

    class MarkWhole(TrainerCallback):
        def on_save(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.is_world_process_zero:
                (Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE).touch()

    return MarkWhole()


def _curve(history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    keys = ("step", "loss", "learning_rate", "grad_norm")
    return [
        {key: entry[key] for key in keys if key in entry} for entry in history if "loss" in entry
    ]


def _step(checkpoint: Path | None) -> int:
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
