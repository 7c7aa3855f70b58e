"""The loss of every adapter on every adapter's held-out rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gks_eval.errors import DataError, LibraryError
from gks_eval.model.load_base import load_tokenizer
from gks_eval.model.quantized import keep_portable_layout
from gks_eval.training.base import base_of, load_frozen_base
from gks_eval.training.held_out import mean_loss
from gks_eval.training.job_data import load_job_data
from gks_eval.training.jobs import Job, TrainingPlan
from gks_eval.training.whole_library import missing_adapters
from gks_eval.util.files import write_text

__all__ = ["LOSS_TABLE", "check_measurable", "measure_losses"]

LOSS_TABLE = "held_out.json"


def check_measurable(plan: TrainingPlan, library: Path, coming: Sequence[Job] = ()) -> None:
    """Check that `measure_losses` can measure a library.

    Args:
        plan: The recipe.
        library: Its library.
        coming: Adapters that will be trained before the measurement.

    Raises:
        DataError: A section holds nothing out.
        LibraryError: An adapter is missing.
    """
    if missing := [job for job in missing_adapters(plan, library) if job not in coming]:
        raise LibraryError(f"{library}: {missing[0].key} is not trained yet; run `gks-eval train`.")
    if any(job.section.held_out == 0 for job in plan.jobs):
        raise DataError("the recipe holds no rows out; set `held_out` in its sections.")


def measure_losses(
    plan: TrainingPlan,
    library: Path,
    *,
    rows: int | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, dict[str, float]]:
    """Measure the base and all adapters of a kind on each adapter's held-out rows.

    The result is also written to ``held_out.json`` in the library.

    Args:
        plan: The recipe; its sections must hold out rows.
        library: The finished library.
        rows: Maximum number of rows per job.
        report: Called with one line per job.

    Returns:
        The mean loss per scored token, by job and then by adapter (``base`` for no adapter).

    Raises:
        DataError: A section holds nothing out.
        LibraryError: An adapter is missing.
    """
    from peft import PeftModel

    check_measurable(plan, library)
    tokenizer = load_tokenizer(base_of(plan.recipe, plan.root))
    base = load_frozen_base(plan.recipe, plan.root)
    first, *others = plan.jobs
    model: Any = PeftModel.from_pretrained(base, library / first.key, first.key.replace("/", "-"))
    for job in others:
        model.load_adapter(library / job.key, job.key.replace("/", "-"))
    keep_portable_layout(model)
    table: dict[str, dict[str, float]] = {}
    for job in plan.jobs:
        examples = load_job_data(job, plan.root, tokenizer).held_out[:rows]
        with model.disable_adapter():
            losses = {"base": mean_loss(model, examples)}
        for other in plan.jobs:
            if other.kind == job.kind:
                model.set_adapter(other.key.replace("/", "-"))
                losses[other.key] = mean_loss(model, examples)
        table[job.key] = {key: round(loss, 4) for key, loss in losses.items()}
        others_mean = [v for k, v in losses.items() if k not in ("base", job.key)]
        mean = (
            f", the others' mean {sum(others_mean) / len(others_mean):.3f}" if others_mean else ""
        )
        report(
            f"{job.key} (n = {len(examples)}): base {losses['base']:.3f},"
            f" own {losses[job.key]:.3f}{mean}"
        )
    write_text(library / LOSS_TABLE, json.dumps(table, indent=1) + "\n")
    return table
