"""Prepares the vectors of a router for all experts of a library, one expert after another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gks_eval.errors import ResourceError
from gks_eval.library.fit import check_fit
from gks_eval.library.prepared import read_vectors, write_vectors
from gks_eval.library.tied import tied_gates
from gks_eval.method.setting import Setting
from gks_eval.model.device import recipe_device
from gks_eval.model.inject import attach
from gks_eval.model.load_base import load_model
from gks_eval.training.activations import mean_activations
from gks_eval.training.gates import train_gates
from gks_eval.training.limits import limit_errors
from gks_eval.training.vector_plan import VectorJob, VectorPlan
from gks_eval.util.files import check_writable, exclusive
from gks_eval.util.versions import versions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

__all__ = ["prepare"]


def prepare(
    plan: VectorPlan,
    on_expert: Callable[[VectorJob], None] = lambda _: None,
    on_step: Callable[[], None] = lambda: None,
) -> None:
    """Make the missing vectors, and write them after every expert.

    Args:
        plan: What to make.
        on_expert: Called when an expert is written.
        on_step: Called after every optimiser step or sample.

    Raises:
        CompatibilityError: The library does not fit the base.
        ResourceError: Memory or disk is full, or another process makes these vectors.
        GksError: The base cannot be loaded.
    """
    import torch

    check_writable(plan.folder)
    with exclusive(plan.folder.parent / f".{plan.router}.lock") as held, limit_errors(plan.folder):
        if not held:
            raise ResourceError(f"another process is preparing {plan.folder}; wait for it.")
        missing = [job for job in plan.jobs if not job.done]
        if not missing:
            return
        kept = {job.name for job in plan.jobs if job.done}
        tensors, experts = _kept(plan.folder, kept) if kept else ({}, {})
        model = load_model(plan.base, getattr(torch, plan.dtype), recipe_device(plan.device))
        model.requires_grad_(False)
        check_fit(plan.library, model, plan.base.name)
        for job in missing:
            vectors, facts = _vectors(plan, job, model, on_step)
            tensors |= {f"{job.name}/{layer}": vector for layer, vector in vectors.items()}
            experts[job.name] = {
                "adapter": plan.library.experts[job.name].digest,
                "fingerprint": job.fingerprint,
                "data": job.data.fingerprint,
                "rows": job.data.report.rows,
                "tokens": job.data.report.tokens,
                **facts,
            }
            write_vectors(plan.folder, tensors, _record(plan, experts))
            on_expert(job)


def _vectors(
    plan: VectorPlan, job: VectorJob, model: PreTrainedModel, on_step: Callable[[], None]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    pairs = plan.library.experts[job.name].pairs
    options = plan.options
    if plan.router == "phatgoose":
        vectors, losses = train_gates(
            model,
            pairs,
            job.data.train,
            steps=options.steps,
            learning_rate=options.learning_rate,
            batch_size=options.batch_size,
            seed=options.seed,
            tied={name: group.name for name, group in plan.library.tied.items()},
            on_step=on_step,
        )
        return vectors, {"loss_first": round(losses[0], 4), "loss_last": round(losses[-1], 4)}
    alone = Setting.from_arguments(preset="exact", subtract="none", router=f"expert:{job.name}")
    with attach(model, plan.library, alone):
        return mean_activations(model, list(pairs), job.data.train, on_step), {}


def _record(plan: VectorPlan, experts: dict[str, Any]) -> dict[str, Any]:
    tied = tied_gates(plan.library.tied, plan.router)
    return {
        "router": plan.router,
        **plan.options.record(plan.router),
        "base_model": plan.base.name,
        "revision": plan.base.revision,
        "quantization": plan.base.quantization,
        "dtype": plan.dtype,
        "library": plan.library.content_hash,
        **({"tied": tied} if tied else {}),
        "experts": experts,
        "versions": versions(),
    }


def _kept(folder: Path, names: set[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    found = read_vectors(folder)
    tensors = {key: vector for name in names for key, vector in found.of(name).items()}
    return tensors, {name: found.record["experts"][name] for name in names}
