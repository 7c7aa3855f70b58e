"""Prepares the vectors of a router for all experts of a library, one expert after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gks_eval.errors import LibraryError, ResourceError, UsageError, did_you_mean
from gks_eval.library.fit import check_fit
from gks_eval.library.library import Library
from gks_eval.library.prepared import home_of_vectors, read_vectors, write_vectors
from gks_eval.method.setting import Setting
from gks_eval.model.base_model import ResolvedBase, content_stamp, resolve_base
from gks_eval.model.device import recipe_device
from gks_eval.model.inject import attach
from gks_eval.model.load_base import load_model, load_tokenizer
from gks_eval.training.activations import mean_activations
from gks_eval.training.gates import train_gates
from gks_eval.training.job_data import JobData, load_job_data
from gks_eval.training.jobs import Job, TrainingPlan, digest_of_json
from gks_eval.training.limits import limit_errors
from gks_eval.util.files import check_writable, exclusive
from gks_eval.util.process_group import ProcessGroup
from gks_eval.util.versions import versions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

__all__ = ["PREPARES", "VectorJob", "VectorOptions", "VectorPlan", "plan_vectors", "prepare"]

PREPARES: Final = ("phatgoose", "mean_activation")


@dataclass(frozen=True)
class VectorOptions:
    """How vectors are made; all but `samples` are for phatgoose's gates.

    Attributes:
        samples: Rows per expert at most; None for ten, or for as many as the steps need.
        steps: Optimiser steps.
        batch_size: Rows per step.
        learning_rate: Constant.
        seed: Of the order of the rows in the steps.
        dtype: Of the base; None for the recipe's.
    """

    samples: int | None = None
    steps: int = 100
    batch_size: int = 4
    learning_rate: float = 1e-3
    seed: int = 0
    dtype: str | None = None

    def rows(self, router: str) -> int:
        """Return the largest number of rows per expert."""
        trained = self.steps * self.batch_size if router == "phatgoose" else 10
        return self.samples or trained

    def record(self, router: str) -> dict[str, Any]:
        """Return what the vectors depend on."""
        if router != "phatgoose":
            return {}
        names = ("steps", "batch_size", "learning_rate", "seed")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class VectorJob:
    """One expert.

    Attributes:
        name: Of the expert.
        data: Its rows.
        fingerprint: Names all that its vectors depend on, apart from software and machine.
        done: Whether the library has them already.
    """

    name: str
    data: JobData
    fingerprint: str
    done: bool


@dataclass(frozen=True)
class VectorPlan:
    """The vectors of one router, before they are made.

    Attributes:
        library: The library.
        router: A name in `PREPARES`.
        options: How they are made.
        folder: Where they go.
        base: What the experts run on.
        dtype: Of the base.
        device: Of the base: ``auto``, ``cpu`` or ``cuda``.
        jobs: The experts.
    """

    library: Library
    router: str
    options: VectorOptions
    folder: Path
    base: ResolvedBase
    dtype: str
    device: str
    jobs: tuple[VectorJob, ...]


def plan_vectors(
    library: Library, router: str, data: TrainingPlan, options: VectorOptions
) -> VectorPlan:
    """Read the data of every expert and see which vectors there are already.

    Args:
        library: The library.
        router: A name in `PREPARES`.
        data: A recipe's jobs, by the names of the experts; rows are drawn, written and cut as in
            training, and rows held out stay out.
        options: How the vectors are made.

    Raises:
        UsageError: No such router, or an expert has no data.
        GksError: The data cannot be read.
    """
    if router not in PREPARES:
        raise UsageError(f"--router {router} prepares nothing; {did_you_mean(router, PREPARES)}.")
    if ProcessGroup().size > 1:
        raise UsageError("gks-eval prepare runs in one process; start it without torchrun.")
    known = {job.name: job for job in data.jobs if job.kind == "experts"}
    if missing := [name for name in library.experts if name not in known]:
        raise UsageError(
            f"--data has no rows for {', '.join(missing)} of library {library.name}; "
            f"it has them for {', '.join(known) or 'no expert'}."
        )
    base = resolve_base(manifest=library.config)
    dtype = options.dtype or data.recipe.load.dtype
    tokenizer = load_tokenizer(base)
    folder = home_of_vectors(library, router)
    made = _made(folder)
    jobs = []
    for name, adapter in library.experts.items():
        rows = load_job_data(_fewer(known[name], options.rows(router)), data.root, tokenizer)
        fingerprint = digest_of_json(
            {
                "router": router,
                "adapter": adapter.digest,
                "base": [base.name, base.revision, base.quantization, content_stamp(base.source)],
                "dtype": dtype,
                "data": rows.fingerprint,
                **options.record(router),
            }
        )
        jobs.append(VectorJob(name, rows, fingerprint, made.get(name) == fingerprint))
    return VectorPlan(
        library, router, options, folder, base, dtype, data.recipe.load.device, tuple(jobs)
    )


def prepare(
    plan: VectorPlan,
    on_expert: Callable[[VectorJob], None] = lambda _: None,
    on_step: Callable[[], None] = lambda: None,
) -> None:
    """Make the vectors that are not there yet, and write them after every expert.

    Args:
        plan: What to make.
        on_expert: Called when an expert is written.
        on_step: Called after every optimiser step or sample.

    Raises:
        CompatibilityError: The library does not fit the base.
        ResourceError: Memory or disk does not suffice, or another process makes these vectors.
        GksError: The base cannot be loaded.
    """
    import torch

    check_writable(plan.folder)
    with exclusive(plan.folder.parent / f".{plan.router}.lock") as held, limit_errors(plan.folder):
        if not held:
            raise ResourceError(f"another process is preparing {plan.folder}; wait for it.")
        waiting = [job for job in plan.jobs if not job.done]
        if not waiting:
            return
        kept = {job.name for job in plan.jobs if job.done}
        tensors, experts = _kept(plan.folder, kept) if kept else ({}, {})
        model = load_model(plan.base, getattr(torch, plan.dtype), recipe_device(plan.device))
        model.requires_grad_(False)
        check_fit(plan.library, model, plan.base.name)
        for job in waiting:
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
            on_step=on_step,
        )
        return vectors, {"loss_first": round(losses[0], 4), "loss_last": round(losses[-1], 4)}
    alone = Setting.from_arguments(preset="exact", subtract="none", router=f"expert:{job.name}")
    with attach(model, plan.library, alone):
        return mean_activations(model, list(pairs), job.data.train, on_step), {}


def _record(plan: VectorPlan, experts: dict[str, Any]) -> dict[str, Any]:
    return {
        "router": plan.router,
        **plan.options.record(plan.router),
        "base_model": plan.base.name,
        "revision": plan.base.revision,
        "quantization": plan.base.quantization,
        "dtype": plan.dtype,
        "library": plan.library.content_hash,
        "experts": experts,
        "versions": versions(),
    }


def _fewer(job: Job, rows: int) -> Job:
    rows = min(rows, getattr(job.member, "rows", None) or rows)
    return replace(job, member=job.member.model_copy(update={"rows": rows}))


def _made(folder: Path) -> dict[str, Any]:
    """Return the fingerprints of the experts that have vectors."""
    try:
        return {
            name: made["fingerprint"]
            for name, made in read_vectors(folder).record["experts"].items()
        }
    except LibraryError:
        return {}


def _kept(folder: Path, names: set[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    found = read_vectors(folder)
    tensors = {key: vector for name in names for key, vector in found.of(name).items()}
    return tensors, {name: found.record["experts"][name] for name in names}
